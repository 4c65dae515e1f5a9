// SPDX-License-Identifier: Apache-2.0
// linear over oneDNN, which runs bf16 products on AMX tiles where the CPU has them. Every product
// is cut into pieces of exactly kRows rows, filled up with zeros, by fixed blocks of columns, so a
// row's bits cannot depend on the number of rows, on threads or on packing. Few rows (decoding) run
// as a piece of kFew, but only where that has been seen to give the same bits. Products in f32 stay
// with our own kernels, which are as fast. oneDNN runs each piece on one thread.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <unordered_map>

#include "device/cpu_features.h"
#include "kernels/linear_onednn_loops.h"
#include "kernels/linear_packed.h"
#include "kernels/step_sequence.h"

namespace mamba {
namespace {

using Type = dnnl::memory::data_type;
using Tag = dnnl::memory::format_tag;
using onednn::loops;

constexpr int64_t kRows = 64;      // of a piece
constexpr int64_t kFew = 16;       // of a piece for the last rows, where it agrees with kRows
constexpr int64_t kColumns = 256;  // of a piece; fewer in the last block, in whole kUnit
constexpr int64_t kUnit = 64;      // depth and columns are filled up to whole units
constexpr int64_t kDepth = 1024;   // of a piece of the weight gradient: its sum goes block by block
constexpr int64_t kGroup = 8 << 20;   // bytes of B prepared at once when it is not packed ahead
constexpr int64_t kSerial = 1 << 16;  // multiply-adds below which threads do not pay
constexpr int32_t kPanel = -static_cast<int32_t>(kColumns);  // marks a PackedLinear as ours

int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }
int64_t padded(int64_t n) { return blocks(n, kUnit) * kUnit; }
int64_t aligned(int64_t bytes) { return blocks(bytes, 64) * 64; }

// The table whose other kernels, and products in f32, run.
const Kernels& own() {
  const CpuFeatures& f = cpu_features();
  return f.avx512_bf16 ? avx512_bf16_kernels()
         : f.avx512    ? avx512_kernels()
         : f.avx2      ? avx2_kernels()
                       : base_kernels();
}

// oneDNN takes its number of threads from OpenMP, when a primitive is made and when it runs.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

const dnnl::engine& engine() {
  static const dnnl::engine kEngine(dnnl::engine::kind::cpu, 0);
  return kEngine;
}

// --- Primitives

// What one piece needs: C (kRows, columns) = A (kRows, depth) B (depth, columns), and the ways to
// bring a transposed A and either form of B into its layouts. Made for one thread, kept for good.
struct Piece {
  int64_t columns, depth;
  Type type;
  dnnl::memory::desc a, b, c, a_transposed, b_by_rows, b_by_columns, scratch;
  dnnl::matmul multiply;
  bool few;  // whether the next four may be used for up to kFew rows
  dnnl::memory::desc few_a, few_c, few_scratch;
  dnnl::matmul multiply_few;
  dnnl::reorder transpose, from_rows, from_columns, to_columns;

