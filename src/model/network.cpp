// SPDX-License-Identifier: Apache-2.0
// Building the network from its configuration, and everything of it but the passes over tokens.
#include "model/network.h"

#include <fmt/format.h>

#include <cstring>

#include "base/check.h"

namespace mamba {
namespace {

// 64 bits over bytes: four lanes of multiply and rotate, so that large models take no noticeable
// time.
uint64_t hash_bytes(const void* data, int64_t bytes, uint64_t seed) {
  constexpr uint64_t kMul = 0x9fb21c651e98df25ull;
  uint64_t lanes[4] = {seed, seed + 1, seed + 2, seed + 3};
  const char* p = static_cast<const char*>(data);
  int64_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    for (int k = 0; k < 4; ++k) {
      uint64_t w;
      std::memcpy(&w, p + i + 8 * k, 8);
      lanes[k] = (lanes[k] ^ w) * kMul;
      lanes[k] ^= lanes[k] >> 29;
    }
  }
  uint64_t h = static_cast<uint64_t>(bytes);
  for (; i < bytes; ++i) h = (h ^ static_cast<unsigned char>(p[i])) * kMul;
  for (const uint64_t lane : lanes) h = (h ^ lane ^ (h >> 31)) * kMul;
  return h ^ (h >> 32);
}

}  // namespace

Product product_of(DType dtype) {
  if (dtype == DType::kF32) return Product::kF32;
  if (dtype == DType::kBF16) return Product::kBF16;
  fail(ErrorCode::kInvalidArgument, "[model] expected weights in f32 or bf16, got {}",
       dtype_name(dtype));
}

Network::Network(const Config& config, std::unique_ptr<Device> device, Product product)
    : config_(config), device_(std::move(device)), product_(product) {
  config_.validate();
  build();
  const int64_t size = dtype_size(device_->real());
  params_ = AlignedBlock(table_.flat_count() * size, "parameters");
  derived_ = AlignedBlock(derived_count_ * size, "derived parameters");
  for (const ParamSpec& spec : table_.specs()) {
    weights_.push_back({parameters() + spec.offset, nullptr});
  }
  grad_views_.resize(weights_.size());
  packed_.resize(weights_.size(), nullptr);
}

Network::~Network() {
  for (PackedLinear* p : packed_) {
    LinearUnpackArgs args{p};
    if (p != nullptr) device_->kernels().linear_unpack(device_->stream(), args);
  }
}

int Network::add_norm(const std::string& name, int* bias) {
  ParamSpec spec;
  spec.name = name + ".weight";
  spec.shape = {config_.d_model};
  spec.count = config_.d_model;
  spec.init = Init::kOne;
  const int weight = table_.add(spec);
  *bias = -1;
  if (config_.norm == NormKind::kLayer) {
    spec.name = name + ".bias";
    spec.init = Init::kZero;
    *bias = table_.add(spec);
  }
  return weight;
}

void Network::add_layer(std::unique_ptr<Mixer> op, const std::string& prefix,
                        const std::string& norm_name, const std::string& op_name) {
  SubLayer layer;
  layer.norm_weight = add_norm("backbone." + prefix + "." + norm_name, &layer.norm_bias);
  layer.first_param = static_cast<int>(table_.specs().size());
  for (ParamSpec spec : op->params()) {
    spec.name = "backbone." + prefix + "." + op_name + "." + spec.name;
    table_.add(std::move(spec));
  }
  layer.state_offset = state_elements_;
  for (const StateSpec& s : op->states()) {
    state_tensors_->push_back({prefix + "." + s.name, s.shape, state_elements_ + s.offset});
  }
  state_elements_ += op->state_count();
  layer.derived_offset = derived_count_;
  derived_count_ += (op->derived_count() + 15) / 16 * 16;
  layer.op = std::move(op);
  layers_.push_back(std::move(layer));
}

void Network::build() {
  state_tensors_ = std::make_shared<std::vector<StateTensor>>();
  ParamSpec matrix;
  matrix.name = "backbone.embeddings.weight";
  matrix.shape = {config_.vocab_size, config_.d_model};
  matrix.count = config_.vocab_size * config_.d_model;
  matrix.init = Init::kNormal;
  matrix.scale = config_.embedding_std;
  matrix.decay = matrix.matrix = true;
  embedding_ = table_.add(matrix);
  for (int64_t i = 0; i < config_.n_layer; ++i) {
    const std::string prefix = fmt::format("layers.{}", i);
    add_layer(make_mixer(config_), prefix, "norm", "mixer");
    if (config_.d_intermediate > 0) add_layer(make_gated_mlp(config_), prefix, "norm2", "mlp");
  }
  norm_f_weight_ = add_norm("backbone.norm_f", &norm_f_bias_);
  head_weight_ = embedding_;
  if (!config_.tie_embeddings) {
    matrix.name = "lm_head.weight";
    head_weight_ = table_.add(matrix);
  }
}

