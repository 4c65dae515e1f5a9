// SPDX-License-Identifier: Apache-2.0
// Models to GGUF files of any type, quantised or not, and the importance of their inputs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "mamba/config.h"
#include "mamba/dtype.h"
#include "mamba/model.h"

namespace mamba {

struct QuantizeOptions {
  // One of quantize_types(), in any case; "" keeps the type that each matrix is stored in. A_log,
  // D, dt_bias, norms and the convolution are f32 in any case; see docs/gguf.md for the others.
  std::string type;
  // A file that collect_importance (or llama-imatrix, in its GGUF form) wrote; "": none.
  std::string imatrix;
  // A regular expression over names as GGUF has them ("blk\\.0\\.ssm_in"; found anywhere in a
  // name), and the type of the matrices that match. The last match counts.
  std::vector<std::pair<std::string, std::string>> tensor_types;
  // The type of the head (or the embedding that it shares) and of the embedding, before
  // tensor_types; "": as `type` says.
  std::string head_type, embedding_type;
  bool pure = false;        // every matrix in `type`, also those that are better off with more bits
  bool leave_head = false;  // the head, or the embedding that it shares, as it is stored
  // No notice that matrices in blocks are quantised for a second time.
  bool allow_requantize = false;
  bool with_tokenizer = true;
  bool dry_run = false;         // the sizes alone: nothing is written
  bool replace = false;         // a file that is there
  int64_t max_shard_bytes = 0;  // 0: one file
  int threads = 0;              // 0: one per physical core
  // Weights done and in all; false stops (error cancelled).
  std::function<bool(int64_t done, int64_t total, const std::string& tensor)> progress;
};

struct QuantizedTensor {
  std::string name;  // in the GGUF file
  std::vector<int64_t> shape;
  DType from = DType::kF32, to = DType::kF32;
  int64_t bytes_before = 0, bytes_after = 0;
  // Root of the sum of squared errors over that of squared weights; 0 where nothing was rounded,
  // and in a dry run.
  double relative_error = 0;
  std::string note;  // why it is not of the type that was asked for; "" if it is
};

struct QuantizeResult {
  Config config;
  std::vector<QuantizedTensor> tensors;  // in the order of the file
  int64_t bytes_before = 0, bytes_after = 0;
  std::vector<std::string> files;    // written
  std::vector<std::string> notices;  // one sentence each
};

// "f32", "bf16", ..., "q4_k_m": what QuantizeOptions::type and tensor_types take, the mixes (with
// an ending _s or _m) for the first alone.
std::vector<std::string> quantize_types();

// Writes the model at `in` (all that Model::load takes) into the file `out`, whose name ends in
// .gguf. Throws invalid_argument for options, bad_file, io, cancelled, and unsupported naming what
// GGUF cannot express or the tensor whose values a type cannot hold.
QuantizeResult quantize_model(const std::string& in, const std::string& out,
                              const QuantizeOptions& options);

struct ImportanceOptions {
  int64_t chunk = 512;     // tokens from a fresh state, >= 1
  int64_t max_chunks = 0;  // 0: all of the text
  std::string dataset;     // its name, for the file
  // Chunks done; false stops (error cancelled).
  std::function<bool(int64_t chunks)> progress;
};

// Runs the model at `in` over a text and writes, for each matrix, the squares of its inputs summed
// by column to `out` in the GGUF form of llama-imatrix. `read` fills at most `count` ids and
// returns how many, 0 at the end. Only whole chunks count. Returns how many there were. Throws
// bad_file for a text of less than one chunk.
int64_t collect_importance(const std::string& in, const std::string& out,
                           const std::function<int64_t(int32_t* ids, int64_t count)>& read,
                           const ModelOptions& model, const ImportanceOptions& options);

}  // namespace mamba
