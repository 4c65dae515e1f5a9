// SPDX-License-Identifier: Apache-2.0
// A program that uses the installed package: validates a good configuration and a bad one.
#include <cstdio>
#include <cstring>

#include "mamba/config.h"
#include "mamba/error.h"
#include "mamba/version.h"

int main() {
  mamba::Config config;
  config.validate();
  config.d_conv = 0;
  try {
    config.validate();
  } catch (const mamba::Error& error) {
    if (error.code() != mamba::ErrorCode::kInvalidArgument) return 2;
    if (std::strstr(error.what(), "d_conv") == nullptr) return 3;
    std::printf("mamba %s: %s\n", MAMBA_VERSION, error.what());
    return 0;
  }
  std::printf("a convolution of width 0 was accepted\n");
  return 1;
}
