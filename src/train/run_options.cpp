// SPDX-License-Identifier: Apache-2.0
// Names, ranges and comparison of the options of a run.
#include "train/run_options.h"

#include <fmt/ranges.h>

#include <cmath>
#include <set>
#include <vector>

#include "base/check.h"

namespace mamba {
namespace {

constexpr LrSchedule kSchedules[] = {LrSchedule::kConstant, LrSchedule::kLinear,
                                     LrSchedule::kCosine, LrSchedule::kWsd};
constexpr int64_t kMaxVocabulary = 16'777'216;
constexpr DataOrder kOrders[] = {DataOrder::kShuffled, DataOrder::kSequential};

// Options of the learning rate: compared by the rates they give.
constexpr const char* kScheduleFlags[] = {"--learning-rate", "--warmup-steps",
                                          "--lr-scheduler-type", "--min-lr-ratio", "--max-steps"};

void check_int(const char* flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  fail(ErrorCode::kInvalidArgument, "[{}] expected a whole number in {}..{}, got {}", flag, low,
       high, value);
}

void check_number(const char* flag, double value, bool good, const char* expected) {
  if (good && std::isfinite(value)) return;
  fail(ErrorCode::kInvalidArgument, "[{}] expected {}, got {}", flag, expected, value);
}

Schedule schedule_from(const Json& course, const std::string& where) {
  constexpr int64_t kMax = int64_t{1} << 53;
  Schedule s;
  s.kind = lr_schedule_from_name(get_string(course, "--lr-scheduler-type", where));
  s.peak = get_number(course, "--learning-rate", 0, 1e30, where);
  s.min_ratio = get_number(course, "--min-lr-ratio", 0, 1, where);
  s.warmup_steps = get_int(course, "--warmup-steps", 0, kMax, where);
  s.max_steps = get_int(course, "--max-steps", 1, kMax, where);
  return s;
}

bool is_schedule_flag(const std::string& flag) {
  for (const char* other : kScheduleFlags) {
    if (flag == other) return true;
  }
  return false;
}

// What a checkpoint says of a flag, or what runs did before there was that flag.
Json saved_value(const Json& saved, const std::string& flag, const std::string& where) {
  const Json before = {{"--bptt-segments", 1},
                       {"--freeze", Json::array()},
                       {"--packing", "stream"},
                       {"--data-weights", Json::array()}};
  if (!saved.contains(flag) && before.contains(flag)) return before[flag];
  return get_member(saved, flag.c_str(), where);
}

void check_same_rates(const Json& saved, const Json& now, int64_t step, const std::string& where) {
  const Schedule before = schedule_from(saved, where), after = schedule_from(now, "options");
  if (before == after) return;
  for (int64_t s = 1; s <= step; ++s) {
    if (before.at(s) == after.at(s)) continue;
    std::vector<std::string> changes;
    for (const char* flag : kScheduleFlags) {
      if (saved[flag] == now[flag]) continue;
      changes.push_back(fmt::format("{} {} instead of {}", flag, printable_json(now[flag]),
                                    printable_json(saved[flag])));
    }
    fail(
        ErrorCode::kInvalidArgument,
        "[--resume {}] expected options that leave the {} steps already done as they were, got {}: "
        "the learning rate of step {} would be {:.6g} instead of {:.6g}; repeat the options of the "
        "run, or start a new one with --init-from",
        where, step, fmt::join(changes, ", "), s, after.at(s), before.at(s));
  }
}

void check_data_options(const TrainOptions& o) {
  if (!o.data_dtype.empty() && o.data_dtype != "uint16" && o.data_dtype != "uint32") {
    fail(ErrorCode::kInvalidArgument, "[--data-dtype] expected one of uint16, uint32; got '{}'",
         printable(o.data_dtype));
  }
  if (o.data_weights.empty()) return;
  if (o.data_weights.size() != o.data.size()) {
    fail(ErrorCode::kInvalidArgument,
         "[--data-weights] expected a weight for each of the {} paths of --data, got {}; a folder "
         "is one path",
         o.data.size(), o.data_weights.size());
  }
  double sum = 0;
  for (const double weight : o.data_weights) {
    check_number("--data-weights", weight, weight >= 0 && weight <= 1e9,
                 "numbers in 0..1000000000");
    sum += weight;
  }
  if (sum <= 0) {
    fail(ErrorCode::kInvalidArgument,
         "[--data-weights] expected a weight above 0, got 0 for each; they are shares of the data");
  }
}

}  // namespace

LrSchedule lr_schedule_from_name(const std::string& name) {
  for (const LrSchedule schedule : kSchedules) {
    if (name == lr_schedule_name(schedule)) return schedule;
  }
  fail(ErrorCode::kInvalidArgument,
       "[--lr-scheduler-type] expected one of constant, linear, cosine, wsd; got '{}'",
       printable(name));
}

const char* lr_schedule_name(LrSchedule schedule) {
  switch (schedule) {
    case LrSchedule::kConstant:
      return "constant";
    case LrSchedule::kLinear:
      return "linear";
    case LrSchedule::kCosine:
      return "cosine";
    case LrSchedule::kWsd:
      return "wsd";
  }
  return "unknown";
}

DataOrder data_order_from_name(const std::string& name) {
  for (const DataOrder order : kOrders) {
    if (name == data_order_name(order)) return order;
  }
  fail(ErrorCode::kInvalidArgument, "[--data-order] expected one of shuffled, sequential; got '{}'",
       printable(name));
}

const char* data_order_name(DataOrder order) {
  return order == DataOrder::kShuffled ? "shuffled" : "sequential";
}

Packing packing_from_name(const std::string& name) {
  for (const Packing packing : {Packing::kStream, Packing::kDocuments}) {
    if (name == packing_name(packing)) return packing;
  }
  fail(ErrorCode::kInvalidArgument, "[--packing] expected one of stream, documents; got '{}'",
       printable(name));
}

const char* packing_name(Packing packing) {
  return packing == Packing::kStream ? "stream" : "documents";
}

Recompute recompute_from_name(const std::string& name) {
  for (const Recompute recompute : {Recompute::kNone, Recompute::kScan, Recompute::kBlock}) {
    if (name == recompute_name(recompute)) return recompute;
  }
  fail(ErrorCode::kInvalidArgument, "[--recompute] expected one of none, scan, block; got '{}'",
       printable(name));
}

const char* recompute_name(Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone:
      return "none";
    case Recompute::kScan:
      return "scan";
    case Recompute::kBlock:
      return "block";
  }
  return "unknown";
}

