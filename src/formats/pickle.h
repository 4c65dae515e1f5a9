// SPDX-License-Identifier: Apache-2.0
// The pickle inside a torch checkpoint, read as data: a machine with the opcodes and names that
// such files need and no others. It calls nothing and imports nothing; any other name is refused by
// name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "mamba/dtype.h"

namespace mamba {

// A tensor of the pickled dictionary: a strided view of a storage that lies elsewhere. The view is
// within the storage, and no larger than it.
struct PickledTensor {
  std::string name;
  DType dtype = DType::kF32;  // torch.bool is kU8
  std::string storage;        // its key
  int64_t storage_bytes = 0;  // the whole storage
  int64_t offset = 0;         // of the first element, in elements
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements, not negative
};

// The tensors of a pickled dictionary of names to tensors (protocols 2 to 5), sorted by name.
// Throws bad_file (malformed, with the byte) or unsupported (a name or opcode that is not allowed).
std::vector<PickledTensor> read_tensor_pickle(const void* bytes, size_t count,
                                              const std::string& where);

// The pickle (protocol 2) from which torch makes an OrderedDict of these tensors. They must be
// contiguous; tensors of the same storage key share their memory.
std::string write_tensor_pickle(const std::vector<PickledTensor>& tensors);

}  // namespace mamba