  bool narrow() const { return type == Type::bf16; }
  int64_t element() const { return type == Type::bf16 ? 2 : 4; }
  int64_t a_bytes() const { return kRows * depth * element(); }
  int64_t b_bytes() const { return columns * depth * element(); }
};

void fill_randomly(const dnnl::memory& memory, Type type) {
  uint32_t state = 1;
  const int64_t size = type == Type::bf16 ? 2 : 4;
  char* at = static_cast<char*>(memory.get_data_handle());
  char* end = at + memory.get_desc().get_size();
  for (; at < end; at += size) {
    state = state * 1664525u + 1013904223u;
    const bf16 value = to_bf16(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f);
    const float wide = to_f32(value);
    memcpy(at, type == Type::bf16 ? static_cast<const void*>(&value) : &wide, size);
  }
}

// Whether kFew rows alone get the bits that they get among kRows, that is, whether oneDNN sums both
// in the same order: with random numbers and this depth, another order shows.
bool few_agree(const Piece& p) {
  dnnl::memory a(p.a, engine()), b(p.b, engine()), c(p.c, engine()), scratch(p.scratch, engine());
  dnnl::memory few_c(p.few_c, engine()), few_scratch(p.few_scratch, engine());
  dnnl::memory few_a(p.few_a, engine(), a.get_data_handle());
  fill_randomly(a, p.type);
  fill_randomly(b, p.type);
  dnnl::stream stream(engine());
  p.multiply.execute(stream, {{DNNL_ARG_SRC, a},
                              {DNNL_ARG_WEIGHTS, b},
                              {DNNL_ARG_DST, c},
                              {DNNL_ARG_SCRATCHPAD, scratch}});
  p.multiply_few.execute(stream, {{DNNL_ARG_SRC, few_a},
                                  {DNNL_ARG_WEIGHTS, b},
                                  {DNNL_ARG_DST, few_c},
                                  {DNNL_ARG_SCRATCHPAD, few_scratch}});
  return memcmp(c.get_data_handle(), few_c.get_data_handle(), p.few_c.get_size()) == 0;
}

std::unique_ptr<Piece> make_piece(int64_t columns, int64_t depth, Type type) {
  using Desc = dnnl::memory::desc;
  using Dims = dnnl::memory::dims;
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  auto p = std::make_unique<Piece>();
  p->columns = columns;
  p->depth = depth;
  p->type = type;
  p->a = Desc({kRows, depth}, type, Tag::ab);
  p->c = Desc({kRows, columns}, Type::f32, Tag::ab);
  p->few_a = Desc({kFew, depth}, type, Tag::ab);
  p->few_c = Desc({kFew, columns}, Type::f32, Tag::ab);
  const auto with_b = [&](Tag tag) {
    return dnnl::matmul::primitive_desc({p->a, Desc({depth, columns}, type, tag), p->c}, attr,
                                        engine());
  };
  dnnl::matmul::primitive_desc desc = with_b(type == Type::bf16 ? Tag::any : Tag::ab);
  // A layout with padding would be filled with zeros anew wherever a memory object points to it.
  if (static_cast<int64_t>(desc.weights_desc().get_size()) != p->b_bytes()) desc = with_b(Tag::ab);
  p->b = desc.weights_desc();
  p->scratch = desc.scratchpad_desc();
  p->multiply = dnnl::matmul(desc);
  desc = dnnl::matmul::primitive_desc({p->few_a, p->b, p->few_c}, attr, engine());
  p->few_scratch = desc.scratchpad_desc();
  p->multiply_few = dnnl::matmul(desc);
  p->few = few_agree(*p);
  p->a_transposed = Desc({kRows, depth}, type, Dims{1, kRows});
  p->b_by_rows = Desc({depth, columns}, type, Dims{columns, 1});
  p->b_by_columns = Desc({depth, columns}, type, Dims{1, depth});
  const auto reorder = [](const Desc& from, const Desc& to) {
    return dnnl::reorder(dnnl::reorder::primitive_desc(engine(), from, engine(), to));
  };
  p->transpose = reorder(p->a_transposed, p->a);
  p->from_rows = reorder(p->b_by_rows, p->b);
  p->from_columns = reorder(p->b_by_columns, p->b);
  p->to_columns = reorder(p->b, p->b_by_columns);
  return p;
}

// bf16, or f32 (holding rounded values) where oneDNN has no bf16: below AVX-512.
Type element_type() {
  static const Type kType = [] {
    try {
      make_piece(kUnit, kUnit, Type::bf16);
      return Type::bf16;
    } catch (const dnnl::error& e) {
      if (e.status != dnnl_unimplemented) throw;
      return Type::f32;
    }
  }();
  return kType;
}

// Of the process. The caller holds a OneThread.
const Piece& piece(int64_t columns, int64_t depth) {
  static std::mutex mutex;
  static std::map<std::tuple<int64_t, int64_t>, std::unique_ptr<Piece>> made;
  const Type type = element_type();
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Piece>& p = made[{padded(columns), padded(depth)}];
  if (p == nullptr) p = make_piece(padded(columns), padded(depth), type);
  return *p;
}

// The memory objects of one thread, made again only when the piece changes.
class Worker {
 public:
  void reorder(const dnnl::reorder& how, const dnnl::memory::desc& from_desc, void* from,
               const dnnl::memory::desc& to_desc, void* to) {
    dnnl::memory source(from_desc, engine(), from), target(to_desc, engine(), to);
    how.execute(stream_, {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, target}});
  }

