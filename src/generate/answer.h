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

// Takes a token for each row into `state`; where the rows of logits lie until the next step. `room`
// holds them where the model computes in f64.
std::vector<LogitRow> step_rows(Model& model, const std::vector<int32_t>& tokens, State& state,
                                std::vector<float>* room);
// The same logits (vocab_size) in main memory, in `room` if they are not there already.
const float* host_logits(Model& model, const LogitRow& logits, std::vector<float>* room);

class Answer {
 public:
  // Goes on from `session`, which may go away afterwards. The task must have passed check_task.
  Answer(Model& model, const Tokenizer* tokenizer, const AnswerTask& task, const Session& session);

  int64_t sample() const { return task_.sample; }
  bool done() const { return done_; }
  // Whether the last token drawn is an end token or one of stop_ids, which has no text.
  bool ended_by_token() const { return ended_by_token_; }
  // What the kernel needs to draw the next token.
  SampleRow ask(const LogitRow& logits);
  // Takes what was drawn from those logits: false where all tokens are banned, which ends the
  // answer. `text`: what became certain by it. Throws bad_file where the logits are not finite.
  bool take(int32_t id, const LogitRow& logits, std::string* text);
  void finish(FinishReason reason);
  // What was held back is text now that nothing follows, except, where `stays_open`, an unfinished
  // character that a continued session can still complete: that one is left in `pending`.
  std::string end_text(bool stays_open, std::string* pending = nullptr);
  Generation& result() { return out_; }

 private:
  // What a drawn token means: text, or the end.
  std::string text_of(int32_t id);

  Model& model_;
  const Tokenizer* tokenizer_;
  AnswerTask task_;
  int64_t position_;
  std::vector<int32_t> eos_;
  StopMatcher stops_;
  TextStream characters_;
  Sampler sampler_;
  std::vector<float> logits_;  // (vocab_size) of the device, where the host needs them
  Generation out_;
  bool done_ = false, ended_by_token_ = false;
};

}  // namespace mamba
