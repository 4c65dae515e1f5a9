// SPDX-License-Identifier: Apache-2.0
// The parser of statements.
#include <algorithm>
#include <array>

#include "base/json.h"
#include "formats/jinja_expressions.h"

namespace mamba::jinja {
namespace {

constexpr int kMaxBlockDepth = 60;  // of statements in statements

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  Block run() {
    Block block = statements({});
    if (now().kind != Token::kEnd) site().bad("expected no '{}' here", tag_name());
    return block;
  }

 private:
  // Of the tag that begins here.
  std::string tag_name() const {
    return now().kind == Token::kBlockBegin ? printable(next().text, 30) : "end";
  }

  // Statements up to one of the tags `until`, whose "{%" is then the current token; without any, up
  // to the end.
  Block statements(const std::vector<std::string_view>& until) {
    const Level level(&block_depth_, kMaxBlockDepth, site());
    const int line = now().line;
    Block block;
    for (;;) {
      const Token& token = now();
      if (token.kind == Token::kEnd) {
        if (until.empty()) return block;
        Site{line, nullptr}.bad("expected '{{% {} %}}', got the end of the template", until.back());
      }
      if (token.kind == Token::kBlockBegin) {
        const std::string& name = next().text;
        if (std::find(until.begin(), until.end(), name) != until.end()) return block;
        ++at_;
        statement(&block);
        continue;
      }
      auto out = make(token.kind == Token::kData ? Statement::kText : Statement::kPrint);
      ++at_;
      if (token.kind == Token::kData) {
        out->text = Text(token.text, true);
      } else {
        out->expr = tuple_or_expression();
        if (now().kind != Token::kPrintEnd) site().bad("expected '}}}}', got {}", shown());
        ++at_;
      }
      block.push_back(std::move(out));
    }
  }

  std::unique_ptr<Statement> make(Statement::Kind kind) const {
    auto out = std::make_unique<Statement>();
    out->kind = kind;
    out->line = now().line;
    return out;
  }

  // One statement behind "{%"; its end tag is taken with it.
  void statement(Block* block) {
    const Site here = site();
    const std::string name = now().kind == Token::kName ? now().text : "";
    if (name == "if") {
      block->push_back(if_statement());
    } else if (name == "for") {
      block->push_back(for_statement());
    } else if (name == "set") {
      block->push_back(set_statement());
    } else if (name == "macro") {
      block->push_back(macro_statement());
    } else if (name == "generation") {
      block->push_back(generation_statement());
    } else if (name == "break" || name == "continue") {
      if (loops_ == 0) here.bad("expected '{}' within a loop", name);
      block->push_back(make(name == "break" ? Statement::kBreak : Statement::kContinue));
      ++at_;
      expect_block_end();
    } else {
      unknown_tag(name, here);
    }
  }

  [[noreturn]] void unknown_tag(const std::string& name, const Site& here) const {
    static constexpr std::array<std::string_view, 12> kOfJinja = {
        "include", "import", "from",  "extends", "block", "call",
        "with",    "filter", "trans", "do",      "debug", "autoescape"};
    if (std::find(kOfJinja.begin(), kOfJinja.end(), name) != kOfJinja.end()) {
      here.unsupported("the tag '{}'", name);
    }
    here.bad("expected a tag like if, for, set or macro, got {}", shown());
  }

  void end(std::string_view) {
    at_ += 2;  // "{%" and the name, which statements() has seen
    expect_block_end();
  }

  std::unique_ptr<Statement> if_statement() {
    auto out = make(Statement::kIf);
    do {
      at_ += out->branches.empty() ? 1 : 2;
      ExprPtr condition = tuple_or_expression();
      expect_block_end();
      Block body = statements({"elif", "else", "endif"});
      out->branches.emplace_back(std::move(condition), std::move(body));
    } while (next().text == "elif");
    if (next().text == "else") {
      end("else");
      out->body = statements({"endif"});
    }
    end("endif");
    return out;
  }

  std::vector<std::string> targets() {
    std::vector<std::string> names;
    const bool parenthesis = take_op("(");
    do {
      if (!names.empty() && (now().kind != Token::kName)) break;  // a comma at the end
      names.push_back(expect_name());
    } while (take_op(","));
    if (parenthesis) expect_op(")");
    return names;
  }

  std::unique_ptr<Statement> for_statement() {
    auto out = make(Statement::kFor);
    ++at_;
    out->names = targets();
    if (!take_word("in")) site().bad("expected 'in', got {}", shown());
    out->expr = tuple_or_expression(false);
    if (take_word("if")) out->condition = expression();
    if (is_word("recursive")) site().unsupported("a recursive loop");
    expect_block_end();
    ++loops_;
    out->body = statements({"else", "endfor"});
    --loops_;
    if (next().text == "else") {
      end("else");
      out->other = statements({"endfor"});
    }
    end("endfor");
    return out;
  }

  std::unique_ptr<Statement> set_statement() {
    auto out = make(Statement::kSet);
    ++at_;
    if (now().kind == Token::kName && next().is(Token::kOperator, ".")) {
      out->names.push_back(expect_name());
      ++at_;
      out->attribute = expect_name();
    } else {
      out->names = targets();
    }
    if (take_op("=")) {
      out->expr = tuple_or_expression();
      expect_block_end();
      return out;
    }
    out->kind = Statement::kSetBlock;
    if (out->names.size() != 1) site().bad("expected '=', got {}", shown());
    if (is_op("|")) out->expr = filters(nullptr);
    expect_block_end();
    out->body = statements({"endset"});
    end("endset");
    return out;
  }

  std::unique_ptr<Statement> macro_statement() {
    auto out = make(Statement::kMacro);
    if (block_depth_ > 1 && loops_ + macros_ > 0) site().unsupported("a macro in a loop or macro");
    ++at_;
    out->macro = std::make_unique<Macro>();
    Macro& macro = *out->macro;
    macro.line = out->line;
    macro.name = expect_name();
    expect_op("(");
    while (!take_op(")")) {
      if (!macro.parameters.empty()) expect_op(",");
      std::string name = expect_name();
      ExprPtr value = take_op("=") ? expression() : nullptr;
      if (value == nullptr && !macro.parameters.empty() && macro.parameters.back().second) {
        site().bad("expected a default value for '{}' too", name);
      }
      macro.parameters.emplace_back(std::move(name), std::move(value));
    }
    expect_block_end();
    const int loops = std::exchange(loops_, 0);
    ++macros_;
    macro.body = statements({"endmacro"});
    --macros_;
    loops_ = loops;
    end("endmacro");
    return out;
  }

  // Marks answers for training on them; to rendering it is a scope.
  std::unique_ptr<Statement> generation_statement() {
    auto out = make(Statement::kScope);
    ++at_;
    expect_block_end();
    const int loops = std::exchange(loops_, 0);
    out->body = statements({"endgeneration"});
    loops_ = loops;
    end("endgeneration");
    return out;
  }

  int block_depth_ = 0, loops_ = 0, macros_ = 0;
};

}  // namespace

Block parse(std::string_view source) {
  if (source.size() > (size_t{1} << 20)) {
    fail(ErrorCode::kBadFile, "[chat template] expected at most 1 MiB of template, got {} bytes",
         source.size());
  }
  return Parser(source).run();
}

}  // namespace mamba::jinja
