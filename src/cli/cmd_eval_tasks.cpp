// SPDX-License-Identifier: Apache-2.0
// mamba-cpp eval tasks: multiple-choice tasks and LAMBADA from JSONL, scored as
// lm-evaluation-harness scores them.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/cmd_eval.h"
#include "cli/command_line.h"
#include "cli/eval_common.h"
#include "cli/line_reader.h"
#include "mamba/evaluate.h"
#include "mamba/version.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct TasksFlags {
  RunOptions run;
  std::string model, tasks, data, output;
  int64_t limit = 0, batch_size = 16, max_length = 2048;
  bool json = false;
};

// "a,b,c" or "all" as task names, each known and given once.
std::vector<std::string> parse_tasks(const std::string& text) {
  const std::vector<std::string> known = task_names();
  if (text == "all") return known;
  std::vector<std::string> names;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const std::string name = text.substr(at, comma - at);
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail(ErrorCode::kInvalidArgument, "[--tasks] expected all or some of {}, got '{}'{}",
           fmt::join(known, ","), printable(name), flag_meant(name, known));
    }
    if (std::find(names.begin(), names.end(), name) != names.end()) {
      fail(ErrorCode::kInvalidArgument, "[--tasks] expected each task once, got '{}' twice", name);
    }
    names.push_back(name);
    at = comma + 1;
  }
  return names;
}

// One line of --output.
OrderedJson item_json(const Task& task, const TaskItemResult& result) {
  const TaskItem& item = task.items[static_cast<size_t>(result.index)];
  OrderedJson json = {
      {"task", task.name}, {"index", result.index}, {"id", item.id}, {"line", item.line}};
  for (const Likelihood& l : result.likelihoods) {
    json["log_likelihoods"].push_back(l.log_prob);
    json["is_greedy"].push_back(l.is_greedy);
  }
  if (item.gold >= 0) json["gold"] = item.gold;
  if (result.predicted >= 0) json["predicted"] = result.predicted;
  if (result.predicted_norm >= 0) json["predicted_norm"] = result.predicted_norm;
  if (result.predicted_bytes >= 0) json["predicted_bytes"] = result.predicted_bytes;
  for (const auto& [name, value] : result.scores) {
    if (name != "perplexity") json[name] = value;  // made of the log-likelihood
  }
  return json;
}

OrderedJson result_json(const TaskResult& result) {
  OrderedJson json;
  for (const TaskMetric& metric : result.metrics) {
    json[metric.name] = metric.value;
    json[metric.name + "_stderr"] = std::isnan(metric.standard_error)
                                        ? OrderedJson(nullptr)
                                        : OrderedJson(metric.standard_error);
  }
  json["items"] = result.items;
  json["total"] = result.total;
  json["truncated"] = result.truncated;
  json["partial"] = result.partial();
  return json;
}

std::string table_of(const std::vector<TaskResult>& results) {
  std::string table =
      fmt::format("{:<16}{:<12}{:>14}{:>14}{:>8}\n", "task", "metric", "value", "stderr", "items");
  for (const TaskResult& result : results) {
    for (const TaskMetric& metric : result.metrics) {
      const std::string error =
          std::isnan(metric.standard_error) ? "n/a" : fmt::format("{:.4f}", metric.standard_error);
      table += fmt::format("{:<16}{:<12}{:>14.4f}{:>14}{:>8}", result.task, metric.name,
                           metric.value, error, result.items);
      table += result.partial() ? fmt::format("  partial, of {}\n", result.total) : "\n";
    }
    if (result.metrics.empty()) {
      table += fmt::format("{:<16}{:<12}{:>14}{:>14}{:>8}  partial, of {}\n", result.task, "-",
                           "n/a", "n/a", 0, result.total);
    }
  }
  return table;
}

// Bytes of text of a task: how long it will take, more or less.
double weight_of(const Task& task) {
  size_t bytes = 1;
  for (const TaskItem& item : task.items) {
    bytes += item.pairs[0].first.size();
    for (const auto& pair : item.pairs) bytes += pair.second.size();
  }
  return static_cast<double>(bytes);
}

std::vector<TaskResult> run_all(const TasksFlags& flags, Model& model, const Tokenizer& tokenizer,
                                const std::vector<Task>& tasks, AtomicFile* output) {
  double total = 0, before = 0;
  for (const Task& task : tasks) total += weight_of(task);
  EvalProgress progress;
  std::vector<TaskResult> results;
  for (const Task& task : tasks) {
    const double weight = weight_of(task);
    TaskOptions options;
    options.likelihood.max_length = flags.max_length;
    options.likelihood.batch_size = flags.batch_size;
    options.progress = [&](int64_t done, int64_t of) {
      const double share = static_cast<double>(done) / static_cast<double>(of);
      return progress.update(fmt::format("{} {}/{}", task.name, done, of),
                             (before + share * weight) / total);
    };
    if (output != nullptr) {
      options.on_item = [&](const TaskItemResult& item) {
        output->append(json_text(item_json(task, item), -1));
      };
    }
    results.push_back(evaluate_task(model, tokenizer, task, options));
    if (results.back().truncated > 0) {
      progress.line(fmt::format("note: {}: {} of {} items were cut to their last {} tokens",
                                task.name, results.back().truncated, results.back().items,
                                flags.max_length));
    }
    if (results.back().partial()) break;
    before += weight;
  }
  return results;
}

