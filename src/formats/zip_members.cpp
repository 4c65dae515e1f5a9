// SPDX-License-Identifier: Apache-2.0
// The directory of a zip file, and zlib for deflated members. Not through minizip: the one of
// Debian 12 does not see the zip64 fields that checkpoints above 4 GB have (it compares 32-bit
// markers with 64-bit ones).
#include "formats/zip_members.h"

#include <string.h>
#include <zlib.h>

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

constexpr uint64_t kMaxMembers = 100'000;
constexpr uint64_t kMaxName = 1000;
// Deflate cannot do better: 258 bytes from a quarter of a byte.
constexpr uint64_t kMaxRatio = 1032;

constexpr size_t kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20, kEntryBytes = 46,
                 kLocalBytes = 30;
constexpr size_t kMaxComment = 0xffff;
constexpr uint64_t kIn64 = 0xffffffff;  // "see the zip64 field"

// Where the directory lies and how many entries it says it has.
struct Directory {
  uint64_t offset = 0, bytes = 0, entries = 0;
};

class Archive {
 public:
  Archive(const uint8_t* bytes, size_t count, const std::string& where)
      : file_(reinterpret_cast<const char*>(bytes), count), where_(where) {}

  std::vector<ZipMember> list() const {
    const Directory directory = find_directory();
    std::vector<ZipMember> members;
    uint64_t at = directory.offset;
    const uint64_t end = directory.offset + directory.bytes;
    for (uint64_t i = 0; i < directory.entries; ++i) at = read_entry(at, end, &members);
    if (at != end) {
      damaged("{} entries in {} bytes of directory, got {} bytes more", directory.entries,
              directory.bytes, end - at);
    }
    check_overlaps(members, static_cast<int64_t>(directory.offset));
    std::erase_if(members, [](const ZipMember& m) { return m.name.ends_with('/'); });
    return members;
  }

 private:
  template <class... Args>
  [[noreturn]] void damaged(fmt::format_string<Args...> what, Args&&... args) const {
    fail(ErrorCode::kBadFile, "[{}] expected {}; the file is truncated or damaged", where_,
         fmt::format(what, std::forward<Args>(args)...));
  }

  bool has(uint64_t at, uint64_t count) const {
    return at <= file_.size() && count <= file_.size() - at;
  }
  bool is_mark(uint64_t at, std::string_view mark) const {
    return has(at, mark.size()) && file_.substr(at, mark.size()) == mark;
  }
  // A little-endian number, which lies within the file: callers have checked its record.
  uint64_t number(uint64_t at, size_t width) const {
    uint64_t value = 0;
    for (size_t i = width; i-- > 0;) value = value << 8 | static_cast<uint8_t>(file_[at + i]);
    return value;
  }

  // The record at the end, behind which only its comment may stand.
  uint64_t find_end() const {
    for (size_t comment = 0; comment <= kMaxComment && has(0, comment + kEndBytes); ++comment) {
      const uint64_t at = file_.size() - comment - kEndBytes;
      if (is_mark(at, "PK\x05\x06") && number(at + 20, 2) == comment) return at;
    }
    damaged("a zip directory at the end of the file, found none");
  }

  Directory find_directory() const {
    const uint64_t end = find_end();
    Directory d{number(end + 16, 4), number(end + 12, 4), number(end + 10, 2)};
    uint64_t disk = number(end + 4, 2) | number(end + 6, 2);
    uint64_t limit = end;  // where the directory must end
    if (end >= kLocatorBytes && is_mark(end - kLocatorBytes, "PK\x06\x07")) {
      const uint64_t at = number(end - kLocatorBytes + 8, 8);
      limit = end - kLocatorBytes;
      if (!has(at, kEnd64Bytes) || at + kEnd64Bytes > limit || !is_mark(at, "PK\x06\x06")) {
        damaged("a zip64 record at byte {}, found none", at);
      }
      d = {number(at + 48, 8), number(at + 40, 8), number(at + 32, 8)};
      disk = number(at + 16, 4) | number(at + 20, 4);
      limit = at;
    }
    if (disk != 0) damaged("a zip file in one part, got one of several");
    if (d.offset > limit || d.bytes > limit - d.offset) {
      damaged("a directory before byte {}, got {} bytes at {}", limit, d.bytes, d.offset);
    }
    if (d.entries > kMaxMembers || d.entries > d.bytes / kEntryBytes) {
      damaged("at most {} members in {} bytes of directory, got {}", kMaxMembers, d.bytes,
              d.entries);
    }
    return d;
  }

