// SPDX-License-Identifier: Apache-2.0
// The files of a data set: which they are, and what their names say about what is in them.
#pragma once

#include <string>
#include <vector>

namespace mamba {

enum class DataKind {
  kText,    // any other name: one document, or several where it names the tokenizer's EOS
  kJsonl,   // .jsonl, .json: one document a line
  kTokens,  // .bin: ids as little-endian numbers
};

DataKind data_kind_of(const std::string& path);

// The files that `paths` name: a folder stands for its files and those of its subfolders, in the
// order of their paths, without names that start with a dot and without the descriptions of .bin
// files. `what` names the option in messages, e.g. "--data". Throws bad_file for a folder without
// files or one that cannot be read, and for a file that is named as text and is none (packed, a
// model, ...). In folders such files are left out, and so are those that end in .bin without
// `with_tokens`; how many of which kind is a line of `notices`, one for each folder. A folder with
// nothing else is bad_file.
std::vector<std::string> list_data_files(const std::vector<std::string>& paths,
                                         const std::string& what, std::vector<std::string>* notices,
                                         bool with_tokens = true);

}  // namespace mamba
