// SPDX-License-Identifier: Apache-2.0
// Operators on numbers, strings and lists, as Python has them, on whole numbers of 64 bits.
#include <algorithm>
#include <cmath>
#include <optional>

#include "base/json.h"
#include "formats/jinja_functions.h"

namespace mamba::jinja {
namespace {

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

int64_t whole_power(int64_t base, int64_t exponent, const Site& site) {
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; ++i) {
    if (base == 0 || base == 1) return base;
    if (base == -1) return exponent % 2 == 0 ? 1 : -1;
    if (__builtin_mul_overflow(result, base, &result)) site.unsupported("a number beyond 63 bits");
  }
  return result;
}

// Null where whole numbers do not give a whole number.
std::optional<int64_t> whole_arithmetic(const std::string& op, int64_t a, int64_t b,
                                        const Site& site) {
  int64_t result = 0;
  bool over = false;
  if (op == "+") {
    over = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    over = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    over = __builtin_mul_overflow(a, b, &result);
  } else if (op == "//" || op == "%") {
    if (b == 0) site.bad("expected a divisor other than 0, got 0");
    over = b == -1 && a == INT64_MIN;
    if (!over) result = op == "//" ? floor_divide(a, b) : a - floor_divide(a, b) * b;
  } else if (op == "**" && b >= 0) {
    return whole_power(a, b, site);
  } else {
    return std::nullopt;
  }
  if (over) site.unsupported("a number beyond 63 bits");
  return result;
}

Value real_arithmetic(const std::string& op, double a, double b, const Site& site) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) site.bad("expected a divisor other than 0, got 0");
  if (op == "/") return a / b;
  const double floored = std::floor(a / b);
  if (op == "//") return floored;
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

// A string or list `count` times.
Value repeated(const Value& value, int64_t count, const Site& site) {
  const auto times = static_cast<size_t>(std::max<int64_t>(0, count));
  if (value.string()) {
    const size_t size = value.string()->size();
    Text out;
    for (size_t i = 0; size > 0 && i < times; ++i) {
      site.spend(1, size);
      out.append(*value.string());
    }
    return out;
  }
  std::vector<Value> items;
  const auto& one = value.list()->items;
  for (size_t i = 0; !one.empty() && i < times; ++i) {
    site.spend(static_cast<int64_t>(one.size()), 16 * one.size());
    items.insert(items.end(), one.begin(), one.end());
  }
  return make_list(std::move(items), site, value.list()->is_tuple);
}

}  // namespace

Value arithmetic(const std::string& op, const Value& a, const Value& b, const Site& site) {
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) {
      if (const auto whole = whole_arithmetic(op, a.whole(), b.whole(), site)) return *whole;
    }
    return real_arithmetic(op, a.number(), b.number(), site);
  }
  if (op == "+" && a.string() && b.string()) {
    site.spend(1, a.string()->size() + b.string()->size());
    Text out = *a.string();
    out.append(*b.string());
    return out;
  }
  if (op == "+" && a.list() && b.list() && a.list()->is_tuple == b.list()->is_tuple) {
    std::vector<Value> items = a.list()->items;
    items.insert(items.end(), b.list()->items.begin(), b.list()->items.end());
    return make_list(std::move(items), site, a.list()->is_tuple);
  }
  const auto holds_items = [](const Value& v) { return v.string() || v.list(); };
  if (op == "*" && holds_items(a) && b.is_whole()) return repeated(a, b.whole(), site);
  if (op == "*" && holds_items(b) && a.is_whole()) return repeated(b, a.whole(), site);
  if (op == "%" && a.string()) site.unsupported("formatting with '%'");
  for (const Value* v : {&a, &b}) {
    if (!v->is_undefined()) continue;
    site.bad("expected a value for '{}', but '{}' is undefined", op,
             printable(v->undefined_name(), 30));
  }
  site.bad("expected numbers, strings or lists for '{}', got {} and {}", op, a.type_name(),
           b.type_name());
}

}  // namespace mamba::jinja
