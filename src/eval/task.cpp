// SPDX-License-Identifier: Apache-2.0
// Scores the items of a task from log-likelihoods and sums them up.
#include <algorithm>
#include <cstddef>

#include "base/check.h"
#include "device/device.h"
#include "eval/task_metrics.h"
#include "mamba/evaluate.h"
#include "model/network.h"

namespace mamba {
namespace {

// Batches that are sorted by length together: more waste less padding, fewer show results sooner.
constexpr int64_t kBatchesTogether = 4;

// Characters of valid UTF-8: what Python's len() counts.
int64_t count_characters(const std::string& text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

// The first of the largest log-likelihoods, each divided by its length.
int64_t best_choice(const std::vector<Likelihood>& likelihoods,
                    const std::vector<int64_t>& lengths) {
  int64_t best = 0;
  double most = 0;
  for (size_t i = 0; i < likelihoods.size(); ++i) {
    const double value = likelihoods[i].log_prob / static_cast<double>(lengths[i]);
    if (i > 0 && !(value > most)) continue;
    best = static_cast<int64_t>(i);
    most = value;
  }
  return best;
}

TaskItemResult score_item(const Task& task, int64_t index, std::vector<Likelihood> likelihoods) {
  const TaskItem& item = task.items[static_cast<size_t>(index)];
  TaskItemResult result;
  result.index = index;
  result.likelihoods = std::move(likelihoods);
  if (item.gold < 0) {
    result.scores = {{"perplexity", result.likelihoods[0].log_prob},
                     {"acc", result.likelihoods[0].is_greedy ? 1 : 0}};
    return result;
  }
  std::vector<int64_t> ones, characters, bytes;
  for (const std::string& choice : item.choices) {
    ones.push_back(1);
    characters.push_back(count_characters(choice));
    bytes.push_back(static_cast<int64_t>(choice.size()));
  }
  result.predicted = best_choice(result.likelihoods, ones);
  result.scores = {{"acc", result.predicted == item.gold ? 1 : 0}};
  if (!task.length_normalised) return result;
  result.predicted_norm = best_choice(result.likelihoods, characters);
  result.predicted_bytes = best_choice(result.likelihoods, bytes);
  result.scores.emplace_back("acc_norm", result.predicted_norm == item.gold ? 1 : 0);
  result.scores.emplace_back("acc_bytes", result.predicted_bytes == item.gold ? 1 : 0);
  return result;
}

// The values of each metric in the order of the items.
class Metrics {
 public:
  void add(const TaskItemResult& item) {
    for (size_t i = 0; i < item.scores.size(); ++i) {
      if (i == columns_.size()) columns_.push_back({item.scores[i].first, {}});
      columns_[i].second.push_back(item.scores[i].second);
    }
  }
  std::vector<TaskMetric> finish(int threads) const {
    std::vector<TaskMetric> metrics;
    for (const auto& [name, values] : columns_) {
      metrics.push_back(name == "perplexity" ? perplexity_metric(values, threads)
                                             : mean_metric(name, values));
    }
    return metrics;
  }

 private:
  std::vector<std::pair<std::string, std::vector<double>>> columns_;
};

// What stands before a text that is empty: the token that begins a text, else the one that ends it.
int32_t prefix_token(const Tokenizer& tokenizer, const Config& config) {
  const int64_t candidates[] = {tokenizer.bos_id(), tokenizer.eos_id(), config.bos_token_id,
                                config.eos_token_id};
  for (const int64_t id : candidates) {
    if (id >= 0) return static_cast<int32_t>(id);
  }
  return -1;
}

class TaskRun {
 public:
  TaskRun(Model& model, const Tokenizer& tokenizer, const Task& task, const TaskOptions& options)
      : model_(model),
        tokenizer_(tokenizer),
        task_(task),
        options_(options),
        prefix_(prefix_token(tokenizer, model.config())) {
    result_.task = task.name;
    result_.total = std::ssize(task.items);
  }

  TaskResult run() {
    // All at once, so that an item that cannot be scored ends the run before it has cost time.
    for (const TaskItem& item : task_.items) groups_.push_back(encode(item));
    const int64_t together = kBatchesTogether * options_.likelihood.batch_size;
    while (result_.partial() && go_on(0)) {
      if (!run_items(std::min(result_.total, result_.items + together))) break;
    }
    if (result_.items > 0) {
      result_.metrics = metrics_.finish(model_.network().device().threads());
    }
    return result_;
  }

 private:
  bool go_on(int64_t more) const {
    return !options_.progress || options_.progress(result_.items + more, result_.total);
  }

  // Items up to `end`; false when the caller stopped it in between, and none of them counts.
  bool run_items(int64_t end) {
    const std::vector<std::vector<LikelihoodRequest>> groups(groups_.begin() + result_.items,
                                                             groups_.begin() + end);
    LikelihoodOptions options = options_.likelihood;
    options.progress = [this](int64_t done) { return go_on(done); };
    std::vector<std::vector<Likelihood>> likelihoods;
    try {
      likelihoods = loglikelihoods(model_, groups, options);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kCancelled) throw;
      return false;
    }
    for (std::vector<Likelihood>& item : likelihoods) {
      const TaskItemResult scored = score_item(task_, result_.items++, std::move(item));
      metrics_.add(scored);
      if (is_cut(groups_[static_cast<size_t>(scored.index)])) ++result_.truncated;
      if (options_.on_item) options_.on_item(scored);
    }
    return true;
  }

  std::vector<LikelihoodRequest> encode(const TaskItem& item) const {
    std::vector<LikelihoodRequest> group;
    try {
      for (const auto& [context, continuation] : item.pairs) {
        group.push_back(encode_pair(tokenizer_, context, continuation, prefix_));
      }
    } catch (const Error& error) {
      fail(error.code(), "{} ({}, line {})", error.what(), task_.path, item.line);
    }
    const int64_t most = options_.likelihood.max_length;
    for (const LikelihoodRequest& request : group) {
      const int64_t length = std::ssize(request.continuation);
      if (most == 0 || length <= most) continue;
      fail(ErrorCode::kInvalidArgument,
           "[eval tasks] expected choices of at most {} tokens, got one of {} ({}, line {}); allow "
           "a larger maximum length",
           most, length, task_.path, item.line);
    }
    return group;
  }

  bool is_cut(const std::vector<LikelihoodRequest>& group) const {
    const int64_t most = options_.likelihood.max_length;
    return std::any_of(group.begin(), group.end(), [most](const LikelihoodRequest& r) {
      return most > 0 && std::ssize(r.context) + std::ssize(r.continuation) > most + 1;
    });
  }

  Model& model_;
  const Tokenizer& tokenizer_;
  const Task& task_;
  const TaskOptions& options_;
  int32_t prefix_;
  std::vector<std::vector<LikelihoodRequest>> groups_;  // of each item
  TaskResult result_;
  Metrics metrics_;
};

}  // namespace

TaskResult evaluate_task(Model& model, const Tokenizer& tokenizer, const Task& task,
                         const TaskOptions& options) {
  if (tokenizer.vocab_size() > model.config().vocab_size) {
    fail(ErrorCode::kInvalidArgument,
         "[eval tasks] expected a tokenizer of at most {} ids (the model's vocabulary), got {}; "
         "use the model's own tokenizer",
         model.config().vocab_size, tokenizer.vocab_size());
  }
  return TaskRun(model, tokenizer, task, options).run();
}

}  // namespace mamba
