// SPDX-License-Identifier: Apache-2.0
// The zip of torch_builder.h, with a checksum of its own.
#include "formats/torch_builder.h"

namespace mamba::test {
namespace {

uint32_t crc32_of(const std::string& bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int i = 0; i < 8; ++i) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

}  // namespace

std::string zip_of(const std::vector<Member>& members) {
  std::string file, directory;
  for (const Member& m : members) {
    const std::string facts = little(20, 2) + little(0, 8) + little(crc32_of(m.content), 4) +
                              little(m.content.size(), 4) + little(m.content.size(), 4) +
                              little(m.name.size(), 2) + little(0, 2);
    directory +=
        "PK\x01\x02" + little(20, 2) + facts + little(0, 10) + little(file.size(), 4) + m.name;
    file += "PK\x03\x04" + facts + m.name + m.content;
  }
  const size_t offset = file.size();
  return file + directory + "PK\x05\x06" + little(0, 4) + little(members.size(), 2) +
         little(members.size(), 2) + little(directory.size(), 4) + little(offset, 4) + little(0, 2);
}

}  // namespace mamba::test
