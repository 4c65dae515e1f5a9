// SPDX-License-Identifier: Apache-2.0
// Opens and checks what a run needs.
#include "train/run_setup.h"

#include <filesystem>

#include "base/check.h"
#include "base/hash.h"
#include "base/mapped_file.h"
#include "formats/hf_config.h"
#include "mamba/model.h"
#include "model/parameter_table.h"
#include "model/size_estimate.h"
#include "tokenizer/files.h"
#include "tokenizer/gguf_tokenizer.h"
#include "train/held_out.h"
#include "train/output_folder.h"
#include "train/run_options.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
constexpr int64_t kRowBytes = 3 * sizeof(int32_t);  // of a token of an update: id, target, document

// The newest whole checkpoint of the output folder, noting those that are not.
void find_newest_checkpoint(const std::string& folder, RunSetup* setup) {
  const std::vector<CheckpointEntry> found = list_checkpoints(folder);
  for (auto entry = found.rbegin(); entry != found.rend(); ++entry) {
    try {
      setup->resumed = read_checkpoint(entry->path);
      setup->resume_path = entry->path;
      return;
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kBadFile) throw;
      setup->damaged.push_back(entry->path);
      setup->notices.push_back(fmt::format("{} is damaged: {}", entry->path, e.what()));
    }
  }
  if (found.empty()) {
    fail(
        ErrorCode::kBadFile,
        "[--resume] expected a checkpoint in {}, got none; start the run without --resume, or name "
        "the checkpoint",
        folder);
  }
  fail(ErrorCode::kBadFile, "[--resume] expected a whole checkpoint in {}, got {} damaged: {}",
       folder, found.size(), setup->notices.back());
}

void find_resumed(const TrainOptions& options, bool plan_only, RunSetup* setup) {
  if (!options.resume) return;
  if (options.resume_path.empty()) {
    find_newest_checkpoint(options.output_dir, setup);
  } else {
    setup->resume_path = options.resume_path;
    setup->resumed = read_checkpoint(options.resume_path);
    const std::vector<CheckpointEntry> found = list_checkpoints(options.output_dir);
    if (!plan_only && !found.empty() && found.back().step > setup->resumed->step) {
      fail(ErrorCode::kInvalidArgument,
           "[--resume {}] expected no newer checkpoint in --output-dir, got {}; resume from that "
           "one, remove it or name another folder",
           options.resume_path, found.back().path);
    }
  }
  if (setup->resumed->step > options.max_steps) {
    fail(ErrorCode::kInvalidArgument,
         "[--max-steps] expected at least the {} steps that {} has done, got {}; ask for more",
         setup->resumed->step, setup->resume_path, options.max_steps);
  }
}

bool has_file(const std::string& folder, const char* name) {
  std::error_code ignored;
  return fs::exists(folder + "/" + name, ignored);
}

// In a model folder, or a GGUF file.
bool has_tokenizer(const std::string& folder) {
  if (is_gguf_file(folder)) return has_gguf_tokenizer(GgufFile(folder));
  return has_file(folder, "tokenizer.json") || has_file(folder, "vocab.json") || says_bytes(folder);
}

// Text that has become other ids than those of the run so far would be noise to the model.
void check_same_tokenizer(const TrainOptions& options, const RunSetup& setup) {
  const std::string now = fmt::format("{:016x}", setup.tokenizer->fingerprint());
  const std::string before = get_string(setup.resumed->options, "--tokenizer", setup.resume_path);
  if (now == before) return;
  std::string own = setup.resume_path;
  if (has_tokenizer(own)) {
    const auto tokenizer = load_tokenizer(own);
    own = tokenizer->name() == "bytes"
              ? "bytes"
              : fmt::format("the {} ids of {}", tokenizer->vocab_size(), own);
  }
  fail(ErrorCode::kInvalidArgument,
       "[--tokenizer {}] expected the tokenizer of the run so far ({}), got another one of {} ids; "
       "leave --tokenizer out, or start a new run with --init-from",
       options.tokenizer, own, setup.tokenizer->vocab_size());
}

