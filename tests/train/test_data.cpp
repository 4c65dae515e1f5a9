// SPDX-License-Identifier: Apache-2.0
// Token streams over files, and the order of their windows.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "support/expect_error.h"
#include "train/data.h"

namespace mamba {
namespace {

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
      fails_with(ErrorCode::kBadFile, {"--data", "empty", "without a byte"}, open("empty")));
}

TEST(IndexPermutation, IsABijectionForEveryCount) {
  for (const int64_t count : {1, 2, 3, 4, 5, 7, 8, 16, 17, 63, 64, 65, 1000, 4095, 4096, 4097}) {
    const IndexPermutation permutation(count, 42, 7);
    std::vector<bool> seen(static_cast<size_t>(count), false);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = permutation(i);
      ASSERT_GE(j, 0);
      ASSERT_LT(j, count);
      ASSERT_FALSE(seen[static_cast<size_t>(j)]) << j << " twice of " << count;
      seen[static_cast<size_t>(j)] = true;
    }
  }
}

TEST(IndexPermutation, DependsOnSeedAndStream) {
  const IndexPermutation a(1000, 1, 0), b(1000, 2, 0), c(1000, 1, 1);
  int same_b = 0, same_c = 0, fixed = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    same_b += a(i) == b(i);
    same_c += a(i) == c(i);
    fixed += a(i) == i;
  }
  // Random permutations agree in one place on average; more than 10 has a chance below 1e-7.
  EXPECT_LE(same_b, 10);
  EXPECT_LE(same_c, 10);
  EXPECT_LE(fixed, 10);
}

TEST(IndexPermutation, SpreadsNeighbours) {
  const int64_t count = 10000;
  const IndexPermutation permutation(count, 3, 3);
  double sum = 0;
  for (int64_t i = 0; i + 1 < count; ++i) {
    sum += std::abs(static_cast<double>(permutation(i + 1) - permutation(i)));
  }
  // Of two random places: a third of the count, standard deviation of the mean 0.24 % of the count;
  // neighbours are not quite independent, 2 % is far outside of chance in any case.
  EXPECT_NEAR(sum / static_cast<double>(count - 1) / static_cast<double>(count), 1.0 / 3, 0.02);
}

TEST(WindowOrder, EachEpochCoversItsWindowsOnce) {
  const int64_t size = 1003, L = 10;
  WindowOrder order(size, L, DataOrder::kShuffled, 5, "--data");
  std::set<int64_t> offsets;
  int64_t sample = 0;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::vector<int64_t> begins;
    while (order.begin(sample), order.epoch() == epoch) begins.push_back(order.begin(sample++));
    std::sort(begins.begin(), begins.end());
    const int64_t offset = begins.front();
    offsets.insert(offset);
    ASSERT_LT(offset, L);
    ASSERT_EQ(static_cast<int64_t>(begins.size()), (size - 1 - offset) / L);
    for (size_t i = 0; i < begins.size(); ++i) {
      ASSERT_EQ(begins[i], offset + static_cast<int64_t>(i) * L);
    }
    ASSERT_LE(begins.back() + L + 1, size);
  }
  EXPECT_GT(offsets.size(), 5u);  // of 10 possible, in 20 epochs
}

TEST(WindowOrder, GoesOnAtAnySample) {
  WindowOrder whole(503, 7, DataOrder::kShuffled, 9, "--data");
  std::vector<int64_t> begins;
  for (int64_t s = 0; s < 400; ++s) begins.push_back(whole.begin(s));
  EXPECT_GE(whole.epoch(), 4);
  for (const int64_t from : {0, 1, 70, 71, 72, 143, 399}) {
    WindowOrder resumed(503, 7, DataOrder::kShuffled, 9, "--data");
    for (int64_t s = from; s < 400; ++s) {
      ASSERT_EQ(resumed.begin(s), begins[static_cast<size_t>(s)]) << "from " << from;
    }
    ASSERT_EQ(resumed.begin(0), begins[0]);  // and backwards
  }
}

TEST(WindowOrder, SequentialWalksTheStream) {
  WindowOrder order(32, 10, DataOrder::kSequential, 1, "--data");
  const std::vector<int64_t> want = {0, 10, 20, 0, 10, 20, 0};
  for (size_t s = 0; s < want.size(); ++s) {
    EXPECT_EQ(order.begin(static_cast<int64_t>(s)), want[s]);
  }
}

TEST(WindowOrder, TakesAStreamOfExactlyOneWindow) {
  WindowOrder order(11, 10, DataOrder::kShuffled, 1, "--data");
  for (int64_t s = 0; s < 5; ++s) EXPECT_EQ(order.begin(s), 0);
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"--data", "at least 11 tokens", "got 10"},
                         [] { WindowOrder(10, 10, DataOrder::kShuffled, 1, "--data"); }));
}

}  // namespace
}  // namespace mamba
