// SPDX-License-Identifier: Apache-2.0
// safetensors: lying headers, shards, conversions, and bytes equal to those of the reference
// writer.
#include <string.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/safetensors.h"
#include "formats/weight_files.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using test::fails_with;
using test::ScratchFolder;

// A file from its header text and the number of bytes of data.
std::string file_of(const std::string& header, size_t data_bytes) {
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i)
    out[static_cast<size_t>(i)] = static_cast<char>(header.size() >> 8 * i);
  return out + header + std::string(data_bytes, '\1');
}

void expect_bad(const std::string& bytes, std::initializer_list<std::string> parts,
                ErrorCode code = ErrorCode::kBadFile) {
  EXPECT_TRUE(fails_with(code, parts, [&] { SafetensorsFile(bytes.data(), bytes.size(), "m.st"); }))
      << printable(bytes, 400);
}

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(safetensors, reads_names_shapes_bytes_and_metadata) {
  const std::string bytes = file_of(
      R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("a":{"data_offsets":[8,10],"dtype":"BOOL","shape":[2]},"e":{"dtype":"I64","shape":[0,9],)"
      R"("data_offsets":[8,8]},"s":{"dtype":"U8","shape":[],"data_offsets":[10,11]}})",
      11);
  const SafetensorsFile file(bytes.data(), bytes.size(), "m.st");
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.metadata().at("k"), "v");
  const TensorInfo& b = file.get("b", {2, 1});
  EXPECT_EQ(b.dtype, DType::kF32);
  EXPECT_EQ(b.bytes, 8);
  EXPECT_EQ(b.count(), 2);
  EXPECT_EQ(static_cast<const char*>(b.data) + 11, bytes.data() + bytes.size());
  EXPECT_EQ(file.get("a").dtype, DType::kU8);
  EXPECT_EQ(file.get("e").count(), 0);
  EXPECT_EQ(read_to_i64(file.get("e")), std::vector<int64_t>{});
  EXPECT_EQ(read_to_i64(file.get("s")), std::vector<int64_t>{1});
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST(safetensors, an_empty_file_of_tensors_is_one) {
  const std::string bytes = file_of("{}", 0);
  EXPECT_TRUE(SafetensorsFile(bytes.data(), bytes.size(), "m").tensors().empty());
}

TEST(safetensors, lengths_are_checked_against_the_file) {
  expect_bad("", {"[m.st]", "at least 8 bytes", "got 0"});
  expect_bad("1234567", {"got 7 bytes"});
  std::string bytes = file_of("{}", 0);
  bytes[0] = 3;
  expect_bad(bytes, {"header of at most 2 bytes", "say 3", "truncated"});
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = '\xff';
  expect_bad(bytes, {"say 18446744073709551615"});
  expect_bad(file_of("", 9), {"start with '{'"});
  expect_bad(file_of("  {}", 0), {"start with '{' at byte 8, got \"  {}\""});
  expect_bad(file_of("{\"a\"", 0), {"m.st header", "expected JSON"});
  expect_bad(file_of("{\"a\":[[[1]]]}", 0), {"nested"});
  expect_bad(file_of("{}", 5), {"expected 0 bytes of data", "got 5"});
}

// A file with one tensor "w" of 8 bytes whose header entry is `entry`.
std::string one(const std::string& entry) { return file_of("{\"w\":" + entry + "}", 8); }

TEST(safetensors, entries_are_checked) {
  const std::string good = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::string bytes = one(good);
  EXPECT_NO_THROW(SafetensorsFile(bytes.data(), bytes.size(), "m"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string entry = good;
    entry.replace(entry.find(from), from.size(), to);
    return one(entry);
  };
  expect_bad(with("\"dtype\":\"F32\",", ""), {"\"dtype\" of tensor \"w\"", "found none"});
  expect_bad(with("\"shape\":[2],", ""), {"\"shape\" of tensor \"w\""});
  expect_bad(with(",\"data_offsets\":[0,8]", ""), {"\"data_offsets\" of tensor \"w\""});
  expect_bad(one("[1]"), {"\"dtype\" of tensor \"w\""});
  expect_bad(with("\"F32\"", "\"F32\",\"x\":1"),
             {"only dtype, shape and data_offsets of tensor \"w\""});
  expect_bad(with("\"F32\"", "3"), {"\"dtype\" to be a string, got 3"});
  expect_bad(with("F32", "f32"), {"tensor \"w\"", "got dtype \"f32\""});
  for (const char* name : {"I8", "I16", "U16", "U32", "U64", "C64", "F4", "F8_E4M3", "F8_E5M2"}) {
    expect_bad(with("F32", name), {"tensor \"w\"", name, "not supported"}, ErrorCode::kUnsupported);
  }
  for (const char* shape :
       {"[-1]", "[2.0]", "[\"2\"]", "2", "[true]", "[18446744073709551615]", "[NaN]"}) {
    expect_bad(with("[2]", shape), {"the shape of tensor \"w\"", "non-negative integers"});
  }
  expect_bad(with("[2]", "[" + std::string(64, '1').replace(1, 0, ",") + "]"),
             {"the shape of tensor"});
  expect_bad(with("[2]", "[4294967296,4294967296]"),
             {"more than 2^63", "[4294967296, 4294967296]"});
  expect_bad(with("[2]", "[3]"), {"expected 12 bytes for tensor \"w\" of f32 [3], got 8"});
  expect_bad(with("[2]", "[]"), {"expected 4 bytes"});
  for (const char* offsets : {"[0,9]", "[8,0]", "[0]", "[]", "[9,9]"}) {
    expect_bad(with("[0,8]", offsets), {"data_offsets of tensor \"w\"", "within 8 bytes", offsets});
  }
  for (const char* offsets : {"[-1,8]", "[0,8,8]", "7", "[0,\"8\"]"}) {
    expect_bad(with("[0,8]", offsets), {"data_offsets of tensor \"w\" as at most 2"});
  }
}

TEST(safetensors, tensors_cover_the_data_exactly) {
  const auto two = [](const std::string& a, const std::string& b) {
    return file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                       R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                   9);
  };
  expect_bad(two("[0,4]", "[3,7]"), {"\"b\" to start at byte 4", "got 3", "overlaps"});
  expect_bad(two("[0,4]", "[0,4]"), {"overlaps"});
  expect_bad(two("[0,4]", "[5,9]"), {"\"b\" to start at byte 4", "got 5", "hole"});
  expect_bad(two("[1,5]", "[5,9]"), {"\"a\" to start at byte 0 of the data, got 1", "hole"});
  expect_bad(two("[0,4]", "[4,8]"), {"expected 8 bytes of data", "got 9"});
  expect_bad(file_of(R"({"a":{},"a":{}})", 0), {"every key once", "\"a\""});
}

TEST(safetensors, metadata_maps_strings_to_strings) {
  for (const char* value : {"1", "null", "[\"a\"]", "{\"a\":1}", "{\"a\":{}}"}) {
    expect_bad(file_of("{\"__metadata__\":" + std::string(value) + "}", 0),
               {"__metadata__ to map strings to strings"});
  }
}

TEST(safetensors, a_missing_tensor_lists_the_nearest_names) {
  const std::string bytes =
      file_of(R"({"layers.0.A_log":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
              R"("layers.1.A_log":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},)"
              R"("norm":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},)"
              R"("embedding.weight":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})",
              4);
  const SafetensorsFile file(bytes.data(), bytes.size(), "m.st");
  EXPECT_TRUE(fails_with(
      ErrorCode::kBadFile,
      {"[m.st]", "\"layers.2.A_log\", found none", "4 names: layers.0.A_log, layers.1.A_log"},
      [&] { file.get("layers.2.A_log"); }));
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"tensor \"norm\" of shape [2, 3], got [1]"}, [&] {
    file.get("norm", {2, 3});
  }));
  const std::string none = file_of("{}", 0);
  const SafetensorsFile empty(none.data(), none.size(), "m.st");
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"no tensors at all"}, [&] { empty.get("x"); }));
}

