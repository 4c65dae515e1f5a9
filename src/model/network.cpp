// SPDX-License-Identifier: Apache-2.0
// Building the network from its configuration, and everything of it but the passes over tokens.
#include "model/network.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <numeric>

#include "base/check.h"
#include "base/f16.h"
#include "base/hash.h"
#include "kernels/linear_packed.h"
#include "kernels/with_float.h"
#include "quant/dequantize.h"

namespace mamba {
namespace {

constexpr int64_t kHashBlock = 1 << 20;  // elements of a matrix that are hashed at once

// `count` values of any floating type to f32 or f64.
void convert(CBuf from, int64_t count, Buf to) {
  with_float(to.dtype, [&]<class T>() {
    T* out = to.as<T>();
    if (from.dtype == DType::kBF16 || from.dtype == DType::kF16) {
      const bool half = from.dtype == DType::kF16;
      for (int64_t i = 0; i < count; ++i) {
        out[i] = half ? to_f32(from.as<f16>()[i]) : to_f32(from.as<bf16>()[i]);
      }
      return;
    }
    with_float(from.dtype, [&]<class From>() {
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(from.as<From>()[i]);
    });
  });
}

}  // namespace

Product product_of(DType dtype) {
  if (dtype == DType::kF32 || dtype == DType::kF16 || is_quantized(dtype)) return Product::kF32;
  if (dtype == DType::kBF16) return Product::kBF16;
  fail(ErrorCode::kInvalidArgument,
       "[model] expected weights in f32, bf16, f16 or blocks (q8_0, q4_k, ...), got {}",
       dtype_name(dtype));
}

Network::Network(const Config& config, std::unique_ptr<Device> device, Product product,
                 Matrices matrices)
    : config_(config), device_(std::move(device)), product_(product), matrices_(matrices) {
  config_.validate();
  build();
  const DType real = device_->real();
  std::vector<int64_t> offsets;
  int64_t count = table_.flat_count();
  if (matrices_ == Matrices::kPackedOnly) {  // the rest moves together
    count = 0;
    for (const ParamSpec& spec : table_.specs()) {
      offsets.push_back(spec.matrix ? -1 : count);
      if (!spec.matrix) count += (spec.count + 15) / 16 * 16;
    }
  }
  params_ = AlignedBlock(count * dtype_size(real), "parameters", memory());
  derived_ = AlignedBlock(derived_count_ * dtype_size(real), "derived parameters", memory());
  for (size_t i = 0; i < table_.specs().size(); ++i) {
    const int64_t at = offsets.empty() ? table_.specs()[i].offset : offsets[i];
    const Buf data = at < 0 ? Buf(nullptr, real) : Buf(params_.data(), real) + at;
    values_.push_back(data);
    weights_.push_back({data, nullptr});
  }
  grad_views_.resize(weights_.size());
  packed_.resize(weights_.size(), nullptr);
}

Network::~Network() {
  for (size_t i = 0; i < packed_.size(); ++i) unpack(i);
}

void Network::add_layer(std::unique_ptr<Mixer> op, const std::string& prefix, int* next_param) {
  SubLayer layer;
  layer.norm_weight = (*next_param)++;
  if (config_.norm == NormKind::kLayer) layer.norm_bias = (*next_param)++;
  layer.first_param = *next_param;
  *next_param += static_cast<int>(op->params().size());
  layer.state_offset = state_elements_;
  for (const StateSpec& s : op->states()) {
    state_tensors_->push_back({prefix + "." + s.name, s.shape, state_elements_ + s.offset});
  }
  state_elements_ += op->state_count();
  layer.derived_offset = derived_count_;
  derived_count_ += (op->derived_count() + 15) / 16 * 16;
  layer.op = std::move(op);
  layer_list_.ops.push_back(layer.op.get());
  layers_.push_back(std::move(layer));
}

void Network::build() {
  state_tensors_ = std::make_shared<std::vector<StateTensor>>();
  table_ = parameter_table(config_);
  trained_ = layout_trained(table_, {});
  int next = 0;  // in the order of the table
  embedding_ = next++;
  for (int64_t i = 0; i < config_.n_layer; ++i) {
    const std::string prefix = fmt::format("layers.{}", i);
    add_layer(make_mixer(config_), prefix, &next);
    if (config_.d_intermediate > 0) add_layer(make_gated_mlp(config_), prefix, &next);
  }
  layer_list_.state_elements = state_elements_;
  norm_f_weight_ = next++;
  if (config_.norm == NormKind::kLayer) norm_f_bias_ = next++;
  head_weight_ = config_.tie_embeddings ? embedding_ : next++;
  MAMBA_CHECK(next == static_cast<int>(table_.specs().size()));
}

void Network::expect_kept() const {
  if (matrices_ == Matrices::kKept) return;
  fail(ErrorCode::kInvalidArgument,
       "[model] expected matrices in f32 to train or change them, got ones that are packed for "
       "inference ({}); create the model with dtype f32 or bf16 instead of loading it",
       dtype_name(weight_dtype()));
}

Buf Network::parameters() {
  expect_kept();
  return Buf(params_.data(), device_->real());
}

// `rows` are in memory().
void Network::pack(size_t index, CBuf rows) {
  const ParamSpec& spec = table_.specs()[index];
  unpack(index);
  const int64_t N = spec.shape[0], K = spec.count / N;
  if (is_quantized(rows.dtype)) {
    device_->kernels().linear_q_pack(device_->stream(), {N, K, rows, &packed_[index]});
  } else {
    LinearPackArgs args{N, K, product_, rows, &packed_[index]};
    args.by_rows = static_cast<int>(index) == embedding_;
    device_->kernels().linear_pack(device_->stream(), args);
  }
  device_->sync();  // out_of_memory, if it is
  weights_[index].packed = packed_[index];
}

void Network::unpack(size_t index) {
  if (packed_[index] == nullptr) return;
  device_->kernels().linear_unpack(device_->stream(), LinearUnpackArgs{packed_[index]});
  weights_[index].packed = packed_[index] = nullptr;
}

void Network::set_parameter(int index, CBuf values) {
  const size_t i = static_cast<size_t>(index);
  const ParamSpec& spec = table_[index];
  const DType real = device_->real();
  const bool packs = values_[i].data == nullptr;
  // Kernels take f32, bf16 and blocks as they are, and f16 for products in f32.
  const bool as_is =
      values.dtype == real || is_quantized(values.dtype) ||
      (real == DType::kF32 && values.dtype == DType::kBF16) ||
      (real == DType::kF32 && values.dtype == DType::kF16 && product_ == Product::kF32);
  if (packs && as_is) return pack_from_host(i, values);
  if (packs) {
    const AlignedBlock wide(spec.count * dtype_size(real), "one matrix");
    convert(values, spec.count, Buf(wide.data(), real));
    return pack_from_host(i, Buf(wide.data(), real));
  }
  HostView target(memory(), values_[i], spec.count, HostView::Use::kWrite);
  if (is_quantized(values.dtype)) {
    std::vector<float> wide(static_cast<size_t>(spec.count));
    dequantize(values.dtype, values.data, spec.count, wide.data());
    convert(CBuf(wide.data()), spec.count, target.buf());
  } else {
    convert(values, spec.count, target.buf());
  }
  target.write_back();
}

void Network::pack_from_host(size_t index, CBuf rows) {
  if (memory().on_host()) return pack(index, rows);
  const int64_t count = table_.specs()[index].count;
  const int64_t bytes = count / block_elements(rows.dtype) * block_bytes(rows.dtype);
  const AlignedBlock copy(bytes, "one matrix", memory());
  memory().copy_in(copy.data(), rows.data, bytes);
  pack(index, CBuf(copy.data(), rows.dtype));
}

void Network::get_rows(int index, int64_t first, int64_t count, float* out) const {
  const size_t i = static_cast<size_t>(index);
  const ParamSpec& spec = table_[index];
  const int64_t width = spec.count / spec.shape[0];
  if (values_[i].data != nullptr) {
    const HostView values(memory(), values_[i] + first * width, count * width);
    convert(values.buf(), count * width, Buf(out));
    return;
  }
  MAMBA_CHECK(packed_[i] != nullptr);
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), static_cast<int32_t>(first));
  const AlignedBlock ids(count * dtype_size(DType::kI32), "numbers of rows", memory());
  memory().copy_in(ids.data(), numbers.data(), ids.size());
  const DType real = device_->real();
  const AlignedBlock rows(count * width * dtype_size(real), "rows of a matrix", memory());
  packed_rows(*device_, packed_[i], count, CBuf(ids.data(), DType::kI32), Buf(rows.data(), real));
  device_->sync();
  const HostView values(memory(), CBuf(rows.data(), real), count * width);
  convert(values.buf(), count * width, Buf(out));
}

