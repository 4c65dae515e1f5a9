// SPDX-License-Identifier: Apache-2.0
// Lines of a file or of standard input, one at a time, in bounded memory.
#pragma once

#include <cstdint>
#include <string>

namespace mamba::cli {

class LineReader {
 public:
  // "-" is standard input. Throws bad_file when it cannot be opened.
  explicit LineReader(const std::string& path);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line without its end (\n or \r\n); false when there is none. Throws bad_file for a
  // line of more than 64 MiB or when reading fails, cancelled once Ctrl-C was pressed.
  bool next(std::string* line);
  int64_t number() const { return number_; }  // of the line that was read last, from 1
  bool ended() const { return ended_; }       // that line had its \n
  int64_t offset() const { return offset_; }  // bytes up to its end
  // "FILE, line 3": the line that was read last, for messages.
  std::string where() const;
  // True for a file that can be read a second time.
  bool repeatable() const { return repeatable_; }

 private:
  bool fill();

  std::string path_;
  int fd_ = -1;
  std::string buffer_;
  size_t at_ = 0;
  int64_t number_ = 0, offset_ = 0;
  bool ended_ = false, repeatable_ = false;
};

}  // namespace mamba::cli
