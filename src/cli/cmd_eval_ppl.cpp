// SPDX-License-Identifier: Apache-2.0
// mamba-cpp eval ppl: perplexity and bits per byte of a text.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "cli/args.h"
#include "cli/cmd_eval.h"
#include "cli/eval_common.h"
#include "mamba/evaluate.h"

namespace mamba::cli {
namespace {

struct PplFlags {
  RunOptions run;
  std::string model, file;
  WindowFlags windows;
  bool json = false;
};

void print(const PplFlags& flags, const Model& model, const PerplexityResult& r) {
  if (flags.json) {
    nlohmann::ordered_json json = {
        {"perplexity", r.perplexity},
        {"bits_per_byte", r.bits_per_byte},
        {"nll_sum", r.nll_sum},
        {"nll_mean", r.nll_mean},
        {"standard_error", r.standard_error},
        {"tokens", r.tokens},
        {"scored", r.scored},
        {"bytes", r.bytes},
        {"file", flags.file},
        {"model", flags.model},
        {"fingerprint", model.fingerprint()},
        {"device", model.device_name()},
        {"dtype", dtype_name(model.dtype())},
    };
    json.update(window_json(flags.windows));
    write_output(json_text(json));
    return;
  }
  write_output(fmt::format(
      "perplexity     {:.6f}\nbits per byte  {:.4f}\nnll            {:.5f} +- {:.5f} (standard "
      "error) a token\nnll sum        {:.4f}\nscored         {} of {} tokens, {} bytes\n",
      r.perplexity, r.bits_per_byte, r.nll_mean, r.standard_error, r.nll_sum, r.scored, r.tokens,
      r.bytes));
}

int run_ppl(const PplFlags& flags) {
  PerplexityOptions options = window_options(flags.windows);
  Model model = load_model(flags.model, flags.run);
  const std::unique_ptr<Tokenizer> tokenizer =
      require_tokenizer(flags.model, model.config(), "eval ppl");
  FileTokens tokens(flags.file, *tokenizer, "eval ppl");
  catch_interrupt_and_sigterm();
  EvalProgress progress;
  options.progress = text_progress(progress, tokens);
  const PerplexityResult result = evaluate_perplexity(
      model, [&](int32_t* ids, int32_t* bytes, int64_t n) { return tokens.read(ids, bytes, n); },
      options);
  progress.clear();
  print(flags, model, result);
  return 0;
}

}  // namespace

CommandRun add_eval_ppl(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("ppl", "Perplexity and bits per byte of a text");
  auto flags = std::make_shared<PplFlags>();
  PplFlags* f = flags.get();
  add_text(*app, "-m,--model,--pretrained-model-name-or-path", &f->model, "FOLDER", "Model folder")
      ->required();
  add_text(*app, "-f,--file", &f->file, "FILE", "Text file; - for standard input")->required();
  add_window_flags(*app, &f->windows);
  add_run_options(*app, &f->run);
  add_backend(*app, &f->run);
  add_state_dtype(*app, &f->run);
  add_without_effect(*app, "-b,--batch-size", "N", kNoMicroBatches);
  add_without_effect(*app, "--ubatch-size", "N", kNoMicroBatches);
  add_without_effect(*app, "--parallel,--max-num-seqs", "N", "windows are read one at a time");
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(*app, {{"Windows of 1024 tokens that overlap by half",
                       "mamba-cpp eval ppl -m MODEL -f held-out.txt"},
                      {"One pass with the state carried",
                       "mamba-cpp eval ppl -m MODEL -f held-out.txt --carry-state --json"}});
  return [flags] { return run_ppl(*flags); };
}

}  // namespace mamba::cli
