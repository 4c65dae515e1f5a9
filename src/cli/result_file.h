// SPDX-License-Identifier: Apache-2.0
// Results as JSON lines, on standard output or in a file that a later run can go on with.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/json.h"
#include "cli/line_reader.h"

namespace mamba::cli {

// Throws invalid_argument if --output names a folder, or a file that is there without --resume.
void check_result_path(const std::string& path, bool resume);

class ResultFile {
 public:
  // An empty path is standard output. With `resume` an existing file is kept; read it with
  // next_done() before the first write.
  ResultFile(const std::string& path, bool resume);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;

  // The next whole line that an earlier run wrote; false behind the last one. What follows it, a
  // line that was cut, goes away then. Throws bad_file for a line that is no JSON object.
  bool next_done(Json* result);
  std::string where() const { return reader_->where(); }  // that line, for messages
  // Writes one line, whole: a line that does not fit on the disk is taken back. Throws io.
  void write(const nlohmann::ordered_json& result);

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;  // bytes of whole lines
  bool created_ = false;
  int exceptions_ = std::uncaught_exceptions();
  std::unique_ptr<LineReader> reader_;
};

}  // namespace mamba::cli
