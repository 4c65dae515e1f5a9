// SPDX-License-Identifier: Apache-2.0
// struct Kernels: one backend as a table of functions, made from kernels.def.
#pragma once

#include "kernels/adamw.h"
#include "kernels/affine_scan.h"
#include "kernels/cast.h"
#include "kernels/column_sum.h"
#include "kernels/conv1d.h"
#include "kernels/cross_entropy.h"
#include "kernels/decay.h"
#include "kernels/embed.h"
#include "kernels/gate.h"
#include "kernels/gated_norm.h"
#include "kernels/grad_norm.h"
#include "kernels/layer_norm.h"
#include "kernels/linear.h"
#include "kernels/linear_q.h"
#include "kernels/mamba1_step.h"
#include "kernels/mamba2_step.h"
#include "kernels/norm_linear.h"
#include "kernels/rms_norm.h"
#include "kernels/sample.h"
#include "kernels/scan.h"
#include "kernels/ssd.h"
#include "kernels/transpose.h"

namespace mamba {

struct Kernels {
  const char* name;  // "ref", "base", "avx2", "avx512", "avx512_bf16", "onednn", "cuda"
#define MAMBA_KERNEL(function, Args) void (*function)(Stream&, const Args&) noexcept;
#include "kernels/kernels.def"
#undef MAMBA_KERNEL
};

// The backends of this build. The tables of ISAs that this CPU lacks must not be called.
const Kernels& ref_kernels();
const Kernels& base_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_bf16_kernels();
// The best of these that this CPU runs, but with bf16 products of `linear` by oneDNN.
const Kernels& onednn_kernels();
// For NVIDIA GPUs; only in builds with CUDA.
const Kernels& cuda_kernels();

}  // namespace mamba
