// SPDX-License-Identifier: Apache-2.0
// Reads the file of --config: settings by the names of flags, in sections by the names of commands.
#pragma once

#include <string>
#include <vector>

namespace mamba::cli {

struct Setting {
  std::string section;  // "bench model"; "" for what stands outside of sections
  std::string key;      // without the dashes of a flag
  std::vector<std::string> values;
  bool is_list = false;
  std::string where;  // "run.toml:3" or "run.json, 'eval ppl.window'"
};

// A name that ends in .json is JSON: an object of settings, and of objects for commands. Anything
// else is TOML, of which this reads key = value, [section], strings, numbers, booleans and arrays,
// and as INI does, values without quotes. Throws bad_file with the line.
std::vector<Setting> read_config_file(const std::string& path);
std::vector<Setting> parse_config_toml(const std::string& text, const std::string& path);
std::vector<Setting> parse_config_json(const std::string& text, const std::string& path);

}  // namespace mamba::cli
