// SPDX-License-Identifier: Apache-2.0
// Measures the points and draws them.
#include "bench/roofline_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/svg.h"
#include "bench/speed.h"

namespace mamba {
namespace {

MeasureOptions timing_of(double seconds) {
  MeasureOptions timing;
  timing.seconds = seconds;
  return timing;
}

RooflinePoint point_of(const KernelEntry& entry, const Shape& shape, const ModelOptions& options,
                       double seconds) {
  const KernelReport r = bench_kernel(entry, shape, options, timing_of(seconds), false);
  RooflinePoint point;
  point.name = r.name;
  point.shape = r.shape;
  point.type = shape.multiplies();
  point.flops = r.cost.flops;
  point.bytes = r.cost.bytes;
  point.seconds = r.time.median;
  return point;
}

constexpr double kWidth = 1380, kLeft = 74, kRight = 760, kTop = 64, kBottom = 640;

// Of the picture: both axes are logarithmic.
struct Axes {
  double x_low, x_high, y_low, y_high;
  double x(double intensity) const {
    return kLeft + (kRight - kLeft) * std::log(intensity / x_low) / std::log(x_high / x_low);
  }
  double y(double gflop) const {
    return kBottom - (kBottom - kTop) * std::log(gflop / y_low) / std::log(y_high / y_low);
  }
};

double decade_below(double v) { return std::pow(10.0, std::floor(std::log10(v))); }
double decade_above(double v) { return std::pow(10.0, std::ceil(std::log10(v))); }

Axes axes_of(const MachineLimits& limits, const std::vector<const RooflinePoint*>& points) {
  double low = 0.1, high = 100, bottom = 1, top = 100;
  for (const RooflinePoint* p : points) {
    low = std::min(low, p->intensity());
    high = std::max(high, p->intensity());
    bottom = std::min(bottom, p->gflop_per_s());
    top = std::max(top, p->gflop_per_s());
  }
  for (const ComputeRate& c : limits.computes) top = std::max(top, c.gop_per_s);
  return {decade_below(low), decade_above(high), decade_below(bottom), decade_above(top * 1.1)};
}

std::string grid(const Axes& axes) {
  std::string out;
  for (double v = axes.x_low; v <= axes.x_high * 1.001; v *= 10) {
    out += svg_line(axes.x(v), kTop, axes.x(v), kBottom, "grid");
    out += svg_text(axes.x(v), kBottom + 18, "middle", fmt::format("{:g}", v), "label");
  }
  for (double v = axes.y_low; v <= axes.y_high * 1.001; v *= 10) {
    out += svg_line(kLeft, axes.y(v), kRight, axes.y(v), "grid");
    out += svg_text(kLeft - 8, axes.y(v) + 4, "end", fmt::format("{:g}", v), "label");
  }
  out += svg_text((kLeft + kRight) / 2, kBottom + 40, "middle", "flops a byte", "name");
  out += fmt::format(
      "<text class=\"name\" text-anchor=\"middle\" transform=\"translate(20 {:.1f}) "
      "rotate(-90)\">GFLOP/s (GOP/s of int8)</text>\n",
      (kTop + kBottom) / 2);
  return out;
}

// A slope for each level of memory up to the highest ceiling, and a ceiling for each type.
std::string roofs(const Axes& axes, const MachineLimits& limits) {
  double highest = 0;
  for (const char* type : {"f32", "bf16", "int8"})
    highest = std::max(highest, limits.compute(type));
  std::string out;
  for (const char* level : {"memory", "L3", "L2"}) {
    const double rate = limits.read(level);
    if (rate <= 0 || highest <= 0) continue;
    const double first = std::max(axes.x_low, axes.y_low / rate);
    const double last = std::min(axes.x_high, highest / rate);
    if (last <= first) continue;
    out += svg_line(axes.x(first), axes.y(first * rate), axes.x(last), axes.y(last * rate), "roof");
    const double at = first * std::pow(last / first, 0.12);
    const double slope =
        std::atan2(axes.y(first * rate) - axes.y(last * rate), axes.x(last) - axes.x(first));
    out += fmt::format(
        "<text class=\"roofname\" transform=\"translate({:.1f} {:.1f}) rotate({:.1f})\">{} {:.0f} "
        "GB/s</text>\n",
        axes.x(at), axes.y(at * rate) - 6, -slope * 180 / 3.14159265358979, level, rate);
  }
  for (const char* type : {"f32", "bf16", "int8"}) {
    const double rate = limits.compute(type);
    if (rate <= 0) continue;
    const double fastest = std::max({limits.read("L2"), limits.read("L3"), limits.read("memory")});
    const double first = std::clamp(rate / fastest, axes.x_low, axes.x_high);
    out += svg_line(axes.x(first), axes.y(rate), kRight, axes.y(rate), "roof");
    out += svg_text(kRight - 6, axes.y(rate) - 5, "end", fmt::format("{} {:.0f}", type, rate),
                    "roofname");
  }
  return out;
}

const char* css_class(const RooflinePoint& p) {
  return p.type == "f32" ? "f32" : p.type == "bf16" ? "bf16" : "int8";
}

constexpr const char* kStyle = R"(<style>
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, sans-serif; }
.title { font-size: 18px; font-weight: 600; fill: #1c2430; }
.label, .row { font-size: 12px; fill: #46505e; }
.head { font-size: 12px; font-weight: 600; fill: #1c2430; }
.name { font-size: 13px; fill: #1c2430; }
.roofname { font-size: 12px; fill: #6b4a00; }
.number { font-size: 10px; fill: #1c2430; }
.grid { stroke: #e6e9ee; stroke-width: 1; }
.frame { fill: none; stroke: #8a94a3; stroke-width: 1; }
.roof { stroke: #b8860b; stroke-width: 1.6; }
.f32 { fill: #1763c6; stroke: #ffffff; }
.bf16 { fill: #d4490c; stroke: #ffffff; }
.int8 { fill: #4f7a28; stroke: #ffffff; }
</style>
)";

}  // namespace

Roof roof_of(const RooflinePoint& point, const MachineLimits& limits, int threads) {
  const double caches = static_cast<double>(threads * limits.l2_bytes);
  const std::string level = point.bytes <= caches                                 ? "L2"
                            : point.bytes <= static_cast<double>(limits.l3_bytes) ? "L3"
                                                                                  : "memory";
  std::string type = point.type;
  if (limits.compute(type) <= 0) type = "f32";
  Roof roof{type, limits.compute(type), 0};
  const double read = limits.read(level);
  if (read > 0 && read * point.intensity() < roof.gflop_per_s) {
    roof = {level, read * point.intensity(), 0};
  }
  // Without any flops, by the bytes alone.
  roof.share = point.flops > 0 && roof.gflop_per_s > 0 ? point.gflop_per_s() / roof.gflop_per_s
               : read > 0                              ? point.gb_per_s() / read
                                                       : 0;
  return roof;
}

std::vector<Shape> kernel_shapes(const KernelEntry& entry) {
  std::vector<Shape> shapes = {entry.sample};
  const auto add = [&](int64_t rows, const char* name, int64_t value) {
    Shape shape = entry.sample;
    shape.set("M", rows);
    shape.set(name, value);
    if (shape.text() != entry.sample.text()) shapes.push_back(shape);
  };
  const std::string name = entry.name;
  if (name == "linear_forward") {
    for (const int64_t rows : {entry.sample["M"], int64_t{8}, int64_t{1}}) {
      for (const int64_t bf16 : {0, 1}) add(rows, "bf16", bf16);
    }
  }
  if (name == "linear_q_forward") {
    for (const int64_t rows : {entry.sample["M"], int64_t{8}}) {
      for (const DType type : {DType::kQ8_0, DType::kQ4_0}) add(rows, "type", int64_t(type));
    }
    for (const DType type : {DType::kQ8_0, DType::kQ6_K, DType::kQ5_K, DType::kQ5_1, DType::kQ5_0,
                             DType::kQ4_K, DType::kQ4_1, DType::kQ4_0, DType::kIQ4_NL}) {
      add(1, "type", int64_t(type));
    }
  }
  return shapes;
}

std::vector<RooflinePoint> kernel_points(const ModelOptions& options, double seconds) {
  std::vector<RooflinePoint> points;
  for (const KernelEntry& entry : kernel_entries()) {
    for (const Shape& shape : kernel_shapes(entry)) {
      points.push_back(point_of(entry, shape, options, seconds));
    }
  }
  return points;
}

std::vector<RooflinePoint> model_points(const std::string& model, const ModelOptions& options,
                                        double seconds) {
  std::vector<RooflinePoint> points;
  BenchModel bench = open_bench_model(model, options);
  const std::string dtype = dtype_name(bench.model.dtype());
  for (const int64_t sequences : {1, 8}) {
    const int64_t prompt = sequences == 1 ? 512 : 1;
    const ModelReport r = bench_model(bench.model, sequences, prompt, timing_of(seconds));
    RooflinePoint point;
    point.type = is_quantized(r.dtype) ? "int8" : dtype;
    point.whole_step = true;
    point.bytes = r.decode_bytes;
    if (sequences == 1) {
      point.name = fmt::format("{} {} prefill", model, dtype);
      point.shape = fmt::format("L={}", prompt);
      point.flops = r.flops_per_token * static_cast<double>(prompt);
      point.seconds = r.prefill.median;
      points.push_back(point);
    }
    point.name = fmt::format("{} {} decode", model, dtype);
    point.shape = fmt::format("B={}", sequences);
    point.flops = r.flops_per_token * static_cast<double>(sequences);
    point.seconds = r.decode.median;
    points.push_back(point);
  }
  return points;
}

std::string roofline_svg(const std::string& title, const MachineLimits& limits, int threads,
                         const std::vector<RooflinePoint>& points) {
  std::vector<const RooflinePoint*> drawn;  // what only moves bytes has no place on the axis
  for (const RooflinePoint& p : points) {
    if (p.intensity() > 0) drawn.push_back(&p);
  }
  const Axes axes = axes_of(limits, drawn);
  const double row_height = 16, list_top = kTop + 22;
  const double height =
      std::max(kBottom + 60, list_top + row_height * static_cast<double>(points.size()) + 24);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" role=\"img\">\n<title>{2}</title>\n{3}"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      kWidth, height, escape_xml(title), kStyle);
  svg += svg_text(kLeft, 34, "start", title, "title") + grid(axes) + roofs(axes, limits);
  svg += fmt::format("<rect class=\"frame\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n",
                     kLeft, kTop, kRight - kLeft, kBottom - kTop);
  svg += svg_text(kRight + 50, kTop + 6, "start", "kernel or step", "head") +
         svg_text(kWidth - 120, kTop + 6, "end", "GFLOP/s", "head") +
         svg_text(kWidth - 20, kTop + 6, "end", "of its limit", "head");
  for (size_t i = 0; i < points.size(); ++i) {
    const RooflinePoint& p = points[i];
    const Roof roof = roof_of(p, limits, threads);
    const double y = list_top + row_height * static_cast<double>(i + 1) - 12;
    const std::string number = fmt::format("{}", i + 1);
    if (p.intensity() > 0) {
      const double px = axes.x(p.intensity()), py = axes.y(p.gflop_per_s());
      svg += p.whole_step
                 ? fmt::format(
                       "<rect class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"10\" "
                       "height=\"10\"/>\n",
                       css_class(p), px - 5, py - 5)
                 : fmt::format("<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\"/>\n",
                               css_class(p), px, py);
      svg += svg_text(px + 7, py + 4, "start", number, "number");
    }
    svg += svg_text(kRight + 42, y, "end", number, "label") +
           svg_text(kRight + 50, y, "start", p.name + "  " + p.shape, "row") +
           svg_text(kWidth - 120, y, "end", fmt::format("{:.1f}", p.gflop_per_s()), "row") +
           svg_text(kWidth - 20, y, "end",
                    fmt::format("{:.0f} % of {}", roof.share * 100, roof.limit), "row");
  }
  return svg + "</svg>\n";
}

}  // namespace mamba
