// SPDX-License-Identifier: Apache-2.0
// Temporary, write, fsync, rename, fsync of the folder.
#include "base/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <set>

#include "base/check.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMark = ".mamba-tmp-";

[[noreturn]] void fail_io(const std::string& path, const std::string& wanted, int error) {
  const char* advice = error == ENOSPC || error == EDQUOT || error == EFBIG
                           ? "free some space or choose another folder"
                       : error == EBUSY
                           ? "it is in use as a mount point or current folder: name another"
                           : "check that the folder exists and may be written";
  fail(ErrorCode::kIo, "[{}] expected to {}, got: {}; {} (what was there before is unchanged)",
       path, wanted, strerror(error), advice);
}

// "folder/name" -> "folder"; "name" -> ".".
std::string folder_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// A name beside `path` that no other thread or process uses at the same time.
std::string temporary_name(const std::string& path) {
  static std::atomic<uint64_t> counter{0};
  return fmt::format("{}/.{}{}{}-{}", folder_of(path), fs::path(path).filename().string(), kMark,
                     getpid(), counter++);
}

void sync_path(const std::string& path, const std::string& shown) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_io(shown, "flush " + path + " to the disk", errno);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  // Some network and overlay file systems cannot flush a folder and say EINVAL.
  if (result != 0 && error != EINVAL) fail_io(shown, "flush " + path + " to the disk", error);
}

// Exchanges two folders in one step; where the file system cannot, in two steps with the old folder
// under a third name in between.
void swap_folders(const std::string& fresh, const std::string& final_path) {
  if (renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, final_path.c_str(), RENAME_EXCHANGE) == 0)
    return;
  if (errno != EINVAL && errno != ENOSYS) fail_io(final_path, "replace the folder", errno);
  const std::string old = temporary_name(final_path);
  if (rename(final_path.c_str(), old.c_str()) != 0)
    fail_io(final_path, "set the folder aside", errno);
  if (rename(fresh.c_str(), final_path.c_str()) != 0) {
    const int error = errno;
    rename(old.c_str(), final_path.c_str());
    fail_io(final_path, "replace the folder", error);
  }
  if (rename(old.c_str(), fresh.c_str()) != 0) fail_io(final_path, "remove the old folder", errno);
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path, unsigned mode) : path_(path) {
  std::error_code ignored;  // what cannot be looked at cannot be written either: open() tells
  if (fs::path(path).filename().empty() || fs::is_directory(path, ignored)) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected a file name, got a folder; append the name of a file to write", path);
  }
  do {
    temporary_ = temporary_name(path);
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  } while (fd_ < 0 && errno == EEXIST);  // left by a killed process that had our number
  if (fd_ < 0) fail_io(path_, "create a file", errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void AtomicFile::append(const void* bytes, size_t count) {
  MAMBA_CHECK(fd_ >= 0);
  const char* from = static_cast<const char*>(bytes);
  for (size_t done = 0; done < count;) {
    const size_t piece = std::min(count - done, size_t{1} << 30);  // write() takes at most 2 GiB
    const ssize_t written = write(fd_, from + done, piece);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      fail_io(path_,
              fmt::format("write {} bytes after the first {}", count - done,
                          size_ + static_cast<int64_t>(done)),
              written == 0 ? ENOSPC : errno);
    }
    done += static_cast<size_t>(written);
  }
  size_ += static_cast<int64_t>(count);
}

void AtomicFile::flush() {
  MAMBA_CHECK(fd_ >= 0);
  if (fsync(fd_) != 0) fail_io(path_, fmt::format("flush {} bytes to the disk", size_), errno);
  const int fd = fd_;
  fd_ = -1;
  if (close(fd) != 0) fail_io(path_, fmt::format("close after {} bytes", size_), errno);
}

void AtomicFile::commit() {
  if (fd_ >= 0) flush();
  move_into_place();
  sync_path(folder_of(path_), path_);
}

void AtomicFile::move_into_place() {
  MAMBA_CHECK(!temporary_.empty());
  if (rename(temporary_.c_str(), path_.c_str()) != 0) {
    fail_io(path_, fmt::format("move {} bytes into place", size_), errno);
  }
  temporary_.clear();  // from here on there is none to remove
}

AtomicFile& AtomicFiles::add(const std::string& path) {
  if (!files_.empty()) files_.back()->flush();  // so that one at a time is open
  files_.push_back(std::make_unique<AtomicFile>(path));
  return *files_.back();
}

void AtomicFiles::commit() {
  if (!files_.empty()) files_.back()->flush();
  for (const std::unique_ptr<AtomicFile>& file : files_) file->move_into_place();
  std::set<std::string> folders;
  for (const std::unique_ptr<AtomicFile>& file : files_) folders.insert(folder_of(file->path()));
  for (const std::string& folder : folders) sync_path(folder, folder);
  files_.clear();
}

void write_file_atomic(const std::string& path, std::string_view bytes) {
  AtomicFile file(path);
  file.append(bytes);
  file.commit();
}

void write_file_atomic(const std::string& path, const std::function<void(AtomicFile&)>& writer) {
  AtomicFile file(path);
  writer(file);
  file.commit();
}

AtomicFolder::AtomicFolder(const std::string& final_path)
    : final_(fs::path(final_path).filename().empty() ? folder_of(final_path) : final_path) {
  if (fs::exists(final_) && !fs::is_directory(final_)) {
    fail(ErrorCode::kIo, "[{}] expected a folder or nothing, got a file; choose another name",
         final_);
  }
  int error = 0;
  do {
    temporary_ = temporary_name(final_);
    error = mkdir(temporary_.c_str(), 0777) == 0 ? 0 : errno;
  } while (error == EEXIST);  // left by a killed process that had our number
  if (error != 0) fail_io(final_, "create a folder", error);
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
}

void AtomicFolder::commit() {
  MAMBA_CHECK(!committed_);
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(temporary_)) {
    sync_path(entry.path().string(), final_);
  }
  sync_path(temporary_, final_);
  const bool replaces = fs::exists(final_);
  if (replaces) {
    swap_folders(temporary_, final_);
  } else if (rename(temporary_.c_str(), final_.c_str()) != 0) {
    fail_io(final_, "move the folder into place", errno);
  }
  committed_ = true;
  sync_path(folder_of(final_), final_);
  std::error_code ignored;  // the new folder is in place: what is left of the old one is litter
  if (replaces) fs::remove_all(temporary_, ignored);
}

void write_folder_atomic(const std::string& final_path,
                         const std::function<void(const std::string&)>& fill) {
  AtomicFolder folder(final_path);
  fill(folder.path());
  folder.commit();
}

bool is_temporary_name(std::string_view file_name) {
  return file_name.starts_with(".") && file_name.find(kMark) != std::string_view::npos;
}

}  // namespace mamba
