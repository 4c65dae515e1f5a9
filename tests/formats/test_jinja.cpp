// SPDX-License-Identifier: Apache-2.0
// The interpreter of chat templates by itself: origins, refusals by name and line, hostile input.
// What it renders is compared with jinja2 in test_jinja_render.
#include <gtest/gtest.h>

#include "formats/jinja.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::fails_with;

jinja::Text render(const std::string& source, const jinja::Limits& limits = {}) {
  const jinja::Context context = {{"typed", jinja::text_value("<a> <B>", false)},
                                  {"list", jinja::value_of({"x", "<y>"})}};
  return jinja::Template(source).render(context, std::tm{}, limits);
}

// The bytes that the data wrote, others as dots.
std::string foreign(const std::string& source) {
  const jinja::Text text = render(source);
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) out += text.from_template(i) ? '.' : text.bytes()[i];
  return out;
}

TEST(Jinja, BytesKeepTheirOriginThroughEveryOperation) {
  EXPECT_EQ(foreign("<m>{{ typed }}"), "...<a> <B>");
  EXPECT_EQ(foreign("{{ '<m>' + typed ~ '<m>' }}"), "...<a> <B>...");
  EXPECT_EQ(foreign("{{ typed | upper }}{{ typed.lower() }}{{ 'X' | lower }}"), "<A> <B><a> <b>.");
  EXPECT_EQ(foreign("{{ ('<m>' + typed)[2:5] }}"), ".<a");
  EXPECT_EQ(foreign("{{ typed.split() | join('-') }}"), "<a>.<B>");
  EXPECT_EQ(foreign("{{ typed | replace(' ', '<m>') }}"), "<a>...<B>");
  EXPECT_EQ(foreign("{{ '<m> <m>'.replace('m', typed[1]) }}"), ".a...a.");
  EXPECT_EQ(foreign("{{ (' ' + typed + ' ') | trim }}{{ typed.title() }}"), "<a> <B><A> <B>");
  EXPECT_EQ(foreign("{% set x %}<{{ typed[0] }}{% endset %}{{ x }}{{ x * 2 }}"), ".<.<.<");
  EXPECT_EQ(foreign("{% macro m(a) %}({{ a }}){% endmacro %}{{ m(typed[1]) }}"), ".a.");
  EXPECT_EQ(foreign("{% for c in list %}{{ c }};{% endfor %}{{ list | join('<m>') }}"),
            "x.<y>.x...<y>");
  // What shows values shows none of the template's markers.
  EXPECT_EQ(foreign("{{ ['<m>'] }}{{ '<m>' | tojson }}"), "['<m>']\"<m>\"");
}

TEST(Jinja, WhatIsNotThereIsRefusedByNameAndLine) {
  const auto unsupported = [](const std::string& source, const std::string& name) {
    EXPECT_TRUE(fails_with(ErrorCode::kUnsupported,
                           {"[chat template] line 2", name, "not supported"},
                           [&] { render("\n" + source); }))
        << source;
  };
  for (const char* tag :
       {"include 'x'", "import 'x' as y", "from 'x' import y", "extends 'x'", "block b", "call f()",
        "with", "filter upper", "do f()", "autoescape x"}) {
    const std::string name = std::string(tag).substr(0, std::string(tag).find(' '));
    unsupported("{% " + std::string(tag) + " %}", "'" + name + "'");
  }
  unsupported("{{ x | frobnicate }}", "the filter 'frobnicate'");
  unsupported("{{ x is frobnicated }}", "the test 'frobnicated'");
  unsupported("{{ 'x'.format(1) }}", "the method 'format' of a str");
  unsupported("{{ [].append(1) }}", "the method 'append' of a list");
  unsupported("{{ '%s' % 1 }}", "'%'");
  unsupported("{{ joiner() }}", "the function 'joiner'");
  unsupported("{% for x in [] recursive %}{% endfor %}", "recursive");
  unsupported("{{ f(*x) }}", "'*'");
  unsupported("{% set ns = namespace() %}{% set ns.x = namespace() %}", "namespace");
  unsupported("{{ '\u00e4' | upper }}", "beyond ASCII");
  unsupported("{{ 99999999999999999999 }}", "63 bits");
  unsupported("{{ 9223372036854775807 + 1 }}", "63 bits");
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"line 1", "the template refuses: no system"},
                         [] { render("{{ raise_exception('no ' + 'system') }}"); }));
}

TEST(Jinja, HostileTemplatesEnd) {
  const auto refused = [](const std::string& source, const std::string& part) {
    jinja::Limits limits;
    limits.steps = 1 << 20;
    limits.bytes = 1 << 20;
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {part}, [&] { render(source, limits); }))
        << source.substr(0, 200);
  };
  refused("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
          "steps");
  refused("{{ 'x' * 9999999999 }}", "than are allowed");
  refused(
      "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor "
      "%}",
      "output");
  refused("{{ range(9999999999) }}", "100000 numbers");
  refused("{{ [1] * 9999999999 }}", "allowed");
  refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested calls");
  refused(
      "{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = [n.x, n.x] %}{% endfor "
      "%}",
      "nested lists");
  refused(
      "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
      "{{ n.x == [] ~ n.x }}",
      "");
  refused("{{ " + std::string(100000, '(') + std::string(100000, ')') + " }}", "nested");
  refused("{{ " + std::string(100000, '[') + std::string(100000, ']') + " }}", "nested");
  refused("{{ " + std::string(100000, '-') + "1 }}", "nested");
  std::string chain = "{{ 1", nots = "{{ ", tags;
  for (int i = 0; i < 100000; ++i) {
    chain += "+1";
    nots += "not ";
    tags += "{% if 1 %}";
  }
  refused(chain + " }}", "in a row");
  refused(nots + "1 }}", "nested");
  refused(tags, "nested");
  refused(std::string((1 << 20) + 1, ' '), "1 MiB");
}

}  // namespace
}  // namespace mamba
