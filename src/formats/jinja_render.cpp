// SPDX-License-Identifier: Apache-2.0
// The interpreter: statements and expressions over scopes of names.
#include <algorithm>

#include "base/json.h"
#include "formats/jinja.h"
#include "formats/jinja_functions.h"

namespace mamba::jinja {
namespace {

constexpr int kMaxDepth = 600;  // of the recursion over trees and macros: about 1 MB of stack

// Names of a loop's round, a macro's call or the whole template.
struct Scope {
  const Scope* parent = nullptr;
  std::vector<std::pair<std::string, Value>> names;

  const Value* find(const std::string& name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
      for (const auto& [known, value] : scope->names) {
        if (known == name) return &value;
      }
    }
    return nullptr;
  }
  void set(const std::string& name, Value value) {
    for (auto& [known, old] : names) {
      if (known != name) continue;
      old = std::move(value);
      return;
    }
    names.emplace_back(name, std::move(value));
  }
};

bool is_global(const std::string& name) {
  return name == "range" || name == "namespace" || name == "dict" || name == "raise_exception" ||
         name == "strftime_now";
}

class Renderer {
 public:
  Renderer(const std::tm& now, const Limits& limits) : now_(now) {
    budget_.steps = limits.steps;
    budget_.bytes = limits.bytes;
  }

