// SPDX-License-Identifier: Apache-2.0
// Mapped files, and files and folders that appear whole or not at all.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "base/atomic_file.h"
#include "base/mapped_file.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using test::fails_with;
using test::ScratchFolder;

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

size_t entries(const std::string& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), {}));
}

// Files of this process may hold at most `bytes` while this lives: a write beyond is cut short,
// then fails with EFBIG, as one on a full disk is cut short, then fails with ENOSPC.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old_);
    rlimit limit = old_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_);
    signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int) = nullptr;
};

// Without root's right to read and write everything while this lives.
class Unprivileged {
 public:
  Unprivileged() : user_(geteuid()) { EXPECT_TRUE(user_ != 0 || seteuid(65534) == 0); }
  ~Unprivileged() { EXPECT_TRUE(user_ != 0 || seteuid(0) == 0); }

 private:
  uid_t user_;
};

TEST(mapped_file, shows_the_bytes_and_moves) {
  const ScratchFolder folder;
  write_file_atomic(folder / "a", "hello");
  MappedFile file(folder / "a");
  ASSERT_EQ(file.size(), 5u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file.data()), 5), "hello");
  MappedFile moved = std::move(file);
  EXPECT_EQ(moved.size(), 5u);
  EXPECT_EQ(moved.path(), folder / "a");
  write_file_atomic(folder / "a", "HELLO");  // a new file under the name: the mapped one stays
  EXPECT_EQ(moved.data()[0], 'h');
  moved = MappedFile(folder / "a");
  EXPECT_EQ(moved.data()[0], 'H');
}

TEST(mapped_file, empty_file_has_no_bytes) {
  const ScratchFolder folder;
  write_file_atomic(folder / "a", "");
  EXPECT_EQ(MappedFile(folder / "a").size(), 0u);
}

TEST(mapped_file, errors_name_path_and_reason) {
  const ScratchFolder folder;
  const auto bad = [](ErrorCode code, std::initializer_list<std::string> parts,
                      const std::string& path) {
    EXPECT_TRUE(fails_with(code, parts, [&] { MappedFile file(path); }));
  };
  bad(ErrorCode::kBadFile, {folder / "none", "found nothing there"}, folder / "none");
  bad(ErrorCode::kBadFile, {folder.path(), "got a folder"}, folder.path());
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  bad(ErrorCode::kBadFile, {"pipe", "got a device, pipe or socket"}, folder / "pipe");
  bad(ErrorCode::kIo, {"File name too long"}, folder / std::string(300, 'x'));
  write_file_atomic(folder / "secret", "x");
  ASSERT_EQ(chmod((folder / "secret").c_str(), 0), 0);
  ASSERT_EQ(chmod(folder.path().c_str(), 0755), 0);
  const Unprivileged unprivileged;
  bad(ErrorCode::kBadFile, {folder / "secret", "Permission denied"}, folder / "secret");
}

TEST(atomic_file, replaces_whole_files_only) {
  const ScratchFolder folder;
  write_file_atomic(folder / "a", "old");
  {
    AtomicFile file(folder / "a");
    file.append("ne");
    file.append("w");
    EXPECT_EQ(file.size(), 3);
    EXPECT_EQ(content(folder / "a"), "old");
    EXPECT_EQ(entries(folder.path()), 2u);
    file.commit();
  }
  EXPECT_EQ(content(folder / "a"), "new");
  EXPECT_EQ(entries(folder.path()), 1u);
  { AtomicFile(folder / "a").append("dropped"); }
  EXPECT_EQ(content(folder / "a"), "new");
  EXPECT_EQ(entries(folder.path()), 1u);
  EXPECT_THROW(write_file_atomic(folder / "a",
                                 [](AtomicFile& file) {
                                   file.append("half");
                                   throw std::runtime_error("stop");
                                 }),
               std::runtime_error);
  EXPECT_EQ(content(folder / "a"), "new");
  EXPECT_EQ(entries(folder.path()), 1u);
}

