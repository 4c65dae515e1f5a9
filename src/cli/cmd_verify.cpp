// SPDX-License-Identifier: Apache-2.0
// mamba-cpp verify: the logits of a model against recorded ones, computed in three ways: all tokens
// at once, in uneven chunks, token by token.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "formats/safetensors.h"
#include "mamba/model.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

// Chunk lengths, taken in turn: shorter than a conv window, odd, and larger than a chunk of SSD.
constexpr int64_t kChunks[] = {1, 2, 5, 17, 64, 97};

constexpr const char* kDumpFormat = "mamba-cpp-logits";

struct VerifyFlags {
  RunOptions run;
  std::string model, golden, dump;
  double tolerance = 1e-4;
  bool json = false;
};

struct Golden {
  int64_t B = 0, L = 0, V = 0;
  std::vector<int32_t> ids;   // (B, L)
  std::vector<float> logits;  // (B, L, V)
};

struct Comparison {
  std::string mode;
  double max_error = 0;                      // infinity if a logit is not finite
  int64_t row = 0, position = 0, token = 0;  // of the largest error
  double got = 0, want = 0;
  bool mismatch = false;  // the most likely token differs somewhere; the first place:
  int64_t mismatch_row = 0, mismatch_position = 0, got_token = 0, want_token = 0;
};

Golden read_golden(const std::string& path, const Config& config) {
  const SafetensorsFile file(path);
  for (const char* name : {"input_ids", "logits"}) {
    if (file.find(name) != nullptr) continue;
    fail(
        ErrorCode::kBadFile,
        "[verify] expected a golden file with 'input_ids' and 'logits', got none called '{}' ({}); "
        "name another file",
        name, path);
  }
  const TensorInfo& ids = file.get("input_ids");
  const TensorInfo& logits = file.get("logits");
  Golden golden;
  golden.V = config.vocab_size;
  if (ids.shape.size() != 2 || ids.count() == 0) {
    fail(ErrorCode::kBadFile,
         "[verify] expected 'input_ids' of shape [B, L], neither 0, got {} ({}); write it again",
         shape_text(ids.shape), path);
  }
  golden.B = ids.shape[0];
  golden.L = ids.shape[1];
  const std::vector<int64_t> expected = {golden.B, golden.L, golden.V};
  if (logits.shape != expected || logits.dtype != DType::kF32) {
    fail(ErrorCode::kBadFile,
         "[verify] expected 'logits' f32 of shape {}, got {} of {} ({}); use the golden file of "
         "this "
         "model",
         shape_text(expected), dtype_name(logits.dtype), shape_text(logits.shape), path);
  }
  for (const int64_t id : read_to_i64(ids)) {
    if (id < 0 || id >= golden.V) {
      fail(ErrorCode::kBadFile, "[verify] expected 'input_ids' in 0..{}, got {} at element {} ({})",
           golden.V - 1, id, golden.ids.size(), path);
    }
    golden.ids.push_back(static_cast<int32_t>(id));
  }
  golden.logits.resize(static_cast<size_t>(logits.count()));
  read_to_f32(logits, golden.logits.data());
  for (size_t i = 0; i < golden.logits.size(); ++i) {
    if (std::isfinite(golden.logits[i])) continue;
    fail(ErrorCode::kBadFile,
         "[verify] expected finite 'logits', got {} at element {} ({}); write it again",
         golden.logits[i], i, path);
  }
  return golden;
}

int64_t argmax(const float* v, int64_t n) { return std::max_element(v, v + n) - v; }

Comparison compare(const std::string& mode, const Golden& golden, const std::vector<float>& got) {
  Comparison c;
  c.mode = mode;
  for (int64_t i = 0; i < golden.B * golden.L; ++i) {
    const float* want_row = golden.logits.data() + i * golden.V;
    const float* got_row = got.data() + i * golden.V;
    for (int64_t v = 0; v < golden.V; ++v) {
      double error = std::fabs(static_cast<double>(got_row[v]) - want_row[v]);
      if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
      if (error <= c.max_error) continue;
      c.max_error = error;
      c.row = i / golden.L;
      c.position = i % golden.L;
      c.token = v;
      c.got = got_row[v];
      c.want = want_row[v];
    }
    const int64_t got_token = argmax(got_row, golden.V), want_token = argmax(want_row, golden.V);
    if (c.mismatch || got_token == want_token) continue;
    c.mismatch = true;
    c.mismatch_row = i / golden.L;
    c.mismatch_position = i % golden.L;
    c.got_token = got_token;
    c.want_token = want_token;
  }
  return c;
}

// Runs tokens [at, at + length) of every row and puts their logits in place.
void run_chunk(Model& model, const Golden& golden, int64_t at, int64_t length, bool step,
               State& state, std::vector<float>& logits) {
  std::vector<int32_t> ids(static_cast<size_t>(golden.B * length));            // (B, length)
  std::vector<float> part(static_cast<size_t>(golden.B * length * golden.V));  // (B, length, V)
  for (int64_t b = 0; b < golden.B; ++b) {
    std::copy_n(golden.ids.data() + b * golden.L + at, length, ids.data() + b * length);
  }
  if (step) {
    model.step(ids.data(), state, part.data());
  } else {
    model.forward(ids.data(), length, state, Logits::kAll, part.data());
  }
  for (int64_t b = 0; b < golden.B; ++b) {
    std::copy_n(part.data() + b * length * golden.V, length * golden.V,
                logits.data() + (b * golden.L + at) * golden.V);
  }
}

