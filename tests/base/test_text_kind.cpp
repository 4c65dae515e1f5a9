// SPDX-License-Identifier: Apache-2.0
// What is taken for text, and what is named as something else.
#include <gtest/gtest.h>

#include "base/text_kind.h"

namespace mamba {
namespace {

using namespace std::string_view_literals;

std::string kind(std::string_view head) {
  const std::optional<NotText> other = not_text(head, "a 'file'");
  return other ? other->what : "text";
}

TEST(text_kind, text_of_any_language_is_text) {
  for (const std::string_view text :
       {""sv, "x"sv, "BZh9 is how it begins"sv, "PK"sv, "\xEF\xBB\xBFmark"sv, "\xD0\x9F\xD1\x80"sv,
        "caf\xE9 in Latin-1"sv, "\x1B[1mbold\x1B[0m"sv, "{\"a\": 1}"sv}) {
    EXPECT_EQ(kind(text), "text") << text;
  }
  std::string stray(1000, 'a');
  stray[500] = '\0';  // one NUL among many letters
  EXPECT_EQ(kind(stray), "text");
}

TEST(text_kind, others_are_named) {
  EXPECT_EQ(kind("\xFD"
                 "7zXZ\0\0"sv),
            "packed by xz");
  EXPECT_EQ(kind("\x1F\x8B\x08\0"sv), "packed by gzip");
  EXPECT_EQ(kind("BZh91AY&SY\x01"sv), "packed by bzip2");
  EXPECT_EQ(kind("\x28\xB5\x2F\xFD$"sv), "packed by zstd");
  EXPECT_EQ(kind("PK\x03\x04"sv), "a zip archive");
  EXPECT_EQ(kind("GGUF\x03\0\0\0"sv), "a GGUF file");
  EXPECT_EQ(kind("\x40\0\0\0\0\0\0\0{\"a\""sv), "a safetensors file");
  EXPECT_EQ(kind("\xFF\xFEI\0t\0"sv), "text in UTF-16");
  EXPECT_EQ(kind(std::string(257, 'a') + "ustar"), "a tar archive");
  EXPECT_NE(kind("a\0b\0"sv), "text");
  std::string every;  // of random bytes, one in 256 is 0
  for (int i = 0; i < 1024; ++i) every += static_cast<char>(i * 7);
  EXPECT_NE(kind(every), "text");
  EXPECT_EQ(not_text("\xFD"
                     "7zXZ\0"sv,
                     "my file.xz")
                ->advice,
            "unpack it: xz -dk 'my file.xz'");
}

}  // namespace
}  // namespace mamba
