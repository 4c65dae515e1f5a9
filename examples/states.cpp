// SPDX-License-Identifier: Apache-2.0
// The state as a value: read a text once as a chunk, fork its state, let each copy go its own way
// step by step, and keep one in a file.
#include <mamba/mamba.h>

#include <algorithm>
#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 3) return std::fprintf(stderr, "usage: %s MODEL FILE\n", argv[0]), 2;
  mamba::Model model = mamba::Model::load(argv[1]);
  const int64_t V = model.config().vocab_size;

  // One call takes any number of tokens from a state to a state; here one sequence of 12.
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 12; ++i) tokens.push_back(i % static_cast<int32_t>(V));
  mamba::State state = model.new_state(1);
  std::vector<float> logits(static_cast<size_t>(V));
  model.forward(tokens.data(), 12, state, mamba::Logits::kLast, logits.data());
  std::printf("the state of a sequence: %lld bytes, whatever its length\n",
              static_cast<long long>(state.bytes_per_sequence()));

  // A batch of two that begin where the text ended: copies, nothing is read again.
  mamba::State pair = model.new_state(2);
  pair.assign(0, state, 0);
  pair.assign(1, state, 0);
  const int32_t next[2] = {1, 2};
  std::vector<float> both(static_cast<size_t>(2 * V));
  model.step(next, pair, both.data());
  for (int64_t row = 0; row < 2; ++row) {
    const float* first = both.data() + row * V;
    std::printf("after token %d the most likely one is %d\n", next[row],
                static_cast<int>(std::max_element(first, first + V) - first));
  }

  // To a file and back, here or on another machine: the same bits.
  mamba::Generator generator(model);
  mamba::Session session = generator.start();
  generator.prefill(session, tokens);
  mamba::save_session(argv[2], session, model);
  const mamba::Session loaded = mamba::load_session(argv[2], model);
  std::printf("%lld tokens restored, %s\n", static_cast<long long>(loaded.tokens),
              loaded.state == session.state ? "the same state" : "another state");
  return loaded.state == session.state ? 0 : 1;
} catch (const mamba::Error& error) {
  return std::fprintf(stderr, "error: %s\n", error.what()), 1;
}
