// SPDX-License-Identifier: Apache-2.0
// Token streams over files of all kinds: their tokens, documents and losses.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <set>

#include "base/check.h"
#include "base/json.h"
#include "support/expect_error.h"
#include "train/data_stream.h"
#include "train/eos_tokenizer.h"

namespace mamba {
namespace {

using test::EosTokenizer;
using test::fails_with;
using test::ScratchFolder;

void write(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

std::string text_of(const TokenStream& stream, int64_t begin, int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  stream.read(begin, count, ids.data());
  return std::string(ids.begin(), ids.end());
}

// Two bytes a token: any tokenizer that is not that of bytes is encoded at once.
class PairTokenizer final : public Tokenizer {
 public:
  const std::string& name() const override { return name_; }
  int64_t vocab_size() const override { return 65536; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i + 1 < text.size(); i += 2) ids.push_back(text[i] * 256 + text[i + 1]);
    return ids;
  }
  std::string token_bytes(int32_t id) const override {
    return {static_cast<char>(id / 256), static_cast<char>(id % 256)};
  }

 private:
  std::string name_ = "pairs";
};

TEST(TokenStream, JoinsFilesInTheOrderOfFoldersAndPaths) {
  const ScratchFolder folder;
  write(folder / "texts/b.txt", "BBB");
  write(folder / "texts/a/z.txt", "az");
  write(folder / "texts/a.txt", "a");
  write(folder / "texts/empty.txt", "");
  write(folder / "texts/.hidden", "no");
  write(folder / "texts/.git/config", "no");
  write(folder / "first.txt", "1st");
  const TokenStream stream({folder / "first.txt", folder / "texts"}, *make_tokenizer("bytes"),
                           "--data");
  EXPECT_EQ(stream.files().size(), 5u);
  ASSERT_EQ(stream.size(), 9);
  EXPECT_EQ(text_of(stream, 0, 9), "1staazBBB");  // a.txt < a/z.txt
  // Reads within and across files.
  for (int64_t begin = 0; begin < 9; ++begin) {
    for (int64_t count = 0; begin + count <= 9; ++count) {
      EXPECT_EQ(
          text_of(stream, begin, count),
          std::string("1staazBBB").substr(static_cast<size_t>(begin), static_cast<size_t>(count)));
    }
  }
}

TEST(TokenStream, KeepsBytesAbove127) {
  const ScratchFolder folder;
  write(folder / "t", "\xff\x80z");
  const TokenStream stream({folder / "t"}, *make_tokenizer("bytes"), "--data");
  std::vector<int32_t> ids(3);
  stream.read(0, 3, ids.data());
  EXPECT_EQ(ids, (std::vector<int32_t>{255, 128, 'z'}));
}

// Scored bytes in upper case, the EOS as "$".
std::string scores_of(const TokenStream& stream) {
  const auto count = static_cast<size_t>(stream.size());
  std::vector<int32_t> ids(count), targets(count);
  stream.read(0, stream.size(), ids.data());
  stream.read_targets(0, stream.size(), targets.data());
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    const char c = ids[i] == 256 ? '$' : static_cast<char>(ids[i]);
    EXPECT_EQ(targets[i] >= 0 ? targets[i] : ids[i], ids[i]);
    text += targets[i] >= 0 ? static_cast<char>(std::toupper(c)) : c;
  }
  return text;
}

TEST(TokenStream, ReadsConversationsAsDocuments) {
  const ScratchFolder folder;
  const std::string talk = R"({"messages": [{"role": "user", "content": "hi"},)"
                           R"({"role": "assistant", "content": "yo"}]})";
  write(folder / "a.jsonl", talk + "\n\n{\"text\": \"ab\"}\n" + talk + "\n");
  const EosTokenizer with_eos;
  const ConversationEncoder plain(with_eos, "", ""), chatml(with_eos, "", "chatml");
  const TokenStream one({folder / "a.jsonl"}, with_eos, "--data", {"", 1, &plain});
  EXPECT_EQ(scores_of(one), "User: hi\nAssistant: YO\n$AB$User: hi\nAssistant: YO\n$");
  EXPECT_EQ(one.document_count(), 3);
  const TokenStream other({folder / "a.jsonl"}, with_eos, "--data", {"", 2, &chatml});
  EXPECT_EQ(scores_of(other).substr(0, 69),
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nYO<|IM_END|>\nAB$<");
  EXPECT_NE(one.fingerprint(), other.fingerprint());
  // Bytes have no EOS: the text that ends an answer in chat does it.
  const auto bytes = make_tokenizer("bytes");
  const ConversationEncoder of_bytes(*bytes, "", "");
  write(folder / "b.jsonl", talk);
  const TokenStream last({folder / "b.jsonl"}, *bytes, "--data", {"", 1, &of_bytes});
  EXPECT_EQ(scores_of(last), "User: hi\nAssistant: YO\nUSER:");
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"c.jsonl, line 2", "message 1", "'bot'"}, [&] {
    write(folder / "c.jsonl", talk + "\n{\"messages\": [{\"role\": \"bot\", \"content\": \"\"}]}");
    TokenStream({folder / "c.jsonl"}, with_eos, "--data", {"", 1, &plain});
  }));
}

