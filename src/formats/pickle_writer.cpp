// SPDX-License-Identifier: Apache-2.0
// Writing the pickle of a state dict as torch.save does, in protocol 2.
#include "base/check.h"
#include "formats/pickle.h"

namespace mamba {
namespace {

const char* storage_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "FloatStorage";
    case DType::kF64:
      return "DoubleStorage";
    case DType::kF16:
      return "HalfStorage";
    case DType::kBF16:
      return "BFloat16Storage";
    case DType::kI64:
      return "LongStorage";
    case DType::kI32:
      return "IntStorage";
    case DType::kU8:
      return "ByteStorage";
    default:
      break;
  }
  return "";
}

class Writer {
 public:
  std::string out = "\x80\x02";

  void global(const char* module, const char* name) {
    out += std::string("c") + module + "\n" + name + "\n";
  }
  void text(const std::string& value) {
    out += 'X';
    bytes(value.size(), 4);
    out += value;
  }
  void number(int64_t value) {
    if (value < 256) {
      out += 'K';
      bytes(static_cast<uint64_t>(value), 1);
    } else if (value <= INT32_MAX) {
      out += 'J';
      bytes(static_cast<uint64_t>(value), 4);
    } else {
      out += "\x8a\x08";
      bytes(static_cast<uint64_t>(value), 8);
    }
  }
  void numbers(const std::vector<int64_t>& values) {
    out += '(';
    for (const int64_t value : values) number(value);
    out += 't';
  }
  void empty_dict() {
    global("collections", "OrderedDict");
    out += ")R";
  }

 private:
  void bytes(uint64_t value, int width) {
    for (int i = 0; i < width; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
  }
};

}  // namespace

std::string write_tensor_pickle(const std::vector<PickledTensor>& tensors) {
  Writer w;
  w.empty_dict();
  w.out += '(';
  for (const PickledTensor& t : tensors) {
    w.text(t.name);
    w.global("torch._utils", "_rebuild_tensor_v2");
    w.out += "((";
    w.text("storage");
    w.global("torch", storage_type(t.dtype));
    w.text(t.storage);
    w.text("cpu");
    w.number(t.storage_bytes / dtype_size(t.dtype));
    w.out += "tQ";
    w.number(t.offset);
    w.numbers(t.shape);
    w.numbers(t.strides);
    w.out += '\x89';  // requires_grad
    w.empty_dict();   // hooks
    w.out += "tR";
  }
  w.out += "u.";
  return w.out;
}

}  // namespace mamba
