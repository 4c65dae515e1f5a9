// SPDX-License-Identifier: Apache-2.0
// Configurations in GGUF metadata and back, types of tensors by rule, and importance collected.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "formats/gguf_model.h"
#include "formats/gguf_writer.h"
#include "mamba/quantize.h"
#include "model/activations.h"
#include "model/importance.h"
#include "model/model_io.h"
#include "support/expect_error.h"
#include "support/random_config.h"

namespace mamba {
namespace {

using test::fails_with;
using test::ScratchFolder;

Config small(const std::string& mixer) {
  Config c;
  c.mixer = c.model_type = mixer;
  if (mixer == "mamba1") c.model_type = "mamba";
  c.vocab_size = 64;
  c.d_model = 32;
  c.n_layer = 2;
  c.d_inner = c.d_ssm = 96;  // three times the width
  c.d_state = 8;
  c.headdim = 16;
  c.n_groups = c.norm_groups = 2;
  c.dt_rank = 5;
  return c;
}

// The metadata and the two tensors that a configuration is read from.
std::string file_of(const Config& c) {
  const std::vector<float> zeros(static_cast<size_t>(c.vocab_size * c.d_model));
  std::vector<TensorData> tensors = {
      {"token_embd.weight", DType::kF32, {c.vocab_size, c.d_model}, zeros.data()},
      {"blk.0.ssm_conv1d.bias", DType::kF32, {1}, zeros.data()}};
  if (!c.tie_embeddings) tensors.push_back({"output.weight", DType::kF32, {1}, zeros.data()});
  return gguf_bytes(gguf_config_metadata(c), tensors);
}

TEST(gguf_config, comes_back) {
  test::Random random(1);
  int kept = 0;
  for (int i = 0; i < 2000; ++i) {
    Config c = test::random_config(random);
    c.vocab_size = 1 + c.vocab_size % 50;
    c.bos_token_id = c.eos_token_id = c.pad_token_id = -1;
    c.more_eos_token_ids.clear();
    // Otherwise one in thousands can be said.
    c.norm = NormKind::kRms;
    c.d_intermediate = 0;
    c.use_bias = c.D_has_hdim = c.norm_before_gate = c.learnable_init_states = false;
    c.conv_silu = c.conv_bias = c.gated_norm = true;
    c.d_inner = c.d_ssm;
    c.norm_groups = c.n_groups;
    c.dt_limit_min = 0;
    c.dt_limit_max = std::numeric_limits<double>::infinity();
    c.bcdt_rms = c.model_type == "falcon_mamba";
    const std::string bytes = file_of(c);
    const GgufFile file(bytes.data(), bytes.size(), "m.gguf");
    EXPECT_EQ(read_gguf_config(file), c) << i;
    ++kept;
  }
  EXPECT_EQ(kept, 2000);
}

TEST(gguf_config, llama_cpp_keys_alone) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    const Config c = small(mixer);
    GgufMetadata m = gguf_config_metadata(c);
    m.erase("mamba_cpp.config");
    const std::vector<float> zeros(64 * 32);
    const std::string bytes =
        gguf_bytes(m, {{"token_embd.weight", DType::kF32, {64, 32}, zeros.data()},
                       {"blk.0.ssm_conv1d.bias", DType::kF32, {1}, zeros.data()}});
    const Config back = read_gguf_config(GgufFile(bytes.data(), bytes.size(), "m.gguf"));
    EXPECT_EQ(back.d_inner, 96);
    EXPECT_EQ(back.norm_eps, 1e-5);  // not what f32 makes of it
    if (back.mixer == "mamba2") {
      EXPECT_EQ(back.n_heads(), 6);
      EXPECT_EQ(back.norm_groups, 2);
    } else {
      EXPECT_EQ(back.dt_rank, 5);
    }
    EXPECT_TRUE(back.tie_embeddings && back.conv_bias && !back.use_bias);
  }
}

TEST(gguf_config, refuses_a_key_that_contradicts) {
  GgufMetadata m = gguf_config_metadata(small("mamba1"));
  m["mamba.ssm.state_size"] = GgufValue::u32(16);
  const std::vector<float> zeros(64 * 32);
  const std::string bytes =
      gguf_bytes(m, {{"token_embd.weight", DType::kF32, {64, 32}, zeros.data()}});
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"d_state 16", "got 8", "mamba_cpp.config"}, [&] {
    read_gguf_config(GgufFile(bytes.data(), bytes.size(), "m.gguf"));
  }));
}

TEST(quantize_model, logits_stay) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    const ScratchFolder folder;
    Model model = Model::create(small(mixer), 7);
    model.save(folder.path());
    quantize_model(folder.path(), folder / "m.gguf", {});
    Model back = Model::load(folder / "m.gguf");
    const int32_t ids[] = {1, 2, 3, 4};
    std::vector<float> a(4 * 64), b(a);
    State s = model.new_state(1), t = back.new_state(1);
    model.forward(ids, 4, s, Logits::kAll, a.data());
    back.forward(ids, 4, t, Logits::kAll, b.data());
    // A_log passes through exp and log: an error of some f32 roundings in the decay.
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5 * (1 + std::fabs(a[i])));
  }
}

