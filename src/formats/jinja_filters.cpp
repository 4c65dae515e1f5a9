// SPDX-License-Identifier: Apache-2.0
// Filters and tests by name.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/json.h"
#include "formats/jinja_functions.h"

namespace mamba::jinja {
namespace {

using Filter = Value (*)(const Value&, const Parameters&, const Site&);
struct FilterEntry {
  const char* name;
  std::vector<const char*> parameters;
  Filter apply;
};
struct TestEntry {
  const char* name;
  std::vector<const char*> parameters;
  bool (*apply)(const Value&, const Parameters&, const Site&);
};

Value filter_trim(const Value& v, const Parameters& p, const Site& site) {
  const Text text = to_text(v, site);
  site.spend(1, text.size());
  const bool spaces = p.get(0) == nullptr || p.get(0)->is_none();
  return strip(text, spaces ? nullptr : &p.text(0).bytes(), kBoth);
}

Value filter_length(const Value& v, const Parameters&, const Site& site) {
  if (v.string()) {
    site.spend(1 + static_cast<int64_t>(v.string()->size() / 16));
    return static_cast<int64_t>(count_chars(v.string()->bytes()));
  }
  if (v.list()) return static_cast<int64_t>(v.list()->items.size());
  if (v.dict()) return static_cast<int64_t>(v.dict()->members.size());
  if (v.is_undefined()) return int64_t{0};
  site.bad("expected something that has a length, got {}", v.type_name());
}

template <Case how>
Value filter_case(const Value& v, const Parameters&, const Site& site) {
  const Text text = to_text(v, site);
  site.spend(1, text.size());
  if (!is_ascii(text.bytes())) site.unsupported("upper or lower case of text beyond ASCII");
  return change_case(text, how);
}

// Words begin behind spaces, hyphens and opening brackets, unlike those of str.title().
Value filter_title(const Value& v, const Parameters&, const Site& site) {
  const Text text = to_text(v, site);
  site.spend(1, text.size());
  if (!is_ascii(text.bytes())) site.unsupported("upper or lower case of text beyond ASCII");
  Text out;
  bool first = true;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text.bytes()[i];
    out.append(change_case(text.substr(i, 1), first ? Case::kUpper : Case::kLower));
    first = is_space(static_cast<unsigned char>(c)) ||
            std::string_view("-({[<").find(c) != std::string::npos;
  }
  return out;
}

Value filter_tojson(const Value& v, const Parameters& p, const Site& site) {
  JsonStyle style;
  style.ascii = p.truth(0, false);
  if (p.get(1) && !p.get(1)->is_none()) {
    style.lines = true;
    if (p.get(1)->string()) {
      style.indent = p.get(1)->string()->bytes();
    } else {
      style.indent =
          std::string(static_cast<size_t>(std::clamp<int64_t>(p.integer(1, 0), 0, 100)), ' ');
    }
    style.item_separator = ",";
  }
  if (p.get(2) && !p.get(2)->is_none()) {
    const List* both = p.get(2)->list();
    if (!both || both->items.size() != 2 || !both->items[0].string() || !both->items[1].string()) {
      site.bad("expected two separators in tojson, got others");
    }
    style.item_separator = both->items[0].string()->bytes();
    style.key_separator = both->items[1].string()->bytes();
  }
  style.sort_keys = p.truth(3, false);
  return to_json(v, style, site);
}

// A value of a path like "a.b" or "0".
Value attribute_path(Value v, const Value& path, const Site& site) {
  if (path.is_whole()) return item_of(v, path, site);
  if (!path.string()) site.bad("expected the name of an attribute, got {}", path.type_name());
  const std::string& names = path.string()->bytes();
  for (size_t at = 0; at <= names.size();) {
    const size_t dot = std::min(names.find('.', at), names.size());
    const std::string name = names.substr(at, dot - at);
    int64_t index = 0;
    const char* last = name.data() + name.size();
    const auto [ptr, error] = std::from_chars(name.data(), last, index);
    const bool number = error == std::errc() && ptr == last;
    v = item_of(v, number ? Value(index) : text_value(name, true), site);
    at = dot + 1;
  }
  return v;
}

Value filter_join(const Value& v, const Parameters& p, const Site& site) {
  const Text separator = p.get(0) ? to_text(*p.get(0), site) : Text();
  Text out;
  bool first = true;
  for (const Value& item : iterate(v, site)) {
    if (!first) out.append(separator);
    const bool by_attribute = p.get(1) && !p.get(1)->is_none();
    const Text text = to_text(by_attribute ? attribute_path(item, *p.get(1), site) : item, site);
    site.spend(1, separator.size() + text.size());
    out.append(text);
    first = false;
  }
  return out;
}

Value filter_default(const Value& v, const Parameters& p, const Site&) {
  const bool missing = v.is_undefined() || (p.truth(1, false) && !v.truthy());
  if (!missing) return v;
  return p.get(0) ? *p.get(0) : text_value("", true);
}

Value filter_replace(const Value& v, const Parameters& p, const Site& site) {
  const Text text = to_text(v, site), old = to_text(p.need(0), site), by = to_text(p.need(1), site);
  site.spend(1, text.size() + (text.size() + 1) / std::max<size_t>(1, old.size()) * by.size());
  const bool limited = p.get(2) && !p.get(2)->is_none();
  return replace(text, old.bytes(), by, limited ? p.integer(2, -1) : -1);
}

Value filter_first(const Value& v, const Parameters&, const Site& site) {
  const std::vector<Value> items = iterate(v, site);
  return items.empty() ? Value(Undefined{"first item"}) : items.front();
}
Value filter_last(const Value& v, const Parameters&, const Site& site) {
  const std::vector<Value> items = iterate(v, site);
  return items.empty() ? Value(Undefined{"last item"}) : items.back();
}
Value filter_items(const Value& v, const Parameters&, const Site& site) {
  if (v.is_undefined()) return make_list({}, site);
  if (!v.dict()) site.bad("expected a dict in items, got {}", v.type_name());
  return call_method(v, "items", {}, site);
}
Value filter_list(const Value& v, const Parameters&, const Site& site) {
  return make_list(iterate(v, site), site);
}
Value filter_string(const Value& v, const Parameters&, const Site& site) {
  return to_text(v, site);
}

Value filter_int(const Value& v, const Parameters& p, const Site&) {
  if (v.is_whole()) return v.whole();
  if (v.real() && std::abs(*v.real()) < 9e18) return static_cast<int64_t>(*v.real());
  if (v.string()) {
    const Text text = strip(*v.string(), nullptr, kBoth);
    const char *first = text.bytes().data(), *last = first + text.size();
    if (first != last && *first == '+') ++first;
    int64_t whole = 0;
    const auto [ptr, error] = std::from_chars(first, last, whole);
    if (error == std::errc() && ptr == last) return whole;
    double real = 0;
    const auto [end, bad] = std::from_chars(first, last, real);
    if (bad == std::errc() && end == last && std::abs(real) < 9e18)
      return static_cast<int64_t>(real);
  }
  return p.get(0) ? *p.get(0) : Value(int64_t{0});
}

Value filter_float(const Value& v, const Parameters& p, const Site&) {
  if (v.is_number()) return v.number();
  if (v.string()) {
    const Text text = strip(*v.string(), nullptr, kBoth);
    const char *first = text.bytes().data(), *last = first + text.size();
    double real = 0;
    const auto [end, bad] = std::from_chars(first, last, real);
    if (bad == std::errc() && end == last) return real;
  }
  return p.get(0) ? *p.get(0) : Value(0.0);
}

Value filter_abs(const Value& v, const Parameters&, const Site& site) {
  if (v.real()) return std::abs(*v.real());
  if (!v.is_whole() || v.whole() == INT64_MIN) site.bad("expected a number in abs");
  return std::abs(v.whole());
}

Value filter_reverse(const Value& v, const Parameters&, const Site& site) {
  std::vector<Value> items = iterate(v, site);
  std::reverse(items.begin(), items.end());
  if (!v.string()) return make_list(std::move(items), site);
  Text out;
  for (const Value& item : items) out.append(*item.string());
  return out;
}

Value filter_indent(const Value& v, const Parameters& p, const Site& site) {
  const Text text = to_text(v, site);
  const int64_t width =
      std::clamp<int64_t>(p.get(0) && p.get(0)->is_whole() ? p.get(0)->whole() : 4, 0, 1000);
  Text margin;
  if (p.get(0) && p.get(0)->string()) {
    margin = *p.get(0)->string();
  } else {
    margin = Text(std::string(static_cast<size_t>(width), ' '), true);
  }
  Text out;
  const bool blank = p.truth(2, false);
  size_t at = 0;
  for (bool first = true; at <= text.size(); first = false) {
    const size_t end = std::min(text.bytes().find('\n', at), text.size());
    if (first ? p.truth(1, false) : blank || end > at) out.append(margin);
    out.append(text, at, std::min(end + 1, text.size()) - at);
    site.spend(1, margin.size() + end - at);
    at = end + 1;
  }
  return out;
}

Value filter_safe(const Value& v, const Parameters&, const Site&) { return v; }

// Handled in apply_filter: they take the names of other filters or tests with their arguments.
Value filter_by_name(const Value&, const Parameters&, const Site&) { return Value(); }

const std::vector<FilterEntry>& filter_table() {
  static const std::vector<FilterEntry> table = {
      {"trim", {"chars"}, filter_trim},
      {"length", {}, filter_length},
      {"count", {}, filter_length},
      {"upper", {}, filter_case<Case::kUpper>},
      {"lower", {}, filter_case<Case::kLower>},
      {"capitalize", {}, filter_case<Case::kCapitalize>},
      {"title", {}, filter_title},
      {"tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, filter_tojson},
      {"join", {"d", "attribute"}, filter_join},
      {"default", {"default_value", "boolean"}, filter_default},
      {"d", {"default_value", "boolean"}, filter_default},
      {"replace", {"old", "new", "count"}, filter_replace},
      {"first", {}, filter_first},
      {"last", {}, filter_last},
      {"items", {}, filter_items},
      {"list", {}, filter_list},
      {"string", {}, filter_string},
      {"int", {"default"}, filter_int},
      {"float", {"default"}, filter_float},
      {"abs", {}, filter_abs},
      {"reverse", {}, filter_reverse},
      {"indent", {"width", "first", "blank"}, filter_indent},
      {"safe", {}, filter_safe},
      {"select", {}, filter_by_name},
      {"reject", {}, filter_by_name},
      {"selectattr", {}, filter_by_name},
      {"rejectattr", {}, filter_by_name},
      {"map", {}, filter_by_name},
  };
  return table;
}

// select, reject, selectattr, rejectattr: (attribute,) test, arguments of the test.
Value select(const std::string& name, const Value& v, const Arguments& arguments,
             const Site& site) {
  const bool by_attribute = name.size() > 6;
  const bool keep = name[0] == 's';
  const size_t used = by_attribute ? 1 : 0;
  if (arguments.values.size() < used) site.bad("expected an attribute in {}, got none", name);
  Arguments rest;
  std::string test;
  if (arguments.values.size() > used) {
    const Value& given = arguments.values[used];
    if (!given.string())
      site.bad("expected the name of a test in {}, got {}", name, given.type_name());
    test = given.string()->bytes();
    rest.values.assign(arguments.values.begin() + static_cast<std::ptrdiff_t>(used) + 1,
                       arguments.values.end());
    rest.named = arguments.named;
  }
  std::vector<Value> out;
  for (const Value& item : iterate(v, site)) {
    const Value subject = by_attribute ? attribute_path(item, arguments.values[0], site) : item;
    const bool passed = test.empty() ? subject.truthy() : apply_test(test, subject, rest, site);
    if (passed == keep) out.push_back(item);
  }
  return make_list(std::move(out), site);
}

// map(attribute="name", default=...) or map("filter", arguments of the filter).
Value map(const Value& v, const Arguments& arguments, const Site& site) {
  std::vector<Value> out;
  if (arguments.values.empty()) {
    const Parameters p("filter 'map'", arguments, {"attribute", "default"}, site);
    for (const Value& item : iterate(v, site)) {
      const Value found = attribute_path(item, p.need(0), site);
      out.push_back(found.is_undefined() && p.get(1) ? *p.get(1) : found);
    }
  } else {
    if (!arguments.values[0].string()) site.bad("expected the name of a filter in map");
    if (arguments.values[0].string()->bytes() == "map") site.unsupported("map of map");
    const Arguments rest{{arguments.values.begin() + 1, arguments.values.end()}, arguments.named};
    for (const Value& item : iterate(v, site)) {
      out.push_back(apply_filter(arguments.values[0].string()->bytes(), item, rest, site));
    }
  }
  return make_list(std::move(out), site);
}

template <int kRemainder>
bool test_parity(const Value& v, const Parameters&, const Site& site) {
  if (!v.is_whole()) site.bad("expected a whole number in a test, got {}", v.type_name());
  return (v.whole() % 2 != 0) == (kRemainder != 0);
}

const std::vector<TestEntry>& test_table() {
  using V = const Value&;
  using P = const Parameters&;
  using S = const Site&;
  static const std::vector<TestEntry> table = {
      {"defined", {}, [](V v, P, S) { return !v.is_undefined(); }},
      {"undefined", {}, [](V v, P, S) { return v.is_undefined(); }},
      {"none", {}, [](V v, P, S) { return v.is_none(); }},
      {"boolean", {}, [](V v, P, S) { return v.boolean() != nullptr; }},
      {"true", {}, [](V v, P, S) { return v.boolean() && *v.boolean(); }},
      {"false", {}, [](V v, P, S) { return v.boolean() && !*v.boolean(); }},
      {"integer", {}, [](V v, P, S) { return v.integer() != nullptr; }},
      {"float", {}, [](V v, P, S) { return v.real() != nullptr; }},
      {"number", {}, [](V v, P, S) { return v.is_number(); }},
      {"string", {}, [](V v, P, S) { return v.string() != nullptr; }},
      {"mapping", {}, [](V v, P, S) { return v.dict() != nullptr; }},
      {"sequence",
       {},
       [](V v, P, S) { return v.list() || v.string() || v.dict() || v.is_undefined(); }},
      {"iterable",
       {},
       [](V v, P, S) {
         return v.list() || v.string() || v.dict() || v.is_undefined() || v.loop();
       }},
      {"callable", {}, [](V v, P, S) { return v.callable() != nullptr; }},
      {"odd", {}, test_parity<1>},
      {"even", {}, test_parity<0>},
      {"divisibleby",
       {"num"},
       [](V v, P p, S s) {
         if (!v.is_whole() || p.integer(0, 0) == 0) s.bad("expected whole numbers in divisibleby");
         return p.integer(0, 1) == -1 || v.whole() % p.integer(0, 1) == 0;
       }},
      {"in", {"seq"}, [](V v, P p, S s) { return contains(p.need(0), v, s); }},
      {"eq", {"other"}, [](V v, P p, S s) { return equal(v, p.need(0), s); }},
      {"equalto", {"other"}, [](V v, P p, S s) { return equal(v, p.need(0), s); }},
      {"ne", {"other"}, [](V v, P p, S s) { return !equal(v, p.need(0), s); }},
      {"lt", {"other"}, [](V v, P p, S s) { return compare(v, p.need(0), s) < 0; }},
      {"le", {"other"}, [](V v, P p, S s) { return compare(v, p.need(0), s) <= 0; }},
      {"gt", {"other"}, [](V v, P p, S s) { return compare(v, p.need(0), s) > 0; }},
      {"ge", {"other"}, [](V v, P p, S s) { return compare(v, p.need(0), s) >= 0; }},
  };
  return table;
}

}  // namespace

Parameters::Parameters(std::string what, const Arguments& arguments, std::vector<const char*> names,
                       const Site& site)
    : what_(std::move(what)), names_(std::move(names)), found_(names_.size()), site_(site) {
  if (arguments.values.size() > names_.size()) {
    site.bad("expected at most {} arguments of {}, got {}", names_.size(), what_,
             arguments.values.size());
  }
  for (size_t i = 0; i < arguments.values.size(); ++i) found_[i] = &arguments.values[i];
  for (const auto& [name, value] : arguments.named) {
    const auto at = std::find(names_.begin(), names_.end(), name);
    if (at == names_.end()) site.unsupported("the argument '{}' of {}", printable(name, 30), what_);
    found_[static_cast<size_t>(at - names_.begin())] = &value;
  }
}

const Value& Parameters::need(size_t i) const {
  if (found_[i] == nullptr)
    site_.bad("expected the argument '{}' of {}, got none", names_[i], what_);
  return *found_[i];
}

const Text& Parameters::text(size_t i) const {
  if (need(i).string() == nullptr) {
    site_.bad("expected a string as '{}' of {}, got {}", names_[i], what_, need(i).type_name());
  }
  return *need(i).string();
}

int64_t Parameters::integer(size_t i, int64_t otherwise) const {
  if (found_[i] == nullptr) return otherwise;
  if (!found_[i]->is_whole()) {
    site_.bad("expected a whole number as '{}' of {}, got {}", names_[i], what_,
              found_[i]->type_name());
  }
  return found_[i]->whole();
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   const Site& site) {
  site.spend(1);
  for (const FilterEntry& entry : filter_table()) {
    if (name != entry.name) continue;
    if (entry.apply != filter_by_name) {
      const Parameters p("filter '" + name + "'", arguments, entry.parameters, site);
      return entry.apply(value, p, site);
    }
    return name == "map" ? map(value, arguments, site) : select(name, value, arguments, site);
  }
  site.unsupported("the filter '{}'", printable(name, 30));
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments,
                const Site& site) {
  site.spend(1);
  for (const TestEntry& entry : test_table()) {
    if (name != entry.name) continue;
    const Parameters p("test '" + name + "'", arguments, entry.parameters, site);
    return entry.apply(value, p, site);
  }
  site.unsupported("the test '{}'", printable(name, 30));
}

}  // namespace mamba::jinja
