// SPDX-License-Identifier: Apache-2.0
// Magic numbers of what is taken for text by mistake.
#include "base/text_kind.h"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

using namespace std::string_view_literals;

constexpr const char* kOther = "name a text file";

struct Magic {
  std::string_view bytes;
  const char* what;
  const char* advice;  // with {} for the path
};
constexpr Magic kMagics[] = {
    {"\xFD\x37zXZ\0"sv, "packed by xz", "unpack it: xz -dk '{}'"},
    {"\x1F\x8B\x08"sv, "packed by gzip", "unpack it: gzip -dk '{}'"},
    {"BZh"sv, "packed by bzip2", "unpack it: bzip2 -dk '{}'"},
    {"\x28\xB5\x2F\xFD"sv, "packed by zstd", "unpack it: zstd -d '{}'"},
    {"\x04\x22\x4D\x18"sv, "packed by lz4", "unpack it: lz4 -dk '{}'"},
    {"7z\xBC\xAF\x27\x1C"sv, "a 7z archive", "unpack it: 7z x '{}'"},
    {"PK\x03\x04"sv, "a zip archive", "unpack it: unzip '{}'"},
    {"GGUF"sv, "a GGUF file", kOther},
    {"PAR1"sv, "a parquet file", "write its texts as JSON lines or text"},
    {"%PDF-"sv, "a PDF file", "take out its text: pdftotext '{}'"},
    {"\xFF\xFE"sv, "text in UTF-16", "turn it into UTF-8: iconv -f UTF-16 -t UTF-8 '{}'"},
    {"\xFE\xFF"sv, "text in UTF-16", "turn it into UTF-8: iconv -f UTF-16 -t UTF-8 '{}'"},
};

// A length of eight bytes, small enough, and JSON behind it.
bool is_safetensors(std::string_view head) {
  constexpr uint64_t kLargest = 100'000'000;
  uint64_t length = 0;
  if (head.size() <= sizeof length) return false;
  std::memcpy(&length, head.data(), sizeof length);
  return length > 1 && length <= kLargest && head[sizeof length] == '{';
}

// Zeros are in text by accident alone, other controls are rare there; of packed pictures or sound
// each byte is about as frequent.
bool is_binary(std::string_view head) {
  size_t zeros = 0, controls = 0;
  for (const char c : head) {
    const auto byte = static_cast<unsigned char>(c);
    zeros += byte == 0;
    controls += byte < 8 || (byte > 13 && byte < 32 && byte != 27) || byte == 127;
  }
  return zeros * 256 > head.size() || (zeros > 0 && controls * 32 > head.size());
}

std::string filled(std::string text, const std::string& path) {
  const size_t at = text.find("{}");
  return at == std::string::npos ? text : text.replace(at, 2, printable(path, 200));
}

}  // namespace

std::optional<NotText> not_text(std::string_view head, const std::string& path) {
  constexpr size_t kTar = 257;
  for (const Magic& magic : kMagics) {
    // "BZh" alone may begin a text.
    const bool by_chance =
        magic.bytes == "BZh" && (head.size() < 10 || head.substr(4, 6) != "1AY&SY");
    if (head.starts_with(magic.bytes) && !by_chance) {
      return NotText{magic.what, filled(magic.advice, path)};
    }
  }
  if (is_safetensors(head)) return NotText{"a safetensors file", kOther};
  if (head.size() > kTar && head.substr(kTar).starts_with("ustar")) {
    return NotText{"a tar archive", filled("unpack it: tar -xf '{}'", path)};
  }
  if (!is_binary(head)) return std::nullopt;
  return NotText{"no text (bytes of 0 and other controls)",
                 filled("name a text file; for a model of bytes: mamba-cpp tokenize --tokenizer "
                        "bytes -f '{}' --out FILE.bin",
                        path)};
}

std::optional<NotText> file_not_text(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return std::nullopt;
  std::ifstream in(path, std::ios::binary);
  std::string head(kTextHead, '\0');
  in.read(head.data(), static_cast<std::streamsize>(head.size()));
  head.resize(static_cast<size_t>(in.gcount()));
  return not_text(head, path);
}

void expect_text(const std::string& path, const std::string& where) {
  const std::optional<NotText> other = file_not_text(path);
  if (!other) return;
  fail(ErrorCode::kBadFile, "[{}] expected text, got '{}', which is {}; {}", where,
       printable(path, 200), other->what, other->advice);
}

}  // namespace mamba
