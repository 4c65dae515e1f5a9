// SPDX-License-Identifier: Apache-2.0
// Packed documents, by brute force: every token once an epoch, and nothing across documents.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <random>

#include "base/json.h"
#include "support/expect_error.h"
#include "train/data_packing.h"
#include "train/eos_tokenizer.h"

namespace mamba {
namespace {

using test::EosTokenizer;
using test::ScratchFolder;

// Documents that differ from each other; some are empty, some have a prompt.
struct Written {
  std::vector<std::string> texts;
  std::vector<size_t> prompts;  // bytes without a loss

  Written(const std::string& path, int64_t count, int64_t longest, bool with_prompts) {
    std::mt19937_64 random(7);
    std::ofstream out(path, std::ios::binary);
    for (int64_t d = 0; d < count; ++d) {
      std::string text;
      const auto length = static_cast<int64_t>(random() % static_cast<uint64_t>(longest + 1));
      for (int64_t i = 0; i < length; ++i) {
        text += static_cast<char>('!' + (37 * d + i * (d % 5 + 1)) % 90);
      }
      const size_t prompt = with_prompts && d % 2 == 0 ? random() % (text.size() + 1) : 0;
      const Json json =
          prompt == 0 ? Json{{"text", text}}
                      : Json{{"prompt", text.substr(0, prompt)}, {"response", text.substr(prompt)}};
      out << json.dump() << "\n";
      texts.push_back(text);
      prompts.push_back(prompt);
    }
  }
};

struct Row {
  explicit Row(int64_t L) : ids(static_cast<size_t>(L), -7), targets(ids), documents(ids) {}
  DataRow view() { return {ids.data(), targets.data(), documents.data()}; }
  std::vector<int32_t> ids, targets, documents;
};

// The pieces of a row: (tokens, targets) of each document id, checked for shape.
std::vector<std::pair<std::string, std::vector<int32_t>>> pieces_of(const Row& row) {
  std::vector<std::pair<std::string, std::vector<int32_t>>> pieces;
  bool padding = false;
  for (size_t t = 0; t < row.ids.size(); ++t) {
    if (row.ids[t] < 0) {
      padding = true;
      EXPECT_EQ(row.documents[t], -1);
      EXPECT_EQ(row.targets[t], -1);
      continue;
    }
    EXPECT_FALSE(padding) << "a token behind padding";
    const auto number = static_cast<size_t>(row.documents[t]);
    EXPECT_TRUE(number == pieces.size() || number + 1 == pieces.size());
    if (number == pieces.size()) pieces.emplace_back();
    pieces.back().first += static_cast<char>(row.ids[t]);
    pieces.back().second.push_back(row.targets[t]);
  }
  return pieces;
}

struct Variant {
  bool eos, prompts;
  DataOrder order;
  int64_t seq_len, longest;
};

class PackingTest : public testing::TestWithParam<Variant> {};

// What one epoch must hold: each piece of each document with its targets, as often as it occurs.
std::multimap<std::string, std::vector<int32_t>> expected_pieces(const Written& written,
                                                                 const Variant& v) {
  std::multimap<std::string, std::vector<int32_t>> all;
  const auto L = static_cast<size_t>(v.seq_len);
  for (size_t d = 0; d < written.texts.size(); ++d) {
    const std::string& text = written.texts[d];
    for (size_t at = 0; at < text.size(); at += L) {
      const std::string piece = text.substr(at, L);
      std::vector<int32_t> targets;
      for (size_t i = at; i < at + piece.size(); ++i) {
        int32_t target = i + 1 < text.size() ? text[i + 1] : (v.eos ? 256 : -1);
        if (i + 1 < written.prompts[d]) target = -1;
        targets.push_back(target);
      }
      const bool any =
          std::any_of(targets.begin(), targets.end(), [](int32_t t) { return t >= 0; });
      if (any) all.emplace(piece, targets);
    }
  }
  return all;
}

TEST_P(PackingTest, HoldsEveryDocumentOnceAnEpoch) {
  const Variant v = GetParam();
  const ScratchFolder folder;
  const Written written(folder / "d.jsonl", 300, v.longest, v.prompts);
  const EosTokenizer with_eos;
  const std::unique_ptr<Tokenizer> bytes = make_tokenizer("bytes");
  const Tokenizer& tokenizer = v.eos ? static_cast<const Tokenizer&>(with_eos) : *bytes;
  const TokenStream stream({folder / "d.jsonl"}, tokenizer, "--data");
  DocumentPacking packing(stream, v.seq_len, v.order, 5);
  const auto expected = expected_pieces(written, v);
  EXPECT_EQ(packing.pieces(), static_cast<int64_t>(expected.size()));

  Row row(v.seq_len);
  std::vector<Row> rows;  // of all epochs
  std::vector<std::string> firsts;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    SCOPED_TRACE(epoch);
    std::multimap<std::string, std::vector<int32_t>> seen;
    int64_t inputs = 0, targets = 0, epoch_rows = 0;
    size_t used = 0;  // of the row before
    while (seen.size() < expected.size()) {
      packing.read(static_cast<int64_t>(rows.size()), row.view());
      rows.push_back(row);
      const auto pieces = pieces_of(row);
      ASSERT_FALSE(pieces.empty());
      if (epoch_rows == 0) firsts.push_back(pieces.front().first);
      // The first piece would not have fitted into the row before.
      EXPECT_TRUE(epoch_rows == 0 ||
                  used + pieces.front().first.size() > static_cast<size_t>(v.seq_len));
      ++epoch_rows;
      used = 0;
      for (const auto& [text, piece_targets] : pieces) {
        used += text.size();
        seen.emplace(text, piece_targets);
        inputs += static_cast<int64_t>(text.size());
        targets += std::count_if(piece_targets.begin(), piece_targets.end(),
                                 [](int32_t t) { return t >= 0; });
      }
    }
    const auto sorted = [](const std::multimap<std::string, std::vector<int32_t>>& all) {
      std::vector<std::pair<std::string, std::vector<int32_t>>> list(all.begin(), all.end());
      std::sort(list.begin(), list.end());
      return list;
    };
    EXPECT_TRUE(sorted(seen) == sorted(expected));
    EXPECT_EQ(inputs, packing.inputs());
    EXPECT_EQ(targets, packing.targets());
    if (epoch > 0) continue;
    EXPECT_EQ(epoch_rows, packing.rows());
    EXPECT_DOUBLE_EQ(packing.padding(), 1 - double(inputs) / double(epoch_rows * v.seq_len));
  }
  EXPECT_EQ(firsts[0] == firsts[1] && firsts[1] == firsts[2], v.order == DataOrder::kSequential);

