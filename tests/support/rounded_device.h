// SPDX-License-Identifier: Apache-2.0
// A device that takes bf16 activations as a GPU does, made of a CPU's kernels: around each call the
// bf16 buffers are widened to f32, and what was written is rounded back. It holds every call to the
// types that the CUDA kernels take, which would read other buffers wrongly.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/bf16.h"
#include "support/locked_memory.h"

namespace mamba::test {

// ---- Types that the kernels for GPUs take ----

// Buffers of one type (null ones aside).
inline void expect_same(const char* kernel, std::initializer_list<CBuf> buffers) {
  const CBuf* first = nullptr;
  for (const CBuf& b : buffers) {
    if (!b) continue;
    if (first == nullptr) first = &b;
    EXPECT_EQ(b.dtype, first->dtype) << kernel << ", buffer " << &b - buffers.begin();
  }
}
inline void expect_f32(const char* kernel, std::initializer_list<CBuf> buffers) {
  for (const CBuf& b : buffers) {
    EXPECT_TRUE(!b || b.dtype == DType::kF32) << kernel << ", buffer " << &b - buffers.begin();
  }
}
// One is f32 or both have one type.
inline void expect_pair(const char* kernel, CBuf x, CBuf y) {
  EXPECT_TRUE(x.dtype == y.dtype || x.dtype == DType::kF32 || y.dtype == DType::kF32) << kernel;
}
inline void expect_gradient_types(const char* kernel, CBuf r, CBuf dy, CBuf dr) {
  if (r.dtype != DType::kF32) expect_same(kernel, {r, dy, dr});
}

inline void expect_types(const EmbedArgs&) {}
inline void expect_types(const EmbedBackwardArgs& a) { expect_f32("embed_backward", {a.dweight}); }
inline void expect_types(const RmsNormArgs& a) {
  expect_pair("rms_norm_forward", a.x, a.y);
  expect_f32("rms_norm_forward", {a.residual, a.weight, a.residual_out, a.rstd});
}
inline void expect_types(const RmsNormBackwardArgs& a) {
  expect_gradient_types("rms_norm_backward", a.r, a.dy, a.dr);
  expect_f32("rms_norm_backward", {a.weight, a.rstd, a.dresidual_out, a.dweight});
}
inline void expect_types(const LayerNormArgs& a) {
  expect_pair("layer_norm_forward", a.x, a.y);
  expect_f32("layer_norm_forward", {a.residual, a.weight, a.bias, a.residual_out, a.mean, a.rstd});
}
inline void expect_types(const LayerNormBackwardArgs& a) {
  expect_gradient_types("layer_norm_backward", a.r, a.dy, a.dr);
  expect_f32("layer_norm_backward",
             {a.weight, a.mean, a.rstd, a.dresidual_out, a.dweight, a.dbias});
}
inline void expect_types(const GatedNormArgs& a) {
  expect_same("gated_norm_forward", {a.x, a.z});
  expect_pair("gated_norm_forward", a.x, a.y);
  expect_f32("gated_norm_forward", {a.weight, a.rstd});
}
inline void expect_types(const GatedNormBackwardArgs& a) {
  expect_same("gated_norm_backward", {a.x, a.z, a.dy, a.dx, a.dz});
  expect_f32("gated_norm_backward", {a.weight, a.rstd, a.dweight});
}
inline void expect_types(const LinearArgs& a) { expect_f32("linear_forward", {a.bias}); }
inline void expect_types(const NormLinearArgs& a) {
  expect_types(a.norm);
  expect_types(a.product);
}
inline void expect_types(const LinearBackwardInputArgs&) {}
inline void expect_types(const LinearBackwardWeightArgs& a) {
  expect_f32("linear_backward_weight", {a.dweight, a.dbias});
}
inline void expect_types(const Conv1dArgs& a) {
  expect_same("conv1d_forward", {a.x, a.y});
  expect_same("conv1d_forward", {a.state_in, a.state_out});
  expect_f32("conv1d_forward", {a.weight, a.taps, a.bias, a.state_in, a.state_out});
}
inline void expect_types(const Conv1dBackwardArgs& a) {
  expect_same("conv1d_backward", {a.x, a.dy, a.dx});
  expect_f32("conv1d_backward",
             {a.weight, a.bias, a.state_in, a.dstate_out, a.dweight, a.dbias, a.dstate_in});
}
inline void expect_types(const GateArgs& a) { expect_same("gate_forward", {a.a, a.z, a.y}); }
inline void expect_types(const GateBackwardArgs& a) {
  expect_same("gate_backward", {a.a, a.z, a.dy, a.da, a.dz});
}
inline void expect_types(const ScanArgs& a) {
  expect_same("scan_forward", {a.u, a.delta, a.Bm, a.Cm, a.z, a.y});
  expect_f32("scan_forward", {a.delta_bias, a.A_t, a.D, a.h0, a.hT});
}
inline void expect_types(const ScanBackwardArgs& a) {
  expect_same("scan_backward",
              {a.u, a.delta, a.Bm, a.Cm, a.z, a.dy, a.du, a.ddelta, a.dBm, a.dCm, a.dz});
  expect_f32("scan_backward",
             {a.delta_bias, a.A_t, a.D, a.h0, a.dhT, a.ddelta_bias, a.dA_t, a.dD, a.dh0});
}
inline void expect_types(const ScanStepArgs& a) {
  expect_same("scan_step", {a.u, a.delta, a.Bm, a.Cm, a.z, a.y});
  expect_f32("scan_step", {a.delta_bias, a.A_t, a.D, a.h});
}
inline void expect_types(const SsdArgs& a) {
  expect_same("ssd_forward", {a.x, a.dt, a.Bm, a.Cm, a.y});
  expect_f32("ssd_forward", {a.dt_bias, a.A, a.D, a.S0, a.ST, a.S_reset});
}
inline void expect_types(const SsdBackwardArgs& a) {
  expect_same("ssd_backward", {a.x, a.dt, a.Bm, a.Cm, a.dy, a.dx, a.ddt, a.dBm, a.dCm});
  expect_f32("ssd_backward", {a.dt_bias, a.A, a.D, a.S0, a.S_reset, a.dST, a.ddt_bias, a.dA, a.dD,
                              a.dS0, a.dS_reset});
}
inline void expect_types(const SsdStepArgs& a) {
  expect_same("ssd_step", {a.x, a.dt, a.Bm, a.Cm, a.y});
  expect_f32("ssd_step", {a.dt_bias, a.A, a.D, a.S});
}
inline void expect_types(const CrossEntropyArgs& a) { expect_f32("cross_entropy", {a.nll}); }
inline void expect_types(const ColumnSumArgs& a) { expect_f32("column_sum", {a.sums}); }
inline void expect_types(const DecayArgs& a) { expect_f32("decay_forward", {a.A_log, a.A_t}); }
inline void expect_types(const TransposeArgs& a) { expect_f32("transpose", {a.x, a.y}); }
inline void expect_types(const CastArgs&) {}
// The rest has no activations, or takes any.
template <class Args>
void expect_types(const Args&) {}

// ---- Widening ----

// f32 copies of the blocks of memory that bf16 buffers of one call lie in: one copy a block, so
// that buffers that alias each other still do.
class Widened {
 public:
  explicit Widened(const LockedMemory& memory) : memory_(memory) {}

