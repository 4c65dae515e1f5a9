// SPDX-License-Identifier: Apache-2.0
// mamba-cpp convert: a model from one form into another, and the check that both compute the same.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/cmd_quantize.h"
#include "cli/commands.h"
#include "cli/quantize_report.h"
#include "mamba/convert.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct ConvertFlags {
  std::string in, out, to, dtype;
  bool safetensors = false, force = false, verify = false, json = false;
  double tolerance = 0;
  CLI::Option* tolerance_option = nullptr;
  RunOptions run;
};

constexpr int64_t kLargeModel = 200'000'000;  // bytes, from which on progress is shown

bool is_plain(const std::string& dtype) {
  return dtype.empty() || dtype == "f32" || dtype == "bf16" || dtype == "f16";
}

// Products with weights in blocks round their inputs to 8 bits, at most 1/254 of the largest of 32;
// that adds up over the layers as well (0.02 seen of a model trained on books).
constexpr double kBlocksTolerance = 0.1;

// The largest error of a logit over the largest logit that rounding the weights explains: f16 keeps
// 11 bits and bf16 8, and the errors of the products of a layer add up over the layers. Weights
// that keep their values give equal logits; the steps of blocks of 4 bits are an eighth of the
// largest weight.
double default_tolerance(const std::string& dtype) {
  if (dtype == "bf16") return 0.1;
  if (dtype == "f16") return 0.02;
  if (dtype == "q8_0") return kBlocksTolerance;
  return is_plain(dtype) ? 1e-5 : 0.5;
}

class ProgressLine {
 public:
  ~ProgressLine() {
    if (drawn_) fmt::print(stderr, "\n");
  }
  void operator()(int64_t done, int64_t total) {
    const int percent = static_cast<int>(100 * done / total);
    if (total < kLargeModel || percent == last_ || ::isatty(STDERR_FILENO) == 0) return;
    last_ = percent;
    drawn_ = true;
    fmt::print(stderr, "\rconverting: {:3}% of {} MB", percent, total / 1'000'000);
  }

 private:
  int last_ = -1;
  bool drawn_ = false;
};

OrderedJson comparison_json(const ModelComparison& c, double tolerance, bool passed) {
  const auto number = [](double v) { return std::isfinite(v) ? OrderedJson(v) : OrderedJson(); };
  return {{"passed", passed},
          {"tolerance", tolerance},
          {"max_abs_error", number(c.max_error)},
          {"max_abs_logit", number(c.max_logit)},
          {"positions", c.positions},
          {"same_greedy", c.same_greedy},
          {"not_finite", c.not_finite}};
}

double tolerance_of(const ConvertFlags& flags, const ModelComparison& c) {
  if (flags.tolerance_option->count() > 0) return flags.tolerance;
  return std::max(default_tolerance(flags.dtype), c.has_blocks ? kBlocksTolerance : 0.0);
}

struct Written {
  OrderedJson json;
  std::string text;
};

Written convert_to_gguf(const ConvertFlags& flags) {
  if (flags.safetensors) {
    fail(ErrorCode::kInvalidArgument,
         "[--safetensors] expected --to ssm, got --to gguf; leave out one");
  }
  QuantizeOptions options;
  options.type = flags.dtype;
  options.replace = flags.force;
  options.threads = static_cast<int>(flags.run.threads);
  QuantizeReport report;
  report.in = flags.in;
  report.out = flags.out;
  report.type = flags.dtype;
  expect_card_place(flags.out);
  try {
    report.result = run_with_progress(flags.in, flags.out, options);
  } catch (const Error& error) {  // what was typed is not quantize
    constexpr std::string_view kOther = "[quantize]";
    const std::string_view text = error.what();
    if (!text.starts_with(kOther)) throw;
    throw Error(error.code(), "[convert]" + std::string(text.substr(kOther.size())));
  }
  write_file_atomic(quantize_card_path(flags.out), quantize_card(report));
  const QuantizeResult& r = report.result;
  return {{{"in", flags.in},
           {"out", flags.out},
           {"form", flags.to},
           {"parameters", parameter_count(r.config)},
           {"tensors", r.tensors.size()},
           {"bytes", r.bytes_after},
           {"notices", r.notices}},
          fmt::format("{}: {} tensors, {} bytes, gguf form\n", flags.out, r.tensors.size(),
                      r.bytes_after)};
}

