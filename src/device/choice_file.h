// SPDX-License-Identifier: Apache-2.0
// The file that tune writes: rows of choices measured on one card, as JSON. Nothing of it is
// believed when it is read.
#pragma once

#include <string>
#include <vector>

#include "kernels/choices.h"

namespace mamba {

struct ChoiceFile {
  std::string hardware;  // the name of the card, for people
  Card card;
  std::vector<ChoiceRow> rows;
};

// "choices-sm90-132.json", within the folder of such files.
std::string choice_file_name(const Card& card);
std::string to_json_text(const ChoiceFile& file);
// The same as the text of src/kernels/choices_table.inc.
std::string to_source(const ChoiceFile& file);

// Throws bad_file for what is damaged, too large, of another version or of another card than
// `card`.
ChoiceFile read_choice_file(const std::string& path, const Card& card);

}  // namespace mamba
