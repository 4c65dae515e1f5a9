// SPDX-License-Identifier: Apache-2.0
// Truth, equality, order and printing of values, as Python has them.
#include "formats/jinja_value.h"

#include <algorithm>
#include <cmath>

namespace mamba::jinja {
namespace {

void check_member(const Value& value, const Site& site) {
  if (value.names() || value.loop() || value.callable()) {
    site.unsupported("a {} inside a list, a dict or a namespace", value.type_name());
  }
}

std::string repr(const Value& value, const Site& site);

std::string repr_list(const List& list, const Site& site) {
  std::string out = list.is_tuple ? "(" : "[";
  for (size_t i = 0; i < list.items.size(); ++i) {
    out += (i > 0 ? ", " : "") + repr(list.items[i], site);
    site.spend(1, out.size() / 16);
  }
  if (list.is_tuple && list.items.size() == 1) out += ",";
  return out + (list.is_tuple ? ")" : "]");
}

std::string repr_dict(const Dict& dict, const Site& site) {
  std::string out = "{";
  for (const auto& [key, value] : dict.members) {
    out += (out.size() > 1 ? ", " : "") + repr(key, site) + ": " + repr(value, site);
    site.spend(1, out.size() / 16);
  }
  return out + "}";
}

std::string repr(const Value& value, const Site& site) {
  site.spend(1);
  if (value.string()) return repr_of(value.string()->bytes());
  if (value.list()) return repr_list(*value.list(), site);
  if (value.dict()) return repr_dict(*value.dict(), site);
  if (value.is_undefined()) return "Undefined";
  return to_text(value, site).bytes();
}

void json_string(std::string_view s, bool ascii, std::string* out) {
  *out += '"';
  while (!s.empty()) {
    const size_t size = char_size(s);
    const uint32_t c = code_point(s);
    static constexpr std::string_view kShort = "\"\"\\\\\bb\ff\nn\rr\tt";
    const size_t at = c < 128 ? kShort.find(static_cast<char>(c)) : std::string_view::npos;
    if (at != std::string_view::npos && at % 2 == 0) {
      *out += '\\';
      *out += kShort[at + 1];
    } else if (c < 0x20 || (ascii && c >= 0x7f && c < 0x10000)) {
      *out += c == 0x7f ? std::string("\x7f") : fmt::format("\\u{:04x}", c);
    } else if (ascii && c >= 0x10000) {
      *out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + ((c - 0x10000) >> 10),
                          0xdc00 + ((c - 0x10000) & 0x3ff));
    } else {
      *out += s.substr(0, size);
    }
    s.remove_prefix(size);
  }
  *out += '"';
}

// json.dumps() into a string.
class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, const Site& site) : style_(style), site_(site) {}

  void write(const Value& value) {
    site_.spend(1);
    if (value.string()) {
      json_string(value.string()->bytes(), style_.ascii, &out_);
    } else if (value.boolean()) {
      out_ += *value.boolean() ? "true" : "false";
    } else if (value.is_none()) {
      out_ += "null";
    } else if (value.integer()) {
      out_ += fmt::format("{}", *value.integer());
    } else if (value.real()) {
      out_ += std::isnan(*value.real())   ? "NaN"
              : std::isinf(*value.real()) ? (*value.real() > 0 ? "Infinity" : "-Infinity")
                                          : float_text(*value.real());
    } else if (value.list()) {
      write_list(*value.list());
    } else if (value.dict()) {
      write_dict(*value.dict());
    } else {
      site_.bad("expected a value that JSON has in tojson, got one of type {}", value.type_name());
    }
  }
  std::string take() { return std::move(out_); }

 private:
  void line(bool first) {
    if (!first) out_ += style_.item_separator;
    if (!style_.lines) return;
    out_ += '\n';
    for (int i = 0; i < depth_; ++i) out_ += style_.indent;
    site_.spend(1, static_cast<size_t>(depth_) * style_.indent.size());
  }
  void close(char bracket) {
    --depth_;
    line(true);
    out_ += bracket;
  }
  void write_list(const List& list) {
    if (list.items.empty()) {
      out_ += "[]";
      return;
    }
    out_ += '[';
    ++depth_;
    for (size_t i = 0; i < list.items.size(); ++i) {
      line(i == 0);
      write(list.items[i]);
    }
    close(']');
  }
  void write_dict(const Dict& dict) {
    std::vector<const Member*> members;
    for (const Member& m : dict.members) {
      if (!m.first.string()) site_.unsupported("tojson of a dict with keys that are no strings");
      members.push_back(&m);
    }
    if (style_.sort_keys) {
      std::sort(members.begin(), members.end(), [](const Member* a, const Member* b) {
        return a->first.string()->bytes() < b->first.string()->bytes();
      });
    }
    if (members.empty()) {
      out_ += "{}";
      return;
    }
    out_ += '{';
    ++depth_;
    for (size_t i = 0; i < members.size(); ++i) {
      line(i == 0);
      json_string(members[i]->first.string()->bytes(), style_.ascii, &out_);
      out_ += style_.key_separator;
      write(members[i]->second);
    }
    close('}');
  }

  const JsonStyle& style_;
  const Site& site_;
  std::string out_;
  int depth_ = 0;
};

int sign(bool less, bool greater) { return less ? -1 : greater ? 1 : 0; }

}  // namespace

bool Value::truthy() const {
  if (boolean()) return *boolean();
  if (integer()) return *integer() != 0;
  if (real()) return *real() != 0;
  if (string()) return string()->size() > 0;
  if (list()) return !list()->items.empty();
  if (dict()) return !dict()->members.empty();
  return !is_none() && !is_undefined();
}

