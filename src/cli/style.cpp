// SPDX-License-Identifier: Apache-2.0
// Decides on colours and widths.
#include "cli/style.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/check.h"

namespace mamba::cli {
namespace {

ColorMode g_mode = ColorMode::kAuto;

}  // namespace

ColorMode color_mode_from_name(const std::string& name) {
  if (name == "auto") return ColorMode::kAuto;
  if (name == "always") return ColorMode::kAlways;
  if (name == "never") return ColorMode::kNever;
  fail(ErrorCode::kInvalidArgument, "[--color] expected one of auto, always, never, got '{}'",
       name);
}

void set_color_mode(ColorMode mode) { g_mode = mode; }

bool is_colored(int descriptor) {
  if (g_mode != ColorMode::kAuto) return g_mode == ColorMode::kAlways;
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') return false;
  const char* term = std::getenv("TERM");
  if (term == nullptr || std::strcmp(term, "dumb") == 0) return false;
  return ::isatty(descriptor) != 0;
}

std::string styled(Style style, const std::string& text, bool colored) {
  if (!colored || text.empty()) return text;
  const char* code = style == Style::kError ? "1;31" : style == Style::kHeading ? "1" : "2";
  return std::string("\033[") + code + "m" + text + "\033[0m";
}

int text_columns(int descriptor) {
  winsize size{};
  const bool known = ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? std::clamp<int>(size.ws_col, 40, 120) : 80;
}

}  // namespace mamba::cli
