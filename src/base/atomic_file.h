// SPDX-License-Identifier: Apache-2.0
// Files and folders that appear whole or not at all: written under a temporary name beside the
// final one, flushed to the disk, renamed, and the folder flushed. A crash at any instant leaves
// the old one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

// One file being written. Every failure throws io (path, bytes, system message), removes the
// temporary and leaves what was at `path` before.
class AtomicFile {
 public:
  // mode: of the file, less what the process's umask takes away.
  explicit AtomicFile(const std::string& path, unsigned mode = 0666);
  ~AtomicFile();  // removes the temporary unless commit() succeeded
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(const void* bytes, size_t count);
  void append(std::string_view text) { append(text.data(), text.size()); }
  // Makes what was appended durable under the temporary name, and closes it: nothing may be
  // appended afterwards.
  void flush();
  // Makes the file durable and visible. Nothing may be appended afterwards.
  void commit();

  int64_t size() const { return size_; }  // bytes appended so far
  const std::string& path() const { return path_; }

 private:
  friend class AtomicFiles;
  void move_into_place();
  std::string path_;
  std::string temporary_;  // "" once it has its final name
  int fd_ = -1;            // -1 after flush()
  int64_t size_ = 0;
};

// Several files that belong together: each is flushed under its temporary name when the next one is
// begun, and commit() renames them all. Destroyed before that, it leaves everything as it was.
class AtomicFiles {
 public:
  // Begins a file; the reference holds until the next call.
  AtomicFile& add(const std::string& path);
  void commit();

 private:
  std::vector<std::unique_ptr<AtomicFile>> files_;
};

void write_file_atomic(const std::string& path, std::string_view bytes);
void write_file_atomic(const std::string& path, const std::function<void(AtomicFile&)>& writer);

// A folder being filled: write files into path(), then commit() makes the whole visible as the
// final folder, in exchange for one that is there already (that one is removed afterwards).
class AtomicFolder {
 public:
  explicit AtomicFolder(const std::string& final_path);
  ~AtomicFolder();  // removes the temporary folder unless commit() succeeded
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const std::string& path() const { return temporary_; }
  void commit();

 private:
  std::string final_;
  std::string temporary_;
  bool committed_ = false;
};

// fill(path of the temporary folder), then commit.
void write_folder_atomic(const std::string& final_path,
                         const std::function<void(const std::string&)>& fill);

// True for names that only our temporaries have: what a killed process left and may be deleted.
bool is_temporary_name(std::string_view file_name);

}  // namespace mamba
