// SPDX-License-Identifier: Apache-2.0
// The rows that are shipped, what each way needs, and the one rule by which ways are chosen.
#include "kernels/choices.h"

#include <bit>
#include <cstring>

#include "kernels/linear_packed.h"
#include "kernels/linear_q.h"
#include "kernels/mamba1_step.h"
#include "kernels/mamba2_step.h"
#include "kernels/norm_linear.h"

namespace mamba {
namespace {

constexpr SizeRange kAny = {0, kNoLimit};
constexpr SizeRange from(int64_t low) { return {low, kNoLimit}; }
constexpr SizeRange to(int64_t high) { return {0, high}; }

constexpr ChoiceRow row(Operation operation, SizeRange rows, SizeRange size, SizeRange depth,
                        Way winner) {
  return {operation, true, DType::kF32, rows, size, depth, winner};
}

// For every card; the borders were measured on an H200 of 132 multiprocessors.
constexpr ChoiceRow kGenericRows[] = {
    // One row by multiply-adds, but short rows of many weights on tensor cores.
    row(Operation::kLinear, {1, 1}, from(64 * 132), to(1535), Way::kTensor),
    row(Operation::kLinear, {1, 1}, kAny, kAny, Way::kRow),
    // More rows in tiles where the weight is small; shallow ones on tensor cores as they come.
    row(Operation::kLinear, {2, 16}, kAny, to(63), Way::kTensor),
    row(Operation::kLinear, {2, 64}, to(4095), to(2047), Way::kTiles),
    row(Operation::kLinear, kAny, kAny, kAny, Way::kTensor),
    row(Operation::kLinear, kAny, kAny, kAny, Way::kPlain),
    row(Operation::kLinear, kAny, kAny, kAny, Way::kOneDnn),
    row(Operation::kLinear, kAny, kAny, kAny, Way::kGeneral),
    row(Operation::kLinear, kAny, kAny, kAny, Way::kTiles),
    row(Operation::kNormLinear, kAny, kAny, kAny, Way::kFused),
    row(Operation::kNormLinear, kAny, kAny, kAny, Way::kSequence),
    row(Operation::kLinearQ, kAny, kAny, kAny, Way::kFewRows),
    row(Operation::kLinearQ, kAny, kAny, kAny, Way::kGeneral),
    row(Operation::kScanStep, kAny, from(132 * 64), kAny, Way::kChannels),
    row(Operation::kScanStep, kAny, kAny, kAny, Way::kLanes),
    // Of many rows the products are better done together. Threads enough to fill the card, or to
    // have done soon.
    row(Operation::kMamba1Step, from(17), kAny, kAny, Way::kSequence),
    row(Operation::kMamba1Step, kAny, from(132 * 256), kAny, Way::kFused2),
    row(Operation::kMamba1Step, kAny, kAny, kAny, Way::kFusedInput),
    row(Operation::kMamba1Step, kAny, kAny, kAny, Way::kFused8),
    row(Operation::kMamba2Step, kAny, from(96), kAny, Way::kFusedConvolved),
    // Every warp norms the row anew.
    row(Operation::kMamba2Step, kAny, kAny, to(2048), Way::kFusedProduct),
    row(Operation::kMamba2Step, kAny, kAny, kAny, Way::kFused),
    row(Operation::kMamba2Step, kAny, kAny, kAny, Way::kSequence),
};

struct CardRows {
  Card card;
  const ChoiceRow* rows;
  int64_t count;
};

#include "kernels/choices_table.inc"

struct WayText {
  const char *name, *text;
};
constexpr WayText kWayTexts[kWays] = {
    {"general", "a product of matrices of any number of rows"},
    {"onednn", "the same by oneDNN"},
    {"row", "one row by multiply-adds, a warp a row of the weight"},
    {"tensor", "up to 16 rows on tensor cores, the weight read once"},
    {"tiles", "up to 64 rows on tensor cores, in tiles of shared memory"},
    {"plain", "up to 8 rows of f32 by multiply-adds"},
    {"few_rows", "up to 4 rows with weights in blocks"},
    {"lanes", "several lanes a channel"},
    {"channels", "a thread a channel"},
    {"sequence", "its parts as kernels of their own"},
    {"fused", "one kernel, or two, for all of it"},
    {"fused_convolved", "fused, convolved by a kernel before"},
    {"fused_8", "fused, eight threads a channel"},
    {"fused_2", "fused, two threads a channel"},
    {"fused_product", "fused, the norm inside the product behind it"},
    {"fused_input", "fused, convolved inside the product in front of it"},
};
constexpr const char* kOperationNames[kOperations] = {
    "linear", "norm_linear", "linear_q", "scan_step", "mamba1_step", "mamba2_step",
};
constexpr const char* kModeNames[] = {"auto", "reference", "fused"};

// Whatever its place in the enum.
int index_of(const char* const* names, int count, const char* name) {
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(names[i], name) == 0) return i;
  }
  return -1;
}

