// SPDX-License-Identifier: Apache-2.0
// Files of tune: there and back, and everything that may be wrong with one.
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

#include "base/atomic_file.h"
#include "device/choice_file.h"
#include "support/expect_error.h"

namespace mamba::test {
namespace {

const Card kCard = {90, 132};

ChoiceFile some_file() {
  ChoiceFile file = {"NVIDIA H200", kCard, {}};
  ChoiceRow row = {};
  row.operation = Operation::kLinear;
  row.type = DType::kBF16;
  row.rows = {1, 1}, row.size = {2048, 4095}, row.depth = {512, 1023};
  row.winner = Way::kTensor;
  row.microseconds[static_cast<int>(Way::kTensor)] = 101.25f;
  row.microseconds[static_cast<int>(Way::kRow)] = 103.5f;
  file.rows.push_back(row);
  ChoiceRow step = {};
  step.operation = Operation::kMamba1Step;
  step.any_type = true;
  step.rows = {17, 32}, step.size = {0, kNoLimit}, step.depth = {1024, 2047};
  step.winner = Way::kSequence;
  file.rows.push_back(step);
  return file;
}

class ChoiceFiles : public testing::Test {
 protected:
  void expect_bad(const std::string& text, std::initializer_list<std::string> words) {
    write_file_atomic(path_, text);
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, words, [&] { read_choice_file(path_, kCard); }))
        << text.substr(0, 300);
  }
  // The good file with one text for another.
  std::string with(const std::string& from, const std::string& to) {
    std::string text = to_json_text(some_file());
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  }

  const ScratchFolder folder_;
  const std::string path_ = folder_ / choice_file_name(kCard);
};

TEST_F(ChoiceFiles, ThereAndBack) {
  const ChoiceFile file = some_file();
  write_file_atomic(path_, to_json_text(file));
  const ChoiceFile back = read_choice_file(path_, kCard);
  EXPECT_EQ(back.hardware, file.hardware);
  ASSERT_EQ(back.rows.size(), file.rows.size());
  EXPECT_EQ(to_json_text(back), to_json_text(file));
  EXPECT_EQ(back.rows[1].size.high, kNoLimit);
  EXPECT_TRUE(back.rows[1].any_type);
  EXPECT_EQ(choice_file_name(kCard), "choices-sm90-132.json");
}

TEST_F(ChoiceFiles, SourceHasTheRows) {
  const std::string text = to_source(some_file());
  for (const char* part :
       {"// NVIDIA H200\n", "constexpr ChoiceRow kRowsOf90x132[] = {",
        "Operation::kLinear, false, DType::kBF16, {1, 1}, {2048, 4095}",
        "Operation::kMamba1Step, true, DType::kF32, {17, 32}, kAny", "Way::kTensor",
        "103.5, 101.25", "constexpr CardRows kCards[] = {{{90, 132}, kRowsOf90x132, 2}};"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
}

TEST_F(ChoiceFiles, DamagedFilesAreRefused) {
  const std::string good = to_json_text(some_file());
  expect_bad("", {"choices-sm90"});
  expect_bad(good.substr(0, good.size() / 2), {"choices-sm90"});
  expect_bad("[]", {"expected a file of choices"});
  expect_bad("{\"format\": \"mamba-cpp-panels\"}", {"expected a file of choices"});
  expect_bad(with("\"version\": 1", "\"version\": 2"), {"expected version 1", "got 2"});
  expect_bad(with("\"9.0\"", "\"10.0\""), {"compute capability 9.0", "10.0"});
  expect_bad(with("132", "114"), {"132 multiprocessors", "114"});
  expect_bad(with("\"multiprocessors\": 132", "\"multiprocessors\": -1"), {"multiprocessors"});
  expect_bad(with("\"linear\"", "\"linaer\""), {"expected an operation", "linaer"});
  expect_bad(with("\"winner\": \"tensor\"", "\"winner\": \"fused_8\""),
             {"expected a way to run linear", "fused_8"});
  expect_bad(with("\"bf16\"", "\"bf61\""), {"expected a type", "bf61"});
  expect_bad(with("\"winner\": \"sequence\"", "\"winner\": 7"), {"winner"});
  expect_bad(with("\"tensor\": 101.25", "\"tensor\": -3"), {"tensor"});
  expect_bad(with("\"tensor\": 101.25", "\"tensor\": NaN"), {"tensor"});
  expect_bad(with("2048", "5000"), {"size", "[from, to]"});
  expect_bad(with("2048", "\"x\""), {"size", "[from, to]"});
  expect_bad(with("2048", "-2048"), {"size", "[from, to]"});
  expect_bad(with("2048", "1e300"), {"size", "[from, to]"});
}

TEST_F(ChoiceFiles, HugeFilesAreRefused) {
  expect_bad(std::string(size_t{5} << 20, ' '), {"choices-sm90"});
  expect_bad(std::string(1000, '['), {"choices-sm90"});
  std::string rows =
      "{\"format\": \"mamba-cpp-choices\", \"version\": 1, \"hardware\": \"x\", "
      "\"compute_capability\": \"9.0\", \"multiprocessors\": 132, \"rows\": [0";
  for (int i = 0; i < 5000; ++i) rows += ",0";
  expect_bad(rows + "]}", {"at most 4096 rows", "5001"});
  expect_bad(
      "{\"format\": \"mamba-cpp-choices\", \"version\": 1, \"hardware\": \"x\", "
      "\"compute_capability\": \"9.0\", \"multiprocessors\": 132, \"rows\": [0]}",
      {"rows as objects"});
}

}  // namespace
}  // namespace mamba::test
