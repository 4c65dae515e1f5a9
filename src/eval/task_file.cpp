// SPDX-License-Identifier: Apache-2.0
// The known tasks and their items from JSONL; what is in a file is checked line by line.
#include "eval/task_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "mamba/evaluate.h"

namespace mamba {
namespace {

enum class Form {
  kTarget,    // {"ctx", "target"}: one continuation, greedy or not
  kChoices,   // {"ctx", "choices", "gold"}: " " + each choice after the context
  kContexts,  // {"contexts", "target", "gold"}: the target after each context
};

struct TaskKind {
  const char* name;
  const char* other_file;  // a second name of its file, or null
  Form form;
  bool length_normalised;
};

constexpr std::array<TaskKind, 9> kTasks = {{
    {"lambada_openai", nullptr, Form::kTarget, false},
    {"hellaswag", nullptr, Form::kChoices, true},
    {"piqa", nullptr, Form::kChoices, true},
    {"arc_easy", nullptr, Form::kChoices, true},
    {"arc_challenge", nullptr, Form::kChoices, true},
    {"winogrande", nullptr, Form::kContexts, false},
    {"openbookqa", nullptr, Form::kChoices, true},
    {"boolq", nullptr, Form::kChoices, false},
    {"wsc273", "winograd_wsc273", Form::kContexts, false},
}};

constexpr size_t kMaxLine = size_t{4} << 20;
constexpr size_t kMaxChoices = 64;

const TaskKind& kind_of(const std::string& name) {
  const auto kind =
      std::find_if(kTasks.begin(), kTasks.end(), [&](const TaskKind& k) { return name == k.name; });
  if (kind != kTasks.end()) return *kind;
  fail(ErrorCode::kInvalidArgument, "[eval tasks] expected one of the tasks {}, got '{}'",
       fmt::join(task_names(), ", "), printable(name));
}

std::string path_of(const TaskKind& kind, const std::string& folder) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    fail(ErrorCode::kBadFile,
         "[eval tasks] expected a folder of <task>.jsonl files, got '{}'; check the path", folder);
  }
  const std::string path = folder + "/" + kind.name + ".jsonl";
  if (std::filesystem::exists(path, ignored)) return path;
  std::string found;
  for (const char* name : {kind.other_file, kind.name}) {
    if (name == nullptr) continue;
    const std::string other = folder + "/" + name + ".jsonl";
    if (std::filesystem::exists(other, ignored)) return other;
    if (std::filesystem::exists(other + ".xz", ignored)) found = other + ".xz";
  }
  if (!found.empty()) {
    fail(ErrorCode::kBadFile, "[eval tasks] expected {}, got {}; unpack it: xz -dk '{}'", path,
         found, found);
  }
  fail(ErrorCode::kBadFile, "[eval tasks] expected {}, got no such file; check --data", path);
}

// Members of one line.
class Line {
 public:
  Line(std::string_view text, const std::string& path, int64_t number)
      : where_(fmt::format("{}, line {}", path, number)) {
    if (text.size() > kMaxLine) {
      fail(ErrorCode::kBadFile, "[eval tasks] expected at most {} bytes, got {} ({}); split it",
           kMaxLine, text.size(), where_);
    }
    object_ = parse_json(text, where_, {kMaxLine, 8});
    if (!object_.is_object()) {
      fail(ErrorCode::kBadFile, "[eval tasks] expected an object, got {} ({}); see the format",
           printable_json(object_), where_);
    }
  }

  std::string text(const char* key) const {
    std::string value = get_string(object_, key, where_);
    if (value.empty()) {
      fail(ErrorCode::kBadFile, "[eval tasks] expected text in \"{}\", got none ({}); fill it in",
           key, where_);
    }
    return value;
  }

  std::vector<std::string> texts(const char* key) const {
    const Json& list = get_member(object_, key, where_);
    const bool fits = list.is_array() && list.size() >= 2 && list.size() <= kMaxChoices;
    const auto is_text = [](const Json& v) {
      return v.is_string() && !v.get_ref<const std::string&>().empty();
    };
    if (!fits || !std::all_of(list.begin(), list.end(), is_text)) {
      fail(ErrorCode::kBadFile,
           "[eval tasks] expected 2..{} texts, none empty, in \"{}\", got {} ({}); mend the line",
           kMaxChoices, key, printable_json(list), where_);
    }
    return list.get<std::vector<std::string>>();
  }

  int64_t gold(size_t choices) const {
    return get_int(object_, "gold", 0, static_cast<int64_t>(choices) - 1, where_);
  }

  std::string id(int64_t index) const {
    if (!has_member(object_, "id")) return std::to_string(index);
    const Json& id = get_member(object_, "id", where_);
    return id.is_string() ? id.get<std::string>() : id.dump();
  }

 private:
  std::string where_;
  Json object_;
};

TaskItem item_of(const Line& line, Form form) {
  TaskItem item;
  switch (form) {
    case Form::kTarget:
      item.pairs.emplace_back(line.text("ctx"), line.text("target"));
      break;
    case Form::kChoices: {
      const std::string context = line.text("ctx");
      item.choices = line.texts("choices");
      for (const std::string& choice : item.choices) item.pairs.emplace_back(context, " " + choice);
      item.gold = line.gold(item.choices.size());
      break;
    }
    case Form::kContexts: {
      const std::string target = line.text("target");
      item.choices = line.texts("contexts");
      for (const std::string& context : item.choices) item.pairs.emplace_back(context, target);
      item.gold = line.gold(item.choices.size());
      break;
    }
  }
  return item;
}

}  // namespace

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const TaskKind& kind : kTasks) names.emplace_back(kind.name);
  return names;
}

Task parse_task(const std::string& name, const std::string& path, std::string_view text,
                int64_t limit) {
  const TaskKind& kind = kind_of(name);
  Task task;
  task.name = name;
  task.path = path;
  task.length_normalised = kind.length_normalised;
  for (int64_t number = 1; !text.empty(); ++number) {
    const int64_t count = static_cast<int64_t>(task.items.size());
    if (limit > 0 && count == limit) break;
    const size_t end = std::min(text.find('\n'), text.size());
    const Line line(text.substr(0, end), path, number);
    TaskItem item = item_of(line, kind.form);
    item.id = line.id(count);
    item.line = number;
    task.items.push_back(std::move(item));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  if (task.items.empty()) {
    fail(ErrorCode::kBadFile, "[eval tasks] expected items, one a line, got an empty file ({})",
         path);
  }
  return task;
}

Task load_task(const std::string& name, const std::string& folder, int64_t limit) {
  const std::string path = path_of(kind_of(name), folder);
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  return parse_task(name, path, text, limit);
}

}  // namespace mamba
