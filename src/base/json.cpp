// SPDX-License-Identifier: Apache-2.0
// The limits around nlohmann-json: its SAX parser fills a tree of ours, so that depth and duplicate
// keys are refused where they occur, with their byte.
#include "base/json.h"

#include <cmath>
#include <iterator>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/mapped_file.h"
#include "base/utf8.h"

namespace mamba {
namespace {

constexpr const char* kFloatTag = "__float__";

Json tagged_float(const char* name) {
  Json out = Json::object();
  out[kFloatTag] = name;
  return out;
}

// A pointer into the text that counts what the lexer has read: SAX events carry no position.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, size_t* read) : at_(at), read_(read) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    ++at_;
    ++*read_;
    return *this;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  size_t* read_;
};

// Text in which every bare non-finite literal is a string of the same length, so that byte
// positions stay those of the file; `ends` tells such strings from real ones by the byte after
// them.
struct Rewritten {
  std::string text;
  std::vector<std::pair<size_t, const char*>> ends;
};

// Skips the string that starts at `i` (a quote); returns the index after its closing quote.
size_t skip_string(std::string_view text, size_t i) {
  for (++i; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      return i + 1;
    }
  }
  return text.size();
}

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '+' || c == '.';
}

Rewritten rewrite_non_finite(std::string_view text, const std::string& where) {
  Rewritten out{std::string(text), {}};
  for (size_t i = 0; i < text.size();) {
    if (text[i] == '"') {
      i = skip_string(text, i);
      continue;
    }
    // The lexer would take a zero byte for the end of the text and ignore the rest.
    if (text[i] == '\0') {
      fail(ErrorCode::kBadFile,
           "[{}] expected JSON, got a zero byte at byte {}; is this a text file?", where, i);
    }
    if (!is_word(text[i])) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < text.size() && is_word(text[end])) ++end;
    for (const char* name : {"Infinity", "-Infinity", "NaN"}) {
      if (text.substr(i, end - i) != name) continue;
      out.text.replace(i, end - i, "\"" + std::string(end - i - 2, 'x') + "\"");
      out.ends.emplace_back(end, name);
    }
    i = end;
  }
  return out;
}

// nlohmann's "[json.exception.parse_error.101] parse error at line 1, column 2: reason" ->
// "reason".
std::string reason_of(const char* what) {
  std::string_view text = what;
  for (const char* mark : {"] ", "column "}) {
    const size_t at = text.find(mark);
    if (at != std::string_view::npos) text.remove_prefix(at + std::string_view(mark).size());
  }
  const size_t colon = text.find(": ");
  if (colon != std::string_view::npos && colon < 12) text.remove_prefix(colon + 2);
  return printable(text, 200);
}

