// SPDX-License-Identifier: Apache-2.0
// The picture of a run: well-formed whatever the data, with ticks at round values.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <regex>
#include <string>
#include <vector>

#include "train/curves.h"

namespace mamba {
namespace {

// Every tag is closed in order, every attribute quoted, no stray < or &.
testing::AssertionResult well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t i = 0; i < xml.size(); ++i) {
    if (xml[i] == '&') {
      const size_t end = xml.find(';', i);
      const std::string name = end == std::string::npos ? "" : xml.substr(i + 1, end - i - 1);
      if (name != "amp" && name != "lt" && name != "gt" && name != "quot") {
        return testing::AssertionFailure() << "stray & at byte " << i;
      }
    }
    if (xml[i] != '<') continue;
    const size_t end = xml.find('>', i);
    if (end == std::string::npos) return testing::AssertionFailure() << "open < at byte " << i;
    const std::string tag = xml.substr(i + 1, end - i - 1);
    if (tag.find('<') != std::string::npos) return testing::AssertionFailure() << "< in <" << tag;
    if (std::count(tag.begin(), tag.end(), '"') % 2 != 0) {
      return testing::AssertionFailure() << "quotes in <" << tag;
    }
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) {
        return testing::AssertionFailure() << "unexpected <" << tag << ">";
      }
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(tag.substr(0, tag.find_first_of(" \n")));
    }
    i = end;
  }
  if (!open.empty()) return testing::AssertionFailure() << "<" << open.back() << "> left open";
  return testing::AssertionSuccess();
}

Curves sample_curves(int64_t points) {
  Curves c;
  for (int64_t i = 1; i <= points; ++i) {
    c.loss.push_back({10 * i, 1.3 + 4 / std::sqrt(static_cast<double>(i))});
    c.learning_rate.push_back({10 * i, 1e-3});
    if (i % 25 == 0) c.eval_loss.push_back({10 * i, 1.5 + 1.0 / static_cast<double>(i)});
  }
  return c;
}

