// SPDX-License-Identifier: Apache-2.0
// One interface over all weight files: which is taken, the names, shards of torch, mamba.c's file,
// and what a folder of the state-spaces form says beside its config.json.
#include <string.h>

#include <cmath>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/hf_config.h"
#include "formats/mamba_c_file.h"
#include "formats/safetensors.h"
#include "formats/torch_builder.h"
#include "formats/torch_zip.h"
#include "formats/weight_files.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using namespace test;

const float kValues[6] = {1, 2, 3, 4, 5, 6};

TEST(weight_files, the_embedding_has_one_name_in_every_form) {
  ScratchFolder folder;
  write_torch_file(folder / "pytorch_model.bin", "m",
                   {{"backbone.embedding.weight", DType::kF32, {3, 2}, kValues},
                    {"backbone.norm_f.weight", DType::kF32, {2}, kValues}});
  EXPECT_TRUE(has_weights(folder.path()));
  const WeightFiles torch(folder.path());
  EXPECT_TRUE(torch.has_state_spaces_names());
  EXPECT_EQ(torch.get("backbone.embeddings.weight", {3, 2}).count(), 6);
  EXPECT_EQ(torch.find("backbone.embedding.weight"), nullptr);
  EXPECT_EQ(torch.files()[0], folder / "pytorch_model.bin");
  // Of two, safetensors is taken; a file can be named.
  write_safetensors(folder / "model.safetensors",
                    {{"backbone.embeddings.weight", DType::kF32, {2, 3}, kValues}});
  const WeightFiles both(folder.path());
  EXPECT_FALSE(both.has_state_spaces_names());
  EXPECT_EQ(both.get("backbone.embeddings.weight").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(WeightFiles(folder / "pytorch_model.bin").tensors().size(), 2u);
}

TEST(weight_files, torch_shards_are_read_by_their_index) {
  ScratchFolder folder;
  const std::string names[] = {"pytorch_model-00001-of-00002.bin",
                               "pytorch_model-00002-of-00002.bin"};
  write_torch_file(folder / names[0], "m", {{"a", DType::kF32, {6}, kValues}});
  write_torch_file(folder / names[1], "m", {{"b", DType::kF32, {2}, kValues}});
  Json index;
  index["weight_map"] = {{"a", names[0]}, {"b", names[1]}};
  const std::string path = folder / "pytorch_model.bin.index.json";
  write_file_atomic(path, index.dump());
  EXPECT_TRUE(has_weights(folder.path()));
  const WeightFiles files(folder.path());
  EXPECT_EQ(files.files().size(), 2u);
  EXPECT_EQ(files.get("b").count(), 2);
  index["weight_map"]["b"] = "../other.bin";
  write_file_atomic(path, index.dump());
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"a plain name ending in .bin"},
                         [&] { WeightFiles{folder.path()}; }));
}

// The file that mamba.c's export.py would write, with counting values.
std::string mamba_c_file(int32_t tied) {
  const int32_t layers = 2, vocab = 5, D = 2, E = 3, R = 1, N = 2, K = 2;
  std::string file;
  const auto word = [&](int32_t value) { file += little(static_cast<uint32_t>(value), 4); };
  word(0x4d616d62);
  word(1);
  for (const int32_t value : {layers, vocab, D, E, R, N, K, tied}) word(value);
  file.resize(256, '\0');
  float next = 0;
  const auto floats = [&](int count, bool negative = false) {
    for (int i = 0; i < count; ++i) {
      next += 0.5f;
      const float value = negative ? -next : next;
      file.append(reinterpret_cast<const char*>(&value), 4);
    }
  };
  floats(8 * D);  // the vocabulary is padded to 8 rows
  for (const int count : {2 * E * D, E * K, E, (R + 2 * N) * E, E * R, E}) floats(layers * count);
  floats(layers * E * N, true);  // A
  for (const int count : {E, D * E, D}) floats(layers * count);
  floats(D);
  if (tied == 0) floats(8 * D);
  return file;
}