  void multiply(const Piece& p, bool few, void* a, void* b, void* c, void* scratch) {
    if (piece_ != &p || few_ != few) {
      const auto& scratch_desc = few ? p.few_scratch : p.scratch;
      arguments_ = {{DNNL_ARG_SRC, dnnl::memory(few ? p.few_a : p.a, engine(), a)},
                    {DNNL_ARG_WEIGHTS, dnnl::memory(p.b, engine(), b)},
                    {DNNL_ARG_DST, dnnl::memory(few ? p.few_c : p.c, engine(), c)},
                    {DNNL_ARG_SCRATCHPAD, dnnl::memory(scratch_desc, engine(), scratch)}};
      piece_ = &p;
      few_ = few;
    }
    arguments_[DNNL_ARG_SRC].set_data_handle(a, stream_);
    arguments_[DNNL_ARG_WEIGHTS].set_data_handle(b, stream_);
    (few ? p.multiply_few : p.multiply).execute(stream_, arguments_);
  }

 private:
  dnnl::stream stream_{engine()};
  const Piece* piece_ = nullptr;
  bool few_ = false;
  std::unordered_map<int, dnnl::memory> arguments_;
};

// --- A product

// B (depth, columns) of a product as the caller has it.
struct Operand {
  CBuf data;
  int64_t stride;
  bool by_rows;  // B(k, c) = data[k * stride + c], otherwise data[c * stride + k]
};

// C (rows, columns) (+)= A (rows, depth) B (depth, columns) + bias.
struct Problem {
  int64_t rows, columns, depth;
  int64_t depth_step;  // the sum goes block by block of this size
  const float* a;      // A(r, k) = a[r * a_stride + k], transposed: a[k * a_stride + r]
  int64_t a_stride;
  bool a_transposed;
  Operand b;
  const float* bias;  // (columns) or null
  bool accumulate;
  float* c;
  int64_t c_stride;
};

// Depth begin..begin+depth of a problem and its pieces.
struct Part {
  int64_t begin, depth;
  const Piece* full;  // of every block of columns but the last
  const Piece* last;
  int64_t last_block;

  const Piece& piece_of(int64_t block) const { return block < last_block ? *full : *last; }
  bool few(int64_t rows) const { return rows <= kFew && full->few && last->few; }
};

Part make_part(int64_t columns, int64_t begin, int64_t depth) {
  const int64_t last = blocks(columns, kColumns) - 1;
  const Piece& last_piece = piece(columns - last * kColumns, depth);
  return {begin, depth, last == 0 ? &last_piece : &piece(kColumns, depth), &last_piece, last};
}

// Memory of a call: A's pieces, B's blocks (none when packed), and for each thread a block as the
// caller has it but rounded, a piece of C and what oneDNN asks for.
struct Areas {
  char* a;
  char* b;
  char* threads;
  int64_t thread_bytes, c_offset, scratch_offset;

  char* plain() const { return threads + omp_get_thread_num() * thread_bytes; }
  float* c() const { return reinterpret_cast<float*>(plain() + c_offset); }
  void* scratch() const { return plain() + scratch_offset; }
};