// Name and a hash of what the template writes, whose text may be another after it was saved; null
// where the data has no conversations.
Json template_of(const ConversationEncoder& conversations) {
  if (!conversations.used()) return nullptr;
  const ChatTemplate& chat = conversations.chat_template();
  std::vector<ChatMessage> talk = {
      {"system", "S"}, {"user", "U"}, {"assistant", "A"}, {"user", "V"}, {"assistant", "B"}};
  std::string written = chat.source();
  for (int tries = 0; tries < 2; ++tries) {
    try {
      written = chat.render(talk, false);
      break;
    } catch (const Error&) {
      talk.erase(talk.begin());  // many templates know no system prompt
    }
  }
  const uint64_t hash = hash_bytes(written.data(), static_cast<int64_t>(written.size()), 0);
  return {{"name", chat.name()}, {"hash", fmt::format("{:016x}", hash)}};
}

// Other data may come from another template alone, which should be named then.
void check_same_template(const RunSetup& setup) {
  const Json& before = setup.resumed->options;
  const char* flag = "--chat-template";
  if (!has_member(before, flag) || !before[flag].is_object() || setup.course[flag].is_null() ||
      !has_member(before, "--data") || before["--data"] == setup.course["--data"] ||
      get_string(before[flag], "hash", setup.resume_path) == setup.course[flag]["hash"]) {
    return;
  }
  fail(ErrorCode::kInvalidArgument,
       "[--resume {}] expected --chat-template {} as in the run so far, got {}, which writes the "
       "conversations of --data otherwise; leave --chat-template out, or start a new run with "
       "--init-from",
       setup.resume_path, printable(get_string(before[flag], "name", setup.resume_path)),
       printable(setup.course[flag]["name"].get<std::string>()));
}

void find_tokenizer(const TrainOptions& options, RunSetup* setup) {
  TrainPlan& plan = setup->plan;
  plan.tokenizer = options.tokenizer;
  plan.tokenizer_from = "--tokenizer";
  if (options.tokenizer == "auto") {
    plan.tokenizer = "bytes";
    for (const auto& [flag, folder] :
         {std::pair{"--resume", setup->resume_path}, std::pair{"--init-from", options.init_from}}) {
      if (folder.empty() || !has_tokenizer(folder)) continue;
      plan.tokenizer = folder;
      plan.tokenizer_from = flag;
      break;
    }
  }
  setup->tokenizer = load_tokenizer(plan.tokenizer);
  setup->template_folder = tokenizer_folder(plan.tokenizer);
  if (setup->tokenizer->name() == "bytes") {
    // A folder of that tokenizer may have a template all the same.
    const std::string& own = setup->template_folder;
    if (!own.empty() && has_file(own, "chat_template.jinja")) {
      const MappedFile file(own + "/chat_template.jinja");
      setup->byte_template.assign(reinterpret_cast<const char*>(file.data()), file.size());
    }
    plan.tokenizer = "bytes";
    plan.tokenizer_from.clear();
  }
  plan.tokenizer_size = setup->tokenizer->vocab_size();
  if (setup->resumed) {
    check_same_tokenizer(options, *setup);
  } else if (options.tokenizer != "auto" && !options.init_from.empty() &&
             has_tokenizer(options.init_from) &&
             load_tokenizer(options.init_from)->fingerprint() != setup->tokenizer->fingerprint()) {
    setup->notices.push_back(fmt::format(
        "--tokenizer {} is not that of --init-from {}: ids mean something else than the model has "
        "learned; leave --tokenizer out to take the model's own",
        options.tokenizer, options.init_from));
  } else if (options.tokenizer == "auto" && !options.init_from.empty() &&
             !has_tokenizer(options.init_from) && read_config(options.init_from).vocab_size > 256) {
    setup->notices.push_back(fmt::format(
        "{} has no tokenizer that this version reads, so text is read as bytes; name its own with "
        "--tokenizer",
        options.init_from));
  }
}

