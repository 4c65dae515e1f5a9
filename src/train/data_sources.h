// SPDX-License-Identifier: Apache-2.0
// What a run trains on or is evaluated on: one or several sources, each a stream of tokens with an
// order of its own, and the sequence that sample i is.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "mamba/tokenizer.h"
#include "mamba/train.h"
#include "train/data_order.h"
#include "train/data_packing.h"
#include "train/data_stream.h"

namespace mamba {

struct DataOptions {
  int64_t seq_len = 1;
  Packing packing = Packing::kStream;
  DataOrder order = DataOrder::kSequential;
  uint64_t seed = 0;
  DataFormat format;
};

// Files as one stream and its sequences, epoch after epoch.
class DataSource {
 public:
  // `what` names the option in messages. Throws bad_file as TokenStream does, and where there is no
  // whole sequence or no token with a loss.
  DataSource(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
             const std::string& what, const DataOptions& options);

  // Sequence `sample` since the start of the run. Fast in rising order.
  void read(int64_t sample, const DataRow& row);

  const TokenStream& stream() const { return stream_; }
  int64_t sequences() const;                                             // of the first epoch
  double padding() const { return packing_ ? packing_->padding() : 0; }  // share of it
  int64_t left_out() const { return packing_ ? packing_->left_out() : 0; }
  // What tells it from another one: {"fingerprint", "tokens"}.
  Json identity() const;

 private:
  TokenStream stream_;
  int64_t seq_len_;
  std::optional<WindowOrder> windows_;      // of Packing::kStream
  std::optional<DocumentPacking> packing_;  // of Packing::kDocuments
};

// Which source a sample is from: the one with the largest deficit, weight * samples so far - taken.
// So no source is ever a whole sample ahead of its weight, and sample i is a function of i alone.
class WeightedOrder {
 public:
  // Weights are at least 0 and not all 0; they need not add up to 1.
  explicit WeightedOrder(std::vector<double> weights);

  struct Place {
    size_t source;
    int64_t index;  // samples of that source before it
  };
  // Constant time for samples in rising order; others count from the start.
  Place at(int64_t sample);
  const std::vector<double>& weights() const { return weights_; }  // adding up to 1

 private:
  std::vector<double> weights_;
  std::vector<int64_t> taken_;
  int64_t samples_ = 0;  // places given out
  Place last_{0, 0};
};

class DataSet {
 public:
  // All paths are one source; with weights, each path is one.
  DataSet(const std::vector<std::string>& paths, const std::vector<double>& weights,
          const Tokenizer& tokenizer, const std::string& what, const DataOptions& options);
  DataSet(const DataSet&) = delete;
  DataSet& operator=(const DataSet&) = delete;

  // Sequence `sample` since the start of the run. Fast in rising order.
  void read(int64_t sample, const DataRow& row);

  // For the plan; weights add up to 1.
  std::vector<TrainSource> describe() const;
  int64_t tokens() const;
  int64_t sequences() const;  // of the first epoch of every source
  // What decides the samples beside the options: of the source, or a list of all.
  Json identity() const;
  const std::vector<double>& weights() const { return order_.weights(); }

 private:
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<DataSource>> sources_;
  WeightedOrder order_;
};

}  // namespace mamba
