// SPDX-License-Identifier: Apache-2.0
// The parser of expressions: recursive descent by Jinja's grammar, with limits on depth.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/jinja_ast.h"
#include "formats/jinja_lexer.h"

namespace mamba::jinja {

// Counts the levels of a recursion for as long as it lives.
class Level {
 public:
  Level(int* depth, int limit, const Site& site) : depth_(depth) {
    if (++*depth_ > limit) {
      --*depth_;
      site.bad("expected at most {} nested expressions or blocks, got more", limit);
    }
  }
  ~Level() { --*depth_; }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

 private:
  int* depth_;
};

// Reads expressions from a list of tokens; the parser of statements builds on it.
class ExpressionParser {
 public:
  explicit ExpressionParser(std::string_view source) : tokens_(tokenize(source)) {}

 protected:
  const Token& now() const { return tokens_[at_]; }
  const Token& next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Site site() const { return {now().line, nullptr}; }
  bool is_op(std::string_view op) const { return now().is(Token::kOperator, op); }
  bool is_word(std::string_view word) const { return now().is(Token::kName, word); }
  bool take_op(std::string_view op) {
    if (!is_op(op)) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    if (!is_word(word)) return false;
    ++at_;
    return true;
  }
  // The current token as it may stand in a message.
  std::string shown() const;
  void expect_op(std::string_view op) {
    if (!take_op(op)) site().bad("expected '{}', got {}", op, shown());
  }
  void expect_block_end() {
    if (now().kind != Token::kBlockEnd) site().bad("expected the end of the tag, got {}", shown());
    ++at_;
  }
  std::string expect_name() {
    if (now().kind != Token::kName) site().bad("expected a name, got {}", shown());
    return tokens_[at_++].text;
  }

  // Takes the arguments into the tree, which gets as deep as they are.
  ExprPtr node(Expr::Kind kind, int line, std::vector<ExprPtr> args = {}) const;
  void measure(Expr* expr) const;
  template <class... Args>
  ExprPtr node_of(Expr::Kind kind, int line, Args... args) const {
    std::vector<ExprPtr> list;
    (list.push_back(std::move(args)), ...);
    return node(kind, line, std::move(list));
  }
  ExprPtr tuple_or_expression(bool with_condition = true);
  ExprPtr expression();
  ExprPtr or_expression();
  ExprPtr and_expression();
  ExprPtr not_expression();
  ExprPtr comparison();
  // Left-associative operators of one level.
  template <class Next>
  ExprPtr binary(std::initializer_list<const char*> operators, Next operand) {
    ExprPtr left = operand();
    for (;;) {
      const int line = now().line;
      const char* found = nullptr;
      for (const char* op : operators) {
        if (is_op(op)) found = op;
      }
      if (found == nullptr) return left;
      ++at_;
      ExprPtr right = operand();
      left = node_of(Expr::kBinary, line, std::move(left), std::move(right));
      left->name = found;
    }
  }
  ExprPtr sum();
  ExprPtr concatenation();
  ExprPtr product();
  ExprPtr unary(bool with_filters);
  ExprPtr literal(Value value);
  ExprPtr primary();
  ExprPtr bracketed();
  ExprPtr postfix(ExprPtr out);
  ExprPtr subscript(ExprPtr object, int line);
  void arguments(Expr* call);
  // Filters, tests and calls behind a value. Null: the filters of a {% set %} block.
  ExprPtr filters(ExprPtr out);
  ExprPtr test(ExprPtr value);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  static constexpr int kMaxDepth = 200;  // of an expression, and of parentheses
};

}  // namespace mamba::jinja
