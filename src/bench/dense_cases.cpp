// SPDX-License-Identifier: Apache-2.0
// Cases of the kernels that know no time: embedding, norms, matrix products, gate, loss, optimizer,
// sampling. Flops count the formula in the kernel's header: one multiply-add is 2, one exp is 1.
#include <memory>

#include "bench/kernel_cases.h"

namespace mamba {
namespace {

// d_model 768 at 2048 tokens: the middle of what this engine trains.
constexpr int64_t kRows = 2048, kDim = 768;

void build_embed_forward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"], V = c.shape["V"];
  EmbedArgs a{};
  a.rows = rows, a.dim = dim, a.vocab = V;
  a.ids = c.ids(rows, V);
  a.weight = c.in(V * dim);
  a.y = c.out(rows * dim);
  c.cost.bytes = static_cast<double>(rows) * (8.0 * static_cast<double>(dim) + 4);  // rows, not V
  run_with(c, &Kernels::embed_forward, a);
}

void build_embed_backward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"], V = c.shape["V"];
  EmbedBackwardArgs a{};
  a.rows = rows, a.dim = dim, a.vocab = V;
  a.ids = c.ids(rows, V);
  a.dy = c.in(rows * dim);
  a.dweight = c.inout(V * dim);
  c.terms = rows;
  c.cost.flops = static_cast<double>(rows * dim);
  c.cost.bytes = static_cast<double>(rows) * (12.0 * static_cast<double>(dim) + 4);
  run_with(c, &Kernels::embed_backward, a);
}

void build_rms_norm_forward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"];
  RmsNormArgs a{};
  a.rows = rows, a.dim = dim, a.eps = 1e-5;
  a.x = c.in(rows * dim), a.x_stride = dim;
  a.residual = c.in(rows * dim);
  a.weight = c.in(dim);
  a.residual_out = c.out(rows * dim);
  a.y = c.out(rows * dim), a.y_stride = dim;
  a.rstd = c.out(rows);
  c.terms = dim;
  c.cost.flops = 5.0 * static_cast<double>(rows * dim);
  run_with(c, &Kernels::rms_norm_forward, a);
}

void build_rms_norm_backward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"];
  RmsNormBackwardArgs a{};
  a.rows = rows, a.dim = dim;
  a.r = c.in(rows * dim), a.r_stride = dim;
  a.weight = c.in(dim);
  a.rstd = c.in(rows, 1, 2);
  a.dy = c.in(rows * dim), a.dy_stride = dim;
  a.dresidual_out = c.in(rows * dim);
  a.dr = c.out(rows * dim), a.dr_stride = dim;
  a.dweight = c.inout(dim);
  c.terms = rows;
  c.cost.flops = 10.0 * static_cast<double>(rows * dim);
  run_with(c, &Kernels::rms_norm_backward, a);
}

void build_layer_norm_forward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"];
  LayerNormArgs a{};
  a.rows = rows, a.dim = dim, a.eps = 1e-5;
  a.x = c.in(rows * dim);
  a.residual = c.in(rows * dim);
  a.weight = c.in(dim);
  a.bias = c.in(dim);
  a.residual_out = c.out(rows * dim);
  a.y = c.out(rows * dim);
  a.mean = c.out(rows);
  a.rstd = c.out(rows);
  c.terms = dim;
  c.cost.flops = 8.0 * static_cast<double>(rows * dim);
  run_with(c, &Kernels::layer_norm_forward, a);
}

void build_layer_norm_backward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"];
  LayerNormBackwardArgs a{};
  a.rows = rows, a.dim = dim;
  a.r = c.in(rows * dim);
  a.weight = c.in(dim);
  a.mean = c.in(rows, -0.1, 0.1);
  a.rstd = c.in(rows, 1, 2);
  a.dy = c.in(rows * dim);
  a.dresidual_out = c.in(rows * dim);
  a.dr = c.out(rows * dim);
  a.dweight = c.inout(dim);
  a.dbias = c.inout(dim);
  c.terms = rows;
  c.cost.flops = 14.0 * static_cast<double>(rows * dim);
  run_with(c, &Kernels::layer_norm_backward, a);
}

