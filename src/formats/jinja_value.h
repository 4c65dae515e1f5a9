// SPDX-License-Identifier: Apache-2.0
// Values of templates: what Python would hold, without attributes of Python's own.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/check.h"
#include "formats/jinja_text.h"

namespace mamba::jinja {

struct List;
struct Dict;
struct Namespace;
struct Callable;
struct Loop;

struct Undefined {
  std::string name;  // what was looked up, for messages
};
struct None {};

// Immutable but for a namespace. Values nest at most kMaxNesting deep, and nothing can hold a
// namespace, a loop or a function, so that there are no cycles.
class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None) : data_(None{}) {}
  Value(Undefined u) : data_(std::move(u)) {}
  Value(bool v) : data_(v) {}
  Value(int64_t v) : data_(v) {}
  Value(double v) : data_(v) {}
  Value(Text v) : data_(std::make_shared<const Text>(std::move(v))) {}
  Value(std::shared_ptr<const List> v) : data_(std::move(v)) {}
  Value(std::shared_ptr<const Dict> v) : data_(std::move(v)) {}
  Value(std::shared_ptr<Namespace> v) : data_(std::move(v)) {}
  Value(std::shared_ptr<const Callable> v) : data_(std::move(v)) {}
  Value(std::shared_ptr<const Loop> v) : data_(std::move(v)) {}
  Value(const void*) = delete;  // would be taken for a bool

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  const bool* boolean() const { return std::get_if<bool>(&data_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&data_); }
  const double* real() const { return std::get_if<double>(&data_); }
  const Text* string() const { return pointee<const Text>(); }
  const List* list() const { return pointee<const List>(); }
  const Dict* dict() const { return pointee<const Dict>(); }
  Namespace* names() const { return pointee<Namespace>(); }
  const Callable* callable() const { return pointee<const Callable>(); }
  const Loop* loop() const { return pointee<const Loop>(); }
  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }

  bool truthy() const;
  // A bool counts as 0 or 1.
  bool is_number() const { return boolean() || integer() || real(); }
  bool is_whole() const { return boolean() || integer(); }
  int64_t whole() const { return boolean() ? *boolean() : *integer(); }
  double number() const { return real() ? *real() : static_cast<double>(whole()); }
  // "str", "int", "dict", ... as Python calls it.
  const char* type_name() const;
  int nesting() const;  // 0 for what holds nothing

 private:
  template <class T>
  T* pointee() const {
    const auto* held = std::get_if<std::shared_ptr<T>>(&data_);
    return held == nullptr ? nullptr : held->get();
  }

  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
               std::shared_ptr<const Callable>, std::shared_ptr<const Loop>>
      data_;
};

inline constexpr int kMaxNesting = 100;

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int nesting = 1;
};
using Member = std::pair<Value, Value>;
struct Dict {
  std::vector<Member> members;  // in order of insertion, keys differ
  int nesting = 1;

  const Value* find(const Value& key) const;  // null if absent
  const Value* find(std::string_view key) const;
};
struct Namespace {
  std::vector<std::pair<std::string, Value>> names;
};
struct Macro;
struct Callable {
  std::string name;  // of a function, or of the method of `self`
  Value self;
  const Macro* macro = nullptr;  // of the template, which outlives all values
};
struct Loop {
  std::shared_ptr<const List> items;
  int64_t index0 = 0;
  int64_t depth = 1;
};

// Where something is evaluated: its line for messages, and what the rendering may still spend.
struct Budget {
  int64_t steps = 0;  // left
  int64_t bytes = 0;  // left to be written into strings
};
struct Site {
  int line = 0;
  Budget* budget = nullptr;

  void spend(int64_t steps, size_t bytes = 0) const;
  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorCode::kBadFile, "[chat template] line {}: {}", line,
         fmt::format(format, std::forward<Args>(args)...));
  }
  // For what Jinja has and this interpreter has not.
  template <class... Args>
  [[noreturn]] void unsupported(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorCode::kUnsupported, "[chat template] line {}: {} is not supported; see docs/chat.md",
         line, fmt::format(format, std::forward<Args>(args)...));
  }
};

// Refuse what nests too deep or holds a namespace, a loop or a function.
Value make_list(std::vector<Value> items, const Site& site, bool is_tuple = false);
Value make_dict(std::vector<Member> members, const Site& site);
Value text_value(std::string_view bytes, bool from_template);
// JSON data, none of it the template's.
Value value_of(const nlohmann::ordered_json& json, const Site& site = {});

bool equal(const Value& a, const Value& b, const Site& site = {});
// -1, 0 or 1; an error for what Python does not order.
int compare(const Value& a, const Value& b, const Site& site);
// What {{ value }} prints: str().
Text to_text(const Value& value, const Site& site);

struct JsonStyle {
  bool ascii = false, sort_keys = false;
  std::string indent;  // of one level; used with `lines`
  bool lines = false;
  std::string item_separator = ", ", key_separator = ": ";
};
// json.dumps(); the data's, whatever wrote the strings.
Text to_json(const Value& value, const JsonStyle& style, const Site& site);

}  // namespace mamba::jinja
