// SPDX-License-Identifier: Apache-2.0
// Saved sessions: they go on exactly where they stopped, and only with their own model.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "formats/safetensors.h"
#include "generate/support.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::byte_model;
using test::fails_with;
using test::prefilled;
using test::prompt_ids;

GenerateOptions sampled(int64_t max_tokens, bool keep) {
  GenerateOptions options;
  options.sampling.seed = 7;
  options.max_tokens = max_tokens;
  options.keep_session = keep;
  return options;
}

// Everything that looks back, further than the sessions below are long.
GenerateOptions looking_back(int64_t max_tokens, bool keep) {
  GenerateOptions options = sampled(max_tokens, keep);
  options.sampling.repeat_penalty = 1.4;
  options.sampling.presence_penalty = 0.2;
  options.sampling.frequency_penalty = 0.3;
  options.sampling.repeat_last_n = 30;
  options.sampling.no_repeat_ngram = 2;
  options.sampling.top_k = 20;
  return options;
}

class EveryMixer : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(StateFile, EveryMixer, testing::Values("mamba1", "mamba2"));

TEST_P(EveryMixer, SavedSessionGoesOnExactlyWhereItStopped) {
  const test::ScratchFolder folder;
  Model model = byte_model(GetParam());
  Generator generator(model);
  Session session = prefilled(generator, prompt_ids(20));
  const std::vector<int32_t> whole = generator.generate(session, sampled(60, false))[0].ids;

  session = prefilled(generator, prompt_ids(20));
  std::vector<int32_t> parts = generator.generate(session, sampled(25, true))[0].ids;
  save_session(folder / "state", session, model);
  Model other = byte_model(GetParam());  // as another process would load it
  Generator later(other);
  Session loaded = load_session(folder / "state", other);
  EXPECT_EQ(loaded.tokens, 45);
  EXPECT_EQ(loaded.token_hash, session.token_hash);
  EXPECT_EQ(loaded.seed, 7u);
  EXPECT_TRUE(loaded.state == session.state);
  EXPECT_EQ(loaded.logits, session.logits);
  const std::vector<int32_t> rest = later.generate(loaded, sampled(35, false))[0].ids;
  parts.insert(parts.end(), rest.begin(), rest.end());
  EXPECT_EQ(parts, whole);
}

TEST_P(EveryMixer, SavedSessionGoesOnWithPenaltiesWhereItStopped) {
  const test::ScratchFolder folder;
  Model model = byte_model(GetParam());
  Generator generator(model);
  const auto begin = [&] {
    Session session = generator.start();
    keep_history_for(session, looking_back(0, false).sampling);
    generator.prefill(session, prompt_ids(20));
    return session;
  };
  Session session = begin();
  const std::vector<int32_t> whole = generator.generate(session, looking_back(90, false))[0].ids;
  const std::vector<int32_t> other =
      generator.generate(session = begin(), sampled(90, false))[0].ids;
  EXPECT_NE(whole, other);  // the penalties act
  session = begin();
  std::vector<int32_t> parts;
  for (const int64_t count : {1, 2, 40, 47}) {
    const std::vector<int32_t> more = generator.generate(session, looking_back(count, true))[0].ids;
    parts.insert(parts.end(), more.begin(), more.end());
    save_session(folder / "state", session, model);
    session = load_session(folder / "state", model);
    EXPECT_EQ(session.history_limit, -1);
    EXPECT_EQ(static_cast<int64_t>(session.history.size()), session.tokens);
  }
  EXPECT_EQ(parts, whole);
}

TEST(StateFile, OfTheVersionWithoutHistoryIsReadAndCannotLookBack) {
  const test::ScratchFolder folder;
  Model model = byte_model("mamba1");
  Generator generator(model);
  Session session = prefilled(generator, prompt_ids(20));
  session.history.clear();
  save_session(folder / "new", session, model);
  const SafetensorsFile file(folder / "new");
  TensorMetadata metadata = file.metadata();
  metadata["version"] = "1";
  metadata.erase("history_limit");
  std::vector<TensorData> tensors;
  for (const TensorInfo& t : file.tensors()) tensors.push_back({t.name, t.dtype, t.shape, t.data});
  write_safetensors(folder / "old", tensors, metadata);
  Session old = load_session(folder / "old", model);
  EXPECT_TRUE(old.history.empty());
  EXPECT_EQ(generator.generate(old, sampled(20, false))[0].ids,
            generator.generate(session, sampled(20, false))[0].ids);
  old = load_session(folder / "old", model);
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"last 20 tokens", "0 of 20"},
                         [&] { generator.generate(old, looking_back(5, false)); }));
}

TEST_P(EveryMixer, IsRefusedByAnotherModelOrDtype) {
  const test::ScratchFolder folder;
  Model model = byte_model(GetParam());
  Generator generator(model);
  Session session = prefilled(generator, prompt_ids(3));
  save_session(folder / "state", session, model);
  Model other = byte_model(GetParam(), 2);
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile,
                         {"model_fingerprint", model.fingerprint(), other.fingerprint()},
                         [&] { load_session(folder / "state", other); }));
  ModelOptions options;
  options.dtype = DType::kBF16;
  Model half = byte_model(GetParam(), 1, options);
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"dtype", "'bf16'", "'f32'"},
                         [&] { load_session(folder / "state", half); }));
}

