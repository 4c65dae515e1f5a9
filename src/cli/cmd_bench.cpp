// SPDX-License-Identifier: Apache-2.0
// mamba-cpp bench: tests of models as llama-bench has them; and kernels, prefill and decode, and
// training steps against limits of this machine that are measured in the same run.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/json.h"
#include "bench/bench.h"
#include "bench/speed.h"
#include "cli/args.h"
#include "cli/bench_roofline.h"
#include "cli/bench_speed.h"
#include "cli/commands.h"
#include "cli/option_info.h"
#include "device/cpu_features.h"
#include "device/device.h"
#include "formats/hf_config.h"
#include "mamba/version.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct BenchFlags {
  RunOptions run;
  std::string name, shape, model, output = "table";
  int64_t batch_size = 1, prompt = 512, seq_len = 256, steps = 5;
  double seconds = 0.5;
  bool cold = false, json = false, profile = false;
};

Limits limits_of(const ModelOptions& options) {
  return measure_limits(*Device::create({options.device, options.threads}));
}

OrderedJson machine_json(const Limits& limits) {
  return {{"version", MAMBA_VERSION},
          {limits.gpu ? "gpu" : "cpu", limits.hardware},
          {"read_gb_per_s", limits.read_gb_per_s},
          {"f32_gflop_per_s", limits.f32_gflop_per_s}};
}

std::string machine_text(const Limits& limits) {
  return fmt::format("{}: {} {:.1f} GB/s, f32 {:.1f} GFLOP/s (measured)\n", limits.hardware,
                     limits.gpu ? "copies" : "reads", limits.read_gb_per_s, limits.f32_gflop_per_s);
}

OrderedJson time_json(const Measurement& m) {
  return {
      {"runs", m.runs}, {"median_seconds", m.median}, {"min_seconds", m.min}, {"spread", m.spread}};
}

std::string time_text(const Measurement& m) {
  return fmt::format("median {:.3f} ms, min {:.3f} ms, spread {:.0f} %, {} runs", m.median * 1e3,
                     m.min * 1e3, m.spread * 100, m.runs);
}

// Work that stays in cache between two runs is not limited by the reads of main memory: more than
// their rate is no share of it.
OrderedJson read_share_json(double share, bool cold) {
  return cold || share <= 1 ? OrderedJson(share) : OrderedJson(nullptr);
}

std::string read_share_text(double share, bool cold) {
  return cold || share <= 1 ? fmt::format("{:.0f} %", share * 100) : "in cache";
}

OrderedJson profile_json(const std::vector<ProfileLine>& profile) {
  OrderedJson json = OrderedJson::array();
  for (const ProfileLine& line : profile) {
    json.push_back({{"kernel", line.kernel}, {"calls", line.calls}, {"seconds", line.seconds}});
  }
  return json;
}

// Every kernel of `what` with its share of their time together.
std::string profile_text(const char* what, const std::vector<ProfileLine>& profile) {
  double total = 0;
  for (const ProfileLine& line : profile) total += line.seconds;
  std::string text = fmt::format("{}: kernels take {:.3f} ms together\n", what, total * 1e3);
  for (const ProfileLine& line : profile) {
    text += fmt::format("{:>10.3f} ms {:>5.1f} % {:>6} x {}\n", line.seconds * 1e3,
                        100 * line.seconds / total, line.calls, line.kernel);
  }
  return text;
}

MeasureOptions timing_of(const BenchFlags& flags) {
  MeasureOptions timing;
  timing.seconds = flags.seconds;
  return timing;
}

// "B=8,L=256" over a sample shape.
Shape shape_of(const KernelEntry& entry, const std::string& text) {
  Shape shape = entry.sample;
  for (size_t at = 0; at < text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const std::string item = text.substr(at, comma - at);
    const size_t equals = item.find('=');
    if (equals == std::string::npos) {
      fail(ErrorCode::kInvalidArgument, "[--shape] expected NAME=SIZE,... as in '{}', got '{}'",
           entry.sample.text(), item);
    }
    const std::string name = item.substr(0, equals), value = item.substr(equals + 1);
    if (name == "type") {
      shape.set_type(value);
    } else {
      shape.set(name, parse_int("--shape", value, 0, int64_t{1} << 31));
    }
    at = comma + 1;
  }
  return shape;
}

