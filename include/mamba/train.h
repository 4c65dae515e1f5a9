// SPDX-License-Identifier: Apache-2.0
// Training of a language model on text: one options struct, callbacks for what happens, one entry.
// The library prints nothing; a command or a program shows what the callbacks tell it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "mamba/config.h"

namespace mamba {

enum class LrSchedule { kConstant, kLinear, kCosine, kWsd };
enum class DataOrder { kShuffled, kSequential };
// How documents become sequences of seq_len tokens. kStream: one behind the other, cut into windows
// of equal length, so that a sequence may begin within a document and hold several. kDocuments: as
// many whole documents as fit, the rest padding; nothing crosses from one into the next, and longer
// ones are cut into pieces that stand alone.
enum class Packing { kStream, kDocuments };
// What a step computes again in its backward instead of keeping it: nothing; what lies between the
// matrix products of a mixer; whole mixers, from the residual stream. Gradients are the same bits.
enum class Recompute { kNone, kScan, kBlock };

// "constant", "linear", "cosine", "wsd"; throws invalid_argument listing them.
LrSchedule lr_schedule_from_name(const std::string& name);
const char* lr_schedule_name(LrSchedule schedule);
// "shuffled", "sequential"; throws invalid_argument listing them.
DataOrder data_order_from_name(const std::string& name);
const char* data_order_name(DataOrder order);
// "stream", "documents"; throws invalid_argument listing them.
Packing packing_from_name(const std::string& name);
const char* packing_name(Packing packing);
// "none", "scan", "block"; throws invalid_argument listing them.
Recompute recompute_from_name(const std::string& name);
const char* recompute_name(Recompute recompute);

// TrainOptions::vocab_size: the tokenizer's size, rounded up to a multiple of 8.
inline constexpr int64_t kVocabAuto = -1;

struct TrainOptions {
  std::string model_config;  // a config file or a preset; "" with init_from or when resuming
  std::string init_from;     // a model folder whose weights are the start; ""
  // Files, or folders whose files are read in the order of their paths. By their names: JSONL
  // (.jsonl, .json) with {"text"}, {"prompt", "response" or "completion"} or {"messages"} a line,
  // where prompts and all but the assistant's answers have no loss; ids as uint16 or uint32 (.bin);
  // any other is text. All are one source...
  std::vector<std::string> data;
  // ...or, with a weight for each (at least 0, not all 0), each is one: their shares of the
  // sequences, exact at any time.
  std::vector<double> data_weights;
  std::vector<std::string> valid;  // the same, held out; empty: no evaluation
  // As load_tokenizer takes it. "auto": that of the run that goes on, else that of init_from's
  // folder, else "bytes".
  std::string tokenizer = "auto";
  // How {"messages"} become text: as ChatTemplate::load() takes it, for the tokenizer's folder. One
  // that is given goes into the folders that are written.
  std::string chat_template;
  std::string output_dir;
  // Rows of the embedding and the head instead of the configuration's; 0: those, or kVocabAuto.
  // With init_from, at least as many as the model has; new rows start near the mean of the old.
  int64_t vocab_size = 0;
  // Tensors that keep their values: patterns of names as 'inspect' lists them, with * ? [0-3].
  std::vector<std::string> freeze;

  int64_t max_steps = 1000;                 // updates, >= 1
  int64_t batch_size = 8;                   // sequences of one forward and backward, 1..65536
  int64_t seq_len = 256;                    // tokens of a sequence, 1..16777216
  int64_t gradient_accumulation_steps = 1;  // batches an update, 1..65536
  DataOrder data_order = DataOrder::kShuffled;
  Packing packing = Packing::kStream;  // of `valid` too
  std::string data_dtype;              // of .bin files: "uint16", "uint32", or "": as they say
  // Parts in which a sequence goes through the model, 1..seq_len, to save memory: states and their
  // gradients are carried between them, so the gradient is that of the whole sequence.
  int64_t bptt_segments = 1;
  Recompute recompute =
      Recompute::kNone;  // saves memory, costs time; the results are the same bits

  double learning_rate = 1e-3;  // peak, > 0
  int64_t warmup_steps = 0;     // 0..max_steps
  LrSchedule lr_schedule = LrSchedule::kCosine;
  double min_lr_ratio = 0.1;  // of the last step to the peak, 0..1
  double weight_decay = 0.1;  // >= 0; never of A_log, D, dt biases, biases, norms, initial states
  double adam_beta1 = 0.9, adam_beta2 = 0.95;  // [0, 1)
  double adam_epsilon = 1e-8;                  // > 0
  double max_grad_norm = 1.0;                  // 0: no clipping

  bool bf16 = false;           // products of matrices in bf16; weights and the rest stay f32
  std::string device = "cpu";  // see ModelOptions::device; not "ref64"
  int threads = 0;             // 0: one per physical core; results do not depend on it
  uint64_t seed = 0;           // of the weights and of the order of the data