void Network::parameters_changed(bool pack) {
  for (const SubLayer& layer : layers_) {
    layer.op->prepare(view(layer, nullptr, nullptr, false), device_->real());
  }
  fingerprint_.clear();
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (packed_[i] != nullptr) {
      LinearUnpackArgs args{packed_[i]};
      device_->kernels().linear_unpack(device_->stream(), args);
      packed_[i] = nullptr;
    }
    const ParamSpec& spec = table_[static_cast<int>(i)];
    if (pack && spec.matrix) {
      LinearPackArgs args{spec.shape[0], spec.count / spec.shape[0], product_, weights_[i].data,
                          &packed_[i]};
      device_->kernels().linear_pack(device_->stream(), args);
    }
    weights_[i].packed = packed_[i];
  }
  device_->sync();
}

Buf Network::gradients() {
  if (grads_.data() == nullptr) {
    grads_ = AlignedBlock(table_.flat_count() * dtype_size(device_->real()), "gradients");
    for (size_t i = 0; i < grad_views_.size(); ++i) {
      grad_views_[i] = Buf(grads_.data(), device_->real()) + table_[static_cast<int>(i)].offset;
    }
  }
  return Buf(grads_.data(), device_->real());
}

void Network::zero_gradients() { fill_zero(gradients(), table_.flat_count()); }

State Network::new_state(int64_t batch) const {
  if (batch < 0 || batch > (int64_t{1} << 24)) {
    fail(ErrorCode::kInvalidArgument, "[state] expected a batch in 0..{}, got {}", 1 << 24, batch);
  }
  State state(state_tensors_, state_elements_, static_cast<int>(dtype_size(device_->real())),
              batch);
  for (int64_t row = 0; row < batch; ++row) {
    const Buf all(state.sequence(row), device_->real());
    for (const SubLayer& layer : layers_) {
      layer.op->initial_state(view(layer, nullptr, nullptr, false), all + layer.state_offset);
    }
  }
  return state;
}

const std::string& Network::fingerprint() const {
  if (fingerprint_.empty()) {
    uint64_t h = static_cast<uint64_t>(product_);
    for (const ParamSpec& spec : table_.specs()) {
      h = hash_bytes(spec.name.data(), static_cast<int64_t>(spec.name.size()), h);
      const CBuf data = weights_[static_cast<size_t>(&spec - table_.specs().data())].data;
      h = hash_bytes(data.data, spec.count * dtype_size(data.dtype), h);
    }
    // Numbers that change results without changing a tensor.
    const Config& c = config_;
    const double options[] = {c.norm_eps,
                              c.bcdt_rms_eps,
                              c.dt_limit_min,
                              c.dt_limit_max,
                              double(c.bcdt_rms),
                              double(c.gated_norm),
                              double(c.norm_before_gate),
                              double(c.norm_groups),
                              double(c.n_groups),
                              double(c.conv_silu),
                              double(c.norm == NormKind::kLayer)};
    h = hash_bytes(options, sizeof options, h);
    fingerprint_ = fmt::format("{:016x}", h);
  }
  return fingerprint_;
}

LayerView Network::view(const SubLayer& layer, const State* in, State* out, bool with_grads) const {
  const DType real = device_->real();
  LayerView v{};
  v.weights = weights_.data() + layer.first_param;
  v.grads = with_grads ? grad_views_.data() + layer.first_param : nullptr;
  v.derived = Buf(derived_.data(), real) + layer.derived_offset;
  if (in != nullptr) v.state_in = CBuf(in->sequence(0), real) + layer.state_offset;
  if (out != nullptr) v.state_out = Buf(out->sequence(0), real) + layer.state_offset;
  return v;
}

Arena Network::workspace(int64_t bytes) {
  if (bytes > workspace_.size()) {
    workspace_ = AlignedBlock();  // give the old one back first
    workspace_ = AlignedBlock(bytes, "activations");
  }
  return Arena(workspace_.data(), workspace_.size());
}

}  // namespace mamba
