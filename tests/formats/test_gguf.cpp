// SPDX-License-Identifier: Apache-2.0
// GGUF: what is written comes back, shards, and files that lie.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <stdexcept>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/gguf_writer.h"
#include "support/expect_error.h"
#include "support/random.h"

namespace mamba {
namespace {

using test::fails_with;
using test::ScratchFolder;

// A file piece by piece, so that every piece can lie.
class File {
 public:
  explicit File(uint64_t tensors = 0, uint64_t values = 0, uint32_t version = 3) {
    bytes_ = "GGUF";
    number(version).number(tensors).number(values);
  }
  template <class T>
  File& number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  File& text(const std::string& value) {
    number<uint64_t>(value.size());
    bytes_ += value;
    return *this;
  }
  File& tensor(const std::string& name, std::initializer_list<uint64_t> sizes, uint32_t type,
               uint64_t offset) {
    text(name).number(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) number(size);
    return number(type).number(offset);
  }
  File& data(size_t count) {
    bytes_.append((32 - bytes_.size() % 32) % 32, '\0');
    bytes_.append(count, '\1');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

void expect_bad(const std::string& bytes, std::initializer_list<std::string> parts,
                ErrorCode code = ErrorCode::kBadFile) {
  EXPECT_TRUE(fails_with(code, parts, [&] { GgufFile(bytes.data(), bytes.size(), "m.gguf"); }))
      << printable(bytes, 400);
}

GgufMetadata all_types() {
  GgufMetadata m;
  m["bool"] = GgufValue::boolean(true);
  m["u16"] = GgufValue::u16(65535);
  m["u32"] = GgufValue::u32(4'000'000'000);
  m["i32"] = GgufValue::i32(-5);
  m["f32"] = GgufValue::f32(1e-5);
  m["text"] = GgufValue::string("caf\xc3\xa9");
  m["texts"] = GgufValue::strings({"a", "", "b c"});
  m["numbers"] = GgufValue::i32_list({1, -2, 3});
  for (const auto& [name, type, value] :
       {std::tuple("u8", GgufType::kU8, int64_t{200}), std::tuple("i8", GgufType::kI8, int64_t{-3}),
        std::tuple("i16", GgufType::kI16, int64_t{-300}),
        std::tuple("u64", GgufType::kU64, int64_t{1} << 40),
        std::tuple("i64", GgufType::kI64, -(int64_t{1} << 40))}) {
    GgufValue v;
    v.type = type;
    v.integer = value;
    m[name] = v;
  }
  GgufValue f64;
  f64.type = GgufType::kF64;
  f64.real = 0.1;
  m["f64"] = f64;
  GgufValue nested;
  nested.type = GgufType::kArray;
  nested.item = GgufType::kArray;
  nested.arrays = {GgufValue::i32_list({1}), GgufValue::strings({"x"})};
  m["nested"] = nested;
  return m;
}

TEST(gguf, what_is_written_comes_back) {
  std::vector<float> values(512);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const std::vector<char> blocks(288, 'q');
  const GgufMetadata metadata = all_types();
  const std::string bytes = gguf_bytes(metadata, {{"b", DType::kF32, {2, 3}, values.data()},
                                                  {"a", DType::kQ4_K, {2, 256}, blocks.data()},
                                                  {"s", DType::kF32, {}, values.data()}});
  const GgufFile file(bytes.data(), bytes.size(), "m.gguf");
  EXPECT_EQ(file.values(), metadata);
  EXPECT_EQ(file.version(), 3);
  const TensorInfo& b = file.get("b", {2, 3});
  EXPECT_EQ(0, memcmp(b.data, values.data(), 24));
  const TensorInfo& a = file.get("a", {2, 256});
  EXPECT_EQ(a.dtype, DType::kQ4_K);
  EXPECT_EQ(a.count(), 512);
  EXPECT_EQ(0, memcmp(a.data, blocks.data(), 288));
  EXPECT_EQ(file.get("s").count(), 1);
  EXPECT_EQ((static_cast<const char*>(a.data) - bytes.data()) % 32, 0);
  EXPECT_EQ(file.get_int("u64", 0, int64_t{1} << 41), int64_t{1} << 40);
  EXPECT_EQ(file.get_int("absent", 0, 5, 3), 3);
  EXPECT_TRUE(file.get_bool("bool", false));
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"m.gguf", "\"i32\"", "0..9", "i32 -5"},
                         [&] { file.get_int("i32", 0, 9); }));
  EXPECT_TRUE(
      fails_with(ErrorCode::kBadFile, {"\"text\"", "string"}, [&] { file.get_int("text", 0, 9); }));
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"\"gone\"", "found none"},
                         [&] { file.get_string("gone"); }));
}