// Builds the tree from parser events.
class TreeBuilder : public nlohmann::json_sax<Json> {
 public:
  TreeBuilder(const Rewritten& source, const size_t& read, const std::string& where, int max_depth)
      : source_(source), read_(read), where_(where), max_depth_(max_depth) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool v) override { return add(v); }
  bool number_integer(number_integer_t v) override { return add(v); }
  bool number_unsigned(number_unsigned_t v) override { return add(v); }
  bool number_float(number_float_t v, const string_t&) override { return add(v); }
  bool binary(binary_t&) override { return false; }
  bool string(string_t& v) override {
    if (next_ < source_.ends.size() && source_.ends[next_].first == read_) {
      return add(tagged_float(source_.ends[next_++].second));
    }
    return add(std::move(v));
  }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    // A literal in the place of a key was turned into a string by us: it is no valid key.
    if (next_ < source_.ends.size() && source_.ends[next_].first == read_) {
      fail(ErrorCode::kBadFile, "[{}] expected a key, got {} at byte {}; keys are strings", where_,
           source_.ends[next_].second, read_);
    }
    const auto [member, is_new] = open_.back()->get_ref<Json::object_t&>().try_emplace(name);
    if (!is_new) {
      fail(ErrorCode::kBadFile,
           "[{}] expected every key once, got \"{}\" again at byte {}; remove one of them", where_,
           printable(name), read_);
    }
    member_ = &member->second;
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    fail(ErrorCode::kBadFile,
         "[{}] expected JSON, got {} at byte {}; repair or fetch the file again", where_,
         reason_of(e.what()), position == 0 ? read_ : position);
  }

 private:
  // Puts a value where the text has it: into the open array or object, or at the root.
  Json* place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    *member_ = std::move(value);
    return member_;
  }
  bool add(Json value) {
    place(std::move(value));
    return true;
  }
  bool open(Json empty) {
    if (static_cast<int>(open_.size()) >= max_depth_) {
      fail(ErrorCode::kBadFile,
           "[{}] expected at most {} nested objects and arrays, got more at byte {}; flatten the "
           "file",
           where_, max_depth_, read_);
    }
    open_.push_back(place(std::move(empty)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const Rewritten& source_;
  const size_t& read_;
  const std::string& where_;
  const int max_depth_;
  size_t next_ = 0;  // into source_.ends
  Json root_;
  std::vector<Json*> open_;  // a parent never grows while a child is open, so pointers stay good
  Json* member_ = nullptr;   // of the open object, whose key was read last
};

[[noreturn]] void wrong_member(const Json& object, const char* key, const std::string& expected,
                               const std::string& where) {
  fail(ErrorCode::kBadFile, "[{}] expected \"{}\" to be {}, got {}; correct the file", where, key,
       expected, printable_json(object.at(key)));
}

}  // namespace

namespace {

// What a terminal takes as a letter or sign: no controls, no marks that turn the text around or
// break its line, nothing that cannot be seen.
bool is_shown(uint32_t c) {
  const auto in = [c](uint32_t low, uint32_t high) { return c >= low && c <= high; };
  return c >= 0x20 && !in(0x7f, 0xa0) && c != 0xad && c != 0x61c && !in(0x200b, 0x200f) &&
         !in(0x2028, 0x202e) && !in(0x2060, 0x206f) && !in(0xd800, 0xf8ff) && c != 0xfeff &&
         !in(0xfff0, 0xffff) && c < 0xe0000;
}

}  // namespace

std::string printable(std::string_view text, size_t max) {
  std::string out;
  for (size_t count = 0; !text.empty(); ++count) {
    if (count >= max) return out + "...";
    const Utf8Scan scan = scan_utf8(text);
    const bool whole = scan.kind == Utf8Scan::kComplete;
    if (whole && is_shown(decode_utf8(text.data()).value)) {
      out += text.substr(0, scan.length);
    } else {
      out += '?';
    }
    text.remove_prefix(whole ? scan.length : 1);
  }
  return out;
}

std::string printable_json(const Json& value, size_t max) {
  return printable(value.dump(-1, ' ', true, Json::error_handler_t::replace), max);
}

Json parse_json(std::string_view text, const std::string& where, JsonLimits limits) {
  if (text.size() > limits.max_bytes) {
    fail(ErrorCode::kBadFile,
         "[{}] expected at most {} bytes of JSON, got {}; is this the right file?", where,
         limits.max_bytes, text.size());
  }
  const Rewritten source = rewrite_non_finite(text, where);
  size_t read = 0;
  TreeBuilder builder(source, read, where, limits.max_depth);
  const char* begin = source.text.data();
  Json::sax_parse(CountingIterator(begin, &read),
                  CountingIterator(begin + source.text.size(), &read), &builder);
  return builder.take();
}

Json read_json_file(const std::string& path, JsonLimits limits) {
  const MappedFile file(path);
  return parse_json({reinterpret_cast<const char*>(file.data()), file.size()}, path, limits);
}

Json json_of_number(double value) {
  if (std::isnan(value)) return tagged_float("NaN");
  if (std::isinf(value)) return tagged_float(value > 0 ? "Infinity" : "-Infinity");
  return value;
}

double json_number(const Json& value, const std::string& what, const std::string& where) {
  if (value.is_number()) return value.get<double>();
  if (value.is_object() && value.size() == 1 && value.contains(kFloatTag)) {
    const Json& name = value[kFloatTag];
    if (name == "Infinity") return std::numeric_limits<double>::infinity();
    if (name == "-Infinity") return -std::numeric_limits<double>::infinity();
    if (name == "NaN") return std::numeric_limits<double>::quiet_NaN();
  }
  fail(ErrorCode::kBadFile, "[{}] expected {} to be a number, got {}; correct the file", where,
       what, printable_json(value));
}

bool has_member(const Json& object, const char* key) {
  return object.is_object() && object.contains(key);
}

const Json& get_member(const Json& object, const char* key, const std::string& where) {
  if (!object.is_object()) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a JSON object with \"{}\", got {}; is this the right file?", where, key,
         printable_json(object));
  }
  const auto found = object.find(key);
  if (found == object.end()) {
    fail(ErrorCode::kBadFile, "[{}] expected the key \"{}\", found none; add it to the file", where,
         key);
  }
  return *found;
}

int64_t get_int(const Json& object, const char* key, int64_t low, int64_t high,
                const std::string& where) {
  const Json& value = get_member(object, key, where);
  // An unsigned beyond int64 must not wrap to a negative number that happens to be in range.
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() ||
                     value.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
  if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    wrong_member(object, key, fmt::format("an integer from {} to {}", low, high), where);
  }
  return value.get<int64_t>();
}

std::vector<int64_t> get_int_list(const Json& object, const char* key, int64_t low, int64_t high,
                                  const std::string& where, size_t most) {
  const Json& list = get_member(object, key, where);
  if (!list.is_array() || list.size() > most) {
    wrong_member(object, key, fmt::format("a list of at most {} integers", most), where);
  }
  std::vector<int64_t> values;
  for (const Json& value : list) {
    values.push_back(get_int(Json{{key, value}}, key, low, high, where));
  }
  return values;
}

double get_number(const Json& object, const char* key, double low, double high,
                  const std::string& where) {
  const double value =
      json_number(get_member(object, key, where), fmt::format("\"{}\"", key), where);
  if (!(value >= low && value <= high)) {
    wrong_member(object, key, fmt::format("a number from {} to {}", low, high), where);
  }
  return value;
}

bool get_bool(const Json& object, const char* key, const std::string& where) {
  const Json& value = get_member(object, key, where);
  if (!value.is_boolean()) wrong_member(object, key, "true or false", where);
  return value.get<bool>();
}

std::string get_string(const Json& object, const char* key, const std::string& where) {
  const Json& value = get_member(object, key, where);
  if (!value.is_string()) wrong_member(object, key, "a string", where);
  return value.get<std::string>();
}

}  // namespace mamba
