// SPDX-License-Identifier: Apache-2.0
// Token streams over files and the order of their windows.
#include "train/data.h"

#include <algorithm>
#include <bit>
#include <filesystem>

#include "base/check.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

// Random streams of a run's seed; the numbers of weights are streams of their names' hashes.
constexpr uint64_t kPermutationStream = 0x7065726d00000000u;  // + epoch
constexpr uint64_t kOffsetStream = 0x6f66667365740000u;

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with("."); }

// The files of a folder, sorted by path.
std::vector<std::string> files_below(const std::string& folder, const std::string& what) {
  std::vector<std::string> files;
  std::error_code error;
  fs::recursive_directory_iterator at(folder, fs::directory_options::follow_directory_symlink,
                                      error);
  for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
    std::error_code ignored;
    if (is_hidden(at->path())) {
      if (at->is_directory(ignored)) at.disable_recursion_pending();
    } else if (at->is_regular_file(ignored)) {
      files.push_back(at->path().string());
    }
  }
  if (error) {
    fail(ErrorCode::kBadFile, "[{} {}] expected a readable folder, got: {}; check its permissions",
         what, folder, error.message());
  }
  if (files.empty()) {
    fail(ErrorCode::kBadFile, "[{} {}] expected a folder with files, got none in it; name another",
         what, folder);
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> list_files(const std::vector<std::string>& paths,
                                    const std::string& what) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) {
      const std::vector<std::string> below = files_below(path, what);
      files.insert(files.end(), below.begin(), below.end());
    } else {
      files.push_back(path);
    }
  }
  return files;
}

// FNV-1a over 64-bit words; enough to tell data sets apart, not against an adversary.
uint64_t mix_into(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x100000001b3u;
  return hash ^ (hash >> 29);
}

}  // namespace

TokenStream::TokenStream(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                         const std::string& what)
    : files_(list_files(paths, what)) {
  const bool bytes = tokenizer.name() == "bytes";
  for (const std::string& path : files_) {
    Part part{size_, 0, MappedFile(path), {}};
    if (bytes) {
      part.count = static_cast<int64_t>(part.file.size());
    } else {
      part.ids =
          tokenizer.encode({reinterpret_cast<const char*>(part.file.data()), part.file.size()});
      part.count = static_cast<int64_t>(part.ids.size());
    }
    if (part.count == 0) continue;
    size_ += part.count;
    parts_.push_back(std::move(part));
  }
  if (size_ == 0) {
    fail(ErrorCode::kBadFile, "[{} {}] expected text, got {} without a byte; name another", what,
         files_.empty() ? "" : files_.front(),
         files_.size() == 1 ? "a file" : fmt::format("{} files", files_.size()));
  }
}

void TokenStream::read(int64_t begin, int64_t count, int32_t* out) const {
  MAMBA_CHECK(begin >= 0 && count >= 0 && begin <= size_ - count);
  auto part = std::upper_bound(parts_.begin(), parts_.end(), begin,
                               [](int64_t at, const Part& p) { return at < p.begin; });
  if (part != parts_.begin()) --part;
  while (count > 0) {
    const int64_t at = begin - part->begin;
    const int64_t piece = std::min(count, part->count - at);
    if (part->ids.empty()) {
      const uint8_t* from = part->file.data() + at;
      std::copy(from, from + piece, out);
    } else {
      std::copy_n(part->ids.data() + at, piece, out);
    }
    begin += piece;
    count -= piece;
    out += piece;
    ++part;
  }
}

std::string TokenStream::fingerprint() const {
  constexpr int64_t kBlocks = 256, kBlock = 4096;
  std::vector<int32_t> ids(static_cast<size_t>(kBlock));
  uint64_t hash = mix_into(0xcbf29ce484222325u, static_cast<uint64_t>(size_));
  for (int64_t i = 0; i < kBlocks; ++i) {
    // Whole blocks for small streams, the first and the last token included for large ones.
    const int64_t last = std::max<int64_t>(0, size_ - kBlock);
    const int64_t begin =
        static_cast<int64_t>(static_cast<double>(last) * (static_cast<double>(i) / (kBlocks - 1)));
    const int64_t count = std::min(kBlock, size_ - begin);
    read(begin, count, ids.data());
    for (int64_t j = 0; j < count; ++j) {
      hash = mix_into(hash, static_cast<uint64_t>(ids[static_cast<size_t>(j)]));
    }
    if (last == 0) break;
  }
  return fmt::format("{:016x}", hash);
}

IndexPermutation::IndexPermutation(int64_t count, uint64_t seed, uint64_t stream)
    : rng_(seed, stream), count_(static_cast<uint64_t>(count)) {
  MAMBA_CHECK(count >= 1);
  half_bits_ = (static_cast<int>(std::bit_width(count_ - 1)) + 1) / 2;
}

// Rounds (l, r) -> (r, l ^ F(r)): invertible whatever F is. Four rounds make it pseudo-random (Luby
// & Rackoff 1988); six leave a margin for the few bits of small counts.
uint64_t IndexPermutation::feistel(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & mask;
  for (uint64_t round = 0; round < 6; ++round) {
    const uint64_t next = left ^ (rng_.bits(right << 3 | round) & mask);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

// The network permutes [0, 4^half_bits), at most four times [0, count); following a cycle from
// inside until it is inside again is a permutation of the inside.
int64_t IndexPermutation::operator()(int64_t index) const {
  auto value = static_cast<uint64_t>(index);
  do {
    value = feistel(value);
  } while (value >= count_);
  return static_cast<int64_t>(value);
}

WindowOrder::WindowOrder(int64_t stream_size, int64_t seq_len, DataOrder order, uint64_t seed,
                         const std::string& what)
    : size_(stream_size), seq_len_(seq_len), order_(order), seed_(seed) {
  if (stream_size < seq_len + 1) {
    fail(ErrorCode::kBadFile,
         "[{}] expected at least {} tokens (--seq-len {} and one more as the last target), got {}; "
         "add text or use a smaller --seq-len",
         what, seq_len + 1, seq_len, stream_size);
  }
  enter_epoch(0, 0);
}

void WindowOrder::enter_epoch(int64_t epoch, int64_t first_sample) {
  epoch_ = epoch;
  first_sample_ = first_sample;
  offset_ = 0;
  if (order_ == DataOrder::kShuffled) {
    // At least one window must remain behind the offset.
    const int64_t offsets = std::min(seq_len_, size_ - seq_len_);
    offset_ = static_cast<int64_t>(
        CounterRng(seed_, kOffsetStream)
            .below(static_cast<uint64_t>(epoch), static_cast<uint64_t>(offsets)));
  }
  count_ = (size_ - 1 - offset_) / seq_len_;
  permutation_ = IndexPermutation(count_, seed_, kPermutationStream + static_cast<uint64_t>(epoch));
}

int64_t WindowOrder::begin(int64_t sample) {
  MAMBA_CHECK(sample >= 0);
  if (sample < first_sample_) enter_epoch(0, 0);
  while (sample - first_sample_ >= count_) enter_epoch(epoch_ + 1, first_sample_ + count_);
  const int64_t index = sample - first_sample_;
  return offset_ + seq_len_ * (order_ == DataOrder::kShuffled ? permutation_(index) : index);
}

}  // namespace mamba
