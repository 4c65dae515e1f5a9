// SPDX-License-Identifier: Apache-2.0
// Which of several ways an operation runs: one function, choose(), over a table of measured rows.
// Kernels ask it before they launch; tune measures the rows; --explain tells what was answered.
// Plain data, so that files compiled for one ISA may include it.
#pragma once

#include <stdint.h>

#include "kernels/linear.h"

namespace mamba {

struct LinearQArgs;
struct NormLinearArgs;
struct Mamba1StepArgs;
struct Mamba2StepArgs;

// What can run in more than one way. A request gives `rows`, `size` and `depth` as the comment
// says.
enum class Operation : uint8_t {
  kLinear,      // rows M, size N, depth K; type of the weight
  kNormLinear,  // the same
  kLinearQ,     // the same, type of the blocks
  kScanStep,    // rows B, size B E, depth E; type of activations
  kMamba1Step,  // the same
  kMamba2Step,  // rows B, size B H ceil(P / 64), depth H P; type of activations
};
inline constexpr int kOperations = 6;

enum class Way : uint8_t {
  kGeneral,         // a product of matrices of any number of rows
  kOneDnn,          // the same by oneDNN
  kRow,             // one row by multiply-adds, a warp a row of the weight
  kTensor,          // up to 16 rows on tensor cores, the weight read once
  kTiles,           // up to 64 rows on tensor cores, in tiles of shared memory
  kPlain,           // up to 8 rows of f32 by multiply-adds
  kFewRows,         // up to 4 rows with weights in blocks
  kLanes,           // scan_step: several lanes a channel
  kChannels,        // scan_step: a thread a channel
  kSequence,        // the parts of a step as kernels of their own
  kFused,           // norm_linear as one kernel; mamba2_step with its convolution inside
  kFusedConvolved,  // mamba2_step, convolved by a kernel before
  kFused8,          // mamba1_step, eight threads a channel
  kFused2,          // mamba1_step, two threads a channel
  kFusedProduct,    // mamba2_step of one row, its norm inside the product behind it
  kFusedInput,      // mamba1_step of one row, convolved inside the product in front of it
};
inline constexpr int kWays = 16;

constexpr uint32_t bit(Way way) { return 1u << static_cast<int>(way); }
constexpr bool is_fused(Way way) { return way >= Way::kFused; }

const char* name_of(Operation operation);
const char* name_of(Way way);
// One sentence about a way.
const char* text_of(Way way);
// False where there is none of that name.
bool operation_of(const char* name, Operation* operation);
bool way_of(const char* name, Way* way);
// All ways of an operation, as bits.
uint32_t ways_of(Operation operation);

// A range of sizes, both ends included.
struct SizeRange {
  int64_t low, high;
  constexpr bool has(int64_t v) const { return low <= v && v <= high; }
};
inline constexpr int64_t kNoLimit = INT64_MAX;

// A class of shapes, the way that wins there, and what was measured: a whole step of a network in
// which calls of this class, and no others, took one way and then another.
struct ChoiceRow {
  Operation operation;
  bool any_type;
  DType type;
  SizeRange rows, size, depth;
  Way winner;
  float microseconds[kWays] = {};  // by Way; 0: not measured
};

// A list of rows: the first that has the shape, and whose winner can run, counts.
struct ChoiceTable {
  const ChoiceRow* rows = nullptr;
  int64_t count = 0;
};

// What rows are measured on.
struct Card {
  int capability = 0;  // 90: compute capability 9.0; 0: no GPU
  int multiprocessors = 0;
};

// What is shipped in the source: rows measured on this card, none for others; and rows that cover
// every shape, for every card.
ChoiceTable table_of_card(const Card& card);
ChoiceTable generic_table();

enum class BackendMode : uint8_t {
  kAuto,
  kReference,  // the general kernels alone
  kFused,      // one kernel for as much as there is one for
};
bool backend_mode_of(const char* name, BackendMode* mode);
const char* name_of(BackendMode mode);

// A call that is to be made: its class, and the ways that can run it.
struct Request {
  Operation operation;
  DType type;
  int64_t rows, size, depth;
  uint32_t possible;              // bits of ways
  const char* why_not = nullptr;  // there is no fused way
};

constexpr bool same_class(const Request& a, const Request& b) {
  return a.operation == b.operation && a.type == b.type && a.rows == b.rows && a.size == b.size &&
         a.depth == b.depth;
}

enum class Why : uint8_t {
  kOnlyOne,  // can run
  kTuned,    // a row of the file of tune
  kCard,     // a row shipped for this card
  kGeneric,  // a row shipped for all
  kBackend,  // --backend
  kForced,   // to be measured
  kRefused,  // what --backend demands cannot run: nothing may rely on the result
};
const char* text_of(Why why);

struct Choice {
  Way way;
  Why why;
  const ChoiceRow* row = nullptr;  // that decided, or null
};

// What a device chooses by. Belongs to the Device; its stream points to it.
struct Choices {
  BackendMode mode = BackendMode::kAuto;
  ChoiceTable tuned, card;
  // To measure: bits of the ways that alone may run, where they can, by operation (0: all), and of
  // calls of the class of `focus` (null: none).
  uint32_t forced[kOperations] = {};
  const Request* focus = nullptr;
  uint32_t focus_ways = 0;
  uint64_t version = 0;  // to be changed with these: what was chosen before may be in a graph
  // Told of every choice.
  void (*on_choice)(void* log, const Request& request, const Choice& choice) = nullptr;
  void* log = nullptr;
  bool refused = false;  // a choice was: the first one
  Request refusal = {};
};

// Pure: what a request gets.
Choice choose(const Choices& choices, const Request& request) noexcept;
// The same by the stream's choices (null: the generic rows), told to its log.
Choice choose(Stream& stream, const Request& request) noexcept;
// Tells the log of a call that the backend runs in one way alone.
void only_way(Stream& stream, const LinearArgs& args, Way way) noexcept;
void only_way(Stream& stream, const LinearQArgs& args, Way way) noexcept;
void only_way(Stream& stream, const NormLinearArgs& args, Way way) noexcept;
void only_way(Stream& stream, const Mamba1StepArgs& args, Way way) noexcept;
void only_way(Stream& stream, const Mamba2StepArgs& args, Way way) noexcept;

// ---- What the kernels for GPUs can do ----

// Rows of x, and columns of a row that is normed.
inline constexpr int kMostTensorRows = 16, kMostTileRows = 64, kMostPlainRows = 8,
                     kMostQuantizedRows = 4;
inline constexpr int64_t kMostNormed = 8192;

// aligned: rows of x and of the weight begin at multiples of 16 bytes. engine: the card has an
// engine that copies tiles.
struct LinearShape {
  int64_t M, N, K;
  DType weight, x;
  Product product;
  bool aligned;
  bool engine = false;
};
Request linear_request(const LinearShape& shape) noexcept;
// shape.x: what the norm reads; normed: what it makes. aligned: all rows.
Request norm_linear_request(const LinearShape& shape, DType normed) noexcept;
// fits: rows of x as integers fit into a block's memory.
Request linear_q_request(int64_t M, int64_t N, int64_t K, DType blocks, bool fits) noexcept;
// fits: all channels share B and C of at most 16 states.
Request scan_step_request(int64_t B, int64_t E, DType type, bool fits) noexcept;
// in_blocks: a weight between the convolution and the scan is. input: the product in front can
// convolve.
Request mamba1_step_request(int64_t B, int64_t E, DType type, bool in_blocks, bool input) noexcept;
// vectors: the state can be read four elements at a time. product: the one behind it can do the
// norm.
Request mamba2_step_request(int64_t B, int64_t H, int64_t P, DType type, bool vectors,
                            bool product) noexcept;

}  // namespace mamba