constexpr uint32_t kGeneralWays =
    bit(Way::kGeneral) | bit(Way::kOneDnn) | bit(Way::kLanes) | bit(Way::kSequence);

uint32_t fused_of(uint32_t ways) {
  uint32_t fused = 0;
  for (int i = 0; i < kWays; ++i) {
    if (is_fused(static_cast<Way>(i))) fused |= ways & (1u << i);
  }
  return fused;
}

bool is_step(Operation operation) {
  return operation == Operation::kMamba1Step || operation == Operation::kMamba2Step;
}

// The first row of a table that has the request's shape and a winner among `ways`.
const ChoiceRow* find(const ChoiceTable& table, const Request& r, uint32_t ways) {
  for (int64_t i = 0; i < table.count; ++i) {
    const ChoiceRow& row = table.rows[i];
    if (row.operation == r.operation && (row.any_type || row.type == r.type) &&
        row.rows.has(r.rows) && row.size.has(r.size) && row.depth.has(r.depth) &&
        (bit(row.winner) & ways) != 0) {
      return &row;
    }
  }
  return nullptr;
}

DType weight_type(const LinearArgs& a) {
  return a.packed != nullptr ? a.packed->dtype : a.weight.dtype;
}

void tell(Stream& stream, Operation operation, DType type, int64_t rows, int64_t size,
          int64_t depth, Way way) {
  if (stream.choices == nullptr || stream.choices->on_choice == nullptr) return;
  const Request request = {operation, type, rows, size, depth, bit(way)};
  stream.choices->on_choice(stream.choices->log, request, {way, Why::kOnlyOne});
}

Way first_of(uint32_t ways) { return static_cast<Way>(std::countr_zero(ways)); }

}  // namespace

const char* name_of(Operation operation) { return kOperationNames[static_cast<int>(operation)]; }
const char* name_of(Way way) { return kWayTexts[static_cast<int>(way)].name; }
const char* text_of(Way way) { return kWayTexts[static_cast<int>(way)].text; }
const char* name_of(BackendMode mode) { return kModeNames[static_cast<int>(mode)]; }

const char* text_of(Why why) {
  switch (why) {
    case Why::kOnlyOne:
      return "nothing else can run it";
    case Why::kTuned:
      return "measured by tune";
    case Why::kCard:
      return "shipped for this card";
    case Why::kGeneric:
      return "shipped for all cards";
    case Why::kBackend:
      return "asked for by --backend";
    case Why::kForced:
      return "to be measured";
    case Why::kRefused:
      break;
  }
  return "what --backend asks for cannot run";
}

