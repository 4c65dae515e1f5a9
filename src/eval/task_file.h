// SPDX-License-Identifier: Apache-2.0
// The text of a task file -> its items; load_task without the file.
#pragma once

#include <string>
#include <string_view>

#include "mamba/evaluate.h"

namespace mamba {

// `path` is named in messages. Throws as load_task.
Task parse_task(const std::string& name, const std::string& path, std::string_view text,
                int64_t limit);

}  // namespace mamba
