// SPDX-License-Identifier: Apache-2.0
// Appending to and reading back metrics.jsonl.
#include "train/run_log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "base/mapped_file.h"

namespace mamba {
namespace {

constexpr int64_t kMaxStep = int64_t{1} << 53;

// Numbers in the order of the fields; NaN and infinity cannot occur (the run stops before).
nlohmann::ordered_json to_json(const TrainProgress& p) {
  return {{"step", p.step},           {"loss", p.loss},
          {"grad_norm", p.grad_norm}, {"learning_rate", p.learning_rate},
          {"tokens", p.tokens},       {"targets", p.targets},
          {"padding", p.padding},     {"tokens_per_second", p.tokens_per_second},
          {"seconds", p.seconds}};
}

nlohmann::ordered_json to_json(const EvalReport& r) {
  return {{"step", r.step},
          {"eval_loss", r.loss},
          {"perplexity", r.perplexity},
          {"bits_per_byte", r.bits_per_byte},
          {"eval_tokens", r.targets}};
}

// Adds what a line says to the curves; false if it belongs to a step past `keep_until`. Throws
// bad_file for what is no such line, and has then added nothing.
bool read_line(std::string_view line, const std::string& where, int64_t keep_until,
               Curves* curves) {
  const Json object = parse_json(line, where);
  const int64_t step = get_int(object, "step", 0, kMaxStep, where);
  if (step > keep_until) return false;
  if (has_member(object, "eval_loss")) {
    curves->eval_loss.push_back({step, get_number(object, "eval_loss", 0, 1e30, where)});
    return true;
  }
  const double loss = get_number(object, "loss", 0, 1e30, where);
  const double rate = get_number(object, "learning_rate", 0, 1e30, where);
  curves->loss.push_back({step, loss});
  curves->learning_rate.push_back({step, rate});
  return true;
}

}  // namespace

RunLog::RunLog(const std::string& path, int64_t keep_until) : path_(path) {
  std::string kept;
  if (keep_until > 0 && std::filesystem::exists(path)) {
    const MappedFile file(path);
    const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      const std::string_view line = text.substr(begin, end - begin);
      begin = end + 1;
      try {
        if (!read_line(line, path, keep_until, &curves_)) continue;
      } catch (const Error& e) {
        if (e.code() != ErrorCode::kBadFile) throw;
        ++unreadable_;
        continue;
      }
      kept.append(line).append("\n");
    }
  }
  write_file_atomic(path, kept);
  fd_ = open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd_ < 0) {
    fail(ErrorCode::kIo, "[{}] expected to append to the file, got: {}; check its permissions",
         path, strerror(errno));
  }
}

RunLog::~RunLog() { close(fd_); }

void RunLog::sync() {
  while (fsync(fd_) != 0) {
    if (errno == EINTR) continue;
    fail(ErrorCode::kIo, "[{}] expected to flush the file to the disk, got: {}; check the disk",
         path_, strerror(errno));
  }
}

void RunLog::append(std::string line) {
  line += '\n';
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t written = ::write(fd_, line.data() + done, line.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      fail(ErrorCode::kIo, "[{}] expected to append {} bytes, got: {}; free some space", path_,
           line.size(), strerror(written == 0 ? ENOSPC : errno));
    }
    done += static_cast<size_t>(written);
  }
}

void RunLog::write(const TrainProgress& progress) {
  append(to_json(progress).dump());
  curves_.loss.push_back({progress.step, progress.loss});
  curves_.learning_rate.push_back({progress.step, progress.learning_rate});
}

void RunLog::write(const EvalReport& report) {
  append(to_json(report).dump());
  curves_.eval_loss.push_back({report.step, report.loss});
}

}  // namespace mamba
