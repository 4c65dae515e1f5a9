// SPDX-License-Identifier: Apache-2.0
// What goes into the matrix products of a model, summed up over a text: how much an error of each
// column of a matrix costs. It watches the kernel, so that no pass over the model knows of it.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/kernels.h"
#include "model/network.h"

namespace mamba {

class ActivationSums {
 public:
  // Watches `network`, which keeps its matrices (Matrices::kKept) and is not packed, for as long as
  // this lives.
  explicit ActivationSums(Network& network);
  ~ActivationSums();
  ActivationSums(const ActivationSums&) = delete;
  ActivationSums& operator=(const ActivationSums&) = delete;

  struct Sums {
    std::vector<double> squares;  // (K) of every input row
    int64_t rows = 0;
  };
  // By table index; rows is 0 for what took part in no product.
  const std::vector<Sums>& sums() const { return sums_; }

 private:
  // The device's table with `linear_forward` replaced; found again through the device.
  struct Watching : Kernels {
    ActivationSums* owner;
    const Kernels* real;
  };
  static void watch(Stream& stream, const LinearArgs& args) noexcept;
  void add(const LinearArgs& args);

  Network& network_;
  Watching table_;
  std::vector<Sums> sums_;
  std::unordered_map<const void*, size_t> index_of_;  // by where a matrix lies
};

}  // namespace mamba