TEST(quantize_model, writes_over_no_file_that_it_reads) {
  const ScratchFolder folder;
  Model::create(small("mamba1"), 7).save(folder.path());
  QuantizeOptions options;
  options.max_shard_bytes = 20'000;
  const std::vector<std::string> shards =
      quantize_model(folder.path(), folder / "m.gguf", options).files;
  ASSERT_GE(shards.size(), 3u);
  const auto refused = [&](const std::string& out, const std::string& own,
                           ErrorCode code = ErrorCode::kInvalidArgument) {
    return fails_with(code, {"own inputs", own}, [&] { quantize_model(shards[0], out, options); });
  };
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {shards[0], "--force"},
                         [&] { quantize_model(folder.path(), folder / "m.gguf", options); }));
  options.replace = true;
  EXPECT_TRUE(refused(folder / "m.gguf", shards[0]));  // whose shards have the names of the model's
  std::filesystem::create_hard_link(shards[1], folder / "link.gguf");
  options.max_shard_bytes = 0;
  EXPECT_TRUE(refused(shards[2], shards[2]));
  EXPECT_TRUE(refused(folder / "link.gguf", shards[1]));
  options.dry_run = true;
  quantize_model(shards[0], shards[2], options);
  EXPECT_NO_THROW(Model::load(shards[0]));
}

TEST(importance, replaces_nothing_but_its_like) {
  const ScratchFolder folder;
  Model::create(small("mamba1"), 7).save(folder.path());
  quantize_model(folder.path(), folder / "m.gguf", {});
  const auto collect = [&](const std::string& out) {
    ImportanceOptions options;
    options.chunk = 4;
    options.max_chunks = 1;
    const auto read = [](int32_t* ids, int64_t count) {
      std::fill_n(ids, count, 1);
      return count;
    };
    collect_importance(folder.path(), out, read, {}, options);
  };
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"m.gguf", "importance matrix to replace"},
                         [&] { collect(folder / "m.gguf"); }));
  collect(folder / "i.gguf");
  collect(folder / "i.gguf");
}

TEST(quantize_model, rows_that_fit_no_block_stay_high) {
  const ScratchFolder folder;
  Model::create(small("mamba1"), 7).save(folder.path());
  QuantizeOptions options;
  options.type = "Q4_K";
  options.dry_run = true;
  for (const QuantizedTensor& t :
       quantize_model(folder.path(), folder / "m.gguf", options).tensors) {
    if (t.name == "blk.0.ssm_in.weight") {
      EXPECT_EQ(t.to, DType::kQ5_0);  // 32 columns
      EXPECT_NE(t.note.find("256"), std::string::npos);
    }
    EXPECT_EQ(t.to == DType::kBF16, t.name.ends_with("ssm_dt.weight")) << t.name;
    EXPECT_EQ(t.to == DType::kF32,
              t.shape.size() < 2 || t.name.ends_with("ssm_a") || t.name.ends_with("conv1d.weight"))
        << t.name;
    EXPECT_EQ(t.to == DType::kQ8_0,
              t.name == "token_embd.weight" || t.name.ends_with("ssm_x.weight"))
        << t.name;
  }
}

TEST(activation_sums, every_matrix_is_seen_and_nothing_changes) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    const ScratchFolder folder;
    Model::create(small(mixer), 7).save(folder.path());
    Network network(small(mixer), Device::create(), Product::kF32);
    load_weights(network, folder.path(), false);
    const int32_t ids[] = {1, 2, 3, 4, 5, 6};
    const auto run = [&](int64_t begin, int64_t count) {
      State state = network.new_state(1);
      Batch batch;
      batch.B = 1, batch.L = count, batch.ids = batch.targets = ids + begin;
      return network.forward(batch, &state, Logits::kNone, Buf(), Buf()).nll;
    };
    const double alone = run(0, 6);
    std::vector<ActivationSums::Sums> both;
    {
      const ActivationSums watch(network);
      EXPECT_EQ(run(0, 6), alone);
      run(0, 3);
      both = watch.sums();
    }
    const ActivationSums first(network);
    run(0, 6);
    const ActivationSums::Sums& embedding = both[0];
    EXPECT_EQ(embedding.rows, 9);  // of the head, which it is
    for (size_t i = 0; i < both.size(); ++i) {
      if (!network.table().specs()[i].matrix) continue;
      EXPECT_EQ(both[i].rows, 9) << network.table().specs()[i].name;
      const ActivationSums::Sums& part = first.sums()[i];
      for (size_t k = 0; k < part.squares.size(); ++k)
        EXPECT_GE(both[i].squares[k], part.squares[k]);
    }
    // in_proj reads a norm's output: about one of mean square a column.
    double sum = 0;
    for (const double v : both[2].squares) sum += v;
    EXPECT_NEAR(sum / 9 / 32, 1, 0.1);
  }
}

}  // namespace
}  // namespace mamba