  // From anywhere, also backwards and without document ids.
  for (const size_t from : {rows.size() - 1, rows.size() / 2, size_t{0}, rows.size() / 3}) {
    DocumentPacking again(stream, v.seq_len, v.order, 5);
    EXPECT_EQ(again.rows(), packing.rows());
    for (size_t i = from; i < std::min(rows.size(), from + 20); ++i) {
      Row other(v.seq_len);
      again.read(static_cast<int64_t>(i), {other.ids.data(), other.targets.data(), nullptr});
      ASSERT_TRUE(other.ids == rows[i].ids && other.targets == rows[i].targets) << i;
      packing.read(static_cast<int64_t>(i), other.view());
      ASSERT_TRUE(other.documents == rows[i].documents);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PackingTest,
                         testing::Values(Variant{true, false, DataOrder::kShuffled, 32, 40},
                                         Variant{false, false, DataOrder::kShuffled, 32, 40},
                                         Variant{true, true, DataOrder::kShuffled, 20, 70},
                                         Variant{false, true, DataOrder::kShuffled, 20, 70},
                                         Variant{true, true, DataOrder::kSequential, 7, 30},
                                         Variant{false, false, DataOrder::kSequential, 1, 5},
                                         Variant{true, false, DataOrder::kShuffled, 1, 5},
                                         Variant{true, false, DataOrder::kShuffled, 512, 40}));

TEST(DocumentPacking, LeavesOutWhatHasNoTarget) {
  const ScratchFolder folder;
  std::ofstream(folder / "d.jsonl") << R"({"text": "a"}
{"prompt": "abc", "response": ""}
{"text": "bc"}
)";
  const TokenStream stream({folder / "d.jsonl"}, *make_tokenizer("bytes"), "--data");
  const DocumentPacking packing(stream, 8, DataOrder::kShuffled, 1);
  EXPECT_EQ(packing.pieces(), 1);
  EXPECT_EQ(packing.left_out(), 2);
  EXPECT_EQ(packing.targets(), 1);
}

}  // namespace
}  // namespace mamba
