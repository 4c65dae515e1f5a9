// SPDX-License-Identifier: Apache-2.0
// Measures, prints a table or JSON and writes the picture.
#include "cli/bench_roofline.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "bench/roofline_chart.h"
#include "cli/bench_speed.h"
#include "device/cpu_features.h"
#include "device/device.h"
#include "formats/hf_config.h"
#include "mamba/version.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson limits_json(const MachineLimits& limits) {
  OrderedJson reads = OrderedJson::array(), computes = OrderedJson::array();
  for (const ReadRate& r : limits.reads) {
    reads.push_back(
        {{"level", r.level}, {"threads", r.threads}, {"bytes", r.bytes}, {"gb_per_s", r.gb_per_s}});
  }
  for (const ComputeRate& c : limits.computes) {
    computes.push_back({{"type", c.type},
                        {"instruction", c.instruction},
                        {"threads", c.threads},
                        {"gop_per_s", c.gop_per_s}});
  }
  return {{"cpu", cpu_model_name()},
          {"l2_bytes", limits.l2_bytes},
          {"l3_bytes", limits.l3_bytes},
          {"read", reads},
          {"compute", computes}};
}

std::string limits_text(const MachineLimits& limits) {
  std::string text = cpu_model_name() + "\n";
  for (const ReadRate& r : limits.reads) {
    text += fmt::format("  read {:<7} x{:<3} {:>9.1f} GB/s   ({:.1f} MiB)\n", r.level, r.threads,
                        r.gb_per_s, static_cast<double>(r.bytes) / 1048576);
  }
  for (const ComputeRate& c : limits.computes) {
    text += fmt::format("  {:<12} x{:<3} {:>9.1f} GOP/s  ({})\n", c.type, c.threads, c.gop_per_s,
                        c.instruction);
  }
  return text;
}

OrderedJson point_json(const RooflinePoint& p, const Roof& roof) {
  return {{"name", p.name},
          {"shape", p.shape},
          {"type", p.type},
          {"whole_step", p.whole_step},
          {"seconds", p.seconds},
          {"flops", p.flops},
          {"bytes", p.bytes},
          {"flops_per_byte", p.intensity()},
          {"gflop_per_s", p.gflop_per_s()},
          {"gb_per_s", p.gb_per_s()},
          {"limited_by", roof.limit},
          {"limit_gflop_per_s", roof.gflop_per_s},
          {"share_of_limit", roof.share},
          {"above_limit", roof.exceeded()}};
}

std::string point_text(const RooflinePoint& p, const Roof& roof) {
  return fmt::format("{:<34} {:<40} {:>9.2f} GFLOP/s {:>8.2f} GB/s {:>5.0f} % of {}{}\n", p.name,
                     p.shape, p.gflop_per_s(), p.gb_per_s(), roof.share * 100, roof.limit,
                     roof.exceeded() ? " (!)" : "");
}

void warn_of_exceeded(const std::vector<RooflinePoint>& points, const MachineLimits& limits,
                      int threads) {
  const auto count = std::count_if(points.begin(), points.end(), [&](const RooflinePoint& p) {
    return roof_of(p, limits, threads).exceeded();
  });
  if (count == 0) return;
  fmt::print(stderr,
             "warning: {} of {} lie above the limit that was measured: it is too low where other "
             "work runs or --seconds is short, or they use instructions that are not measured "
             "(AMX)\n",
             count, points.size());
}

}  // namespace

void add_roofline_options(CLI::App& app, RooflineFlags* f, const CLI::Option& dtype_option) {
  add_text(app, "-m,--model", &f->models, "MODEL[,MODEL]",
           "Configurations or presets whose steps are drawn; none: only kernels")
      ->default_str(f->models);
  add_text(app, "--dtype", &f->dtypes, dtype_option.get_type_name(),
           "Types of their matrices, with commas between them")
      ->default_str(f->dtypes);
  app.add_flag("--no-kernels", f->no_kernels, "Only whole steps")->group("Input");
  add_number(app, "--seconds", &f->seconds, 0, 600, "Time to measure each figure at least");
  add_text(app, "--svg", &f->svg, "FILE", "Write the picture")->group("Output");
  add_run_options(app, &f->run, false);
  add_choice(app, "-o,--output", &f->output, {"table", "json"}, "Form of the result");
  app.add_flag("--json", f->json, "As -o json");
}

int run_roofline(const RooflineFlags& flags, const std::vector<std::string>& dtypes) {
  const std::vector<std::string> types = dtype_list(flags.dtypes, dtypes);
  std::vector<std::string> models;
  if (flags.models != "none") models = model_list({flags.models});
  for (const std::string& model : models) load_config(model);  // wrong names before the work
  if (!flags.svg.empty()) expect_writable(flags.svg);
  const ModelOptions options = model_options(flags.run);
  const std::unique_ptr<Device> device = Device::create({options.device, options.threads});
  const int threads = device->threads();
  const std::set<int> counts = {1, std::min(2, threads), threads};
  const auto measure_limits_now = [&] {
    return measure_machine(device->kernels().name, {counts.begin(), counts.end()}, flags.seconds);
  };
  // Before and after: what other work takes from the one may not have troubled the other.
  const MachineLimits before = measure_limits_now();
  std::vector<RooflinePoint> points;
  if (!flags.no_kernels) points = kernel_points(options, flags.seconds);
  for (const std::string& model : models) {
    for (const std::string& dtype : types) {
      RunOptions run = flags.run;
      run.dtype = dtype;
      for (RooflinePoint& p : model_points(model, model_options(run), flags.seconds)) {
        points.push_back(std::move(p));
      }
    }
  }
  const MachineLimits limits = best_of(before, measure_limits_now());
  warn_of_exceeded(points, limits, threads);
  if (!flags.svg.empty()) {
    const std::string title =
        fmt::format("mamba-cpp {} on {}, {} threads", MAMBA_VERSION, cpu_model_name(), threads);
    AtomicFile file(flags.svg);
    file.append(roofline_svg(title, limits, threads, points));
    file.commit();
  }
  if (flags.output == "table" && !flags.json) {
    write_output(limits_text(limits));
    for (const RooflinePoint& p : points) {
      write_output(point_text(p, roof_of(p, limits, threads)));
    }
    return 0;
  }
  OrderedJson items = OrderedJson::array();
  for (const RooflinePoint& p : points) items.push_back(point_json(p, roof_of(p, limits, threads)));
  write_output(json_text(OrderedJson{{"version", MAMBA_VERSION},
                                     {"device", device->name()},
                                     {"threads", threads},
                                     {"machine", limits_json(limits)},
                                     {"points", items}}));
  return 0;
}

}  // namespace mamba::cli