void build_gated_norm_forward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"], groups = c.shape["groups"];
  GatedNormArgs a{};
  a.rows = rows, a.dim = dim, a.groups = groups, a.eps = 1e-5;
  a.x = c.in(rows * dim), a.x_stride = dim;
  a.z = c.in(rows * dim), a.z_stride = dim;
  a.weight = c.in(dim);
  a.y = c.out(rows * dim), a.y_stride = dim;
  a.rstd = c.out(rows * groups);
  c.terms = dim;
  c.cost.flops = 9.0 * static_cast<double>(rows * dim);
  run_with(c, &Kernels::gated_norm_forward, a);
}

void build_gated_norm_backward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"], groups = c.shape["groups"];
  GatedNormBackwardArgs a{};
  a.rows = rows, a.dim = dim, a.groups = groups;
  a.x = c.in(rows * dim), a.x_stride = dim;
  a.z = c.in(rows * dim), a.z_stride = dim;
  a.weight = c.in(dim);
  a.rstd = c.in(rows * groups, 1, 2);
  a.dy = c.in(rows * dim), a.dy_stride = dim;
  a.dx = c.out(rows * dim), a.dx_stride = dim;
  a.dz = c.out(rows * dim), a.dz_stride = dim;
  a.dweight = c.inout(dim);
  c.terms = rows;
  c.cost.flops = 22.0 * static_cast<double>(rows * dim);
  run_with(c, &Kernels::gated_norm_backward, a);
}

Product product_of(const Shape& shape) {
  return shape["bf16"] == 1 ? Product::kBF16 : Product::kF32;
}

double product_flops(int64_t M, int64_t N, int64_t K) {
  return 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
}

// Outside of the timing: a->packed is `weight` in the layout of the backend that runs.
template <class Args>
void pack_before(KernelCase& c, int64_t N, int64_t K, CBuf weight, std::shared_ptr<Args> a) {
  auto packed = std::make_shared<PackedLinear*>(nullptr);
  const Product product = product_of(c.shape);
  c.prepare = [=](const Kernels& k, Stream& s) {
    k.linear_pack(s, LinearPackArgs{N, K, product, weight, packed.get(), true});
    a->packed = *packed;
  };
  c.finish = [=](const Kernels& k, Stream& s) {
    k.linear_unpack(s, LinearUnpackArgs{*packed});
    *packed = nullptr;
    a->packed = nullptr;
  };
}

void build_linear_rows(KernelCase& c) {
  const int64_t rows = c.shape["rows"], N = c.shape["N"], K = c.shape["K"];
  auto a = std::make_shared<LinearRowsArgs>();
  a->rows = rows;
  a->ids = c.ids(rows, N);
  a->y = c.out(rows * K);
  c.cost.bytes = static_cast<double>(rows) * (8.0 * static_cast<double>(K) + 4);
  pack_before(c, N, K, c.in(N * K), a);
  c.run = [a](const Kernels& k, Stream& s) { k.linear_rows(s, *a); };
}

void build_linear_forward(KernelCase& c) {
  const int64_t M = c.shape["M"], N = c.shape["N"], K = c.shape["K"];
  auto a = std::make_shared<LinearArgs>();
  a->M = M, a->N = N, a->K = K, a->product = product_of(c.shape);
  a->x = c.in(M * K), a->x_stride = K;
  a->weight = c.in(N * K);
  a->y = c.out(M * N), a->y_stride = N;
  c.terms = K;
  c.cost.flops = product_flops(M, N, K);
  pack_before(c, N, K, a->weight, a);
  c.run = [a](const Kernels& k, Stream& s) { k.linear_forward(s, *a); };
}

void build_norm_linear(KernelCase& c) {
  const int64_t M = c.shape["M"], N = c.shape["N"], K = c.shape["K"];
  auto a = std::make_shared<LinearArgs>();
  a->M = M, a->N = N, a->K = K, a->product = product_of(c.shape);
  a->weight = c.in(N * K);
  RmsNormArgs norm{};
  norm.rows = M, norm.dim = K, norm.eps = 1e-5;
  norm.x = c.in(M * K), norm.x_stride = K;
  norm.residual = c.in(M * K);
  norm.weight = c.in(K);
  norm.residual_out = c.out(M * K);
  norm.y = c.room(M * K), norm.y_stride = K;
  a->x = norm.y, a->x_stride = K;
  a->y = c.out(M * N), a->y_stride = N;
  c.terms = 2 * K;
  c.cost.flops = product_flops(M, N, K) + 5.0 * static_cast<double>(M * K);
  pack_before(c, N, K, a->weight, a);
  c.run = [a, norm](const Kernels& k, Stream& s) { k.norm_linear(s, {norm, *a}); };
}