TEST(atomic_file, several_files_appear_together_or_not_at_all) {
  const ScratchFolder folder;
  write_file_atomic(folder / "a", "old a");
  write_file_atomic(folder / "b", "old b");
  const auto write = [&](bool commit) {
    AtomicFiles files;
    for (const char* name : {"a", "b", "c"}) files.add(folder / name).append("new");
    EXPECT_EQ(content(folder / "a"), "old a");
    EXPECT_EQ(entries(folder.path()), 5u);
    if (commit) files.commit();
  };
  write(false);
  EXPECT_EQ(content(folder / "b"), "old b");
  EXPECT_EQ(entries(folder.path()), 2u);
  write(true);
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(content(folder / name), "new");
  EXPECT_EQ(entries(folder.path()), 3u);
}

TEST(atomic_file, a_failed_write_says_how_much_and_keeps_the_old_file) {
  const ScratchFolder folder;
  write_file_atomic(folder / "a", "old");
  {
    const FileSizeLimit limit(1000);
    EXPECT_TRUE(fails_with(ErrorCode::kIo,
                           {folder / "a", "write 500 bytes after the first 1000", "File too large",
                            "free some space", "unchanged"},
                           [&] { write_file_atomic(folder / "a", std::string(1500, 'x')); }));
  }
  EXPECT_EQ(content(folder / "a"), "old");
  EXPECT_EQ(entries(folder.path()), 1u);
}

TEST(atomic_file, errors_name_path_and_reason) {
  const ScratchFolder folder;
  const auto bad = [](ErrorCode code, std::initializer_list<std::string> parts,
                      const std::string& path) {
    EXPECT_TRUE(fails_with(code, parts, [&] { write_file_atomic(path, "x"); }));
  };
  bad(ErrorCode::kIo, {"none/a", "create a file", "No such file", "may be written"},
      folder / "none/a");
  bad(ErrorCode::kInvalidArgument, {"name of a file"}, folder / "");
  fs::create_directory(folder / "sub");
  bad(ErrorCode::kInvalidArgument, {"expected a file name, got a folder"}, folder / "sub");
  EXPECT_EQ(entries(folder.path()), 1u);
  ASSERT_EQ(chmod(folder.path().c_str(), 0555), 0);
  {
    const Unprivileged unprivileged;
    bad(ErrorCode::kIo, {"create a file", "Permission denied"}, folder / "a");
    EXPECT_TRUE(fails_with(ErrorCode::kIo, {folder / "f", "create a folder", "Permission denied"},
                           [&] { AtomicFolder atomic(folder / "f"); }));
  }
  ASSERT_EQ(chmod(folder.path().c_str(), 0755), 0);
}

TEST(atomic_folder, appears_whole_and_replaces_whole) {
  const ScratchFolder folder;
  const std::string final_path = folder / "model";
  write_folder_atomic(final_path, [&](const std::string& path) {
    write_file_atomic(path + "/a", "1");
    EXPECT_FALSE(fs::exists(final_path));
    EXPECT_TRUE(is_temporary_name(fs::path(path).filename().string()));
  });
  EXPECT_EQ(content(final_path + "/a"), "1");
  write_folder_atomic(final_path + "/",
                      [&](const std::string& path) {  // a trailing slash is no name
                        write_file_atomic(path + "/b", "2");
                        EXPECT_EQ(content(final_path + "/a"), "1");
                      });
  EXPECT_EQ(content(final_path + "/b"), "2");
  EXPECT_FALSE(fs::exists(final_path + "/a"));
  { write_file_atomic(AtomicFolder(final_path).path() + "/c", "3"); }
  EXPECT_FALSE(fs::exists(final_path + "/c"));
  EXPECT_EQ(entries(folder.path()), 1u);
  write_file_atomic(folder / "file", "x");
  EXPECT_TRUE(fails_with(ErrorCode::kIo, {folder / "file", "got a file"},
                         [&] { AtomicFolder atomic(folder / "file"); }));
  EXPECT_FALSE(is_temporary_name("model"));
}

}  // namespace
}  // namespace mamba
