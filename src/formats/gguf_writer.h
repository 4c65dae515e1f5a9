// SPDX-License-Identifier: Apache-2.0
// Writing GGUF version 3, atomically, in one file or in shards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/gguf.h"

namespace mamba {

// One file at `path`, which must end in .gguf; with max_shard_bytes > 0, where the tensors are
// larger, NAME-00001-of-0000n.gguf and so on instead (a single larger tensor gets a shard of its
// own), all metadata in the first. general.alignment is what `metadata` says, else 32. All files
// appear under their names at the end, or none. Returns the paths written.
std::vector<std::string> write_gguf(const std::string& path, const GgufMetadata& metadata,
                                    const std::vector<TensorData>& tensors,
                                    int64_t max_shard_bytes = 0);

// The paths that write_gguf would write.
std::vector<std::string> gguf_paths(const std::string& path, const std::vector<TensorData>& tensors,
                                    int64_t max_shard_bytes);

// The bytes of one such file.
std::string gguf_bytes(const GgufMetadata& metadata, const std::vector<TensorData>& tensors);

}  // namespace mamba
