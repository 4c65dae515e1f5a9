// SPDX-License-Identifier: Apache-2.0
// A model on a device: load, run chunks and steps from a state to a state, save.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "mamba/dtype.h"
#include "mamba/state.h"

namespace mamba {

class Network;

// Matrices in blocks as the CPU computes with them, kept in a file for the next load: results are
// the same by a bit. Files that are stale or damaged are made anew; none is ever needed.
struct WeightCache {
  bool use = false;          // look for a file, and make one
  double after_seconds = 1;  // that preparing the matrices took at least, for one to be made
  std::string folder;        // for files where the model's folder takes none; "": then none
  std::function<void(const std::string&)> on_note = {};  // told what was found, made, or why not
};

struct ModelOptions {
  std::string device = "cpu";  // "cpu", "cpu:base", "cpu:avx2", "cpu:avx512", "cpu:avx512_bf16",
                               // "cpu:onednn", "ref", "ref64"
  int threads = 0;             // 0: one per physical core
  // Of the weight matrices: kF32, kBF16 (and products of bf16), kF16 (exact products in f32), or a
  // type of blocks, to which they are quantised. Those of a file in bf16 or f16 stay in 16 bits.
  DType dtype = DType::kF32;
  // Matrices that a file has in blocks become `dtype`, if that is no type of blocks; else they
  // stay.
  bool dequantize = false;
  DType state_dtype = DType::kF32;  // kF32 or kBF16: type of the states that new_state makes
  // "auto": of several kernels for an operation the one that a measured table names; "reference":
  // the general ones alone; "fused": one kernel for as much of a step as there is one for, or
  // invalid_argument.
  std::string backend = "auto";
  // Where the file that tune has written for this GPU may be; "": none.
  std::string choices_folder = {};
  // Told what a config file says that changes nothing here, or that is read otherwise elsewhere.
  std::function<void(const std::string&)> on_warning = {};
  WeightCache cache = {};
  // Asked from all threads while weights are quantised; true ends load() with `cancelled`.
  std::function<bool()> interrupted = {};
};

enum class Logits { kNone, kLast, kAll };

// Not thread-safe: one thread at a time uses a Model and the states it made.
class Model {
 public:
  // A model folder (config.json + safetensors). Throws bad_file, unsupported, out_of_memory,
  // device.
  static Model load(const std::string& folder, const ModelOptions& options = {});
  // Fresh weights by the rules of the papers, from the seed alone.
  static Model create(const Config& config, uint64_t seed, const ModelOptions& options = {});
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const Config& config() const;
  int64_t parameters() const;
  // Fresh states of `batch` sequences.
  State new_state(int64_t batch) const;

  // Runs a chunk of `length` tokens of every row from `state` to `state`. tokens is (batch, length)
  // row-major, ids in [0, vocab_size); -1 marks padding, which changes nothing and whose logits are
  // 0. documents, when not null, is (batch, length): a change of id between two tokens starts a
  // fresh sequence there (the first token always continues `state`). logits: kAll (batch, length,
  // vocab_size); kLast (batch, vocab_size) after each row's last token that is no padding
  // (unchanged for a row of padding alone); null with kNone. A row's results do not depend on its
  // neighbours or its padding by a bit.
  void forward(const int32_t* tokens, int64_t length, State& state, Logits want, float* logits,
               const int32_t* documents = nullptr);
  // One token for every row; logits (batch, vocab_size). -1 leaves the row's state and logits
  // alone.
  void step(const int32_t* tokens, State& state, float* logits);
  // nll (batch, length): -log p(target | tokens so far) of each position, 0 where the target is -1.
  void score(const int32_t* tokens, const int32_t* targets, int64_t length, State& state,
             float* nll, const int32_t* documents = nullptr);

  // Writes config.json and safetensors in the transformers form, each file atomically.
  void save(const std::string& folder, DType dtype = DType::kF32) const;
  // 16 hex digits over config, dtype and all weights: ties a saved state to its model.
  const std::string& fingerprint() const;
  // "cpu:avx512", ... what runs.
  const std::string& device_name() const;
  // Which kernels a prompt and a step of `batch` sequences run where there are several, and why, as
  // JSON: it runs both from fresh states and tells what was taken. Their time was measured where a
  // table has it.
  std::string explain(int64_t batch = 1);
  DType dtype() const;
  // Where it was loaded from; "" for one that was created.
  const std::string& path() const { return path_; }

  Network& network() { return *network_; }

 private:
  explicit Model(std::unique_ptr<Network> network);
  std::unique_ptr<Network> network_;
  std::string path_;
};

// Exact number of parameters of a configuration (tied heads counted once).
int64_t parameter_count(const Config& config);

}  // namespace mamba
