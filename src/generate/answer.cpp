// SPDX-License-Identifier: Apache-2.0
// One answer in the making.
#include "generate/answer.h"

#include <algorithm>

#include "base/check.h"
#include "model/finite.h"
#include "model/network.h"

namespace mamba {
namespace {

// Rows of the embedding that pad the vocabulary have no text and are not drawn.
int64_t drawable(const Config& config, const Tokenizer* tokenizer) {
  return tokenizer == nullptr ? config.vocab_size
                              : std::min(config.vocab_size, tokenizer->vocab_size());
}

std::vector<int32_t> eos_of(const Config& config, const AnswerTask& task) {
  if (task.ignore_eos) return {};
  std::vector<int32_t> ids = task.sampling.eos_ids;
  for (const int64_t id : config.all_eos_token_ids()) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

std::vector<int32_t> ends_of(const Config& config, const AnswerTask& task) {
  std::vector<int32_t> ids = eos_of(config, task);
  ids.insert(ids.end(), task.sampling.stop_ids.begin(), task.sampling.stop_ids.end());
  return ids;
}

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// FNV-1a over the bytes of the ids; an empty list hashes to 0.
uint64_t extend_hash(uint64_t hash, int32_t id) {
  if (hash == 0) hash = 0xcbf29ce484222325ull;
  for (int shift = 0; shift < 32; shift += 8) {
    hash ^= (static_cast<uint32_t>(id) >> shift) & 0xff;
    hash *= 0x100000001b3ull;
  }
  return hash;
}

void trim_history(Session& session) {
  const int64_t excess = static_cast<int64_t>(session.history.size()) - session.history_limit;
  if (session.history_limit < 0 || excess <= 0) return;
  session.history.erase(session.history.begin(), session.history.begin() + excess);
}

}  // namespace

void check_task(const AnswerTask& task, const Config& config, const Tokenizer* tokenizer) {
  validate(task.sampling);
  const auto expect = [](bool ok, const char* what, int64_t got) {
    if (!ok) fail(ErrorCode::kInvalidArgument, "[generate] expected {}, got {}", what, got);
  };
  expect(task.max_tokens >= 0, "max_tokens of at least 0", task.max_tokens);
  if (task.sampling.min_tokens > task.max_tokens) {
    fail(ErrorCode::kInvalidArgument,
         "[generate] expected min_tokens of at most max_tokens = {}, got {}; lower it",
         task.max_tokens, task.sampling.min_tokens);
  }
  if (!task.stop.empty() && tokenizer == nullptr) {
    fail(ErrorCode::kInvalidArgument,
         "[generate] expected a tokenizer with stop strings, got a model without one; leave them "
         "out");
  }
  const auto expect_id = [](const char* what, int32_t id, int64_t vocab) {
    if (id >= 0 && id < vocab) return;
    fail(ErrorCode::kInvalidArgument, "[generate] expected {} in 0..{}, got {}", what, vocab - 1,
         id);
  };
  for (const LogitBias& b : task.sampling.logit_bias) {
    expect_id("tokens of logit_bias", b.id, drawable(config, tokenizer));
  }
  for (const int32_t id : task.sampling.stop_ids) expect_id("stop_ids", id, config.vocab_size);
  for (const int32_t id : task.sampling.eos_ids) expect_id("eos_ids", id, config.vocab_size);
}

void check_session(const Session& session, const SamplingOptions& options) {
  if (session.tokens == 0) {
    fail(ErrorCode::kInvalidArgument,
         "[generate] expected a session with at least one token, got an empty one; prefill it "
         "first");
  }
  const int64_t needed = history_needed(options);
  const int64_t wanted = needed < 0 ? session.tokens : std::min(needed, session.tokens);
  const int64_t kept = static_cast<int64_t>(session.history.size());
  if (kept >= wanted) return;
  fail(ErrorCode::kInvalidArgument,
       "[generate] expected a session that has kept its last {} tokens, as {} looks back on them, "
       "got one that has kept {} of {}; start it with that option, or lower it",
       wanted, options.no_repeat_ngram > 0 ? "no_repeat_ngram" : "repeat_last_n", kept,
       session.tokens);
}

void add_tokens(Session& session, const int32_t* ids, int64_t count) {
  session.tokens += count;
  for (int64_t i = 0; i < count; ++i) {
    session.token_hash = extend_hash(session.token_hash, ids[i]);
  }
  session.history.insert(session.history.end(), ids, ids + count);
  trim_history(session);
}

void keep_history_for(Session& session, const SamplingOptions& options) {
  const int64_t needed = history_needed(options);
  if (session.history_limit < 0) return;
  session.history_limit = needed < 0 ? -1 : std::max(session.history_limit, needed);
}

std::vector<LogitRow> step_rows(Model& model, const std::vector<int32_t>& tokens, State& state,
                                std::vector<float>* room) {
  Network& network = model.network();
  const int64_t vocab = model.config().vocab_size;
  CBuf logits;
  if (network.device().real() == DType::kF32) {
    logits = network.step(tokens.data(), state);
  } else {
    room->resize(tokens.size() * static_cast<size_t>(vocab));
    model.step(tokens.data(), state, room->data());
    logits = room->data();
  }
  std::vector<LogitRow> rows;
  for (size_t i = 0; i < tokens.size(); ++i) {
    rows.push_back({logits + static_cast<int64_t>(i) * vocab, network.memory().on_host()});
  }
  return rows;
}

const float* host_logits(Model& model, const LogitRow& logits, std::vector<float>* room) {
  if (logits.on_host) return logits.data.as<float>();
  room->resize(static_cast<size_t>(model.config().vocab_size));
  model.network().memory().copy_out(room->data(), logits.data.data,
                                    static_cast<int64_t>(room->size() * sizeof(float)));
  return room->data();
}

Answer::Answer(Model& model, const Tokenizer* tokenizer, const AnswerTask& task,
               const Session& session)
    : model_(model),
      tokenizer_(tokenizer),
      task_(task),
      position_(session.tokens),
      eos_(eos_of(model.config(), task)),
      stops_(task.stop),
      characters_(session.pending),
      sampler_(task.sampling, drawable(model.config(), tokenizer), ends_of(model.config(), task),
               task.sample, session.history) {
  if (task.max_tokens == 0) finish(FinishReason::kLength);
}

SampleRow Answer::ask(const LogitRow& logits) {
  if (logits.on_host) {
    expect_finite(model_, logits.data.as<float>(), model_.config().vocab_size, "generate");
  }
  SampleRow row = sampler_.ask(logits.data, position_);
  row.check_finite = !logits.on_host;
  return row;
}

bool Answer::take(int32_t id, const LogitRow& logits, std::string* text) {
  const int64_t vocab = model_.config().vocab_size;
  if (id == kNotFinite)
    expect_finite(model_, host_logits(model_, logits, &logits_), vocab, "generate");
  if (id < 0) {
    finish(FinishReason::kExhausted);
    return false;
  }
  sampler_.take(id);
  ++position_;
  out_.ids.push_back(id);
  if (task_.sampling.logprobs >= 0) {
    out_.logprobs.push_back(logprobs_of(host_logits(model_, logits, &logits_), vocab,
                                        drawable(model_.config(), tokenizer_), id,
                                        task_.sampling.logprobs));
  }
  *text = text_of(id);
  if (!done_ && static_cast<int64_t>(out_.ids.size()) >= task_.max_tokens) {
    finish(FinishReason::kLength);
  }
  return true;
}

std::string Answer::text_of(int32_t id) {
  ended_by_token_ = contains(eos_, id) || contains(task_.sampling.stop_ids, id);
  if (contains(eos_, id)) {
    finish(FinishReason::kEos);
  } else if (contains(task_.sampling.stop_ids, id)) {
    finish(FinishReason::kStop);
  } else if (tokenizer_ != nullptr) {
    std::string text = characters_.push(stops_.push(tokenizer_->token_bytes(id)));
    if (stops_.stopped()) finish(FinishReason::kStop);
    out_.text += text;
    return text;
  }
  return "";
}

void Answer::finish(FinishReason reason) {
  out_.finish_reason = reason;
  done_ = true;
}

std::string Answer::end_text(bool stays_open, std::string* pending) {
  std::string text = characters_.push(stops_.finish());
  const FinishReason reason = out_.finish_reason;
  const bool open = reason == FinishReason::kLength || reason == FinishReason::kInterrupted ||
                    reason == FinishReason::kExhausted;
  if (pending != nullptr) *pending = open ? characters_.held() : "";
  if (!stays_open || !open) text += characters_.finish();
  out_.text += text;
  return text;
}

}  // namespace mamba
