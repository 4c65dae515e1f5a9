// SPDX-License-Identifier: Apache-2.0
// mamba-cpp tune: measures which kernels are the fastest on this GPU, for later runs.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "bench/tune.h"
#include "cli/args.h"
#include "cli/bench_speed.h"
#include "cli/commands.h"
#include "device/choice_file.h"
#include "formats/hf_config.h"

namespace mamba::cli {
namespace {

struct TuneFlags {
  std::vector<std::string> models;
  std::string dtypes = "bf16", device = "cuda", output, form = "json", state_dtype = "f32";
  int64_t repetitions = 5;
  bool json = false, quiet = false;
};

constexpr int64_t kMostSource = int64_t{16} << 20;  // bytes
constexpr const char* kUsual[] = {"mamba-130m", "mamba2-130m", "mamba-2.8b", "mamba2-2.7b"};

std::string place_of(const TuneFlags& flags, const Card& card) {
  if (!flags.output.empty()) return flags.output;
  const std::string folder = user_cache_folder();
  if (folder.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[tune] expected XDG_CACHE_HOME or HOME to say where the file goes, got neither; name a "
         "file by -o");
  }
  return (std::filesystem::path(folder) / choice_file_name(card)).string();
}

// What is there already, for classes that this run does not measure.
std::vector<ChoiceRow> rows_before(const std::string& path, const Card& card) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return {};
  try {
    return read_choice_file(path, card).rows;
  } catch (const Error& error) {
    std::fprintf(stderr, "warning: %s; it is replaced\n", error.what());
    return {};
  }
}

ModelOptions options_of(const TuneFlags& flags, const std::string& dtype) {
  RunOptions run;
  run.device = flags.device;
  run.dtype = dtype;
  run.state_dtype = flags.state_dtype;
  ModelOptions options = model_options(run);
  options.choices_folder.clear();  // what was measured before must not decide now
  return options;
}

std::vector<ChoiceRow> measured(const TuneFlags& flags, const std::vector<Config>& configs,
                                const std::vector<std::string>& types) {
  TuneOptions tuning;
  tuning.rounds = flags.repetitions;
  tuning.interrupted = [] { return interrupted(); };
  if (!flags.quiet) {
    tuning.on_progress = [](const std::string& line) { fmt::print(stderr, "tune: {}\n", line); };
  }
  std::vector<ChoiceRow> rows;
  for (const std::string& type : types) {
    for (const Config& config : configs) {
      const std::vector<ChoiceRow> more = tune(config, options_of(flags, type), rows, tuning);
      rows.insert(rows.end(), more.begin(), more.end());
    }
  }
  return rows;
}

void write_rows(const TuneFlags& flags, const std::string& path, const ChoiceFile& file) {
  if (flags.form == "source") return write_file_atomic(path, to_source(file));
  if (flags.output.empty()) {
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  }
  write_file_atomic(path, to_json_text(file));
}

int run_tune(const TuneFlags& flags) {
  const std::vector<std::string> types = dtype_list(flags.dtypes, weight_dtypes());
  std::vector<Config> configs;
  if (flags.models.empty()) {
    for (const char* name : kUsual) configs.push_back(preset_config(name));
  }
  for (const std::string& model : flags.models) configs.push_back(load_config(model));
  ChoiceFile file;
  {
    const std::unique_ptr<Device> device = Device::create({flags.device});
    expect_tunable(*device);
    file.hardware = device->hardware();
    file.card = device->card();
  }
  const bool source = flags.form == "source";
  const std::string path = place_of(flags, file.card);
  if (!flags.output.empty()) {
    expect_replaceable("--output", path, "an earlier file of tune", [&] {
      if (source) return read_input(path, kMostSource).find("CardRows") != std::string::npos;
      return !read_choice_file(path, file.card).hardware.empty();
    });
  }
  catch_interrupt();
  const std::vector<ChoiceRow> fresh = measured(flags, configs, types);
  release_interrupt();
  file.rows = source ? fresh : merged(fresh, rows_before(path, file.card));
  write_rows(flags, path, file);
  if (flags.json) {
    const nlohmann::ordered_json json = {{"file", path},
                                         {"hardware", file.hardware},
                                         {"measured", fresh.size()},
                                         {"rows", file.rows.size()}};
    write_output(json_text(json));
  } else {
    write_output(fmt::format("{}: {} classes measured on {}, {} in the file\n", path, fresh.size(),
                             file.hardware, file.rows.size()));
  }
  return 0;
}

}  // namespace

CommandRun add_tune(CLI::App& parent) {
  CLI::App* app =
      parent.add_subcommand("tune", "Measure which kernels are the fastest on this GPU");
  auto flags = std::make_shared<TuneFlags>();
  TuneFlags* f = flags.get();
  app->add_option("models", f->models,
                  "Models, configurations or presets to measure the shapes of; by default four "
                  "presets of 130M to 2.8B")
      ->type_name("MODEL");
  add_list(*app, "--dtype", &f->dtypes, "TYPE[,TYPE]", "Types of their matrices")
      ->default_str(f->dtypes);
  add_choice(*app, "--state-dtype", &f->state_dtype, {"f32", "bf16"},
             "Type of their recurrent states");
  add_device(*app, &f->device);
  app->get_option("--device")->default_str(f->device);
  add_int(*app, "--repetitions", &f->repetitions, 1, 1000, "Rounds over all ways of a shape");
  add_text(*app, "-o,--output", &f->output, "FILE",
           "The file to write; by default where later runs look for it");
  add_choice(*app, "--to", &f->form, {"json", "source"},
             "Form of the file; source is what the program itself is built with")
      ->needs(app->get_option("--output"));
  app->add_flag("-q,--quiet", f->quiet, "No line for every shape on standard error");
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(*app, {{"Once for a model that will run often",
                       "mamba-cpp tune mamba-130m --dtype bf16,q8_0"}});
  return [flags] { return run_tune(*flags); };
}

}  // namespace mamba::cli