void build_linear_backward_input(KernelCase& c) {
  const int64_t M = c.shape["M"], N = c.shape["N"], K = c.shape["K"];
  LinearBackwardInputArgs a{};
  a.M = M, a.N = N, a.K = K, a.product = product_of(c.shape);
  a.dy = c.in(M * N), a.dy_stride = N;
  a.weight = c.in(N * K);
  a.dx = c.out(M * K), a.dx_stride = K;
  c.terms = N;
  c.cost.flops = product_flops(M, N, K);
  run_with(c, &Kernels::linear_backward_input, a);
}

void build_linear_backward_weight(KernelCase& c) {
  const int64_t M = c.shape["M"], N = c.shape["N"], K = c.shape["K"];
  LinearBackwardWeightArgs a{};
  a.M = M, a.N = N, a.K = K, a.product = product_of(c.shape);
  a.dy = c.in(M * N), a.dy_stride = N;
  a.x = c.in(M * K), a.x_stride = K;
  a.dweight = c.inout(N * K);
  c.terms = M;
  c.cost.flops = product_flops(M, N, K);
  run_with(c, &Kernels::linear_backward_weight, a);
}

void build_gate_forward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"];
  GateArgs a{};
  a.rows = rows, a.dim = dim;
  a.a = c.in(rows * dim), a.a_stride = dim;
  a.z = c.in(rows * dim), a.z_stride = dim;
  a.y = c.out(rows * dim), a.y_stride = dim;
  c.cost.flops = 5.0 * static_cast<double>(rows * dim);
  run_with(c, &Kernels::gate_forward, a);
}

void build_gate_backward(KernelCase& c) {
  const int64_t rows = c.shape["rows"], dim = c.shape["dim"];
  GateBackwardArgs a{};
  a.rows = rows, a.dim = dim;
  a.a = c.in(rows * dim), a.a_stride = dim;
  a.z = c.in(rows * dim), a.z_stride = dim;
  a.dy = c.in(rows * dim), a.dy_stride = dim;
  a.da = c.out(rows * dim), a.da_stride = dim;
  a.dz = c.out(rows * dim), a.dz_stride = dim;
  c.cost.flops = 11.0 * static_cast<double>(rows * dim);
  run_with(c, &Kernels::gate_backward, a);
}

void build_cross_entropy(KernelCase& c) {
  const int64_t rows = c.shape["rows"], V = c.shape["V"];
  CrossEntropyArgs a{};
  a.rows = rows, a.vocab = V;
  a.targets = c.ids(rows, V);
  a.logits = c.inout(rows * V, -4, 4), a.logits_stride = V;
  a.write_gradient = true, a.scale = 1;
  a.nll = c.out(rows);
  c.terms = V;
  c.cost.flops = 5.0 * static_cast<double>(rows * V);
  run_with(c, &Kernels::cross_entropy, a);
}

void build_grad_norm(KernelCase& c) {
  GradNormArgs a{};
  a.count = c.shape["count"];
  a.g = c.in(a.count);
  a.sum_of_squares = c.out(1, DType::kF64).as<double>();
  c.cost.flops = 2.0 * static_cast<double>(a.count);
  run_with(c, &Kernels::grad_norm, a);
}

void build_adamw(KernelCase& c) {
  AdamwArgs a{};
  a.count = c.shape["count"];
  a.lr = 1e-3, a.beta1 = 0.9, a.beta2 = 0.95, a.eps = 1e-8, a.weight_decay = 0.1;
  a.grad_scale = 1, a.step = 10;
  a.g = c.in(a.count);
  a.p = c.inout(a.count);
  a.m = c.inout(a.count);
  a.v = c.inout(a.count, 0.01, 1);
  c.cost.flops = 15.0 * static_cast<double>(a.count);
  run_with(c, &Kernels::adamw, a);
}

void build_sample(KernelCase& c) {
  SampleRow a{};
  a.vocab = c.shape["V"];
  a.logits = c.in(a.vocab, -8, 8);
  static constexpr SampleStep kSteps[] = {SampleStep::kTopK, SampleStep::kTopP,
                                          SampleStep::kTemperature};
  a.steps = kSteps, a.step_count = 3;
  a.temperature = 0.8, a.top_k = 50, a.top_p = 0.95, a.uniform = 0.4321;
  a.token = c.out(1, DType::kI32).as<int32_t>();
  c.cost.flops = 2.0 * static_cast<double>(a.vocab);
  c.run = [a](const Kernels& k, Stream& s) { k.sample(s, {1, &a}); };
}