std::vector<KernelEntry> entries_of(const std::string& name) {
  std::vector<std::string> names;
  for (const KernelEntry& entry : kernel_entries()) {
    if (name == entry.name) return {entry};
    names.push_back(entry.name);
  }
  if (name == "all") return kernel_entries();
  const std::string best = closest(name, names);
  fail(ErrorCode::kInvalidArgument, "[bench kernel] expected all or one of {}, got '{}'{}",
       fmt::join(names, ", "), name,
       best.empty() ? "" : fmt::format(" (did you mean '{}'?)", best));
}

int run_kernel(const BenchFlags& flags) {
  const std::vector<KernelEntry> entries = entries_of(flags.name);
  if (entries.size() > 1 && !flags.shape.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--shape] expected the name of one kernel with it, got 'all'");
  }
  const ModelOptions options = model_options(flags.run);
  std::vector<Shape> shapes;
  for (const KernelEntry& entry : entries) shapes.push_back(shape_of(entry, flags.shape));
  const Limits limits = limits_of(options);
  OrderedJson results = OrderedJson::array();
  if (flags.output == "table") write_output(machine_text(limits));
  for (size_t i = 0; i < entries.size(); ++i) {
    const KernelReport r =
        bench_kernel(entries[i], shapes[i], options, timing_of(flags), flags.cold);
    const double gb = r.cost.bytes / r.time.median * 1e-9;
    const double gflop = r.cost.flops / r.time.median * 1e-9;
    const double share_read = gb / limits.read_gb_per_s;
    const auto [type, rate] = limits.rate(shapes[i].multiplies());
    const double share_flop = gflop / rate;
    results.push_back({{"kernel", r.name},
                       {"shape", r.shape},
                       {"device", r.device},
                       {"threads", r.threads},
                       {"cold", flags.cold},
                       {"error", r.error},
                       {"tolerance", r.tolerance},
                       {"time", time_json(r.time)},
                       {"gb_per_s", gb},
                       {"gflop_per_s", gflop},
                       {"share_of_read", read_share_json(share_read, flags.cold)},
                       {"multiplies", type},
                       {"share_of_rate", share_flop}});
    if (flags.output != "table") continue;
    write_output(fmt::format(
        "{:<22} {} on {} x{}\n    {}\n    {:.2f} GB/s ({}), {:.2f} GFLOP/s ({:.0f} % of {}), error "
        "{:.1e}\n",
        r.name, r.shape, r.device, r.threads, time_text(r.time), gb,
        read_share_text(share_read, flags.cold), gflop, share_flop * 100, type, r.error));
  }
  if (flags.output == "json") {
    const OrderedJson json = {{"machine", machine_json(limits)}, {"kernels", results}};
    write_output(json_text(json));
  }
  return 0;
}