  int64_t eval_steps = 250;      // 0: at the end alone
  int64_t eval_batches = 20;     // of batch_size sequences from the start of `valid`
  int64_t logging_steps = 10;    // lines of metrics.jsonl and on_log; >= 1
  int64_t save_steps = 500;      // 0: at the end alone
  int64_t save_total_limit = 2;  // checkpoints kept; 0: all

  bool resume = false;  // go on from resume_path or, if "", from the newest in output_dir
  std::string resume_path;
  std::string command_line;  // told in the model card; ""
};

// One source of the data of a run.
struct TrainSource {
  std::string name;   // the path given, the first one where all are one source
  double weight = 1;  // share of the sequences
  int64_t files = 0, documents = 0, tokens = 0;
  int64_t scored = 0;     // tokens with a loss: all but those of prompts and questions
  int64_t sequences = 0;  // of its first epoch
  double padding = 0;     // share of their tokens that is padding
  int64_t left_out = 0;   // documents without a token with a loss, where they are packed
};

// What a run is going to do.
struct TrainPlan {
  Config config;
  int64_t parameters = 0, trained_parameters = 0;  // the second without those that are frozen
  // Bytes
  int64_t parameter_bytes = 0, gradient_bytes = 0, optimizer_bytes = 0;
  int64_t activation_bytes = 0, scratch_bytes = 0;
  int64_t total_bytes() const {
    return parameter_bytes + gradient_bytes + optimizer_bytes + activation_bytes + scratch_bytes;
  }
  int64_t grown_from = 0;      // rows of init_from's embedding where the vocabulary grows; 0
  std::string tokenizer;       // what load_tokenizer takes
  std::string tokenizer_from;  // the flag that it comes from: "--init-from", ...; "" for bytes
  int64_t tokenizer_size = 0;  // its ids
  int64_t tokens_per_step = 0;
  int64_t data_tokens = 0, valid_tokens = 0;  // valid_tokens: all of `valid`
  std::vector<TrainSource> sources;
  double padding = 0;          // share of a step's tokens, expected
  double steps_per_epoch = 0;  // in which as many sequences are read as all sources have
  int64_t first_step = 0;      // updates done before this run
  int64_t max_steps = 0;
  std::string device;  // "cpu:avx512", ...
  int threads = 0;
};

struct TrainProgress {
  int64_t step = 0, max_steps = 0;
  int64_t tokens = 0;            // read since step 0, padding included
  int64_t targets = 0;           // tokens of this step with a loss; 0: it changed no weight
  double padding = 0;            // share of this step's tokens
  double loss = 0;               // of this step, nats a target; without one, of the step before
  double grad_norm = 0;          // before clipping
  double learning_rate = 0;      // of this step
  double tokens_per_second = 0;  // since the last line, evaluations and checkpoints excluded
  double seconds = 0;            // since step 0, interruptions excluded
  double seconds_left = 0;       // estimated
};

struct EvalReport {
  int64_t step = 0;
  int64_t targets = 0;       // tokens scored
  double loss = 0;           // nats a token
  double perplexity = 0;     // of a token
  double bits_per_byte = 0;  // of the text that the scored tokens stand for; special ones have none
};

// All optional; called on the thread that trains.
struct TrainCallbacks {
  std::function<void(const TrainPlan&)> on_start;
  std::function<void(const TrainProgress&)> on_step;  // after every update
  std::function<void(const TrainProgress&)> on_log;   // every logging_steps
  std::function<void(const EvalReport&)> on_eval;
  std::function<void(const std::string& folder)> on_checkpoint;  // once it is durable
  std::function<void(const std::string& text)> on_notice;        // something worth a line
  std::function<bool()> should_stop;                             // polled between steps and batches
};

enum class TrainStatus {
  kFinished,     // max_steps are done
  kInterrupted,  // should_stop said so; a checkpoint is saved
  kDiverged,     // the loss, a gradient or a weight is NaN or infinite; nothing was saved
};

struct TrainResult {
  TrainStatus status = TrainStatus::kFinished;
  TrainProgress last;      // of the last step, also of the one that diverged
  EvalReport eval;         // the last one; targets 0: none
  std::string checkpoint;  // the newest good checkpoint, "" if none
  // After kDiverged: norms of gradients (or weights, if those are not finite) by tensor, NaN first,
  // then the largest.
  std::vector<std::pair<std::string, double>> norms;
  bool weights_diverged = false;  // the norms are of weights
};

// Checks everything that can be checked before the first step and returns the plan; writes nothing.
TrainPlan plan_train(const TrainOptions& options);

// Trains. Throws Error for bad options or input before anything is written, and kIo when a file
// cannot be written (the checkpoints that exist stay whole).
TrainResult train(const TrainOptions& options, const TrainCallbacks& callbacks = {});

}  // namespace mamba