TEST(gguf, shards) {
  const ScratchFolder folder;
  const std::vector<float> values(64, 1.5f);
  std::vector<TensorData> tensors;
  for (const char* name : {"a", "b", "c", "d"}) {
    tensors.push_back({name, DType::kF32, {64}, values.data()});
  }
  GgufMetadata metadata;
  metadata["k"] = GgufValue::u32(7);
  const std::vector<std::string> paths = write_gguf(folder / "m.gguf", metadata, tensors, 600);
  ASSERT_EQ(paths, (std::vector<std::string>{folder / "m-00001-of-00002.gguf",
                                             folder / "m-00002-of-00002.gguf"}));
  const GgufFile file(paths[0]);
  EXPECT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.paths(), paths);
  EXPECT_EQ(file.get_int("k", 0, 9), 7);
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"the first of 2 shards", "got shard 2"},
                         [&] { GgufFile{paths[1]}; }));
  std::filesystem::remove(paths[1]);
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"2 shards", "m-00002-of-00002.gguf", "fetch it"},
                         [&] { GgufFile{paths[0]}; }));
}

// Two shards of two tensors each; `name` tells files apart.
std::vector<std::string> write_two(const std::string& path, const std::string& name,
                                   const std::function<void(int64_t, void*)>& fill) {
  std::vector<TensorData> tensors;
  for (const char* tensor : {"a", "b", "c", "d"}) {
    TensorData& t = tensors.emplace_back();
    t.name = tensor;
    t.shape = {64};
    t.fill = [&fill](int64_t, int64_t count, void* out) { fill(count, out); };
  }
  return write_gguf(path, {{"general.name", GgufValue::string(name)}}, tensors, 600);
}

TEST(gguf, shards_that_do_not_belong_together) {
  const ScratchFolder folder;
  namespace fs = std::filesystem;
  const auto zeros = [](int64_t count, void* out) {
    std::memset(out, 0, static_cast<size_t>(4 * count));
  };
  const std::vector<std::string> paths = write_two(folder / "m.gguf", "one", zeros);
  const auto refused = [&](std::initializer_list<std::string> parts) {
    return fails_with(ErrorCode::kBadFile, parts, [&] { GgufFile{paths[0]}; });
  };
  fs::copy_file(paths[0], paths[1], fs::copy_options::overwrite_existing);
  EXPECT_TRUE(refused({paths[1], "split.no 1 of shard 2", "got 0", "fetch or write them again"}));
  const std::string other = write_two(folder / "other.gguf", "two", zeros)[1];
  fs::copy_file(other, paths[1], fs::copy_options::overwrite_existing);
  EXPECT_TRUE(refused({paths[1], "split.mamba_cpp.id"}));
  const std::vector<float> values(64, 1.0f);
  const auto shard = [&](int64_t no, int64_t count, int64_t tensors) {
    write_file_atomic(paths[1], gguf_bytes({{"split.no", GgufValue::u16(no)},
                                            {"split.count", GgufValue::u16(count)},
                                            {"split.tensors.count", GgufValue::i32(tensors)}},
                                           {{"c", DType::kF32, {64}, values.data()},
                                            {"d", DType::kF32, {64}, values.data()}}));
  };
  shard(1, 3, 4);
  EXPECT_TRUE(refused({paths[1], "split.count 2", "got 3"}));
  shard(1, 2, 5);
  EXPECT_TRUE(refused({paths[1], "split.tensors.count 4", "got 5"}));
  shard(1, 2, 4);  // as another program writes it
  EXPECT_EQ(GgufFile(paths[0]).tensors().size(), 4u);
  write_file_atomic(paths[1], gguf_bytes({}, {{"c", DType::kF32, {64}, values.data()}}));
  EXPECT_TRUE(refused({paths[1], "\"split.no\"", "found none"}));
}

