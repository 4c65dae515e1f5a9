// SPDX-License-Identifier: Apache-2.0
// The restricted pickle machine. Values live in one list and refer to each other by index: cycles
// cost nothing, nothing recurses, and all memory is bounded by the limits below.
#include "formats/pickle.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string_view>
#include <unordered_map>

#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

constexpr size_t kMaxPickle = size_t{16} << 20;  // that of a model of 1,000 layers is below 2 MiB
constexpr size_t kMaxValues = size_t{1} << 20;
constexpr size_t kMaxMarks = 1000;  // open brackets
constexpr size_t kMaxMemo = kMaxValues;
constexpr size_t kMaxRank = 32;

enum class Call { kDict, kTensor, kTensorV3, kParameter, kSize, kStorageType, kUntyped, kDtype };

struct Global {
  std::string_view module, name;
  Call call;
  DType dtype = DType::kF32;
};

// Everything that a checkpoint may name.
constexpr Global kGlobals[] = {
    {"collections", "OrderedDict", Call::kDict},
    {"torch._utils", "_rebuild_tensor", Call::kTensor},
    {"torch._utils", "_rebuild_tensor_v2", Call::kTensor},
    {"torch._utils", "_rebuild_tensor_v3", Call::kTensorV3},
    {"torch._utils", "_rebuild_parameter", Call::kParameter},
    {"torch", "Size", Call::kSize},
    {"torch", "FloatStorage", Call::kStorageType, DType::kF32},
    {"torch", "DoubleStorage", Call::kStorageType, DType::kF64},
    {"torch", "HalfStorage", Call::kStorageType, DType::kF16},
    {"torch", "BFloat16Storage", Call::kStorageType, DType::kBF16},
    {"torch", "LongStorage", Call::kStorageType, DType::kI64},
    {"torch", "IntStorage", Call::kStorageType, DType::kI32},
    {"torch", "ByteStorage", Call::kStorageType, DType::kU8},
    {"torch", "BoolStorage", Call::kStorageType, DType::kU8},
    {"torch", "UntypedStorage", Call::kUntyped, DType::kU8},
    {"torch.storage", "UntypedStorage", Call::kUntyped, DType::kU8},
    {"torch", "float32", Call::kDtype, DType::kF32},
    {"torch", "float64", Call::kDtype, DType::kF64},
    {"torch", "float16", Call::kDtype, DType::kF16},
    {"torch", "bfloat16", Call::kDtype, DType::kBF16},
    {"torch", "int64", Call::kDtype, DType::kI64},
    {"torch", "int32", Call::kDtype, DType::kI32},
    {"torch", "uint8", Call::kDtype, DType::kU8},
    {"torch", "bool", Call::kDtype, DType::kU8},
};

enum class Kind : uint8_t {
  kNone,
  kBool,
  kInt,
  kFloat,
  kText,
  kBytes,
  kTuple,
  kList,
  kDict,
  kGlobal,
  kStorage,
  kTensor
};
constexpr const char* kKindNames[] = {"None",     "a bool",   "an int",    "a float",
                                      "a string", "bytes",    "a tuple",   "a list",
                                      "a dict",   "a global", "a storage", "a tensor"};

using Ref = uint32_t;  // index of a value

struct Value {
  Kind kind = Kind::kNone;
  int64_t number = 0;      // of kBool and kInt; the index of a global, storage or tensor
  std::string_view text;   // of kText and kBytes, within the pickle
  std::vector<Ref> items;  // of kTuple, kList; of kDict keys and values in turn
};

struct Storage {
  std::string key;
  DType dtype = DType::kF32;
  bool untyped = false;
  int64_t bytes = 0;
};