void prepare_a(Worker& worker, const Problem& p, const Part& part, int64_t tile, void* plain,
               void* to) {
  const Piece& piece = *part.last;
  const int64_t row = tile * kRows;
  const int64_t rows = std::min(kRows, p.rows - row);
  if (p.a_transposed) {
    loops().round(p.a + part.begin * p.a_stride + row, p.a_stride, part.depth, rows, piece.depth,
                  kRows, piece.narrow(), plain);
    worker.reorder(piece.transpose, piece.a_transposed, plain, piece.a, to);
  } else {
    loops().round(p.a + row * p.a_stride + part.begin, p.a_stride, rows, part.depth,
                  part.few(rows) ? kFew : kRows, piece.depth, piece.narrow(), to);
  }
}

void prepare_b(Worker& worker, const Operand& b, int64_t columns, const Part& part, int64_t block,
               void* plain, void* to) {
  const Piece& piece = part.piece_of(block);
  const int64_t column = block * kColumns;
  const int64_t n = std::min(kColumns, columns - column);
  if (b.by_rows) {
    loops().round(b.data + (part.begin * b.stride + column), b.stride, part.depth, n, piece.depth,
                  piece.columns, piece.narrow(), plain);
    worker.reorder(piece.from_rows, piece.b_by_rows, plain, piece.b, to);
  } else {
    loops().round(b.data + (column * b.stride + part.begin), b.stride, n, part.depth, piece.columns,
                  piece.depth, piece.narrow(), plain);
    worker.reorder(piece.from_columns, piece.b_by_columns, plain, piece.b, to);
  }
}

void run_piece(Worker& worker, const Problem& p, const Part& part, int64_t tile, int64_t block,
               void* b, const Areas& areas) {
  const Piece& piece = part.piece_of(block);
  const int64_t row = tile * kRows, column = block * kColumns;
  const int64_t rows = std::min(kRows, p.rows - row);
  worker.multiply(piece, part.few(rows), areas.a + tile * piece.a_bytes(), b, areas.c(),
                  areas.scratch());
  loops().finish(areas.c(), piece.columns, rows, std::min(kColumns, p.columns - column),
                 part.begin == 0 && p.bias != nullptr ? p.bias + column : nullptr,
                 part.begin > 0 || p.accumulate, p.c + row * p.c_stride + column, p.c_stride);
}

// No exception may leave a parallel region.
template <class Body>
void guarded(std::atomic<bool>& failed, Body&& body) noexcept {
  try {
    if (!failed) body();
  } catch (...) {
    failed = true;
  }
}

// Blocks first..first+count of a part; b holds them, ready if `ready`.
void run_blocks(int threads, const Problem& p, const Part& part, int64_t first, int64_t count,
                char* b, bool ready, const Areas& areas, std::atomic<bool>& failed) {
  const int64_t tiles = blocks(p.rows, kRows);
  const int64_t b_bytes = part.full->b_bytes();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::unique_ptr<Worker> worker;
    guarded(failed, [&] { worker = std::make_unique<Worker>(); });
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < (first == 0 ? tiles : 0); ++i) {
      guarded(failed, [&] {
        prepare_a(*worker, p, part, i, areas.plain(), areas.a + i * part.last->a_bytes());
      });
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (ready ? 0 : count); ++i) {
      guarded(failed, [&] {
        prepare_b(*worker, p.b, p.columns, part, first + i, areas.plain(), b + i * b_bytes);
      });
    }
    // The pieces of one block of B follow each other, so that it stays in the cache.
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tiles * count; ++i) {
      guarded(failed, [&] {
        const int64_t at = i / tiles;
        run_piece(*worker, p, part, i % tiles, first + at, b + at * b_bytes, areas);
      });
    }
  }
}