void check_train_options(const TrainOptions& o) {
  constexpr int64_t kManySteps = 1'000'000'000;
  if (o.data.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--data] expected a file or a folder of text, got none; name at least one");
  }
  check_data_options(o);
  check_int("--max-steps", o.max_steps, 1, kManySteps);
  check_int("--batch-size", o.batch_size, 1, 65536);
  check_int("--seq-len", o.seq_len, 1, int64_t{1} << 24);
  check_int("--bptt-segments", o.bptt_segments, 1, o.seq_len);
  if (o.vocab_size != kVocabAuto) check_int("--vocab-size", o.vocab_size, 0, kMaxVocabulary);
  check_int("--gradient-accumulation-steps", o.gradient_accumulation_steps, 1, 65536);
  check_int("--warmup-steps", o.warmup_steps, 0, kManySteps);
  check_int("--eval-steps", o.eval_steps, 0, kManySteps);
  check_int("--eval-batches", o.eval_batches, 1, kManySteps);
  check_int("--logging-steps", o.logging_steps, 1, kManySteps);
  check_int("--save-steps", o.save_steps, 0, kManySteps);
  check_int("--save-total-limit", o.save_total_limit, 0, kManySteps);
  check_number("--learning-rate", o.learning_rate, o.learning_rate > 0 && o.learning_rate <= 1e3,
               "a number above 0 and up to 1000");
  check_number("--min-lr-ratio", o.min_lr_ratio, o.min_lr_ratio >= 0 && o.min_lr_ratio <= 1,
               "a number in 0..1");
  check_number("--weight-decay", o.weight_decay, o.weight_decay >= 0 && o.weight_decay <= 1e3,
               "a number in 0..1000");
  check_number("--adam-beta1", o.adam_beta1, o.adam_beta1 >= 0 && o.adam_beta1 < 1,
               "a number from 0 to below 1");
  check_number("--adam-beta2", o.adam_beta2, o.adam_beta2 >= 0 && o.adam_beta2 < 1,
               "a number from 0 to below 1");
  check_number("--adam-epsilon", o.adam_epsilon, o.adam_epsilon > 0 && o.adam_epsilon <= 1,
               "a number above 0 and up to 1");
  check_number("--max-grad-norm", o.max_grad_norm, o.max_grad_norm >= 0,
               "a number of at least 0 (0: no clipping)");
  if (o.warmup_steps > o.max_steps) {
    fail(ErrorCode::kInvalidArgument,
         "[--warmup-steps] expected at most --max-steps {}, got {}; warm up for fewer steps",
         o.max_steps, o.warmup_steps);
  }
  if (o.batch_size * o.seq_len > (int64_t{1} << 31)) {
    fail(
        ErrorCode::kInvalidArgument,
        "[--batch-size] expected at most 2147483648 tokens a batch, got {} x {}; use a smaller one "
        "with --gradient-accumulation-steps",
        o.batch_size, o.seq_len);
  }
  if (o.resume && !o.init_from.empty()) {
    fail(
        ErrorCode::kInvalidArgument,
        "[--init-from] expected either --resume or --init-from, got both; a checkpoint has its own "
        "weights");
  }
  if (o.device == "ref64") {
    fail(ErrorCode::kInvalidArgument,
         "[--isa] expected a device that trains in f32, got ref64; use ref or cpu");
  }
}