void build_decay_forward(KernelCase& c) {
  const int64_t E = c.shape["E"], N = c.shape["N"];
  const DecayArgs a{E, N, c.in(E * N), c.out(E * N)};
  c.cost.flops = static_cast<double>(E * N);
  run_with(c, &Kernels::decay_forward, a);
}

void build_decay_backward(KernelCase& c) {
  const int64_t E = c.shape["E"], N = c.shape["N"];
  const DecayBackwardArgs a{E, N, c.in(E * N), c.in(E * N), c.inout(E * N)};
  c.cost.flops = 2.0 * static_cast<double>(E * N);
  run_with(c, &Kernels::decay_backward, a);
}

void build_transpose(KernelCase& c) {
  const int64_t rows = c.shape["rows"], columns = c.shape["columns"];
  const TransposeArgs a{rows, columns, c.in(rows * columns), c.out(rows * columns)};
  run_with(c, &Kernels::transpose, a);
}

void build_cast(KernelCase& c) {
  const CastArgs a{c.shape["count"], c.in(c.shape["count"]), c.out(c.shape["count"])};
  run_with(c, &Kernels::cast, a);
}

void build_column_sum(KernelCase& c) {
  const int64_t rows = c.shape["rows"], N = c.shape["N"];
  const ColumnSumArgs a{rows, N, c.in(rows * N), N, c.inout(N)};
  c.terms = rows;
  c.cost.flops = static_cast<double>(rows * N);
  run_with(c, &Kernels::column_sum, a);
}

}  // namespace

std::vector<KernelEntry> dense_kernel_entries() {
  const Shape rows = {{"rows", kRows}, {"dim", kDim}};
  const Shape embed = {{"rows", kRows}, {"dim", kDim}, {"V", 50280}};
  const Shape grouped = {{"rows", kRows}, {"dim", 2 * kDim}, {"groups", 1}};
  const Shape gate = {{"rows", kRows}, {"dim", 2 * kDim}};
  // in_proj of d_model 768; bf16=1 rounds the operands to bf16.
  const Shape product = {{"M", 1024}, {"N", 4 * kDim}, {"K", kDim}, {"bf16", 0}};
  return {
      {"embed_forward", embed, build_embed_forward},
      {"embed_backward", embed, build_embed_backward},
      {"rms_norm_forward", rows, build_rms_norm_forward},
      {"rms_norm_backward", rows, build_rms_norm_backward},
      {"layer_norm_forward", rows, build_layer_norm_forward},
      {"layer_norm_backward", rows, build_layer_norm_backward},
      {"gated_norm_forward", grouped, build_gated_norm_forward},
      {"gated_norm_backward", grouped, build_gated_norm_backward},
      {"linear_rows", {{"rows", 512}, {"N", 50280}, {"K", kDim}, {"bf16", 0}}, build_linear_rows},
      {"linear_forward", product, build_linear_forward},
      {"norm_linear", {{"M", 1}, {"N", 4 * kDim}, {"K", kDim}, {"bf16", 0}}, build_norm_linear},
      {"linear_backward_input", product, build_linear_backward_input},
      {"linear_backward_weight", product, build_linear_backward_weight},
      {"gate_forward", gate, build_gate_forward},
      {"gate_backward", gate, build_gate_backward},
      {"cross_entropy", {{"rows", 256}, {"V", 50280}}, build_cross_entropy},
      {"grad_norm", {{"count", int64_t{1} << 24}}, build_grad_norm},
      {"adamw", {{"count", int64_t{1} << 23}}, build_adamw},
      {"sample", {{"V", 50280}}, build_sample},
      {"decay_forward", {{"E", 2 * kDim}, {"N", 16}}, build_decay_forward},
      {"decay_backward", {{"E", 2 * kDim}, {"N", 16}}, build_decay_backward},
      {"transpose", {{"rows", 2 * kDim}, {"columns", 4}}, build_transpose},
      {"cast", {{"count", int64_t{1} << 24}}, build_cast},
      {"column_sum", {{"rows", kRows}, {"N", kDim}}, build_column_sum},
  };
}

}  // namespace mamba