class Machine {
 public:
  Machine(std::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  std::vector<PickledTensor> run() {
    if (bytes_.size() > kMaxPickle) {
      malformed("at most {} bytes of pickle, got {}", kMaxPickle, bytes_.size());
    }
    if (bytes_.size() < 2 || bytes_[0] != '\x80') malformed("a pickle of protocol 2 to 5");
    for (;;) {
      op_at_ = at_;
      const auto op = static_cast<unsigned char>(take(1)[0]);
      if (op == '.') break;
      if (!constant_op(op) && !container_op(op) && !memo_op(op) && !call_op(op)) refuse_op(op);
    }
    return collect(pop());
  }

 private:
  // "[where] expected <what> at byte n of the pickle; the file is damaged"
  template <class... Args>
  [[noreturn]] void malformed(fmt::format_string<Args...> what, Args&&... args) const {
    fail(ErrorCode::kBadFile,
         "[{}] expected {} (pickle, byte {}); the file is damaged or no checkpoint", where_,
         fmt::format(what, std::forward<Args>(args)...), op_at_);
  }

  [[noreturn]] void refuse_global(std::string_view module, std::string_view name) const {
    fail(ErrorCode::kUnsupported,
         "[{}] expected only the names that torch checkpoints of tensors need, got \"{}.{}\" "
         "(pickle, byte {}); nothing of it was executed: do not load this file elsewhere unless "
         "you trust it, and save the weights as a plain state dict or safetensors",
         where_, printable(module, 100), printable(name, 100), op_at_);
  }

  [[noreturn]] void refuse_op(unsigned char op) const {
    fail(ErrorCode::kUnsupported,
         "[{}] expected only the opcodes that torch checkpoints of tensors need, got 0x{:02x} "
         "(pickle, byte {}); save the weights as a plain state dict or safetensors",
         where_, op, op_at_);
  }

  // Bytes and numbers of the pickle.
  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_) {
      malformed("{} more bytes, got {}", count, bytes_.size() - at_);
    }
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }
  uint64_t take_number(size_t width) {
    const std::string_view raw = take(width);
    uint64_t value = 0;
    for (size_t i = width; i-- > 0;) value = value << 8 | static_cast<unsigned char>(raw[i]);
    return value;
  }
  std::string_view take_line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) malformed("the end of a line, got none");
    const std::string_view line = take(end - at_);
    take(1);
    return line;
  }

  // Values and the stack.
  Ref add(Kind kind, int64_t number = 0, std::string_view text = {}) {
    if (values_.size() >= kMaxValues) malformed("at most {} values, got more", kMaxValues);
    values_.push_back({kind, number, text, {}});
    return static_cast<Ref>(values_.size() - 1);
  }
  void push(Kind kind, int64_t number = 0, std::string_view text = {}) {
    stack_.push_back(add(kind, number, text));
  }
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  Ref top() const {
    if (stack_.size() <= floor()) malformed("a value on the stack, got none");
    return stack_.back();
  }
  Ref pop() {
    const Ref value = top();
    stack_.pop_back();
    return value;
  }
  // The values above the last mark, which goes.
  std::vector<Ref> pop_mark() {
    if (marks_.empty()) malformed("an open mark, got none");
    std::vector<Ref> items(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()),
                           stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }
  const Value& expect(Ref ref, Kind kind, const char* what) const {
    const Value& value = values_[ref];
    if (value.kind != kind) {
      malformed("{} as {}, got {}", what, kKindNames[static_cast<size_t>(kind)],
                kKindNames[static_cast<size_t>(value.kind)]);
    }
    return value;
  }
  int64_t expect_size(Ref ref, const char* what) const {
    const int64_t number = expect(ref, Kind::kInt, what).number;
    if (number < 0) malformed("{} of at least 0, got {}", what, number);
    return number;
  }
  std::vector<int64_t> expect_sizes(Ref ref, const char* what) const {
    const Value& tuple = expect(ref, Kind::kTuple, what);
    if (tuple.items.size() > kMaxRank) {
      malformed("{} of at most {} numbers, got {}", what, kMaxRank, tuple.items.size());
    }
    std::vector<int64_t> sizes;
    for (const Ref item : tuple.items) sizes.push_back(expect_size(item, what));
    return sizes;
  }

  bool constant_op(unsigned char op);
  bool container_op(unsigned char op);
  bool memo_op(unsigned char op);
  bool call_op(unsigned char op);
  void push_long(size_t width);
  void push_items(Kind kind, std::vector<Ref> items) {
    push(kind);
    values_[stack_.back()].items = std::move(items);
  }
  void append(const std::vector<Ref>& items, Kind kind, const char* what) {
    if (kind == Kind::kDict && items.size() % 2 != 0) malformed("a value for every key");
    const Ref target = top();
    expect(target, kind, what);
    std::vector<Ref>& into = values_[target].items;
    into.insert(into.end(), items.begin(), items.end());
  }
  void memoize(uint64_t key) {
    if (memo_.size() >= kMaxMemo) malformed("at most {} remembered values, got more", kMaxMemo);
    memo_[key] = top();
  }
  void push_global(std::string_view module, std::string_view name);
  void push_storage(Ref id);
  void reduce(Ref callable, Ref arguments);
  void rebuild_tensor(const Value& arguments, bool v3);
  std::vector<PickledTensor> collect(Ref root) const;

  std::string_view bytes_;
  const std::string& where_;
  size_t at_ = 0, op_at_ = 0;
  std::vector<Value> values_;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;  // sizes of the stack
  std::unordered_map<uint64_t, Ref> memo_;
  std::vector<Storage> storages_;
  std::vector<PickledTensor> tensors_;
  std::map<std::string, int64_t> storage_bytes_;  // by key
};