TEST(Curves, SvgIsWellFormedForAnyNumberOfPoints) {
  for (const int64_t points : {0, 1, 2, 3, 24, 25, 50, 1600, 1601, 20000}) {
    const std::string svg = curves_svg(sample_curves(points), {"a", "b", 1.44, 1000});
    EXPECT_TRUE(well_formed(svg)) << points << " points";
    EXPECT_EQ(svg.find("nan"), std::string::npos) << points << " points";
    EXPECT_EQ(svg.find("inf"), std::string::npos) << points << " points";
    EXPECT_LT(svg.size(), 200'000u);  // long runs are thinned
  }
}

// Where a text is, with 0.6 of its size as the width of a character.
struct Box {
  double left, top, right, bottom;
  std::string words;
};

std::vector<Box> text_boxes(const std::string& svg) {
  const std::regex element(
      R"re(<text class="(\w+)" (?:x="([-\d.]+)" y="([-\d.]+)" )?text-anchor="(\w+)")re"
      R"re((?: transform="translate\(([-\d.]+) ([-\d.]+)\) rotate\(-90\)")?>([^<]*)<)re");
  std::vector<Box> boxes;
  for (std::sregex_iterator at(svg.begin(), svg.end(), element), end; at != end; ++at) {
    const std::smatch& m = *at;
    const double size = m[1] == "title" ? 18 : m[1] == "label" ? 12 : 13;
    const double width = 0.6 * size * static_cast<double>(m[7].length());
    const double before = m[4] == "start" ? 0 : m[4] == "end" ? 1 : 0.5;
    if (m[5].matched) {
      const double x = std::stod(m[5]), y = std::stod(m[6]);
      boxes.push_back({x - size, y - (1 - before) * width, x, y + before * width, m[7]});
    } else {
      const double x = std::stod(m[2]), y = std::stod(m[3]);
      boxes.push_back({x - before * width, y - size, x + (1 - before) * width, y, m[7]});
    }
  }
  return boxes;
}

TEST(Curves, SvgKeepsItsTextsApart) {
  for (const int64_t points : {0, 1, 2, 3, 7, 30}) {
    for (const double rate : {1.5e-5, 3e-4, 1.25e-3, 0.02}) {
      for (const double spread : {0.0, 1e-6, 1e-3, 0.02, 1.0}) {
        Curves c;
        for (int64_t i = 1; i <= points; ++i) {
          const double part = static_cast<double>(i) / 30;
          c.loss.push_back({i, 8.317725 - spread * part});
          c.eval_loss.push_back({i, 8.317766 - spread * part});
          c.learning_rate.push_back({i, rate * part});
        }
        const CurveLabels labels{"mamba2, 1,234,567 parameters",
                                 "width 256, 24 layers; 10,000 steps of 16,384 tokens, bf16",
                                 1.442695, points};
        const std::string svg = curves_svg(c, labels);
        const std::vector<Box> boxes = text_boxes(svg);
        ASSERT_GE(boxes.size(), 6u);
        for (size_t i = 0; i < boxes.size(); ++i) {
          const Box& a = boxes[i];
          EXPECT_TRUE(a.left >= 0 && a.right <= 960 && a.top >= 0 && a.bottom <= 600) << a.words;
          for (size_t j = i + 1; j < boxes.size(); ++j) {
            const Box& b = boxes[j];
            const bool apart =
                a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
            EXPECT_TRUE(apart) << a.words << " and " << b.words << ", " << points << " points, "
                               << rate << ", " << spread;
            // Ticks of one axis say different values; 0 and 1 are on two.
            EXPECT_TRUE(a.words != b.words || a.left != b.left || a.words.size() < 2) << a.words;
          }
        }
      }
    }
  }
}

TEST(Curves, SvgEscapesItsLabels) {
  const std::string svg = curves_svg(sample_curves(10), {"<a> & \"b\"", "c\n<d>", 0, 0});
  EXPECT_TRUE(well_formed(svg));
  EXPECT_NE(svg.find("&lt;a&gt; &amp; &quot;b&quot;"), std::string::npos);
  EXPECT_EQ(svg.find("bits per byte"), std::string::npos);
}

TEST(Curves, SvgLeavesOutWhatIsNotFinite) {
  Curves c = sample_curves(40);
  c.loss[7].value = std::numeric_limits<double>::quiet_NaN();
  c.eval_loss[0].value = std::numeric_limits<double>::infinity();
  const std::string svg = curves_svg(c, {"a", "b", 1.44, 400});
  EXPECT_TRUE(well_formed(svg));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(Curves, SvgTellsTheLastValues) {
  const std::string svg = curves_svg(sample_curves(100), {"a", "b", 1 / std::log(2.0), 1000});
  EXPECT_NE(svg.find("validation 1.51, 2.178 bits per byte"), std::string::npos);
  EXPECT_NE(svg.find("learning rate"), std::string::npos);
}

TEST(Curves, TicksAreRoundAndInside) {
  EXPECT_EQ(axis_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(axis_ticks(1.2, 3.9, 3), (std::vector<double>{2, 3}));
  EXPECT_EQ(axis_ticks(0, 100000, 8), (std::vector<double>{0, 20000, 40000, 60000, 80000, 100000}));
  EXPECT_EQ(axis_ticks(-1, 1, 4), (std::vector<double>{-1, -0.5, 0, 0.5, 1}));
  EXPECT_TRUE(axis_ticks(3, 3, 4).empty());
}

TEST(Curves, SmoothingKeepsConstantsAndDoesNotLagAtTheStart) {
  std::vector<CurvePoint> flat(30, {0, 2.5});
  for (const CurvePoint& p : smooth(flat, 4)) EXPECT_EQ(p.value, 2.5);
  std::vector<CurvePoint> line;
  for (int64_t i = 0; i < 30; ++i) line.push_back({i, static_cast<double>(i)});
  const std::vector<CurvePoint> smoothed = smooth(line, 4);
  for (int64_t i = 0; i + 4 < 30; ++i) {
    EXPECT_EQ(smoothed[static_cast<size_t>(i)].value,
              static_cast<double>(i));  // exact: small integers
  }
  EXPECT_EQ(smoothed[29].value, (25 + 26 + 27 + 28 + 29) / 5.0);
}

}  // namespace
}  // namespace mamba