const char* Value::type_name() const {
  static constexpr const char* kNames[] = {"Undefined", "NoneType", "bool",       "int",
                                           "float",     "str",      "list",       "dict",
                                           "namespace", "function", "LoopContext"};
  return list() && list()->is_tuple ? "tuple" : kNames[data_.index()];
}

int Value::nesting() const { return list() ? list()->nesting : dict() ? dict()->nesting : 0; }

const Value* Dict::find(const Value& key) const {
  for (const Member& m : members) {
    if (equal(m.first, key)) return &m.second;
  }
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  for (const Member& m : members) {
    if (m.first.string() && m.first.string()->bytes() == key) return &m.second;
  }
  return nullptr;
}

void Site::spend(int64_t steps, size_t bytes) const {
  if (budget == nullptr) return;
  budget->steps -= steps;
  budget->bytes -= static_cast<int64_t>(bytes);
  if (budget->steps < 0) bad("expected a template that ends, got more steps than are allowed");
  if (budget->bytes < 0) bad("expected a template of modest output, got more than is allowed");
}

Value make_list(std::vector<Value> items, const Site& site, bool is_tuple) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) {
    check_member(item, site);
    list->nesting = std::max(list->nesting, item.nesting() + 1);
  }
  if (list->nesting > kMaxNesting) site.bad("expected at most {} nested lists", kMaxNesting);
  site.spend(static_cast<int64_t>(items.size()));
  list->items = std::move(items);
  list->is_tuple = is_tuple;
  return Value(std::shared_ptr<const List>(std::move(list)));
}

Value make_dict(std::vector<Member> members, const Site& site) {
  auto dict = std::make_shared<Dict>();
  for (Member& m : members) {
    check_member(m.second, site);
    if (!m.first.string() && !m.first.is_number() && !m.first.is_none()) {
      site.unsupported("a key of type {}", m.first.type_name());
    }
    dict->nesting = std::max(dict->nesting, m.second.nesting() + 1);
    site.spend(1 + static_cast<int64_t>(dict->members.size() / 8));
    if (const Value* old = dict->find(m.first)) {
      const_cast<Value&>(*old) = std::move(m.second);
    } else {
      dict->members.push_back(std::move(m));
    }
  }
  if (dict->nesting > kMaxNesting) site.bad("expected at most {} nested dicts", kMaxNesting);
  return Value(std::shared_ptr<const Dict>(std::move(dict)));
}

Value text_value(std::string_view bytes, bool from_template) {
  return Value(Text(bytes, from_template));
}

Value value_of(const nlohmann::ordered_json& json, const Site& site) {
  if (json.is_null()) return None{};
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return text_value(json.get_ref<const std::string&>(), false);
  if (json.is_array()) {
    std::vector<Value> items;
    for (const auto& item : json) items.push_back(value_of(item, site));
    return make_list(std::move(items), site);
  }
  std::vector<Member> members;
  for (const auto& [key, value] : json.items()) {
    members.emplace_back(text_value(key, false), value_of(value, site));
  }
  return make_dict(std::move(members), site);
}

bool equal(const Value& a, const Value& b, const Site& site) {
  site.spend(1);
  if (a.is_whole() && b.is_whole()) return a.whole() == b.whole();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.string() && b.string()) return a.string()->bytes() == b.string()->bytes();
  if (a.list() && b.list()) {
    const auto same = [&](const Value& x, const Value& y) { return equal(x, y, site); };
    return a.list()->is_tuple == b.list()->is_tuple &&
           std::equal(a.list()->items.begin(), a.list()->items.end(), b.list()->items.begin(),
                      b.list()->items.end(), same);
  }
  if (a.dict() && b.dict()) {
    if (a.dict()->members.size() != b.dict()->members.size()) return false;
    for (const Member& m : a.dict()->members) {
      const Value* other = b.dict()->find(m.first);
      if (other == nullptr || !equal(m.second, *other, site)) return false;
    }
    return true;
  }
  if (a.names() || b.names()) return a.names() == b.names();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

int compare(const Value& a, const Value& b, const Site& site) {
  if (a.is_whole() && b.is_whole()) return sign(a.whole() < b.whole(), a.whole() > b.whole());
  if (a.is_number() && b.is_number()) return sign(a.number() < b.number(), a.number() > b.number());
  if (a.string() && b.string()) {  // UTF-8 sorts as its code points do
    const int order = a.string()->bytes().compare(b.string()->bytes());
    return sign(order<0, order> 0);
  }
  if (a.list() && b.list()) {
    const auto &x = a.list()->items, &y = b.list()->items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      site.spend(1);
      if (!equal(x[i], y[i], site)) return compare(x[i], y[i], site);
    }
    return sign(x.size() < y.size(), x.size() > y.size());
  }
  site.bad("expected two numbers or two strings to compare, got {} and {}", a.type_name(),
           b.type_name());
}

Text to_text(const Value& value, const Site& site) {
  if (value.string()) return *value.string();
  if (value.is_undefined()) return {};
  std::string out;
  if (value.boolean()) {
    out = *value.boolean() ? "True" : "False";
  } else if (value.is_none()) {
    out = "None";
  } else if (value.integer()) {
    out = fmt::format("{}", *value.integer());
  } else if (value.real()) {
    out = float_text(*value.real());
  } else if (value.list()) {
    out = repr_list(*value.list(), site);
  } else if (value.dict()) {
    out = repr_dict(*value.dict(), site);
  } else {
    site.unsupported("text of a {}", value.type_name());
  }
  site.spend(1, out.size());
  return Text(out, false);
}

Text to_json(const Value& value, const JsonStyle& style, const Site& site) {
  JsonWriter writer(style, site);
  writer.write(value);
  std::string out = writer.take();
  site.spend(1, out.size());
  return Text(out, false);
}

}  // namespace mamba::jinja
