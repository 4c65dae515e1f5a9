// SPDX-License-Identifier: Apache-2.0
// Text and ids from a model: prompts in chunks, then one token at a time, with sessions that can be
// saved and go on elsewhere exactly where they stopped.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "mamba/model.h"
#include "mamba/sampling.h"
#include "mamba/state.h"
#include "mamba/tokenizer.h"

namespace mamba {

// Where one sequence stands: everything that decides what comes next.
struct Session {
  State state;                // of one sequence
  std::vector<float> logits;  // (vocab_size) after the last token; empty before the first one
  int64_t tokens = 0;         // tokens taken so far
  uint64_t token_hash = 0;    // of all of them, in order
  uint64_t seed = 0;          // with which the session was sampled last
  std::string pending;        // the bytes (0 to 3) of a character that the tokens leave unfinished
  // The last tokens, oldest first, for penalties and n-grams: at most history_limit (-1: all).
  std::vector<int32_t> history;
  int64_t history_limit = 4096;
};
// Makes the session keep from now on as many tokens as these options look back on.
void keep_history_for(Session& session, const SamplingOptions& options);

enum class FinishReason : uint8_t {
  kLength,       // max_tokens were generated
  kStop,         // a stop string appeared, or one of stop_ids was drawn
  kEos,          // an end token was drawn
  kInterrupted,  // the caller asked to stop
  kExhausted,    // every token is banned by no_repeat_ngram, logit_bias or min_tokens
};
// "length", "stop", "eos", "interrupted", "exhausted".
const char* finish_reason_name(FinishReason reason) noexcept;

struct TokenLogprob {
  int32_t id = 0;
  double logprob = 0;  // natural logarithm
};

// Of the model's own distribution: the logits before biases, bans, penalties, temperature and
// filters.
struct TokenLogprobs {
  double logprob = 0;             // of the token that was drawn
  std::vector<TokenLogprob> top;  // the most likely tokens, best first, ties by id
};

struct Generation {
  std::vector<int32_t> ids;  // all sampled tokens, a final end token included
  std::string text;          // valid UTF-8, up to a stop string; empty without a tokenizer
  FinishReason finish_reason = FinishReason::kLength;
  std::vector<TokenLogprobs> logprobs;  // one for each id, with SamplingOptions::logprobs >= 0
};

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_tokens = 128;       // >= 0
  int64_t samples = 1;            // >= 1; drawn from the same session as one batch
  std::vector<std::string> stop;  // none empty; needs a tokenizer
  bool ignore_eos = false;        // go on after an end token
  // Also takes the last sampled token into the session, so that the session continues behind it.
  // Only with samples == 1.
  bool keep_session = false;
  // With keep_session: an end token or one of stop_ids that ends the answer stays out of the
  // session.
  bool drop_end = false;
  // Polled between tokens and between chunks of a prompt; true ends the answer.
  std::function<bool()> interrupted;
  // Called for each sampled token with the text that became certain by it (whole characters, maybe
  // none), and once more with id -1 when text is left at the end.
  std::function<void(int64_t sample, int32_t id, std::string_view text)> on_token;
};

// One prompt of a batch and how to answer it.
struct GenerateRequest {
  std::vector<int32_t> prompt;  // at least one id
  SamplingOptions sampling;
  int64_t max_tokens = 128;       // >= 0
  std::vector<std::string> stop;  // none empty; needs a tokenizer
};

struct BatchProgress {
  int64_t finished = 0;          // answers, given to the sink or waiting for an earlier one
  int64_t running = 0;           // rows of the batch
  int64_t prompt_tokens = 0;     // read so far
  int64_t generated_tokens = 0;  // drawn so far
};

struct BatchOptions {
  int64_t batch_size = 8;   // 1..4096 sequences decoded together
  bool ignore_eos = false;  // go on after an end token
  // Polled between steps and between chunks of a prompt; true ends the batch.
  std::function<bool()> interrupted;
  std::function<void(const BatchProgress&)> on_progress;  // after steps and answers
};

// Borrows the model, and the tokenizer where there is one; both must outlive it.
class Generator {
 public:
  explicit Generator(Model& model, const Tokenizer* tokenizer = nullptr);

  // A session before its first token.
  Session start() const;
  // Takes `ids` into the session in chunks. False when `interrupted` said so in between; the
  // session then stands after the last whole chunk. Throws invalid_argument for an id outside the
  // vocabulary.
  bool prefill(Session& session, const std::vector<int32_t>& ids,
               const std::function<bool()>& interrupted = {});
  // Samples from where the session stands, which takes at least one token before. Without
  // keep_session the session's state and position are spent when samples == 1, and untouched
  // otherwise.
  std::vector<Generation> generate(Session& session, const GenerateOptions& options);
  // Answers requests until `source` returns false instead of filling one in. A row of the batch
  // that has ended takes the next request, and `sink` gets whole answers in the order of the
  // requests, with their index. An answer is that of prefill() and generate() alone, bit for bit.
  // At most 16 * batch_size answers wait for an earlier one, so memory does not grow with the
  // number of requests. False when `interrupted` said so; the sink then lacks the last ones.
  bool generate_batch(const std::function<bool(GenerateRequest&)>& source,
                      const std::function<void(int64_t index, Generation&&)>& sink,
                      const BatchOptions& options);

 private:
  Model* model_;
  const Tokenizer* tokenizer_;
};

// A session as a safetensors file, written atomically, tied to the model by its fingerprint and
// dtype.
void save_session(const std::string& path, const Session& session, const Model& model);
// Throws bad_file for anything but an intact session of this very model, saying what differs.
Session load_session(const std::string& path, const Model& model);

}  // namespace mamba
