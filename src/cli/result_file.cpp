// SPDX-License-Identifier: Apache-2.0
// Results as JSON lines.
#include "cli/result_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"

namespace mamba::cli {
namespace {

constexpr size_t kMaxLine = size_t{64} << 20;
constexpr std::string_view kBegin = "{\"index\":";  // of every line of results

[[noreturn]] void refuse(const std::string& path, int error) {
  fail(ErrorCode::kIo, "[{}] expected to write results, got '{}'; check folder, permissions, space",
       path, std::strerror(error));
}

}  // namespace

void check_result_path(const std::string& path, bool resume) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    fail(ErrorCode::kInvalidArgument, "[{}] expected a file name, got a folder; give a file", path);
  }
  if (resume || !std::filesystem::exists(path, ignored)) return;
  fail(ErrorCode::kInvalidArgument,
       "[--output] expected a new file, got '{}', which is there; go on with it by --resume or "
       "give another name",
       path);
}

ResultFile::ResultFile(const std::string& path, bool resume) : path_(path) {
  if (path.empty()) return;
  std::error_code ignored;
  created_ = !std::filesystem::exists(path, ignored);
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | (resume ? 0 : O_EXCL), 0666);
  if (fd_ < 0) refuse(path, errno);
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    ::close(fd_);
    fail(ErrorCode::kIo, "[{}] expected to be the only run that writes it, got another one; wait",
         path);
  }
  if (resume) reader_ = std::make_unique<LineReader>(path);
}

ResultFile::~ResultFile() {
  if (fd_ < 0) return;
  // A run that fails before its first result leaves no file that the next one would stumble over.
  if (created_ && size_ == 0 && std::uncaught_exceptions() > exceptions_) ::unlink(path_.c_str());
  ::close(fd_);
}

bool ResultFile::next_done(Json* result) {
  std::string line;
  if (reader_ == nullptr) return false;
  if (!reader_->next(&line) || !reader_->ended()) {
    // Only what a run of ours can have begun is taken away.
    if (!line.starts_with(kBegin) && !kBegin.starts_with(line)) {
      fail(
          ErrorCode::kBadFile,
          "[{}] expected results of an earlier run, got something else; give the file of that run, "
          "or a new one without --resume",
          printable(path_, 200));
    }
    if (::ftruncate(fd_, size_) != 0 || ::lseek(fd_, size_, SEEK_SET) < 0) refuse(path_, errno);
    reader_.reset();
    return false;
  }
  *result = parse_json(line, reader_->where(), {kMaxLine});
  if (!result->is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected a result, got {}; give the file of an earlier run",
         reader_->where(), printable_json(*result));
  }
  size_ = reader_->offset();
  return true;
}

void ResultFile::write(const nlohmann::ordered_json& result) {
  const std::string line = json_text(result, -1);
  if (fd_ < 0) return write_output(line);
  for (size_t done = 0; done < line.size();) {
    const ssize_t written = ::write(fd_, line.data() + done, line.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int error = errno;
      if (::ftruncate(fd_, size_) != 0) refuse(path_, errno);
      refuse(path_, error);
    }
    done += static_cast<size_t>(written);
  }
  size_ += static_cast<int64_t>(line.size());
}

}  // namespace mamba::cli
