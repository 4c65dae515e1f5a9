// SPDX-License-Identifier: Apache-2.0
// Formats of benchmark rows.
#include "cli/bench_report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "bench/speed.h"
#include "device/cpu_features.h"

#ifndef MAMBA_BUILD_COMMIT
#define MAMBA_BUILD_COMMIT "unknown"
#define MAMBA_BUILD_NUMBER 0
#endif

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

std::string utc_now() {
  const auto now =
      std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now));
}

std::vector<double> rates_of(const BenchRow& row) {
  std::vector<double> rates;
  for (const double s : row.seconds) rates.push_back(static_cast<double>(row.tokens) / s);
  return rates;
}

int64_t nanoseconds(double seconds) { return std::llround(seconds * 1e9); }

// Every field, in llama-bench's order with ours behind.
OrderedJson fields(const BenchRow& row, bool with_samples) {
  const MeanAndDeviation time = mean_and_deviation(row.seconds);
  const std::vector<double> rates = rates_of(row);
  const MeanAndDeviation rate = mean_and_deviation(rates);
  OrderedJson json = {
      {"build_commit", MAMBA_BUILD_COMMIT},
      {"build_number", MAMBA_BUILD_NUMBER},
      {"cpu_info", cpu_model_name()},
      {"gpu_info", ""},
      {"backends", row.backend},
      {"model_filename", row.model_filename},
      {"model_type", row.model_type},
      {"model_size", row.model_size},
      {"model_n_params", row.model_n_params},
      {"n_batch", row.n_batch},
      {"n_ubatch", row.n_ubatch},
      {"n_threads", row.n_threads},
      {"n_prompt", row.n_prompt},
      {"n_gen", row.n_gen},
      {"n_depth", row.n_depth},
      {"test_time", utc_now()},
      {"avg_ns", nanoseconds(time.mean)},
      {"stddev_ns", nanoseconds(time.deviation)},
      {"avg_ts", rate.mean},
      {"stddev_ts", rate.deviation},
  };
  if (with_samples) {
    OrderedJson samples = OrderedJson::array();
    for (const double s : row.seconds) samples.push_back(nanoseconds(s));
    json["samples_ns"] = samples;
    json["samples_ts"] = rates;
  }
  json["test"] = row.test;
  json["n_train"] = row.n_train;
  json["n_sequences"] = row.n_sequences;
  json["dtype"] = row.dtype;
  json["isa"] = row.isa;
  json["state_bytes"] = row.state_bytes;
  json["peak_rss"] = row.peak_rss;
  json["load_ns"] = nullptr;
  if (!row.random_weights) json["load_ns"] = nanoseconds(row.load_seconds);
  json["random_weights"] = row.random_weights;
  return json;
}

std::string csv_value(const OrderedJson& value) {
  if (value.is_null()) return "\"\"";
  std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  for (size_t at = 0; (at = text.find('"', at)) != std::string::npos; at += 2) {
    text.insert(at, 1, '"');
  }
  return '"' + text + '"';
}

std::string csv_line(const OrderedJson& json, bool header) {
  std::vector<std::string> cells;
  for (const auto& [key, value] : json.items()) cells.push_back(header ? key : csv_value(value));
  return fmt::format("{}\n", fmt::join(cells, ","));
}

// A name as SQL quotes texts; NULL for what is not known.
std::string sql_value(const OrderedJson& value) {
  if (value.is_null()) return "NULL";
  if (!value.is_string())
    return value.is_boolean() ? (value.get<bool>() ? "1" : "0") : value.dump();
  std::string text = value.get<std::string>();
  for (size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 2) {
    text.insert(at, 1, '\'');
  }
  return "'" + text + "'";
}

constexpr const char* kSqlTable = "llama_bench";  // the name that tools for llama-bench read

std::string sql_table(const OrderedJson& json) {
  std::vector<std::string> columns;
  for (const auto& [key, value] : json.items()) {
    const bool text = value.is_string();
    columns.push_back(fmt::format("  {} {}", key,
                                  text                      ? "TEXT"
                                  : value.is_number_float() ? "REAL"
                                                            : "INTEGER"));
  }
  return fmt::format("CREATE TABLE IF NOT EXISTS {} (\n{}\n);\n\n", kSqlTable,
                     fmt::join(columns, ",\n"));
}