void print(const TasksFlags& flags, const Model& model, const Tokenizer& tokenizer,
           const std::vector<TaskResult>& results, bool partial) {
  if (!flags.json) {
    write_output(table_of(results));
    return;
  }
  OrderedJson json = {
      {"version", MAMBA_VERSION},
      {"model", model_json(flags.model, model)},
      {"tokenizer", fmt::format("{:016x}", tokenizer.fingerprint())},
      {"data", flags.data},
      {"limit", flags.limit > 0 ? OrderedJson(flags.limit) : OrderedJson(nullptr)},
      {"max_length", flags.max_length},
      {"batch_size", flags.batch_size},
      {"partial", partial},
      {"results", OrderedJson::object()},
  };
  for (const TaskResult& result : results) json["results"][result.task] = result_json(result);
  write_output(json_text(json));
}

// Whether earlier items lie at --output; throws invalid_argument for anything else there.
bool has_results(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return false;
  if (std::filesystem::is_regular_file(path, ignored)) {
    try {
      LineReader lines(path);
      std::string line;
      if (!lines.next(&line)) return true;  // empty
      const Json item = parse_json(line, path);
      if (has_member(item, "task") && has_member(item, "log_likelihoods")) return true;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kBadFile) throw;
    }
  }
  fail(ErrorCode::kInvalidArgument,
       "[--output] expected a new file, or results of eval tasks to replace, got {}, which is "
       "something else; give another name",
       printable(path, 200));
}

int run_tasks(const TasksFlags& flags) {
  const bool replaces = !flags.output.empty() && has_results(flags.output);
  std::vector<Task> tasks;
  for (const std::string& name : parse_tasks(flags.tasks)) {
    tasks.push_back(load_task(name, flags.data, flags.limit));
  }
  std::optional<AtomicFile> output;
  if (!flags.output.empty()) output.emplace(flags.output);
  Model model = load_model(flags.model, flags.run, flags.batch_size);
  const std::unique_ptr<Tokenizer> tokenizer =
      require_tokenizer(flags.model, model.config(), "eval tasks");
  catch_interrupt_and_sigterm();
  const std::vector<TaskResult> results =
      run_all(flags, model, *tokenizer, tasks, output ? &*output : nullptr);
  const bool partial = results.size() < tasks.size() || results.back().partial();
  if (output && (!partial || (!replaces && output->size() > 0))) {
    output->commit();
  } else if (output) {
    fmt::print(stderr, "note: interrupted; {} {}\n", printable(flags.output, 200),
               replaces ? "stays as it was" : "is not written");
  }
  print(flags, model, *tokenizer, results, partial);
  return partial ? interrupt_exit_code() : 0;
}

}  // namespace

CommandRun add_eval_tasks(CLI::App& parent) {
  CLI::App* app =
      parent.add_subcommand("tasks", "LAMBADA, HellaSwag, ARC, ... scored as lm-eval scores them");
  auto flags = std::make_shared<TasksFlags>();
  TasksFlags* f = flags.get();
  add_text(*app, "-m,--model,--pretrained-model-name-or-path", &f->model, "FOLDER", "Model folder")
      ->required();
  add_text(*app, "--tasks", &f->tasks, "NAME,...",
           fmt::format("all, or some of {}", fmt::join(task_names(), ",")))
      ->required();
  add_text(*app, "--data", &f->data, "FOLDER", "Folder of <task>.jsonl files")->required();
  add_int(*app, "--limit", &f->limit, 1, INT64_MAX, "Only the first N items of each task")
      ->default_str("");
  add_text(*app, "-o,--output", &f->output, "FILE", "Also write one line of JSON for each item");
  add_int(*app, "--batch-size", &f->batch_size, 1, 1 << 16,
          "Items computed together; changes no result");
  add_int(*app, "--max-length", &f->max_length, 0, 1 << 24,
          "Cut contexts from the left to so many tokens; 0: never");
  add_run_options(*app, &f->run);
  add_backend(*app, &f->run);
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(*app,
               {{"The first 200 items of two tasks",
                 "mamba-cpp eval tasks -m MODEL --data tasks --tasks hellaswag,piqa --limit 200"}});
  return [flags] { return run_tasks(*flags); };
}

}  // namespace mamba::cli