void Machine::push_long(size_t width) {
  if (width > 8) malformed("a number of at most 8 bytes, got {}", width);
  uint64_t value = take_number(width);
  if (width > 0 && width < 8 && (value >> (8 * width - 1) & 1) != 0) {
    value |= ~uint64_t{0} << (8 * width);
  }
  push(Kind::kInt, static_cast<int64_t>(value));
}

bool Machine::constant_op(unsigned char op) {
  switch (op) {
    case 0x80: {  // PROTO
      const uint64_t protocol = take_number(1);
      if (op_at_ != 0 || protocol < 2 || protocol > 5) malformed("protocol 2 to 5 at the start");
      return true;
    }
    case 0x95: {  // FRAME
      const uint64_t length = take_number(8);
      if (length > bytes_.size() - at_) malformed("a frame within the pickle, got {}", length);
      return true;
    }
    case 'N':
      push(Kind::kNone);
      return true;
    case 0x88:
    case 0x89:
      push(Kind::kBool, op == 0x88);
      return true;
    case 'J':
      push(Kind::kInt, static_cast<int32_t>(take_number(4)));
      return true;
    case 'K':
      push(Kind::kInt, static_cast<int64_t>(take_number(1)));
      return true;
    case 'M':
      push(Kind::kInt, static_cast<int64_t>(take_number(2)));
      return true;
    case 0x8a:  // LONG1
      push_long(take_number(1));
      return true;
    case 'G':
      take(8);
      push(Kind::kFloat);
      return true;
    case 'X':
    case 0x8c:
    case 0x8d:
      push(Kind::kText, 0, take(take_number(op == 'X' ? 4 : op == 0x8c ? 1 : 8)));
      return true;
    case 'U':  // SHORT_BINSTRING, as Python 2 wrote names
    case 'T':
      push(Kind::kText, 0, take(take_number(op == 'U' ? 1 : 4)));
      return true;
    case 'C':
    case 'B':
    case 0x8e:
      push(Kind::kBytes, 0, take(take_number(op == 'C' ? 1 : op == 'B' ? 4 : 8)));
      return true;
    default:
      return false;
  }
}

bool Machine::container_op(unsigned char op) {
  switch (op) {
    case '(':
      if (marks_.size() >= kMaxMarks) malformed("at most {} nested brackets, got more", kMaxMarks);
      marks_.push_back(stack_.size());
      return true;
    case ')':
      push(Kind::kTuple);
      return true;
    case ']':
      push(Kind::kList);
      return true;
    case '}':
      push(Kind::kDict);
      return true;
    case 't':
      push_items(Kind::kTuple, pop_mark());
      return true;
    case 'l':
      push_items(Kind::kList, pop_mark());
      return true;
    case 'd': {
      std::vector<Ref> items = pop_mark();
      if (items.size() % 2 != 0) malformed("a value for every key");
      push_items(Kind::kDict, std::move(items));
      return true;
    }
    case 0x85:
    case 0x86:
    case 0x87: {
      std::vector<Ref> items(op - 0x84u);
      for (size_t i = items.size(); i-- > 0;) items[i] = pop();
      push_items(Kind::kTuple, std::move(items));
      return true;
    }
    case 'a': {
      const Ref item = pop();
      append({item}, Kind::kList, "what is appended to");
      return true;
    }
    case 'e':
      append(pop_mark(), Kind::kList, "what is appended to");
      return true;
    case 's': {
      const Ref value = pop(), key = pop();
      append({key, value}, Kind::kDict, "what an item is set in");
      return true;
    }
    case 'u':
      append(pop_mark(), Kind::kDict, "what items are set in");
      return true;
    default:
      return false;
  }
}