TEST(mamba_c, header_and_tensors_are_read) {
  ScratchFolder folder;
  write_file_atomic(folder / "model.bin", mamba_c_file(1));
  const Config c = read_config(folder / "model.bin");
  EXPECT_EQ(c.vocab_size, 8);
  EXPECT_EQ(c.d_inner, 3);
  EXPECT_TRUE(c.tie_embeddings);
  const WeightFiles files(folder / "model.bin");
  EXPECT_EQ(files.tensors().size(), 1u + 2 * 10 + 1);
  float value[12];
  read_to_f32(files.get("backbone.embeddings.weight", {8, 2}), 0, 1, value);
  EXPECT_EQ(value[0], 0.5f);
  read_to_f32(files.get("backbone.layers.1.mixer.in_proj.weight", {6, 2}), value);
  EXPECT_EQ(value[0], 0.5f * (16 + 12 + 1));
  // A of layer 0 begins after the tensors of both layers before it.
  const float before = 16 + 2 * (12 + 6 + 3 + 15 + 3 + 3);
  read_to_f32(files.get("backbone.layers.0.mixer.A_log", {3, 2}), value);
  EXPECT_EQ(value[0], std::log(0.5f * (before + 1)));
  EXPECT_EQ(value[5], std::log(0.5f * (before + 6)));
  // Rounded once, as GGUF's is, where the log of f32 gives another neighbour.
  std::string rates = mamba_c_file(1);
  const float A = -0x1.05878p+3f;
  memcpy(rates.data() + 256 + 4 * static_cast<size_t>(before), &A, sizeof A);
  write_file_atomic(folder / "rates.bin", rates);
  read_to_f32(WeightFiles(folder / "rates.bin").get("backbone.layers.0.mixer.A_log"), value);
  EXPECT_EQ(value[0], static_cast<float>(std::log(0x1.05878p+3)));
  write_file_atomic(folder / "untied.bin", mamba_c_file(0));
  EXPECT_NE(WeightFiles(folder / "untied.bin").find("lm_head.weight"), nullptr);
}

TEST(mamba_c, files_that_lie_are_refused) {
  const std::string good = mamba_c_file(1);
  const auto refuse = [](const std::string& bytes, std::initializer_list<std::string> parts,
                         ErrorCode code = ErrorCode::kBadFile) {
    EXPECT_TRUE(fails_with(code, parts, [&] { MambaCFile(bytes.data(), bytes.size(), "m.bin"); }));
  };
  const auto change = [&](size_t word, uint32_t value) {
    std::string bytes = good;
    bytes.replace(4 * word, 4, little(value, 4));
    return bytes;
  };
  EXPECT_EQ(MambaCFile(good.data(), good.size(), "m").tensors().size(), 22u);
  refuse(good.substr(0, 255), {"a header of 256 bytes"});
  refuse(good.substr(0, good.size() - 1), {"bytes as the header says"});
  refuse(good + "x", {"bytes as the header says"});
  refuse(change(0, 7), {"bmaM"});
  refuse(change(1, 2), {"version 1"}, ErrorCode::kUnsupported);
  refuse(change(2, 0), {"n_layers of at least 1"});
  refuse(change(4, 0x80000000u), {"d_model of at least 1"});
  refuse(change(4, 0x7fffffff), {"d_model"});
  refuse(change(2, 4000), {"bytes as the header says"});
  std::string positive = good;
  const size_t A = 256 + 4 * (16 + 2 * (12 + 6 + 3 + 15 + 3 + 3));
  positive[A + 3] = static_cast<char>(positive[A + 3] & 0x7f);
  refuse(positive, {"A of layer 0 to be negative"});
}

constexpr const char* kStateSpaces =
    R"({"d_model": 2, "n_layer": 1, "vocab_size": 5, "pad_vocab_size_multiple": 8})";

TEST(state_spaces_folder, the_weights_say_whether_the_vocabulary_is_padded) {
  ScratchFolder folder;
  write_file_atomic(folder / "config.json", kStateSpaces);
  EXPECT_EQ(read_config(folder.path()).vocab_size, 8);  // no weights: as the package pads
  std::vector<float> table(16, 1.0f);
  for (const int64_t rows : {8, 5}) {
    write_torch_file(folder / "pytorch_model.bin", "m",
                     {{"backbone.embedding.weight", DType::kF32, {rows, 2}, table.data()}});
    EXPECT_EQ(read_config(folder.path()).vocab_size, rows);
  }
}

TEST(state_spaces_folder, special_tokens_come_from_the_generation_config) {
  ScratchFolder folder;
  write_file_atomic(folder / "config.json", kStateSpaces);
  write_file_atomic(folder / "generation_config.json", R"({"eos_token_id": [3, 4], "top_k": 9})");
  EXPECT_EQ(read_config(folder.path()).eos_token_id, 3);
  EXPECT_EQ(read_config(folder.path()).more_eos_token_ids, std::vector<int64_t>{4});
  EXPECT_EQ(read_config(folder.path()).bos_token_id, -1);
  write_file_atomic(folder / "generation_config.json", R"({"eos_token_id": 8})");
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile,
                         {"generation_config.json", "eos_token_id below vocab_size = 8, got 8"},
                         [&] { read_config(folder.path()); }));
}

}  // namespace
}  // namespace mamba
