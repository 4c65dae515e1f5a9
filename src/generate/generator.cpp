// SPDX-License-Identifier: Apache-2.0
// Prompts in chunks, then steps of a batch of samples that shrinks as they end.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "generate/answer.h"
#include "generate/text_stream.h"
#include "mamba/generate.h"
#include "model/finite.h"
#include "model/network.h"

namespace mamba {
namespace {

// The run of one call of Generator::generate.
class Run {
 public:
  Run(Model& model, const Tokenizer* tokenizer, Session& session, const GenerateOptions& options)
      : model_(model), session_(session), options_(options), drawer_(model.network().device()) {
    answers_.reserve(static_cast<size_t>(options.samples));
    for (int64_t i = 0; i < options.samples; ++i) {
      const AnswerTask task = {options.sampling, options.stop, options.max_tokens,
                               options.ignore_eos, i};
      answers_.emplace_back(model, tokenizer, task, session);
    }
  }

  std::vector<Generation> run() {
    begin();
    while (!active_.empty()) {
      if (options_.interrupted && options_.interrupted()) {
        for (Answer* answer : active_) answer->finish(FinishReason::kInterrupted);
        break;
      }
      draw();
      advance();
    }
    std::vector<Generation> results;
    for (Answer& answer : answers_) {
      end_text(answer);
      results.push_back(std::move(answer.result()));
    }
    if (options_.samples == 1) {
      add_tokens(session_, results[0].ids.data(),
                 static_cast<int64_t>(results[0].ids.size()) - (end_dropped_ ? 1 : 0));
    }
    return results;
  }

 private:
  // Every sample starts from the session's logits; a single one works on the session's own state.
  void begin() {
    for (Answer& answer : answers_) {
      if (!answer.done()) active_.push_back(&answer);
    }
    const int64_t n = options_.samples;
    logits_.assign(active_.size(), {CBuf(session_.logits.data()), true});
    if (n == 1) return;
    batch_ = model_.new_state(n);
    for (int64_t i = 0; i < n; ++i) batch_.assign(i, session_.state, 0);
  }

  State& state() { return options_.samples == 1 ? session_.state : batch_; }

  void draw() {
    std::vector<SampleRow> rows;
    for (size_t row = 0; row < active_.size(); ++row) {
      rows.push_back(active_[row]->ask(logits_[row]));
    }
    tokens_.resize(rows.size());
    if (!rows.empty()) drawer_.draw(rows, logits_[0].on_host, tokens_.data());
    for (size_t row = 0; row < active_.size(); ++row) {
      Answer& answer = *active_[row];
      std::string text;
      const int32_t id = tokens_[row];
      if (answer.take(id, logits_[row], &text) && options_.on_token) {
        options_.on_token(answer.sample(), id, text);
      }
    }
  }

  void step() { logits_ = step_rows(model_, tokens_, state(), &room_); }

  // Takes the drawn tokens into the states; rows that have ended leave the batch first.
  void advance() {
    if (options_.drop_end && active_[0]->ended_by_token()) {
      end_dropped_ = true;
      active_.clear();
      return;
    }
    if (options_.keep_session) {  // one sample: its last token counts too
      step();
      const int64_t vocab = model_.config().vocab_size;
      const float* logits = host_logits(model_, logits_[0], &room_);
      expect_finite(model_, logits, vocab, "generate");
      session_.logits.assign(logits, logits + vocab);
      logits_[0] = {CBuf(session_.logits.data()), true};
      if (active_[0]->done()) active_.clear();
      return;
    }
    compact();
    if (!active_.empty()) step();
  }

  void compact() {
    std::vector<int64_t> rows;
    for (size_t row = 0; row < active_.size(); ++row) {
      if (!active_[row]->done()) rows.push_back(static_cast<int64_t>(row));
    }
    if (rows.size() == active_.size()) return;
    std::vector<Answer*> active;
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

  void end_text(Answer& answer) {
    const std::string text =
        answer.end_text(options_.keep_session, options_.samples == 1 ? &session_.pending : nullptr);
    if (!text.empty() && options_.on_token) options_.on_token(answer.sample(), -1, text);
  }

  Model& model_;
  Session& session_;
  const GenerateOptions& options_;
  std::vector<Answer> answers_;
  std::vector<Answer*> active_;  // the rows of the batch
  State batch_;                  // with several samples
  TokenDrawer drawer_;
  std::vector<LogitRow> logits_;  // (rows)
  std::vector<float> room_;       // of logits that the host needs
  std::vector<int32_t> tokens_;   // (rows) drawn last
  bool end_dropped_ = false;
};

void check_options(const GenerateOptions& o, const Config& config, const Tokenizer* tokenizer) {
  check_task({o.sampling, o.stop, o.max_tokens, o.ignore_eos}, config, tokenizer);
  const auto expect = [](bool ok, const char* what, int64_t got) {
    if (!ok) fail(ErrorCode::kInvalidArgument, "[generate] expected {}, got {}", what, got);
  };
  expect(o.samples >= 1, "samples of at least 1", o.samples);
  expect(!o.keep_session || o.samples == 1, "one sample where the session is kept", o.samples);
  expect(!o.drop_end || o.keep_session, "keep_session with drop_end", o.keep_session);
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
    case FinishReason::kExhausted:
      return "exhausted";
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
  const int64_t chunk = model_->network().prefill_chunk();
  for (int64_t at = 0; at < count; at += chunk) {
    if (interrupted && interrupted()) return false;
    const int64_t length = std::min(chunk, count - at);
    model_->forward(ids.data() + at, length, session.state, Logits::kLast, session.logits.data());
    expect_finite(*model_, session.logits.data(), vocab, "generate");
    add_tokens(session, ids.data() + at, length);
    for (int64_t i = at; i < at + length && tokenizer_ != nullptr; ++i) {
      const int32_t id = ids[static_cast<size_t>(i)];
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
  check_options(options, model_->config(), tokenizer_);
  check_session(session, options.sampling);
  session.seed = options.sampling.seed;
  return Run(*model_, tokenizer_, session, options).run();
}

}  // namespace mamba
