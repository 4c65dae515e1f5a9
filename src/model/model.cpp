// SPDX-License-Identifier: Apache-2.0
// The public Model: checks at the boundary, f32 in and out, over Network.
#include "mamba/model.h"

#include <algorithm>

#include "base/check.h"
#include "formats/hf_config.h"
#include "model/explain.h"
#include "model/model_io.h"
#include "model/network.h"
#include "model/size_estimate.h"
#include "model/weight_types.h"

namespace mamba {
namespace {

DeviceOptions device_options(const ModelOptions& options) {
  return {options.device, options.threads, options.backend, options.choices_folder,
          options.on_warning};
}

bool is_fused_step(const ExplainedChoice& e) {
  const Operation o = e.request.operation;
  return is_fused(e.choice.way) && (o == Operation::kMamba1Step || o == Operation::kMamba2Step);
}

std::unique_ptr<Network> make_network(const Config& config, const ModelOptions& options,
                                      Matrices matrices) {
  const Product product = product_of(options.dtype);
  std::unique_ptr<Device> device = Device::create(device_options(options));
  config.validate();
  if (device->real() == DType::kF32) {
    const SizeEstimate sizes = estimate_sizes(config, *device, product, 1, 1);
    const DType d = options.dtype;
    const double packed = static_cast<double>(sizes.inference(0)) +
                          static_cast<double>(sizes.matrices * block_bytes(d)) /
                              static_cast<double>(block_elements(d));
    const int64_t kept = matrices == Matrices::kKept ? 4 * sizes.matrices : 0;
    expect_memory(device->memory(), packed + static_cast<double>(kept), "model", "the weights",
                  "use a smaller model or fewer bits, like --dtype bf16 or q8_0");
  }
  auto network = std::make_unique<Network>(config, std::move(device), product, matrices);
  network->set_state_dtype(options.state_dtype);
  return network;
}

// What --backend demands and this model has not is told before anything is done with it.
void expect_backend(Network& network) {
  Device& device = network.device();
  if (device.choices().mode != BackendMode::kFused) return;
  State state = network.new_state(1);
  const int32_t token = 0;
  int64_t steps = 0;
  const auto choices = choices_of(device, [&] { network.step(&token, state, Buf()); });
  for (const ExplainedChoice& e : choices) steps += is_fused_step(e) ? e.calls : 0;
  if (steps == network.config().n_layer) return;
  fail(ErrorCode::kInvalidArgument,
       "[--backend] expected a fused step in each of {} layers, got {}: the mixer '{}' has none; "
       "use "
       "--backend auto",
       network.config().n_layer, steps, network.config().mixer);
}

// f32 results of the caller, through a temporary where the device computes in f64.
class Results {
 public:
  Results(const Network& network, float* out, int64_t count)
      : out_(out), count_(count), wide_(network.device().real() == DType::kF64) {
    if (wide_ && out_ != nullptr) values_.assign(out_, out_ + count_);
  }
  Buf buf() {
    if (out_ == nullptr) return Buf();
    return wide_ ? Buf(values_.data()) : Buf(out_);
  }
  void finish() const {
    if (!wide_ || out_ == nullptr) return;
    for (int64_t i = 0; i < count_; ++i)
      out_[i] = static_cast<float>(values_[static_cast<size_t>(i)]);
  }

