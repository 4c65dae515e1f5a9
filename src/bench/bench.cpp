// SPDX-License-Identifier: Apache-2.0
// Benchmarks of kernels, models and training steps.
#include "bench/bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "base/check.h"
#include "base/rng.h"
#include "bench/speed.h"
#include "bench/token_steps.h"
#include "model/network.h"
#include "model/size_estimate.h"
#include "train/optimizer.h"

namespace mamba {
namespace {

constexpr int64_t kFlushBytes = int64_t{128} << 20;  // larger than the last cache

// Largest difference over all outputs, each relative to its largest value.
double largest_error(const std::vector<std::vector<double>>& got,
                     const std::vector<std::vector<double>>& want) {
  double worst = 0;
  for (size_t t = 0; t < want.size(); ++t) {
    double error = 0, scale = 0;
    for (size_t i = 0; i < want[t].size(); ++i) {
      const double e = std::fabs(got[t][i] - want[t][i]);
      if (!(e <= error)) error = std::isnan(e) ? std::numeric_limits<double>::infinity() : e;
      scale = std::max(scale, std::fabs(want[t][i]));
    }
    worst = std::max(worst, scale > 0 ? error / scale : error);
  }
  return worst;
}

// Runs the case once from its first values on a backend; returns all outputs.
std::vector<std::vector<double>> run_once(KernelCase& c, Device& device) {
  c.reset();
  if (c.prepare) c.prepare(device.kernels(), device.stream());
  c.run(device.kernels(), device.stream());
  if (c.finish) c.finish(device.kernels(), device.stream());
  device.sync();
  return c.results();
}

std::vector<std::vector<double>> reference_results(const KernelEntry& entry, const Shape& shape) {
  KernelCase c(shape);
  entry.build(c);
  return run_once(c, *Device::create({"ref", 1}));
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  const CounterRng rng(11);
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(vocab)));
  }
  return ids;
}

// Of all matrices that a token meets; the embedding counts as the head alone.
struct MatrixCost {
  double elements = 0, bytes = 0;
};
MatrixCost matrix_cost(Model& model) {
  MatrixCost cost;
  const Network& network = model.network();
  for (size_t i = 0; i < network.table().specs().size(); ++i) {
    const ParamSpec& spec = network.table().specs()[i];
    const bool lookup = spec.name == "backbone.embeddings.weight" && !model.config().tie_embeddings;
    if (!spec.matrix || lookup) continue;
    cost.elements += static_cast<double>(spec.count);
    cost.bytes += static_cast<double>(network.held_bytes(static_cast<int>(i)));
  }
  return cost;
}

}  // namespace

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

KernelReport bench_kernel(const KernelEntry& entry, const Shape& shape, const ModelOptions& options,
                          const MeasureOptions& timing, bool cold) {
  const std::unique_ptr<Device> device = Device::create({options.device, options.threads});
  const std::vector<std::vector<double>> want = reference_results(entry, shape);
  DeviceMemory& memory = device->memory();
  KernelCase c(shape, memory);
  entry.build(c);
  KernelReport report;
  report.name = entry.name;
  report.shape = shape.text();
  report.device = device->name();
  report.threads = device->threads();
  report.cost = c.cost;
  // Rounding of `terms` additions walks like the square root of their number; 64 covers exp and the
  // other order of sums (measured: under 10 on all cases). A wrong result is off by far more.
  report.tolerance = 64 * 0x1p-24 * std::sqrt(static_cast<double>(std::max<int64_t>(16, c.terms)));
  report.error = largest_error(run_once(c, *device), want);
  if (!(report.error <= report.tolerance)) {
    fail(ErrorCode::kInternal,
         "[bench] expected {} ({}) on {} within {:.2e} of the reference, got {:.2e}; please report "
         "this bug",
         entry.name, report.shape, report.device, report.tolerance, report.error);
  }
  c.reset();
  if (c.prepare) c.prepare(device->kernels(), device->stream());
  const bool flushed = cold || !memory.on_host();
  const AlignedBlock flush(flushed ? kFlushBytes : 0, "flushing caches", memory);
  std::function<void()> before;
  if (flushed) before = [&] { memory.zero(flush.data(), flush.size()); };
  report.time = measure(
      timing, [&] { c.run(device->kernels(), device->stream()); }, before,
      [&](const auto& body) { return device->time(body); });
  if (c.finish) c.finish(device->kernels(), device->stream());
  device->sync();
  return report;
}

