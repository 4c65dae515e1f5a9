// SPDX-License-Identifier: Apache-2.0
// Reads and encodes the files of a data set.
#include "train/data_stream.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <string_view>
#include <thread>

#include "base/check.h"
#include "device/cpu_features.h"
#include "train/data_files.h"
#include "train/data_jsonl.h"
#include "train/data_token_file.h"

namespace mamba {
namespace {

// Text for one thread at a time: enough to outweigh its start, small enough to spread evenly.
constexpr size_t kBlockBytes = size_t{1} << 20;

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

// work(i) for every i in [0, count) on several threads. Throws the error of the smallest i: threads
// take them in rising order, so all before it have been done.
void run_blocks(size_t count, int threads, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  size_t failed_at = count;
  std::exception_ptr error;
  const auto take = [&] {
    for (size_t i = next++; i < count && !failed; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        failed = true;
        if (i < failed_at) error = std::current_exception();
        failed_at = std::min(failed_at, i);
      }
    }
  };
  std::vector<std::jthread> others;
  const size_t helpers = std::min(count, static_cast<size_t>(threads));
  for (size_t t = 1; t < helpers; ++t) others.emplace_back(take);
  take();
  others.clear();  // joins
  if (error) std::rethrow_exception(error);
}

// Cuts a text where the ids of the pieces are those of the whole.
std::vector<std::string_view> cut_text(std::string_view text, const Tokenizer& tokenizer) {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    size_t cut = 0, looked = 0;
    while (cut == 0 && looked < text.size()) {
      looked = std::min(text.size(), looked == 0 ? kBlockBytes : 2 * looked);
      cut = looked == text.size() ? looked : tokenizer.safe_cut(text.substr(0, looked), {});
    }
    pieces.push_back(text.substr(0, cut));
    text.remove_prefix(cut);
  }
  return pieces;
}

// FNV-1a over 64-bit words; enough to tell data sets apart, not against an adversary.
uint64_t mix_into(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x100000001b3u;
  return hash ^ (hash >> 29);
}

}  // namespace

// Ids are little-endian in files, as they are on this machine.
template <class Use>
void TokenStream::Part::with_ids(const Use& use) const {
  if (width == 1) return use(file->data());
  if (width == 2) {
    return use(file ? reinterpret_cast<const uint16_t*>(file->data()) : narrow.data());
  }
  return use(reinterpret_cast<const uint32_t*>(file ? static_cast<const void*>(file->data())
                                                    : wide.data()));
}

void TokenStream::Part::append(const std::vector<int32_t>& ids, bool has_loss) {
  if (width == 2) {
    narrow.insert(narrow.end(), ids.begin(), ids.end());
  } else {
    wide.insert(wide.end(), ids.begin(), ids.end());
  }
  if (!has_loss && scored.empty()) scored.resize(static_cast<size_t>(count), true);
  count += static_cast<int64_t>(ids.size());
  if (!has_loss) unscored += static_cast<int64_t>(ids.size());
  if (!has_loss || !scored.empty()) scored.resize(static_cast<size_t>(count), has_loss);
}

void TokenStream::Part::end_document() {
  if (count > (ends.empty() ? 0 : ends.back())) ends.push_back(count);
}

TokenStream::Part TokenStream::new_part() const {
  Part part;
  part.width = narrow_ ? 2 : 4;
  return part;
}

TokenStream::TokenStream(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                         const std::string& what, const DataFormat& format)
    : files_(list_data_files(paths, what, format.notices)),
      eos_(tokenizer.eos_id()),
      narrow_(tokenizer.vocab_size() <= 65536) {
  const int threads = format.threads > 0 ? format.threads : physical_cores();
  for (const std::string& path : files_) {
    const DataKind kind = data_kind_of(path);
    if (kind == DataKind::kTokens) {
      add_tokens(path, tokenizer, format.dtype);
    } else if (kind == DataKind::kJsonl) {
      add_jsonl(path, tokenizer, format, threads);
    } else if (tokenizer.name() == "bytes") {
      add_mapped_text(path);
    } else {
      add_text(path, tokenizer, threads);
    }
    close_document(kind == DataKind::kText);
  }
  if (size_ == 0) {
    fail(ErrorCode::kBadFile, "[{} {}] expected text, got {} without a token; name another", what,
         files_.empty() ? "" : files_.front(),
         files_.size() == 1 ? "a file" : fmt::format("{} files", files_.size()));
  }
}

void TokenStream::add(Part part) {
  if (part.count == 0) return;
  part.begin = size_;
  for (const int64_t end : part.ends) documents_.push_back(size_ + end);
  size_ += part.count;
  scored_ += part.count - part.unscored;
  part.ends = {};
  parts_.push_back(std::move(part));
}

void TokenStream::close_document(bool with_eos) {
  if (size_ == documents_.back()) return;
  if (with_eos && eos_ >= 0) {
    Part part = new_part();
    part.append({eos_}, true);
    add(std::move(part));
  }
  documents_.push_back(size_);
}

void TokenStream::add_mapped_text(const std::string& path) {
  Part part;
  part.file.emplace(path);
  part.count = static_cast<int64_t>(part.file->size());
  add(std::move(part));
}

void TokenStream::add_text(const std::string& path, const Tokenizer& tokenizer, int threads) {
  const MappedFile file(path);
  const std::vector<std::string_view> pieces = cut_text(text_of(file), tokenizer);
  std::vector<Part> parts(pieces.size());
  run_blocks(pieces.size(), threads, [&](size_t i) {
    Part part = new_part();
    const std::vector<int32_t> ids = tokenizer.encode(pieces[i]);
    part.append(ids, true);
    for (size_t at = 0; at < ids.size(); ++at) {
      if (eos_ >= 0 && ids[at] == eos_) part.ends.push_back(static_cast<int64_t>(at) + 1);
    }
    parts[i] = std::move(part);
  });
  for (Part& part : parts) add(std::move(part));
}

