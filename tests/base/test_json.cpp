// SPDX-License-Identifier: Apache-2.0
// Limits, positions and messages of the JSON reader; non-finite numbers in both spellings.
#include <cmath>
#include <limits>

#include "base/atomic_file.h"
#include "base/json.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::fails_with;
using test::ScratchFolder;

constexpr double kInf = std::numeric_limits<double>::infinity();

void expect_bad(std::string_view text, std::initializer_list<std::string> parts) {
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, parts, [&] { parse_json(text, "f.json"); })) << text;
}

TEST(json, plain_values_are_kept) {
  const Json json = parse_json(R"({"a":[1,-2,2.5,"x\u00e9",null,true],"b":{"c":{}}})", "f.json");
  EXPECT_EQ(json["a"][0], 1);
  EXPECT_EQ(json["a"][1], -2);
  EXPECT_EQ(json["a"][2], 2.5);
  EXPECT_EQ(json["a"][3], "x\xc3\xa9");
  EXPECT_TRUE(json["a"][4].is_null());
  EXPECT_EQ(json["a"][5], true);
  EXPECT_TRUE(json["b"]["c"].is_object());
}

TEST(json, bare_non_finite_literals_become_tagged_numbers) {
  const Json json =
      parse_json(R"([Infinity, -Infinity, NaN, "Infinity", "xxxxxx", {"k":Infinity}])", "f");
  EXPECT_EQ(json_number(json[0], "x", "f"), kInf);
  EXPECT_EQ(json_number(json[1], "x", "f"), -kInf);
  EXPECT_TRUE(std::isnan(json_number(json[2], "x", "f")));
  EXPECT_EQ(json[3], "Infinity");
  EXPECT_EQ(json[4], "xxxxxx");
  EXPECT_EQ(json[5]["k"], parse_json(R"({"__float__": "Infinity"})", "f"));
  EXPECT_EQ(json_of_number(kInf), json[0]);
  EXPECT_EQ(json_of_number(-kInf), json[1]);
  EXPECT_EQ(json_of_number(std::nan("")), json[2]);
  EXPECT_EQ(json_of_number(1.5), 1.5);
  EXPECT_EQ(json_number(parse_json("Infinity", "f"), "x", "f"), kInf);
}

TEST(json, malformed_text_names_file_and_byte) {
  expect_bad("", {"[f.json]", "expected JSON", "byte"});
  expect_bad("{\"a\":1,}", {"[f.json]", "at byte 8"});
  expect_bad("[1] x", {"at byte 5"});
  expect_bad("[1", {"unexpected end of input"});
  expect_bad("[infinity]", {"expected JSON"});
  expect_bad("[+Infinity]", {"expected JSON"});
  expect_bad("[1e999]", {"expected JSON", "number overflow"});
  expect_bad("[\"a\nb\"]", {"control character"});
  expect_bad("\"\xff\"", {"UTF-8"});
  expect_bad("\"\xc0\xaf\"", {"UTF-8"});      // overlong
  expect_bad("\"\xed\xa0\x80\"", {"UTF-8"});  // a surrogate
  expect_bad(std::string_view("{}\0{}", 5), {"zero byte at byte 2"});
}

TEST(json, duplicate_keys_are_refused_with_their_byte) {
  expect_bad(R"({"a":1,"b":2,"a":3})", {"every key once", "\"a\" again at byte 16"});
  expect_bad(R"({"x":{"a":1,"\u0061":3}})", {"\"a\" again"});
  expect_bad("{NaN: 1}", {"expected a key, got NaN at byte 4"});
}

TEST(json, depth_and_size_are_limited) {
  const std::string deep64 = std::string(64, '[') + std::string(64, ']');
  EXPECT_NO_THROW(parse_json(deep64, "f"));
  expect_bad("[" + deep64 + "]", {"at most 64 nested", "at byte 65"});
  expect_bad(std::string(100000, '['), {"at most 64 nested"});
  EXPECT_NO_THROW(parse_json("[1]", "f", {3, 1}));
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"[f]", "at most 3 bytes", "got 4"}, [] {
    parse_json("[12]", "f", {3, 1});
  }));
}

