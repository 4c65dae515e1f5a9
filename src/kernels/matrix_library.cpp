// SPDX-License-Identifier: Apache-2.0
// cuBLASLt by dlopen, and the algorithms chosen so far. The library is column-major, so a product
// is handed over transposed: out^T = right^T left^T.
#include "kernels/matrix_library.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <new>

namespace mamba::cuda {
namespace {

// The functions used, typed from the header.
#define MAMBA_CUBLASLT(DO)                 \
  DO(cublasLtCreate)                       \
  DO(cublasLtDestroy)                      \
  DO(cublasLtMatmul)                       \
  DO(cublasLtMatmulAlgoGetHeuristic)       \
  DO(cublasLtMatmulDescCreate)             \
  DO(cublasLtMatmulDescDestroy)            \
  DO(cublasLtMatmulDescSetAttribute)       \
  DO(cublasLtMatmulPreferenceCreate)       \
  DO(cublasLtMatmulPreferenceDestroy)      \
  DO(cublasLtMatmulPreferenceSetAttribute) \
  DO(cublasLtMatrixLayoutCreate)           \
  DO(cublasLtMatrixLayoutDestroy)

struct Functions {
#define MAMBA_MEMBER(name) decltype(&::name) name = nullptr;
  MAMBA_CUBLASLT(MAMBA_MEMBER)
#undef MAMBA_MEMBER
};

bool load(void* handle, Functions& f) {
  bool all = true;
#define MAMBA_LOAD(name)                                             \
  f.name = reinterpret_cast<decltype(f.name)>(dlsym(handle, #name)); \
  all = all && f.name != nullptr;
  MAMBA_CUBLASLT(MAMBA_LOAD)
#undef MAMBA_LOAD
  return all;
}
#undef MAMBA_CUBLASLT

cudaDataType_t type_of(DType t) {
  return t == DType::kBF16 ? CUDA_R_16BF : t == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

// The largest power of two up to 16 that divides the address.
int64_t alignment(const void* p) {
  const auto at = reinterpret_cast<uintptr_t>(p) | 16u;
  return static_cast<int64_t>(at & -at);
}

// All that the choice of an algorithm depends on.
using Key = std::array<int64_t, 16>;

Key key_of(const MatrixProduct& p) {
  return {p.rows,
          p.cols,
          p.depth,
          p.left.stride,
          p.left.transposed,
          p.right.stride,
          p.right.transposed,
          p.out_stride,
          static_cast<int64_t>(p.left.data.dtype),
          static_cast<int64_t>(p.out.dtype),
          static_cast<bool>(p.bias),
          p.accumulate,
          alignment(p.left.data.data),
          alignment(p.right.data.data),
          alignment(p.out.data),
          p.bias ? alignment(p.bias.data) : 0};
}

struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  bool usable = false;
};

}  // namespace

struct MatrixLibrary {
  bool tried = false;  // to load it, at the first product
  Functions call;
  cublasLtHandle_t context = nullptr;  // null where the library is not installed
  std::map<Key, Plan> plans;
};

namespace {

void destroy(const Functions& call, Plan& plan) {
  if (plan.product != nullptr) call.cublasLtMatmulDescDestroy(plan.product);
  for (cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.c}) {
    if (layout != nullptr) call.cublasLtMatrixLayoutDestroy(layout);
  }
  plan = {};
}

bool describe(const Functions& call, const MatrixProduct& p, Plan& plan) {
  const cudaDataType_t in = type_of(p.left.data.dtype), out = type_of(p.out.dtype);
  const auto size = [](int64_t v) { return static_cast<uint64_t>(v); };
  // As column-major matrices: `right` without transposition is (cols, depth), `left` (depth, rows).
  const bool rt = p.right.transposed, lt = p.left.transposed;
  if (call.cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F) != 0 ||
      call.cublasLtMatrixLayoutCreate(&plan.a, in, size(rt ? p.depth : p.cols),
                                      size(rt ? p.cols : p.depth), p.right.stride) != 0 ||
      call.cublasLtMatrixLayoutCreate(&plan.b, in, size(lt ? p.rows : p.depth),
                                      size(lt ? p.depth : p.rows), p.left.stride) != 0 ||
      call.cublasLtMatrixLayoutCreate(&plan.c, out, size(p.cols), size(p.rows), p.out_stride) !=
          0) {
    return false;
  }
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    return call.cublasLtMatmulDescSetAttribute(plan.product, attribute, &value, sizeof value) == 0;
  };
  const cublasOperation_t a = rt ? CUBLAS_OP_T : CUBLAS_OP_N, b = lt ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
  return set(CUBLASLT_MATMUL_DESC_TRANSA, a) && set(CUBLASLT_MATMUL_DESC_TRANSB, b) &&
         (!p.bias || set(CUBLASLT_MATMUL_DESC_EPILOGUE, bias));
}

bool choose(MatrixLibrary& library, const MatrixProduct& p, Plan& plan) {
  const Functions& call = library.call;
  cublasLtMatmulPreference_t preference = nullptr;
  if (call.cublasLtMatmulPreferenceCreate(&preference) != 0) return false;
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    return call.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value) ==
           0;
  };
  const auto bytes = [](const void* at) { return static_cast<uint32_t>(alignment(at)); };
  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  const bool chosen =
      set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kProductWorkspace)) &&
      set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(p.right.data.data)) &&
      set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(p.left.data.data)) &&
      set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(p.out.data)) &&
      set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(p.out.data)) &&
      call.cublasLtMatmulAlgoGetHeuristic(library.context, plan.product, plan.a, plan.b, plan.c,
                                          plan.c, preference, 1, &result, &found) == 0 &&
      found == 1 && result.state == CUBLAS_STATUS_SUCCESS;
  call.cublasLtMatmulPreferenceDestroy(preference);
  plan.algorithm = result.algo;
  return chosen;
}

