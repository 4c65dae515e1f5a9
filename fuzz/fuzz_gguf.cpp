// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF file: an error, or tensors that can be read, a configuration and a tokenizer.
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "base/check.h"
#include "formats/gguf_model.h"
#include "formats/gguf_writer.h"
#include "tokenizer/gguf_tokenizer.h"

namespace {

// body() throws nothing but errors of input.
template <class Body>
void attempt(Body body) {
  try {
    body();
  } catch (const mamba::Error& error) {
    if (error.code() == mamba::ErrorCode::kInternal) throw;
  }
}

void read_tensors(const mamba::TensorTable& file) {
  using namespace mamba;
  for (const TensorInfo& tensor : file.tensors()) {
    MAMBA_CHECK(dtype_bytes(tensor.dtype, tensor.count()) == tensor.bytes);
    if (tensor.dtype == DType::kI64 || tensor.dtype == DType::kI32) {
      read_to_i64(tensor);
    } else {
      std::vector<float> out(static_cast<size_t>(tensor.count()));
      read_to_f32(tensor, out.data());
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  using namespace mamba;
  attempt([&] {
    const GgufFile file(bytes, count, "fuzz");
    read_tensors(file);
    // What was read can be written, and is then the same; by bytes, as a NaN is not equal to
    // itself.
    const std::string again = gguf_bytes(file.values(), {});
    MAMBA_CHECK(gguf_bytes(GgufFile(again.data(), again.size(), "again").values(), {}) == again);
    attempt([&] { load_gguf_tokenizer(file)->encode("It was the best of times."); });
    attempt([&] { tokenizer_config_of(file); });
  });
  attempt([&] {
    const GgufModel model(bytes, count, "fuzz");
    read_tensors(model);
    gguf_config_metadata(model.config());
  });
  return 0;
}