int64_t wanted_vocabulary(const TrainOptions& options, const Tokenizer& tokenizer) {
  if (options.vocab_size != kVocabAuto) return options.vocab_size;
  constexpr int64_t kMultiple = 8;  // pad_vocab_size_multiple of the published models
  return (tokenizer.vocab_size() + kMultiple - 1) / kMultiple * kMultiple;
}

// --vocab-size, and a model to start from that has fewer tokens.
void set_vocabulary(const TrainOptions& options, Config* config, RunSetup* setup) {
  if (options.vocab_size != 0) {
    config->vocab_size = wanted_vocabulary(options, *setup->tokenizer);
  }
  if (options.init_from.empty()) return;
  const int64_t rows = read_config(options.init_from).vocab_size;
  if (config->vocab_size < rows) {
    fail(ErrorCode::kInvalidArgument,
         "[--vocab-size] expected at least the {} tokens of --init-from {}, got {}; a vocabulary "
         "can only grow",
         rows, options.init_from, config->vocab_size);
  }
  if (config->vocab_size > rows) setup->plan.grown_from = rows;
}

Config find_config(const TrainOptions& options, RunSetup* setup) {
  const std::string source = setup->resumed ? setup->resume_path : options.init_from;
  if (source.empty() && options.model_config.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--model-config] expected a config file or a preset, got none; name one, or a model with "
         "--init-from");
  }
  Config config = options.model_config.empty() ? read_config(source, &setup->notices)
                                               : load_config(options.model_config, &setup->notices);
  if (!setup->resumed) set_vocabulary(options, &config, setup);
  if (setup->resumed && !options.model_config.empty() && options.vocab_size != 0) {
    config.vocab_size = wanted_vocabulary(options, *setup->tokenizer);
  }
  if (setup->resumed && !options.model_config.empty() && config != read_config(source)) {
    fail(ErrorCode::kInvalidArgument,
         "[--model-config {}] expected the configuration of {}, got a different one; leave the "
         "option out or repeat that of the run",
         options.model_config, source);
  }
  if (setup->resumed && options.vocab_size != 0) {
    const int64_t wanted = wanted_vocabulary(options, *setup->tokenizer);
    if (wanted != config.vocab_size) {
      fail(ErrorCode::kInvalidArgument,
           "[--vocab-size] expected the {} of the run so far, got {}; repeat the options of the "
           "run",
           config.vocab_size, wanted);
    }
  }
  config.validate();
  const int64_t needed = setup->tokenizer->vocab_size();
  if (config.vocab_size < needed) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected a vocabulary of at least the {} ids of --tokenizer {}, got vocab_size {}; "
         "give --vocab-size auto, or another tokenizer",
         options.init_from.empty() ? "--model-config" : "--init-from", needed,
         setup->plan.tokenizer, config.vocab_size);
  }
  return config;
}

// A plan may be made for another machine, a run may not.
void check_plan(const DeviceMemory& memory, bool plan_only, RunSetup* setup) {
  const TrainPlan& plan = setup->plan;
  const double bytes = static_cast<double>(plan.total_bytes()), there = memory.free_bytes();
  if (plan_only) {
    if (bytes <= there) return;
    setup->notices.push_back(fmt::format("the run needs {:.1f} GiB, this {} has {:.1f} GiB",
                                         bytes / kGiB, memory.on_host() ? "machine" : "device",
                                         there / kGiB));
    return;
  }
  expect_memory(
      memory,
      static_cast<double>(plan.parameter_bytes + plan.gradient_bytes + plan.optimizer_bytes),
      "train", "the weights", "use a smaller model");
  expect_memory(memory, bytes, "train", "a step",
                "use a smaller --batch-size or --seq-len, or more --bptt-segments");
}

int64_t trained_parameters(const Config& config, const std::vector<std::string>& freeze) {
  const ParamTable table = parameter_table(config);
  const TrainedLayout trained = layout_trained(table, frozen_by(table, freeze));
  int64_t sum = 0;
  for (size_t i = 0; i < table.specs().size(); ++i) {
    if (trained.offsets[i] >= 0) sum += table.specs()[i].count;
  }
  return sum;
}