// Carves up the scratch memory; false when it is short.
bool make_areas(Stream& stream, int threads, int64_t a_bytes, int64_t b_bytes, int64_t plain_bytes,
                int64_t scratch_bytes, Areas* areas) {
  areas->c_offset = aligned(plain_bytes);
  areas->scratch_offset = areas->c_offset + kRows * kColumns * static_cast<int64_t>(sizeof(float));
  areas->thread_bytes = aligned(areas->scratch_offset + scratch_bytes);
  areas->a = stream.scratch<char>(a_bytes + b_bytes + threads * areas->thread_bytes);
  areas->b = areas->a + a_bytes;
  areas->threads = areas->b + b_bytes;
  return areas->a != nullptr;
}

void fail_stream(Stream& stream, const char* what, int64_t bytes = 0) {
  if (stream.failed != nullptr) return;
  stream.failed = what;
  stream.failed_bytes = bytes;
}

void multiply(Stream& stream, const Problem& p, const PackedLinear* packed,
              const char* name) noexcept try {
  if (p.rows <= 0 || p.columns <= 0 || p.depth <= 0) return;
  const OneThread one;
  const Part widest = make_part(p.columns, 0, std::min(p.depth, p.depth_step));
  const Part shortest = make_part(p.columns, 0, (p.depth - 1) % p.depth_step + 1);
  int64_t scratch_bytes = 0;
  for (const Piece* piece : {widest.full, widest.last, shortest.full, shortest.last}) {
    const size_t most = std::max(piece->scratch.get_size(), piece->few_scratch.get_size());
    scratch_bytes = std::max(scratch_bytes, static_cast<int64_t>(most));
  }
  const int threads = p.rows * p.columns * p.depth < kSerial ? 1 : stream.threads;
  const int64_t b_bytes = widest.full->b_bytes();
  const int64_t all = widest.last_block + 1;
  const int64_t group = packed ? all : std::min(all, std::max<int64_t>(threads, kGroup / b_bytes));
  const int64_t plain_bytes = std::max(widest.last->a_bytes(), b_bytes);
  Areas areas;
  if (!make_areas(stream, threads, blocks(p.rows, kRows) * widest.last->a_bytes(),
                  packed ? 0 : group * b_bytes, plain_bytes, scratch_bytes, &areas)) {
    return;
  }
  std::atomic<bool> failed = false;
  for (int64_t k = 0; k < p.depth; k += p.depth_step) {
    const int64_t depth = std::min(p.depth - k, p.depth_step);
    const Part part = make_part(p.columns, k, depth);
    for (int64_t first = 0; first < all; first += group) {
      char* b = packed ? static_cast<char*>(packed->data) : areas.b;
      run_blocks(threads, p, part, first, std::min(group, all - first), b, packed != nullptr, areas,
                 failed);
    }
  }
  if (failed) fail_stream(stream, name);
} catch (...) {
  fail_stream(stream, name);
}

// sum[n] += sum_m dy[m, n]: blocks of rows in order.
void add_column_sums(Stream& stream, const LinearBackwardWeightArgs& a) noexcept {
  const float* dy = a.dy.as<float>();
  float* sum = a.dbias.as<float>();
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (a.M * a.N >= kSerial)
  for (int64_t block = 0; block < blocks(a.N, kUnit); ++block) {
    const int64_t n = block * kUnit;
    const int64_t width = std::min(kUnit, a.N - n);
    for (int64_t m0 = 0; m0 < a.M; m0 += kDepth) {
      float part[kUnit] = {};
      for (int64_t m = m0; m < std::min(a.M, m0 + kDepth); ++m) {
        for (int64_t i = 0; i < width; ++i) part[i] += dy[m * a.dy_stride + n + i];
      }
      for (int64_t i = 0; i < width; ++i) sum[n + i] += part[i];
    }
  }
}

