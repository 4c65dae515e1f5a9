// SPDX-License-Identifier: Apache-2.0
// mmap behind MappedFile, and the messages for what is not a readable file.
#include "base/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "base/check.h"

namespace mamba {
namespace {

[[noreturn]] void fail_open(const std::string& path, int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      fail(ErrorCode::kBadFile, "[{}] expected a file, found nothing there; check the path", path);
    case EACCES:
    case EPERM:
      fail(ErrorCode::kBadFile, "[{}] expected a readable file, got: {}; check its permissions",
           path, strerror(error));
    default:
      fail(ErrorCode::kIo, "[{}] expected to open the file, got: {}; check the path and the disk",
           path, strerror(error));
  }
}

// Closes the descriptor on every way out.
struct Descriptor {
  int fd;
  ~Descriptor() { close(fd); }
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not wait for its writer. It changes nothing for files.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail_open(path, errno);
  const Descriptor descriptor{fd};
  struct stat info;
  if (fstat(fd, &info) != 0) fail_open(path, errno);
  if (!S_ISREG(info.st_mode)) {
    fail(ErrorCode::kBadFile, "[{}] expected a file, got a {}; name a file", path,
         S_ISDIR(info.st_mode) ? "folder" : "device, pipe or socket");
  }
  size_ = static_cast<size_t>(info.st_size);
  owner_ = info.st_uid;
  if (size_ == 0) return;
  void* at = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  if (at == MAP_FAILED) {
    const int error = errno;
    size_ = 0;
    fail(ErrorCode::kIo, "[{}] expected to map {} bytes, got: {}; check the disk and free memory",
         path, info.st_size, strerror(error));
  }
  data_ = static_cast<const uint8_t*>(at);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::release(const void* data, size_t bytes) const {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t from = reinterpret_cast<uintptr_t>(data);
  const uintptr_t start = reinterpret_cast<uintptr_t>(data_);
  if (data_ == nullptr || from < start || from + bytes > start + size_) return;
  const uintptr_t first = (from + page - 1) / page * page, end = (from + bytes) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      owner_(other.owner_) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(owner_, other.owner_);
  return *this;
}

}  // namespace mamba