  Text run(const Block& block, const Context& context) {
    for (const auto& [name, value] : context) root_.set(name, value);
    Text out;
    execute(block, &root_, &out);
    return out;
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  Site site(int line) { return {line, &budget_}; }

  // Counts the levels of the recursion for as long as it lives.
  class Level {
   public:
    Level(Renderer* renderer, int line) : depth_(renderer->depth_) {
      const Site at = renderer->site(line);
      at.spend(1);
      if (depth_ >= kMaxDepth) at.bad("expected at most {} nested calls, got more", kMaxDepth);
      ++depth_;
    }
    ~Level() { --depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    int& depth_;
  };

  Flow execute(const Block& block, Scope* scope, Text* out) {
    for (const auto& statement : block) {
      const Flow flow = execute(*statement, scope, out);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  void write(const Text& text, int line, Text* out) {
    site(line).spend(1, text.size());
    out->append(text);
  }

  Flow execute(const Statement& s, Scope* scope, Text* out) {
    const Level level(this, s.line);
    switch (s.kind) {
      case Statement::kText:
        write(s.text, s.line, out);
        return Flow::kNext;
      case Statement::kPrint:
        write(to_text(evaluate(*s.expr, *scope), site(s.line)), s.line, out);
        return Flow::kNext;
      case Statement::kIf:
        for (const auto& [condition, body] : s.branches) {
          if (evaluate(*condition, *scope).truthy()) return execute(body, scope, out);
        }
        return execute(s.body, scope, out);
      case Statement::kFor:
        loop(s, scope, out);
        return Flow::kNext;
      case Statement::kSet:
        assign(s, scope);
        return Flow::kNext;
      case Statement::kSetBlock:
        assign_block(s, scope);
        return Flow::kNext;
      case Statement::kMacro: {
        auto function = std::make_shared<Callable>();
        function->name = s.macro->name;
        function->macro = s.macro.get();
        scope->set(s.macro->name, Value(std::shared_ptr<const Callable>(std::move(function))));
        return Flow::kNext;
      }
      case Statement::kScope: {
        Scope inner{scope, {}};
        execute(s.body, &inner, out);
        return Flow::kNext;
      }
      case Statement::kBreak:
        return Flow::kBreak;
      case Statement::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  // One value to one name, or the items of a list to several.
  void bind(const std::vector<std::string>& names, const Value& value, int line, Scope* scope) {
    if (names.size() == 1) return scope->set(names[0], value);
    const std::vector<Value> items = iterate(value, site(line));
    if (items.size() != names.size()) {
      site(line).bad("expected {} values to unpack, got {}", names.size(), items.size());
    }
    for (size_t i = 0; i < names.size(); ++i) scope->set(names[i], items[i]);
  }

  void loop(const Statement& s, Scope* scope, Text* out) {
    std::vector<Value> items = iterate(evaluate(*s.expr, *scope), site(s.line));
    if (s.condition) {
      std::vector<Value> kept;
      for (const Value& item : items) {
        Scope inner{scope, {}};
        bind(s.names, item, s.line, &inner);
        if (evaluate(*s.condition, inner).truthy()) kept.push_back(item);
      }
      items = std::move(kept);
    }
    auto list = std::make_shared<List>();
    list->items = std::move(items);
    const auto size = static_cast<int64_t>(list->items.size());
    const std::shared_ptr<const List> all = std::move(list);
    for (int64_t i = 0; i < size; ++i) {
      site(s.line).spend(1);
      Scope inner{scope, {}};
      auto state = std::make_shared<Loop>();
      state->items = all;
      state->index0 = i;
      inner.set("loop", Value(std::shared_ptr<const Loop>(std::move(state))));
      bind(s.names, all->items[static_cast<size_t>(i)], s.line, &inner);
      if (execute(s.body, &inner, out) == Flow::kBreak) break;
    }
    if (size > 0) return;
    Scope inner{scope, {}};
    execute(s.other, &inner, out);
  }

  void assign(const Statement& s, Scope* scope) {
    Value value = evaluate(*s.expr, *scope);
    if (s.attribute.empty()) return bind(s.names, value, s.line, scope);
    const Value* target = scope->find(s.names[0]);
    if (target == nullptr || target->names() == nullptr) {
      site(s.line).bad("expected a namespace to set '{}' of, got {}", s.attribute,
                       target ? target->type_name() : "nothing");
    }
    set_in(target->names(), s.attribute, std::move(value), site(s.line));
  }

  void set_in(Namespace* names, const std::string& name, Value value, const Site& at) {
    if (name.rfind('_', 0) == 0) at.bad("expected names without '_' in front in a namespace");
    if (value.names() || value.loop() || value.callable()) {
      at.unsupported("a {} inside a namespace", value.type_name());
    }
    for (auto& [known, old] : names->names) {
      if (known != name) continue;
      old = std::move(value);
      return;
    }
    names->names.emplace_back(name, std::move(value));
  }

  void assign_block(const Statement& s, Scope* scope) {
    Scope inner{scope, {}};
    Text captured;
    execute(s.body, &inner, &captured);
    Value value(std::move(captured));
    if (s.expr) value = filtered(*s.expr, &value, *scope);
    scope->set(s.names[0], std::move(value));
  }

  Arguments arguments(const Expr& e, const Scope& scope) {
    Arguments out;
    for (size_t i = 1; i < e.args.size(); ++i) out.values.push_back(evaluate(*e.args[i], scope));
    for (const auto& [name, arg] : e.named) out.named.emplace_back(name, evaluate(*arg, scope));
    return out;
  }

  // `subject`: what stands before the first filter of a {% set %} block.
  Value filtered(const Expr& e, const Value* subject, const Scope& scope) {
    const Level level(this, e.line);
    const bool own = e.args[0] != nullptr && !(subject && e.args[0]->kind == Expr::kFilter);
    const Value value = own         ? evaluate(*e.args[0], scope)
                        : e.args[0] ? filtered(*e.args[0], subject, scope)
                                    : *subject;
    return apply_filter(e.name, value, arguments(e, scope), site(e.line));
  }

  Value evaluate(const Expr& e, const Scope& scope) {
    const Level level(this, e.line);
    switch (e.kind) {
      case Expr::kLiteral:
        return e.value;
      case Expr::kName:
        return name(e, scope);
      case Expr::kList:
      case Expr::kTuple:
        return make_list(all(e, scope), site(e.line), e.kind == Expr::kTuple);
      case Expr::kDict: {
        const std::vector<Value> flat = all(e, scope);
        std::vector<Member> members;
        for (size_t i = 0; i < flat.size(); i += 2) members.emplace_back(flat[i], flat[i + 1]);
        return make_dict(std::move(members), site(e.line));
      }
      case Expr::kAttribute:
        return attribute_of(evaluate(*e.args[0], scope), e.name, site(e.line));
      case Expr::kIndex: {
        const Value object = evaluate(*e.args[0], scope);
        return item_of(object, evaluate(*e.args[1], scope), site(e.line));
      }
      case Expr::kSlice:
        return slice(e, scope);
      case Expr::kCall:
        return call(e, scope);
      case Expr::kFilter:
        return filtered(e, nullptr, scope);
      case Expr::kTest:
        return apply_test(e.name, evaluate(*e.args[0], scope), arguments(e, scope), site(e.line));
      case Expr::kNot:
        return !evaluate(*e.args[0], scope).truthy();
      case Expr::kUnary:
        return arithmetic(e.name, int64_t{0}, evaluate(*e.args[0], scope), site(e.line));
      case Expr::kBinary: {
        const Value left = evaluate(*e.args[0], scope);
        return arithmetic(e.name, left, evaluate(*e.args[1], scope), site(e.line));
      }
      case Expr::kConcat:
        return concatenation(e, scope);
      case Expr::kCompare:
        return comparison(e, scope);
      case Expr::kAnd:
      case Expr::kOr: {
        Value left = evaluate(*e.args[0], scope);
        return left.truthy() == (e.kind == Expr::kOr) ? left : evaluate(*e.args[1], scope);
      }
      case Expr::kCondition:
        if (evaluate(*e.args[1], scope).truthy()) return evaluate(*e.args[0], scope);
        return e.args[2] ? evaluate(*e.args[2], scope) : Value();
    }
    return Value();
  }

  std::vector<Value> all(const Expr& e, const Scope& scope) {
    std::vector<Value> values;
    for (const ExprPtr& arg : e.args) values.push_back(evaluate(*arg, scope));
    return values;
  }

  Value name(const Expr& e, const Scope& scope) {
    if (const Value* found = scope.find(e.name)) return *found;
    if (is_global(e.name)) {
      auto function = std::make_shared<Callable>();
      function->name = e.name;
      return Value(std::shared_ptr<const Callable>(std::move(function)));
    }
    if (e.name == "lipsum" || e.name == "cycler" || e.name == "joiner") {
      site(e.line).unsupported("the function '{}'", e.name);
    }
    return Undefined{e.name};
  }

  Value slice(const Expr& e, const Scope& scope) {
    const Value object = evaluate(*e.args[0], scope);
    Value part[3];
    for (size_t i = 0; i < 3; ++i) {
      part[i] = e.args[i + 1] ? evaluate(*e.args[i + 1], scope) : Value(None{});
    }
    return slice_of(object, part[0], part[1], part[2], site(e.line));
  }

  Value concatenation(const Expr& e, const Scope& scope) {
    Text out;
    for (const ExprPtr& arg : e.args) {
      write(to_text(evaluate(*arg, scope), site(e.line)), e.line, &out);
    }
    return out;
  }

  Value comparison(const Expr& e, const Scope& scope) {
    Value left = evaluate(*e.args[0], scope);
    for (size_t i = 0; i < e.operators.size(); ++i) {
      Value right = evaluate(*e.args[i + 1], scope);
      if (!holds(e.operators[i], left, right, site(e.line))) return false;
      left = std::move(right);
    }
    return true;
  }

  static bool holds(const std::string& op, const Value& a, const Value& b, const Site& at) {
    if (op == "==") return equal(a, b, at);
    if (op == "!=") return !equal(a, b, at);
    if (op == "in") return contains(b, a, at);
    if (op == "not in") return !contains(b, a, at);
    const int order = compare(a, b, at);
    if (op == "<") return order < 0;
    if (op == "<=") return order <= 0;
    return op == ">" ? order > 0 : order >= 0;
  }

  Value call(const Expr& e, const Scope& scope) {
    const Expr& callee = *e.args[0];
    const Site at = site(e.line);
    Value function;
    if (callee.kind == Expr::kAttribute) {
      const Value object = evaluate(*callee.args[0], scope);
      function = attribute_of(object, callee.name, at);
      if (function.is_undefined()) {
        at.unsupported("the method '{}' of a {}", printable(callee.name, 30), object.type_name());
      }
    } else {
      function = evaluate(callee, scope);
    }
    if (function.is_undefined()) {
      at.bad("expected a function, but '{}' is undefined",
             printable(function.undefined_name(), 30));
    }
    const Callable* known = function.callable();
    if (known == nullptr) at.bad("expected a function to call, got {}", function.type_name());
    const Arguments given = arguments(e, scope);
    if (known->macro) return call_macro(*known->macro, given, at);
    if (!known->self.is_undefined()) return call_method(known->self, known->name, given, at);
    return call_global(known->name, given, at);
  }

  Value call_macro(const Macro& macro, const Arguments& given, const Site& at) {
    std::vector<const char*> names;
    for (const auto& parameter : macro.parameters) names.push_back(parameter.first.c_str());
    const Parameters p("macro '" + macro.name + "'", given, names, at);
    Scope inner{&root_, {}};
    for (size_t i = 0; i < names.size(); ++i) {
      const auto& [name, otherwise] = macro.parameters[i];
      inner.set(name, p.get(i)    ? *p.get(i)
                      : otherwise ? evaluate(*otherwise, inner)
                                  : Value(Undefined{name}));
    }
    Text out;
    execute(macro.body, &inner, &out);
    return out;
  }

  Value call_global(const std::string& name, const Arguments& given, const Site& at) {
    if (name == "raise_exception") {
      const Parameters p("raise_exception", given, {"message"}, at);
      fail(ErrorCode::kInvalidArgument, "[chat template] line {}: the template refuses: {}",
           at.line, printable(to_text(p.need(0), at).bytes(), 300));
    }
    if (name == "strftime_now")
      return time_text(Parameters("strftime_now", given, {"format"}, at).text(0), at);
    if (name == "range") return range(given, at);
    std::vector<Member> members;
    if (given.values.size() == 1 && given.values[0].dict()) {
      members = given.values[0].dict()->members;
    } else if (!given.values.empty()) {
      at.unsupported("{}() of anything but a dict and names", name);
    }
    if (name == "dict") {
      for (const auto& [key, value] : given.named)
        members.emplace_back(text_value(key, true), value);
      return make_dict(std::move(members), at);
    }
    auto names = std::make_shared<Namespace>();
    for (const auto& [key, value] : members) {
      if (!key.string()) at.unsupported("a namespace of names that are no strings");
      set_in(names.get(), key.string()->bytes(), value, at);
    }
    for (const auto& [key, value] : given.named) set_in(names.get(), key, value, at);
    return Value(std::move(names));
  }

  Value time_text(const Text& format, const Site& at) {
    char text[1024];
    const std::string pattern = format.bytes() + " ";  // so that an empty result is no failure
    if (pattern.size() > 200 || pattern.find('\0') != std::string::npos) {
      at.bad("expected a short format of a time, got {} bytes", format.size());
    }
    const size_t size = std::strftime(text, sizeof text, pattern.c_str(), &now_);
    if (size == 0) at.bad("expected a format of a time, got '{}'", printable(format.bytes()));
    return Text(std::string_view(text, size - 1), true);
  }

  Value range(const Arguments& given, const Site& at) {
    const Parameters p("range", given, {"start", "stop", "step"}, at);
    const bool one = p.get(1) == nullptr;
    const int64_t begin = one ? 0 : p.integer(0, 0), end = one ? p.integer(0, 0) : p.integer(1, 0);
    const int64_t step = p.integer(2, 1);
    p.need(0);
    if (step == 0) at.bad("expected a step of range other than 0, got 0");
    std::vector<Value> items;
    for (int64_t i = begin; step > 0 ? i < end : i > end;) {
      if (items.size() >= 100000) at.bad("expected at most 100000 numbers of range, got more");
      items.emplace_back(i);
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return make_list(std::move(items), at);
  }

  const std::tm now_;
  Budget budget_;
  Scope root_;
  int depth_ = 0;
};

}  // namespace

Text Template::render(const Context& context, const std::tm& now, const Limits& limits) const {
  return Renderer(now, limits).run(block_, context);
}

}  // namespace mamba::jinja