void start(MatrixLibrary& library) {
  library.tried = true;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) continue;
    if (load(handle, library.call) &&
        library.call.cublasLtCreate(&library.context) == CUBLAS_STATUS_SUCCESS) {
      return;
    }
    library.context = nullptr;
    dlclose(handle);
  }
}

bool set_bias(const Functions& call, const Plan& plan, const MatrixProduct& p) {
  if (!p.bias) return true;
  const void* bias = p.bias.data;
  return call.cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                             sizeof bias) == 0;
}

}  // namespace

MatrixLibrary* open_matrix_library() noexcept { return new (std::nothrow) MatrixLibrary; }

void close_matrix_library(MatrixLibrary* library) noexcept {
  if (library == nullptr) return;
  for (auto& [key, plan] : library->plans) destroy(library->call, plan);
  if (library->context != nullptr) library->call.cublasLtDestroy(library->context);
  // The library stays loaded: unloading one that has used the driver is known to crash at exit.
  delete library;
}

bool multiply(MatrixLibrary& library, Stream& stream, const MatrixProduct& p,
              void* workspace) noexcept try {
  if (!library.tried) start(library);
  if (library.context == nullptr) return false;
  const auto [at, fresh] = library.plans.try_emplace(key_of(p));
  Plan& plan = at->second;
  if (fresh) {
    // Some algorithms look at the bias pointer when they are chosen.
    plan.usable = describe(library.call, p, plan) && set_bias(library.call, plan, p) &&
                  choose(library, p, plan);
    if (!plan.usable) destroy(library.call, plan);
  }
  if (!plan.usable || !set_bias(library.call, plan, p)) return false;
  const float one = 1, before = p.accumulate ? 1 : 0;
  return library.call.cublasLtMatmul(
             library.context, plan.product, &one, p.right.data.data, plan.a, p.left.data.data,
             plan.b, &before, p.out.data, plan.c, p.out.data, plan.c, &plan.algorithm, workspace,
             kProductWorkspace, static_cast<cudaStream_t>(stream.cuda)) == CUBLAS_STATUS_SUCCESS;
} catch (const std::bad_alloc&) {
  return false;
}

}  // namespace mamba::cuda
