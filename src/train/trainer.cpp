// SPDX-License-Identifier: Apache-2.0
// The loop of a run.
#include "train/trainer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/check.h"
#include "model/model_io.h"
#include "train/model_card.h"
#include "train/run_options.h"

namespace mamba {
namespace {

constexpr double kLn2 = 0.69314718055994530942;

void call(const std::function<void(const std::string&)>& callback, const std::string& text) {
  if (callback) callback(text);
}

}  // namespace

FolderLock::FolderLock(const std::string& folder) {
  fd_ = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd_ < 0) {
    fail(ErrorCode::kIo, "[--output-dir {}] expected to open the folder, got: {}; check it", folder,
         strerror(errno));
  }
  if (flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
  close(fd_);
  fail(ErrorCode::kInvalidArgument,
       "[--output-dir {}] expected a folder that no other run uses, got one in use; wait for that "
       "run or name another folder",
       folder);
}

FolderLock::~FolderLock() { close(fd_); }

Trainer::Trainer(const TrainOptions& options, const TrainCallbacks& callbacks)
    : options_(options),
      callbacks_(callbacks),
      setup_(prepare_run(options, false)),
      network_(*setup_.network),
      schedule_(schedule_of(options)),
      order_(setup_.data->size(), options.seq_len, options.data_order, options.seed, "--data") {
  const auto tokens = static_cast<size_t>(options.batch_size * options.seq_len);
  ids_.resize(tokens);
  targets_.resize(tokens);
  result_.last.max_steps = options.max_steps;
}

TrainResult Trainer::run() {
  try {
    for (const std::string& notice : setup_.notices) call(callbacks_.on_notice, notice);
    optimizer_ = std::make_unique<AdamW>(
        network_, AdamwOptions{options_.adam_beta1, options_.adam_beta2, options_.adam_epsilon,
                               options_.weight_decay});
    set_weights();
    open_folder();
    if (callbacks_.on_start) callbacks_.on_start(setup_.plan);
    run_steps();
    if (result_.status == TrainStatus::kFinished) finish();
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kIo || result_.checkpoint.empty()) throw;
    fail(ErrorCode::kIo, "{}; go on with --resume from {}, which is whole", e.what(),
         result_.checkpoint);
  }
  return result_;
}

void Trainer::open_folder() {
  std::error_code error;
  std::filesystem::create_directories(options_.output_dir, error);
  if (error) {
    fail(ErrorCode::kIo,
         "[--output-dir {}] expected to create the folder, got: {}; check its parent's permissions",
         options_.output_dir, error.message());
  }
  lock_ = std::make_unique<FolderLock>(options_.output_dir);
  remove_leftovers(options_.output_dir);
  for (const std::string& path : setup_.damaged) {
    std::filesystem::rename(path, path + ".damaged", error);
    if (error) {
      fail(ErrorCode::kIo, "[{}] expected to set the damaged checkpoint aside, got: {}; remove it",
           path, error.message());
    }
    call(callbacks_.on_notice, fmt::format("set aside as {}.damaged", path));
  }
  log_ = std::make_unique<RunLog>(options_.output_dir + "/metrics.jsonl", result_.last.step);
  if (log_->unreadable() > 0) {
    call(callbacks_.on_notice,
         fmt::format("left out {} unreadable line{} of {}/metrics.jsonl", log_->unreadable(),
                     log_->unreadable() == 1 ? "" : "s", options_.output_dir));
  }
}

void Trainer::set_weights() {
  if (setup_.resumed) {
    const TrainerState& state = *setup_.resumed;
    load_checkpoint(setup_.resume_path, network_, *optimizer_);
    samples_ = state.samples;
    result_.last.step = saved_step_ = state.step;
    result_.last.tokens = state.step * setup_.plan.tokens_per_step;
    result_.last.seconds = state.seconds;
    result_.last.loss = state.loss;
    result_.last.grad_norm = state.grad_norm;
    result_.checkpoint = setup_.resume_path;
  } else if (!options_.init_from.empty()) {
    load_weights(network_, options_.init_from, false);
  } else {
    network_.table().initialize(network_.config(), options_.seed,
                                network_.parameters().as<float>());
    network_.parameters_changed(false);
  }
}

