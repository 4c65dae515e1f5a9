// SPDX-License-Identifier: Apache-2.0
// Pickles and zip files put together by hand, as torch and as an attacker would.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mamba::test {

inline std::string little(uint64_t value, int width) {
  std::string out;
  for (int i = 0; i < width; ++i) {
    out += i < 8 ? static_cast<char>(value >> (8 * i) & 0xff) : '\0';
  }
  return out;
}

// Opcodes of protocol 2.
inline std::string text(const std::string& value) { return "X" + little(value.size(), 4) + value; }
inline std::string number(int64_t value) {
  return "\x8a\x08" + little(static_cast<uint64_t>(value), 8);
}
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string tuple(const std::vector<int64_t>& values) {
  std::string out = "(";
  for (const int64_t value : values) out += number(value);
  return out + "t";
}
inline std::string storage(const std::string& type, const std::string& key, int64_t elements) {
  return "(" + text("storage") + global("torch", type) + text(key) + text("cpu") +
         number(elements) + "tQ";
}
// _rebuild_tensor_v2 of a storage.
inline std::string tensor(const std::string& storage_ops, int64_t offset,
                          const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") + "(" + storage_ops + number(offset) +
         tuple(shape) + tuple(strides) + "\x89" + global("collections", "OrderedDict") + ")RtR";
}
inline std::string pickle(const std::string& ops) { return "\x80\x02" + ops + "."; }
// {"w": <ops>}
inline std::string dict_of(const std::string& ops) { return pickle("}" + text("w") + ops + "s"); }

struct Member {
  std::string name, content;
};

// A zip of stored members.
std::string zip_of(const std::vector<Member>& members);

// The member data.pkl and one storage "0" of a checkpoint.
inline std::string checkpoint(const std::string& pickle_bytes, const std::string& storage0) {
  return zip_of({{"m/data.pkl", pickle_bytes}, {"m/byteorder", "little"}, {"m/data/0", storage0}});
}

}  // namespace mamba::test