Written convert_folder(const ConvertFlags& flags) {
  if (!is_plain(flags.dtype)) {
    fail(ErrorCode::kInvalidArgument,
         "[--dtype] expected f32, bf16 or f16 with --to {}, got '{}'; blocks are for --to gguf",
         flags.to, flags.dtype);
  }
  ConvertOptions options;
  options.form = flags.to == "hf" ? ModelForm::kTransformers : ModelForm::kStateSpaces;
  if (flags.dtype == "f32") options.dtype = DType::kF32;
  if (flags.dtype == "bf16") options.dtype = DType::kBF16;
  if (flags.dtype == "f16") options.dtype = DType::kF16;
  options.safetensors = flags.safetensors;
  options.replace = flags.force;
  ConvertResult result;
  {
    ProgressLine line;
    catch_interrupt_and_sigterm();  // the folder being filled is removed on the way out
    options.on_progress = [&](int64_t done, int64_t total) {
      if (interrupted()) fail(ErrorCode::kCancelled, "interrupted");
      line(done, total);
    };
    result = convert_model(flags.in, flags.out, options);
  }
  for (const std::string& notice : result.notices) fmt::print(stderr, "note: {}\n", notice);
  return {{{"in", flags.in},
           {"out", flags.out},
           {"form", flags.to},
           {"parameters", parameter_count(result.config)},
           {"tensors", result.tensors},
           {"bytes", result.bytes},
           {"notices", result.notices}},
          fmt::format("{}: {} tensors, {} bytes, {} form\n", flags.out, result.tensors,
                      result.bytes, flags.to)};
}

int run_convert(const ConvertFlags& flags) {
  Written written = flags.to == "gguf" ? convert_to_gguf(flags) : convert_folder(flags);
  bool passed = true;
  if (flags.verify) {
    release_interrupt();  // what is written is whole
    const ModelComparison c = compare_models(flags.in, flags.out, model_options(flags.run));
    const double tolerance = tolerance_of(flags, c);
    passed = std::isfinite(c.max_error) && c.max_error <= tolerance * c.max_logit;
    written.json["verify"] = comparison_json(c, tolerance, passed);
    written.text +=
        !std::isfinite(c.max_error)
            ? fmt::format(
                  "FAILED: {} of {} logits of {} and {} of {} are NaN or infinite; nothing can "
                  "be said of the others\n",
                  c.not_finite[0], c.logits, flags.in, c.not_finite[1], flags.out)
            : fmt::format(
                  "{}: largest error {:.3g} of logits up to {:.3g} (allowed {:.3g}), {} of {} "
                  "greedy tokens "
                  "equal\n",
                  passed ? "verified" : "FAILED", c.max_error, c.max_logit, tolerance * c.max_logit,
                  c.same_greedy, c.positions);
  }
  write_output(flags.json ? json_text(written.json) : written.text);
  return passed ? 0 : 1;
}

}  // namespace

CommandRun add_convert(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("convert", "Write a model in another form or type");
  auto flags = std::make_shared<ConvertFlags>();
  ConvertFlags* f = flags.get();
  add_text(*app, "in", &f->in, "IN", "Model folder, .gguf, or a model.bin of mamba.c")->required();
  add_text(*app, "out", &f->out, "OUT", "New folder, or file that ends in .gguf")->required();
  add_choice(*app, "--to", &f->to, {"hf", "ssm", "gguf"},
             "Form: hf (transformers), ssm (state-spaces, mamba_ssm) or gguf (llama.cpp)")
      ->required();
  add_choice(
      *app, "--dtype,--outtype", &f->dtype, quantize_types(),
      "Type of the matrices: f32, bf16 or f16, or with --to gguf one of quantize; without it "
      "every tensor keeps its own")
      ->type_name("TYPE");
  app->add_flag("--safetensors", f->safetensors,
                "With --to ssm: model.safetensors instead of pytorch_model.bin");
  app->add_flag("--force", f->force, "Replace a model folder that is there");
  CLI::Option* verify = app->add_flag("--verify", f->verify,
                                      "Compare the logits of both; exit code 1 beyond --tolerance");
  f->tolerance_option =
      add_number(*app, "--tolerance", &f->tolerance, 0, 1,
                 "Of --verify: largest error over largest logit; default: 1e-5, "
                 "but 0.02 with --dtype f16, 0.1 with bf16, 0.5 with few bits, 0.1 from "
                 "a model in few bits")
          ->default_str("");
  f->tolerance_option->needs(verify);
  add_run_options(*app, &f->run, false);
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(*app, {{"For mamba_ssm, checked", "mamba-cpp convert MODEL OUT --to ssm --verify"},
                      {"For transformers, half the size",
                       "mamba-cpp convert mamba-130m OUT --to hf --dtype bf16"},
                      {"For llama.cpp", "mamba-cpp convert MODEL model.gguf --to gguf --verify"}});
  return [flags] { return run_convert(*flags); };
}

}  // namespace mamba::cli