void make_plan(const TrainOptions& options, const Config& config, Device& device, RunSetup* setup) {
  TrainPlan& plan = setup->plan;
  const MemoryPlan memory =
      estimate_sizes(config, device, options.bf16 ? Product::kBF16 : Product::kF32,
                     options.batch_size, options.seq_len, step_options(options), options.freeze)
          .training;
  plan.config = config;
  plan.parameters = parameter_count(config);
  plan.trained_parameters = trained_parameters(config, options.freeze);
  plan.parameter_bytes = memory.parameters;
  plan.gradient_bytes = memory.gradients;
  plan.optimizer_bytes = memory.optimizer;
  plan.activation_bytes = memory.activations;
  plan.scratch_bytes = memory.scratch;
  plan.tokens_per_step = options.gradient_accumulation_steps * options.batch_size * options.seq_len;
  plan.scratch_bytes += kRowBytes * plan.tokens_per_step;
  plan.sources = setup->data->describe();
  for (const TrainSource& source : plan.sources) plan.padding += source.weight * source.padding;
  plan.data_tokens = setup->data->tokens();
  plan.valid_tokens = setup->valid ? setup->valid->tokens() : 0;
  plan.steps_per_epoch =
      static_cast<double>(setup->data->sequences()) /
      static_cast<double>(options.gradient_accumulation_steps * options.batch_size);
  plan.first_step = setup->resumed ? setup->resumed->step : 0;
  plan.max_steps = options.max_steps;
  plan.device = device.name();
  plan.threads = device.threads();
}

void open_data(const TrainOptions& options, RunSetup* setup) {
  DataOptions data{
      options.seq_len,
      options.packing,
      options.data_order,
      options.seed,
      {options.data_dtype, options.threads, setup->conversations.get(), &setup->notices}};
  setup->data = std::make_unique<DataSet>(options.data, options.data_weights, *setup->tokenizer,
                                          "--data", data);
  if (options.valid.empty()) return;
  data.order = DataOrder::kSequential;
  setup->valid = std::make_unique<DataSet>(options.valid, std::vector<double>(), *setup->tokenizer,
                                           "--valid", data);
  HeldOut::check(options, *setup->valid);
}

}  // namespace

std::string template_text(const TrainOptions& options, const RunSetup& setup) {
  if (options.chat_template.empty()) return setup.byte_template;
  return setup.conversations->chat_template().source();
}

StepOptions step_options(const TrainOptions& options) {
  return {options.bptt_segments, options.recompute};
}

RunSetup prepare_run(const TrainOptions& options, bool plan_only) {
  check_train_options(options);
  RunSetup setup;
  if (!plan_only) check_output_folder(options);
  find_resumed(options, plan_only, &setup);
  find_tokenizer(options, &setup);
  setup.conversations = std::make_unique<ConversationEncoder>(
      *setup.tokenizer, setup.template_folder, options.chat_template);
  if (!plan_only) check_output_files(options, setup.plan.tokenizer, template_text(options, setup));
  open_data(options, &setup);
  const Config config = find_config(options, &setup);
  std::unique_ptr<Device> device = Device::create({options.device, options.threads});
  setup.course = course_of(options, *setup.tokenizer, *setup.data, device->name());
  setup.course["--chat-template"] = template_of(*setup.conversations);
  if (setup.resumed) {
    check_same_template(setup);
    check_same_course(setup.resumed->options, setup.course, setup.resumed->step, setup.resume_path);
    if (setup.resumed->options["device"] != setup.course["device"]) {
      setup.notices.push_back(
          fmt::format("the run so far used {}, now {}: results will differ by rounding",
                      printable_json(setup.resumed->options["device"]), device->name()));
    }
  }
  make_plan(options, config, *device, &setup);
  check_plan(device->memory(), plan_only, &setup);
  if (plan_only) return setup;
  setup.network = std::make_unique<Network>(config, std::move(device),
                                            options.bf16 ? Product::kBF16 : Product::kF32);
  setup.network->freeze(frozen_by(setup.network->table(), options.freeze));
  return setup;
}

}  // namespace mamba
