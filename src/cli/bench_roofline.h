// SPDX-License-Identifier: Apache-2.0
// mamba-cpp bench roofline: the limits of the machine, and kernels and whole steps against them.
#pragma once

#include <memory>
#include <string>

#include "cli/args.h"

namespace mamba::cli {

struct RooflineFlags {
  RunOptions run;
  std::string models = "mamba-130m,mamba2-130m", dtypes = "f32,bf16", svg, output = "table";
  double seconds = 0.1;
  bool no_kernels = false, json = false;
};

// The type name of `dtype_option` lists the words that --dtype may have.
void add_roofline_options(CLI::App& app, RooflineFlags* flags, const CLI::Option& dtype_option);
int run_roofline(const RooflineFlags& flags, const std::vector<std::string>& dtypes);

}  // namespace mamba::cli
