// SPDX-License-Identifier: Apache-2.0
// Scores held-out sequences, a batch at a time and where asked a segment at a time.
#include "train/held_out.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace mamba {
namespace {

std::vector<int32_t> bytes_of_tokens(const Tokenizer& tokenizer) {
  std::vector<int32_t> bytes(static_cast<size_t>(tokenizer.vocab_size()));
  for (size_t id = 0; id < bytes.size(); ++id) {
    const auto token = static_cast<int32_t>(id);
    if (token == tokenizer.eos_id() || tokenizer.is_special(token)) continue;
    bytes[id] = static_cast<int32_t>(tokenizer.token_bytes(token).size());
  }
  return bytes;
}

// Columns [begin, begin + length) of a batch, in memory of its own.
struct Columns {
  Columns(const Batch& batch, int64_t begin, int64_t length) {
    const auto copy = [&](const int32_t* from, std::vector<int32_t>* to) {
      if (from == nullptr) return;
      to->resize(static_cast<size_t>(batch.B * length));
      for (int64_t row = 0; row < batch.B; ++row) {
        std::copy_n(from + row * batch.L + begin, length, to->data() + row * length);
      }
    };
    copy(batch.ids, &ids);
    copy(batch.targets, &targets);
    copy(batch.doc_ids, &documents);
  }
  std::vector<int32_t> ids, targets, documents;
};

}  // namespace

HeldOut::HeldOut(const TrainOptions& options, Network& network, DataSet& valid,
                 const Tokenizer& tokenizer)
    : options_(options),
      network_(network),
      valid_(valid),
      bytes_(bytes_of_tokens(tokenizer)),
      rows_(options.batch_size, options.seq_len, options.packing == Packing::kDocuments) {}

int64_t HeldOut::sequences(const TrainOptions& options, const DataSet& valid) {
  return std::min(options.eval_batches * options.batch_size, valid.sequences());
}

void HeldOut::check(const TrainOptions& options, DataSet& valid) {
  const int64_t count = sequences(options, valid);
  RowBuffer one(1, options.seq_len, false);
  for (int64_t i = 0; i < count; ++i) {
    valid.read(i, one.row(0));
    if (one.targets() > 0) return;
  }
  fail(ErrorCode::kBadFile,
       "[--valid {}] expected a token with a loss in the first {} sequences, got none; use more "
       "--eval-batches or other data",
       options.valid.front(), count);
}

// A batch whose columns go through the network in parts carries states from one to the next, but
// for rows where another document begins there.
LossSum HeldOut::score(const Batch& batch) {
  const int64_t segments = options_.bptt_segments;
  if (segments == 1) return network_.forward(batch, nullptr, Logits::kNone, Buf(), Buf());
  const State fresh = network_.new_state(1);
  State state = network_.new_state(batch.B);
  LossSum sum;
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t begin = s * batch.L / segments, length = (s + 1) * batch.L / segments - begin;
    const Columns part(batch, begin, length);
    for (int64_t row = 0; batch.doc_ids != nullptr && begin > 0 && row < batch.B; ++row) {
      const int32_t* at = batch.doc_ids + row * batch.L + begin;
      if (at[0] != at[-1]) state.assign(row, fresh, 0);
    }
    const LossSum one =
        network_.forward({batch.B, length, part.ids.data(), part.targets.data(),
                          batch.doc_ids != nullptr ? part.documents.data() : nullptr},
                         &state, Logits::kNone, Buf(), Buf());
    sum.nll += one.nll;
    sum.targets += one.targets;
  }
  return sum;
}

bool HeldOut::evaluate(const std::function<bool()>& should_stop, EvalReport* report) {
  const int64_t count = sequences(options_, valid_);
  LossSum sum;
  int64_t bytes = 0;
  for (int64_t first = 0; first < count; first += options_.batch_size) {
    if (should_stop && should_stop()) return false;
    const int64_t rows = std::min(options_.batch_size, count - first);
    for (int64_t i = 0; i < rows; ++i) valid_.read(first + i, rows_.row(i));
    const Batch batch = rows_.batch(0, rows);
    const LossSum part = score(batch);
    sum.nll += part.nll;
    sum.targets += part.targets;
    for (int64_t i = 0; i < batch.B * batch.L; ++i) {
      if (batch.targets[i] >= 0) bytes += bytes_[static_cast<size_t>(batch.targets[i])];
    }
  }
  constexpr double kLn2 = 0.69314718055994530942;
  report->targets = sum.targets;
  report->loss = sum.nll / static_cast<double>(sum.targets);
  report->perplexity = std::exp(report->loss);
  report->bits_per_byte = bytes > 0 ? sum.nll / kLn2 / static_cast<double>(bytes) : 0;
  return true;
}

}  // namespace mamba
