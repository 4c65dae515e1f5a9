// SPDX-License-Identifier: Apache-2.0
// Model::explain, and the log that it is made of.
#include "model/explain.h"

#include <cmath>
#include <exception>

#include "base/json.h"
#include "mamba/model.h"
#include "model/network.h"

namespace mamba {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr int64_t kPrompt = 64;  // tokens: more than any kernel for few rows takes

// Takes the device's choices while it lives.
class Log {
 public:
  explicit Log(Device& device) : choices_(device.choices()) {
    choices_.on_choice = add;
    choices_.log = this;
  }
  ~Log() { choices_.on_choice = nullptr; }
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  std::vector<ExplainedChoice> take() {
    if (failed_) std::rethrow_exception(failed_);
    return std::move(all_);
  }

 private:
  static void add(void* log, const Request& request, const Choice& choice) {
    Log& self = *static_cast<Log*>(log);
    try {
      for (ExplainedChoice& e : self.all_) {
        if (!same_class(e.request, request) || e.request.possible != request.possible) continue;
        ++e.calls;
        return;
      }
      self.all_.push_back({request, choice, 1});
    } catch (...) {  // no memory for a line; kernels must not throw
      self.failed_ = std::current_exception();
    }
  }

  Choices& choices_;
  std::vector<ExplainedChoice> all_;
  std::exception_ptr failed_;
};

OrderedJson to_json(const ExplainedChoice& e) {
  const Request& r = e.request;
  OrderedJson json = {{"operation", name_of(r.operation)},
                      {"type", dtype_name(r.type)},
                      {"rows", r.rows},
                      {"size", r.size},
                      {"depth", r.depth},
                      {"calls", e.calls},
                      {"chosen", name_of(e.choice.way)},
                      {"meaning", text_of(e.choice.way)},
                      {"why", text_of(e.choice.why)},
                      {"alternatives", OrderedJson::array()}};
  for (int i = 0; i < kWays; ++i) {
    const Way way = static_cast<Way>(i);
    if ((r.possible & bit(way)) != 0) json["alternatives"].push_back(name_of(way));
    if (e.choice.row == nullptr || e.choice.row->microseconds[i] <= 0) continue;
    json["step_microseconds"][name_of(way)] =
        std::round(static_cast<double>(e.choice.row->microseconds[i]) * 10) / 10;
  }
  return json;
}

OrderedJson phase(const char* name, int64_t batch, int64_t tokens,
                  const std::vector<ExplainedChoice>& choices) {
  OrderedJson json = {
      {"phase", name}, {"batch", batch}, {"tokens", tokens}, {"choices", OrderedJson::array()}};
  for (const ExplainedChoice& e : choices) json["choices"].push_back(to_json(e));
  return json;
}

OrderedJson device_json(Device& device) {
  const Card& card = device.card();
  OrderedJson json = {{"device", device.name()}, {"hardware", device.hardware()}};
  if (card.capability != 0) {
    json["compute_capability"] = card.capability;
    json["multiprocessors"] = card.multiprocessors;
  }
  json["backend"] = name_of(device.choices().mode);
  json["rows_of_tune"] = device.choices().tuned.count;
  json["file_of_tune"] = nullptr;
  if (!device.choices_file().empty()) json["file_of_tune"] = device.choices_file();
  json["rows_of_card"] = device.choices().card.count;
  return json;
}

}  // namespace

std::vector<ExplainedChoice> choices_of(Device& device, const std::function<void()>& body) {
  Log log(device);
  body();
  device.sync();
  return log.take();
}

std::string Model::explain(int64_t batch) {
  Device& device = network_->device();
  const auto vocab = static_cast<size_t>(config().vocab_size);
  OrderedJson json = device_json(device);
  json["dtype"] = dtype_name(dtype());
  json["mixer"] = config().mixer;
  json["phases"] = OrderedJson::array();
  {
    const std::vector<int32_t> tokens(static_cast<size_t>(kPrompt), 0);
    State state = new_state(1);
    std::vector<float> logits(vocab);
    const auto choices = choices_of(
        device, [&] { forward(tokens.data(), kPrompt, state, Logits::kLast, logits.data()); });
    json["phases"].push_back(phase("prefill", 1, kPrompt, choices));
  }
  const std::vector<int32_t> tokens(static_cast<size_t>(batch), 0);
  State state = new_state(batch);
  std::vector<float> logits(vocab * static_cast<size_t>(batch));
  const auto choices = choices_of(device, [&] { step(tokens.data(), state, logits.data()); });
  json["phases"].push_back(phase("decode", batch, 1, choices));
  return json_text(json, -1);
}

}  // namespace mamba
