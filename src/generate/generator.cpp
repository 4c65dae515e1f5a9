// SPDX-License-Identifier: Apache-2.0
// Prompts in chunks, then steps of a batch of samples that shrinks as they end.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "generate/sampler.h"
#include "generate/stop_matcher.h"
#include "generate/text_stream.h"
#include "mamba/generate.h"
#include "model/network.h"

namespace mamba {
namespace {

// Tokens of a prompt that one forward call takes: enough for full tiles of the matrix products, and
// its activations stay in cache for small models.
constexpr int64_t kPrefillChunk = 512;

// FNV-1a over the bytes of the ids; an empty list hashes to 0.
uint64_t extend_hash(uint64_t hash, int32_t id) {
  if (hash == 0) hash = 0xcbf29ce484222325ull;
  for (int shift = 0; shift < 32; shift += 8) {
    hash ^= (static_cast<uint32_t>(id) >> shift) & 0xff;
    hash *= 0x100000001b3ull;
  }
  return hash;
}

// One answer in the making.
struct Sample {
  Sample(int64_t sample_index, const GenerateOptions& options, const std::string& begun)
      : index(sample_index), stops(options.stop), characters(begun) {}

  int64_t index;
  StopMatcher stops;
  TextStream characters;
  Generation out;
  bool done = false;

  void finish(FinishReason reason) {
    out.finish_reason = reason;
    done = true;
  }
};

// The run of one call of Generator::generate.
class Run {
 public:
  Run(Model& model, const Tokenizer* tokenizer, Session& session, const GenerateOptions& options)
      : model_(model), tokenizer_(tokenizer), session_(session), options_(options) {
    vocab_ = model.config().vocab_size;
    // Rows of the embedding that pad the vocabulary have no text.
    draw_vocab_ = tokenizer ? std::min(vocab_, tokenizer->vocab_size()) : vocab_;
    for (int64_t i = 0; i < options.samples; ++i) {
      samples_.emplace_back(i, options, session.pending);
    }
  }

  std::vector<Generation> run() {
    begin();
    for (int64_t drawn = 0; drawn < options_.max_tokens && !active_.empty(); ++drawn) {
      if (options_.interrupted && options_.interrupted()) {
        finish_active(FinishReason::kInterrupted);
        break;
      }
      draw(session_.tokens + drawn);
      const bool last = drawn + 1 == options_.max_tokens;
      advance(last);
    }
    finish_active(FinishReason::kLength);
    std::vector<Generation> results;
    for (Sample& sample : samples_) {
      end_text(sample);
      results.push_back(std::move(sample.out));
    }
    if (options_.samples == 1) session_.tokens += static_cast<int64_t>(results[0].ids.size());
    return results;
  }

 private:
  // Every sample starts from the session's logits; a single one works on the session's own state.
  void begin() {
    for (Sample& sample : samples_) active_.push_back(&sample);
    const int64_t n = options_.samples;
    for (int64_t i = 0; i < n; ++i) {
      logits_.insert(logits_.end(), session_.logits.begin(), session_.logits.end());
    }
    if (n == 1) return;
    batch_ = model_.new_state(n);
    for (int64_t i = 0; i < n; ++i) batch_.assign(i, session_.state, 0);
  }

  State& state() { return options_.samples == 1 ? session_.state : batch_; }

  void draw(int64_t position) {
    Device& device = model_.network().device();
    tokens_.clear();
    for (size_t row = 0; row < active_.size(); ++row) {
      Sample& sample = *active_[row];
      const float* logits = logits_.data() + static_cast<int64_t>(row) * vocab_;
      const int32_t id =
          sample_token(device, logits, draw_vocab_, options_.sampling, sample.index, position);
      tokens_.push_back(id);
      take(sample, id);
    }
  }

  // Adds a token to its sample and tells the caller what became certain by it.
  void take(Sample& sample, int32_t id) {
    sample.out.ids.push_back(id);
    if (options_.samples == 1) session_.token_hash = extend_hash(session_.token_hash, id);
    std::string text;
    if (id == model_.config().eos_token_id && !options_.ignore_eos) {
      sample.finish(FinishReason::kEos);
    } else if (tokenizer_ != nullptr) {
      text = sample.characters.push(sample.stops.push(tokenizer_->token_bytes(id)));
      if (sample.stops.stopped()) sample.finish(FinishReason::kStop);
    }
    sample.out.text += text;
    if (options_.on_token) options_.on_token(sample.index, id, text);
  }

  // Takes the drawn tokens into the states; rows that have ended leave the batch first.
  void advance(bool last) {
    if (options_.keep_session) {  // one sample: its last token counts too
      model_.step(tokens_.data(), session_.state, logits_.data());
      session_.logits = logits_;
      if (active_[0]->done) active_.clear();
      return;
    }
    compact();
    if (last || active_.empty()) return;
    model_.step(tokens_.data(), state(), logits_.data());
  }

