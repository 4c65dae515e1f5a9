// SPDX-License-Identifier: Apache-2.0
// Draws the curves of a run: two panels over one axis of steps.
#include "train/curves.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/svg.h"

namespace mamba {
namespace {

constexpr double kWidth = 960, kHeight = 600;
constexpr double kLeft = 76, kRight = 884;     // of both panels
constexpr double kNameMargin = 16;             // from the left edge to the name of an axis
constexpr double kTitle = 30, kSubtitle = 52;  // base lines above the panels
constexpr double kDot = 5;                     // of a point that is drawn over the frame
constexpr int64_t kMaxPoints = 1600;           // of one line: two for each pixel

struct Panel {
  double top, bottom;  // in pixels
  double low, high;    // values there
  double last_step;    // at the right end; 0 is at the left
  double x(double step) const { return kLeft + (kRight - kLeft) * step / last_step; }
  double y(double value) const { return bottom - (bottom - top) * (value - low) / (high - low); }
};

// Points that can be drawn, at most kMaxPoints: means of equal runs.
std::vector<CurvePoint> thin(const std::vector<CurvePoint>& points) {
  std::vector<CurvePoint> finite;
  for (const CurvePoint& p : points) {
    if (std::isfinite(p.value)) finite.push_back(p);
  }
  const auto count = static_cast<int64_t>(finite.size());
  const int64_t run = (count + kMaxPoints - 1) / kMaxPoints;
  if (run <= 1) return finite;
  std::vector<CurvePoint> thinned;
  for (int64_t begin = 0; begin < count; begin += run) {
    const int64_t end = std::min(count, begin + run);
    double step = 0, value = 0;
    for (int64_t i = begin; i < end; ++i) {
      step += static_cast<double>(finite[static_cast<size_t>(i)].step);
      value += finite[static_cast<size_t>(i)].value;
    }
    const double n = static_cast<double>(end - begin);
    thinned.push_back({static_cast<int64_t>(std::llround(step / n)), value / n});
  }
  return thinned;
}

std::string polyline(const Panel& panel, const std::vector<CurvePoint>& points,
                     const char* css_class) {
  if (points.size() < 2) return "";
  std::string path = fmt::format("<polyline class=\"{}\" points=\"", css_class);
  for (const CurvePoint& p : points) {
    path += fmt::format("{:.1f},{:.1f} ", panel.x(static_cast<double>(p.step)), panel.y(p.value));
  }
  path.back() = '"';
  return path + "/>\n";
}

std::string dots(const Panel& panel, const std::vector<CurvePoint>& points, double radius,
                 const char* css_class) {
  std::string out;
  for (const CurvePoint& p : points) {
    out += fmt::format("<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"/>\n", css_class,
                       panel.x(static_cast<double>(p.step)), panel.y(p.value), radius);
  }
  return out;
}

std::string text(double x, double y, const char* anchor, const std::string& words,
                 const char* css_class = "label") {
  return svg_text(x, y, anchor, words, css_class);
}

std::string sideways(double x, double y, const std::string& words) {
  return fmt::format(
      "<text class=\"name\" text-anchor=\"middle\" transform=\"translate({:.1f} {:.1f}) "
      "rotate(-90)\">{}</text>\n",
      x, y, escape_xml(words));
}

// At most 7 characters, which is what the margins hold: 0.00015 -> "1.5e-4".
std::string value_label(double value) {
  if (value == 0 || (std::abs(value) >= 1e-3 && std::abs(value) < 1e5)) {
    return fmt::format("{:.5g}", value);
  }
  const auto power = static_cast<int>(std::floor(std::log10(std::abs(value)) + 1e-9));
  return fmt::format("{:.3g}e{}", value / std::pow(10.0, power), power);
}

// 12500 -> "12.5k".
std::string step_label(double step) {
  if (step >= 1e6) return fmt::format("{:.6g}M", step / 1e6);
  if (step >= 1e4) return fmt::format("{:.6g}k", step / 1e3);
  return fmt::format("{:.6g}", step);
}

std::string frame(const Panel& panel, const std::string& name, int wanted, bool step_labels) {
  std::string out;
  for (const double v : axis_ticks(panel.low, panel.high, wanted)) {
    out += svg_line(kLeft, panel.y(v), kRight, panel.y(v), "grid");
    out += text(kLeft - 8, panel.y(v) + 4, "end", value_label(v));
  }
  for (const double s : axis_ticks(0, panel.last_step, 8)) {
    if (s != std::floor(s)) continue;
    out += svg_line(panel.x(s), panel.top, panel.x(s), panel.bottom, "grid");
    if (step_labels) out += text(panel.x(s), panel.bottom + 18, "middle", step_label(s));
  }
  out += fmt::format("<rect class=\"frame\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n",
                     kLeft, panel.top, kRight - kLeft, panel.bottom - panel.top);
  return out + sideways(kNameMargin, (panel.top + panel.bottom) / 2, name);
}

// The steep start of a long run would press the rest flat: its top is where 2 % of the losses are
// above.
void set_loss_range(Panel& panel, const std::vector<CurvePoint>& raw,
                    const std::vector<CurvePoint>& eval) {
  std::vector<double> losses;
  for (const CurvePoint& p : raw) losses.push_back(p.value);
  std::sort(losses.begin(), losses.end());
  panel.low = 0;
  panel.high = 1;
  if (!losses.empty()) {
    panel.low = losses.front();
    panel.high = losses.size() < 100 ? losses.back() : losses[losses.size() * 98 / 100];
  }
  for (size_t i = 0; i < eval.size(); ++i) {
    panel.low = std::min(losses.empty() && i == 0 ? eval[i].value : panel.low, eval[i].value);
    panel.high = std::max(losses.empty() && i == 0 ? eval[i].value : panel.high, eval[i].value);
  }
  // A short run may hardly change: its ticks must still differ within the digits of a label.
  const double middle = (panel.low + panel.high) / 2;
  const double least = std::max(0.01 * std::abs(middle), 1e-3);
  const double pad = std::max(0.06 * (panel.high - panel.low), least - (panel.high - middle));
  panel.low -= pad;
  panel.high += pad;
}

// One entry of the legend, `row` from the top: beside the title, where no curve is.
std::string legend(int row, const char* css_class, const std::string& words) {
  const double x = kRight - 300, y = row == 0 ? kTitle : kSubtitle;
  return svg_line(x, y - 4, x + 28, y - 4, css_class) + text(x + 38, y, "start", words, "legend");
}

std::string loss_panel(const Panel& panel, const std::vector<CurvePoint>& raw,
                       const std::vector<CurvePoint>& eval, const CurveLabels& labels) {
  std::string out = frame(panel, "loss (nats per token)", 6, false);
  if (labels.bits_per_nat > 0) {
    const double low = panel.low * labels.bits_per_nat, high = panel.high * labels.bits_per_nat;
    for (const double v : axis_ticks(low, high, 6)) {
      const double y = panel.y(v / labels.bits_per_nat);
      out += svg_line(kRight, y, kRight + 5, y, "tick");
      out += text(kRight + 9, y + 4, "start", value_label(v));
    }
    out += sideways(kWidth - 6, (panel.top + panel.bottom) / 2, "bits per byte");
  }
  const std::vector<CurvePoint> smoothed = smooth(raw, static_cast<int64_t>(raw.size()) / 60);
  out += "<g clip-path=\"url(#loss)\">\n" + polyline(panel, raw, "raw") +
         polyline(panel, smoothed, "train") + polyline(panel, eval, "eval") +
         dots(panel, eval, eval.size() > 60 ? 2 : 3.5, "dot");
  if (raw.size() == 1) out += dots(panel, raw, 3.5, "first");
  out += "</g>\n";
  const auto entry = [&](const char* name, double loss) {
    const std::string bits = labels.bits_per_nat > 0
                                 ? fmt::format(", {:.3f} bits per byte", loss * labels.bits_per_nat)
                                 : "";
    return fmt::format("{} {:.4g}{}", name, loss, bits);
  };
  int row = 0;
  if (!smoothed.empty()) {
    out += legend(row++, "train", entry("training", smoothed.back().value));
  }
  if (!eval.empty()) out += legend(row++, "eval", entry("validation", eval.back().value));
  return out;
}

std::string rate_panel(Panel panel, const std::vector<CurvePoint>& rate) {
  panel.low = 0;
  panel.high = 0;
  for (const CurvePoint& p : rate) panel.high = std::max(panel.high, p.value);
  panel.high = panel.high > 0 ? 1.12 * panel.high : 1;
  return frame(panel, "learning rate", 2, true) + polyline(panel, rate, "rate") +
         (rate.size() == 1 ? dots(panel, rate, 3.5, "only") : "") +
         text((kLeft + kRight) / 2, kHeight - 12, "middle", "step", "name");
}

constexpr const char* kStyle = R"(<style>
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, sans-serif; }
.title { font-size: 18px; font-weight: 600; fill: #1c2430; }
.subtitle { font-size: 13px; fill: #5a6675; }
.label { font-size: 12px; fill: #46505e; }
.name { font-size: 13px; fill: #1c2430; }
.legend { font-size: 13px; fill: #1c2430; }
.grid { stroke: #e6e9ee; stroke-width: 1; }
.tick { stroke: #8a94a3; stroke-width: 1; }
.frame { fill: none; stroke: #8a94a3; stroke-width: 1; }
.raw { fill: none; stroke: #8db8ee; stroke-width: 1; stroke-opacity: 0.55; }
.train { fill: none; stroke: #1763c6; stroke-width: 2.2; stroke-linejoin: round; }
.eval { fill: none; stroke: #d4490c; stroke-width: 1.8; stroke-linejoin: round; }
.dot { fill: #d4490c; stroke: #ffffff; stroke-width: 1; }
.first { fill: #1763c6; }
.only { fill: #4f7a28; }
.rate { fill: none; stroke: #4f7a28; stroke-width: 2; stroke-linejoin: round; }
</style>
)";

}  // namespace

std::vector<double> axis_ticks(double low, double high, int wanted) {
  std::vector<double> ticks;
  const double rough = (high - low) / std::max(1, wanted);
  if (!(rough > 0) || !std::isfinite(rough)) return ticks;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double ratio = rough / power;
  const double step = power * (ratio <= 1.0 ? 1 : ratio <= 2.0 ? 2 : ratio <= 5.0 ? 5 : 10);
  const double slack = 1e-9 * (high - low);
  const auto last = static_cast<int64_t>(std::floor((high + slack) / step));
  for (auto i = static_cast<int64_t>(std::ceil((low - slack) / step)); i <= last; ++i) {
    ticks.push_back(static_cast<double>(i) * step);
  }
  return ticks;
}

std::vector<CurvePoint> smooth(const std::vector<CurvePoint>& points, int64_t half) {
  const auto count = static_cast<int64_t>(points.size());
  std::vector<double> sums(points.size() + 1, 0.0);
  for (size_t i = 0; i < points.size(); ++i) sums[i + 1] = sums[i] + points[i].value;
  std::vector<CurvePoint> means = points;
  for (int64_t i = 0; i < count; ++i) {
    // As many after as before at the steep start, so that it does not lag; the end keeps its past.
    const int64_t before = std::min(half, i), after = std::min({half, i, count - 1 - i});
    const double sum =
        sums[static_cast<size_t>(i + after + 1)] - sums[static_cast<size_t>(i - before)];
    means[static_cast<size_t>(i)].value = sum / static_cast<double>(before + after + 1);
  }
  return means;
}

std::string curves_svg(const Curves& curves, const CurveLabels& labels) {
  const std::vector<CurvePoint> raw = thin(curves.loss), eval = thin(curves.eval_loss);
  const std::vector<CurvePoint> rate = thin(curves.learning_rate);
  int64_t last = std::max<int64_t>(labels.max_steps, 1);
  for (const auto* points : {&raw, &eval, &rate}) {
    if (!points->empty()) last = std::max(last, points->back().step);
  }
  Panel loss{68, 432, 0, 1, static_cast<double>(last)};
  set_loss_range(loss, raw, eval);
  const Panel lr{456, 548, 0, 1, static_cast<double>(last)};
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" role=\"img\">\n<title>{2}</title>\n{3}"
      "<clipPath id=\"loss\"><rect x=\"{4}\" y=\"{5}\" width=\"{6}\" height=\"{7}\"/></clipPath>\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      kWidth, kHeight, escape_xml(labels.title), kStyle, kLeft - kDot, loss.top,
      kRight - kLeft + 2 * kDot, loss.bottom - loss.top);
  svg += text(kLeft, kTitle, "start", labels.title, "title");
  svg += text(kLeft, kSubtitle, "start", labels.subtitle, "subtitle");
  svg += loss_panel(loss, raw, eval, labels);
  svg += rate_panel(lr, rate);
  return svg + "</svg>\n";
}

}  // namespace mamba