TEST(safetensors, floats_are_converted_exactly_from_any_alignment) {
  // F16: 1, -2, smallest subnormal, largest subnormal, largest, infinity, NaN, -0
  const std::vector<uint16_t> half = {0x3c00, 0xc000, 1, 0x3ff, 0x7bff, 0x7c00, 0x7e00, 0x8000};
  std::vector<char> odd(half.size() * 2 + 1);
  memcpy(odd.data() + 1, half.data(), half.size() * 2);
  TensorInfo tensor{"h", DType::kF16, {8}, odd.data() + 1, 16};
  std::vector<float> out(8);
  read_to_f32(tensor, out.data());
  const float want[] = {1, -2, 0x1p-24f, 1023 * 0x1p-24f, 65504, INFINITY, NAN, -0.0f};
  for (size_t i = 0; i < 8; ++i) {
    if (i == 6) {
      EXPECT_TRUE(std::isnan(out[i]));
    } else {
      EXPECT_EQ(memcmp(&out[i], &want[i], 4), 0) << i;
    }
  }
  const std::vector<uint16_t> brain = {0x3f80, 0xc000, 0x7f80};
  read_to_f32({"b", DType::kBF16, {3}, brain.data(), 6}, out.data());
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(out[1], -2);
  EXPECT_EQ(out[2], INFINITY);
  const std::vector<double> wide = {0.1, -1e300};
  read_to_f32({"d", DType::kF64, {2}, wide.data(), 16}, out.data());
  EXPECT_EQ(out[0], 0.1f);
  EXPECT_EQ(out[1], -INFINITY);
  read_to_f32({"f", DType::kF32, {2}, want, 8}, out.data());
  EXPECT_EQ(out[1], -2);
  const std::vector<int32_t> ints = {-5, 7};
  EXPECT_EQ(read_to_i64({"i", DType::kI32, {2}, ints.data(), 8}), (std::vector<int64_t>{-5, 7}));
  EXPECT_TRUE(
      fails_with(ErrorCode::kUnsupported, {"tensor \"i\" as f32, bf16, f16 or f64, got i32"}, [&] {
        read_to_f32({"i", DType::kI32, {2}, ints.data(), 8}, out.data());
      }));
  EXPECT_TRUE(fails_with(ErrorCode::kUnsupported, {"tensor \"f\" as i64, i32 or u8, got f32"}, [&] {
    read_to_i64({"f", DType::kF32, {2}, want, 8});
  }));
}

