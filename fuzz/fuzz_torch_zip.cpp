// SPDX-License-Identifier: Apache-2.0
// Any bytes as a torch checkpoint or a model.bin of mamba.c: an error, or tensors whose every byte
// can be read.
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "base/check.h"
#include "formats/mamba_c_file.h"
#include "formats/torch_zip.h"

namespace {

template <class File>
void read_all(const uint8_t* bytes, size_t count) {
  using namespace mamba;
  try {
    const File file(bytes, count, "fuzz");
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
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInternal) throw;
    for (const char* c = error.what(); *c != '\0'; ++c) MAMBA_CHECK(*c >= 0x20 && *c < 0x7f);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  if (count >= 4 && bytes[0] == 'b') {
    read_all<mamba::MambaCFile>(bytes, count);
  } else {
    read_all<mamba::TorchFile>(bytes, count);
  }
  return 0;
}
