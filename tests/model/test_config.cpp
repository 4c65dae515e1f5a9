// SPDX-License-Identifier: Apache-2.0
// Config::validate: every range and every relation between fields, by its message.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "formats/config_fields.h"
#include "formats/hf_config.h"
#include "mamba/config.h"
#include "support/expect_error.h"
#include "support/random_config.h"

namespace mamba {
namespace {

using test::fails_with;

void expect_bad(std::initializer_list<std::string> parts,
                const std::function<void(Config&)>& change, const char* preset = "mamba2-130m") {
  Config config = preset_config(preset);
  change(config);
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, parts, [&] { config.validate(); }))
      << parts.begin()[0];
}

TEST(config, defaults_presets_and_random_configs_are_valid) {
  EXPECT_NO_THROW(Config().validate());
  for (const std::string& name : list_presets())
    EXPECT_NO_THROW(preset_config(name).validate()) << name;
  test::Random random(1);
  for (int i = 0; i < 300; ++i) EXPECT_NO_THROW(test::random_config(random).validate()) << i;
}

// The table of fields lists every member: a config differs from another iff a field of the table
// does.
TEST(config, table_of_fields_is_complete) {
  test::Random random(2);
  for (int i = 0; i < 50; ++i) {
    const Config from = test::random_config(random);
    Config copy;
    for (const ConfigField& field : config_fields()) {
      field_from_json(field, field_to_json(field, from), copy, "test");
      EXPECT_EQ(find_config_field(field.name), &field);
    }
    EXPECT_EQ(copy, from);
  }
  EXPECT_EQ(find_config_field("none"), nullptr);
}

TEST(config, every_number_has_a_range_that_is_named) {
  for (const ConfigField& field : config_fields()) {
    const std::string name = std::string("expected ") + field.name;
    if (const auto* member = std::get_if<int64_t Config::*>(&field.member)) {
      for (const int64_t value : {static_cast<int64_t>(field.low) - 1,
                                  static_cast<int64_t>(field.high) + 1, INT64_MIN, INT64_MAX}) {
        expect_bad({"[config]", name, " to ", "got " + std::to_string(value)},
                   [&](Config& c) { c.*(*member) = value; });
      }
    } else if (const auto* real = std::get_if<double Config::*>(&field.member)) {
      for (const double value : std::initializer_list<double>{field.low - 1, field.high * 2 + 1,
                                                              -HUGE_VAL, HUGE_VAL, std::nan("")}) {
        if (value <= field.high && value >= field.low) continue;  // dt_limit_max may be infinite
        expect_bad({"[config]", name, " to ", "got "}, [&](Config& c) { c.*(*real) = value; });
      }
    }
  }
  expect_bad({"expected d_model from 1 to 131072, got 0"}, [](Config& c) { c.d_model = 0; });
}

TEST(config, choices_are_listed) {
  expect_bad({"mixer to be one of \"mamba1\", \"mamba2\"", "got \"mamba9\""},
             [](Config& c) { c.mixer = "mamba9"; });
  expect_bad({"model_type to be one of \"mamba\", \"mamba2\", \"falcon_mamba\"", "got \"gpt2\""},
             [](Config& c) { c.model_type = "gpt2"; });
  expect_bad({"model_type \"mamba2\" with mixer \"mamba2\"",
              "got model_type \"mamba\" with mixer \"mamba2\""},
             [](Config& c) { c.model_type = "mamba"; });
  expect_bad({"got model_type \"mamba2\" with mixer \"mamba1\""},
             [](Config& c) { c.mixer = "mamba1"; });
  expect_bad(
      {"bcdt_rms true with model_type \"falcon_mamba\""},
      [](Config& c) { c.model_type = "falcon_mamba"; }, "mamba-130m");
}

TEST(config, relations_between_fields_are_checked) {
  expect_bad({"d_ssm from 1 to d_inner = 1536, got 1600"}, [](Config& c) { c.d_ssm = 1600; });
  expect_bad({"d_ssm from 1 to d_inner", "got 0"}, [](Config& c) { c.d_ssm = 0; });
  expect_bad({"headdim to divide d_ssm = 1536, got 65"}, [](Config& c) { c.headdim = 65; });
  expect_bad({"n_groups to divide the 24 heads", "got 5"}, [](Config& c) { c.n_groups = 5; });
  expect_bad({"norm_groups to divide d_ssm = 1536, got 7"}, [](Config& c) { c.norm_groups = 7; });
  expect_bad({"A_init_min at most A_init_max = 16, got 17"}, [](Config& c) { c.A_init_min = 17; });
  expect_bad({"dt_limit_min at most dt_limit_max = 0.5, got 0.6"}, [](Config& c) {
    c.dt_limit_min = 0.6;
    c.dt_limit_max = 0.5;
  });
  expect_bad({"dt_min at most dt_max = 0.1, got 0.2"}, [](Config& c) { c.dt_min = 0.2; });
  for (const auto& [name, member] : {std::pair{"bos_token_id", &Config::bos_token_id},
                                     std::pair{"eos_token_id", &Config::eos_token_id},
                                     std::pair{"pad_token_id", &Config::pad_token_id}}) {
    expect_bad({name, "below vocab_size = 50288, got 50288"},
               [&](Config& c) { c.*member = 50288; });
  }
  expect_bad({"more_eos_token_ids below vocab_size = 50288, got 50288"}, [](Config& c) {
    c.more_eos_token_ids = {1, 50288};
  });
  expect_bad({"more_eos_token_ids from 0 to 16777215, got -1"},
             [](Config& c) { c.more_eos_token_ids = {-1}; });
  expect_bad({"eos_token_id with more_eos_token_ids, got -1"}, [](Config& c) {
    c.eos_token_id = -1;
    c.more_eos_token_ids = {3};
  });
  Config unread = preset_config("mamba-130m");  // relations of what is not read do not matter
  unread.d_ssm = 7;
  unread.norm_groups = 5;
  EXPECT_NO_THROW(unread.validate());
}

TEST(config, sizes_beyond_memory_are_refused_without_overflow) {
  expect_bad({"vocab_size * d_model", "2^40", "got 2199023255552"}, [](Config& c) {
    c.vocab_size = 1 << 24;
    c.d_model = 1 << 17;
  });
  // Each of these alone passes its range; the product is 2^40 or more.
  const auto wide = [](Config& c, int64_t d_model, int64_t width) {
    c.vocab_size = 256;
    c.bos_token_id = c.eos_token_id = c.pad_token_id = -1;
    c.d_model = d_model;
    c.d_inner = c.d_ssm = width;
  };
  expect_bad({"in_proj (rows * d_model)", "2^40"}, [&](Config& c) {
    wide(c, 1 << 17, 1 << 20);
    c.n_layer = 1;
    c.d_state = 4096;
    c.n_groups = c.norm_groups = 1 << 14;
  });
  expect_bad({"the whole model", "2^40"}, [&](Config& c) {
    wide(c, 1 << 17, 1 << 20);
    c.n_layer = 4096;
  });
  expect_bad(
      {"the whole model", "2^40"},
      [&](Config& c) {
        wide(c, 1 << 17, 1 << 20);
        c.d_intermediate = 1 << 20;
        c.n_layer = 4096;
        c.dt_rank = 1 << 17;
      },
      "mamba-130m");
}

}  // namespace
}  // namespace mamba
