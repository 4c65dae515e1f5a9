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
#include "mamba/state.h"
#include "mamba/tokenizer.h"

namespace mamba {

struct SamplingOptions {
  double temperature = 1;  // >= 0; 0: the most likely token, always
  int64_t top_k = 0;       // keep the k most likely tokens; 0: all
  double top_p = 1;        // (0, 1]: keep the most likely tokens that reach this probability
  double min_p = 0;        // [0, 1]: drop tokens below this share of the largest probability
  uint64_t seed = 0;       // a token depends on (seed, sample, position) and the logits alone
};

// Where one sequence stands: everything that decides what comes next.
struct Session {
  State state;                // of one sequence
  std::vector<float> logits;  // (vocab_size) after the last token; empty before the first one
  int64_t tokens = 0;         // tokens taken so far
  uint64_t token_hash = 0;    // of all of them, in order
  uint64_t seed = 0;          // with which the session was sampled last
  std::string pending;        // the bytes (0 to 3) of a character that the tokens leave unfinished
};

enum class FinishReason : uint8_t {
  kLength,       // max_tokens were generated
  kStop,         // a stop string appeared
  kEos,          // the model's end token was drawn
  kInterrupted,  // the caller asked to stop
};
// "length", "stop", "eos", "interrupted".
const char* finish_reason_name(FinishReason reason) noexcept;

struct Generation {
  std::vector<int32_t> ids;  // all sampled tokens, a final end token included
  std::string text;          // valid UTF-8, up to a stop string; empty without a tokenizer
  FinishReason finish_reason = FinishReason::kLength;
};

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_tokens = 128;       // >= 0
  int64_t samples = 1;            // >= 1; drawn from the same session as one batch
  std::vector<std::string> stop;  // none empty; needs a tokenizer
  bool ignore_eos = false;        // go on after the model's end token
  // Also takes the last sampled token into the session, so that the session continues behind it.
  // Only with samples == 1.
  bool keep_session = false;
  // Polled between tokens and between chunks of a prompt; true ends the answer.
  std::function<bool()> interrupted;
  // Called for each sampled token with the text that became certain by it (whole characters, maybe
  // none), and once more with id -1 when text is left at the end.
  std::function<void(int64_t sample, int32_t id, std::string_view text)> on_token;
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
