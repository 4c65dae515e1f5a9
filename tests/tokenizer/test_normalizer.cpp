// SPDX-License-Identifier: Apache-2.0
// Normal forms with their short cuts against utf8proc on the whole text.
#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <random>

#include "base/utf8.h"
#include "tokenizer/normalizer.h"

namespace mamba {
namespace {

std::string reference(NormalForm form, const std::string& text) {
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                      (compatible ? UTF8PROC_COMPAT : 0);
  utf8proc_uint8_t* result = nullptr;
  const auto count = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                  static_cast<utf8proc_ssize_t>(text.size()), &result,
                                  static_cast<utf8proc_option_t>(options));
  const std::string out(reinterpret_cast<const char*>(result), static_cast<size_t>(count));
  std::free(result);
  return out;
}

constexpr NormalForm kForms[] = {NormalForm::kNfc, NormalForm::kNfd, NormalForm::kNfkc,
                                 NormalForm::kNfkd};

TEST(Normalizer, AgreesWithUtf8procOnEveryCharacterAndItsNeighbours) {
  std::string buffer;
  for (uint32_t c = 0; c < 0x30000; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text = "a";
    append_utf8(c, &text);
    append_utf8(0x301, &text);
    append_utf8(c, &text);
    text += " b";
    ASSERT_EQ(normalize(NormalForm::kNfc, text, &buffer), reference(NormalForm::kNfc, text))
        << std::hex << c;
  }
}

TEST(Normalizer, AgreesWithUtf8procOnRandomText) {
  std::mt19937 rng(3);
  const uint32_t kBases[] = {'a',    ' ',    0xe9,   0x300,  0x1100, 0x1161, 0x11a8, 0xac00,
                             0x3099, 0x304b, 0x4e2d, 0x2019, 0x2126, 0xfb01, 0x1d15e};
  for (int round = 0; round < 20000; ++round) {
    std::string text, buffer;
    for (int i = 0; i < 10; ++i) append_utf8(kBases[rng() % std::size(kBases)] + rng() % 3, &text);
    for (const NormalForm form : kForms) {
      ASSERT_EQ(normalize(form, text, &buffer), reference(form, text)) << round;
    }
  }
}

TEST(Normalizer, LeavesNormalTextWhereItIs) {
  const std::string text = "plain, and \xc3\xa9\xe2\x80\x99s \xe4\xb8\xad";
  std::string buffer;
  EXPECT_EQ(normalize(NormalForm::kNfc, text, &buffer).data(), text.data());
}

TEST(Normalizer, AppliesFormsOneAfterTheOther) {
  std::string buffer;
  EXPECT_EQ(normalize({NormalForm::kNfd, NormalForm::kNfkc}, "\xc3\xa9\xef\xac\x81", &buffer),
            "\xc3\xa9"
            "fi");
}

}  // namespace
}  // namespace mamba