 private:
  float* out_;
  int64_t count_;
  bool wide_;
  std::vector<double> values_;
};

void check_state(const Network& network, const State& state) {
  const bool wide = network.device().real() == DType::kF64;
  if (state.elements() == network.state_elements() && wide == (state.dtype() == DType::kF64))
    return;
  fail(ErrorCode::kInvalidArgument,
       "[model] expected a state of {} values a sequence, got one of {}; it is another model's",
       network.state_elements(), state.elements());
}

}  // namespace

Model::Model(std::unique_ptr<Network> network) : network_(std::move(network)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::load(const std::string& folder, const ModelOptions& options) {
  std::vector<std::string> warnings;
  const Config config = read_config(folder, &warnings);
  if (options.on_warning) {
    for (const std::string& warning : warnings) options.on_warning(warning);
  }
  std::unique_ptr<Network> network = make_network(config, options, Matrices::kPackedOnly);
  const std::vector<DType> kept = load_weights(*network, folder, true, {}, options);
  settle_rates(*network);
  network->parameters_changed(true);
  expect_backend(*network);
  if (!kept.empty() && options.on_warning && options.dtype != DType::kF32) {
    std::string types;
    for (const DType type : kept)
      types += (types.empty() ? "" : ", ") + std::string(dtype_name(type));
    options.on_warning(fmt::format(
        "[--dtype {}] changes nothing of the matrices that {} holds in {}: they stay as they are; "
        "take the model that it was made of",
        dtype_name(options.dtype), folder, types));
  }
  Model model(std::move(network));
  model.path_ = folder;
  return model;
}

Model Model::create(const Config& config, uint64_t seed, const ModelOptions& options) {
  const bool blocks = is_quantized(options.dtype) || options.dtype == DType::kF16;
  std::unique_ptr<Network> network =
      make_network(config, options, blocks ? Matrices::kPackedOnly : Matrices::kKept);
  if (blocks) {
    std::vector<float> values(static_cast<size_t>(network->table().flat_count()));
    const ParamTable& table = network->table();
    table.initialize(config, seed, values.data(), network->device().host_threads(),
                     options.interrupted);
    for (size_t i = 0; i < table.specs().size(); ++i) {
      set_weight(*network, static_cast<int>(i), values.data() + table.specs()[i].offset,
                 options.dtype, options.interrupted);
    }
  } else {
    initialize(*network, seed);
  }
  settle_rates(*network);
  network->parameters_changed(true);
  expect_backend(*network);
  return Model(std::move(network));
}

const Config& Model::config() const { return network_->config(); }
int64_t Model::parameters() const { return network_->table().parameters(); }
State Model::new_state(int64_t batch) const { return network_->new_state(batch); }
const std::string& Model::fingerprint() const { return network_->fingerprint(); }
const std::string& Model::device_name() const { return network_->device().name(); }
DType Model::dtype() const { return network_->weight_dtype(); }
void Model::save(const std::string& folder, DType dtype) const {
  save_model(*network_, folder, dtype);
}

void Model::forward(const int32_t* tokens, int64_t length, State& state, Logits want, float* logits,
                    const int32_t* documents) {
  check_state(*network_, state);
  Batch batch;
  batch.B = state.batch();
  batch.L = length;
  batch.ids = tokens;
  batch.doc_ids = documents;
  const int64_t rows = want == Logits::kAll ? batch.B * length : batch.B;
  Results results(*network_, want == Logits::kNone ? nullptr : logits, rows * config().vocab_size);
  network_->forward(batch, &state, want, results.buf(), Buf());
  results.finish();
}

void Model::step(const int32_t* tokens, State& state, float* logits) {
  check_state(*network_, state);
  const int64_t V = config().vocab_size;
  std::vector<int64_t> active;
  for (int64_t b = 0; b < state.batch(); ++b) {
    if (tokens[b] != -1) active.push_back(b);
  }
  const int64_t count = static_cast<int64_t>(active.size());
  if (count == state.batch()) {
    Results results(*network_, logits, count * V);
    network_->step(tokens, state, results.buf());
    results.finish();
    return;
  }
  // Some rows rest: run the others as a batch of their own.
  State part = network_->new_state(count);
  std::vector<int32_t> ids(active.size());
  std::vector<float> part_logits(logits != nullptr ? static_cast<size_t>(count * V) : 0);
  for (int64_t i = 0; i < count; ++i) {
    part.assign(i, state, active[static_cast<size_t>(i)]);
    ids[static_cast<size_t>(i)] = tokens[active[static_cast<size_t>(i)]];
  }
  if (count > 0) step(ids.data(), part, logits != nullptr ? part_logits.data() : nullptr);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = active[static_cast<size_t>(i)];
    state.assign(row, part, i);
    if (logits == nullptr) continue;
    std::copy_n(part_logits.data() + i * V, V, logits + row * V);
  }
}

void Model::score(const int32_t* tokens, const int32_t* targets, int64_t length, State& state,
                  float* nll, const int32_t* documents) {
  check_state(*network_, state);
  Batch batch;
  batch.B = state.batch();
  batch.L = length;
  batch.ids = tokens;
  batch.targets = targets;
  batch.doc_ids = documents;
  Results results(*network_, nll, batch.B * length);
  network_->forward(batch, &state, Logits::kNone, Buf(), results.buf());
  results.finish();
}

int64_t parameter_count(const Config& config) {
  config.validate();
  // From the same lists as the table, without its memory.
  int64_t per_layer = config.d_model * (config.norm == NormKind::kLayer ? 2 : 1);
  const int64_t norm = per_layer;
  const std::unique_ptr<Mixer> mixer = make_mixer(config);
  for (const ParamSpec& spec : mixer->params()) per_layer += spec.count;
  if (config.d_intermediate > 0) {
    per_layer += norm;
    const std::unique_ptr<Mixer> mlp = make_gated_mlp(config);
    for (const ParamSpec& spec : mlp->params()) per_layer += spec.count;
  }
  const int64_t matrix = config.vocab_size * config.d_model;
  return matrix * (config.tie_embeddings ? 1 : 2) + config.n_layer * per_layer + norm;
}

}  // namespace mamba
