// SPDX-License-Identifier: Apache-2.0
// Colours of text for people: only where a terminal reads it, unless --color says otherwise.
#pragma once

#include <string>

namespace mamba::cli {

enum class ColorMode { kAuto, kAlways, kNever };
// auto, always or never; anything else throws invalid_argument.
ColorMode color_mode_from_name(const std::string& name);
// For the whole program, before the first text is written.
void set_color_mode(ColorMode mode);
// Whether what goes to this descriptor is coloured. Automatic: if it is a terminal, TERM is not
// "dumb" and NO_COLOR is empty or not set.
bool is_colored(int descriptor);

enum class Style { kError, kHeading, kFaint };
std::string styled(Style style, const std::string& text, bool colored);

// Columns of the terminal at this descriptor within 40..120, or 80 if it is none.
int text_columns(int descriptor);

}  // namespace mamba::cli