// The bytes that safetensors 0.8.0 writes for these tensors (numpy), metadata {"format": "pt"}.
TEST(safetensors, writes_the_bytes_of_the_reference_implementation) {
  const std::vector<float> b = {0, 1, 2};
  const std::vector<int64_t> a = {0, 1};
  const std::vector<double> d = {1.5};
  const std::vector<uint8_t> u = {7};
  const std::vector<int32_t> i = {5};
  const std::vector<uint16_t> h = {0x3c00, 0x4000};
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},)"
      R"("d":{"dtype":"F64","shape":[1],"data_offsets":[16,24]},)"
      R"("b":{"dtype":"F32","shape":[3],"data_offsets":[24,36]},)"
      R"("i":{"dtype":"I32","shape":[1,1],"data_offsets":[36,40]},)"
      "\"c\\\"\\n\xc3\xa9\":"
      R"({"dtype":"F16","shape":[0,2],"data_offsets":[40,40]},)"
      R"("h":{"dtype":"F16","shape":[2],"data_offsets":[40,44]},)"
      R"("u":{"dtype":"U8","shape":[1],"data_offsets":[44,45]}}       )";
  std::string want = std::string("\xb0\x01\0\0\0\0\0\0", 8) + header;
  const auto add = [&](const auto& values) {
    want.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
  };
  add(a), add(d), add(b), add(i), add(h), add(u);
  const ScratchFolder folder;
  write_safetensors(folder / "m",
                    {{"b", DType::kF32, {3}, b.data()},
                     {"a", DType::kI64, {2}, a.data()},
                     {"c\"\n\xc3\xa9", DType::kF16, {0, 2}, nullptr},
                     {"d", DType::kF64, {1}, d.data()},
                     {"u", DType::kU8, {1}, u.data()},
                     {"i", DType::kI32, {1, 1}, i.data()},
                     {"h", DType::kF16, {2}, h.data()}},
                    {{"format", "pt"}});
  EXPECT_EQ(content(folder / "m"), want);
  const SafetensorsFile file(folder / "m");
  EXPECT_EQ(read_to_i64(file.get("a")), a);
  EXPECT_EQ(file.get("c\"\n\xc3\xa9").shape, (std::vector<int64_t>{0, 2}));
  // BF16 precedes F16 precedes BOOL/U8, as torch writes them.
  write_safetensors(folder / "t",
                    {{"y", DType::kF16, {2}, h.data()}, {"x", DType::kBF16, {2}, h.data()}});
  EXPECT_NE(
      content(folder / "t").find(R"({"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"y")"),
      std::string::npos);
}

TEST(safetensors, names_to_write_are_checked) {
  const ScratchFolder folder;
  const float v = 1;
  const auto write = [&](const std::string& a, const std::string& b, TensorMetadata metadata = {}) {
    write_safetensors(folder / "m", {{a, DType::kF32, {1}, &v}, {b, DType::kF32, {1}, &v}},
                      metadata);
  };
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"distinct tensor names", "\"a\""},
                         [&] { write("a", "a"); }));
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"other than __metadata__"},
                         [&] { write("a", "__metadata__"); }));
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"in UTF-8"}, [&] { write("a", "\xff"); }));
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"in UTF-8"}, [&] {
    write("a", "b", {{"k", "\xff"}});
  }));
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

