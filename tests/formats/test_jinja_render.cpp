// SPDX-License-Identifier: Apache-2.0
// Chat templates give what jinja2 gave (jinja_golden.json). With --lines it is a filter instead:
// {"template", "context"} on a line of standard input, {"text"} or {"error"} on one of its output.
#include <gtest/gtest.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "formats/jinja.h"

namespace mamba {
namespace {

using OrderedJson = nlohmann::ordered_json;

std::tm now() {
  std::tm t{};
  t.tm_year = 125;
  t.tm_mon = 2;
  t.tm_mday = 9;
  t.tm_hour = 13;
  t.tm_min = 5;
  t.tm_sec = 7;
  t.tm_yday = 67;
  return t;
}

// The text, or null and the message where the template is refused.
OrderedJson rendered(const std::string& source, const OrderedJson& values) {
  try {
    jinja::Context context;
    for (const auto& [name, value] : values.items()) {
      context.emplace_back(name, jinja::value_of(value));
    }
    return {{"text", jinja::Template(source).render(context, now()).bytes()}};
  } catch (const Error& error) {
    return {{"error", error.what()}, {"code", error_code_name(error.code())}};
  }
}

TEST(Jinja, RendersAsJinja2DoesAndRefusesWhatItRefuses) {
  std::ifstream file(MAMBA_SOURCE_DIR "/tests/formats/jinja_golden.json");
  const OrderedJson golden = OrderedJson::parse(file);
  int refused = 0;
  for (const OrderedJson& c : golden["cases"]) {
    const std::string name = c["name"];
    const std::string family = name.substr(0, name.find('/'));
    const OrderedJson& source =
        c.contains("template") ? c["template"] : golden["templates"][family];
    const OrderedJson got = rendered(source, c["context"]);
    refused += c["text"].is_null();
    if (c["text"].is_null()) {
      EXPECT_TRUE(got.contains("error")) << name << ": " << source << "\n" << got;
      continue;
    }
    EXPECT_EQ(got.value("text", got.value("error", "")), c["text"]) << name << ": " << source;
  }
  EXPECT_GE(golden["cases"].size(), 400u);
  EXPECT_GE(refused, 30);
}

}  // namespace
}  // namespace mamba

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--lines") {
    for (std::string line; std::getline(std::cin, line);) {
      const auto input = nlohmann::ordered_json::parse(line);
      std::cout << mamba::rendered(input["template"], input["context"]).dump() << "\n";
    }
    return 0;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