void Network::parameters_changed(bool pack_matrices) {
  static std::atomic<uint64_t> last_id = 0;
  values_id_ = ++last_id;
  for (const SubLayer& layer : layers_) {
    layer.op->prepare(*device_, view(layer, CBuf(), Buf(), false));
  }
  fingerprint_.clear();
  if (rounded_.data() != nullptr) round_matrices();
  if (matrices_ == Matrices::kPackedOnly) return;
  for (size_t i = 0; i < weights_.size(); ++i) {
    unpack(i);
    if (pack_matrices && table_.specs()[i].matrix) pack(i, values_[i]);
  }
}

Buf Network::gradients() {
  expect_kept();
  if (grads_.data() == nullptr) {
    const int64_t count = trained_.count + trained_.sink;
    grads_ = AlignedBlock(count * dtype_size(device_->real()), "gradients", memory());
    for (size_t i = 0; i < grad_views_.size(); ++i) {
      const bool frozen = trained_.offsets[i] < 0;
      if (frozen && table_.specs()[i].matrix) continue;
      grad_views_[i] =
          Buf(grads_.data(), device_->real()) + (frozen ? trained_.count : trained_.offsets[i]);
    }
    const DType half = device_->activation(product_);
    if (half != device_->real()) {
      rounded_ = AlignedBlock(table_.flat_count() * dtype_size(half), "matrices", memory());
      for (size_t i = 0; i < weights_.size(); ++i) {
        const ParamSpec& spec = table_.specs()[i];
        if (spec.matrix) weights_[i].rounded = CBuf(rounded_.data(), half) + spec.offset;
      }
      round_matrices();
    }
  }
  return Buf(grads_.data(), device_->real());
}

