// SPDX-License-Identifier: Apache-2.0
// Elements of SVG pictures as text. Classes are those of the picture's own style.
#pragma once

#include <string>

namespace mamba {

// For text between tags and in quoted attributes; control characters become blanks.
std::string escape_xml(const std::string& text);
std::string svg_text(double x, double y, const char* anchor, const std::string& words,
                     const char* css_class);
std::string svg_line(double x1, double y1, double x2, double y2, const char* css_class);

}  // namespace mamba
