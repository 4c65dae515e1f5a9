// SPDX-License-Identifier: Apache-2.0
// A training loop of one's own: batches from anywhere, one update at a time.
#include <mamba/mamba.h>

#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 2) return std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]), 2;
  mamba::Config config;  // a Mamba-1 over 16 symbols
  config.vocab_size = 16, config.d_model = 32, config.d_inner = 64, config.n_layer = 2;
  config.dt_rank = 2;
  mamba::Learner learner = mamba::Learner::create(config, /*seed=*/1);

  // Sequences that count by 3: each token decides the next one.
  constexpr int64_t kBatch = 4, kLength = 32;
  std::vector<int32_t> tokens, targets;
  for (int64_t row = 0; row < kBatch; ++row) {
    for (int64_t t = 0; t < kLength; ++t) {
      tokens.push_back(static_cast<int32_t>((row + 3 * t) % 16));
      targets.push_back(static_cast<int32_t>((row + 3 * t + 3) % 16));
    }
  }
  double loss = 0;
  for (int step = 1; step <= 60; ++step) {
    loss = learner.step(tokens.data(), targets.data(), kBatch, kLength, 1e-2).loss;
    if (step % 20 == 0) std::printf("step %d: loss %.4f\n", step, loss);
  }
  learner.save(argv[1]);  // what Model::load takes
  return loss < 0.1 ? 0 : 1;
} catch (const mamba::Error& error) {
  return std::fprintf(stderr, "error: %s\n", error.what()), 1;
}
