// SPDX-License-Identifier: Apache-2.0
// Values of GGUF metadata from bytes of strangers.
#include "formats/gguf_cursor.h"

#include <limits>

namespace mamba {
namespace {

constexpr size_t kMaxText = size_t{64} << 20;       // of one string
constexpr int64_t kMaxElements = int64_t{1} << 23;  // of all arrays: vocabularies have 2^20
constexpr int kMaxDepth = 3;                        // of arrays in arrays

size_t bytes_of(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kString:  // its length
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kArray:  // its type and count
      return 12;
  }
  return 1;
}

bool is_real(GgufType type) { return type == GgufType::kF32 || type == GgufType::kF64; }

}  // namespace

const uint8_t* GgufCursor::take(size_t count, const char* what) {
  if (count > left()) {
    fail(ErrorCode::kBadFile,
         "[{}] expected {} ({} bytes) at byte {}, got the end of the file at {}; the file is "
         "truncated or damaged, fetch it again",
         where_, what, count, at_, count_);
  }
  const uint8_t* data = bytes_ + at_;
  at_ += count;
  return data;
}

std::string GgufCursor::text(size_t limit, const char* what) {
  const size_t from = at_;
  const auto length = number<uint64_t>(what);
  if (length > limit || length > left()) {
    fail(ErrorCode::kBadFile,
         "[{}] expected {} of at most {} bytes at byte {}, got a length of {}; the file is "
         "truncated or damaged, fetch it again",
         where_, what, std::min(limit, left()), from, length);
  }
  const auto size = static_cast<size_t>(length);
  return {reinterpret_cast<const char*>(take(size, what)), size};
}

GgufType GgufCursor::type_of(uint32_t number, const std::string& key) const {
  if (number > static_cast<uint32_t>(GgufType::kF64)) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a type of 0..{} for metadata \"{}\" at byte {}, got {}; the file is "
         "damaged, or of a newer version",
         where_, static_cast<uint32_t>(GgufType::kF64), printable(key, 200), at_ - 4, number);
  }
  return static_cast<GgufType>(number);
}

int64_t GgufCursor::whole(GgufType type) {
  constexpr const char* kWhat = "a number of metadata";
  switch (type) {
    case GgufType::kU8:
      return number<uint8_t>(kWhat);
    case GgufType::kI8:
      return number<int8_t>(kWhat);
    case GgufType::kU16:
      return number<uint16_t>(kWhat);
    case GgufType::kI16:
      return number<int16_t>(kWhat);
    case GgufType::kU32:
      return number<uint32_t>(kWhat);
    case GgufType::kI32:
      return number<int32_t>(kWhat);
    case GgufType::kBool:
      return number<uint8_t>(kWhat) != 0 ? 1 : 0;
    default:
      return number<int64_t>(kWhat);
  }
}

double GgufCursor::real(GgufType type) {
  constexpr const char* kWhat = "a number of metadata";
  if (type == GgufType::kF32) return static_cast<double>(number<float>(kWhat));
  return number<double>(kWhat);
}

void GgufCursor::array(const std::string& key, int depth, GgufValue* out) {
  out->type = GgufType::kArray;
  out->item = type_of(number<uint32_t>("the type of an array"), key);
  const size_t from = at_;
  const auto count = number<uint64_t>("the length of an array");
  if (count > left() / bytes_of(out->item) ||
      static_cast<int64_t>(count) > kMaxElements - elements_ || depth > kMaxDepth) {
    fail(ErrorCode::kBadFile,
         "[{}] expected an array of at most {} elements, {} deep, for metadata \"{}\" at byte {}, "
         "got {} elements of {}, {} deep; the file is truncated or damaged, fetch it again",
         where_,
         std::min<int64_t>(static_cast<int64_t>(left() / bytes_of(out->item)),
                           kMaxElements - elements_),
         kMaxDepth, printable(key, 200), from, count, gguf_type_name(out->item), depth);
  }
  elements_ += static_cast<int64_t>(count);
  for (uint64_t i = 0; i < count; ++i) {
    if (out->item == GgufType::kString) {
      out->texts.push_back(text(kMaxText, "a string of metadata"));
    } else if (out->item == GgufType::kArray) {
      array(key, depth + 1, &out->arrays.emplace_back());
    } else if (is_real(out->item)) {
      out->reals.push_back(real(out->item));
    } else {
      out->integers.push_back(whole(out->item));
    }
  }
}

GgufValue GgufCursor::value(const std::string& key) {
  GgufValue out;
  out.type = type_of(number<uint32_t>("the type of a value of metadata"), key);
  if (out.type == GgufType::kString) {
    out.text = text(kMaxText, "a string of metadata");
  } else if (out.type == GgufType::kArray) {
    array(key, 1, &out);
  } else if (is_real(out.type)) {
    out.real = real(out.type);
  } else {
    out.integer = whole(out.type);
  }
  return out;
}

}  // namespace mamba
