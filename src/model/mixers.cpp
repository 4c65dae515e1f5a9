// SPDX-License-Identifier: Apache-2.0
// The table of variants, and what all mixers share.
#include <fmt/ranges.h>

#include "base/check.h"
#include "kernels/linear_packed.h"
#include "model/mixer.h"
#include "model/mixers/all.h"

namespace mamba {
namespace {

struct Variant {
  const char* name;
  std::unique_ptr<Mixer> (*make)(const Config&);
};

constexpr Variant kVariants[] = {
    {"mamba1", make_mamba1},
    {"mamba2", make_mamba2},
};

int64_t product_of(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

}  // namespace

std::vector<std::string> mixer_names() {
  std::vector<std::string> names;
  for (const Variant& v : kVariants) names.emplace_back(v.name);
  return names;
}

std::unique_ptr<Mixer> make_mixer(const Config& config) {
  for (const Variant& v : kVariants) {
    if (config.mixer == v.name) return v.make(config);
  }
  fail(ErrorCode::kUnsupported, "[model] expected a mixer of {}; got '{}'",
       fmt::join(mixer_names(), ", "), config.mixer);
}

int Mixer::add_param(std::string name, std::vector<int64_t> shape, Init init, double scale,
                     bool decay, bool matrix) {
  ParamSpec spec;
  spec.name = std::move(name);
  spec.count = product_of(shape);
  spec.shape = std::move(shape);
  spec.init = init;
  spec.scale = scale;
  spec.decay = decay;
  spec.matrix = matrix;
  params_.push_back(std::move(spec));
  return static_cast<int>(params_.size()) - 1;
}

int Mixer::add_state(std::string name, std::vector<int64_t> shape) {
  StateSpec spec;
  spec.name = std::move(name);
  spec.count = product_of(shape);
  spec.shape = std::move(shape);
  spec.offset = state_count_;
  state_count_ += spec.count;
  states_.push_back(std::move(spec));
  return static_cast<int>(states_.size()) - 1;
}

void Mixer::initial_state(Device& device, const LayerView&, Buf dst) const {
  fill_zero(device.memory(), dst, state_count_);
}

void fill_zero(DeviceMemory& memory, Buf dst, int64_t count) {
  if (dst) memory.zero(dst.data, count * dtype_size(dst.dtype));
}

void copy_rows(DeviceMemory& memory, CBuf from, int64_t from_stride, Buf to, int64_t to_stride,
               int64_t rows, int64_t count) {
  if (!from || !to || count == 0) return;
  const int64_t size = dtype_size(to.dtype);
  memory.copy_rows(to.data, to_stride * size, from.data, from_stride * size, count * size, rows);
}

LinearArgs linear_args(const Context& ctx, CBuf x, int64_t x_stride, const Weight& weight,
                       CBuf bias, Buf y, int64_t y_stride, int64_t N, int64_t K) {
  LinearArgs args{};
  args.M = ctx.rows(), args.N = N, args.K = K;
  args.product = ctx.product;
  args.x = x, args.x_stride = x_stride;
  args.weight = weight.rounded ? weight.rounded : weight.data;
  args.packed = weight.packed;
  args.bias = bias;
  args.y = y, args.y_stride = y_stride;
  return args;
}

bool in_blocks(const Weight& weight) {
  return weight.packed != nullptr && is_quantized(weight.packed->dtype);
}

void linear(const Context& ctx, CBuf x, int64_t x_stride, const Weight& weight, CBuf bias, Buf y,
            int64_t y_stride, int64_t N, int64_t K) {
  if (in_blocks(weight)) {
    LinearQArgs args{};
    args.M = ctx.rows(), args.N = N, args.K = K;
    args.x = x, args.x_stride = x_stride;
    args.packed = weight.packed, args.bias = bias;
    args.y = y, args.y_stride = y_stride;
    ctx.kernels().linear_q_forward(ctx.stream(), args);
    return;
  }
  ctx.kernels().linear_forward(ctx.stream(),
                               linear_args(ctx, x, x_stride, weight, bias, y, y_stride, N, K));
}

void linear(const Context& ctx, const StepInput& x, const Weight& weight, CBuf bias, Buf y,
            int64_t y_stride, int64_t N, int64_t K) {
  if (x.norm != nullptr && !in_blocks(weight)) {
    ctx.kernels().norm_linear(ctx.stream(),
                              {*x.norm, linear_args(ctx, x.x, K, weight, bias, y, y_stride, N, K)});
    return;
  }
  if (x.norm != nullptr) ctx.kernels().rms_norm_forward(ctx.stream(), *x.norm);
  linear(ctx, x.x, K, weight, bias, y, y_stride, N, K);
}

void packed_rows(Device& device, const PackedLinear* packed, int64_t rows, CBuf ids, Buf y) {
  if (is_quantized(packed->dtype)) {
    device.kernels().linear_q_rows(device.stream(), {packed, rows, ids, y});
  } else {
    device.kernels().linear_rows(device.stream(), {packed, rows, ids, y});
  }
}

void linear_backward(const Context& ctx, CBuf x, int64_t x_stride, const Weight& weight, CBuf dy,
                     int64_t dy_stride, Buf dx, int64_t dx_stride, bool accumulate, Buf dweight,
                     Buf dbias, int64_t N, int64_t K) {
  if (dx) {
    LinearBackwardInputArgs args{};
    args.M = ctx.rows();
    args.N = N;
    args.K = K;
    args.product = ctx.product;
    args.dy = dy;
    args.dy_stride = dy_stride;
    args.weight = weight.rounded ? weight.rounded : weight.data;
    args.accumulate = accumulate;
    args.dx = dx;
    args.dx_stride = dx_stride;
    ctx.kernels().linear_backward_input(ctx.stream(), args);
  }
  if (!dweight) {  // a frozen matrix; its bias may be trained
    if (dbias) ctx.kernels().column_sum(ctx.stream(), {ctx.rows(), N, dy, dy_stride, dbias});
    return;
  }
  LinearBackwardWeightArgs args{};
  args.M = ctx.rows();
  args.N = N;
  args.K = K;
  args.product = ctx.product;
  args.dy = dy;
  args.dy_stride = dy_stride;
  args.x = x;
  args.x_stride = x_stride;
  args.dweight = dweight;
  args.dbias = dbias;
  ctx.kernels().linear_backward_weight(ctx.stream(), args);
}

}  // namespace mamba