TEST(TokenStream, EncodesWithOtherTokenizers) {
  const ScratchFolder folder;
  write(folder / "a", "abcd");
  write(folder / "b", "ef");
  const TokenStream stream({folder.path()}, PairTokenizer(), "--data");
  ASSERT_EQ(stream.size(), 3);
  std::vector<int32_t> ids(2);
  stream.read(1, 2, ids.data());
  EXPECT_EQ(ids, (std::vector<int32_t>{'c' * 256 + 'd', 'e' * 256 + 'f'}));
}

TEST(TokenStream, FingerprintTellsTextsApart) {
  const ScratchFolder folder;
  std::string text(3'000'000, 'x');
  write(folder / "a", text);
  text.back() = 'y';
  write(folder / "b", text);
  text.back() = 'x';
  write(folder / "c", text.substr(1));
  const auto tokenizer = make_tokenizer("bytes");
  std::set<std::string> prints;
  for (const char* name : {"a", "b", "c"}) {
    prints.insert(TokenStream({folder / name}, *tokenizer, "--data").fingerprint());
  }
  EXPECT_EQ(prints.size(), 3u);
  EXPECT_EQ(TokenStream({folder / "a"}, *tokenizer, "--data").fingerprint(),
            TokenStream({folder / "a"}, *tokenizer, "--data").fingerprint());
}

TEST(TokenStream, SaysWhatIsWrongWithItsFiles) {
  const ScratchFolder folder;
  const auto tokenizer = make_tokenizer("bytes");
  std::filesystem::create_directory(folder / "nothing");
  write(folder / "empty", "");
  const auto open = [&](const std::string& name) {
    return [&, name] { TokenStream({folder / name}, *tokenizer, "--data"); };
  };
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"missing", "found nothing there"}, open("missing")));
  EXPECT_TRUE(
      fails_with(ErrorCode::kBadFile, {"--data", "nothing", "got none in it"}, open("nothing")));
  EXPECT_TRUE(
      fails_with(ErrorCode::kBadFile, {"--data", "empty", "without a token"}, open("empty")));
}

std::vector<int32_t> all_of(const TokenStream& stream) {
  std::vector<int32_t> ids(static_cast<size_t>(stream.size()));
  stream.read(0, stream.size(), ids.data());
  return ids;
}

std::vector<int32_t> targets_of(const TokenStream& stream) {
  std::vector<int32_t> ids(static_cast<size_t>(stream.size()));
  stream.read_targets(0, stream.size(), ids.data());
  return ids;
}

std::vector<int32_t> bytes_of(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(c == '$' ? 256 : static_cast<unsigned char>(c));
  return ids;
}

template <class T>
std::string raw(const std::vector<T>& ids) {
  return std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(T));
}

TEST(TokenStream, EndsDocumentsOfTextWithEos) {
  const ScratchFolder folder;
  write(folder / "a",
        "ab\x04\x04"
        "c");
  write(folder / "b", "de\x04");
  write(folder / "c", "");
  for (const int64_t vocabulary : {257, 70000}) {  // ids of 2 and of 4 bytes
    const TokenStream stream({folder.path()}, EosTokenizer(vocabulary), "--data");
    EXPECT_EQ(all_of(stream), bytes_of("ab$$c$de$"));
    EXPECT_EQ(stream.documents(), (std::vector<int64_t>{0, 3, 4, 6, 9}));
    EXPECT_TRUE(stream.all_scored());
    EXPECT_EQ(targets_of(stream), all_of(stream));
  }
}

