// SPDX-License-Identifier: Apache-2.0
// Panels of a model's matrices in blocks, kept in a file: laying them out, and quantising, is not
// done again at the next load. The form is that of safetensors; nothing of it is believed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "mamba/model.h"
#include "model/network.h"

namespace mamba {

class WeightFiles;

// While it lives the network's device packs through it, and the network must outlive it.
class PanelCache {
 public:
  // types: by table index, what each tensor is held in. Looks for a file of these panels; one that
  // is of another model, stale or damaged is as none.
  PanelCache(Network& network, const WeightFiles& files, const std::vector<DType>& types,
             const ModelOptions& options);
  ~PanelCache();
  PanelCache(const PanelCache&) = delete;
  PanelCache& operator=(const PanelCache&) = delete;

  // Gives the network the tensor if its panels are there, else false. Either way the tensor is that
  // which is packed next.
  bool set(int index);
  // After the last tensor: writes the file if `seconds` of preparing were long enough. Never fails.
  void keep(double seconds);

 private:
  struct Watching : Kernels {
    const Kernels* real = nullptr;
    PanelCache* owner = nullptr;
  };
  static void watch(Stream& stream, const LinearQPackArgs& args) noexcept;
  void find(const WeightFiles& files);
  // Where the file may be.
  struct Candidate {
    std::string path;
    unsigned mode;  // of one that is made
  };
  bool open(const std::string& path);
  bool write(const Candidate& to);
  void note(const std::string& text) const;
  int64_t bytes_of(size_t index) const;

  Network& network_;
  const ModelOptions& options_;
  std::vector<DType> types_;
  std::string key_, source_;
  std::vector<Candidate> candidates_;  // best first
  std::unique_ptr<MappedFile> file_;
  std::vector<const void*> ready_;           // by table index, in file_; null without one
  std::vector<const PackedLinear*> packed_;  // by table index, of the network
  size_t index_ = 0;
  Watching table_;
};

// The files of panels that there are for the model at `path`, in its folder and in `folder`.
std::vector<std::string> panel_files(const std::string& path, const std::string& folder);

}  // namespace mamba