bool operation_of(const char* name, Operation* operation) {
  const int i = index_of(kOperationNames, kOperations, name);
  if (i >= 0) *operation = static_cast<Operation>(i);
  return i >= 0;
}
bool way_of(const char* name, Way* way) {
  for (int i = 0; i < kWays; ++i) {
    if (std::strcmp(kWayTexts[i].name, name) != 0) continue;
    *way = static_cast<Way>(i);
    return true;
  }
  return false;
}
bool backend_mode_of(const char* name, BackendMode* mode) {
  const int i = index_of(kModeNames, 3, name);
  if (i >= 0) *mode = static_cast<BackendMode>(i);
  return i >= 0;
}

uint32_t ways_of(Operation operation) {
  uint32_t ways = 0;
  for (const ChoiceRow& row : kGenericRows) {
    if (row.operation == operation) ways |= bit(row.winner);
  }
  return ways;
}

ChoiceTable generic_table() {
  return {kGenericRows, static_cast<int64_t>(sizeof kGenericRows / sizeof kGenericRows[0])};
}

ChoiceTable table_of_card(const Card& card) {
  for (const CardRows& of : kCards) {
    if (of.card.capability == card.capability && of.card.multiprocessors == card.multiprocessors) {
      return {of.rows, of.count};
    }
  }
  return {};
}

Choice choose(const Choices& choices, const Request& r) noexcept {
  const bool focused = choices.focus != nullptr && same_class(*choices.focus, r);
  const uint32_t forced =
      r.possible & (focused ? choices.focus_ways : choices.forced[static_cast<int>(r.operation)]);
  uint32_t ways = forced != 0 ? forced : r.possible;
  Why why = Why::kForced;
  bool decided = forced != 0;
  if (!decided && choices.mode != BackendMode::kAuto) {
    const bool general = choices.mode == BackendMode::kReference;
    const uint32_t wanted = general ? r.possible & kGeneralWays : fused_of(r.possible);
    if (wanted != 0) {
      decided = wanted != r.possible;
      ways = wanted;
      why = Why::kBackend;
    } else if (general || is_step(r.operation)) {
      return {first_of(r.possible), Why::kRefused};
    }
  }
  if (std::has_single_bit(ways)) return {first_of(ways), decided ? why : Why::kOnlyOne};
  const ChoiceTable tables[] = {choices.tuned, choices.card, generic_table()};
  constexpr Why kBy[] = {Why::kTuned, Why::kCard, Why::kGeneric};
  for (int i = 0; i < 3; ++i) {
    const ChoiceRow* row = find(tables[i], r, ways);
    if (row != nullptr) return {row->winner, decided ? why : kBy[i], row};
  }
  return {first_of(ways), why};
}

Choice choose(Stream& stream, const Request& request) noexcept {
  if (stream.choices == nullptr) return choose(Choices{}, request);
  Choices& choices = *stream.choices;
  const Choice choice = choose(choices, request);
  if (choice.why == Why::kRefused && !choices.refused) {
    choices.refused = true;
    choices.refusal = request;
  }
  if (choices.on_choice != nullptr) choices.on_choice(choices.log, request, choice);
  return choice;
}

void only_way(Stream& stream, const LinearArgs& a, Way way) noexcept {
  tell(stream, Operation::kLinear, weight_type(a), a.M, a.N, a.K, way);
}
void only_way(Stream& stream, const LinearQArgs& a, Way way) noexcept {
  tell(stream, Operation::kLinearQ, a.packed->dtype, a.M, a.N, a.K, way);
}
void only_way(Stream& stream, const NormLinearArgs& a, Way way) noexcept {
  const LinearArgs& p = a.product;
  tell(stream, Operation::kNormLinear, weight_type(p), p.M, p.N, p.K, way);
}
void only_way(Stream& stream, const Mamba1StepArgs& a, Way way) noexcept {
  tell(stream, Operation::kMamba1Step, a.xz.dtype, a.B, a.B * a.E, a.E, way);
}
void only_way(Stream& stream, const Mamba2StepArgs& a, Way way) noexcept {
  const int64_t blocks = a.B * a.H * ((a.P + 63) / 64);
  tell(stream, Operation::kMamba2Step, a.zx.dtype, a.B, blocks, a.H * a.P, way);
}

