// SPDX-License-Identifier: Apache-2.0
// Opens and checks what a run needs.
#include "train/run_setup.h"

#include <unistd.h>

#include <filesystem>

#include "base/check.h"
#include "formats/hf_config.h"
#include "mamba/model.h"
#include "model/size_estimate.h"
#include "train/run_options.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

// A run must not mix with what another one left in its folder.
void check_output_folder(const TrainOptions& options) {
  const std::string& folder = options.output_dir;
  if (folder.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--output-dir] expected the folder for checkpoints and the model, got none; name one");
  }
  std::error_code ignored;
  if (fs::exists(folder, ignored) && !fs::is_directory(folder, ignored)) {
    fail(ErrorCode::kInvalidArgument,
         "[--output-dir {}] expected a folder, got a file; name another", folder);
  }
  if (options.resume) return;
  const std::vector<CheckpointEntry> found = list_checkpoints(folder);
  const bool model = fs::exists(folder + "/model.safetensors", ignored) ||
                     fs::exists(folder + "/model.safetensors.index.json", ignored);
  if (found.empty() && !model) return;
  fail(ErrorCode::kInvalidArgument,
       "[--output-dir {}] expected a folder without a run, got one with {}; go on with --resume or "
       "name another folder",
       folder, found.empty() ? "a model" : fs::path(found.back().path).filename().string());
}

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

Config find_config(const TrainOptions& options, RunSetup* setup) {
  const std::string source = setup->resumed ? setup->resume_path : options.init_from;
  if (source.empty() && options.model_config.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--model-config] expected a config file or a preset, got none; name one, or a model with "
         "--init-from");
  }
  Config config = options.model_config.empty() ? read_config(source, &setup->notices)
                                               : load_config(options.model_config, &setup->notices);
  if (setup->resumed && !options.model_config.empty() && config != read_config(source)) {
    fail(ErrorCode::kInvalidArgument,
         "[--model-config {}] expected the configuration of {}, got a different one; leave the "
         "option out or repeat that of the run",
         options.model_config, source);
  }
  config.validate();
  const int64_t needed = setup->tokenizer->vocab_size();
  if (config.vocab_size < needed) {
    fail(ErrorCode::kInvalidArgument,
         "[--model-config] expected a vocabulary of at least the {} ids of --tokenizer {}, got "
         "vocab_size {}; change one of them",
         needed, options.tokenizer, config.vocab_size);
  }
  return config;
}

double machine_bytes() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

void check_memory(double bytes, const std::string& what) {
  if (bytes <= machine_bytes()) return;
  fail(ErrorCode::kOutOfMemory,
       "[train] expected to need at most the {:.1f} GiB of this machine, got {:.1f} GiB for {}; "
       "use a smaller {}",
       machine_bytes() / kGiB, bytes / kGiB, what,
       what == "a step" ? "--batch-size or --seq-len" : "model");
}

// A plan may be made for another machine, a run may not.
void check_plan(bool plan_only, RunSetup* setup) {
  const TrainPlan& plan = setup->plan;
  const double bytes = static_cast<double>(plan.total_bytes());
  if (plan_only) {
    if (bytes <= machine_bytes()) return;
    setup->notices.push_back(fmt::format("the run needs {:.1f} GiB, this machine has {:.1f} GiB",
                                         bytes / kGiB, machine_bytes() / kGiB));
    return;
  }
  check_memory(
      static_cast<double>(plan.parameter_bytes + plan.gradient_bytes + plan.optimizer_bytes),
      "the weights");
  check_memory(bytes, "a step");
}

void make_plan(const TrainOptions& options, const Config& config, Device& device, RunSetup* setup) {
  TrainPlan& plan = setup->plan;
  const MemoryPlan memory =
      estimate_sizes(config, device, options.batch_size, options.seq_len).training;
  plan.config = config;
  plan.parameters = parameter_count(config);
  plan.parameter_bytes = memory.parameters;
  plan.gradient_bytes = memory.gradients;
  plan.optimizer_bytes = memory.optimizer;
  plan.activation_bytes = memory.activations;
  plan.scratch_bytes = memory.scratch;
  plan.tokens_per_step = options.gradient_accumulation_steps * options.batch_size * options.seq_len;
  plan.data_tokens = setup->data->size();
  plan.valid_tokens = setup->valid ? setup->valid->size() : 0;
  const WindowOrder order(setup->data->size(), options.seq_len, options.data_order, options.seed,
                          "--data");
  plan.steps_per_epoch =
      static_cast<double>(order.windows()) /
      static_cast<double>(options.gradient_accumulation_steps * options.batch_size);
  plan.first_step = setup->resumed ? setup->resumed->step : 0;
  plan.max_steps = options.max_steps;
  plan.device = device.name();
  plan.threads = device.threads();
}

}  // namespace

RunSetup prepare_run(const TrainOptions& options, bool plan_only) {
  check_train_options(options);
  RunSetup setup;
  setup.tokenizer = make_tokenizer(options.tokenizer);
  if (!plan_only) check_output_folder(options);
  find_resumed(options, plan_only, &setup);
  setup.data = std::make_unique<TokenStream>(options.data, *setup.tokenizer, "--data");
  WindowOrder(setup.data->size(), options.seq_len, options.data_order, options.seed, "--data");
  if (!options.valid.empty()) {
    setup.valid = std::make_unique<TokenStream>(options.valid, *setup.tokenizer, "--valid");
    WindowOrder(setup.valid->size(), options.seq_len, DataOrder::kSequential, 0, "--valid");
  }
  const Config config = find_config(options, &setup);
  std::unique_ptr<Device> device = Device::create({options.device, options.threads});
  setup.course = course_of(options, *setup.data, device->name());
  if (setup.resumed) {
    check_same_course(setup.resumed->options, setup.course, setup.resumed->step, setup.resume_path);
    if (setup.resumed->options["device"] != setup.course["device"]) {
      setup.notices.push_back(
          fmt::format("the run so far used {}, now {}: results will differ by rounding",
                      printable_json(setup.resumed->options["device"]), device->name()));
    }
  }
  make_plan(options, config, *device, &setup);
  check_plan(plan_only, &setup);
  if (plan_only) return setup;
  setup.network = std::make_unique<Network>(config, std::move(device),
                                            options.bf16 ? Product::kBF16 : Product::kF32);
  return setup;
}

}  // namespace mamba