ModelReport bench_model(Model& model, int64_t batch_size, int64_t prompt,
                        const MeasureOptions& timing, bool profile) {
  const int64_t V = model.config().vocab_size;
  ModelReport report;
  report.device = model.device_name();
  report.dtype = model.dtype();
  report.threads = model.network().device().threads();
  report.parameters = model.parameters();
  report.batch_size = batch_size;
  report.prompt = prompt;
  State state = model.new_state(batch_size);
  report.state_bytes = state.bytes_per_sequence();
  const MatrixCost cost = matrix_cost(model);
  report.flops_per_token = 2 * cost.elements;
  report.decode_bytes = cost.bytes + 2.0 * static_cast<double>(batch_size * report.state_bytes);
  const std::vector<int32_t> ids = random_tokens(batch_size * prompt, V);  // (B, prompt)
  std::vector<float> logits(static_cast<size_t>(batch_size * V));          // (B, V)
  const auto prefill = [&] {
    state = model.new_state(batch_size);
    model.forward(ids.data(), prompt, state, Logits::kLast, logits.data());
  };
  report.prefill = measure(timing, prefill);
  MeasureOptions steps = timing;
  steps.min_runs = std::max<int64_t>(32, timing.min_runs);
  TokenSteps tokens(model);
  const auto decode = [&] { tokens.step(ids.data(), state); };
  report.decode = measure(steps, decode);
  if (profile) {
    Device& device = model.network().device();
    report.prefill_profile = profile_kernels(device, prefill);
    report.decode_profile = profile_kernels(device, decode);
  }
  return report;
}

bool can_train_in(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }

TrainReport bench_train(const Config& config, const ModelOptions& options, int64_t batch_size,
                        int64_t seq_len, int64_t steps, bool profile,
                        const std::function<void()>& poll) {
  if (!can_train_in(options.dtype)) {
    fail(ErrorCode::kInvalidArgument,
         "[--dtype] expected f32 or bf16, in which there is training, got {}",
         dtype_name(options.dtype));
  }
  {
    const std::unique_ptr<Device> device = Device::create({options.device, options.threads});
    const MemoryPlan plan =
        estimate_sizes(config, *device, product_of(options.dtype), batch_size, seq_len).training;
    expect_memory(device->memory(), static_cast<double>(plan.total()), "bench train", "a step",
                  "use a smaller model, --batch-size or --seq-len");
  }
  Model model = Model::create(config, 1, options);
  Network& network = model.network();
  network.parameters_changed(false);
  AdamW optimizer(network, {0.9, 0.95, 1e-8, 0.1});
  const int64_t count = batch_size * seq_len;
  const std::vector<int32_t> tokens = random_tokens(count + 1, config.vocab_size);
  Batch batch;
  batch.B = batch_size;
  batch.L = seq_len;
  batch.ids = tokens.data();          // (B, L)
  batch.targets = tokens.data() + 1;  // (B, L)
  TrainReport report;
  report.device = model.device_name();
  report.isa = network.device().kernels().name;
  report.model_type = model_type_name(model);
  report.threads = network.device().threads();
  report.state_bytes = model.new_state(1).bytes_per_sequence();
  report.parameters = model.parameters();
  report.batch_size = batch_size;
  report.seq_len = seq_len;
  report.planned_bytes = network.plan_training(batch_size, seq_len).total();
  int64_t step = 0;
  MeasureOptions timing;
  timing.seconds = 0;
  timing.warm_up = 1;
  timing.min_runs = timing.max_runs = steps;
  const auto train_step = [&] {
    network.zero_gradients();
    const LossSum loss = network.forward_backward(batch, 1.0 / static_cast<double>(count));
    const double norm = optimizer.grad_norm();
    optimizer.update(++step, 1e-3, clip_scale(norm, 1.0));
    network.parameters_changed(false);
    report.last_loss = loss.nll / static_cast<double>(loss.targets);
    if (step == 1) report.first_loss = report.last_loss;
  };
  report.step = measure(timing, train_step, poll);
  if (profile) report.profile = profile_kernels(network.device(), train_step);
  report.peak_rss_bytes = peak_rss_bytes();
  return report;
}

}  // namespace mamba
