// SPDX-License-Identifier: Apache-2.0
// The pickle machine: what torch writes is read, whatever else is refused by name, nothing runs.
#include "formats/pickle.h"
#include "formats/torch_builder.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using namespace test;

std::vector<PickledTensor> read(const std::string& bytes) {
  return read_tensor_pickle(bytes.data(), bytes.size(), "m.bin");
}

void refuse(const std::string& bytes, std::initializer_list<std::string> parts,
            ErrorCode code = ErrorCode::kBadFile) {
  EXPECT_TRUE(fails_with(code, parts, [&] { read(bytes); }));
}
void refuse_name(const std::string& bytes, const std::string& name) {
  refuse(bytes, {"\"" + name + "\"", "nothing of it was executed"}, ErrorCode::kUnsupported);
}

const std::string kFloats = storage("FloatStorage", "0", 6);
const std::string kGood = tensor(kFloats, 0, {2, 3}, {3, 1});

TEST(pickle, a_tensor_is_a_view_of_its_storage) {
  const auto tensors = read(dict_of(tensor(kFloats, 1, {2, 2}, {1, 2})));
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].name, "w");
  EXPECT_EQ(tensors[0].dtype, DType::kF32);
  EXPECT_EQ(tensors[0].storage, "0");
  EXPECT_EQ(tensors[0].storage_bytes, 24);
  EXPECT_EQ(tensors[0].offset, 1);
  EXPECT_EQ(tensors[0].shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(tensors[0].strides, (std::vector<int64_t>{1, 2}));
}

TEST(pickle, what_is_written_is_read) {
  std::vector<PickledTensor> tensors(2);
  tensors[0] = {"a", DType::kBF16, "0", 2 * 70000, 0, {70000}, {1}};
  tensors[1] = {"b", DType::kF64, "1", int64_t{8} << 33, 0, {int64_t{1} << 33}, {1}};
  const std::string bytes = write_tensor_pickle(tensors);
  const auto back = read(bytes);
  ASSERT_EQ(back.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(back[i].name, tensors[i].name);
    EXPECT_EQ(back[i].dtype, tensors[i].dtype);
    EXPECT_EQ(back[i].storage_bytes, tensors[i].storage_bytes);
    EXPECT_EQ(back[i].shape, tensors[i].shape);
  }
}

TEST(pickle, calls_are_refused_by_name) {
  refuse_name(pickle(global("posix", "system") + "(" + text("echo pwned") + "tR"), "posix.system");
  refuse_name(pickle(global("os", "system")), "os.system");
  refuse_name(pickle("(" + text("id") + "ios\nsystem\n"), "os.system");            // INST
  refuse_name(pickle(text("builtins") + text("eval") + "\x93"), "builtins.eval");  // STACK_GLOBAL
  refuse_name(dict_of(global("torch.storage", "_load_from_bytes")),
              "torch.storage._load_from_bytes");
  refuse_name(dict_of(global("torch", "ComplexFloatStorage")), "torch.ComplexFloatStorage");
  refuse_name(dict_of(global("numpy.core.multiarray", "scalar")), "numpy.core.multiarray.scalar");
  refuse_name(dict_of(global("a\x1b[2J", "b")), "a?[2J.b");
}

TEST(pickle, other_opcodes_are_refused_by_number) {
  for (const char* op :
       {"\x81", "\x92", "o", "P0\n", "\x82\x01", "\x97", "I1\n", "\x8f", "S'a'\n"}) {
    refuse(pickle(std::string("(N") + op), {"opcodes that torch checkpoints", "byte 4"},
           ErrorCode::kUnsupported);
  }
}

TEST(pickle, allowed_names_cannot_be_misused) {
  refuse(pickle(global("torch", "FloatStorage") + ")R"), {"a function to call"});
  refuse(pickle(global("torch", "float32") + ")R"), {"a function to call"});
  refuse(pickle("N)R"), {"what is called as a global, got None"});
  refuse(pickle(global("collections", "OrderedDict") + "(NtR"), {"an empty OrderedDict"});
  refuse(pickle(global("collections", "OrderedDict") + "NR"), {"arguments of a call as a tuple"});
  refuse(pickle(global("torch._utils", "_rebuild_tensor_v2") + "(" + kFloats + "tR"),
         {"arguments of a tensor, got 1"});
  refuse(pickle(global("torch._utils", "_rebuild_parameter") + "(NtR"), {"got None"});
  refuse(pickle("(" + text("module") + global("torch", "FloatStorage") + "NNNtQ"), {"\"storage\""});
  refuse(pickle("NQ"), {"identity of a storage as a tuple"});
  refuse(pickle(kGood + "}b"), {"gets attributes as a dict, got a tensor"});
}

TEST(pickle, views_beyond_their_storage_are_refused) {
  const int64_t huge = int64_t{1} << 62;
  for (const std::string& view :
       {tensor(kFloats, 0, {7}, {1}), tensor(kFloats, 1, {6}, {1}), tensor(kFloats, 7, {0}, {1}),
        tensor(kFloats, 0, {2, 3}, {4, 1}), tensor(kFloats, huge, {2}, {huge}),
        tensor(kFloats, 0, {huge, huge}, {1, 1}), tensor(kFloats, 0, {3, huge}, {huge, 4})}) {
    refuse(dict_of(view), {"within the 6 elements"});
  }
  refuse(dict_of(tensor(kFloats, 0, {7}, {0})), {"an expanded one", "contiguous"});
  refuse(dict_of(tensor(kFloats, 0, {100000, 100000}, {0, 0})), {"an expanded one"});
  refuse(dict_of(tensor(kFloats, -1, {1}, {1})), {"the offset of a tensor of at least 0, got -1"});
  refuse(dict_of(tensor(kFloats, 0, {-1}, {1})), {"the shape of a tensor"});
  refuse(dict_of(tensor(kFloats, 5, {2}, {-1})), {"the strides of a tensor"});
  refuse(dict_of(tensor(kFloats, 0, {2}, {1, 1})), {"a stride for every size"});
  refuse(dict_of(tensor(storage("FloatStorage", "0", huge), 0, {1}, {1})), {"below 2^63 bytes"});
  refuse(dict_of(tensor(storage("FloatStorage", "0", -5), 0, {1}, {1})), {"got -5"});
  refuse(dict_of(tensor(kFloats, 0, std::vector<int64_t>(33, 1), std::vector<int64_t>(33, 1))),
         {"at most 32"});
  refuse(pickle("}" + text("a") + kGood + "s" + text("b") +
                tensor(storage("FloatStorage", "0", 7), 0, {1}, {1}) + "s"),
         {"storage \"0\" of 24 bytes as before, got 28"});
}

