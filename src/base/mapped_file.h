// SPDX-License-Identifier: Apache-2.0
// A whole file, read only, mapped into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mamba {

// Owns the mapping. The file must not be truncated by another process while it is mapped (our own
// writers replace files by renaming, which leaves the mapped one alone).
class MappedFile {
 public:
  // Throws bad_file if there is no readable regular file at `path`, io if mapping it fails.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }  // null for an empty file
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  uint32_t owner() const { return owner_; }  // user id
  // Gives back the memory of whole pages within these bytes, if they lie in this file; what is read
  // there later comes from the file again.
  void release(const void* data, size_t bytes) const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  uint32_t owner_ = 0;
};

}  // namespace mamba