void Network::round_matrices() {
  device_->kernels().cast(device_->stream(), {table_.flat_count(), parameters(),
                                              Buf(rounded_.data(), device_->activation(product_))});
}

void Network::zero_gradients() { fill_zero(memory(), gradients(), trained_.count + trained_.sink); }

void Network::freeze(const std::vector<bool>& frozen) {
  MAMBA_CHECK(grads_.data() == nullptr);
  MAMBA_CHECK(frozen.empty() || frozen.size() == table_.specs().size());
  trained_ = layout_trained(table_, frozen);
  layer_list_.first_trained = first_trained_layer(config_, layer_list_.ops, trained_);
}

void Network::set_state_dtype(DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    fail(ErrorCode::kInvalidArgument, "[state] expected states in f32 or bf16, got {}",
         dtype_name(dtype));
  }
  state_dtype_ = dtype;
}

State Network::new_state(int64_t batch) const {
  if (batch < 0 || batch > (int64_t{1} << 24)) {
    fail(ErrorCode::kInvalidArgument, "[state] expected a batch in 0..{}, got {}", 1 << 24, batch);
  }
  const DType real = device_->real();
  State state(state_tensors_, state_elements_, real, batch, device_->shared_memory());
  for (int64_t row = 0; row < batch; ++row) {
    const Buf all(state.sequence(row), real);
    for (const SubLayer& layer : layers_) {
      layer.op->initial_state(*device_, view(layer, CBuf(), Buf(), false),
                              all + layer.state_offset);
    }
  }
  if (real != DType::kF32 || state_dtype_ == DType::kF32) return state;
  State narrow(state_tensors_, state_elements_, state_dtype_, batch, device_->shared_memory());
  const Buf to(narrow.sequence(0), state_dtype_);
  device_->kernels().cast(device_->stream(),
                          {batch * state_elements_, CBuf(state.sequence(0), real), to});
  device_->sync();
  return narrow;
}