TEST(pickle, untyped_storages_need_a_dtype) {
  const std::string untyped = "(" + text("storage") + global("torch.storage", "UntypedStorage") +
                              text("0") + text("cpu") + number(8) + "tQ";
  const std::string hooks = "\x89" + global("collections", "OrderedDict") + ")R";
  const std::string v3 = global("torch._utils", "_rebuild_tensor_v3") + "(" + untyped + number(1) +
                         tuple({3}) + tuple({1}) + hooks + global("torch", "bfloat16") + "tR";
  const auto tensors = read(dict_of(v3));
  EXPECT_EQ(tensors.at(0).dtype, DType::kBF16);
  EXPECT_EQ(tensors.at(0).storage_bytes, 8);
  refuse(dict_of(tensor(untyped, 0, {1}, {1})), {"an untyped storage with a dtype"});
}

TEST(pickle, only_a_dictionary_of_tensors_is_a_checkpoint) {
  refuse(pickle("N"), {"a state dict", "got None"});
  refuse(pickle("]"), {"got a list"});
  refuse(dict_of("N"), {"got None under \"w\""}, ErrorCode::kUnsupported);
  refuse(dict_of("}" + text("v") + kGood + "s"), {"got a dict under \"w\""},
         ErrorCode::kUnsupported);
  refuse(pickle("}K\x01" + kGood + "s"), {"names of tensors as keys, got an int"});
  refuse(pickle("}" + text("w") + kGood + "s" + text("w") + kGood + "s"), {"\"w\" twice"});
  EXPECT_TRUE(read(pickle("}")).empty());
}

TEST(pickle, cycles_and_depth_cost_nothing) {
  // A list that holds itself, in a tuple that is remembered and holds the list.
  refuse(pickle("]q\x01h\x01"
                "a"
                "h\x01\x85q\x02"
                "0h\x01"),
         {"got a list"});
  EXPECT_EQ(read(pickle("]q\x01h\x01"
                        "a0}" +
                        text("w") + kGood + "s"))
                .size(),
            1u);
  // A dictionary that is its own value.
  refuse(pickle("}q\x01" + text("w") + "h\x01s"), {"got a dict under"}, ErrorCode::kUnsupported);
  // A million lists, each in the next.
  std::string deep;
  for (int i = 0; i < 500000; ++i) deep += "]";
  deep += std::string(499999, 'a');
  refuse(pickle(deep), {"got a list"});
  refuse(pickle(std::string(2000, '(')), {"at most 1000 nested brackets"});
  refuse(pickle(std::string(2000000, ']')), {"at most 1048576 values"});
  std::string tuples = ")";
  for (int i = 0; i < 500000; ++i) tuples += "\x85";
  refuse(pickle(tuples), {"got a tuple"});
}

TEST(pickle, sizes_are_checked_before_they_are_used) {
  refuse(pickle("X\xff\xff\xff\xff"
                "abc"),
         {"4294967295 more bytes, got 4"});
  refuse(pickle(std::string("\x8d") + std::string(8, '\xff')), {"18446744073709551615 more bytes"});
  refuse(pickle(std::string("\x8e") + std::string(8, '\x7f')), {"more bytes"});
  refuse(pickle(std::string("\x95") + std::string(8, '\xff')), {"a frame within the pickle"});
  refuse(pickle("\x8a\x09" + std::string(9, '\1')), {"at most 8 bytes, got 9"});
  refuse(pickle("h\x07"), {"a remembered value 7, got none"});
  refuse(pickle("j\xff\xff\xff\xff"), {"a remembered value 4294967295"});
  refuse(pickle("t"), {"an open mark"});
  refuse(pickle("(0"), {"a value on the stack"});
  refuse(pickle("N(a"), {"a value on the stack"});  // not below the mark
  refuse(pickle("}(Nu"), {"a value for every key"});
  refuse(pickle("(Nd"), {"a value for every key"});
  refuse(pickle(global("torch", "float32").substr(0, 5)), {"the end of a line"});
  refuse(std::string(17 << 20, '.'), {"at most 16777216 bytes"});
  refuse("\x80\x06.", {"protocol 2 to 5"});
  refuse("\x80\x01.", {"protocol 2 to 5"});
  refuse("N.", {"a pickle of protocol 2 to 5"});
  refuse(pickle("\x80\x02"), {"protocol 2 to 5 at the start"});
}

TEST(pickle, truncated_anywhere_is_an_error) {
  const std::string whole = dict_of(kGood);
  EXPECT_EQ(read(whole).size(), 1u);
  for (size_t count = 0; count < whole.size(); ++count) {
    refuse(whole.substr(0, count), {"[m.bin]"});
  }
}

}  // namespace
}  // namespace mamba
