// SPDX-License-Identifier: Apache-2.0
// Quantised weights from the blocks of files to panels, and single rows back. Compiled once: the
// layout is the same for every ISA.
#include <stdlib.h>
#include <string.h>

#include "kernels/linear_q_packed.h"
#include "quant/blocks.h"
#include "quant/dequantize.h"

namespace mamba::panels {
namespace {

constexpr int64_t kMaxBlock = 256;  // elements

// The run of a panel that holds column k of a row of K.
struct Run {
  Run(char* panel, const Layout& l, int64_t K, int64_t k) {
    const int64_t first = k / kRun * kRun;
    const int64_t blocks = (K - first < kRun ? K - first : kRun) / kBlock;
    codes = reinterpret_cast<uint8_t*>(panel) + k / kRun * run_bytes(l, kRun / kBlock);
    super = reinterpret_cast<char*>(codes) + blocks * code_bytes(l);
    scales = super + super_bytes(l);
  }
  uint8_t* codes;
  char* super;
  char* scales;
};

void put_f16(char* at, int64_t index, f16 value) { memcpy(at + 2 * index, &value, 2); }
f16 get_f16(const char* at, int64_t index) {
  f16 value;
  memcpy(&value, at + 2 * index, 2);
  return value;
}

// Code of `row` of the panel, column k of 32, of a block of codes.
int get_code(const Layout& l, const uint8_t* block, int64_t row, int64_t k) {
  const int64_t quad = k / 4, byte = 4 * row + k % 4;
  if (l.bits == 8) return block[quad * kQuad + byte];
  int code = block[quad % 4 * kQuad + byte] >> (quad < 4 ? 0 : 4) & 15;
  const uint8_t* high = block + 4 * kQuad;
  if (l.bits == 5) code |= (high[byte] >> quad & 1) << 4;
  if (l.bits == 6) code |= (high[quad / 4 * kQuad + byte] >> (2 * (quad % 4)) & 3) << 4;
  return code;
}

int code_of(const Layout& l, int8_t value) {
  if (!l.table) return value + l.zero;
  int code = 0;
  while (kIQ4_NLValues[code] != value) ++code;
  return code;
}

// The codes of 32 columns of `row`, from a block of the file. Four columns are a word: a byte at a
// time this was half of what loading takes.
void put_codes(const Layout& l, uint8_t* block, int64_t row, const int8_t* values) {
  uint8_t codes[kBlock];
  for (int64_t k = 0; k < kBlock; ++k) codes[k] = static_cast<uint8_t>(code_of(l, values[k]));
  if (l.bits == 8) {
    for (int64_t quad = 0; quad < 8; ++quad) {
      memcpy(block + quad * kQuad + 4 * row, codes + 4 * quad, 4);
    }
    return;
  }
  uint8_t low[16], high[8] = {};
  for (int64_t k = 0; k < 16; ++k) {
    low[k] = static_cast<uint8_t>((codes[k] & 15) | codes[k + 16] << 4);
  }
  for (int64_t quad = 0; quad < 4; ++quad) {
    memcpy(block + quad * kQuad + 4 * row, low + 4 * quad, 4);
  }
  uint8_t* above = block + 4 * kQuad;
  if (l.bits == 5) {
    for (int64_t k = 0; k < kBlock; ++k) {
      high[k % 4] = static_cast<uint8_t>(high[k % 4] | codes[k] >> 4 << k / 4);
    }
    memcpy(above + 4 * row, high, 4);
  }
  if (l.bits == 6) {
    for (int64_t k = 0; k < kBlock; ++k) {
      uint8_t& byte = high[k / 16 * 4 + k % 4];
      byte = static_cast<uint8_t>(byte | codes[k] >> 4 << (2 * (k / 4 % 4)));
    }
    memcpy(above + 4 * row, high, 4);
    memcpy(above + kQuad + 4 * row, high + 4, 4);
  }
}

// Scales of one block of the file, which begins at block `first` of the run, to row `row`.
void put_scales(DType type, const Layout& l, const void* block, int64_t row, int64_t first,
                const Run& to) {
  char* scales = to.scales + first * scale_bytes(l);
  if (!l.super) {
    f16 d_and_m[2];
    memcpy(d_and_m, block, l.add ? 4 : 2);
    put_f16(scales, row, d_and_m[0]);
    if (l.add) put_f16(scales, kRows + row, d_and_m[1]);
    return;
  }
  char* super = to.super;
  if (type == DType::kQ6_K) {
    BlockQ6_K b;
    memcpy(&b, block, sizeof b);
    put_f16(super, row, b.d);
    for (int64_t g = 0; g < 16; ++g) scales[g * kRows + row] = static_cast<char>(b.scales[g]);
    return;
  }
  // Q4_K and Q5_K begin alike.
  struct {
    f16 d, dmin;
    uint8_t scales[12];
  } b;
  memcpy(&b, block, 16);
  put_f16(super, row, b.d);
  put_f16(super, kRows + row, b.dmin);
  for (int g = 0; g < 8; ++g) {
    const GroupScale s = scale_of_group(b.scales, g);
    scales[2 * g * kRows + row] = static_cast<char>(s.scale);
    scales[(2 * g + 1) * kRows + row] = static_cast<char>(s.min);
  }
}

void pack_panel(DType type, const char* weight, int64_t row_bytes, int64_t rows, int64_t K,
                char* out) {
  const Layout l = layout_of(type);
  const int64_t block = block_elements(type);
  memset(out, 0, static_cast<size_t>(panel_bytes(l, K)));
  int8_t values[kMaxBlock];
  for (int64_t row = 0; row < rows; ++row) {
    const char* at = weight + row * row_bytes;
    for (int64_t k = 0; k < K; k += block, at += block_bytes(type)) {
      const Run to(out, l, K, k);
      const int64_t first = k % kRun / kBlock;
      block_values(type, at, values);
      for (int64_t i = 0; i < block; i += kBlock) {
        put_codes(l, to.codes + (first + i / kBlock) * code_bytes(l), row, values + i);
      }
      put_scales(type, l, at, row, first, to);
    }
  }
}

// With panels that are not filled; null when out of memory, which the stream then says.
PackedLinear* allocate(Stream& stream, DType type, int64_t N, int64_t K) {
  const int64_t bytes = (N + kRows - 1) / kRows * panel_bytes(layout_of(type), K);
  auto* packed = static_cast<PackedLinear*>(malloc(sizeof(PackedLinear)));
  char* data = static_cast<char*>(stream.take(stream, bytes));
  if (packed == nullptr || data == nullptr) {
    free(packed);
    stream.give(stream, data);
    if (stream.failed == nullptr) {
      stream.failed = "linear_q_pack";
      stream.failed_bytes = bytes;
    }
    return nullptr;
  }
  *packed = {N, K, kPanelMark, Product::kF32, type, data, bytes, nullptr};
  return packed;
}

}  // namespace

PackedLinear* pack(Stream& stream, DType type, const void* blocks, int64_t N, int64_t K) {
  PackedLinear* packed = allocate(stream, type, N, K);
  if (packed == nullptr) return nullptr;
  const int64_t size = panel_bytes(layout_of(type), K), count = packed->bytes / size;
  char* data = static_cast<char*>(packed->data);
  const int64_t row_bytes = dtype_bytes(type, K);
#pragma omp parallel for num_threads(stream.threads) schedule(static)
  for (int64_t p = 0; p < count; ++p) {
    const int64_t rows = N - p * kRows < kRows ? N - p * kRows : kRows;
    pack_panel(type, static_cast<const char*>(blocks) + p * kRows * row_bytes, row_bytes, rows, K,
               data + p * size);
  }
  return packed;
}

PackedLinear* copy(Stream& stream, DType type, const void* panels, int64_t N, int64_t K) {
  PackedLinear* packed = allocate(stream, type, N, K);
  if (packed == nullptr) return nullptr;
  const int64_t size = panel_bytes(layout_of(type), K), count = packed->bytes / size;
#pragma omp parallel for num_threads(stream.threads) schedule(static)
  for (int64_t p = 0; p < count; ++p) {
    memcpy(static_cast<char*>(packed->data) + p * size, static_cast<const char*>(panels) + p * size,
           static_cast<size_t>(size));
  }
  return packed;
}

void read_row(const PackedLinear& packed, int64_t row, float* out) {
  const Layout l = layout_of(packed.dtype);
  const int64_t K = packed.K, r = row % kRows;
  char* panel = static_cast<char*>(packed.data) + row / kRows * panel_bytes(l, K);
  for (int64_t k = 0; k < K; ++k) {
    const Run from(panel, l, K, k);
    const int64_t block = k % kRun / kBlock;
    const char* scales = from.scales + block * scale_bytes(l);
    float scale = 0, add = 0;
    if (l.super) {
      const char* super = from.super;
      const char* sc = scales + k % kBlock / (kBlock / l.groups) * kRows + r;
      scale = to_f32(get_f16(super, r)) *
              static_cast<float>(l.groups == 2 ? static_cast<int8_t>(*sc)
                                               : static_cast<int>(static_cast<uint8_t>(*sc)));
      if (l.add) {
        add = -to_f32(get_f16(super, kRows + r)) *
              static_cast<float>(static_cast<uint8_t>(scales[kRows + r]));
      }
    } else {
      scale = to_f32(get_f16(scales, r));
      if (l.add) add = to_f32(get_f16(scales, kRows + r));
    }
    const int code = get_code(l, from.codes + block * code_bytes(l), r, k % kBlock);
    const int value = l.table ? kIQ4_NLValues[code] : code - l.zero;
    out[k] = static_cast<float>(value) * scale + add;
  }
}

}  // namespace mamba::panels
