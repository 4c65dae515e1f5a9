// SPDX-License-Identifier: Apache-2.0
// Files of prepared weights as a program sees them that loads models: who may read them, whose are
// believed, and what an interruption leaves. What is in them: tests/cli/panel_cache.py.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <utility>

#include "base/atomic_file.h"
#include "base/hash.h"
#include "formats/safetensors.h"
#include "mamba/model.h"
#include "model/model_io.h"
#include "model/two_mixers.h"
#include "support/expect_error.h"

namespace mamba::test {
namespace {

namespace fs = std::filesystem;

class PanelFiles : public testing::Test {
 protected:
  PanelFiles() : folder_(scratch_ / "model"), weights_(folder_ + "/model.safetensors") {
    fs::create_directory(folder_);
    Model::create(config_of("mamba1", 256, 2), 3).save(folder_);
    options_.dtype = DType::kQ4_0;
    options_.cache.use = true;
    options_.cache.after_seconds = 0;
    options_.cache.folder = scratch_ / "cache";
    options_.cache.on_note = [this](const std::string& text) { notes_ += text + "\n"; };
  }
  // What a load tells.
  std::string load() {
    notes_.clear();
    Model::load(folder_, options_);
    return notes_;
  }
  std::string panels() const { return folder_ + "/.model.safetensors.q4_0.v1.panels"; }
  static unsigned mode_of(const std::string& path) {
    struct stat info = {};
    EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
    return info.st_mode & 07777;
  }
  static bool has_temporary(const std::string& folder) {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      if (is_temporary_name(entry.path().filename().string())) return true;
    }
    return false;
  }

  const ScratchFolder scratch_;
  const std::string folder_, weights_;
  ModelOptions options_;
  std::string notes_;
};

// Panels are the weights once more: nobody reads them who cannot read those.
TEST_F(PanelFiles, AreAsPrivateAsTheWeights) {
  const mode_t old = umask(022);
  load();
  EXPECT_EQ(mode_of(panels()), 0644u);
  fs::remove(panels());
  ASSERT_EQ(chmod(weights_.c_str(), 0640), 0);
  load();
  EXPECT_EQ(mode_of(panels()), 0600u);
  // In the folder of one user they are that user's.
  fs::remove(panels());
  fs::create_directory(panels());
  ASSERT_EQ(chmod(weights_.c_str(), 0644), 0);
  EXPECT_NE(load().find("kept in " + options_.cache.folder), std::string::npos) << notes_;
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.cache.folder)) {
    EXPECT_EQ(mode_of(entry.path().string()), 0600u);
  }
  umask(old);
}

// Where everybody may put files, as in /tmp, those beside a model may be anyone's.
TEST_F(PanelFiles, OfStrangersAreNotBelieved) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  load();
  ASSERT_EQ(chown(panels().c_str(), 65534, 65534), 0);
  EXPECT_NE(load().find("panels from"), std::string::npos) << notes_;
  ASSERT_EQ(chmod(folder_.c_str(), 01777), 0);
  const std::string told = load();
  EXPECT_NE(told.find("another user put it there"), std::string::npos) << told;
  EXPECT_EQ(told.find("panels from"), std::string::npos) << told;
  // The model's own owner could have written anything into it.
  ASSERT_EQ(chown(panels().c_str(), 65534, 65534), 0);
  ASSERT_EQ(chown(weights_.c_str(), 65534, 65534), 0);
  EXPECT_NE(load().find("panels from"), std::string::npos) << notes_;
}

// Of what was left by a process that was killed, long ago, and of one that may be writing.
TEST_F(PanelFiles, LeftHalfWrittenGoAwayAtALoad) {
  load();
  const std::string old = folder_ + "/..model.safetensors.q8_0.v1.panels.mamba-tmp-1-0",
                    young = folder_ + "/..model.safetensors.q4_0.v1.panels.mamba-tmp-2-0",
                    other = folder_ + "/..model.safetensors.notes.mamba-tmp-1-0";
  for (const std::string& path : {old, young, other}) {
    write_file_atomic(path, "half");
    if (path != young) {
      fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(1));
    }
  }
  EXPECT_NE(load().find("panels from"), std::string::npos) << notes_;
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(young));
  EXPECT_TRUE(fs::exists(other));
}

TEST_F(PanelFiles, AreNotWrittenOnAfterAnInterruption) {
  options_.interrupted = [this] { return has_temporary(folder_); };
  const std::string told = load();
  EXPECT_NE(told.find("not kept: interrupted"), std::string::npos) << told;
  EXPECT_FALSE(fs::exists(panels()));
  EXPECT_FALSE(has_temporary(folder_));
}

// What is in such a file must be what the program would make today, in all types. Where this fails
// on purpose, raise kVersion in model/panel_cache.cpp, and set the numbers it prints here.
TEST_F(PanelFiles, HoldWhatTheirVersionSays) {
  const std::pair<DType, const char*> kWanted[] = {
      {DType::kQ4_0, "39b918baf03514b0"},  {DType::kQ4_1, "d44a6d32e7b843fd"},
      {DType::kQ5_0, "fe6b88586e8f6a45"},  {DType::kQ5_1, "0a4dbf8b4876d9b1"},
      {DType::kQ8_0, "2044fe8f1066727b"},  {DType::kQ4_K, "49af7d5a288fcadf"},
      {DType::kQ5_K, "490ad2a23e0fe40a"},  {DType::kQ6_K, "f8ffdd85e298adc4"},
      {DType::kIQ4_NL, "ffb1c727311a23a6"}};
  Network network(config_of("mamba1", 256, 2), Device::create({"cpu", 1}), Product::kF32);
  float* values = network.parameters().as<float>();
  for (int64_t i = 0; i < network.table().flat_count(); ++i) {
    values[i] = static_cast<float>(i * 40503 % 65536) / 65536 - 0.5f;
  }
  network.parameters_changed(false);
  save_model(network, folder_, DType::kF32);
  for (const auto& [type, wanted] : kWanted) {
    options_.dtype = type;
    const std::string path =
        folder_ + "/.model.safetensors." + std::string(dtype_name(type)) + ".v1.panels";
    EXPECT_NE(load().find(path), std::string::npos) << notes_;
    std::string all;  // hashes of tensors
    const SafetensorsFile file(path);
    for (const auto& [key, value] : file.metadata()) {
      if (key.starts_with("hash of ")) all += value;
    }
    EXPECT_EQ(fmt::format("{:016x}", hash_bytes(all.data(), std::ssize(all), 0)), wanted)
        << dtype_name(type);
  }
}

}  // namespace
}  // namespace mamba::test
