// SPDX-License-Identifier: Apache-2.0
// Training from a program: a small Mamba-2 over the bytes of a text file.
#include <mamba/mamba.h>

#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 4) return std::fprintf(stderr, "usage: %s CONFIG TEXT FOLDER\n", argv[0]), 2;
  mamba::TrainOptions options;
  options.model_config = argv[1];  // a config file or the name of a preset
  options.data = {argv[2]};
  options.output_dir = argv[3];
  options.max_steps = 100;
  options.batch_size = 4;
  options.seq_len = 128;

  mamba::TrainCallbacks callbacks;
  callbacks.on_log = [](const mamba::TrainProgress& now) {
    std::printf("step %lld: loss %.3f\n", static_cast<long long>(now.step), now.loss);
  };
  const mamba::TrainResult result = mamba::train(options, callbacks);
  std::printf("saved in %s\n", result.checkpoint.c_str());
} catch (const mamba::Error& error) {
  return std::fprintf(stderr, "error: %s\n", error.what()), 1;
}