void Trainer::stop() {
  if (saved_step_ != result_.last.step && !save()) return;
  result_.status = TrainStatus::kInterrupted;
}

bool Trainer::eval_due() const {
  const int64_t step = result_.last.step, every = options_.eval_steps;
  if (!setup_.valid || step == 0) return false;
  return step == options_.max_steps || (every > 0 && step % every == 0);
}

// A checkpoint comes before the evaluation of its step, which may be long. So a run that goes on
// from one may owe that evaluation.
void Trainer::run_steps() {
  const int64_t last_step = options_.max_steps, every = options_.save_steps;
  const int64_t& step = result_.last.step;
  if (eval_due() && !log_->has_eval(step) && !evaluate(true)) return stop();
  while (step < last_step) {
    if (!train_step()) return;
    report_step();
    const bool save_due = step == last_step || (every > 0 && step % every == 0);
    if (save_due && !save()) return;
    if (eval_due() && !evaluate(true)) return stop();
    if (step < last_step && should_stop()) return stop();
  }
}

void Trainer::fill_batch(const TokenStream& stream, const std::vector<int64_t>& begins) {
  const int64_t L = options_.seq_len;
  for (size_t row = 0; row < begins.size(); ++row) {
    stream.read(begins[row], L, ids_.data() + static_cast<int64_t>(row) * L);
    stream.read(begins[row] + 1, L, targets_.data() + static_cast<int64_t>(row) * L);
  }
}

// Gradients of the mean loss over all batches of the update.
bool Trainer::accumulate(LossSum* sum) {
  const double scale = 1.0 / static_cast<double>(setup_.plan.tokens_per_step);
  const int64_t first_sample = samples_;
  std::vector<int64_t> begins(static_cast<size_t>(options_.batch_size));
  network_.zero_gradients();
  for (int64_t i = 0; i < options_.gradient_accumulation_steps; ++i) {
    if (i > 0 && should_stop()) {
      samples_ = first_sample;
      return false;
    }
    for (int64_t& begin : begins) begin = order_.begin(samples_++);
    fill_batch(*setup_.data, begins);
    const Batch batch{options_.batch_size, options_.seq_len, ids_.data(), targets_.data()};
    const LossSum part = network_.forward_backward(batch, scale);
    sum->nll += part.nll;
    sum->targets += part.targets;
  }
  return true;
}

bool Trainer::train_step() {
  const Stopwatch watch;
  TrainProgress& last = result_.last;
  LossSum sum;
  if (!accumulate(&sum)) {
    stop();
    return false;
  }
  ++last.step;
  last.loss = sum.nll / static_cast<double>(sum.targets);
  last.grad_norm = optimizer_->grad_norm();
  last.learning_rate = schedule_.at(last.step);
  if (!std::isfinite(last.loss) || !std::isfinite(last.grad_norm)) {
    diverged(network_.gradients().as<float>(), false);
    return false;
  }
  optimizer_->update(last.step, last.learning_rate,
                     clip_scale(last.grad_norm, options_.max_grad_norm));
  network_.parameters_changed(false);
  const double seconds = watch.seconds();
  last.tokens += setup_.plan.tokens_per_step;
  last.seconds += seconds;
  line_seconds_ += seconds;
  line_tokens_ += setup_.plan.tokens_per_step;
  return true;
}

void Trainer::report_step() {
  TrainProgress& last = result_.last;
  last.tokens_per_second =
      line_seconds_ > 0 ? static_cast<double>(line_tokens_) / line_seconds_ : 0;
  // By the wall clock of this process, so that evaluations and checkpoints are in the estimate.
  last.seconds_left = run_time_.seconds() * static_cast<double>(last.max_steps - last.step) /
                      static_cast<double>(last.step - setup_.plan.first_step);
  if (callbacks_.on_step) callbacks_.on_step(last);
  if (last.step % options_.logging_steps != 0 && last.step != last.max_steps) return;
  log_->write(last);
  if (callbacks_.on_log) callbacks_.on_log(last);
  line_seconds_ = 0;
  line_tokens_ = 0;
}