class Sharded : public testing::Test {
 protected:
  // Five tensors of 8 bytes; three shards at most 16 bytes each.
  void write(int64_t max_shard_bytes = 16) {
    std::vector<TensorData> tensors;
    for (size_t i = 0; i < 5; ++i) {
      values_[2 * i] = static_cast<float>(i);
      tensors.push_back({"t" + std::to_string(i), DType::kF32, {2}, &values_[2 * i]});
    }
    write_sharded_safetensors(folder_.path(), tensors, {{"format", "pt"}}, max_shard_bytes);
  }
  void expect_bad(std::initializer_list<std::string> parts) {
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, parts, [&] { WeightFiles{folder_.path()}; }));
  }
  void write_index(const std::function<void(Json&)>& change) {
    Json index = read_json_file(index_);
    change(index);
    write_file_atomic(index_, index.dump());
  }
  ScratchFolder folder_;
  std::string index_ = folder_ / "model.safetensors.index.json";
  std::string shard1_ = folder_ / "model-00001-of-00003.safetensors";
  std::string shard2_ = folder_ / "model-00002-of-00003.safetensors";
  float values_[10] = {};
};

TEST_F(Sharded, round_trip_in_both_forms_and_from_one_to_the_other) {
  for (const int64_t limit : {16, 1000, 16, 1}) {
    write(limit);
    const WeightFiles model(folder_.path());
    EXPECT_EQ(model.files().size(), limit == 16 ? 3u : limit == 1 ? 5u : 1u);
    ASSERT_EQ(model.tensors().size(), 5u);
    EXPECT_EQ(model.metadata().at("format"), "pt");
    float got[2];
    read_to_f32(model.get("t3", {2}), got);
    EXPECT_EQ(got[0], 3);
    const auto files =
        static_cast<size_t>(std::distance(fs::directory_iterator(folder_.path()), {}));
    EXPECT_EQ(files, model.files().size() + (model.files().size() > 1 ? 1 : 0));
    if (limit == 16) {
      EXPECT_EQ(read_json_file(index_)["metadata"]["total_size"], 40);
    }
  }
  write(1000);
  EXPECT_EQ(WeightFiles(folder_ / "model.safetensors").tensors().size(), 5u);
}

TEST_F(Sharded, an_interrupted_writing_leaves_the_old_shards) {
  write();
  const std::string old_shard = content(shard1_), old_index = content(index_);
  std::vector<TensorData> tensors;
  for (int i = 0; i < 5; ++i) {
    TensorData& tensor = tensors.emplace_back();
    tensor.name = "t" + std::to_string(i);
    tensor.shape = {2};
    tensor.fill = [i](int64_t, int64_t count, void* out) {
      if (i == 4) throw std::runtime_error("interrupted");
      std::memset(out, 1, static_cast<size_t>(4 * count));
    };
  }
  EXPECT_THROW(write_sharded_safetensors(folder_.path(), tensors, {}, 16), std::runtime_error);
  EXPECT_EQ(content(shard1_), old_shard);
  EXPECT_EQ(content(index_), old_index);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), {}), 4);
}

TEST_F(Sharded, folders_that_lie_are_refused) {
  expect_bad({"model.safetensors or pytorch_model.bin", "found none of them"});
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"nowhere", "found none of them"},
                         [] { WeightFiles("/nowhere"); }));
  write();
  const std::string original = content(index_);
  write_index([](Json& index) { index.erase("weight_map"); });
  expect_bad({index_, "the key \"weight_map\""});
  write_file_atomic(index_, R"({"weight_map":[]})");
  expect_bad({index_, "weight_map to be an object, got []"});
  for (const char* name : {"../model.safetensors", "a/b.safetensors", "/x.safetensors",
                           "a\\b.safetensors", "model.bin", "", ".safetensors"}) {
    write_file_atomic(index_, original);
    write_index([&](Json& index) { index["weight_map"]["t0"] = name; });
    expect_bad({index_, "the file of tensor \"t0\" as a plain name"});
  }
  write_index([](Json& index) { index["weight_map"]["t0"] = 5; });
  expect_bad({"plain name", "got 5"});
  write_file_atomic(index_, original);
  write_index([](Json& index) { index["weight_map"]["t0"] = "model-00003-of-00003.safetensors"; });
  expect_bad({"tensor \"t0\" only in model-00003", "found it in model-00001"});
  write_file_atomic(index_, original);
  write_index([](Json& index) { index["weight_map"].erase("t1"); });
  expect_bad({"tensor \"t1\" nowhere", "found it in model-00001"});
  write_file_atomic(index_, original);
  write_index([](Json& index) { index["weight_map"]["t9"] = "model-00002-of-00003.safetensors"; });
  expect_bad({"tensor \"t9\" in the shard model-00002", "found none there"});
  write_file_atomic(index_, original);
  const std::string shard1 = content(shard1_);
  write_file_atomic(shard1_, shard1.substr(0, shard1.size() - 1));
  expect_bad({shard1_, "truncated"});
  write_file_atomic(shard1_, content(shard2_));  // t2 twice
  expect_bad({"tensor \"t2\" only in model-00002", "found it in model-00001"});
  fs::remove(shard1_);
  expect_bad({"the shard model-00001-of-00003.safetensors", "no such file"});
}

}  // namespace
}  // namespace mamba
