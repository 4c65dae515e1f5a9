// SPDX-License-Identifier: Apache-2.0
// Lines in bounded memory.
#include "cli/line_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "cli/args.h"

namespace mamba::cli {
namespace {

constexpr size_t kBlock = 1 << 16;
constexpr size_t kMaxLine = size_t{64} << 20;

[[noreturn]] void refuse(const std::string& path, int error) {
  if (interrupted()) fail(ErrorCode::kCancelled, "interrupted");
  fail(ErrorCode::kBadFile, "[input] expected a readable file, got '{}' ({}); check the path", path,
       std::strerror(error));
}

}  // namespace

LineReader::LineReader(const std::string& path) : path_(path) {
  fd_ = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) refuse(path, errno);
  struct stat status {};
  repeatable_ = path != "-" && ::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
}

LineReader::~LineReader() {
  if (fd_ >= 0 && fd_ != STDIN_FILENO) ::close(fd_);
}

bool LineReader::fill() {
  buffer_.erase(0, at_);
  at_ = 0;
  const size_t old = buffer_.size();
  buffer_.resize(old + kBlock);
  ssize_t got = 0;
  do {
    if (interrupted()) fail(ErrorCode::kCancelled, "interrupted");
    got = ::read(fd_, buffer_.data() + old, kBlock);
  } while (got < 0 && errno == EINTR);
  if (got < 0) refuse(path_, errno);
  buffer_.resize(old + static_cast<size_t>(got));
  return got > 0;
}

bool LineReader::next(std::string* line) {
  size_t searched = at_, end = std::string::npos;
  while ((end = buffer_.find('\n', searched)) == std::string::npos) {
    const size_t length = buffer_.size() - at_;
    if (length > kMaxLine) {
      fail(ErrorCode::kBadFile,
           "[{}, line {}] expected lines of at most {} bytes, got a longer one; is this JSONL?",
           path_, number_ + 1, kMaxLine);
    }
    if (!fill()) break;
    searched = length;
  }
  ended_ = end != std::string::npos;
  if (!ended_) end = buffer_.size();
  if (!ended_ && end == at_) return false;
  line->assign(buffer_, at_, end - at_);
  ++number_;
  offset_ += static_cast<int64_t>(end - at_) + ended_;
  at_ = end + ended_;
  if (!line->empty() && line->back() == '\r') line->pop_back();
  return true;
}

std::string LineReader::where() const {
  return fmt::format("{}, line {}", path_ == "-" ? "standard input" : path_, number_);
}

}  // namespace mamba::cli
