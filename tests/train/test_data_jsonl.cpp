// SPDX-License-Identifier: Apache-2.0
// Lines of JSONL: the forms that are read, and what is said of others.
#include <gtest/gtest.h>

#include "mamba/error.h"
#include "train/data_jsonl.h"

namespace mamba {
namespace {

std::string told(const std::string& line) {
  std::string all;
  const JsonlDocument document = parse_jsonl_line(line, "f.jsonl, line 3");
  for (const TextPiece& piece : document.pieces) all += (piece.scored ? "+" : "-") + piece.text;
  for (const ChatMessage& message : document.messages) {
    all += message.role + ":" + message.content + ";";
  }
  return all;
}

TEST(Jsonl, ReadsEveryForm) {
  EXPECT_EQ(told(R"({"text": "a\nb"})"), "+a\nb");
  EXPECT_EQ(told(R"({"id": [1, {}], "text": ""})"), "+");
  EXPECT_EQ(told(R"({"prompt": "q", "response": "r"})"), "-q+r");
  EXPECT_EQ(told(R"({"completion": "r", "prompt": "q", "score": null})"), "-q+r");
  EXPECT_EQ(told(R"({"text": "\ud83d\ude00"})"), "+\xf0\x9f\x98\x80");
  EXPECT_EQ(told(R"({"messages": [{"role": "user", "content": "x", "name": "n"},)"
                 R"({"content": "y\n", "role": "assistant"}], "id": 3})"),
            "user:x;assistant:y\n;");
  EXPECT_EQ(told(" \t\r"), "");
  EXPECT_EQ(told(""), "");
}

TEST(Jsonl, SaysWhatIsWrongAndWhere) {
  struct Wrong {
    std::string line;
    std::vector<std::string> parts;
  };
  const std::vector<Wrong> all = {
      {"{\"text\": \"a\"", {"byte"}},
      {"{\"text\": \"\xff\"}", {"byte"}},
      {R"({"text": "\ud800"})", {"byte"}},
      {R"({"text": "a"} {"text": "b"})", {"byte"}},
      {R"({"text": "a", "text": "b"})", {"text", "again"}},
      {std::string("{\"text\": \"a\"}\0", 14), {"zero byte"}},
      {"oops", {"byte"}},
      {"[\"a\"]", {"one JSON object a line"}},
      {"\"a\"", {"one JSON object a line"}},
      {"{}", {"got no key"}},
      {R"({"body": "a", "title": "b"})", {"the keys body, title", "prompt"}},
      {R"({"text": 1})", {"text", "1"}},
      {R"({"text": null})", {"text", "null"}},
      {R"({"text": ["a"]})", {"text"}},
      {R"({"prompt": "a"})", {"the keys prompt"}},
      {R"({"response": "a"})", {"the keys response"}},
      {R"({"response": "a", "completion": "b"})", {"response, completion"}},
      {R"({"prompt": "a", "response": "b", "completion": "c"})", {"prompt, response, completion"}},
      {R"({"text": "a", "prompt": "b"})", {"text, prompt"}},
      {R"({"prompt": "a", "response": {}})", {"response"}},
      {R"({"messages": "a"})", {"messages", "a list"}},
      {R"({"messages": [{"role": "user", "content": "a"}]})", {"answer of the assistant"}},
      {R"({"messages": [], "text": "a"})", {"text, messages"}},
      {R"({"messages": [], "prompt": "a"})", {"prompt, messages"}},
      {std::string(200, '['), {"64"}},
      {"{\"text\": \"" + std::string(kMaxJsonlLine, 'x') + "\"}", {"64 MiB"}},
  };
  for (const Wrong& wrong : all) {
    SCOPED_TRACE(wrong.line.substr(0, 60));
    try {
      parse_jsonl_line(wrong.line, "f.jsonl, line 3");
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.code(), ErrorCode::kBadFile);
      EXPECT_EQ(message.find("[f.jsonl, line 3"), 0u) << message;
      for (const std::string& part : wrong.parts) {
        EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
      }
    }
  }
}

TEST(Jsonl, CutsFilesAtLines) {
  const std::string text =
      "\xef\xbb\xbf"
      "a\r\nbb\n\n\nccc";
  for (size_t bytes = 0; bytes < 20; ++bytes) {
    std::vector<std::string> lines;
    std::vector<int64_t> numbers;
    for (const LineBlock& block : cut_lines(text, bytes)) {
      std::string_view rest = block.text;
      for (int64_t line = block.first_line; !rest.empty(); ++line) {
        lines.emplace_back(next_line(&rest));
        numbers.push_back(line);
      }
    }
    EXPECT_EQ(lines, (std::vector<std::string>{"a", "bb", "", "", "ccc"})) << bytes;
    EXPECT_EQ(numbers, (std::vector<int64_t>{1, 2, 3, 4, 5})) << bytes;
  }
  EXPECT_TRUE(cut_lines("", 10).empty());
}

}  // namespace
}  // namespace mamba