bool Machine::memo_op(unsigned char op) {
  switch (op) {
    case 'q':
    case 'r':
      memoize(take_number(op == 'q' ? 1 : 4));
      return true;
    case 0x94:  // MEMOIZE
      memoize(memo_.size());
      return true;
    case 'h':
    case 'j': {
      const uint64_t key = take_number(op == 'h' ? 1 : 4);
      const auto found = memo_.find(key);
      if (found == memo_.end()) malformed("a remembered value {}, got none", key);
      stack_.push_back(found->second);
      return true;
    }
    case '0':
      pop();
      return true;
    case '1':
      pop_mark();
      return true;
    default:
      return false;
  }
}

bool Machine::call_op(unsigned char op) {
  switch (op) {
    case 'c': {
      const std::string_view module = take_line();
      push_global(module, take_line());
      return true;
    }
    case 'i': {  // INST: calls what it names
      const std::string_view module = take_line();
      refuse_global(module, take_line());
    }
    case 0x93: {  // STACK_GLOBAL
      const std::string_view name = expect(pop(), Kind::kText, "the name of a global").text;
      push_global(expect(pop(), Kind::kText, "the module of a global").text, name);
      return true;
    }
    case 'Q':
      push_storage(pop());
      return true;
    case 'R': {
      const Ref arguments = pop(), callable = pop();
      reduce(callable, arguments);
      return true;
    }
    case 'b':  // BUILD: attributes of the dictionary, such as _metadata
      pop();
      expect(top(), Kind::kDict, "what gets attributes");
      return true;
    default:
      return false;
  }
}

void Machine::push_global(std::string_view module, std::string_view name) {
  for (size_t i = 0; i < std::size(kGlobals); ++i) {
    if (kGlobals[i].module == module && kGlobals[i].name == name) {
      return push(Kind::kGlobal, static_cast<int64_t>(i));
    }
  }
  refuse_global(module, name);
}

// ("storage", type, key, location, elements); the bytes of an untyped one are its elements.
void Machine::push_storage(Ref id) {
  const Value& tuple = expect(id, Kind::kTuple, "the identity of a storage");
  if (tuple.items.size() != 5) malformed("a storage of 5 parts, got {}", tuple.items.size());
  if (expect(tuple.items[0], Kind::kText, "the kind of a storage").text != "storage") {
    malformed("a persistent value of the kind \"storage\"");
  }
  const Value& type = expect(tuple.items[1], Kind::kGlobal, "the type of a storage");
  const Global& global = kGlobals[type.number];
  if (global.call != Call::kStorageType && global.call != Call::kUntyped) {
    malformed("a type of storage, got {}.{}", global.module, global.name);
  }
  Storage storage;
  storage.key = expect(tuple.items[2], Kind::kText, "the key of a storage").text;
  storage.dtype = global.dtype;
  storage.untyped = global.call == Call::kUntyped;
  const int64_t elements = expect_size(tuple.items[4], "the size of a storage");
  if (__builtin_mul_overflow(elements, dtype_size(storage.dtype), &storage.bytes)) {
    malformed("a storage below 2^63 bytes, got {} elements", elements);
  }
  const auto [known, fresh] = storage_bytes_.emplace(storage.key, storage.bytes);
  if (!fresh && known->second != storage.bytes) {
    malformed("storage \"{}\" of {} bytes as before, got {}", printable(storage.key), known->second,
              storage.bytes);
  }
  storages_.push_back(std::move(storage));
  push(Kind::kStorage, static_cast<int64_t>(storages_.size() - 1));
}

void Machine::reduce(Ref callable, Ref arguments) {
  const Global& global = kGlobals[expect(callable, Kind::kGlobal, "what is called").number];
  const Value& tuple = expect(arguments, Kind::kTuple, "the arguments of a call");
  switch (global.call) {
    case Call::kDict:
      if (!tuple.items.empty()) malformed("an empty OrderedDict, got one with arguments");
      return push(Kind::kDict);
    case Call::kTensor:
    case Call::kTensorV3:
      return rebuild_tensor(tuple, global.call == Call::kTensorV3);
    case Call::kParameter: {
      if (tuple.items.empty()) malformed("the tensor of a parameter, got none");
      const Ref tensor = tuple.items[0];
      expect(tensor, Kind::kTensor, "the tensor of a parameter");
      return stack_.push_back(tensor);
    }
    case Call::kSize: {
      if (tuple.items.size() != 1) malformed("the numbers of a Size");
      const Ref sizes = tuple.items[0];
      expect(sizes, Kind::kTuple, "the numbers of a Size");
      return stack_.push_back(sizes);
    }
    default:
      malformed("a function to call, got {}.{}", global.module, global.name);
  }
}