std::vector<float> run_full(Model& model, const Golden& golden) {
  std::vector<float> logits(golden.logits.size());
  State state = model.new_state(golden.B);
  run_chunk(model, golden, 0, golden.L, false, state, logits);
  return logits;
}

std::vector<float> run_chunked(Model& model, const Golden& golden) {
  std::vector<float> logits(golden.logits.size());
  State state = model.new_state(golden.B);
  size_t turn = 0;
  for (int64_t at = 0; at < golden.L;) {
    const int64_t length = std::min(kChunks[turn++ % std::size(kChunks)], golden.L - at);
    run_chunk(model, golden, at, length, false, state, logits);
    at += length;
  }
  return logits;
}

std::vector<float> run_steps(Model& model, const Golden& golden) {
  std::vector<float> logits(golden.logits.size());
  State state = model.new_state(golden.B);
  for (int64_t at = 0; at < golden.L; ++at) run_chunk(model, golden, at, 1, true, state, logits);
  return logits;
}

// JSON has no infinity.
OrderedJson number(double v) { return std::isfinite(v) ? OrderedJson(v) : OrderedJson(nullptr); }

OrderedJson to_json(const Comparison& c) {
  OrderedJson json = {
      {"mode", c.mode},
      {"max_abs_error", number(c.max_error)},
      {"worst",
       {{"row", c.row},
        {"position", c.position},
        {"token", c.token},
        {"got", number(c.got)},
        {"want", number(c.want)}}},
      {"first_greedy_mismatch", nullptr},
  };
  if (c.mismatch) {
    json["first_greedy_mismatch"] = {{"row", c.mismatch_row},
                                     {"position", c.mismatch_position},
                                     {"got", c.got_token},
                                     {"want", c.want_token}};
  }
  return json;
}

std::string to_line(const Comparison& c) {
  std::string line = fmt::format(
      "{:<8} largest error {:.3e} (row {}, position {}, token {}: {:.6g}, expected {:.6g}); ",
      c.mode, c.max_error, c.row, c.position, c.token, c.got, c.want);
  line += c.mismatch ? fmt::format("greedy differs first at row {}, position {}: {}, expected {}",
                                   c.mismatch_row, c.mismatch_position, c.got_token, c.want_token)
                     : "greedy equal everywhere";
  return line + "\n";
}

int run_verify(const VerifyFlags& flags) {
  if (!flags.dump.empty()) {
    expect_replaceable("--dump", flags.dump, "logits of an earlier run",
                       [&] { return has_format(flags.dump, kDumpFormat); });
  }
  Model model = load_model(flags.model, flags.run);
  const Golden golden = read_golden(flags.golden, model.config());
  const std::vector<float> full = run_full(model, golden);
  if (!flags.dump.empty()) {
    write_safetensors(flags.dump,
                      {{"logits", DType::kF32, {golden.B, golden.L, golden.V}, full.data()}},
                      {{"format", kDumpFormat}});
  }
  std::vector<Comparison> results;
  results.push_back(compare("full", golden, full));
  results.push_back(compare("chunked", golden, run_chunked(model, golden)));
  results.push_back(compare("steps", golden, run_steps(model, golden)));
  bool passed = true;
  std::string text;
  OrderedJson modes = OrderedJson::array();
  for (const Comparison& c : results) {
    passed = passed && c.max_error <= flags.tolerance;
    modes.push_back(to_json(c));
    text += to_line(c);
  }
  text += fmt::format("{}: tolerance {}, {} on {}\n", passed ? "passed" : "FAILED", flags.tolerance,
                      dtype_name(model.dtype()), model.device_name());
  const OrderedJson json = {
      {"passed", passed},
      {"tolerance", flags.tolerance},
      {"modes", modes},
      {"shape", {golden.B, golden.L, golden.V}},
      {"device", model.device_name()},
      {"dtype", dtype_name(model.dtype())},
  };
  write_output(flags.json ? json_text(json) : text);
  return passed ? 0 : 1;
}

}  // namespace

CommandRun add_verify(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("verify", "Compare a model's logits with recorded ones");
  auto flags = std::make_shared<VerifyFlags>();
  VerifyFlags* f = flags.get();
  add_text(*app, "model", &f->model, "MODEL", "Model folder")->required();
  add_text(*app, "golden", &f->golden, "FILE",
           "safetensors file with input_ids (B, L) and logits (B, L, V)")
      ->required();
  add_text(*app, "--dump", &f->dump, "FILE", "Write our logits to this safetensors file");
  add_number(*app, "--tolerance", &f->tolerance, 0, 1e6,
             "Largest absolute error allowed; exit code 1 beyond it");
  add_run_options(*app, &f->run);
  add_backend(*app, &f->run);
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(*app, {{"Against logits that another program recorded",
                       "mamba-cpp verify MODEL golden.safetensors --tolerance 1e-4"}});
  return [flags] { return run_verify(*flags); };
}

}  // namespace mamba::cli
