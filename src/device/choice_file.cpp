// SPDX-License-Identifier: Apache-2.0
// Rows of choices to JSON and back, and to source.
#include "device/choice_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>

#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

constexpr const char* kFormat = "mamba-cpp-choices";
// To be raised whenever a kernel that can be chosen changes: what was measured is then worth
// nothing.
constexpr int kVersion = 1;
constexpr size_t kMostBytes = size_t{4} << 20;
constexpr size_t kMostRows = 4096;
constexpr const char* kAnyType = "any";
constexpr double kMostMicroseconds = 1e9;

using OrderedJson = nlohmann::ordered_json;

std::string capability_text(const Card& card) {
  return fmt::format("{}.{}", card.capability / 10, card.capability % 10);
}

OrderedJson to_json(const SizeRange& range) {
  OrderedJson json = {range.low, nullptr};
  if (range.high != kNoLimit) json[1] = range.high;
  return json;
}

OrderedJson to_json(const ChoiceRow& row) {
  OrderedJson json = {{"operation", name_of(row.operation)},
                      {"type", row.any_type ? kAnyType : dtype_name(row.type)},
                      {"rows", to_json(row.rows)},
                      {"size", to_json(row.size)},
                      {"depth", to_json(row.depth)},
                      {"winner", name_of(row.winner)},
                      {"microseconds", OrderedJson::object()}};
  for (int i = 0; i < kWays; ++i) {
    if (row.microseconds[i] <= 0) continue;
    // Three decimals, and not the digits of a binary fraction.
    json["microseconds"][name_of(static_cast<Way>(i))] =
        std::round(static_cast<double>(row.microseconds[i]) * 1e3) / 1e3;
  }
  return json;
}

DType type_of(const std::string& name, const std::string& where) {
  for (int i = 0; i <= static_cast<int>(DType::kIQ4_NL); ++i) {
    if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
  }
  fail(ErrorCode::kBadFile, "[{}] expected a type such as f32 or bf16, got '{}'", where,
       printable(name));
}

Way way_in(const std::string& name, Operation operation, const std::string& where) {
  Way way;
  if (!way_of(name.c_str(), &way) || (ways_of(operation) & bit(way)) == 0) {
    fail(ErrorCode::kBadFile, "[{}] expected a way to run {}, got '{}'", where, name_of(operation),
         printable(name));
  }
  return way;
}

SizeRange range_of(const Json& row, const char* key, const std::string& where) {
  const Json& ends = get_member(row, key, where);
  const bool two = ends.is_array() && ends.size() == 2 && ends[0].is_number_integer() &&
                   (ends[1].is_null() || ends[1].is_number_integer());
  const int64_t low = two ? ends[0].get<int64_t>() : -1;
  const int64_t high = two && !ends[1].is_null() ? ends[1].get<int64_t>() : kNoLimit;
  if (low < 0 || high < low) {
    fail(ErrorCode::kBadFile, "[{}] expected {} as [from, to], got {}", where, key,
         printable_json(ends));
  }
  return {low, high};
}

ChoiceRow row_of(const Json& json, const std::string& where) {
  if (!json.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected rows as objects, got {}", where, printable_json(json));
  }
  ChoiceRow row = {};
  const std::string operation = get_string(json, "operation", where);
  if (!operation_of(operation.c_str(), &row.operation)) {
    fail(ErrorCode::kBadFile, "[{}] expected an operation such as linear, got '{}'", where,
         printable(operation));
  }
  const std::string type = get_string(json, "type", where);
  row.any_type = type == kAnyType;
  row.type = row.any_type ? DType::kF32 : type_of(type, where);
  row.rows = range_of(json, "rows", where);
  row.size = range_of(json, "size", where);
  row.depth = range_of(json, "depth", where);
  row.winner = way_in(get_string(json, "winner", where), row.operation, where);
  const Json& measured = get_member(json, "microseconds", where);
  if (!measured.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected microseconds as an object, got {}", where,
         printable_json(measured));
  }
  for (const auto& [name, value] : measured.items()) {
    const Way way = way_in(name, row.operation, where);
    row.microseconds[static_cast<int>(way)] =
        static_cast<float>(get_number(measured, name.c_str(), 0, kMostMicroseconds, where));
  }
  return row;
}

