// SPDX-License-Identifier: Apache-2.0
// The course of a run (loss, learning rate, evaluations by step) and its picture as SVG.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mamba {

struct CurvePoint {
  int64_t step;
  double value;
};

struct Curves {
  std::vector<CurvePoint> loss;       // nats a token
  std::vector<CurvePoint> eval_loss;  // nats a token
  std::vector<CurvePoint> learning_rate;
};

struct CurveLabels {
  std::string title;     // e.g. the model
  std::string subtitle;  // e.g. its size and data
  // Bits per byte of one nat a token (1 / ln 2 for bytes); 0: no such axis.
  double bits_per_nat = 0;
  int64_t max_steps = 0;  // where the axis ends; 0: at the last point
};

// A self-contained SVG document: loss raw and smoothed, evaluations, and the learning rate below.
std::string curves_svg(const Curves& curves, const CurveLabels& labels);

// Round values (1, 2 or 5 times a power of ten apart) that cover [low, high] from inside, about
// `wanted` of them.
std::vector<double> axis_ticks(double low, double high, int wanted);
// Mean over the points within `half` places of each point (fewer at both ends).
std::vector<CurvePoint> smooth(const std::vector<CurvePoint>& points, int64_t half);

}  // namespace mamba
