// SPDX-License-Identifier: Apache-2.0
// A context and its continuation as ids, by the rule of lm-evaluation-harness.
#include <algorithm>
#include <array>
#include <cstddef>

#include "base/check.h"
#include "base/json.h"
#include "mamba/evaluate.h"

namespace mamba {
namespace {

// What Python's str.isspace() holds for: the white space of Unicode and the four separators of
// ASCII.
constexpr std::array<std::string_view, 29> kSpaces = {
    " ",
    "\t",
    "\n",
    "\v",
    "\f",
    "\r",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x1f",
    "\xc2\x85",
    "\xc2\xa0",
    "\xe1\x9a\x80",
    "\xe2\x80\x80",
    "\xe2\x80\x81",
    "\xe2\x80\x82",
    "\xe2\x80\x83",
    "\xe2\x80\x84",
    "\xe2\x80\x85",
    "\xe2\x80\x86",
    "\xe2\x80\x87",
    "\xe2\x80\x88",
    "\xe2\x80\x89",
    "\xe2\x80\x8a",
    "\xe2\x80\xa8",
    "\xe2\x80\xa9",
    "\xe2\x80\xaf",
    "\xe2\x81\x9f",
    "\xe3\x80\x80",
};

size_t length_without_trailing_space(std::string_view text) {
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view space : kSpaces) {
      if (!text.ends_with(space)) continue;
      text.remove_suffix(space.size());
      found = true;
    }
  }
  return text.size();
}

}  // namespace

LikelihoodRequest encode_pair(const Tokenizer& tokenizer, std::string_view context,
                              std::string_view continuation, int32_t prefix_id) {
  const size_t kept = length_without_trailing_space(context);
  const std::string whole = std::string(context) + std::string(continuation);
  EncodeOptions options;
  options.add_special = kept > 0;
  LikelihoodRequest request;
  if (kept > 0) request.context = tokenizer.encode_with(context.substr(0, kept), options);
  request.continuation = tokenizer.encode_with(whole, options);
  if (request.context.empty()) {
    std::vector<int32_t>& ids = request.continuation;
    // The prefix, or the continuation's own first token where that is the prefix already.
    const bool own = prefix_id < 0 || (!ids.empty() && ids[0] == prefix_id);
    if (!own) {
      request.context = {prefix_id};
    } else if (!ids.empty()) {
      request.context = {ids[0]};
      ids.erase(ids.begin());
    }
  } else {
    const ptrdiff_t cut = std::min(std::ssize(request.context), std::ssize(request.continuation));
    request.continuation.erase(request.continuation.begin(), request.continuation.begin() + cut);
  }
  if (request.continuation.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[loglikelihood] expected a continuation that adds a token to its context, got '{}'; give "
         "a longer one",
         printable(continuation));
  }
  return request;
}

}  // namespace mamba
