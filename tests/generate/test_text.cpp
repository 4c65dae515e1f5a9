// SPDX-License-Identifier: Apache-2.0
// Stop strings and UTF-8 over streams that are cut anywhere.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "generate/stop_matcher.h"
#include "generate/text_stream.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

struct Stopped {
  std::string text;
  bool stopped;
};

// Feeds `text` in pieces of `size` bytes.
Stopped match(const std::vector<std::string>& stops, const std::string& text, size_t size) {
  StopMatcher matcher(stops);
  std::string out;
  for (size_t at = 0; at < text.size(); at += size) out += matcher.push(text.substr(at, size));
  const bool stopped = matcher.stopped();
  if (!stopped) out += matcher.finish();
  return {out, stopped};
}

TEST(StopMatcher, EndsBeforeTheFirstStopStringHoweverTheTextIsCut) {
  for (size_t size = 1; size <= 12; ++size) {
    const Stopped a = match({"END", "\n\n"}, "one EN\nDEND two", size);
    EXPECT_EQ(a.text, "one EN\nD") << size;
    EXPECT_TRUE(a.stopped);
    const Stopped b = match({"END", "\n\n"}, "one\n\ntwo END", size);
    EXPECT_EQ(b.text, "one") << size;
    EXPECT_TRUE(b.stopped);
  }
}

TEST(StopMatcher, LetsATextWithoutStopStringThroughUnchanged) {
  for (size_t size = 1; size <= 12; ++size) {
    const Stopped r = match({"abab"}, "aabaaba", size);
    EXPECT_EQ(r.text, "aabaaba");
    EXPECT_FALSE(r.stopped);
  }
}

TEST(StopMatcher, FindsAStopStringThatOverlapsItsOwnStart) {
  for (size_t size = 1; size <= 8; ++size) {
    EXPECT_EQ(match({"aab"}, "aaaabx", size).text, "aa") << size;
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatCouldStillBecomeAStopString) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.push("text E"), "text ");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("x"), "ENx");
  EXPECT_EQ(matcher.push("E"), "");
  EXPECT_EQ(matcher.finish(), "E");
}

TEST(StopMatcher, RefusesAnEmptyStopString) {
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"stop strings", "empty"}, [] {
    StopMatcher({"a", ""});
  }));
}

std::string decode(const std::string& bytes, size_t size) {
  TextStream stream;
  std::string out;
  for (size_t at = 0; at < bytes.size(); at += size) out += stream.push(bytes.substr(at, size));
  return out + stream.finish();
}

TEST(TextStream, NeverGivesHalfACharacter) {
  const std::string text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";  // 1, 2, 3, 4 and 1 bytes
  for (size_t size = 1; size <= text.size(); ++size) EXPECT_EQ(decode(text, size), text) << size;
  TextStream stream;
  EXPECT_EQ(stream.push("\xe2\x82"), "");
  EXPECT_EQ(stream.push("\xac"), "\xe2\x82\xac");
}

TEST(TextStream, ReplacesEachMaximalBrokenPart) {
  const std::string bad = "\xef\xbf\xbd";
  struct Example {
    std::string bytes, text;
  };
  // The last two are the examples of the Unicode standard, section 3.9, tables 3-8 and 3-11.
  const std::vector<Example> examples = {
      {"a\x80z", "a" + bad + "z"},
      {"\xc0\xaf", bad + bad},                      // overlong
      {"\xed\xa0\x80", bad + bad + bad},            // a surrogate
      {"\xf4\x90\x80\x80", bad + bad + bad + bad},  // past 10FFFF
      {"\xe2\x82", bad},                            // unfinished at the end
      {"\xf0\x9f\x98", bad},
      {"\xe2\x82z", bad + "z"},
      {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", bad + bad + bad + bad + bad + bad + bad + bad + "A"},
      {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", bad + bad + bad + bad + "A"},
  };
  for (const Example& e : examples) {
    for (size_t size = 1; size <= e.bytes.size(); ++size) EXPECT_EQ(decode(e.bytes, size), e.text);
  }
}

}  // namespace
}  // namespace mamba
