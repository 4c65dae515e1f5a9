// SPDX-License-Identifier: Apache-2.0
// One answer in the making: its tokens are drawn here, become text, and end where they should.
#pragma once

#include <string>
#include <vector>

#include "generate/sampler.h"
#include "generate/stop_matcher.h"
#include "generate/text_stream.h"
#include "mamba/generate.h"

namespace mamba {

// What an answer is asked for; refers to options that outlive it.
struct AnswerTask {
  const SamplingOptions& sampling;
  const std::vector<std::string>& stop;
  int64_t max_tokens;
  bool ignore_eos;
  int64_t sample = 0;
};

// Throws invalid_argument for what a task may not ask of this model.
void check_task(const AnswerTask& task, const Config& config, const Tokenizer* tokenizer);
// Throws invalid_argument unless the session has a token, and as many as the options look back on.
void check_session(const Session& session, const SamplingOptions& options);
// Puts ids behind the session: count, hash and history. Its state must have taken them.
void add_tokens(Session& session, const int32_t* ids, int64_t count);

class Answer {
 public:
  // Goes on from `session`, which may go away afterwards. The task must have passed check_task.
  Answer(Model& model, const Tokenizer* tokenizer, const AnswerTask& task, const Session& session);

  int64_t sample() const { return task_.sample; }
  bool done() const { return done_; }
  // Whether the last token drawn is an end token or one of stop_ids, which has no text.
  bool ended_by_token() const { return ended_by_token_; }
  // Draws a token from its logits (vocab_size) and returns it, or -1 where all are banned, which
  // ends the answer. `text`: what became certain by it.
  int32_t draw(const float* logits, std::string* text);
  void finish(FinishReason reason);
  // What was held back is text now that nothing follows, except, where `stays_open`, an unfinished
  // character that a continued session can still complete: that one is left in `pending`.
  std::string end_text(bool stays_open, std::string* pending = nullptr);
  Generation& result() { return out_; }

 private:
  // Takes a drawn token: text, or the end.
  std::string take(int32_t id);

  Model& model_;
  const Tokenizer* tokenizer_;
  AnswerTask task_;
  int64_t position_;
  std::vector<int32_t> eos_;
  StopMatcher stops_;
  TextStream characters_;
  Sampler sampler_;
  Generation out_;
  bool done_ = false, ended_by_token_ = false;
};

}  // namespace mamba
