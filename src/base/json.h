// SPDX-License-Identifier: Apache-2.0
// Untrusted JSON text -> nlohmann::json, behind limits on size and depth, without duplicate keys,
// with the non-finite numbers that Python writes; and member access whose errors name file, key and
// range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

using Json = nlohmann::json;

struct JsonLimits {
  size_t max_bytes = size_t{16} << 20;
  int max_depth = 64;  // nested objects and arrays
};

// Parses one JSON value. Strict, except that the bare literals Infinity, -Infinity and NaN (as
// Python writes them) become {"__float__": "Infinity"} and so on, which is the form transformers 5
// writes. Throws bad_file with `where` (a path), the reason and the byte at which it was noticed.
Json parse_json(std::string_view text, const std::string& where, JsonLimits limits = {});

// Reads and parses a whole file.
Json read_json_file(const std::string& path, JsonLimits limits = {});

// The tagged form of a double: a plain number where it is finite.
Json json_of_number(double value);

// `text` as it may stand in a message: one line of printable UTF-8, cut after `max` characters.
std::string printable(std::string_view text, size_t max = 60);
// A value as it may stand in a message.
std::string printable_json(const Json& value, size_t max = 60);

// A number, or one of the tagged non-finite numbers; `what` names the value in the error.
double json_number(const Json& value, const std::string& what, const std::string& where);

// Members of an object; a missing key, another type or a value out of range throws bad_file naming
// `where`, the key, the value and what was expected.
bool has_member(const Json& object, const char* key);
const Json& get_member(const Json& object, const char* key, const std::string& where);
int64_t get_int(const Json& object, const char* key, int64_t low, int64_t high,
                const std::string& where);
// An array of at most `most` such integers.
std::vector<int64_t> get_int_list(const Json& object, const char* key, int64_t low, int64_t high,
                                  const std::string& where, size_t most = 4096);
double get_number(const Json& object, const char* key, double low, double high,
                  const std::string& where);
bool get_bool(const Json& object, const char* key, const std::string& where);
std::string get_string(const Json& object, const char* key, const std::string& where);

// A line (indent -1) or a page of JSON for people and programs, ended by a new line. Bytes that are
// no UTF-8, as paths may have, become U+FFFD.
template <class AnyJson>
std::string json_text(const AnyJson& json, int indent = 2) {
  return json.dump(indent, ' ', false, AnyJson::error_handler_t::replace) + "\n";
}

}  // namespace mamba