  // Adds the entry at `at` to the members; returns where the next one starts.
  uint64_t read_entry(uint64_t at, uint64_t end, std::vector<ZipMember>* members) const {
    if (end - at < kEntryBytes || !is_mark(at, "PK\x01\x02")) {
      damaged("an entry of the directory at byte {}, found none", at);
    }
    const uint64_t name_bytes = number(at + 28, 2), extra_bytes = number(at + 30, 2);
    const uint64_t next =
        at + kEntryBytes + name_bytes + extra_bytes + number(at + 32, 2);  // and a comment
    if (next > end)
      damaged("an entry of the directory before byte {}, got its end at {}", end, next);
    if (name_bytes == 0 || name_bytes > kMaxName) {
      damaged("names of members of 1 to {} bytes, got {}", kMaxName, name_bytes);
    }
    ZipMember member;
    member.name = file_.substr(at + kEntryBytes, name_bytes);
    const std::string shown = printable(member.name, 100);
    if ((number(at + 8, 2) & 1) != 0) {
      fail(ErrorCode::kUnsupported, "[{}] expected no encryption, got member \"{}\" encrypted",
           where_, shown);
    }
    const uint64_t method = number(at + 10, 2);
    if (method != 0 && method != Z_DEFLATED) {
      fail(ErrorCode::kUnsupported,
           "[{}] expected stored or deflated members, got \"{}\" with compression {}; save the "
           "file again with torch.save",
           where_, shown, method);
    }
    member.deflated = method == Z_DEFLATED;
    member.crc = static_cast<uint32_t>(number(at + 16, 4));
    uint64_t packed = number(at + 20, 4), unpacked = number(at + 24, 4);
    uint64_t local = number(at + 42, 4);
    const uint64_t extra = at + kEntryBytes + name_bytes;
    read_zip64(extra, extra + extra_bytes, {&unpacked, &packed, &local}, shown);
    const uint64_t offset = check_local(local, at, member.name, shown);
    if (!has(offset, packed)) {
      damaged("member \"{}\" within the {} bytes of the file, got {} bytes at {}", shown,
              file_.size(), packed, offset);
    }
    const uint64_t most = member.deflated ? packed * kMaxRatio + 64 : packed;
    if (unpacked > most || (!member.deflated && unpacked != packed)) {
      damaged("member \"{}\" of at most {} bytes, got {}", shown, most, unpacked);
    }
    member.offset = static_cast<int64_t>(offset);
    member.packed = static_cast<int64_t>(packed);
    member.bytes = static_cast<int64_t>(unpacked);
    members->push_back(std::move(member));
    return next;
  }

  // The zip64 field has those of the values, in this order, that the entry leaves to it.
  void read_zip64(uint64_t at, uint64_t end, std::initializer_list<uint64_t*> values,
                  const std::string& shown) const {
    while (end - at >= 4) {
      const uint64_t id = number(at, 2), bytes = number(at + 2, 2);
      at += 4;
      if (bytes > end - at) damaged("member \"{}\" with whole extra fields", shown);
      const uint64_t next = at + bytes;
      for (uint64_t* value : values) {
        if (id != 1 || *value != kIn64) continue;
        if (next - at < 8) damaged("member \"{}\" with a whole zip64 field", shown);
        *value = number(at, 8);
        at += 8;
      }
      at = next;
    }
  }

  // Where the member's bytes start, behind its own header, which must say the same.
  uint64_t check_local(uint64_t local, uint64_t entry, const std::string& name,
                       const std::string& shown) const {
    if (!has(local, kLocalBytes) || !is_mark(local, "PK\x03\x04")) {
      damaged("member \"{}\" to start at byte {} as the directory says", shown, local);
    }
    const uint64_t name_bytes = number(local + 26, 2), extra_bytes = number(local + 28, 2);
    const uint64_t offset = local + kLocalBytes + name_bytes + extra_bytes;
    bool same = has(local, kLocalBytes + name_bytes + extra_bytes) &&
                file_.substr(local + kLocalBytes, name_bytes) == name &&
                number(local + 8, 2) == number(entry + 10, 2);
    // Flag 8: checksum and sizes stand behind the bytes.
    if ((number(local + 6, 2) & 8) == 0) {
      same = same && number(local + 14, 4) == number(entry + 16, 4);
      for (const uint64_t field : {18, 22}) {  // in the directory two bytes further on
        const uint64_t here = number(local + field, 4), there = number(entry + field + 2, 4);
        same = same && (here == there || here == kIn64 || there == kIn64);
      }
    }
    if (!same) damaged("member \"{}\" to begin as the directory says, got another header", shown);
    return offset;
  }