// The wanted rows of a weight that exists in oneDNN's layout alone: block by block.
template <class T>
void unpack_rows(const LinearRowsArgs& a, const Part& part, char* plain) {
  const int64_t K = a.packed->K;
  const int32_t* ids = a.ids.as<int32_t>();
  Worker worker;
  for (int64_t block = 0; block <= part.last_block; ++block) {
    const Piece& p = part.piece_of(block);
    bool unpacked = false;
    for (int64_t r = 0; r < a.rows; ++r) {
      if (ids[r] < 0 || ids[r] / kColumns != block) continue;
      if (!unpacked) {
        char* data = static_cast<char*>(a.packed->data) + block * part.full->b_bytes();
        worker.reorder(p.to_columns, p.b, data, p.b_by_columns, plain);
        unpacked = true;
      }
      const T* row = reinterpret_cast<const T*>(plain) + ids[r] % kColumns * p.depth;
      float* y = a.y.as<float>() + r * K;
      for (int64_t k = 0; k < K; ++k) y[k] = onednn::widened(row[k]);
    }
  }
}

// Every block of W^T in oneDNN's layout; false when memory is short.
bool pack_blocks(Stream& stream, const LinearPackArgs& a, const Part& part, char* data,
                 std::atomic<bool>& failed) {
  const int64_t plain_bytes = aligned(part.full->b_bytes());
  const int threads = a.N * a.K < kSerial ? 1 : stream.threads;
  char* plain = stream.scratch<char>(threads * plain_bytes);
  if (plain == nullptr) return false;
  const Operand weight = {a.weight, a.K, false};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t block = 0; block <= part.last_block; ++block) {
    guarded(failed, [&] {
      Worker worker;
      prepare_b(worker, weight, a.N, part, block, plain + omp_get_thread_num() * plain_bytes,
                data + block * part.full->b_bytes());
    });
  }
  return true;
}

}  // namespace

