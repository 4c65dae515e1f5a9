// SPDX-License-Identifier: Apache-2.0
// Parsed templates: statements and expressions as trees.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "formats/jinja_value.h"

namespace mamba::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  enum Kind : uint8_t {
    kLiteral,    // value
    kName,       // name
    kList,       // args
    kTuple,      // args
    kDict,       // args: key, value, key, value, ...
    kAttribute,  // args[0].name
    kIndex,      // args[0][args[1]]
    kSlice,      // args[0][args[1]:args[2]:args[3]], null where left out
    kCall,       // args[0](args[1:], named)
    kFilter,     // args[0] | name(args[1:], named); args[0] is null within {% set %} blocks
    kTest,       // args[0] is name(args[1:], named)
    kNot,        // args[0]
    kUnary,      // name is "-" or "+"
    kBinary,     // args[0] name args[1]
    kConcat,     // args joined by ~
    kCompare,    // args[0] operators[0] args[1] operators[1] args[2] ...
    kAnd,        // args[0] and args[1]
    kOr,
    kCondition,  // args[0] if args[1] else args[2] (null: undefined)
  } kind = kLiteral;
  int line = 0;
  int depth = 1;  // of this tree
  std::string name;
  Value value;
  std::vector<ExprPtr> args;
  std::vector<std::pair<std::string, ExprPtr>> named;
  std::vector<std::string> operators;
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct Statement {
  enum Kind : uint8_t {
    kText,      // text
    kPrint,     // expr
    kIf,        // each condition of `branches` with its block; body is the else
    kFor,       // names in expr if condition: body, other
    kSet,       // names = expr, or names[0].attribute = expr
    kSetBlock,  // names[0] = the text of body through the filter expr (null: none)
    kMacro,     // macro
    kScope,     // body with names of its own
    kBreak,
    kContinue
  } kind = kText;
  int line = 0;
  Text text;
  ExprPtr expr, condition;
  std::vector<std::string> names;
  std::string attribute;
  std::vector<std::pair<ExprPtr, Block>> branches;
  Block body, other;
  std::unique_ptr<Macro> macro;
};

struct Macro {
  std::string name;
  int line = 0;
  std::vector<std::pair<std::string, ExprPtr>> parameters;  // with defaults, or null
  Block body;
};

// Throws bad_file or unsupported with the line.
Block parse(std::string_view source);

}  // namespace mamba::jinja
