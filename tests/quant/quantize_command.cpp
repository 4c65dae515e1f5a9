// SPDX-License-Identifier: Apache-2.0
// quantize_command dequantize TYPE < blocks > f32, or quantize TYPE [weights] < f32 > blocks: what
// same_as_gguf.py asks the library. With "weights" the second half of the input is one importance
// for each value.
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "quant/dequantize.h"
#include "quant/quantize.h"

namespace {

std::string read_all() {
  std::string bytes;
  char block[1 << 16];
  size_t count = 0;
  while ((count = fread(block, 1, sizeof block, stdin)) > 0) bytes.append(block, count);
  return bytes;
}

bool write_all(const void* bytes, size_t count) {
  return fwrite(bytes, 1, count, stdout) == count && fflush(stdout) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace mamba;
  if (argc < 3) return 2;
  DType type = DType::kQ4_0;
  while (is_quantized(type) && strcmp(dtype_name(type), argv[2]) != 0) {
    if (type == DType::kIQ4_NL) return 2;
    type = static_cast<DType>(static_cast<int>(type) + 1);
  }
  const std::string in = read_all();
  if (strcmp(argv[1], "dequantize") == 0) {
    const int64_t blocks = static_cast<int64_t>(in.size()) / block_bytes(type);
    std::vector<float> out(static_cast<size_t>(blocks * block_elements(type)));
    dequantize(type, in.data(), static_cast<int64_t>(out.size()), out.data());
    return write_all(out.data(), out.size() * 4) ? 0 : 1;
  }
  std::vector<float> values(in.size() / 4);
  memcpy(values.data(), in.data(), values.size() * 4);
  const size_t count = values.size() / (argc > 3 ? 2 : 1);
  std::string blocks(static_cast<size_t>(dtype_bytes(type, static_cast<int64_t>(count))), '\0');
  if (!quantize(type, values.data(), argc > 3 ? values.data() + count : nullptr,
                static_cast<int64_t>(count), blocks.data())) {
    return 3;
  }
  return write_all(blocks.data(), blocks.size()) ? 0 : 1;
}