  // Leaves the members sorted by name.
  void check_overlaps(std::vector<ZipMember>& members, int64_t directory) const {
    std::sort(members.begin(), members.end(), [](const ZipMember& a, const ZipMember& b) {
      return a.offset != b.offset ? a.offset < b.offset : a.packed < b.packed;
    });
    for (size_t i = 0; i < members.size(); ++i) {
      const ZipMember& m = members[i];
      const int64_t next = i + 1 < members.size() ? members[i + 1].offset : directory;
      if (m.packed > next - m.offset) {
        damaged("member \"{}\" to end before {} at byte {}, got its end at {}",
                printable(m.name, 100), i + 1 < members.size() ? "the next one" : "the directory",
                next, m.offset + m.packed);
      }
    }
    std::sort(members.begin(), members.end(),
              [](const ZipMember& a, const ZipMember& b) { return a.name < b.name; });
    for (size_t i = 1; i < members.size(); ++i) {
      if (members[i].name == members[i - 1].name) {
        damaged("every member once, got \"{}\" twice", printable(members[i].name, 100));
      }
    }
  }

  std::string_view file_;
  const std::string& where_;
};

[[noreturn]] void fail_content(const ZipMember& member, const char* got, const std::string& where) {
  fail(ErrorCode::kBadFile,
       "[{}] expected member \"{}\" of {} bytes with checksum {:08x}, got {}; the file is damaged",
       where, printable(member.name, 100), member.bytes, member.crc, got);
}

uint32_t checksum(const uint8_t* bytes, int64_t count) {
  return static_cast<uint32_t>(crc32_z(0, bytes, static_cast<size_t>(count)));
}

}  // namespace

std::vector<ZipMember> list_zip_members(const uint8_t* bytes, size_t count,
                                        const std::string& where) {
  return Archive(bytes, count, where).list();
}

std::unique_ptr<uint8_t[]> unpack_zip_member(const uint8_t* file, const ZipMember& member,
                                             const std::string& where) {
  std::unique_ptr<uint8_t[]> out(new uint8_t[static_cast<size_t>(member.bytes)]);
  if (!member.deflated) {
    if (member.bytes > 0)
      memcpy(out.get(), file + member.offset, static_cast<size_t>(member.bytes));
  } else {
    z_stream stream{};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) {
      fail(ErrorCode::kOutOfMemory, "[{}] expected memory to unpack \"{}\", got none", where,
           printable(member.name, 100));
    }
    constexpr int64_t kPiece = 1 << 30;  // zlib counts in 32 bits
    const uint8_t* from = file + member.offset;
    int64_t packed = member.packed, free = member.bytes;
    stream.next_out = out.get();
    int status = Z_OK;
    while (status == Z_OK) {
      if (stream.avail_in == 0 && packed > 0) {
        stream.next_in = const_cast<uint8_t*>(from);
        stream.avail_in = static_cast<uInt>(std::min(packed, kPiece));
        from += stream.avail_in;
        packed -= stream.avail_in;
      }
      if (stream.avail_out == 0 && free > 0) {
        stream.avail_out = static_cast<uInt>(std::min(free, kPiece));
        free -= stream.avail_out;
      }
      status = inflate(&stream, Z_NO_FLUSH);  // Z_BUF_ERROR once nothing is left on either side
    }
    const auto written = static_cast<int64_t>(stream.total_out);
    inflateEnd(&stream);
    if (status != Z_STREAM_END) fail_content(member, "a stream that does not end there", where);
    if (written != member.bytes) fail_content(member, "fewer bytes", where);
  }
  if (checksum(out.get(), member.bytes) != member.crc) {
    fail_content(member, "another checksum", where);
  }
  return out;
}

void check_zip_member(const uint8_t* file, const ZipMember& member, const std::string& where) {
  if (checksum(file + member.offset, member.bytes) != member.crc) {
    fail_content(member, "another checksum", where);
  }
}

}  // namespace mamba
