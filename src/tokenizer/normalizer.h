// SPDX-License-Identifier: Apache-2.0
// Unicode normal forms of text (utf8proc), with ways around the work for text that is normal.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mamba {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// "NFC" for kNfc, and so on.
const char* normal_form_name(NormalForm form);

// `text` (valid UTF-8) in the form. The result views `text` if that is normal already, else `out`.
std::string_view normalize(NormalForm form, std::string_view text, std::string* out);

// In each of several forms, one after the other.
std::string_view normalize(const std::vector<NormalForm>& forms, std::string_view text,
                           std::string* out);

}  // namespace mamba
