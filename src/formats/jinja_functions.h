// SPDX-License-Identifier: Apache-2.0
// Filters, tests, methods and item access of templates: everything that needs no names in scope.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "formats/jinja_value.h"

namespace mamba::jinja {

struct Arguments {
  std::vector<Value> values;
  std::vector<std::pair<std::string, Value>> named;
};

// Arguments by position or name against the names of the parameters.
class Parameters {
 public:
  // Throws for an argument too many or of another name. `what` is "filter 'join'" or the like.
  Parameters(std::string what, const Arguments& arguments, std::vector<const char*> names,
             const Site& site);

  const Value* get(size_t i) const { return found_[i]; }  // null if not given
  const Value& need(size_t i) const;
  const Text& text(size_t i) const;
  int64_t integer(size_t i, int64_t otherwise) const;
  bool truth(size_t i, bool otherwise) const { return get(i) ? get(i)->truthy() : otherwise; }

 private:
  std::string what_;
  std::vector<const char*> names_;
  std::vector<const Value*> found_;
  const Site& site_;
};

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   const Site& site);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments,
                const Site& site);

// a op b for the operators + - * / // % and **.
Value arithmetic(const std::string& op, const Value& a, const Value& b, const Site& site);

bool has_method(const Value& self, const std::string& name);
Value call_method(const Value& self, const std::string& name, const Arguments& arguments,
                  const Site& site);
// object.name and object[key]: undefined where there is none.
Value attribute_of(const Value& object, const std::string& name, const Site& site);
Value item_of(const Value& object, const Value& key, const Site& site);
Value slice_of(const Value& object, const Value& begin, const Value& end, const Value& step,
               const Site& site);
// What a loop goes over: items, keys or characters.
std::vector<Value> iterate(const Value& value, const Site& site);
bool contains(const Value& container, const Value& value, const Site& site);

}  // namespace mamba::jinja
