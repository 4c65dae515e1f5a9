// SPDX-License-Identifier: Apache-2.0
// torch's zip files: those that torch wrote, those that we write, and those that lie.
#include <string.h>

#include <fstream>
#include <iterator>

#include "base/json.h"
#include "formats/torch_builder.h"
#include "formats/torch_zip.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using namespace test;

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string golden(const std::string& name) {
  return std::string(MAMBA_SOURCE_DIR) + "/tests/golden/torch/" + name;
}

std::vector<float> floats(const TensorInfo& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.count()));
  read_to_f32(tensor, out.data());
  return out;
}

// Half of 0, 1, ... in the order of `places`.
std::vector<float> halves(std::initializer_list<int> places) {
  std::vector<float> out;
  for (const int place : places) out.push_back(static_cast<float>(place) / 2);
  return out;
}

void refuse(const std::string& bytes, std::initializer_list<std::string> parts,
            ErrorCode code = ErrorCode::kBadFile) {
  EXPECT_TRUE(fails_with(code, parts, [&] { TorchFile(bytes.data(), bytes.size(), "m.bin"); }));
}

TEST(torch_zip, reads_what_torch_writes_in_every_protocol) {
  for (const char* name : {"protocol2.bin", "protocol4.bin", "protocol5.bin"}) {
    SCOPED_TRACE(name);
    const TorchFile file(golden(name));
    ASSERT_EQ(file.tensors().size(), 16u);
    EXPECT_EQ(floats(file.get("f32", {2, 3})), halves({0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(file.get("f16").dtype, DType::kF16);
    EXPECT_EQ(floats(file.get("f16", {2, 2})), halves({0, 1, 2, 3}));
    EXPECT_EQ(file.get("bf16").dtype, DType::kBF16);
    EXPECT_EQ(floats(file.get("bf16", {5})), halves({0, 1, 2, 3, 4}));
    EXPECT_EQ(floats(file.get("f64", {3})), halves({0, 1, 2}));
    EXPECT_EQ(read_to_i64(file.get("i64", {2})), (std::vector<int64_t>{-1, int64_t{1} << 40}));
    EXPECT_EQ(read_to_i64(file.get("i32", {2})), (std::vector<int64_t>{-5, 7}));
    EXPECT_EQ(read_to_i64(file.get("u8", {2})), (std::vector<int64_t>{0, 255}));
    EXPECT_EQ(read_to_i64(file.get("bool", {2})), (std::vector<int64_t>{1, 0}));
    EXPECT_EQ(floats(file.get("scalar", {})), halves({5}));
    EXPECT_EQ(file.get("empty", {0, 4}).bytes, 0);
    EXPECT_EQ(floats(file.get("parameter", {2})), halves({16, 17}));
    EXPECT_EQ(file.get("shared_again").data, file.get("shared", {4, 3}).data);
    EXPECT_EQ(floats(file.get("rows", {2, 3})), halves({3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(floats(file.get("turned", {3, 4})), halves({0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11}));
    EXPECT_EQ(floats(file.get("columns", {4, 2})), halves({1, 2, 4, 5, 7, 8, 10, 11}));
  }
  EXPECT_EQ(TorchFile(golden("with_metadata.bin")).tensors().size(), 2u);
}

TEST(torch_zip, stored_tensors_lie_in_the_file) {
  const std::string bytes = content(golden("protocol2.bin"));
  const TorchFile file(bytes.data(), bytes.size(), "m.bin");
  const char* data = static_cast<const char*>(file.get("rows").data);
  EXPECT_TRUE(data >= bytes.data() && data < bytes.data() + bytes.size());
}

TEST(torch_zip, what_is_no_state_dict_is_refused) {
  const auto refused = [](const char* name, std::initializer_list<std::string> parts) {
    EXPECT_TRUE(fails_with(ErrorCode::kUnsupported, parts, [&] { TorchFile{golden(name)}; }));
  };
  refused("legacy.bin", {"since version 1.6", "save it again"});
  refused("module.bin", {"\"torch.nn.modules.linear.Linear\"", "nothing of it was executed"});
  refused("with_number.bin", {"got an int under \"step\""});
  refuse("\x80\x02}.", {"a bare pickle"}, ErrorCode::kUnsupported);
  refuse("hello", {"\"PK\" at byte 0", "hello"});
  refuse("", {"\"PK\" at byte 0"});
  const std::string good =
      checkpoint(dict_of(tensor(storage("FloatStorage", "0", 1), 0, {1}, {1})), "1234");
  EXPECT_EQ(TorchFile(good.data(), good.size(), "m").tensors().size(), 1u);
  refuse(zip_of({{"m/other", "x"}}), {"one member named */data.pkl", "got 0"});
  refuse(zip_of({{"a/data.pkl", "x"}, {"b/data.pkl", "x"}}), {"got 2"});
  refuse(zip_of({{"a/constants.pkl", "x"}}), {"TorchScript"}, ErrorCode::kUnsupported);
  refuse(zip_of({{"m/data.pkl", pickle("}")}, {"m/byteorder", "big"}}), {"byteorder little"},
         ErrorCode::kUnsupported);
}

TEST(torch_zip, storages_must_be_there_and_have_their_size) {
  const std::string ops = dict_of(tensor(storage("FloatStorage", "0", 1), 0, {1}, {1}));
  refuse(checkpoint(ops, "123"), {"a member of 4 bytes, got 3"});
  refuse(checkpoint(ops, "12345"), {"got 5"});
  refuse(zip_of({{"m/data.pkl", ops}}), {"storage \"0\" of tensor \"w\"", "got none"});
  const std::string outside = dict_of(tensor(storage("FloatStorage", "../../x", 1), 0, {1}, {1}));
  refuse(checkpoint(outside, "1234"), {"got none"});
}

TEST(torch_zip, copies_cannot_outgrow_the_storages) {
  std::string ops = "}";
  const std::string one = storage("FloatStorage", "0", 6);
  // The same turned view shares one copy; other turned views add up.
  ops += text("a") + tensor(one, 0, {3, 2}, {1, 3}) + "s";
  ops += text("b") + tensor(one, 0, {3, 2}, {1, 3}) + "s";
  const std::string good = checkpoint(pickle(ops), std::string(24, '\0'));
  const TorchFile file(good.data(), good.size(), "m");
  EXPECT_EQ(file.get("a").data, file.get("b").data);
  ops += text("c") + tensor(one, 0, {2, 3}, {1, 2}) + "s";
  refuse(checkpoint(pickle(ops), std::string(24, '\0')), {"views that do not repeat", "\"c\""},
         ErrorCode::kUnsupported);
}

TEST(torch_zip, lying_directories_are_refused) {
  const std::string ops = dict_of(tensor(storage("FloatStorage", "0", 1), 0, {1}, {1}));
  const std::string good = checkpoint(ops, "1234");
  const auto change = [&](const std::string& from, size_t skip, const std::string& to) {
    std::string bytes = good;
    bytes.replace(bytes.rfind(from) + skip, to.size(), to);
    return bytes;
  };
  const std::string entry = "PK\x01\x02", end = "PK\x05\x06";
  refuse(change(entry, 42, little(0, 4)), {"[m.bin]"});  // another member's place
  refuse(change(entry, 42, little(0x7fffffff, 4)),
         {"to start at byte 2147483647 as the directory says"});
  refuse(change(entry, 20, little(1 << 30, 4)), {"[m.bin]"});  // packed size
  refuse(change(entry, 24, little(1 << 30, 4)), {"[m.bin]"});  // unpacked size
  refuse(change(entry, 10, little(99, 2)), {"compression 99"}, ErrorCode::kUnsupported);
  refuse(change(entry, 8, little(1, 2)), {"encrypted"}, ErrorCode::kUnsupported);
  refuse(change(end, 16, little(0x10, 4)), {"[m.bin]"});             // directory over the members
  refuse(change(end, 8, little(9, 2) + little(9, 2)), {"[m.bin]"});  // more members than there are
  refuse(change(end, 0, "PK\x05\x07"), {"a zip directory at the end"});
  // Two entries for the same bytes.
  std::string twice = zip_of({{"m/data.pkl", ops}, {"m/data/0", "1234"}, {"m/data/1", "1234"}});
  const size_t second = twice.rfind("m/data/1") - 46;
  twice.replace(second + 42, 4, twice.substr(twice.rfind("m/data/0") - 46 + 42, 4));
  refuse(twice, {"m.bin"});
  std::string broken = good;
  broken[broken.find("\x80\x02}") + 3] ^= 1;
  refuse(broken, {"data.pkl", "another checksum"});
}

TEST(torch_zip, truncated_or_damaged_anywhere_is_an_error_or_reads) {
  const std::string good = content(golden("protocol2.bin"));
  for (size_t count = 0; count < good.size(); count += 7) {
    const std::string part = good.substr(0, count);
    EXPECT_THROW(TorchFile(part.data(), part.size(), "m"), Error) << count;
  }
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x41);
    try {
      const TorchFile file(bytes.data(), bytes.size(), "m");
      for (const TensorInfo& t : file.tensors()) {
        volatile char last = t.bytes > 0 ? static_cast<const char*>(t.data)[t.bytes - 1] : 0;
        static_cast<void>(last);
      }
    } catch (const Error& error) {
      EXPECT_NE(error.code(), ErrorCode::kInternal) << at << ": " << error.what();
    }
  }
}

class Written : public testing::TestWithParam<int64_t> {};

TEST_P(Written, files_are_read_back_with_shared_storages_and_alignment) {
  ScratchFolder folder;
  const std::string path = folder / "pytorch_model.bin";
  const float values[6] = {0, 1, 2, 3, 4, 5};
  const uint16_t bits[2] = {0x3f80, 0x4000};
  const std::vector<TensorData> tensors = {{"w", DType::kF32, {2, 3}, values},
                                           {"h", DType::kBF16, {2}, bits},
                                           {"none", DType::kF32, {0, 2}, nullptr}};
  write_torch_file(path, "pytorch_model", tensors, {{"alias", "w"}}, GetParam());
  const std::string first = content(path);
  const TorchFile file(path);
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(floats(file.get("w", {2, 3})), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(floats(file.get("h", {2})), (std::vector<float>{1, 2}));
  EXPECT_EQ(file.get("alias", {2, 3}).data, file.get("w").data);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.get("w").data) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.get("h").data) % 64, 0u);
  write_torch_file(path, "pytorch_model", tensors, {{"alias", "w"}}, GetParam());
  EXPECT_TRUE(content(path) == first);
}
INSTANTIATE_TEST_SUITE_P(Zip64, Written, testing::Values(0xffffffff, 0, 100));

}  // namespace
}  // namespace mamba