std::string source_of(const SizeRange& range) {
  if (range.high != kNoLimit) return fmt::format("{{{}, {}}}", range.low, range.high);
  return range.low == 0 ? "kAny" : fmt::format("from({})", range.low);
}

// "mamba1_step" as kMamba1Step.
std::string enumerator(const std::string& name) {
  if (name == name_of(Way::kOneDnn)) return "kOneDnn";
  std::string out = "k";
  bool upper = true;
  for (const char c : name) {
    if (c != '_') {
      out += upper ? static_cast<char>(std::toupper(static_cast<unsigned char>(c))) : c;
    }
    upper = c == '_';
  }
  return out;
}

std::string type_source(DType type) {
  std::string name = dtype_name(type);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return "k" + name;
}

}  // namespace

std::string choice_file_name(const Card& card) {
  return fmt::format("choices-sm{}-{}.json", card.capability, card.multiprocessors);
}

std::string to_json_text(const ChoiceFile& file) {
  OrderedJson json = {
      {"format", kFormat},
      {"version", kVersion},
      {"hardware", file.hardware},
      {"compute_capability", capability_text(file.card)},
      {"multiprocessors", file.card.multiprocessors},
      {"rows", OrderedJson::array()},
  };
  for (const ChoiceRow& row : file.rows) json["rows"].push_back(to_json(row));
  return json_text(json);
}

std::string to_source(const ChoiceFile& file) {
  const std::string name =
      fmt::format("kRowsOf{}x{}", file.card.capability, file.card.multiprocessors);
  std::string text = fmt::format(
      "// SPDX-License-Identifier: Apache-2.0\n"
      "// Rows measured on one card, by `mamba-cpp tune --to source`; included by choices.cpp "
      "alone.\n"
      "// clang-format off\n"
      "// {}\nconstexpr ChoiceRow {}[] = {{\n",
      printable(file.hardware), name);
  for (const ChoiceRow& row : file.rows) {
    std::string measured;
    for (int i = 0; i < kWays; ++i) {
      measured += fmt::format("{}{:.5g}", i == 0 ? "" : ", ", row.microseconds[i]);
    }
    text += fmt::format(
        "    {{Operation::{}, {}, DType::{}, {}, {}, {},\n     Way::{},\n     {{{}}}}},\n",
        enumerator(name_of(row.operation)), row.any_type, type_source(row.type),
        source_of(row.rows), source_of(row.size), source_of(row.depth),
        enumerator(name_of(row.winner)), measured);
  }
  return text + fmt::format("}};\nconstexpr CardRows kCards[] = {{{{{{{}, {}}}, {}, {}}}}};\n",
                            file.card.capability, file.card.multiprocessors, name,
                            file.rows.size());
}

ChoiceFile read_choice_file(const std::string& path, const Card& card) {
  const Json json = read_json_file(path, {kMostBytes, 8});
  const std::string where = printable(path, 200);
  if (!json.is_object() || !has_member(json, "format") || json["format"] != kFormat) {
    fail(ErrorCode::kBadFile, "[{}] expected a file of choices, got something else", where);
  }
  const int64_t version = get_int(json, "version", 0, INT64_MAX, where);
  if (version != kVersion) {
    fail(ErrorCode::kBadFile, "[{}] expected version {} of the kernels, got {}", where, kVersion,
         version);
  }
  ChoiceFile file;
  file.hardware = get_string(json, "hardware", where);
  const std::string capability = get_string(json, "compute_capability", where);
  const int64_t multiprocessors = get_int(json, "multiprocessors", 1, 1 << 20, where);
  if (capability != capability_text(card) || multiprocessors != card.multiprocessors) {
    fail(ErrorCode::kBadFile,
         "[{}] expected choices for compute capability {} with {} multiprocessors, got those for "
         "{} with {} ({})",
         where, capability_text(card), card.multiprocessors, printable(capability), multiprocessors,
         printable(file.hardware));
  }
  file.card = card;
  const Json& rows = get_member(json, "rows", where);
  if (!rows.is_array() || rows.size() > kMostRows) {
    fail(ErrorCode::kBadFile, "[{}] expected a list of at most {} rows, got {}", where, kMostRows,
         rows.is_array() ? fmt::format("{} rows", rows.size()) : printable_json(rows));
  }
  for (const Json& row : rows) file.rows.push_back(row_of(row, where));
  return file;
}

}  // namespace mamba