  void compact() {
    std::vector<int64_t> rows;
    for (size_t row = 0; row < active_.size(); ++row) {
      if (!active_[row]->done) rows.push_back(static_cast<int64_t>(row));
    }
    if (rows.size() == active_.size()) return;
    std::vector<Sample*> active;
    std::vector<int32_t> tokens;
    State batch;
    if (options_.samples > 1) batch = model_.new_state(static_cast<int64_t>(rows.size()));
    for (size_t i = 0; i < rows.size(); ++i) {
      active.push_back(active_[static_cast<size_t>(rows[i])]);
      tokens.push_back(tokens_[static_cast<size_t>(rows[i])]);
      batch.assign(static_cast<int64_t>(i), batch_, rows[i]);
    }
    active_ = std::move(active);
    tokens_ = std::move(tokens);
    batch_ = std::move(batch);
  }

  void finish_active(FinishReason reason) {
    for (Sample* sample : active_) {
      if (!sample->done) sample->finish(reason);
    }
    active_.clear();
  }

  // What was held back is text now that nothing follows. Only a kept session that stands right
  // behind an unfinished character can still complete it.
  void end_text(Sample& sample) {
    std::string text = sample.characters.push(sample.stops.finish());
    const FinishReason reason = sample.out.finish_reason;
    const bool open = reason == FinishReason::kLength || reason == FinishReason::kInterrupted;
    if (options_.samples == 1) session_.pending = open ? sample.characters.held() : "";
    if (!options_.keep_session || !open) text += sample.characters.finish();
    sample.out.text += text;
    if (!text.empty() && options_.on_token) options_.on_token(sample.index, -1, text);
  }

  Model& model_;
  const Tokenizer* tokenizer_;
  Session& session_;
  const GenerateOptions& options_;
  int64_t vocab_ = 0, draw_vocab_ = 0;
  std::vector<Sample> samples_;
  std::vector<Sample*> active_;  // the rows of the batch
  State batch_;                  // with several samples
  std::vector<float> logits_;    // (rows, vocab_size)
  std::vector<int32_t> tokens_;  // (rows) drawn last
};

void validate(const GenerateOptions& o, const Tokenizer* tokenizer) {
  validate(o.sampling);
  const auto expect = [](bool ok, const char* what, int64_t got) {
    if (!ok) fail(ErrorCode::kInvalidArgument, "[generate] expected {}, got {}", what, got);
  };
  expect(o.max_tokens >= 0, "max_tokens of at least 0", o.max_tokens);
  expect(o.samples >= 1, "samples of at least 1", o.samples);
  expect(!o.keep_session || o.samples == 1, "one sample where the session is kept", o.samples);
  if (!o.stop.empty() && tokenizer == nullptr) {
    fail(ErrorCode::kInvalidArgument,
         "[generate] expected a tokenizer with stop strings, got a model without one; leave them "
         "out");
  }
}

}  // namespace

const char* finish_reason_name(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kInterrupted:
      return "interrupted";
  }
  return "unknown";
}

Generator::Generator(Model& model, const Tokenizer* tokenizer)
    : model_(&model), tokenizer_(tokenizer) {}

Session Generator::start() const {
  Session session;
  session.state = model_->new_state(1);
  return session;
}

bool Generator::prefill(Session& session, const std::vector<int32_t>& ids,
                        const std::function<bool()>& interrupted) {
  const int64_t vocab = model_->config().vocab_size;
  const int64_t count = static_cast<int64_t>(ids.size());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    if (id >= 0 && id < vocab) continue;
    fail(ErrorCode::kInvalidArgument,
         "[generate] expected ids in 0..{} (the model's vocabulary), got {} at position {}",
         vocab - 1, id, i);
  }
  TextStream characters(session.pending);
  session.logits.resize(count > 0 ? static_cast<size_t>(vocab) : session.logits.size());
  for (int64_t at = 0; at < count; at += kPrefillChunk) {
    if (interrupted && interrupted()) return false;
    const int64_t length = std::min(kPrefillChunk, count - at);
    model_->forward(ids.data() + at, length, session.state, Logits::kLast, session.logits.data());
    session.tokens += length;
    for (int64_t i = at; i < at + length; ++i) {
      const int32_t id = ids[static_cast<size_t>(i)];
      session.token_hash = extend_hash(session.token_hash, id);
      if (tokenizer_ == nullptr) continue;
      // A row that pads the vocabulary has no text: it ends a character like any other byte.
      if (id < tokenizer_->vocab_size()) {
        characters.push(tokenizer_->token_bytes(id));
      } else {
        characters.finish();
      }
    }
    session.pending = characters.held();
  }
  return true;
}

std::vector<Generation> Generator::generate(Session& session, const GenerateOptions& options) {
  validate(options, tokenizer_);
  if (session.tokens == 0) {
    fail(ErrorCode::kInvalidArgument,
         "[generate] expected a session with at least one token, got an empty one; prefill it "
         "first");
  }
  session.seed = options.sampling.seed;
  return Run(*model_, tokenizer_, session, options).run();
}

}  // namespace mamba