// A good file, changed by hand in one place.
class Damaged : public testing::Test {
 protected:
  Damaged() : model_(byte_model("mamba1")) {
    Generator generator(model_);
    const Session session = prefilled(generator, prompt_ids(3));
    save_session(folder_ / "good", session, model_);
    const SafetensorsFile file(folder_ / "good");
    metadata_ = file.metadata();
    for (const TensorInfo& t : file.tensors()) {
      std::vector<float>& values = values_.emplace_back(static_cast<size_t>(t.count()));
      if (t.dtype == DType::kI32) {
        for (const int64_t id : read_to_i64(t)) history_.push_back(static_cast<int32_t>(id));
        tensors_.push_back({t.name, t.dtype, t.shape, history_.data()});
        continue;
      }
      read_to_f32(t, values.data());
      tensors_.push_back({t.name, t.dtype, t.shape, values.data()});
    }
  }
  testing::AssertionResult is_refused(std::initializer_list<std::string> parts) {
    write_safetensors(folder_ / "bad", tensors_, metadata_);
    return fails_with(ErrorCode::kBadFile, parts, [&] { load_session(folder_ / "bad", model_); });
  }

  test::ScratchFolder folder_;
  Model model_;
  TensorMetadata metadata_;
  std::vector<TensorData> tensors_;
  std::vector<std::vector<float>> values_;
  std::vector<int32_t> history_;
};

TEST_F(Damaged, OtherFormat) {
  metadata_["format"] = "pt";
  EXPECT_TRUE(is_refused({"format", "mamba-cpp-state", "pt"}));
}
TEST_F(Damaged, OtherVersion) {
  metadata_["version"] = "99";
  EXPECT_TRUE(is_refused({"version", "'2'", "'99'"}));
}
TEST_F(Damaged, MissingMetadata) {
  metadata_.erase("tokens");
  EXPECT_TRUE(is_refused({"'tokens'", "none"}));
}
TEST_F(Damaged, TokenCountThatIsNoNumber) {
  for (const char* text : {"", "-1", "12x", "99999999999999999999"}) {
    metadata_["tokens"] = text;
    EXPECT_TRUE(is_refused({"'tokens'"})) << text;
  }
}
TEST_F(Damaged, PendingTextThatIsNoStartOfACharacter) {
  for (const char* text : {"4", "41", "zz", "c3a9", "a9", "f09f98f0", "C3"}) {
    metadata_["pending_text"] = text;
    EXPECT_TRUE(is_refused({"'pending_text'", text})) << text;
  }
}
TEST_F(Damaged, MissingTensor) {
  tensors_.pop_back();
  ASSERT_NE(tensors_.back().name, "history");  // sorted by name, so it stands first
  EXPECT_TRUE(is_refused({"tensors"}));
}
TEST_F(Damaged, HistoryThatCannotBe) {
  history_[1] = 256;
  EXPECT_TRUE(is_refused({"0..255", "'history'", "256"}));
  history_[1] = -1;
  EXPECT_TRUE(is_refused({"0..255", "'history'", "-1"}));
  history_[1] = 1;
  metadata_["history_limit"] = "2";
  EXPECT_TRUE(is_refused({"'history'", "at most 2 ids", "[3]"}));
  metadata_["history_limit"] = "-2";
  EXPECT_TRUE(is_refused({"'history_limit'", "-2"}));
  metadata_["history_limit"] = "9";
  metadata_["tokens"] = "2";
  EXPECT_TRUE(is_refused({"'history'", "at most 2 ids"}));
  metadata_.erase("history_limit");
  EXPECT_TRUE(is_refused({"'history_limit'", "none"}));
}
TEST_F(Damaged, HistoryOfAnotherType) {
  for (TensorData& t : tensors_) {
    if (t.name == "history") t.dtype = DType::kF32;
  }
  EXPECT_TRUE(is_refused({"'history'", "i32", "f32"}));
}
TEST_F(Damaged, OtherShape) {
  for (TensorData& t : tensors_) {
    if (t.name == "last_logits") t.shape = {1, 256};
  }
  EXPECT_TRUE(is_refused({"last_logits", "[1, 256]"}));
}
TEST_F(Damaged, NumberThatIsNotFinite) {
  values_[1][5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(is_refused({"finite", "nan", "element 5", tensors_[1].name}));
}
TEST_F(Damaged, Truncated) {
  std::ifstream in(folder_ / "good", std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  std::ofstream(folder_ / "short", std::ios::binary) << bytes.substr(0, bytes.size() - 4);
  EXPECT_TRUE(
      fails_with(ErrorCode::kBadFile, {"short"}, [&] { load_session(folder_ / "short", model_); }));
}

TEST(StateFile, KeepsTheStartOfACharacter) {
  const test::ScratchFolder folder;
  Model model = byte_model("mamba1");
  const auto tokenizer = make_tokenizer("bytes");
  Generator generator(model, tokenizer.get());
  Session session = generator.start();
  generator.prefill(session, {'a', 0xf0, 0x9f});
  EXPECT_EQ(session.pending, "\xf0\x9f");
  save_session(folder / "state", session, model);
  Session loaded = load_session(folder / "state", model);
  EXPECT_EQ(loaded.pending, "\xf0\x9f");
  GenerateOptions none = sampled(0, true);
  EXPECT_EQ(generator.generate(loaded, none)[0].text, "");  // it may still be completed
  none.keep_session = false;
  EXPECT_EQ(generator.generate(loaded, none)[0].text, "\xef\xbf\xbd");
  loaded = load_session(folder / "state", model);
  generator.prefill(loaded, {0x98, 0x80});
  EXPECT_EQ(loaded.pending, "");
}

TEST(StateFile, SavingFailsWithAMessage) {
  Model model = byte_model("mamba1");
  Generator generator(model);
  const Session session = prefilled(generator, prompt_ids(3));
  EXPECT_TRUE(fails_with(ErrorCode::kIo, {"/nowhere"},
                         [&] { save_session("/nowhere/state", session, model); }));
  const Session empty = generator.start();
  const test::ScratchFolder folder;
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"at least one token"},
                         [&] { save_session(folder / "s", empty, model); }));
}

}  // namespace
}  // namespace mamba
