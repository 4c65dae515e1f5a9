// SPDX-License-Identifier: Apache-2.0
// mamba-cpp imatrix: which inputs of a model's matrices are large over a text, for quantize.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/eval_common.h"
#include "formats/gguf.h"
#include "formats/hf_config.h"
#include "mamba/quantize.h"
#include "model/model_card.h"

namespace mamba::cli {
namespace {

struct ImatrixFlags {
  std::string model, file, out = "imatrix.gguf";
  int64_t chunk = 512, chunks = 0;
  RunOptions run;
  bool json = false;
};

int run_imatrix(const ImatrixFlags& flags) {
  const std::unique_ptr<Tokenizer> tokenizer =
      require_tokenizer(flags.model, read_config(flags.model), "imatrix");
  FileTokens tokens(flags.file, *tokenizer, "imatrix");
  expect_replaceable("--output", flags.out, "an importance matrix", [&] {
    return GgufFile(flags.out).get_string("general.type", "") == "imatrix";
  });
  std::vector<int32_t> bytes;
  const auto read = [&](int32_t* ids, int64_t count) {
    bytes.resize(static_cast<size_t>(count));
    return tokens.read(ids, bytes.data(), count);
  };
  ImportanceOptions options;
  options.chunk = flags.chunk;
  options.max_chunks = flags.chunks;
  options.dataset = card_name(flags.file);
  EvalProgress progress;
  catch_interrupt_and_sigterm();
  options.progress = [&](int64_t chunks) {
    return progress.update(fmt::format("{} chunks", chunks), tokens.share_read());
  };
  const int64_t chunks =
      collect_importance(flags.model, flags.out, read, model_options(flags.run), options);
  progress.clear();
  if (flags.json) {
    const nlohmann::ordered_json json = {{"model", flags.model},
                                         {"file", flags.file},
                                         {"out", flags.out},
                                         {"chunks", chunks},
                                         {"tokens", chunks * flags.chunk}};
    write_output(json_text(json));
  } else {
    write_output(fmt::format("{}: {} chunks of {} tokens\n", flags.out, chunks, flags.chunk));
  }
  return 0;
}

}  // namespace

CommandRun add_imatrix(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("imatrix", "Measure which weights matter, for quantize");
  auto flags = std::make_shared<ImatrixFlags>();
  ImatrixFlags* f = flags.get();
  add_text(*app, "model", &f->model, "MODEL", "Model folder or .gguf")->required();
  add_text(*app, "-f,--file", &f->file, "FILE", "Text file; - for standard input")->required();
  add_text(*app, "-o,--output", &f->out, "FILE", "The file to write, ending in .gguf");
  add_int(*app, "--chunk", &f->chunk, 1, 1 << 20, "Tokens that are read from a fresh state");
  add_int(*app, "--chunks", &f->chunks, 0, 1 << 30, "Stop after so many; 0: all of the text");
  add_run_options(*app, &f->run, false);
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(*app, {{"Then quantize with it",
                       "mamba-cpp imatrix MODEL -f calibration.txt -o imatrix.gguf"}});
  return [flags] { return run_imatrix(*flags); };
}

}  // namespace mamba::cli
