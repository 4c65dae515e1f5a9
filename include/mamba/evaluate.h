// SPDX-License-Identifier: Apache-2.0
// How well a model predicts: perplexity of a text, divergence of one model from another over a
// text, log-likelihoods of continuations, and multiple-choice tasks scored from them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mamba/model.h"
#include "mamba/tokenizer.h"

namespace mamba {

// Fills at most `count` ids and, for each, the bytes of text it stands for; returns how many, 0 at
// the end of the text.
using TokenSource = std::function<int64_t(int32_t* ids, int32_t* bytes, int64_t count)>;

struct PerplexityOptions {
  // Windows of `window` tokens, each from a fresh state, `stride` tokens apart. Every target that
  // an earlier window has scored is context only; the first token of a window is never a target. So
  // stride == window scores window - 1 targets of each, and a smaller stride scores every token but
  // the first of the text exactly once.
  int64_t window = 1024;  // >= 2
  int64_t stride = 512;   // 1..window
  // Leave out a last window that the text does not fill.
  bool drop_tail = false;
  int64_t max_windows = 0;  // stop after so many; 0: all
  // Instead: one pass with the state carried from the first token to the last.
  bool carry_state = false;
  int64_t chunk =
      512;  // tokens a call when the state is carried; changes results by rounding alone
  // Called after each window or chunk with the targets scored so far; false stops with `cancelled`.
  std::function<bool(int64_t scored)> progress;
};

struct PerplexityResult {
  int64_t tokens = 0;         // read
  int64_t scored = 0;         // targets scored
  int64_t bytes = 0;          // of the scored targets
  double nll_sum = 0;         // nats
  double nll_mean = 0;        // per scored target
  double standard_error = 0;  // of nll_mean, targets taken as independent
  double perplexity = 0;      // exp(nll_mean)
  double bits_per_byte = 0;   // nll_sum / ln 2 / bytes
};

// Reads the source once, at memory that does not grow with the text. Throws invalid_argument for
// options out of range, bad_file for a text of fewer than two tokens.
PerplexityResult evaluate_perplexity(Model& model, const TokenSource& source,
                                     const PerplexityOptions& options = {});

// How far `model` is from `base` over the scored targets of a text. At each target the divergence
// is KL(base || model) = sum over the vocabulary of p (log p - log q), in nats, p of the base.
struct DivergenceResult {
  int64_t tokens = 0;         // read
  int64_t scored = 0;         // targets scored
  double kl_mean = 0;         // nats per target
  double kl_error = 0;        // standard error of kl_mean, targets taken as independent
  double kl_min = 0;          // smallest
  double kl_median = 0;       // percentiles interpolate linearly between the two nearest values
  double kl_90 = 0;           // percentiles
  double kl_95 = 0;           //
  double kl_99 = 0;           //
  double kl_999 = 0;          // 99.9
  double kl_max = 0;          // largest
  double same_top = 0;        // share of targets at which both find the same token most likely
  double same_top_error = 0;  // its standard error
  double nll_base = 0;        // mean -log p of the targets, base
  double nll_model = 0;       // mean -log q of the targets
  double nll_difference_error = 0;   // standard error of nll_model - nll_base, paired
  double perplexity_base = 0;        // exp(nll_base)
  double perplexity_model = 0;       // exp(nll_model)
  double target_difference_rms = 0;  // root of the mean of (q - p)^2 of the targets
};

// Both models read the source at once, over the same windows as evaluate_perplexity; memory grows
// with the text by the 4 bytes a target that exact percentiles need. Throws invalid_argument for
// options out of range or different vocabularies, bad_file for a text of fewer than two tokens.
DivergenceResult evaluate_divergence(Model& base, Model& model, const TokenSource& source,
                                     const PerplexityOptions& options = {});

// One question to a model: how likely are the tokens `continuation` after the tokens `context`?
struct LikelihoodRequest {
  std::vector<int32_t> context;       // at least one token
  std::vector<int32_t> continuation;  // at least one token
};

struct Likelihood {
  double log_prob = 0;     // nats, summed over the continuation
  bool is_greedy = false;  // each of its tokens is the most likely one at its place
};

struct LikelihoodOptions {
  // A context loses tokens from its left until context and continuation have max_length + 1 tokens
  // at most (the last one is never an input). 0: no limit; else no continuation may be longer.
  int64_t max_length = 2048;
  int64_t batch_size = 16;     // groups computed together, >= 1; changes no bit of any result
  bool share_prefixes = true;  // false computes a prefix for each request again; the same bits
  // Called between calls of the model with the groups finished so far; false stops.
  std::function<bool(int64_t done)> progress;
};

// Scores every request of every group. What the requests of one group have in common at their start
// is computed once, and the state forked. Throws invalid_argument for empty or too long requests
// and ids outside the vocabulary, bad_file where the model answers with NaN, and cancelled where
// `progress` said so.
std::vector<std::vector<Likelihood>> loglikelihoods(
    Model& model, const std::vector<std::vector<LikelihoodRequest>>& groups,
    const LikelihoodOptions& options = {});
// The same for one request.
Likelihood loglikelihood(Model& model, const std::vector<int32_t>& context,
                         const std::vector<int32_t>& continuation);

// Ids of a pair of texts by the rule of lm-evaluation-harness: white space at the end of the
// context moves to the continuation; the context is encoded alone (with what the tokenizer puts
// around texts), both are encoded together, and the continuation is what follows as many ids as the
// context has. An empty context becomes `prefix_id` (-1: there is none, and the continuation's
// first token becomes the context). Throws invalid_argument where nothing is left to score.
LikelihoodRequest encode_pair(const Tokenizer& tokenizer, std::string_view context,
                              std::string_view continuation, int32_t prefix_id = -1);

// One item of a task: texts to score against each other (or one, in LAMBADA).
struct TaskItem {
  std::string id;    // as the file has it, else its position
  int64_t line = 0;  // in the file, from 1
  std::vector<std::pair<std::string, std::string>>
      pairs;                         // context and continuation of each choice
  std::vector<std::string> choices;  // texts whose lengths acc_norm divides by
  int64_t gold = -1;                 // the right choice; -1 with one pair alone
};

// A task with its items in memory.
struct Task {
  std::string name;
  std::string path;                // of its file
  bool length_normalised = false;  // acc_norm and acc_bytes are metrics of it
  std::vector<TaskItem> items;
};

// The tasks that load_task knows, in the order of tables.
std::vector<std::string> task_names();
// Reads <folder>/<name>.jsonl, at most `limit` items (0: all). Throws invalid_argument for an
// unknown name, bad_file naming file and line for whatever is not as docs/evaluation.md says.
Task load_task(const std::string& name, const std::string& folder, int64_t limit = 0);

struct TaskMetric {
  std::string name;           // "acc", "acc_norm", "acc_bytes", "perplexity"
  double value = 0;           //
  double standard_error = 0;  // NaN with fewer than two items
};

struct TaskItemResult {
  int64_t index = 0;  // of the item in its task
  std::vector<Likelihood> likelihoods;
  // The choices of acc, acc_norm and acc_bytes; -1 where the task does not have them.
  int64_t predicted = -1, predicted_norm = -1, predicted_bytes = -1;
  std::vector<std::pair<std::string, double>> scores;  // what the metrics are made of
};

struct TaskOptions {
  LikelihoodOptions likelihood;  // its progress is not called
  // Called as items are finished; false ends the task with what is done.
  std::function<bool(int64_t done, int64_t total)> progress;
  std::function<void(const TaskItemResult& item)> on_item;  // in the order of the file
};

struct TaskResult {
  std::string task;
  int64_t items = 0;                // scored
  int64_t total = 0;                // asked for
  int64_t truncated = 0;            // items of which a context was cut to max_length
  std::vector<TaskMetric> metrics;  // none without items
  bool partial() const { return items < total; }
};

// Scores a task as lm-evaluation-harness does (metrics, ties and standard errors).
TaskResult evaluate_task(Model& model, const Tokenizer& tokenizer, const Task& task,
                         const TaskOptions& options = {});

}  // namespace mamba
