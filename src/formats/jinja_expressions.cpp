// SPDX-License-Identifier: Apache-2.0
// Expressions by precedence, loosest first.
#include "formats/jinja_expressions.h"

#include <algorithm>
#include <charconv>

#include "base/json.h"

namespace mamba::jinja {

std::string ExpressionParser::shown() const {
  switch (now().kind) {
    case Token::kEnd:
      return "the end";
    case Token::kBlockEnd:
    case Token::kPrintEnd:
      return "the end of the tag";
    case Token::kString:
      return "a string";
    default:
      return "'" + printable(now().text, 30) + "'";
  }
}

ExprPtr ExpressionParser::node(Expr::Kind kind, int line, std::vector<ExprPtr> args) const {
  auto out = std::make_unique<Expr>();
  out->kind = kind;
  out->line = line;
  out->args = std::move(args);
  measure(out.get());
  return out;
}

void ExpressionParser::measure(Expr* expr) const {
  for (const ExprPtr& arg : expr->args) {
    if (arg) expr->depth = std::max(expr->depth, arg->depth + 1);
  }
  for (const auto& [name, arg] : expr->named) expr->depth = std::max(expr->depth, arg->depth + 1);
  if (expr->depth > kMaxDepth) {
    site().bad("expected an expression of at most {} steps in a row, got more", kMaxDepth);
  }
}

ExprPtr ExpressionParser::tuple_or_expression(bool with_condition) {
  const int line = now().line;
  const auto one = [&] { return with_condition ? expression() : or_expression(); };
  ExprPtr first = one();
  if (!is_op(",")) return first;
  std::vector<ExprPtr> items;
  items.push_back(std::move(first));
  while (take_op(",")) {
    const bool ends = now().kind == Token::kBlockEnd || now().kind == Token::kPrintEnd;
    if (ends || is_op(")")) break;
    items.push_back(one());
  }
  return node(Expr::kTuple, line, std::move(items));
}

ExprPtr ExpressionParser::expression() {
  const Level level(&depth_, kMaxDepth, site());
  const int line = now().line;
  ExprPtr value = or_expression();
  while (take_word("if")) {
    ExprPtr condition = or_expression();
    ExprPtr other = take_word("else") ? expression() : nullptr;
    value =
        node_of(Expr::kCondition, line, std::move(value), std::move(condition), std::move(other));
  }
  return value;
}

ExprPtr ExpressionParser::or_expression() {
  ExprPtr left = and_expression();
  for (int line = now().line; take_word("or"); line = now().line) {
    ExprPtr right = and_expression();
    left = node_of(Expr::kOr, line, std::move(left), std::move(right));
  }
  return left;
}

ExprPtr ExpressionParser::and_expression() {
  ExprPtr left = not_expression();
  for (int line = now().line; take_word("and"); line = now().line) {
    ExprPtr right = not_expression();
    left = node_of(Expr::kAnd, line, std::move(left), std::move(right));
  }
  return left;
}

ExprPtr ExpressionParser::not_expression() {
  const Level level(&depth_, kMaxDepth, site());
  const int line = now().line;
  if (take_word("not")) return node_of(Expr::kNot, line, not_expression());
  return comparison();
}

ExprPtr ExpressionParser::comparison() {
  const int line = now().line;
  ExprPtr first = sum();
  std::vector<ExprPtr> args;
  std::vector<std::string> operators;
  for (;;) {
    std::string op;
    for (const char* known : {"==", "!=", "<", "<=", ">", ">="}) {
      if (is_op(known)) op = known;
    }
    if (is_word("in")) op = "in";
    if (is_word("not") && next().is(Token::kName, "in")) {
      op = "not in";
      ++at_;
    }
    if (op.empty()) break;
    ++at_;
    operators.push_back(op);
    args.push_back(sum());
  }
  if (operators.empty()) return first;
  args.insert(args.begin(), std::move(first));
  ExprPtr out = node(Expr::kCompare, line, std::move(args));
  out->operators = std::move(operators);
  return out;
}

ExprPtr ExpressionParser::sum() {
  return binary({"+", "-"}, [this] { return concatenation(); });
}

ExprPtr ExpressionParser::concatenation() {
  const int line = now().line;
  std::vector<ExprPtr> parts;
  do {
    parts.push_back(product());
  } while (take_op("~"));
  if (parts.size() == 1) return std::move(parts[0]);
  return node(Expr::kConcat, line, std::move(parts));
}

ExprPtr ExpressionParser::product() {
  return binary({"*", "/", "//", "%"},
                [this] { return binary({"**"}, [this] { return unary(true); }); });
}

ExprPtr ExpressionParser::unary(bool with_filters) {
  const Level level(&depth_, kMaxDepth, site());
  const int line = now().line;
  ExprPtr out;
  if (is_op("-") || is_op("+")) {
    const std::string op = tokens_[at_++].text;
    out = node_of(Expr::kUnary, line, unary(false));
    out->name = op;
  } else {
    out = primary();
  }
  out = postfix(std::move(out));
  return with_filters ? filters(std::move(out)) : std::move(out);
}

ExprPtr ExpressionParser::literal(Value value) {
  ExprPtr out = node(Expr::kLiteral, now().line);
  out->value = std::move(value);
  ++at_;
  return out;
}

ExprPtr ExpressionParser::primary() {
  const Token& token = now();
  switch (token.kind) {
    case Token::kName: {
      const std::string& t = token.text;
      if (t == "true" || t == "True") return literal(true);
      if (t == "false" || t == "False") return literal(false);
      if (t == "none" || t == "None") return literal(None{});
      ExprPtr out = node(Expr::kName, token.line);
      out->name = expect_name();
      return out;
    }
    case Token::kString: {
      std::string text;
      while (now().kind == Token::kString) text += tokens_[at_++].text;
      --at_;  // literal() takes the last one
      return literal(text_value(text, true));
    }
    case Token::kInteger: {
      int64_t value = 0;
      const char* last = token.text.data() + token.text.size();
      const auto [ptr, error] = std::from_chars(token.text.data(), last, value);
      if (error != std::errc()) site().unsupported("a number of more than 63 bits");
      return literal(value);
    }
    case Token::kFloat: {
      double value = 0;
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
      return literal(value);
    }
    default:
      return bracketed();
  }
}

ExprPtr ExpressionParser::bracketed() {
  const int line = now().line;
  if (take_op("(")) {
    if (take_op(")")) return node(Expr::kTuple, line);
    ExprPtr out = tuple_or_expression();
    expect_op(")");
    return out;
  }
  std::vector<ExprPtr> items;
  if (take_op("[")) {
    while (!take_op("]")) {
      if (!items.empty()) expect_op(",");
      if (take_op("]")) break;
      items.push_back(expression());
    }
    return node(Expr::kList, line, std::move(items));
  }
  if (take_op("{")) {
    while (!take_op("}")) {
      if (!items.empty()) expect_op(",");
      if (take_op("}")) break;
      items.push_back(expression());
      expect_op(":");
      items.push_back(expression());
    }
    return node(Expr::kDict, line, std::move(items));
  }
  site().bad("expected an expression, got {}", shown());
}

ExprPtr ExpressionParser::postfix(ExprPtr out) {
  for (;;) {
    const int line = now().line;
    if (take_op(".")) {
      if (now().kind == Token::kInteger) {
        out = node_of(Expr::kIndex, line, std::move(out), primary());
        continue;
      }
      out = node_of(Expr::kAttribute, line, std::move(out));
      out->name = expect_name();
    } else if (take_op("[")) {
      out = subscript(std::move(out), line);
    } else if (is_op("(")) {
      out = node_of(Expr::kCall, line, std::move(out));
      arguments(out.get());
    } else {
      return out;
    }
  }
}

ExprPtr ExpressionParser::subscript(ExprPtr object, int line) {
  ExprPtr parts[3];
  bool slice = false;
  for (int i = 0; i < 3; ++i) {
    if (!is_op(":") && !is_op("]")) parts[i] = expression();
    if (!take_op(":")) break;
    slice = true;
  }
  if (is_op(",")) site().unsupported("an index of several values");
  expect_op("]");
  if (slice) {
    return node_of(Expr::kSlice, line, std::move(object), std::move(parts[0]), std::move(parts[1]),
                   std::move(parts[2]));
  }
  if (parts[0] == nullptr) site().bad("expected an index, got none");
  return node_of(Expr::kIndex, line, std::move(object), std::move(parts[0]));
}

void ExpressionParser::arguments(Expr* call) {
  expect_op("(");
  for (bool first = true; !take_op(")"); first = false) {
    if (!first) expect_op(",");
    if (take_op(")")) break;
    if (is_op("*") || is_op("**")) site().unsupported("an argument list ('*')");
    if (now().kind == Token::kName && next().is(Token::kOperator, "=")) {
      std::string name = expect_name();
      ++at_;
      call->named.emplace_back(std::move(name), expression());
    } else {
      if (!call->named.empty()) site().bad("expected arguments with names last");
      call->args.push_back(expression());
    }
  }
  measure(call);
}

ExprPtr ExpressionParser::filters(ExprPtr out) {
  for (;;) {
    const int line = now().line;
    if (take_op("|")) {
      out = node_of(Expr::kFilter, line, std::move(out));
      out->name = expect_name();
      while (take_op(".")) out->name += "." + expect_name();
      if (is_op("(")) arguments(out.get());
    } else if (out != nullptr && is_word("is")) {
      out = test(std::move(out));
    } else if (out != nullptr && is_op("(")) {
      out = node_of(Expr::kCall, line, std::move(out));
      arguments(out.get());
    } else {
      return out;
    }
  }
}

ExprPtr ExpressionParser::test(ExprPtr value) {
  const int line = now().line;
  ++at_;
  const bool negated = take_word("not");
  ExprPtr out = node_of(Expr::kTest, line, std::move(value));
  out->name = expect_name();
  const bool begins_value = now().kind == Token::kName || now().kind == Token::kString ||
                            now().kind == Token::kInteger || now().kind == Token::kFloat ||
                            is_op("[") || is_op("{");
  if (is_op("(")) {
    arguments(out.get());
  } else if (begins_value && !is_word("else") && !is_word("or") && !is_word("and")) {
    if (is_word("is")) site().bad("expected no test of a test");
    // A condition or a comparison goes on behind the test.
    if (!is_word("if") && !is_word("in") && !is_word("not")) {
      out->args.push_back(postfix(primary()));
      measure(out.get());
    }
  }
  return negated ? node_of(Expr::kNot, line, std::move(out)) : std::move(out);
}

}  // namespace mamba::jinja