bool Trainer::evaluate(bool log) {
  const int64_t L = options_.seq_len, B = options_.batch_size;
  const int64_t windows = std::min(options_.eval_batches * B, (setup_.valid->size() - 1) / L);
  LossSum sum;
  int64_t bytes = 0;
  for (int64_t first = 0; first < windows; first += B) {
    if (should_stop()) return false;
    std::vector<int64_t> begins;
    for (int64_t w = first; w < std::min(windows, first + B); ++w) begins.push_back(w * L);
    fill_batch(*setup_.valid, begins);
    const Batch batch{static_cast<int64_t>(begins.size()), L, ids_.data(), targets_.data()};
    const LossSum part = network_.forward(batch, nullptr, Logits::kNone, Buf(), Buf());
    sum.nll += part.nll;
    sum.targets += part.targets;
    for (int64_t i = 0; i < batch.B * L; ++i) {
      bytes += static_cast<int64_t>(
          setup_.tokenizer->token_bytes(targets_[static_cast<size_t>(i)]).size());
    }
  }
  EvalReport& report = result_.eval;
  report.step = result_.last.step;
  report.targets = sum.targets;
  report.loss = sum.nll / static_cast<double>(sum.targets);
  report.perplexity = std::exp(report.loss);
  report.bits_per_byte = sum.nll / kLn2 / static_cast<double>(bytes);
  if (!log) return true;
  log_->write(report);
  write_curves();
  if (callbacks_.on_eval) callbacks_.on_eval(report);
  return true;
}

bool Trainer::save() {
  const float* weights = network_.parameters().as<float>();
  if (!all_finite(network_.table(), weights)) {
    diverged(weights, true);
    return false;
  }
  const TrainProgress& last = result_.last;
  const TrainerState state{last.step, samples_,       last.seconds,
                           last.loss, last.grad_norm, setup_.course};
  log_->sync();  // the lines up to a checkpoint last as long as it does
  result_.checkpoint = save_checkpoint(options_.output_dir, state, network_, *optimizer_);
  saved_step_ = last.step;
  remove_old_checkpoints(options_.output_dir, options_.save_total_limit);
  call(callbacks_.on_checkpoint, result_.checkpoint);
  return true;
}

void Trainer::write_curves() const {
  CurveLabels labels;
  const TrainPlan& plan = setup_.plan;
  labels.title = fmt::format("{}, {} parameters", plan.config.mixer, with_commas(plan.parameters));
  labels.subtitle =
      fmt::format("width {}, {} layers; {} steps of {} tokens, {}", plan.config.d_model,
                  plan.config.n_layer, with_commas(plan.max_steps),
                  with_commas(plan.tokens_per_step), options_.bf16 ? "bf16" : "f32");
  if (options_.tokenizer == "bytes") labels.bits_per_nat = 1 / kLn2;
  labels.max_steps = plan.max_steps;
  write_file_atomic(options_.output_dir + "/curves.svg", curves_svg(log_->curves(), labels));
}

void Trainer::finish() {
  if (setup_.valid && result_.eval.targets == 0 && !evaluate(false)) return stop();
  log_->sync();
  write_curves();
  save_model(network_, options_.output_dir, DType::kF32);
  write_file_atomic(options_.output_dir + "/README.md", model_card(options_, setup_.plan, result_));
}

void Trainer::diverged(const float* flat, bool weights) {
  result_.status = TrainStatus::kDiverged;
  result_.weights_diverged = weights;
  result_.norms = tensor_norms(network_.table(), flat);
}

TrainPlan plan_train(const TrainOptions& options) { return prepare_run(options, true).plan; }

TrainResult train(const TrainOptions& options, const TrainCallbacks& callbacks) {
  return Trainer(options, callbacks).run();
}

}  // namespace mamba
