// SPDX-License-Identifier: Apache-2.0
// Kernels and whole steps against the limits of the machine: measured points, and their picture.
#pragma once

#include <string>
#include <vector>

#include "bench/bench.h"
#include "bench/machine.h"

namespace mamba {

struct RooflinePoint {
  std::string name, shape;
  std::string type;  // "f32", "bf16" or "int8": which multiply-adds limit it
  bool whole_step = false;
  double flops = 0, bytes = 0, seconds = 0;

  double intensity() const { return bytes > 0 ? flops / bytes : 0; }  // flops a byte
  double gflop_per_s() const { return flops / seconds * 1e-9; }
  double gb_per_s() const { return bytes / seconds * 1e-9; }
};

// What limits a point: the memory that its bytes fit into, or the instructions.
struct Roof {
  std::string limit;       // "memory", "L3", "L2", "f32", ...
  double gflop_per_s = 0;  // at most, at the point's intensity
  double share = 0;        // of it that was reached

  // The limit was measured too low then, or is that of other instructions than ran.
  bool exceeded() const { return share > 1; }
};
Roof roof_of(const RooflinePoint& point, const MachineLimits& limits, int threads);

// The sample of a kernel's benchmark, and of the products of linear and linear_q also 1 and 8 rows,
// in bf16, in 4 bits and, for 1 row, in every type of blocks.
std::vector<Shape> kernel_shapes(const KernelEntry& entry);
// Every kernel in these shapes.
std::vector<RooflinePoint> kernel_points(const ModelOptions& options, double seconds);
// Prefill of 512 tokens, and decode of 1 and of 8 sequences, of open_bench_model(model).
std::vector<RooflinePoint> model_points(const std::string& model, const ModelOptions& options,
                                        double seconds);

// Flops a byte against flops a second, both logarithmic, roofs as lines, points numbered, and a
// list of them.
std::string roofline_svg(const std::string& title, const MachineLimits& limits, int threads,
                         const std::vector<RooflinePoint>& points);

}  // namespace mamba