TEST(TokenStream, ReadsJsonlOfBothForms) {
  const ScratchFolder folder;
  write(folder / "a.jsonl",
        "\xef\xbb\xbf{\"text\": \"one\", \"id\": 7}\r\n"
        "\n"
        "{\"prompt\": \"ab\", \"response\": \"c\"}\n"
        "{\"text\": \"\"}\n"
        "{\"completion\": \"\\u00e9\", \"prompt\": \"\"}\n"
        "{\"prompt\": \"p\", \"response\": \"\"}");
  const TokenStream with_eos({folder / "a.jsonl"}, EosTokenizer(), "--data");
  EXPECT_EQ(all_of(with_eos), bytes_of("one$abc$\xc3\xa9$p$"));
  EXPECT_EQ(with_eos.documents(), (std::vector<int64_t>{0, 4, 8, 11, 13}));
  std::vector<int32_t> want = bytes_of("one$abc$\xc3\xa9$p$");
  want[4] = want[5] = want[11] = -1;
  EXPECT_EQ(targets_of(with_eos), want);
  EXPECT_EQ(with_eos.scored(), 10);
  const TokenStream bytes({folder / "a.jsonl"}, *make_tokenizer("bytes"), "--data");
  EXPECT_EQ(all_of(bytes), bytes_of("oneabc\xc3\xa9p"));
  EXPECT_EQ(bytes.documents(), (std::vector<int64_t>{0, 3, 6, 8, 9}));
  EXPECT_EQ(bytes.scored(), 6);
}

TEST(TokenStream, DoesNotDependOnThreadsOrBlocks) {
  const ScratchFolder folder;
  std::string lines, text;
  for (int i = 0; i < 60000; ++i) {  // several blocks
    const std::string word = std::to_string(i * 7919 % 100003);
    lines += i % 3 == 0 ? "{\"prompt\": \"" + word + "\", \"response\": \"" + word + "!\"}\n"
                        : "{\"text\": \"" + word + std::string(i % 50, 'x') + "\"}\n";
    text += word + (i % 100 == 0 ? "\x04" : " ") + std::string(i % 40, 'y');
  }
  write(folder / "a.jsonl", lines);
  write(folder / "b.txt", text);
  const TokenStream one({folder.path()}, EosTokenizer(), "--data", {"", 1});
  const TokenStream four({folder.path()}, EosTokenizer(), "--data", {"", 4});
  ASSERT_GT(lines.size(), size_t{2} << 20);
  ASSERT_GT(text.size(), size_t{1} << 20);
  EXPECT_EQ(one.document_count(), 60000 + 601);
  EXPECT_TRUE(all_of(one) == all_of(four));
  EXPECT_TRUE(targets_of(one) == targets_of(four));
  EXPECT_TRUE(one.documents() == four.documents());
  EXPECT_EQ(one.fingerprint(true), four.fingerprint(true));
  // The first wrong line is told, whatever thread meets another one first.
  const size_t first = lines.find('\n', 100000) + 1;
  const auto number = std::count(lines.begin(), lines.begin() + static_cast<long>(first), '\n') + 1;
  lines.insert(first, "{\"texts\": 1}\n");
  lines += "oops\n";
  write(folder / "a.jsonl", lines);
  EXPECT_TRUE(
      fails_with(ErrorCode::kBadFile, {"a.jsonl, line " + std::to_string(number), "texts"}, [&] {
        TokenStream({folder / "a.jsonl"}, EosTokenizer(), "--data", {"", 4});
      }));
}

