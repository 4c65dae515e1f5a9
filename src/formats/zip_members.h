// SPDX-License-Identifier: Apache-2.0
// The members of a zip file in memory, with where their bytes lie: sizes, offsets and overlaps are
// checked here, so that whoever uses a member need not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mamba {

struct ZipMember {
  std::string name;
  bool deflated = false;
  int64_t offset = 0;  // of its bytes in the file
  int64_t packed = 0;  // bytes there
  int64_t bytes = 0;   // unpacked; equal to packed unless deflated
  uint32_t crc = 0;
};

// The files of the archive (no folders), sorted by name, whose bytes lie within the file and do not
// overlap. Throws bad_file, or unsupported (encryption, other compressions).
std::vector<ZipMember> list_zip_members(const uint8_t* bytes, size_t count,
                                        const std::string& where);

// Unpacks a member of that file; throws bad_file unless it has its size and checksum.
std::unique_ptr<uint8_t[]> unpack_zip_member(const uint8_t* file, const ZipMember& member,
                                             const std::string& where);

// Throws bad_file unless the bytes of a member that is not deflated have its checksum.
void check_zip_member(const uint8_t* file, const ZipMember& member, const std::string& where);

}  // namespace mamba