// v2: (storage, offset, shape, strides, requires_grad, hooks[, metadata]); v3 has the dtype after
// the hooks. The oldest stops at the strides.
void Machine::rebuild_tensor(const Value& arguments, bool v3) {
  const std::vector<Ref>& items = arguments.items;
  if (items.size() < (v3 ? 7u : 4u)) malformed("the arguments of a tensor, got {}", items.size());
  const Storage& storage =
      storages_[static_cast<size_t>(expect(items[0], Kind::kStorage, "a storage").number)];
  PickledTensor t;
  t.dtype = storage.dtype;
  if (v3) {
    const Global& global = kGlobals[expect(items[6], Kind::kGlobal, "the dtype").number];
    if (global.call != Call::kDtype) malformed("a dtype, got {}.{}", global.module, global.name);
    t.dtype = global.dtype;
  }
  if (storage.untyped != v3) malformed("an untyped storage with a dtype, or a typed one without");
  t.storage = storage.key;
  t.storage_bytes = storage.bytes;
  t.offset = expect_size(items[1], "the offset of a tensor");
  t.shape = expect_sizes(items[2], "the shape of a tensor");
  t.strides = expect_sizes(items[3], "the strides of a tensor");
  if (t.shape.size() != t.strides.size()) malformed("a stride for every size of a tensor");
  const int64_t available = storage.bytes / dtype_size(t.dtype);
  int64_t count = 1, end = t.offset;  // index of the last element
  bool good = true;
  for (size_t i = 0; i < t.shape.size(); ++i) {
    int64_t reach = 0;
    good = good && !__builtin_mul_overflow(count, t.shape[i], &count);
    if (t.shape[i] == 0) continue;
    good = good && !__builtin_mul_overflow(t.shape[i] - 1, t.strides[i], &reach) &&
           !__builtin_add_overflow(end, reach, &end);
  }
  if (!good || (count > 0 && end >= available) || (count == 0 && t.offset > available)) {
    malformed("a tensor within the {} elements of its storage \"{}\", got one that reaches beyond",
              available, printable(t.storage));
  }
  if (count > available) {
    malformed(
        "a tensor of at most the {} elements of its storage \"{}\", got {} (an expanded "
        "one); save it with .contiguous()",
        available, printable(t.storage), count);
  }
  tensors_.push_back(std::move(t));
  push(Kind::kTensor, static_cast<int64_t>(tensors_.size() - 1));
}

std::vector<PickledTensor> Machine::collect(Ref root) const {
  const Value& dict = values_[root];
  if (dict.kind != Kind::kDict) {
    malformed("a dictionary of tensors (a state dict), got {}",
              kKindNames[static_cast<size_t>(dict.kind)]);
  }
  std::vector<PickledTensor> tensors;
  for (size_t i = 0; i < dict.items.size(); i += 2) {
    const Value& key = values_[dict.items[i]];
    if (key.kind != Kind::kText) {
      malformed("names of tensors as keys, got {}", kKindNames[static_cast<size_t>(key.kind)]);
    }
    const Value& value = values_[dict.items[i + 1]];
    if (value.kind != Kind::kTensor) {
      fail(ErrorCode::kUnsupported,
           "[{}] expected a dictionary of tensors alone (a state dict), got {} under \"{}\"; save "
           "the state dict by itself",
           where_, kKindNames[static_cast<size_t>(value.kind)], printable(key.text, 100));
    }
    tensors.push_back(tensors_[static_cast<size_t>(value.number)]);
    tensors.back().name = key.text;
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const PickledTensor& a, const PickledTensor& b) { return a.name < b.name; });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].name == tensors[i - 1].name) {
      malformed("every tensor once, got \"{}\" twice", printable(tensors[i].name, 100));
    }
  }
  return tensors;
}

}  // namespace

std::vector<PickledTensor> read_tensor_pickle(const void* bytes, size_t count,
                                              const std::string& where) {
  return Machine({static_cast<const char*>(bytes), count}, where).run();
}

}  // namespace mamba