  // Points the bf16 buffers of `args` (a struct of plain values) to their copies.
  template <class Args>
  void point(Args* args) {
    used_.clear();
    char* bytes = reinterpret_cast<char*>(args);
    for (size_t at = 0; at + sizeof(Buf) <= sizeof(Args); at += alignof(Buf)) {
      Buf buf;
      std::memcpy(&buf.data, bytes + at, sizeof buf.data);
      std::memcpy(&buf.dtype, bytes + at + sizeof buf.data, sizeof buf.dtype);
      if (buf.data == nullptr || buf.dtype != DType::kBF16) continue;
      const LockedMemory::Block block = memory_.block_of(buf.data);
      if (block.begin == nullptr) continue;
      buf = Buf(copy_of(block).now.data() + (static_cast<char*>(buf.data) - block.begin) / 2,
                DType::kF32);
      std::memcpy(bytes + at, &buf.data, sizeof buf.data);
      std::memcpy(bytes + at + sizeof buf.data, &buf.dtype, sizeof buf.dtype);
    }
  }
  // What the call has changed, rounded.
  void round_back() const {
    for (char* begin : used_) {
      const Copy& copy = copies_.at(begin);
      auto* half = reinterpret_cast<bf16*>(begin);
      for (size_t i = 0; i < copy.now.size(); ++i) {
        if (std::memcmp(&copy.before[i], &copy.now[i], sizeof(float)) == 0) continue;
        half[i] = to_bf16(copy.now[i]);
      }
    }
  }

 private:
  // `before` as well: the call writes f32 buffers of the same block, which are not to be changed.
  struct Copy {
    std::vector<float> before, now;
  };
  Copy& copy_of(const LockedMemory::Block& block) {
    Copy& copy = copies_[block.begin];
    if (std::find(used_.begin(), used_.end(), block.begin) != used_.end()) return copy;
    used_.push_back(block.begin);
    const auto* half = reinterpret_cast<const bf16*>(block.begin);
    copy.before.resize(block.size / 2);
    for (size_t i = 0; i < copy.before.size(); ++i) copy.before[i] = to_f32(half[i]);
    copy.now = copy.before;
    return copy;
  }

  const LockedMemory& memory_;
  std::map<char*, Copy> copies_;  // kept, as a call is short
  std::vector<char*> used_;       // by the call
};

struct RoundedKernels : LockedKernels {
  std::unique_ptr<Widened> widened;
};
template <class Args, void (*Kernels::*kKernel)(Stream&, const Args&) noexcept>
void run_rounded(Stream& stream, const Args& args) noexcept {
  const Device& device = *static_cast<const Device*>(stream.owner);
  const auto& kernels = static_cast<const RoundedKernels&>(device.kernels());
  const LockedMemory::Open open(static_cast<LockedMemory&>(device.memory()));
  expect_types(args);
  Args wide = args;
  kernels.widened->point(&wide);
  (kernels.real->*kKernel)(stream, wide);
  kernels.widened->round_back();
}

// A device like `name` with locked memory and bf16 activations.
inline std::unique_ptr<Device> rounded_device(const std::string& name, int threads) {
  std::unique_ptr<Device> device = locked_device(name, threads);
  auto* table = new RoundedKernels;
  table->name = device->kernels().name;
  table->real = static_cast<const LockedKernels&>(device->kernels()).real;
  table->widened = std::make_unique<Widened>(static_cast<LockedMemory&>(device->memory()));
#define MAMBA_KERNEL(function, Args) table->function = run_rounded<Args, &Kernels::function>;
#include "kernels/kernels.def"
#undef MAMBA_KERNEL
  device->set_kernels(*table);
  device->set_bf16_activations(true);
  return device;
}

}  // namespace mamba::test
