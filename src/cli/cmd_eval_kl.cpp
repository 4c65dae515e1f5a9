// SPDX-License-Identifier: Apache-2.0
// mamba-cpp eval kl: how far a model is from a base model over a text.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/cmd_eval.h"
#include "cli/eval_common.h"
#include "mamba/evaluate.h"

namespace mamba::cli {
namespace {

struct KlFlags {
  RunOptions run;
  std::string base, model, file, base_dtype;
  WindowFlags windows;
  bool json = false;
};

nlohmann::ordered_json divergence_json(const DivergenceResult& r) {
  return {
      {"kl_mean", r.kl_mean},
      {"kl_standard_error", r.kl_error},
      {"kl_min", r.kl_min},
      {"kl_median", r.kl_median},
      {"kl_90", r.kl_90},
      {"kl_95", r.kl_95},
      {"kl_99", r.kl_99},
      {"kl_99.9", r.kl_999},
      {"kl_max", r.kl_max},
      {"same_top", r.same_top},
      {"same_top_standard_error", r.same_top_error},
      {"target_probability_difference_rms", r.target_difference_rms},
      {"perplexity_base", r.perplexity_base},
      {"perplexity", r.perplexity_model},
      {"perplexity_change", r.perplexity_model - r.perplexity_base},
      {"nll_base", r.nll_base},
      {"nll", r.nll_model},
      {"nll_change", r.nll_model - r.nll_base},
      {"nll_change_standard_error", r.nll_difference_error},
      {"tokens", r.tokens},
      {"scored", r.scored},
  };
}

void print(const KlFlags& flags, const Model& base, const Model& model, const DivergenceResult& r) {
  if (flags.json) {
    nlohmann::ordered_json json = divergence_json(r);
    json["file"] = flags.file;
    json["base"] = model_json(flags.base, base);
    json["model"] = model_json(flags.model, model);
    json.update(window_json(flags.windows));
    write_output(json_text(json));
    return;
  }
  write_output(fmt::format(
      "KL(base || model), nats a token\n"
      "  mean         {:.6f} +- {:.6f} (standard error)\n"
      "  median       {:.6f}\n"
      "  90.0 %       {:.6f}\n"
      "  95.0 %       {:.6f}\n"
      "  99.0 %       {:.6f}\n"
      "  99.9 %       {:.6f}\n"
      "  max          {:.6f}\n",
      r.kl_mean, r.kl_error, r.kl_median, r.kl_90, r.kl_95, r.kl_99, r.kl_999, r.kl_max));
  write_output(
      fmt::format("same top       {:.3f} +- {:.3f} %\n"
                  "rms dp         {:.3f} % (probability of the token that comes)\n"
                  "perplexity     {:.6f}, base {:.6f}, change {:+.6f}\n"
                  "nll            change {:+.6f} +- {:.6f} (standard error) a token\n"
                  "scored         {} of {} tokens\n",
                  100 * r.same_top, 100 * r.same_top_error, 100 * r.target_difference_rms,
                  r.perplexity_model, r.perplexity_base, r.perplexity_model - r.perplexity_base,
                  r.nll_model - r.nll_base, r.nll_difference_error, r.scored, r.tokens));
}

// Ids mean the same to both models only if their tokenizers agree.
void expect_same_ids(const Tokenizer& base, const Tokenizer& model, const KlFlags& flags) {
  bool same = base.vocab_size() == model.vocab_size();
  for (int64_t id = 0; same && id < base.vocab_size(); ++id) {
    same =
        base.token_bytes(static_cast<int32_t>(id)) == model.token_bytes(static_cast<int32_t>(id));
  }
  if (same) return;
  fail(ErrorCode::kInvalidArgument,
       "[eval kl] expected two models with one tokenizer, got different tokens ({}, {}); compare "
       "models of one vocabulary",
       flags.base, flags.model);
}

int run_kl(const KlFlags& flags) {
  PerplexityOptions options = window_options(flags.windows);
  RunOptions base_run = flags.run;
  if (!flags.base_dtype.empty()) {
    base_run.dtype = flags.base_dtype;
    base_run.dtype_given = true;
  }
  Model base = Model::load(flags.base, model_options(base_run));
  Model model = load_model(flags.model, flags.run);
  const std::unique_ptr<Tokenizer> tokenizer =
      require_tokenizer(flags.base, base.config(), "eval kl");
  const std::unique_ptr<Tokenizer> other =
      require_tokenizer(flags.model, model.config(), "eval kl");
  expect_same_ids(*tokenizer, *other, flags);
  FileTokens tokens(flags.file, *tokenizer, "eval kl");
  catch_interrupt_and_sigterm();
  EvalProgress progress;
  options.progress = text_progress(progress, tokens);
  const DivergenceResult result = evaluate_divergence(
      base, model,
      [&](int32_t* ids, int32_t* bytes, int64_t n) { return tokens.read(ids, bytes, n); }, options);
  progress.clear();
  print(flags, base, model, result);
  return 0;
}

}  // namespace

CommandRun add_eval_kl(CLI::App& parent) {
  CLI::App* app =
      parent.add_subcommand("kl", "Divergence of a model from a base model over a text");
  auto flags = std::make_shared<KlFlags>();
  KlFlags* f = flags.get();
  add_text(*app, "BASE", &f->base, "BASE", "Model folder to compare with")->required();
  add_text(*app, "MODEL", &f->model, "MODEL", "Model folder that is compared")->required();
  add_text(*app, "-f,--file", &f->file, "FILE", "Text file; - for standard input")->required();
  add_window_flags(*app, &f->windows);
  add_run_options(*app, &f->run);
  add_backend(*app, &f->run);
  add_choice(*app, "--base-dtype", &f->base_dtype, weight_dtypes(),
             "As --dtype, for the base model alone; --dtype if not given");
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(
      *app, {{"What bf16 changes", "mamba-cpp eval kl MODEL MODEL -f held-out.txt --dtype bf16"}});
  return [flags] { return run_kl(*flags); };
}

}  // namespace mamba::cli
