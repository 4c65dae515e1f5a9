// SPDX-License-Identifier: Apache-2.0
// Checks for bugs (never for bad input) and a short way to throw Error with a formatted message.
#pragma once

#include <fmt/format.h>

#include <utility>

#include "mamba/error.h"

namespace mamba {

[[noreturn]] void fail_check(const char* condition, const char* file, int line);

template <class... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace mamba

// On in every build: a false condition is a bug here and throws ErrorCode::kInternal.
#define MAMBA_CHECK(cond)                                        \
  do {                                                           \
    if (!(cond)) ::mamba::fail_check(#cond, __FILE__, __LINE__); \
  } while (0)

#ifdef NDEBUG
#define MAMBA_DCHECK(cond) ((void)0)
#else
#define MAMBA_DCHECK(cond) MAMBA_CHECK(cond)
#endif
