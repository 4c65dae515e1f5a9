// SPDX-License-Identifier: Apache-2.0
// Log-likelihoods of continuations: what the requests of a group share at their start runs once,
// its state is forked, and the rest of every request runs in batches. Pieces are cut by the group's
// own tokens alone, so neither the batch nor the sharing changes a bit.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "base/check.h"
#include "device/device.h"
#include "eval/log_softmax.h"
#include "mamba/evaluate.h"
#include "model/finite.h"
#include "model/network.h"

namespace mamba {
namespace {

constexpr int64_t kPrefixChunk = 256;  // tokens of a prefix a call; full tiles of the products
constexpr int64_t kBranchChunk = 64;   // tokens behind it a call: bounds the logits of one row
constexpr int64_t kCallTokens = 2048;  // of all rows of a call: bounds activations
constexpr int64_t kLogitElements = int64_t{16} << 20;  // of a call: 64 MiB

// One request as a run of tokens of which those from `scored` on are the continuation.
struct Sequence {
  std::vector<int32_t> tokens;
  int64_t scored = 0;
  Likelihood* out = nullptr;

  int64_t inputs() const { return static_cast<int64_t>(tokens.size()) - 1; }
};

// Sequences that share their first `prefix` tokens, none of which predicts a scored one.
struct Branching {
  int64_t prefix = 0;
  std::vector<const Sequence*> sequences;
};

// One row of the calls behind the prefixes.
struct Branch {
  const Sequence* sequence = nullptr;
  int64_t from = 0;       // the first input
  int64_t state_row = 0;  // of its prefix
  int64_t length() const { return sequence->inputs() - from; }
};

Sequence make_sequence(const LikelihoodRequest& request, int64_t max_length, int64_t vocab,
                       Likelihood* out) {
  const int64_t context = static_cast<int64_t>(request.context.size());
  const int64_t continuation = static_cast<int64_t>(request.continuation.size());
  if (context == 0 || continuation == 0 || (max_length > 0 && continuation > max_length)) {
    fail(ErrorCode::kInvalidArgument,
         "[loglikelihood] expected a context of at least one token and a continuation of 1..{}, "
         "got {} and {}",
         max_length > 0 ? max_length : INT32_MAX, context, continuation);
  }
  const int64_t total = context + continuation;
  const int64_t cut = max_length > 0 ? std::max<int64_t>(0, total - (max_length + 1)) : 0;
  Sequence s;
  s.tokens.assign(request.context.begin() + std::min(cut, context), request.context.end());
  s.scored = static_cast<int64_t>(s.tokens.size());
  s.tokens.insert(s.tokens.end(), request.continuation.begin(), request.continuation.end());
  s.out = out;
  for (const int32_t id : s.tokens) {
    if (id >= 0 && id < vocab) continue;
    fail(ErrorCode::kInvalidArgument,
         "[loglikelihood] expected ids in 0..{} (the model's vocabulary), got {}", vocab - 1, id);
  }
  return s;
}

// How many tokens the sequences have in common, leaving each the input that predicts its first
// scored token.
int64_t shared_prefix(const std::vector<Sequence>& sequences) {
  const std::vector<int32_t>& first = sequences[0].tokens;
  int64_t shared = sequences[0].scored - 1;
  for (const Sequence& s : sequences) {
    shared = std::min(shared, s.scored - 1);
    const auto end = first.begin() + shared;
    shared = std::mismatch(first.begin(), end, s.tokens.begin()).first - first.begin();
  }
  return shared;
}

class Scorer {
 public:
  Scorer(Model& model, const LikelihoodOptions& options)
      : model_(model), options_(options), vocab_(model.config().vocab_size) {}

