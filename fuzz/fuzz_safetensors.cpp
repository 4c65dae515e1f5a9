// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file: an error or a table whose every byte can be read.
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "base/check.h"
#include "formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  using namespace mamba;
  try {
    const SafetensorsFile file(bytes, count, "fuzz");
    for (const TensorInfo& tensor : file.tensors()) {
      MAMBA_CHECK(&file.get(tensor.name, tensor.shape) == &tensor);
      MAMBA_CHECK(tensor.count() * dtype_size(tensor.dtype) == tensor.bytes);
      const bool is_integer =
          tensor.dtype == DType::kI64 || tensor.dtype == DType::kI32 || tensor.dtype == DType::kU8;
      if (is_integer) {
        read_to_i64(tensor);
      } else {
        std::vector<float> out(static_cast<size_t>(tensor.count()));
        read_to_f32(tensor, out.data());
      }
    }
    file.get("no such tensor");
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInternal) throw;
  }
  return 0;
}