DType Network::weight_dtype() const {
  const DType plain = product_ == Product::kBF16 ? DType::kBF16 : DType::kF32;
  std::map<DType, int64_t> elements = {{plain, 0}};
  for (const PackedLinear* packed : packed_) {
    if (packed == nullptr) continue;
    const bool own = is_quantized(packed->dtype) || packed->dtype == DType::kF16;
    elements[own ? packed->dtype : plain] += packed->N * packed->K;
  }
  DType most = plain;
  for (const auto& [type, count] : elements) {
    if (count > elements[most]) most = type;
  }
  return most;
}

DType Network::held_type(int index) const {
  const PackedLinear* packed = packed_[static_cast<size_t>(index)];
  return packed != nullptr ? packed->dtype : device_->real();
}

int64_t Network::held_bytes(int index) const {
  return dtype_bytes(held_type(index), table_[index].count);
}

const std::string& Network::fingerprint() const {
  if (fingerprint_.empty()) {
    uint64_t h = static_cast<uint64_t>(product_);
    std::vector<float> rows;
    for (size_t i = 0; i < weights_.size(); ++i) {
      const ParamSpec& spec = table_.specs()[i];
      h = hash_bytes(spec.name.data(), static_cast<int64_t>(spec.name.size()), h);
      // Products with blocks round their inputs.
      if (packed_[i] != nullptr && is_quantized(packed_[i]->dtype)) {
        const char* type = dtype_name(packed_[i]->dtype);
        h = hash_bytes(type, static_cast<int64_t>(std::strlen(type)), h);
      }
      const int64_t width = spec.count / spec.shape[0];
      const int64_t block = std::max<int64_t>(1, kHashBlock / width);
      for (int64_t row = 0; row < spec.shape[0]; row += block) {
        const int64_t count = std::min(block, spec.shape[0] - row);
        rows.resize(static_cast<size_t>(count * width));
        get_rows(static_cast<int>(i), row, count, rows.data());
        // As the products see them, so that packed and unpacked weights agree.
        if (spec.matrix && product_ == Product::kBF16) {
          for (float& v : rows) v = to_f32(to_bf16(v));
        }
        h = hash_bytes(rows.data(), count * width * 4, h);
      }
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
  const CBuf state_in = in != nullptr ? CBuf(in->sequence(0), in->dtype()) : CBuf();
  return view(layer, state_in, out != nullptr ? Buf(out->sequence(0), out->dtype()) : Buf(),
              with_grads);
}

LayerView Network::view(const SubLayer& layer, CBuf state_in, Buf state_out,
                        bool with_grads) const {
  const DType real = device_->real();
  LayerView v{};
  v.weights = weights_.data() + layer.first_param;
  v.grads = with_grads ? grad_views_.data() + layer.first_param : nullptr;
  v.derived = Buf(derived_.data(), real) + layer.derived_offset;
  v.state_in = state_in + layer.state_offset;
  v.state_out = state_out + layer.state_offset;
  return v;
}

Arena Network::workspace(int64_t bytes) {
  if (bytes > workspace_.size()) {
    workspace_ = AlignedBlock();  // give the old one back first
    workspace_ = AlignedBlock(bytes, "activations", memory());
  }
  return Arena(workspace_.data(), workspace_.size(), &workspace_peak_);
}

}  // namespace mamba