Schedule schedule_of(const TrainOptions& o) {
  return {o.lr_schedule, o.learning_rate, o.min_lr_ratio, o.warmup_steps, o.max_steps};
}

Json course_of(const TrainOptions& o, const Tokenizer& tokenizer, const DataSet& data,
               const std::string& device) {
  return {{"--data", data.identity()},
          {"--data-weights", o.data_weights.empty() ? Json::array() : Json(data.weights())},
          {"--packing", packing_name(o.packing)},
          {"--tokenizer", fmt::format("{:016x}", tokenizer.fingerprint())},
          {"--seq-len", o.seq_len},
          {"--bptt-segments", o.bptt_segments},
          {"--freeze", std::set<std::string>(o.freeze.begin(), o.freeze.end())},
          {"--batch-size", o.batch_size},
          {"--gradient-accumulation-steps", o.gradient_accumulation_steps},
          {"--data-order", data_order_name(o.data_order)},
          {"--seed", std::to_string(o.seed)},
          {"--learning-rate", o.learning_rate},
          {"--warmup-steps", o.warmup_steps},
          {"--lr-scheduler-type", lr_schedule_name(o.lr_schedule)},
          {"--min-lr-ratio", o.min_lr_ratio},
          {"--max-steps", o.max_steps},
          {"--weight-decay", o.weight_decay},
          {"--adam-beta1", o.adam_beta1},
          {"--adam-beta2", o.adam_beta2},
          {"--adam-epsilon", o.adam_epsilon},
          {"--max-grad-norm", o.max_grad_norm},
          {"--bf16", o.bf16},
          {"device", device}};
}

void check_same_course(const Json& saved, const Json& now, int64_t step, const std::string& where) {
  for (const auto& [flag, value] : now.items()) {
    // The device may change (the caller says so), the template is in the data; rates are below.
    if (flag == "device" || flag == "--chat-template" || is_schedule_flag(flag)) continue;
    const Json before = saved_value(saved, flag, where);
    if (before == value) continue;
    fail(
        ErrorCode::kInvalidArgument,
        "[--resume {}] expected {} {} as in the run so far, got {}; repeat the options of the run, "
        "or start a new one with --init-from",
        where, flag, printable_json(before), printable_json(value));
  }
  check_same_rates(saved, now, step, where);
}

}  // namespace mamba