TEST(TokenStream, MapsTokenFiles) {
  const ScratchFolder folder;
  write(folder / "a.bin", raw<uint16_t>({1, 2, 256, 256, 3}));
  const TokenStream narrow({folder / "a.bin"}, EosTokenizer(), "--data");
  EXPECT_EQ(all_of(narrow), (std::vector<int32_t>{1, 2, 256, 256, 3}));
  EXPECT_EQ(narrow.documents(), (std::vector<int64_t>{0, 3, 4, 5}));
  write(folder / "b.bin", raw<uint32_t>({1, 69999}));
  const TokenStream wide({folder / "b.bin"}, EosTokenizer(70000), "--data", {"uint32", 1});
  EXPECT_EQ(all_of(wide), (std::vector<int32_t>{1, 69999}));
  // Next to other kinds, with the description of one not taken for data.
  const EosTokenizer tokenizer(70000);
  write(folder / "c/a.bin", raw<uint32_t>({7, 256}));
  write(folder / "c/a.json", R"({"dtype": "uint32", "count": 2, "vocab_size": 70000,
      "tokenizer": "x", "tokenizer_hash": ")" +
                                 fmt::format("{:016x}", tokenizer.fingerprint()) +
                                 R"(", "text_bytes": 1, "documents": 1})");
  write(folder / "c/b.json", "{\"text\": \"x\"}");
  write(folder / "c/c", "y");
  const TokenStream mixed({folder / "c"}, tokenizer, "--data");
  EXPECT_EQ(all_of(mixed), (std::vector<int32_t>{7, 256, 'x', 256, 'y', 256}));
  EXPECT_EQ(mixed.files().size(), 3u);
}

TEST(TokenStream, SaysWhatIsWrongWithTokenFiles) {
  const ScratchFolder folder;
  const std::string path = folder / "a.bin", info = folder / "a.json";
  const EosTokenizer tokenizer;
  const auto refuses = [&](std::initializer_list<std::string> parts,
                           const std::string& dtype = "") {
    return fails_with(ErrorCode::kBadFile, parts, [&] {
      TokenStream({path}, tokenizer, "--data", {dtype, 1});
    });
  };
  write(path, raw<uint16_t>({5, 257}));
  EXPECT_TRUE(refuses({"a.bin", "0..256", "got 257 at token 1", "uint16"}));
  write(path, raw<uint32_t>({5, 0xffffffffu}));
  EXPECT_TRUE(refuses({"a.bin", "got 4294967295 at token 1"}, "uint32"));
  write(path, raw<uint16_t>({5, 6, 7}));
  EXPECT_TRUE(refuses({"a.bin", "4 bytes", "got 6 bytes, 2 too many"}, "uint32"));
  write(path, "abc");
  EXPECT_TRUE(refuses({"a.bin", "2 bytes", "1 too many"}));
  write(path, "");
  EXPECT_TRUE(refuses({"--data", "a.bin", "without a token"}));
  write(path, raw<uint16_t>({5, 6, 7, 8}));
  const auto describe = [&](const Json& changes) {
    Json json = {{"dtype", "uint16"},
                 {"count", 4},
                 {"vocab_size", 257},
                 {"tokenizer", "eos"},
                 {"tokenizer_hash", fmt::format("{:016x}", tokenizer.fingerprint())},
                 {"text_bytes", 4},
                 {"documents", 1}};
    json.update(changes);
    write(info, json.dump());
  };
  describe({{"dtype", "uint8"}});
  EXPECT_TRUE(refuses({"a.json", "uint16 or uint32", "uint8"}));
  describe({{"count", 5}});
  EXPECT_TRUE(refuses({"10 bytes", "got 8"}));
  describe({{"tokenizer_hash", "0000000000000001"}});
  EXPECT_TRUE(refuses({"--tokenizer eos", "0000000000000001"}));
  describe(Json::object());
  EXPECT_TRUE(refuses({"--data-dtype", "uint16", "got uint32"}, "uint32"));
  EXPECT_EQ(TokenStream({path}, tokenizer, "--data", {"uint16", 1}).size(), 4);
  write(info, "[]");
  EXPECT_TRUE(refuses({"a.json"}));
}

TEST(TokenStream, FingerprintKnowsLossesAndDocuments) {
  const ScratchFolder folder;
  const auto tokenizer = make_tokenizer("bytes");
  write(folder / "a.jsonl", "{\"text\": \"abc\"}\n");
  write(folder / "b.jsonl", "{\"text\": \"a\"}\n{\"text\": \"bc\"}\n");
  write(folder / "c.jsonl", "{\"prompt\": \"a\", \"response\": \"bc\"}\n");
  const auto print = [&](const char* name, bool documents) {
    return TokenStream({folder / name}, *tokenizer, "--data").fingerprint(documents);
  };
  EXPECT_EQ(print("a.jsonl", false), print("b.jsonl", false));
  EXPECT_NE(print("a.jsonl", true), print("b.jsonl", true));
  EXPECT_NE(print("a.jsonl", false), print("c.jsonl", false));
}

}  // namespace
}  // namespace mamba