int run_model(const BenchFlags& flags) {
  const ModelOptions options = model_options(flags.run);
  BenchModel bench = open_bench_model(flags.model, options);
  explain_model(bench.model, flags.run, flags.batch_size);
  const ModelReport r =
      bench_model(bench.model, flags.batch_size, flags.prompt, timing_of(flags), flags.profile);
  const int64_t peak = peak_rss_bytes();  // before the buffers of the next line
  const Limits limits = limits_of(options);
  const double prompt_tokens = static_cast<double>(r.batch_size * r.prompt);
  const double prefill = prompt_tokens / r.prefill.median;
  const double decode = static_cast<double>(r.batch_size) / r.decode.median;
  const double prefill_gflop = prefill * r.flops_per_token * 1e-9;
  const auto [type, rate] = limits.rate(is_quantized(r.dtype) ? "int8" : dtype_name(r.dtype));
  const double decode_gb = r.decode_bytes / r.decode.median * 1e-9;
  const double decode_share = decode_gb / limits.read_gb_per_s;
  if (flags.output == "json") {
    const OrderedJson json = {
        {"machine", machine_json(limits)},
        {"model", flags.model},
        {"device", r.device},
        {"threads", r.threads},
        {"dtype", dtype_name(r.dtype)},
        {"random_weights", bench.random},
        {"parameters", r.parameters},
        {"state_bytes_per_sequence", r.state_bytes},
        {"batch_size", r.batch_size},
        {"prompt", r.prompt},
        {"prefill",
         {{"time", time_json(r.prefill)},
          {"tokens_per_s", prefill},
          {"gflop_per_s", prefill_gflop},
          {"multiplies", type},
          {"share_of_rate", prefill_gflop / rate}}},
        {"decode",
         {{"time", time_json(r.decode)},
          {"tokens_per_s", decode},
          {"gb_per_s", decode_gb},
          {"share_of_read", read_share_json(decode_share, false)}}},
        {"peak_rss_bytes", peak},
        {"prefill_profile", profile_json(r.prefill_profile)},
        {"decode_profile", profile_json(r.decode_profile)},
    };
    write_output(json_text(json));
    return 0;
  }
  write_output(machine_text(limits));
  write_output(
      fmt::format("{} ({} parameters, {}{}) on {} x{}, batch {}\nprefill {:.0f} tokens/s ({} "
                  "tokens; {}; {:.1f} "
                  "GFLOP/s, {:.0f} % of {})\ndecode  {:.0f} tokens/s ({}; {:.2f} GB/s, {})\n",
                  flags.model, r.parameters, bench.random ? "random weights, " : "",
                  dtype_name(r.dtype), r.device, r.threads, r.batch_size, prefill, r.prompt,
                  time_text(r.prefill), prefill_gflop, 100 * prefill_gflop / rate, type, decode,
                  time_text(r.decode), decode_gb, read_share_text(decode_share, false)));
  if (flags.profile) {
    write_output(profile_text("prefill", r.prefill_profile));
    write_output(profile_text("decode", r.decode_profile));
  }
  return 0;
}

int run_train(const BenchFlags& flags) {
  const Config config = load_config(flags.model);
  const TrainReport r = bench_train(config, model_options(flags.run), flags.batch_size,
                                    flags.seq_len, flags.steps, flags.profile);
  const double rate = static_cast<double>(r.batch_size * r.seq_len) / r.step.median;
  if (flags.output == "json") {
    const OrderedJson json = {
        {"version", MAMBA_VERSION},
        {"cpu", cpu_model_name()},
        {"model", flags.model},
        {"device", r.device},
        {"threads", r.threads},
        {"dtype", flags.run.dtype},
        {"random_weights", true},
        {"parameters", r.parameters},
        {"batch_size", r.batch_size},
        {"seq_len", r.seq_len},
        {"step", time_json(r.step)},
        {"tokens_per_s", rate},
        {"first_loss", r.first_loss},
        {"last_loss", r.last_loss},
        {"planned_bytes", r.planned_bytes},
        {"peak_rss_bytes", r.peak_rss_bytes},
        {"profile", profile_json(r.profile)},
    };
    write_output(json_text(json));
    return 0;
  }
  constexpr double kMiB = 1048576.0;
  write_output(fmt::format(
      "{} ({} parameters, random weights, {}) on {} x{}, {} x {} tokens a step\n{:.0f} tokens/s "
      "({})\nloss {:.3f} "
      "-> "
      "{:.3f}; memory {:.0f} MiB planned, {:.0f} MiB at most resident\n",
      flags.model, r.parameters, flags.run.dtype, r.device, r.threads, r.batch_size, r.seq_len,
      rate, time_text(r.step), r.first_loss, r.last_loss,
      static_cast<double>(r.planned_bytes) / kMiB, static_cast<double>(r.peak_rss_bytes) / kMiB));
  if (flags.profile) write_output(profile_text("a step", r.profile));
  return 0;
}

void add_common(CLI::App& app, BenchFlags* f, bool with_dtype) {
  add_run_options(app, &f->run, with_dtype);
  if (with_dtype) add_state_dtype(app, &f->run);
  add_choice(app, "-o,--output", &f->output, {"table", "json"}, "Form of the result");
  app.add_flag("--json", f->json, "As -o json");
}

void add_profile(CLI::App& app, BenchFlags* f) {
  app.add_flag("--profile", f->profile, "Time every kernel of one more run, one after the other");
}

}  // namespace

