// SPDX-License-Identifier: Apache-2.0
// The public Learner over a Network and AdamW.
#include "mamba/learner.h"

#include <cmath>

#include "base/check.h"
#include "formats/hf_config.h"
#include "model/model_io.h"
#include "model/network.h"
#include "train/optimizer.h"

namespace mamba {
namespace {

std::unique_ptr<Network> network_for(const Config& config, const LearnerOptions& options) {
  std::unique_ptr<Device> device = Device::create({options.device, options.threads});
  if (device->real() != DType::kF32) {
    fail(ErrorCode::kInvalidArgument,
         "[learner] expected a device that trains in f32, got {}; use ref or cpu", device->name());
  }
  return std::make_unique<Network>(config, std::move(device),
                                   options.bf16 ? Product::kBF16 : Product::kF32);
}

Batch batch_of(const int32_t* tokens, const int32_t* targets, int64_t batch, int64_t length,
               const int32_t* documents) {
  Batch b;
  b.B = batch, b.L = length;
  b.ids = tokens, b.targets = targets, b.doc_ids = documents;
  return b;
}

}  // namespace

Learner::Learner(std::unique_ptr<Network> network, const LearnerOptions& o)
    : network_(std::move(network)),
      optimizer_(std::make_unique<AdamW>(
          *network_, AdamwOptions{o.adam_beta1, o.adam_beta2, o.adam_epsilon, o.weight_decay})),
      max_grad_norm_(o.max_grad_norm) {
  network_->zero_gradients();
}
Learner::Learner(Learner&&) noexcept = default;
Learner& Learner::operator=(Learner&&) noexcept = default;
Learner::~Learner() = default;

Learner Learner::create(const Config& config, uint64_t seed, const LearnerOptions& options) {
  std::unique_ptr<Network> network = network_for(config, options);
  initialize(*network, seed);
  network->parameters_changed(false);
  return Learner(std::move(network), options);
}

Learner Learner::load(const std::string& folder, const LearnerOptions& options) {
  std::unique_ptr<Network> network = network_for(read_config(folder), options);
  load_weights(*network, folder, false);
  return Learner(std::move(network), options);
}

const Config& Learner::config() const { return network_->config(); }

void Learner::accumulate(const int32_t* tokens, const int32_t* targets, int64_t batch,
                         int64_t length, const int32_t* documents) {
  const LossSum sum =
      network_->forward_backward(batch_of(tokens, targets, batch, length, documents), 1.0);
  nll_ += sum.nll;
  targets_ += sum.targets;
}

UpdateReport Learner::update(double learning_rate) {
  if (targets_ == 0) {
    fail(ErrorCode::kInvalidArgument,
         "[learner] expected scored targets before an update, got none; call accumulate with "
         "targets other than -1");
  }
  UpdateReport report;
  report.targets = targets_;
  const double share = 1.0 / static_cast<double>(targets_);
  report.loss = nll_ * share;
  report.grad_norm = optimizer_->grad_norm() * share;
  report.applied = std::isfinite(report.loss) && std::isfinite(report.grad_norm);
  if (report.applied) {
    optimizer_->update(++steps_, learning_rate,
                       share * clip_scale(report.grad_norm, max_grad_norm_));
    network_->parameters_changed(false);
  }
  network_->zero_gradients();
  nll_ = 0;
  targets_ = 0;
  return report;
}

UpdateReport Learner::step(const int32_t* tokens, const int32_t* targets, int64_t batch,
                           int64_t length, double learning_rate, const int32_t* documents) {
  accumulate(tokens, targets, batch, length, documents);
  return update(learning_rate);
}

double Learner::evaluate(const int32_t* tokens, const int32_t* targets, int64_t batch,
                         int64_t length, const int32_t* documents) {
  const LossSum sum = network_->forward(batch_of(tokens, targets, batch, length, documents),
                                        nullptr, Logits::kNone, Buf(), Buf());
  return sum.targets > 0 ? sum.nll / static_cast<double>(sum.targets) : 0;
}

void Learner::save(const std::string& folder, DType dtype) const {
  save_model(*network_, folder, dtype);
}

}  // namespace mamba
