// SPDX-License-Identifier: Apache-2.0
// Any bytes as the pickle of a checkpoint: an error, or views within their storages that survive
// being written and read again.
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "formats/pickle.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  using namespace mamba;
  std::vector<PickledTensor> tensors;
  try {
    tensors = read_tensor_pickle(bytes, count, "fuzz");
  } catch (const Error& error) {
    MAMBA_CHECK(error.code() == ErrorCode::kBadFile || error.code() == ErrorCode::kUnsupported);
    for (const char* c = error.what(); *c != '\0'; ++c) MAMBA_CHECK(*c >= 0x20 && *c < 0x7f);
    return 0;
  }
  bool writable = true;  // the writer is for whole storages of one type
  for (const PickledTensor& t : tensors) {
    int64_t elements = 1, last = t.offset;
    for (size_t i = 0; i < t.shape.size(); ++i) {
      elements *= t.shape[i];
      if (t.shape[i] > 0) last += (t.shape[i] - 1) * t.strides[i];
    }
    MAMBA_CHECK(elements == 0 || (last + 1) * dtype_size(t.dtype) <= t.storage_bytes);
    MAMBA_CHECK(elements * dtype_size(t.dtype) <= t.storage_bytes);
    writable = writable && t.storage_bytes % dtype_size(t.dtype) == 0;
  }
  if (!writable) return 0;
  const std::string text = write_tensor_pickle(tensors);
  const std::vector<PickledTensor> again = read_tensor_pickle(text.data(), text.size(), "again");
  MAMBA_CHECK(again.size() == tensors.size());
  for (size_t i = 0; i < again.size(); ++i) {
    MAMBA_CHECK(again[i].name == tensors[i].name && again[i].shape == tensors[i].shape &&
                again[i].strides == tensors[i].strides && again[i].offset == tensors[i].offset);
  }
  return 0;
}