TEST(json, members_name_key_value_and_range) {
  const Json json = parse_json(
      R"({"i":5,"s":"x","b":true,"d":1.5,"big":18446744073709551615,"inf":Infinity,"f":2.0})", "f");
  EXPECT_EQ(get_int(json, "i", 0, 5, "f"), 5);
  EXPECT_EQ(get_string(json, "s", "f"), "x");
  EXPECT_TRUE(get_bool(json, "b", "f"));
  EXPECT_EQ(get_number(json, "d", 0, 2, "f"), 1.5);
  EXPECT_EQ(get_number(json, "i", 0, 9, "f"), 5);
  EXPECT_EQ(get_number(json, "inf", 0, kInf, "f"), kInf);
  EXPECT_FALSE(has_member(json, "none"));
  EXPECT_FALSE(has_member(Json(3), "i"));
  const auto bad = [&](std::initializer_list<std::string> parts, auto body) {
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, parts, body));
  };
  bad({"[f]", "the key \"none\"", "found none"}, [&] { get_int(json, "none", 0, 1, "f"); });
  bad({"\"i\" to be an integer from 6 to 9, got 5"}, [&] { get_int(json, "i", 6, 9, "f"); });
  bad({"\"i\" to be an integer from 0 to 4, got 5"}, [&] { get_int(json, "i", 0, 4, "f"); });
  bad({"\"d\" to be an integer", "1.5"}, [&] { get_int(json, "d", 0, 9, "f"); });
  bad({"\"f\" to be an integer", "2.0"}, [&] { get_int(json, "f", 0, 9, "f"); });
  bad({"\"big\"", "18446744073709551615"}, [&] { get_int(json, "big", -9, 9, "f"); });
  bad({"\"b\" to be a string, got true"}, [&] { get_string(json, "b", "f"); });
  bad({"\"s\" to be true or false, got \"x\""}, [&] { get_bool(json, "s", "f"); });
  bad({"\"d\" to be a number from 0 to 1, got 1.5"}, [&] { get_number(json, "d", 0, 1, "f"); });
  bad({"\"s\" to be a number, got \"x\""}, [&] { get_number(json, "s", 0, 1, "f"); });
  bad({"a JSON object with \"i\", got [1]"}, [&] { get_int(Json::array({1}), "i", 0, 1, "f"); });
  bad({"x to be a number, got {\"__float__\":\"inf\"}"},
      [&] { json_number(parse_json(R"({"__float__":"inf"})", "f"), "x", "f"); });
}

TEST(json, lists_of_integers_are_checked_one_by_one) {
  const Json json = parse_json(R"({"l": [1, 5, 3], "e": [], "d": [1, 2.5], "n": 5})", "f");
  EXPECT_EQ(get_int_list(json, "l", 1, 5, "f"), (std::vector<int64_t>{1, 5, 3}));
  EXPECT_TRUE(get_int_list(json, "e", 1, 5, "f").empty());
  const auto bad = [](std::initializer_list<std::string> parts, auto body) {
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, parts, body));
  };
  bad({"\"l\" to be an integer from 1 to 4, got 5"}, [&] { get_int_list(json, "l", 1, 4, "f"); });
  bad({"\"l\" to be a list of at most 2"}, [&] { get_int_list(json, "l", 1, 5, "f", 2); });
  bad({"\"d\" to be an integer", "2.5"}, [&] { get_int_list(json, "d", 1, 5, "f"); });
  bad({"\"n\" to be a list", "got 5"}, [&] { get_int_list(json, "n", 1, 5, "f"); });
  bad({"the key \"x\"", "none"}, [&] { get_int_list(json, "x", 1, 5, "f"); });
}

TEST(json, messages_stay_one_short_printable_line) {
  EXPECT_EQ(printable("a\n\x01\xff z"), "a??? z");
  EXPECT_EQ(printable(std::string(100, 'a'), 5), "aaaaa...");
  EXPECT_EQ(printable("\xE6\x97\xA5\xE6\x9C\xAC=5", 4), "\xE6\x97\xA5\xE6\x9C\xAC=5");
  EXPECT_EQ(printable("\xE6\x97\xA5\xE6\x9C\xAC=5", 2), "\xE6\x97\xA5\xE6\x9C\xAC...");
  EXPECT_EQ(printable("a\u0085\u202eb\u200b\xe6\x97"), "a??b???");
  EXPECT_EQ(printable_json(Json("\xff")), "\"\\ufffd\"");
}

TEST(json, files_are_read_and_named) {
  const ScratchFolder folder;
  write_file_atomic(folder / "a.json", "{\"a\": [1, 2]}");
  EXPECT_EQ(read_json_file(folder / "a.json")["a"][1], 2);
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {folder / "b.json", "found nothing"},
                         [&] { read_json_file(folder / "b.json"); }));
}

}  // namespace
}  // namespace mamba