TEST(gguf, an_interrupted_writing_leaves_the_old_shards) {
  const ScratchFolder folder;
  const auto fill_with = [](char byte, int last) {
    return [=, tensor = 0](int64_t count, void* out) mutable {
      if (++tensor > last) throw std::runtime_error("interrupted");
      std::memset(out, byte, static_cast<size_t>(4 * count));
    };
  };
  const std::vector<std::string> paths = write_two(folder / "m.gguf", "one", fill_with(1, 4));
  EXPECT_THROW(write_two(folder / "m.gguf", "one", fill_with(2, 3)), std::runtime_error);
  const GgufFile file(paths[0]);
  for (const char* name : {"a", "b", "c", "d"}) {
    EXPECT_EQ(*static_cast<const char*>(file.get(name).data), 1) << name;
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 2);
}

TEST(gguf, headers_that_lie) {
  expect_bad("", {"starts with \"GGUF\"", "0 bytes"});
  expect_bad("GGML\3", {"starts with \"GGUF\"", "GGML"});
  expect_bad("GGUF", {"the version", "at byte 4"});
  expect_bad(File(0, 0, 1).bytes(), {"version 2 or 3", "got 1"}, ErrorCode::kUnsupported);
  expect_bad(File(0, 0, 0x03000000).bytes(), {"big endian"}, ErrorCode::kUnsupported);
  expect_bad(File(~0ull, 0).bytes(), {"counts", "18446744073709551615"});
  expect_bad(File(0, 1000).bytes(), {"counts", "1000"});
  expect_bad(File(0, 1).number<uint64_t>(1 << 20).number<uint64_t>(0).bytes(),
             {"a key of metadata", "1048576"});
  expect_bad(File(0, 1).text("key").number<uint32_t>(13).number<uint64_t>(0).bytes(),
             {"\"key\"", "0..12", "got 13"});
  expect_bad(File(0, 1).text("key").number<uint32_t>(8).number<uint64_t>(99).bytes(),
             {"a string of metadata", "99"});
  expect_bad(File(0, 1).text("key").number<uint32_t>(9).number<uint32_t>(4).number(~0ull).bytes(),
             {"\"key\"", "an array", "18446744073709551615 elements"});
  File deep(0, 1);
  deep.text("key").number<uint32_t>(9);
  for (int i = 0; i < 9; ++i) deep.number<uint32_t>(9).number<uint64_t>(1);
  expect_bad(deep.bytes(), {"an array", "deep"});
  File twice(0, 2);
  for (int i = 0; i < 2; ++i) twice.text("key").number<uint32_t>(4).number<uint32_t>(1);
  expect_bad(twice.bytes(), {"\"key\" once"});
  expect_bad(File(0, 1).text("general.alignment").number<uint32_t>(4).number<uint32_t>(24).bytes(),
             {"general.alignment", "power of two", "24"});
}