  // All the branchings of one batch.
  void run(std::vector<Branching>& batch) {
    // Long ones first: rows of a call then need little padding, and those that go on are in front.
    std::stable_sort(batch.begin(), batch.end(),
                     [](const Branching& a, const Branching& b) { return a.prefix > b.prefix; });
    State states = model_.new_state(static_cast<int64_t>(batch.size()));
    run_prefixes(batch, states);
    std::vector<Branch> branches;
    for (size_t row = 0; row < batch.size(); ++row) {
      for (const Sequence* s : batch[row].sequences) {
        branches.push_back({s, batch[row].prefix, static_cast<int64_t>(row)});
      }
    }
    std::stable_sort(branches.begin(), branches.end(),
                     [](const Branch& a, const Branch& b) { return a.length() > b.length(); });
    for (size_t first = 0; first < branches.size();) {
      const int64_t length = std::min(branches[first].length(), kBranchChunk);
      const int64_t rows =
          std::max<int64_t>(1, std::min(kCallTokens / length, kLogitElements / (length * vocab_)));
      const size_t end = std::min(branches.size(), first + static_cast<size_t>(rows));
      run_branches({branches.begin() + static_cast<ptrdiff_t>(first),
                    branches.begin() + static_cast<ptrdiff_t>(end)},
                   states);
      first = end;
    }
  }

  void set_done(int64_t groups) { done_ = groups; }
  void check_stop() const {
    if (!options_.progress || options_.progress(done_)) return;
    fail(ErrorCode::kCancelled, "[loglikelihood] stopped after {} groups", done_);
  }

 private:
  // states row i: after the prefix of batch[i], whose prefixes do not grow with i.
  void run_prefixes(const std::vector<Branching>& batch, State& states) {
    for (int64_t at = 0; at < batch[0].prefix; at += kPrefixChunk) {
      const int64_t length = std::min(kPrefixChunk, batch[0].prefix - at);
      const int64_t rows = std::max<int64_t>(1, kCallTokens / length);
      for (int64_t first = 0; first < std::ssize(batch); first += rows) {
        int64_t end = first;
        while (end < std::min(first + rows, std::ssize(batch)) &&
               batch[static_cast<size_t>(end)].prefix > at) {
          ++end;
        }
        if (end == first) break;
        check_stop();
        State part = model_.new_state(end - first);
        tokens_.assign(static_cast<size_t>((end - first) * length), -1);  // (rows, length)
        for (int64_t row = first; row < end; ++row) {
          const Branching& b = batch[static_cast<size_t>(row)];
          const int64_t count = std::min(length, b.prefix - at);
          std::copy_n(b.sequences[0]->tokens.begin() + at, count,
                      tokens_.begin() + (row - first) * length);
          part.assign(row - first, states, row);
        }
        model_.forward(tokens_.data(), length, part, Logits::kNone, nullptr);
        for (int64_t row = first; row < end; ++row) states.assign(row, part, row - first);
      }
    }
  }

  // branches: longest first, as many as fit into a call.
  void run_branches(const std::vector<Branch>& branches, const State& states) {
    const int64_t rows = std::ssize(branches);
    State state = model_.new_state(rows);
    for (int64_t row = 0; row < rows; ++row) {
      const Branch& b = branches[static_cast<size_t>(row)];
      state.assign(row, states, b.state_row);
      *b.sequence->out = {0, true};
    }
    for (int64_t at = 0; at < branches[0].length(); at += kBranchChunk) {
      check_stop();
      const int64_t length = std::min(kBranchChunk, branches[0].length() - at);
      tokens_.assign(static_cast<size_t>(rows * length), -1);  // (rows, length)
      for (int64_t row = 0; row < rows; ++row) {
        const Branch& b = branches[static_cast<size_t>(row)];
        const int64_t count = std::clamp<int64_t>(b.length() - at, 0, length);
        if (count == 0) continue;
        std::copy_n(b.sequence->tokens.begin() + b.from + at, count,
                    tokens_.begin() + row * length);
      }
      logits_.resize(static_cast<size_t>(rows * length * vocab_));  // (rows, length, V)
      model_.forward(tokens_.data(), length, state, Logits::kAll, logits_.data());
      add_scores(branches, at, length);
    }
  }

