// SPDX-License-Identifier: Apache-2.0
// mamba-cpp quantize: a model as a GGUF file of smaller weights; and what convert --to gguf calls.
#include "cli/cmd_quantize.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <sstream>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/eval_common.h"
#include "cli/quantize_report.h"
#include "formats/hf_config.h"

namespace mamba::cli {
namespace {

constexpr int64_t kEvalWindow = 1024;

struct QuantizeFlags {
  std::string in, out, type, imatrix, eval_text, tensor_type_file, head_type, embedding_type;
  std::vector<std::string> tensor_types;
  bool pure = false, leave_head = false, allow_requantize = false;
  bool dry_run = false, no_tokenizer = false, force = false, json = false;
  int64_t threads = 0, shard_mb = 0;
};

// "REGEX=TYPE", at the last "=".
std::pair<std::string, std::string> split_rule(const char* flag, const std::string& rule) {
  const size_t at = rule.rfind('=');
  if (at == std::string::npos || at == 0 || at + 1 == rule.size()) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected REGEX=TYPE, such as ssm_out=q6_k, got '{}'; correct it", flag,
         printable(rule));
  }
  return {rule.substr(0, at), rule.substr(at + 1)};
}

// The rules of the file, then those of the command line.
std::vector<std::pair<std::string, std::string>> rules_of(const QuantizeFlags& flags) {
  constexpr int64_t kMaxFile = 1 << 20;
  std::vector<std::pair<std::string, std::string>> rules;
  if (!flags.tensor_type_file.empty()) {
    std::istringstream words(read_input(flags.tensor_type_file, kMaxFile, "--tensor-type-file"));
    for (std::string rule; words >> rule;) {
      rules.push_back(split_rule("--tensor-type-file", rule));
    }
  }
  for (const std::string& rule : flags.tensor_types) {
    rules.push_back(split_rule("--tensor-type", rule));
  }
  return rules;
}

// What measure() would find wrong with the text, before the work is done.
void check_eval_text(const QuantizeFlags& flags) {
  const std::unique_ptr<Tokenizer> tokenizer =
      require_tokenizer(flags.in, read_config(flags.in), "quantize");
  if (flags.eval_text == "-") return;  // can be read once
  FileTokens tokens(flags.eval_text, *tokenizer, "--eval-text");
  int32_t ids[2], bytes[2];
  if (tokens.read(ids, bytes, 2) == 2) return;
  fail(ErrorCode::kBadFile,
       "[--eval-text] expected a text of at least 2 tokens, got '{}' with "
       "fewer; give a longer text",
       printable(flags.eval_text, 200));
}

// How far the file is from the model it was made of.
DivergenceResult measure(const QuantizeFlags& flags, const std::string& file) {
  RunOptions run;
  run.threads = flags.threads;
  Model base = Model::load(flags.in, model_options(run));
  Model model = Model::load(file, model_options(run));
  const std::unique_ptr<Tokenizer> tokenizer =
      require_tokenizer(flags.in, base.config(), "quantize");
  FileTokens tokens(flags.eval_text, *tokenizer, "--eval-text");
  PerplexityOptions options;
  options.window = kEvalWindow;
  options.stride = kEvalWindow / 2;
  EvalProgress progress;
  options.progress = text_progress(progress, tokens);
  const DivergenceResult result = evaluate_divergence(
      base, model,
      [&](int32_t* ids, int32_t* bytes, int64_t n) { return tokens.read(ids, bytes, n); }, options);
  progress.clear();
  return result;
}

int run_quantize(const QuantizeFlags& flags) {
  QuantizeOptions options;
  options.type = flags.type;
  options.imatrix = flags.imatrix;
  options.tensor_types = rules_of(flags);
  options.head_type = flags.head_type;
  options.embedding_type = flags.embedding_type;
  options.pure = flags.pure;
  options.leave_head = flags.leave_head;
  options.allow_requantize = flags.allow_requantize;
  options.with_tokenizer = !flags.no_tokenizer;
  options.dry_run = flags.dry_run;
  options.replace = flags.force;
  options.threads = static_cast<int>(flags.threads);
  options.max_shard_bytes = flags.shard_mb * 1'000'000;
  if (flags.dry_run && !flags.eval_text.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--eval-text] expected a file that is written, got --dry-run; leave out one of the two");
  }
  QuantizeReport report;
  report.in = flags.in;
  report.out = flags.out;
  report.type = flags.type;
  report.imatrix = flags.imatrix;
  report.eval_text = flags.eval_text;
  report.dry_run = flags.dry_run;
  if (!flags.dry_run) expect_card_place(flags.out);
  if (!flags.eval_text.empty()) check_eval_text(flags);
  report.result = run_with_progress(flags.in, flags.out, options);
  if (!flags.dry_run) {
    // First without figures: the file has its card also where measuring fails or is interrupted.
    write_file_atomic(quantize_card_path(flags.out), quantize_card(report));
    if (!flags.eval_text.empty()) {
      report.quality = measure(flags, report.result.files[0]);
      write_file_atomic(quantize_card_path(flags.out), quantize_card(report));
    }
  }
  write_output(flags.json ? json_text(quantize_json(report)) : quantize_table(report));
  return 0;
}

}  // namespace

