// SPDX-License-Identifier: Apache-2.0
// Sources, and the sample that comes next.
#include "train/data_sources.h"

#include <numeric>
#include <utility>

#include "base/check.h"

namespace mamba {
namespace {

// Seeds of the orders of all sources but the first, which has the run's.
constexpr uint64_t kSourceStream = 0x736f757263650000u;

void expect_loss(bool any, const std::string& what, const TokenStream& stream) {
  if (any) return;
  fail(
      ErrorCode::kBadFile,
      "[{} {}] expected a token with a loss, got none in {} documents; are all responses empty, or "
      "all texts of one token?",
      what, stream.files().front(), stream.document_count());
}

}  // namespace

DataSource::DataSource(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                       const std::string& what, const DataOptions& options)
    : stream_(paths, tokenizer, what, options.format), seq_len_(options.seq_len) {
  if (options.packing == Packing::kStream) {
    windows_.emplace(stream_.size(), seq_len_, options.order, options.seed, what);
    expect_loss(stream_.scored() > 0, what, stream_);
  } else {
    packing_.emplace(stream_, seq_len_, options.order, options.seed);
    expect_loss(packing_->targets() > 0, what, stream_);
  }
}

void DataSource::read(int64_t sample, const DataRow& row) {
  if (packing_) return packing_->read(sample, row);
  const int64_t begin = windows_->begin(sample);
  stream_.read(begin, seq_len_, row.ids);
  stream_.read_targets(begin + 1, seq_len_, row.targets);
}

int64_t DataSource::sequences() const { return packing_ ? packing_->rows() : windows_->windows(); }

Json DataSource::identity() const {
  return {{"fingerprint", stream_.fingerprint(packing_.has_value())}, {"tokens", stream_.size()}};
}

WeightedOrder::WeightedOrder(std::vector<double> weights)
    : weights_(std::move(weights)), taken_(weights_.size(), 0) {
  const double sum = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  MAMBA_CHECK(sum > 0);
  for (double& weight : weights_) weight /= sum;
}

WeightedOrder::Place WeightedOrder::at(int64_t sample) {
  MAMBA_CHECK(sample >= 0);
  if (sample < samples_ - 1) {
    taken_.assign(taken_.size(), 0);
    samples_ = 0;
  }
  while (samples_ <= sample) {
    ++samples_;
    size_t most = 0;
    double largest = -1;
    for (size_t k = 0; k < weights_.size(); ++k) {
      const double deficit =
          weights_[k] * static_cast<double>(samples_) - static_cast<double>(taken_[k]);
      if (deficit > largest) {
        largest = deficit;
        most = k;
      }
    }
    last_ = {most, taken_[most]++};
  }
  return last_;
}

DataSet::DataSet(const std::vector<std::string>& paths, const std::vector<double>& weights,
                 const Tokenizer& tokenizer, const std::string& what, const DataOptions& options)
    : order_(weights.empty() ? std::vector<double>{1} : weights) {
  if (weights.empty()) {
    sources_.push_back(std::make_unique<DataSource>(paths, tokenizer, what, options));
    names_.push_back(paths.front());
    return;
  }
  MAMBA_CHECK(weights.size() == paths.size());
  for (size_t k = 0; k < paths.size(); ++k) {
    DataOptions own = options;
    if (k > 0) own.seed = CounterRng(options.seed, kSourceStream).bits(k);
    sources_.push_back(
        std::make_unique<DataSource>(std::vector<std::string>{paths[k]}, tokenizer, what, own));
    names_.push_back(paths[k]);
  }
}

void DataSet::read(int64_t sample, const DataRow& row) {
  const WeightedOrder::Place place = order_.at(sample);
  sources_[place.source]->read(place.index, row);
}

std::vector<TrainSource> DataSet::describe() const {
  std::vector<TrainSource> all;
  for (size_t k = 0; k < sources_.size(); ++k) {
    const DataSource& source = *sources_[k];
    const TokenStream& stream = source.stream();
    all.push_back({names_[k], order_.weights()[k], static_cast<int64_t>(stream.files().size()),
                   stream.document_count(), stream.size(), stream.scored(), source.sequences(),
                   source.padding(), source.left_out()});
  }
  return all;
}

int64_t DataSet::tokens() const {
  int64_t sum = 0;
  for (const auto& source : sources_) sum += source->stream().size();
  return sum;
}

int64_t DataSet::sequences() const {
  int64_t sum = 0;
  for (const auto& source : sources_) sum += source->sequences();
  return sum;
}

Json DataSet::identity() const {
  if (sources_.size() == 1) return sources_.front()->identity();
  Json all = Json::array();
  for (const auto& source : sources_) all.push_back(source->identity());
  return all;
}

}  // namespace mamba
