// SPDX-License-Identifier: Apache-2.0
// Plan and end of a training run as JSON.
#include "cli/train_json.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

// JSON has neither infinity nor NaN.
OrderedJson number(double v) { return std::isfinite(v) ? OrderedJson(v) : OrderedJson(nullptr); }

const char* status_name(TrainStatus status) {
  switch (status) {
    case TrainStatus::kFinished:
      return "finished";
    case TrainStatus::kInterrupted:
      return "interrupted";
    case TrainStatus::kDiverged:
      return "diverged";
  }
  return "unknown";
}

std::string text_of(const OrderedJson& json) {
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace

std::string plan_json(const TrainOptions& options, const TrainPlan& plan) {
  return text_of({
      {"mixer", plan.config.mixer},
      {"d_model", plan.config.d_model},
      {"n_layer", plan.config.n_layer},
      {"vocab_size", plan.config.vocab_size},
      {"parameters", plan.parameters},
      {"trained_parameters", plan.trained_parameters},
      {"memory",
       {{"parameter_bytes", plan.parameter_bytes},
        {"gradient_bytes", plan.gradient_bytes},
        {"optimizer_bytes", plan.optimizer_bytes},
        {"activation_bytes", plan.activation_bytes},
        {"scratch_bytes", plan.scratch_bytes},
        {"total_bytes", plan.total_bytes()}}},
      {"tokenizer", plan.tokenizer},
      {"tokenizer_size", plan.tokenizer_size},
      {"batch_size", options.batch_size},
      {"seq_len", options.seq_len},
      {"tokens_per_step", plan.tokens_per_step},
      {"data_tokens", plan.data_tokens},
      {"steps_per_epoch", plan.steps_per_epoch},
      {"seed", options.seed},
      {"first_step", plan.first_step},
      {"max_steps", plan.max_steps},
      {"device", plan.device},
      {"threads", plan.threads},
  });
}

std::string result_json(const TrainOptions& options, const TrainResult& result) {
  OrderedJson json = {
      {"status", status_name(result.status)},
      {"step", result.last.step},
      {"max_steps", result.last.max_steps},
      {"tokens", result.last.tokens},
      {"seconds", result.last.seconds},
      {"tokens_per_second", result.last.tokens_per_second},
      {"loss", number(result.last.loss)},
      {"grad_norm", number(result.last.grad_norm)},
      {"validation", nullptr},
      {"seed", options.seed},
      {"output_dir", options.output_dir},
      {"checkpoint", result.checkpoint},
  };
  if (result.eval.targets > 0) {
    json["validation"] = {{"step", result.eval.step},
                          {"loss", number(result.eval.loss)},
                          {"perplexity", number(result.eval.perplexity)},
                          {"bits_per_byte", number(result.eval.bits_per_byte)}};
  }
  return text_of(json);
}

}  // namespace mamba::cli