TEST(gguf, tensors_that_lie) {
  expect_bad(File(1).tensor("t", {4, 1, 1, 1, 1}, 0, 0).data(64).bytes(),
             {"4 dimensions", "\"t\""});
  expect_bad(File(1).tensor("t", {4, 0}, 0, 0).data(64).bytes(), {"\"t\"", "from 1 on", "got 0"});
  expect_bad(File(1).tensor("t", {1ull << 32, 1ull << 32}, 0, 0).data(64).bytes(), {"2^63"});
  expect_bad(File(1).tensor("t", {1ull << 62, 1}, 28, 0).data(64).bytes(), {"\"t\""});
  expect_bad(File(1).tensor("t", {33}, 8, 0).data(64).bytes(), {"multiple of 32", "q8_0"});
  expect_bad(File(1).tensor("t", {4}, 0, 8).data(64).bytes(), {"multiple of 32", "offset 8"});
  expect_bad(File(1).tensor("t", {4}, 0, 64).data(64).bytes(), {"16 bytes", "truncated"});
  expect_bad(File(1).tensor("t", {64}, 0, 0).data(64).bytes(), {"256 bytes", "truncated"});
  expect_bad(File(2).tensor("t", {16}, 0, 0).tensor("u", {8}, 0, 32).data(64).bytes(),
             {"\"u\"", "overlaps"});
  expect_bad(File(1).tensor("t", {256}, 10, 0).data(640).bytes(), {"\"t\"", "Q2_K", "Q4_K_M"},
             ErrorCode::kUnsupported);
  expect_bad(File(1).tensor("t", {256}, 77, 0).data(640).bytes(), {"type 77"},
             ErrorCode::kUnsupported);
  expect_bad(File(1).tensor(std::string(300, 'n'), {4}, 0, 0).data(64).bytes(),
             {"the name of a tensor", "300"});
  expect_bad(File(2).tensor("t", {8}, 0, 0).tensor("t", {8}, 0, 32).data(64).bytes(),
             {"different names", "\"t\""});
}

// Every prefix and every changed byte of a good file is an error or a file, never a crash.
TEST(gguf, damaged_anywhere) {
  const std::vector<float> values(64, 2);
  const std::string good = gguf_bytes(all_types(), {{"a", DType::kF32, {2, 16}, values.data()},
                                                    {"b", DType::kQ8_0, {32}, values.data()}});
  const auto try_one = [](const std::string& bytes) {
    try {
      const GgufFile file(bytes.data(), bytes.size(), "m.gguf");
      for (const TensorInfo& tensor : file.tensors()) {
        if (tensor.dtype == DType::kI32 || tensor.dtype == DType::kI64) continue;
        std::vector<float> out(static_cast<size_t>(tensor.count()));
        read_to_f32(tensor, out.data());
      }
    } catch (const Error& error) {
      EXPECT_NE(error.code(), ErrorCode::kInternal) << error.what();
    }
  };
  for (size_t n = 0; n < good.size(); ++n) try_one(std::string(good.data(), n));
  test::Random random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    bytes[static_cast<size_t>(random.below(static_cast<int64_t>(good.size())))] =
        static_cast<char>(random.next());
    try_one(bytes);
  }
}

TEST(gguf_model, refuses_what_the_form_cannot_say) {
  const auto refuses = [](const char* part, auto change) {
    Config c;
    c.mixer = c.model_type = "mamba2";
    change(&c);
    EXPECT_TRUE(fails_with(ErrorCode::kUnsupported, {part, "keep the hf form"}, [&] {
      gguf_config_metadata(c);
    })) << part;
  };
  refuses("LayerNorm", [](Config* c) { c->norm = NormKind::kLayer; });
  refuses("d_intermediate", [](Config* c) { c->d_intermediate = 64; });
  refuses("use_bias", [](Config* c) { c->use_bias = true; });
  refuses("conv_silu", [](Config* c) { c->conv_silu = false; });
  refuses("d_ssm", [](Config* c) { c->d_ssm = 256; });
  refuses("D_has_hdim", [](Config* c) { c->D_has_hdim = true; });
  refuses("rmsnorm", [](Config* c) { c->gated_norm = false; });
  refuses("norm_before_gate", [](Config* c) { c->norm_before_gate = true; });
  refuses("other groups", [](Config* c) { c->n_groups = 2; });
  refuses("learnable_init_states", [](Config* c) { c->learnable_init_states = true; });
  refuses("time_step_limit", [](Config* c) { c->dt_limit_min = 0.1; });
}

}  // namespace
}  // namespace mamba