std::string sql_insert(const OrderedJson& json) {
  std::vector<std::string> keys, values;
  for (const auto& [key, value] : json.items()) {
    keys.push_back(key);
    values.push_back(sql_value(value));
  }
  return fmt::format("INSERT INTO {} ({}) VALUES ({});\n", kSqlTable, fmt::join(keys, ", "),
                     fmt::join(values, ", "));
}

std::string json_item(const BenchRow& row, int indent) {
  return fields(row, true).dump(indent, ' ', false, OrderedJson::error_handler_t::replace);
}

std::string bytes_text(double bytes) {
  return bytes < 1024.0 * 1048576 ? fmt::format("{:.2f} MiB", bytes / 1048576)
                                  : fmt::format("{:.2f} GiB", bytes / 1073741824);
}

std::string count_text(int64_t count) {
  const double n = static_cast<double>(count);
  return n < 1e6   ? fmt::format("{:.2f} K", n * 1e-3)
         : n < 1e9 ? fmt::format("{:.2f} M", n * 1e-6)
                   : fmt::format("{:.2f} B", n * 1e-9);
}

constexpr const char* kTableHead =
    "| model                |       size |     params | backend          | threads | dtype  |"
    "              test |                  t/s |\n"
    "| -------------------- | ---------: | ---------: | ---------------- | ------: | ------ |"
    " ----------------: | -------------------: |\n";
constexpr const char* kMemoryHead =
    "\n| model                | dtype  | threads |          load |    weights | state a sequence |"
    "   peak memory |\n"
    "| -------------------- | ------ | ------: | ------------: | ---------: | ---------------: |"
    " ------------: |\n";

std::string table_row(const BenchRow& row) {
  const MeanAndDeviation rate = mean_and_deviation(rates_of(row));
  return fmt::format("| {:<20} | {:>10} | {:>10} | {:<16} | {:>7} | {:<6} | {:>17} | {:>20} |\n",
                     row.model_type, bytes_text(static_cast<double>(row.model_size)),
                     count_text(row.model_n_params), row.backend, row.n_threads, row.dtype,
                     row.test, fmt::format("{:.2f} \u00b1 {:.2f}", rate.mean, rate.deviation));
}

std::string memory_row(const BenchRow& row) {
  return fmt::format(
      "| {:<20} | {:<6} | {:>7} | {:>13} | {:>10} | {:>16} | {:>13} |\n", row.model_type, row.dtype,
      row.n_threads,
      row.random_weights ? std::string("random") : fmt::format("{:.1f} ms", row.load_seconds * 1e3),
      bytes_text(static_cast<double>(row.model_size)),
      bytes_text(static_cast<double>(row.state_bytes)),
      bytes_text(static_cast<double>(row.peak_rss)));
}

}  // namespace

std::string BenchReport::begin() const {
  if (format_ == "md") return kTableHead;
  if (format_ == "csv") return csv_line(fields(BenchRow(), false), true);
  if (format_ == "sql") return sql_table(fields(BenchRow(), false));
  return format_ == "json" ? "[" : "";
}

std::string BenchReport::row(const BenchRow& row) {
  ++rows_;
  const auto same = std::find_if(models_.begin(), models_.end(), [&](const BenchRow& m) {
    return m.model_filename == row.model_filename && m.dtype == row.dtype &&
           m.n_threads == row.n_threads;
  });
  if (same == models_.end()) {
    models_.push_back(row);
  } else {
    same->peak_rss = std::max(same->peak_rss, row.peak_rss);
  }
  if (format_ == "md") return table_row(row);
  if (format_ == "csv") return csv_line(fields(row, false), false);
  if (format_ == "sql") return sql_insert(fields(row, false));
  if (format_ == "none") return "";
  if (format_ == "jsonl") return json_item(row, -1) + "\n";
  return (rows_ > 1 ? ",\n" : "\n") + json_item(row, 2);
}

std::string BenchReport::end(const std::string& error) {
  if (format_ == "json") {
    return error.empty() ? "\n]\n" : fmt::format("{}\n{}]\n", rows_ > 0 ? "," : "", error);
  }
  if (format_ != "md") return "";
  std::string text = kMemoryHead;
  for (const BenchRow& row : models_) text += memory_row(row);
  return text + fmt::format("\nbuild: {} ({})\n", MAMBA_BUILD_COMMIT, MAMBA_BUILD_NUMBER);
}

}  // namespace mamba::cli