namespace onednn {

void linear_forward(Stream& stream, const LinearArgs& a) noexcept {
  if (a.product == Product::kF32) return own().linear_forward(stream, a);
  only_way(stream, a, Way::kOneDnn);
  if (a.packed && (a.packed->panel != kPanel || a.packed->product != a.product ||
                   a.packed->N != a.N || a.packed->K != a.K)) {
    return fail_stream(stream, "linear_forward (packed for something else)");
  }
  Problem p{};
  p.rows = a.M, p.columns = a.N, p.depth = p.depth_step = a.K;
  p.a = a.x.as<float>(), p.a_stride = a.x_stride;
  p.b = {a.weight, a.K, false}, p.bias = a.bias.as<float>(), p.accumulate = a.accumulate;
  p.c = a.y.as<float>(), p.c_stride = a.y_stride;
  multiply(stream, p, a.packed, "linear_forward (oneDNN)");
}

void linear_backward_input(Stream& stream, const LinearBackwardInputArgs& a) noexcept {
  if (a.product == Product::kF32) return own().linear_backward_input(stream, a);
  const Problem p = {a.M,
                     a.K,
                     a.N,
                     a.N,
                     a.dy.as<float>(),
                     a.dy_stride,
                     false,
                     {a.weight, a.K, true},
                     nullptr,
                     a.accumulate,
                     a.dx.as<float>(),
                     a.dx_stride};
  multiply(stream, p, nullptr, "linear_backward_input (oneDNN)");
}

void linear_backward_weight(Stream& stream, const LinearBackwardWeightArgs& a) noexcept {
  if (a.product == Product::kF32) return own().linear_backward_weight(stream, a);
  const Problem p = {a.N,
                     a.K,
                     a.M,
                     kDepth,
                     a.dy.as<float>(),
                     a.dy_stride,
                     true,
                     {a.x, a.x_stride, true},
                     nullptr,
                     true,
                     a.dweight.as<float>(),
                     a.K};
  multiply(stream, p, nullptr, "linear_backward_weight (oneDNN)");
  if (a.dbias) add_column_sums(stream, a);
}

// The weight itself is not kept. What comes out is freed by linear_unpack of our own kernels.
void linear_pack(Stream& stream, const LinearPackArgs& a) noexcept try {
  if (a.product == Product::kF32) return own().linear_pack(stream, a);
  *a.out = nullptr;
  const OneThread one;
  const bool empty = a.N <= 0 || a.K <= 0;
  const Part part = empty ? Part{} : make_part(a.N, 0, a.K);
  const int64_t bytes = empty ? 64 : part.last_block * part.full->b_bytes() + part.last->b_bytes();
  const int64_t row_bytes = a.by_rows ? std::max<int64_t>(a.N * a.K, 1) * 2 : 0;
  const auto give = [&stream](void* p) { stream.give(stream, p); };
  using Memory = std::unique_ptr<void, decltype(give)>;
  Memory rows(a.by_rows ? stream.take(stream, row_bytes) : nullptr, give);
  if (a.by_rows && rows == nullptr) return fail_stream(stream, "linear_pack", row_bytes);
  Memory data(stream.take(stream, bytes), give);
  std::unique_ptr<void, decltype(&std::free)> packed(std::malloc(sizeof(PackedLinear)), std::free);
  if (data == nullptr || packed == nullptr) return fail_stream(stream, "linear_pack", bytes);
  std::atomic<bool> failed = false;
  if (!empty && !pack_blocks(stream, a, part, static_cast<char*>(data.get()), failed)) return;
  if (failed) return fail_stream(stream, "linear_pack (oneDNN)");
  *a.out = static_cast<PackedLinear*>(packed.release());
  if (a.by_rows) loops().round(a.weight, a.K, a.N, a.K, a.N, a.K, true, rows.get());
  **a.out = {a.N, a.K, kPanel, a.product, DType::kBF16, data.release(), bytes, rows.release()};
} catch (...) {
  fail_stream(stream, "linear_pack (oneDNN)");
}

void linear_rows(Stream& stream, const LinearRowsArgs& a) noexcept try {
  if (a.packed->panel != kPanel) return own().linear_rows(stream, a);
  const int64_t N = a.packed->N, K = a.packed->K;
  if (a.packed->rows != nullptr) {
    const CBuf weight(a.packed->rows, DType::kBF16);
    return own().embed_forward(stream, EmbedArgs{a.rows, K, N, a.ids, weight, a.y});
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    float* y = a.y.as<float>() + r * K;
    if (a.ids.as<int32_t>()[r] < 0) std::fill(y, y + K, 0.0f);
  }
  if (N <= 0 || K <= 0) return;
  const OneThread one;
  const Part part = make_part(N, 0, K);
  char* plain = stream.scratch<char>(aligned(part.full->b_bytes()));
  if (plain == nullptr) return;
  if (element_type() == Type::bf16) {
    unpack_rows<bf16>(a, part, plain);
  } else {
    unpack_rows<float>(a, part, plain);
  }
} catch (...) {
  fail_stream(stream, "linear_rows (oneDNN)");
}

template <class Args>
void in_sequence(Stream& stream, const Args& a) noexcept {
  only_in_sequence(onednn_kernels(), stream, a);
}

}  // namespace onednn

const Kernels& onednn_kernels() {
  static const Kernels kTable = [] {
    Kernels table = own();
    table.name = "onednn";
    table.linear_forward = onednn::linear_forward;
    table.linear_backward_input = onednn::linear_backward_input;
    table.linear_backward_weight = onednn::linear_backward_weight;
    table.linear_pack = onednn::linear_pack;
    table.linear_rows = onednn::linear_rows;
    table.mamba1_step = onednn::in_sequence<Mamba1StepArgs>;
    table.mamba2_step = onednn::in_sequence<Mamba2StepArgs>;
    table.norm_linear = onednn::in_sequence<NormLinearArgs>;
    return table;
  }();
  return kTable;
}

}  // namespace mamba
