// SPDX-License-Identifier: Apache-2.0
// Methods of strings, lists and dicts, items, slices and iteration.
#include <algorithm>
#include <array>

#include "base/json.h"
#include "formats/jinja_functions.h"

namespace mamba::jinja {
namespace {

constexpr std::array<const char*, 22> kStringMethods = {
    "strip",      "lstrip",       "rstrip",       "split",      "rsplit",  "startswith",
    "endswith",   "upper",        "lower",        "title",      "replace", "find",
    "rfind",      "count",        "join",         "capitalize", "isdigit", "isspace",
    "splitlines", "removeprefix", "removesuffix", "index"};
constexpr std::array<const char*, 4> kDictMethods = {"items", "keys", "values", "get"};
constexpr std::array<const char*, 2> kListMethods = {"index", "count"};

template <size_t N>
bool among(const std::array<const char*, N>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Value cased(const Text& self, Case how, const Site& site) {
  if (!is_ascii(self.bytes())) site.unsupported("upper or lower case of text beyond ASCII");
  return change_case(self, how);
}

Value list_of(const std::vector<Text>& parts, const Site& site) {
  std::vector<Value> items(parts.begin(), parts.end());
  return make_list(std::move(items), site);
}

// Whether text begins (ends) with the argument, or with one of its items.
bool affix(const Text& self, const Value& argument, bool front, const Site& site) {
  if (argument.list()) {
    return std::any_of(argument.list()->items.begin(), argument.list()->items.end(),
                       [&](const Value& v) { return affix(self, v, front, site); });
  }
  if (!argument.string()) site.bad("expected a string to look for, got {}", argument.type_name());
  const std::string &s = self.bytes(), &t = argument.string()->bytes();
  return s.size() >= t.size() && s.compare(front ? 0 : s.size() - t.size(), t.size(), t) == 0;
}

Value split_method(const Text& self, const Parameters& p, bool from_right, const Site& site) {
  const bool words = p.get(0) == nullptr || p.get(0)->is_none();
  if (!words && p.text(0).size() == 0) site.bad("expected a separator, got an empty string");
  return list_of(split(self, words ? nullptr : &p.text(0).bytes(), p.integer(1, -1), from_right),
                 site);
}

Value find_method(const Text& self, const std::string& name, const Text& part, const Site& site) {
  const std::string& s = self.bytes();
  const size_t at = name == "rfind" ? s.rfind(part.bytes()) : s.find(part.bytes());
  if (at != std::string::npos) {
    return static_cast<int64_t>(count_chars(std::string_view(s).substr(0, at)));
  }
  if (name == "index") site.bad("expected text that holds '{}', got none", printable(part.bytes()));
  return int64_t{-1};
}

int64_t count_parts(const std::string& s, const std::string& part) {
  if (part.empty()) return static_cast<int64_t>(count_chars(s)) + 1;
  int64_t count = 0;
  for (size_t at = s.find(part); at != std::string::npos; at = s.find(part, at + part.size())) {
    ++count;
  }
  return count;
}

Value join_method(const Text& self, const Value& list, const Site& site) {
  Text out;
  bool first = true;
  for (const Value& item : iterate(list, site)) {
    if (!item.string()) site.bad("expected strings to join, got {}", item.type_name());
    if (!first) out.append(self);
    out.append(*item.string());
    site.spend(1, self.size() + item.string()->size());
    first = false;
  }
  return out;
}

bool all_chars(const Text& self, bool (*is)(uint32_t)) {
  const std::string_view s = self.bytes();
  for (size_t at = 0; at < s.size(); at += char_size(s.substr(at))) {
    if (!is(code_point(s.substr(at)))) return false;
  }
  return !s.empty();
}

Value split_lines(const Text& self, const Site& site) {
  const std::string& s = self.bytes();
  if (s.find_first_of("\v\f\x1c\x1d\x1e") != std::string::npos || !is_ascii(s)) {
    site.unsupported("splitlines of text beyond ASCII");
  }
  std::vector<Text> lines;
  for (size_t at = 0; at < s.size();) {
    const size_t end = std::min(s.find_first_of("\r\n", at), s.size());
    lines.push_back(self.substr(at, end - at));
    at = end + (s.compare(end, 2, "\r\n") == 0 ? 2 : 1);
  }
  return list_of(lines, site);
}

Value string_method(const Text& self, const std::string& name, const Arguments& arguments,
                    const Site& site) {
  site.spend(1, self.size());
  const auto parameters = [&](std::vector<const char*> names) {
    return Parameters("method '" + name + "' of a string", arguments, std::move(names), site);
  };
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Parameters p = parameters({"chars"});
    const bool spaces = p.get(0) == nullptr || p.get(0)->is_none();
    const Sides sides = name == "strip" ? kBoth : name == "lstrip" ? kLeft : kRight;
    return strip(self, spaces ? nullptr : &p.text(0).bytes(), sides);
  }
  if (name == "split" || name == "rsplit") {
    return split_method(self, parameters({"sep", "maxsplit"}), name == "rsplit", site);
  }
  if (name == "startswith" || name == "endswith") {
    return affix(self, parameters({"prefix"}).need(0), name == "startswith", site);
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const Parameters p = parameters({"part"});
    const bool front = name == "removeprefix";
    if (!affix(self, Value(p.text(0)), front, site)) return self;
    const size_t rest = self.size() - p.text(0).size();
    return front ? self.substr(p.text(0).size()) : self.substr(0, rest);
  }
  if (name == "replace") {
    const Parameters p = parameters({"old", "new", "count"});
    site.spend(1, (self.size() + 1) / std::max<size_t>(1, p.text(0).size()) * p.text(1).size());
    return replace(self, p.text(0).bytes(), p.text(1), p.integer(2, -1));
  }
  if (name == "find" || name == "rfind" || name == "index") {
    return find_method(self, name, parameters({"part"}).text(0), site);
  }
  if (name == "count") return count_parts(self.bytes(), parameters({"part"}).text(0).bytes());
  if (name == "join") return join_method(self, parameters({"items"}).need(0), site);
  parameters({});
  if (name == "isspace") return all_chars(self, is_space);
  if (name == "isdigit") {
    const auto digit = [](uint32_t c) { return c >= '0' && c <= '9'; };
    if (!all_chars(self, [](uint32_t c) { return c >= 128 || (c >= '0' && c <= '9'); }))
      return false;
    if (!is_ascii(self.bytes())) site.unsupported("isdigit of text beyond ASCII");
    return all_chars(self, digit);
  }
  if (name == "splitlines") return split_lines(self, site);
  return cased(self,
               name == "upper"   ? Case::kUpper
               : name == "lower" ? Case::kLower
               : name == "title" ? Case::kTitle
                                 : Case::kCapitalize,
               site);
}

Value dict_method(const Dict& self, const std::string& name, const Arguments& arguments,
                  const Site& site) {
  const std::string what = "method '" + name + "' of a dict";
  if (name == "get") {
    const Parameters p(what, arguments, {"key", "default"}, site);
    const Value* found = self.find(p.need(0));
    return found ? *found : p.get(1) ? *p.get(1) : Value(None{});
  }
  const Parameters p(what, arguments, {}, site);
  std::vector<Value> items;
  for (const Member& m : self.members) {
    if (name == "items") {
      items.push_back(make_list({m.first, m.second}, site, true));
    } else {
      items.push_back(name == "keys" ? m.first : m.second);
    }
  }
  return make_list(std::move(items), site);
}

Value list_method(const List& self, const std::string& name, const Arguments& arguments,
                  const Site& site) {
  const Parameters p("method '" + name + "' of a list", arguments, {"value"}, site);
  int64_t count = 0;
  for (size_t i = 0; i < self.items.size(); ++i) {
    if (!equal(self.items[i], p.need(0), site)) continue;
    if (name == "index") return static_cast<int64_t>(i);
    ++count;
  }
  if (name == "index") site.bad("expected a value of the list in index(), got another");
  return count;
}

Value loop_attribute(const Loop& loop, const std::string& name, const Site& site) {
  const auto size = static_cast<int64_t>(loop.items->items.size());
  const auto item = [&](int64_t i, const char* what) {
    const bool inside = i >= 0 && i < size;
    return inside ? loop.items->items[static_cast<size_t>(i)] : Value(Undefined{what});
  };
  if (name == "index") return loop.index0 + 1;
  if (name == "index0") return loop.index0;
  if (name == "first") return loop.index0 == 0;
  if (name == "last") return loop.index0 == size - 1;
  if (name == "length") return size;
  if (name == "revindex") return size - loop.index0;
  if (name == "revindex0") return size - loop.index0 - 1;
  if (name == "depth") return loop.depth;
  if (name == "depth0") return loop.depth - 1;
  if (name == "previtem") return item(loop.index0 - 1, "previtem");
  if (name == "nextitem") return item(loop.index0 + 1, "nextitem");
  site.unsupported("'loop.{}'", printable(name, 30));
}

// Python's clamping of a slice: begin and end for a step.
struct Range {
  int64_t begin, end, step;
};
Range clamped(const Value& begin, const Value& end, const Value& step, int64_t size,
              const Site& site) {
  const auto whole = [&](const Value& v, int64_t otherwise) {
    if (v.is_none()) return otherwise;
    if (!v.is_whole()) site.bad("expected whole numbers in a slice, got {}", v.type_name());
    return v.whole();
  };
  Range r{0, 0, whole(step, 1)};
  if (r.step == 0) site.bad("expected a step of a slice other than 0, got 0");
  const bool up = r.step > 0;
  const auto clamp = [&](int64_t i) {
    if (i < 0) i = i < -size ? (up ? 0 : -1) : i + size;
    return std::min(i, up ? size : size - 1);
  };
  r.begin = begin.is_none() ? (up ? 0 : size - 1) : clamp(whole(begin, 0));
  r.end = end.is_none() ? (up ? size : -1) : clamp(whole(end, 0));
  return r;
}

template <class Take>
void for_range(const Range& r, Take take) {
  // The step may be huge: count instead of adding beyond the end.
  const int64_t span = r.step > 0 ? r.end - r.begin : r.begin - r.end;
  const uint64_t step =
      r.step > 0 ? static_cast<uint64_t>(r.step) : 0 - static_cast<uint64_t>(r.step);
  if (span <= 0) return;
  const uint64_t count = (static_cast<uint64_t>(span) - 1) / step + 1;
  for (uint64_t i = 0; i < count; ++i) {
    const auto moved = static_cast<int64_t>(i * step);
    take(static_cast<size_t>(r.step > 0 ? r.begin + moved : r.begin - moved));
  }
}

}  // namespace

bool has_method(const Value& self, const std::string& name) {
  return (self.string() && among(kStringMethods, name)) ||
         (self.dict() && among(kDictMethods, name)) || (self.list() && among(kListMethods, name)) ||
         (self.loop() && name == "cycle");
}

Value call_method(const Value& self, const std::string& name, const Arguments& arguments,
                  const Site& site) {
  if (self.string()) return string_method(*self.string(), name, arguments, site);
  if (self.dict()) return dict_method(*self.dict(), name, arguments, site);
  if (self.list()) return list_method(*self.list(), name, arguments, site);
  MAMBA_CHECK(self.loop() != nullptr);
  if (arguments.values.empty()) site.bad("expected values in loop.cycle(), got none");
  return arguments.values[static_cast<size_t>(self.loop()->index0) % arguments.values.size()];
}

Value attribute_of(const Value& object, const std::string& name, const Site& site) {
  if (object.is_undefined()) {
    site.bad("expected a value to take '{}' of, but '{}' is undefined", printable(name, 30),
             printable(object.undefined_name(), 30));
  }
  if (has_method(object, name)) {
    auto method = std::make_shared<Callable>();
    method->name = name;
    method->self = object;
    return Value(std::shared_ptr<const Callable>(std::move(method)));
  }
  if (object.loop()) return loop_attribute(*object.loop(), name, site);
  if (object.names()) {
    for (const auto& [key, value] : object.names()->names) {
      if (key == name) return value;
    }
  }
  if (object.dict()) {
    site.spend(1 + static_cast<int64_t>(object.dict()->members.size() / 8));
    if (const Value* found = object.dict()->find(name)) return *found;
  }
  return Undefined{name};
}

Value item_of(const Value& object, const Value& key, const Site& site) {
  if (object.is_undefined()) {
    site.bad("expected a value to take an item of, but '{}' is undefined",
             printable(object.undefined_name(), 30));
  }
  if (object.dict()) {
    site.spend(1 + static_cast<int64_t>(object.dict()->members.size() / 8));
    if (const Value* found = object.dict()->find(key)) return *found;
  } else if (key.is_whole() && object.list()) {
    const auto& items = object.list()->items;
    const int64_t i = key.whole() + (key.whole() < 0 ? static_cast<int64_t>(items.size()) : 0);
    if (i >= 0 && i < static_cast<int64_t>(items.size())) return items[static_cast<size_t>(i)];
    return Undefined{"item"};
  } else if (key.is_whole() && object.string()) {
    const Text& text = *object.string();
    site.spend(1 + static_cast<int64_t>(text.size() / 8));
    const std::vector<size_t> at = char_offsets(text.bytes());
    const auto size = static_cast<int64_t>(at.size()) - 1;
    const int64_t i = key.whole() + (key.whole() < 0 ? size : 0);
    if (i < 0 || i >= size) return Undefined{"item"};
    const auto k = static_cast<size_t>(i);
    return text.substr(at[k], at[k + 1] - at[k]);
  }
  if (key.string()) return attribute_of(object, key.string()->bytes(), site);
  return Undefined{"item"};
}

Value slice_of(const Value& object, const Value& begin, const Value& end, const Value& step,
               const Site& site) {
  if (object.list()) {
    const auto& items = object.list()->items;
    std::vector<Value> out;
    for_range(clamped(begin, end, step, static_cast<int64_t>(items.size()), site),
              [&](size_t i) { out.push_back(items[i]); });
    return make_list(std::move(out), site, object.list()->is_tuple);
  }
  if (object.string()) {
    const Text& text = *object.string();
    const std::vector<size_t> at = char_offsets(text.bytes());
    Text out;
    for_range(clamped(begin, end, step, static_cast<int64_t>(at.size()) - 1, site),
              [&](size_t i) { out.append(text, at[i], at[i + 1] - at[i]); });
    site.spend(1 + static_cast<int64_t>(text.size() / 8), out.size());
    return out;
  }
  if (object.is_undefined()) {
    site.bad("expected a value to slice, but '{}' is undefined",
             printable(object.undefined_name(), 30));
  }
  site.bad("expected a list or a string to slice, got {}", object.type_name());
}

std::vector<Value> iterate(const Value& value, const Site& site) {
  std::vector<Value> items;
  if (value.list()) {
    items = value.list()->items;
  } else if (value.dict()) {
    for (const Member& m : value.dict()->members) items.push_back(m.first);
  } else if (value.string()) {
    const std::vector<size_t> at = char_offsets(value.string()->bytes());
    site.spend(static_cast<int64_t>(at.size()), 16 * at.size());
    for (size_t i = 0; i + 1 < at.size(); ++i) {
      items.emplace_back(value.string()->substr(at[i], at[i + 1] - at[i]));
    }
  } else if (!value.is_undefined()) {
    site.bad("expected a list, a dict or a string to go over, got {}", value.type_name());
  }
  site.spend(static_cast<int64_t>(items.size()));
  return items;
}

bool contains(const Value& container, const Value& value, const Site& site) {
  if (container.string()) {
    if (!value.string()) site.bad("expected a string in a string, got {}", value.type_name());
    site.spend(1, container.string()->size());
    return container.string()->bytes().find(value.string()->bytes()) != std::string::npos;
  }
  if (container.dict()) {
    site.spend(1 + static_cast<int64_t>(container.dict()->members.size() / 8));
    return container.dict()->find(value) != nullptr;
  }
  if (container.list()) {
    return std::any_of(container.list()->items.begin(), container.list()->items.end(),
                       [&](const Value& item) { return equal(item, value, site); });
  }
  if (container.is_undefined()) return false;
  site.bad("expected a list, a dict or a string behind 'in', got {}", container.type_name());
}

}  // namespace mamba::jinja