QuantizeResult run_with_progress(const std::string& in, const std::string& out,
                                 QuantizeOptions options) {
  EvalProgress line;
  catch_interrupt_and_sigterm();  // what was written so far is removed on the way out
  options.progress = [&](int64_t done, int64_t total, const std::string& tensor) {
    return line.update(
        fmt::format("{} ({:.0f} of {:.0f} million weights)", tensor,
                    static_cast<double>(done) / 1e6, static_cast<double>(total) / 1e6),
        static_cast<double>(done) / static_cast<double>(total));
  };
  const QuantizeResult result = quantize_model(in, out, options);
  line.clear();
  for (const std::string& notice : result.notices) fmt::print(stderr, "note: {}\n", notice);
  return result;
}

CommandRun add_quantize(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("quantize", "Write a model as GGUF with smaller weights");
  auto flags = std::make_shared<QuantizeFlags>();
  QuantizeFlags* f = flags.get();
  add_text(*app, "in", &f->in, "IN", "Model folder or .gguf")->required();
  add_text(*app, "out", &f->out, "OUT", "New file, ending in .gguf")->required();
  std::string types;
  for (const std::string& type : quantize_types()) types += (types.empty() ? "" : ", ") + type;
  add_text(*app, "type", &f->type, "TYPE", "Type of the matrices, in any case: " + types)
      ->required();
  add_text(*app, "--imatrix", &f->imatrix, "FILE",
           "Importance of the inputs, by mamba-cpp imatrix or llama-imatrix");
  app->add_option("--tensor-type", f->tensor_types,
                  "Another type for the matrices that match, by names in GGUF; repeatable")
      ->type_name("REGEX=TYPE")
      ->allow_extra_args(false);
  add_text(*app, "--tensor-type-file", &f->tensor_type_file, "FILE",
           "Rules as --tensor-type takes them, between blanks; --tensor-type wins over them");
  CLI::Option* head = add_text(*app, "--output-tensor-type", &f->head_type, "TYPE",
                               "Type of the head, or of the embedding that it shares");
  add_text(*app, "--token-embedding-type", &f->embedding_type, "TYPE", "Type of the embedding");
  app->add_flag("--leave-output-tensor", f->leave_head,
                "The head, or the embedding that it shares, as it is stored")
      ->excludes(head);
  app->add_flag("--pure", f->pure, "Every matrix in TYPE, with no exceptions that keep more bits");
  app->add_flag("--allow-requantize", f->allow_requantize,
                "No note that matrices in blocks are quantised for a second time");
  app->add_flag("--dry-run", f->dry_run, "Only the table of types and sizes");
  add_text(*app, "--eval-text", &f->eval_text, "FILE",
           "Measure perplexity and KL against IN on this text, for the model card too");
  app->add_flag("--no-tokenizer", f->no_tokenizer, "Leave the tokenizer out of the file");
  add_int(*app, "--max-shard-mb", &f->shard_mb, 0, 1'000'000,
          "Shards of at most so many MB of weights; 0: one file");
  app->add_flag("--force", f->force, "Replace a file that is there");
  add_int(*app, "-t,--threads", &f->threads, 0, 1024, "Threads; 0: one per physical core");
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(
      *app, {{"About 5 bits a weight", "mamba-cpp quantize MODEL model-q4_k_m.gguf q4_k_m"},
             {"With the importance of inputs, measured on held-out text",
              "mamba-cpp quantize MODEL model-q4_k.gguf q4_k --imatrix imatrix.gguf "
              "--eval-text held-out.txt"},
             {"The sizes alone, one layer better",
              "mamba-cpp quantize MODEL x.gguf q4_0 --tensor-type 'blk\\.0\\.=q8_0' --dry-run"}});
  return [flags] { return run_quantize(*flags); };
}

}  // namespace mamba::cli