// Products of bf16 take x in f32 too, which they round.
Request linear_request(const LinearShape& s) noexcept {
  uint32_t ways = bit(Way::kGeneral);
  const bool whole = s.aligned && s.M >= 1 && s.N >= 1 && s.K >= 8 && s.K % 8 == 0;
  const bool narrow = (s.weight == DType::kBF16 &&
                       (s.x == s.weight || (s.x == DType::kF32 && s.product == Product::kBF16))) ||
                      (s.weight == DType::kF16 && s.x == s.weight);
  if (whole && narrow && s.M == 1) ways |= bit(Way::kRow);
  if (whole && narrow && s.M <= kMostTensorRows) ways |= bit(Way::kTensor);
  // Dimensions of tiles are 32 bits.
  const bool small = s.N <= INT32_MAX / 2 && s.K <= INT32_MAX / 2;
  if (whole && narrow && small && s.engine && s.x != DType::kF32 && s.M <= kMostTileRows) {
    ways |= bit(Way::kTiles);
  }
  if (whole && s.x == DType::kF32 && s.product == Product::kF32 && s.M <= kMostPlainRows) {
    ways |= bit(Way::kPlain);
  }
  return {Operation::kLinear, s.weight, s.M, s.N, s.K, ways};
}

Request norm_linear_request(const LinearShape& s, DType normed) noexcept {
  uint32_t ways = bit(Way::kSequence);
  const bool types = s.weight == DType::kBF16 && normed == DType::kBF16 &&
                     (s.x == DType::kBF16 || s.x == DType::kF32);
  const bool sizes = s.M == 1 && s.N >= 1 && s.K >= 8 && s.K % 8 == 0 && s.K <= kMostNormed;
  if (types && sizes && s.aligned) ways |= bit(Way::kFused);
  return {Operation::kNormLinear, s.weight, s.M, s.N, s.K, ways};
}

Request linear_q_request(int64_t M, int64_t N, int64_t K, DType blocks, bool fits) noexcept {
  uint32_t ways = bit(Way::kGeneral);
  const bool split = blocks == DType::kQ8_0 || blocks == DType::kQ4_0 || blocks == DType::kIQ4_NL;
  if (split && fits && M <= kMostQuantizedRows) ways |= bit(Way::kFewRows);
  return {Operation::kLinearQ, blocks, M, N, K, ways};
}

Request scan_step_request(int64_t B, int64_t E, DType type, bool fits) noexcept {
  uint32_t ways = bit(Way::kLanes);
  if (fits && B <= 65535) ways |= bit(Way::kChannels);
  return {Operation::kScanStep, type, B, B * E, E, ways};
}

Request mamba1_step_request(int64_t B, int64_t E, DType type, bool in_blocks, bool input) noexcept {
  Request r = {Operation::kMamba1Step, type, B, B * E, E, bit(Way::kSequence)};
  if (in_blocks) {
    r.why_not = "x_proj or dt_proj in blocks, which take the sequence of kernels";
  } else {
    r.possible |= bit(Way::kFused2) | bit(Way::kFused8);
    if (B == 1 && input) r.possible |= bit(Way::kFusedInput);
  }
  return r;
}

Request mamba2_step_request(int64_t B, int64_t H, int64_t P, DType type, bool vectors,
                            bool product) noexcept {
  constexpr int64_t kMostBlocks = 65535;  // of a grid beside its first dimension
  Request r = {Operation::kMamba2Step, type, B, B * H * ((P + 63) / 64), H * P, bit(Way::kFused)};
  if (B <= kMostBlocks) r.possible |= bit(Way::kSequence);
  if (B <= kMostBlocks && vectors) r.possible |= bit(Way::kFusedConvolved);
  if (B == 1 && product) r.possible |= bit(Way::kFusedProduct);
  return r;
}

}  // namespace mamba
