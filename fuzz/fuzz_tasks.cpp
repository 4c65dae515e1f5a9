// SPDX-License-Identifier: Apache-2.0
// Any bytes as a task file: an error, or items that can be scored.
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "eval/task_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  using namespace mamba;
  if (count == 0) return 0;
  const std::vector<std::string> names = task_names();
  const std::string& name = names[bytes[0] % names.size()];
  try {
    const Task task =
        parse_task(name, "fuzz", {reinterpret_cast<const char*>(bytes) + 1, count - 1}, 100);
    for (const TaskItem& item : task.items) {
      MAMBA_CHECK(!item.pairs.empty() && item.gold < std::ssize(item.pairs));
      MAMBA_CHECK(item.gold >= 0 ? item.choices.size() == item.pairs.size() : item.choices.empty());
      for (const auto& [context, continuation] : item.pairs) {
        MAMBA_CHECK(!context.empty() && !continuation.empty());
      }
    }
  } catch (const Error& error) {
    MAMBA_CHECK(error.code() == ErrorCode::kBadFile);
    for (const char* c = error.what(); *c != '\0'; ++c) MAMBA_CHECK(*c >= 0x20 && *c < 0x7f);
  }
  return 0;
}