  void add_scores(const std::vector<Branch>& branches, int64_t at, int64_t length) {
    const int64_t count = std::ssize(branches) * length;
    scores_.resize(static_cast<size_t>(count));         // (rows, length)
    const auto target_of = [&](int64_t i) -> int64_t {  // its position, -1 where none is scored
      const Branch& b = branches[static_cast<size_t>(i / length)];
      const int64_t target = b.from + at + i % length + 1;
      return target >= b.sequence->scored && target <= b.sequence->inputs() ? target : -1;
    };
    const int threads = model_.network().device().threads();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t target = target_of(i);
      if (target < 0) continue;
      const Branch& b = branches[static_cast<size_t>(i / length)];
      const int32_t id = b.sequence->tokens[static_cast<size_t>(target)];
      const float* logits = logits_.data() + i * vocab_;
      const RowOfLogits row = summarise_logits(logits, vocab_);
      scores_[static_cast<size_t>(i)] = {logits[id] - row.log_sum, row.top == id};
    }
    for (int64_t i = 0; i < count; ++i) {
      if (target_of(i) < 0) continue;
      Likelihood& out = *branches[static_cast<size_t>(i / length)].sequence->out;
      out.log_prob += scores_[static_cast<size_t>(i)].log_prob;
      out.is_greedy = out.is_greedy && scores_[static_cast<size_t>(i)].is_greedy;
    }
  }

  Model& model_;
  const LikelihoodOptions& options_;
  int64_t vocab_;
  int64_t done_ = 0;  // groups
  std::vector<int32_t> tokens_;
  std::vector<float> logits_;
  std::vector<Likelihood> scores_;
};

// The branchings of a group; with each request alone, the cuts stay where the group has them.
void add_branchings(const std::vector<Sequence>& sequences, bool share,
                    std::vector<Branching>& batch) {
  if (sequences.empty()) return;
  const int64_t prefix = shared_prefix(sequences);
  if (share) batch.push_back({prefix, {}});
  for (const Sequence& s : sequences) {
    if (!share) batch.push_back({prefix, {}});
    batch.back().sequences.push_back(&s);
  }
}

void expect_all_finite(const Model& model, const std::vector<std::vector<Likelihood>>& results) {
  for (const std::vector<Likelihood>& group : results) {
    for (const Likelihood& l : group) {
      const float value = static_cast<float>(l.log_prob);
      expect_finite(model, &value, 1, "loglikelihood");
    }
  }
}

}  // namespace

std::vector<std::vector<Likelihood>> loglikelihoods(
    Model& model, const std::vector<std::vector<LikelihoodRequest>>& groups,
    const LikelihoodOptions& options) {
  if (options.batch_size < 1 || options.max_length < 0) {
    fail(ErrorCode::kInvalidArgument,
         "[loglikelihood] expected batch_size of at least 1 and max_length of at least 0, got {} "
         "and {}",
         options.batch_size, options.max_length);
  }
  std::vector<std::vector<Likelihood>> results(groups.size());
  std::vector<std::vector<Sequence>> sequences(groups.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    results[g].resize(groups[g].size());
    for (size_t i = 0; i < groups[g].size(); ++i) {
      sequences[g].push_back(make_sequence(groups[g][i], options.max_length,
                                           model.config().vocab_size, &results[g][i]));
    }
  }
  // Groups of like length go together.
  std::vector<size_t> order(groups.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const auto size = [&](size_t g) {
      return sequences[g].empty() ? 0 : sequences[g][0].tokens.size();
    };
    return size(a) > size(b);
  });
  Scorer scorer(model, options);
  const size_t batch_size = static_cast<size_t>(options.batch_size);
  for (size_t at = 0; at < order.size(); at += batch_size) {
    const size_t end = std::min(order.size(), at + batch_size);
    std::vector<Branching> batch;
    for (size_t i = at; i < end; ++i) {
      add_branchings(sequences[order[i]], options.share_prefixes, batch);
    }
    if (!batch.empty()) scorer.run(batch);
    scorer.set_done(static_cast<int64_t>(end));
  }
  expect_all_finite(model, results);
  return results;
}

Likelihood loglikelihood(Model& model, const std::vector<int32_t>& context,
                         const std::vector<int32_t>& continuation) {
  LikelihoodOptions options;
  options.max_length = 0;
  return loglikelihoods(model, {{LikelihoodRequest{context, continuation}}}, options)[0][0];
}

}  // namespace mamba