CommandRun add_bench(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("bench", "Measure speed on this machine");
  app->require_subcommand(0, 1);
  auto speed = std::make_shared<SpeedFlags>();
  add_speed_options(*app, speed.get());
  auto flags = std::make_shared<BenchFlags>();
  BenchFlags* f = flags.get();
  CLI::App* kernel =
      app->add_subcommand("kernel", "One kernel, or all, against the reference first");
  add_text(*kernel, "name", &f->name, "NAME", "Kernel as in kernels.def, or all")->required();
  add_text(*kernel, "--shape", &f->shape, "SIZES",
           "Sizes to change, e.g. B=8,L=256 or M=1,type=q4_k");
  add_number(*kernel, "--seconds", &f->seconds, 0, 600, "Time to measure each kernel at least");
  kernel->add_flag("--cold", f->cold, "Flush the caches before each run");
  add_common(*kernel, f, false);
  add_examples(*kernel, {{"The scan with a batch of 8, caches flushed before each run",
                          "mamba-cpp bench kernel scan_forward --shape B=8 --cold"}});
  CLI::App* model =
      app->add_subcommand("model", "Prefill and decode of a model's weights, or of random ones");
  add_text(*model, "model", &f->model, "MODEL",
           "Folder or file of weights; of a configuration or preset random ones")
      ->required();
  add_int(*model, "--batch-size", &f->batch_size, 1, 65536, "Sequences");
  add_int(*model, "--prompt-length", &f->prompt, 1, 16777216, "Tokens of the prompt");
  add_number(*model, "--seconds", &f->seconds, 0, 600, "Time to measure each part at least");
  add_profile(*model, f);
  add_common(*model, f, true);
  add_backend(*model, &f->run);
  add_examples(*model, {{"Tokens a second of a size of the paper",
                         "mamba-cpp bench model mamba-130m --dtype bf16 --json"}});
  CLI::App* train =
      app->add_subcommand("train", "Training steps in f32 or bf16 with random weights and tokens");
  add_text(*train, "model", &f->model, "MODEL", "Preset, model folder or file, or config file")
      ->required();
  add_int(*train, "--batch-size", &f->batch_size, 1, 65536, "Sequences of a step");
  add_int(*train, "--seq-len", &f->seq_len, 1, 16777216, "Tokens of a sequence");
  add_int(*train, "--steps", &f->steps, 1, 100000, "Steps to time, after one that is not timed");
  add_profile(*train, f);
  add_common(*train, f, true);
  add_examples(*train, {{"Tokens a second of training",
                         "mamba-cpp bench train mamba-130m --batch-size 4 --seq-len 512"}});
  CLI::App* roofline =
      app->add_subcommand("roofline", "Limits of this machine, and every kernel against them");
  auto roof = std::make_shared<RooflineFlags>();
  add_roofline_options(*roofline, roof.get(), *model->get_option("--dtype"));
  add_examples(*roofline, {{"Every kernel and the steps of two models, as a picture",
                            "mamba-cpp bench roofline --svg roofline.svg"}});
  add_choice(*app, "--isa", &speed->isa, choices_of(*model->get_option("--isa")),
             "Instruction set to run on; auto takes the best for this CPU");
  const std::vector<std::string> dtypes = choices_of(*model->get_option("--dtype"));
  add_list(*app, "--dtype", &speed->dtypes, model->get_option("--dtype")->get_type_name(),
           "Types of the weight matrices, with commas between them")
      ->each([flags = speed.get()](const std::string&) { flags->dtype_given = true; });
  add_examples(*app, {{"A prompt of 512 tokens and 128 generated, in two types",
                       "mamba-cpp bench -m mamba-130m --dtype f32,bf16"},
                      {"Eight sequences together, and both behind 4,096 tokens, as JSON",
                       "mamba-cpp bench -m MODEL -p 0 -n 64 --batch-sizes 1,8 -d 0,4096 -o json"}});
  return [=] {
    if (flags->json) flags->output = "json";
    if (kernel->parsed()) return run_kernel(*flags);
    if (model->parsed()) return run_model(*flags);
    if (train->parsed()) return run_train(*flags);
    if (roofline->parsed()) return run_roofline(*roof, dtypes);
    if (speed->models.empty()) {
      fail(ErrorCode::kInvalidArgument,
           "[bench] expected --model MODEL or one of the commands {}, got none; {}",
           fmt::join(command_names(*app), ", "), see_help(*app));
    }
    if (speed->json) speed->output = "json";
    return run_speed(*speed, dtypes);
  };
}

}  // namespace mamba::cli