void TokenStream::append_line(std::string_view line, const std::string& where,
                              const Tokenizer& tokenizer, const DataFormat& format,
                              Part* part) const {
  const JsonlDocument document = parse_jsonl_line(line, where);
  const int64_t before = part->count;
  if (!document.messages.empty()) {
    MAMBA_CHECK(format.conversations != nullptr);
    for (const ScoredIds& piece : format.conversations->encode(document.messages, where)) {
      part->append(piece.ids, piece.scored);
    }
  } else {
    std::vector<int32_t> ids;
    for (const TextPiece& piece : document.pieces) {
      ids = tokenizer.encode(piece.text);
      part->append(ids, piece.scored);
    }
    const bool ended = !ids.empty() && ids.back() == eos_;
    if (part->count > before && eos_ >= 0 && !ended) part->append({eos_}, true);
  }
  part->end_document();
}

void TokenStream::add_jsonl(const std::string& path, const Tokenizer& tokenizer,
                            const DataFormat& format, int threads) {
  const MappedFile file(path);
  const std::vector<LineBlock> blocks = cut_lines(text_of(file), kBlockBytes);
  std::vector<Part> parts(blocks.size());
  run_blocks(blocks.size(), threads, [&](size_t i) {
    Part part = new_part();
    std::string_view text = blocks[i].text;
    for (int64_t line = blocks[i].first_line; !text.empty(); ++line) {
      append_line(next_line(&text), fmt::format("{}, line {}", path, line), tokenizer, format,
                  &part);
    }
    parts[i] = std::move(part);
  });
  for (Part& part : parts) add(std::move(part));
}

void TokenStream::add_tokens(const std::string& path, const Tokenizer& tokenizer,
                             const std::string& dtype) {
  TokenFile tokens = open_token_file(path, dtype, tokenizer);
  Part part;
  part.width = tokens.width;
  part.count = tokens.count;
  part.file.emplace(std::move(tokens.file));
  const auto vocabulary = static_cast<uint32_t>(tokenizer.vocab_size());
  const auto eos = static_cast<uint32_t>(eos_);
  part.with_ids([&](const auto* ids) {
    for (int64_t i = 0; i < part.count; ++i) {
      const uint32_t id = ids[i];
      if (id >= vocabulary) {
        fail(ErrorCode::kBadFile,
             "[{}] expected ids in 0..{} of --tokenizer {}, got {} at token {} (as {}); name the "
             "tokenizer that made them, or their --data-dtype",
             path, vocabulary - 1, tokenizer.name(), id, i, part.width == 2 ? "uint16" : "uint32");
      }
      if (id == eos) part.ends.push_back(i + 1);
    }
  });
  add(std::move(part));
}

template <class Copy>
void TokenStream::for_parts(int64_t begin, int64_t count, const Copy& copy) const {
  MAMBA_CHECK(begin >= 0 && count >= 0 && begin <= size_ - count);
  auto part = std::upper_bound(parts_.begin(), parts_.end(), begin,
                               [](int64_t at, const Part& p) { return at < p.begin; });
  if (part != parts_.begin()) --part;
  for (int64_t done = 0; done < count; ++part) {
    const int64_t first = begin + done - part->begin;
    const int64_t piece = std::min(count - done, part->count - first);
    copy(*part, first, piece, done);
    done += piece;
  }
}

void TokenStream::read(int64_t begin, int64_t count, int32_t* out) const {
  for_parts(begin, count, [&](const Part& part, int64_t first, int64_t piece, int64_t done) {
    part.with_ids([&](const auto* ids) { std::copy_n(ids + first, piece, out + done); });
  });
}

void TokenStream::read_targets(int64_t begin, int64_t count, int32_t* out) const {
  read(begin, count, out);
  if (all_scored()) return;
  for_parts(begin, count, [&](const Part& part, int64_t first, int64_t piece, int64_t done) {
    if (part.scored.empty()) return;
    for (int64_t i = 0; i < piece; ++i) {
      if (!part.scored[static_cast<size_t>(first + i)]) out[done + i] = -1;
    }
  });
}

std::string TokenStream::fingerprint(bool with_documents) const {
  constexpr int64_t kBlocks = 256, kBlock = 4096;
  std::vector<int32_t> ids(static_cast<size_t>(kBlock));
  uint64_t hash = mix_into(0xcbf29ce484222325u, static_cast<uint64_t>(size_));
  const auto mix_ids = [&](int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      hash = mix_into(hash, static_cast<uint64_t>(ids[static_cast<size_t>(j)]));
    }
  };
  for (int64_t i = 0; i < kBlocks; ++i) {
    // Whole blocks for small streams, the first and the last token included for large ones.
    const int64_t last = std::max<int64_t>(0, size_ - kBlock);
    const int64_t begin =
        static_cast<int64_t>(static_cast<double>(last) * (static_cast<double>(i) / (kBlocks - 1)));
    const int64_t count = std::min(kBlock, size_ - begin);
    read(begin, count, ids.data());
    mix_ids(count);
    if (!all_scored()) {
      read_targets(begin, count, ids.data());
      mix_ids(count);
    }
    if (last == 0) break;
  }
  if (!all_scored()) hash = mix_into(hash, static_cast<uint64_t>(scored_));
  if (with_documents) {
    for (const int64_t begin : documents_) hash = mix_into(hash, static_cast<uint64_t>(begin));
  }
  return fmt::format("{:016x}", hash);
}

}  // namespace mamba
