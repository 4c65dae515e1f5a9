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
#include "tokenizer/files.h"
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
      rows_(options.gradient_accumulation_steps * options.batch_size, options.seq_len,
            options.packing == Packing::kDocuments) {
  if (setup_.valid) {
    held_out_ = std::make_unique<HeldOut>(options_, network_, *setup_.valid, *setup_.tokenizer);
  }
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
  // From the start, so that the folder says what its ids mean; and a checkpoint that the run goes
  // on from, and its tokenizer with it, may be removed later.
  copy_tokenizer_files(setup_.plan.tokenizer, options_.output_dir, template_text(options_, setup_));
  tokenizer_ = setup_.plan.tokenizer == "bytes" ? "bytes" : options_.output_dir;
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
    load_weights(network_, options_.init_from, false, {setup_.plan.grown_from, options_.seed});
  } else {
    initialize(network_, options_.seed);
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

void Trainer::read_update() {
  const int64_t rows = options_.gradient_accumulation_steps * options_.batch_size;
  for (int64_t row = 0; row < rows; ++row) setup_.data->read(samples_ + row, rows_.row(row));
}

// Gradients of the mean loss over all targets of the update.
bool Trainer::accumulate(int64_t targets, LossSum* sum) {
  network_.zero_gradients();
  if (targets == 0) return true;
  const double scale = 1.0 / static_cast<double>(targets);
  for (int64_t i = 0; i < options_.gradient_accumulation_steps; ++i) {
    if (i > 0 && should_stop()) return false;
    const Batch batch = rows_.batch(i * options_.batch_size, options_.batch_size);
    const LossSum part = network_.forward_backward(batch, scale, step_options(options_));
    sum->nll += part.nll;
    sum->targets += part.targets;
  }
  return true;
}

bool Trainer::train_step() {
  const Stopwatch watch;
  TrainProgress& last = result_.last;
  LossSum sum;
  read_update();
  const int64_t targets = rows_.targets();
  if (!accumulate(targets, &sum)) {
    stop();
    return false;
  }
  samples_ += options_.gradient_accumulation_steps * options_.batch_size;
  ++last.step;
  last.targets = targets;
  last.padding = rows_.padding();
  last.learning_rate = schedule_.at(last.step);
  if (targets > 0) last.loss = sum.nll / static_cast<double>(sum.targets);
  last.grad_norm = optimizer_->grad_norm();
  if (!std::isfinite(last.loss) || !std::isfinite(last.grad_norm)) {
    const TrainedLayout& trained = network_.trained();
    const HostView gradients(network_.memory(), network_.gradients(), trained.count);
    diverged(gradients.as<float>(), false);
    return false;
  }
  // Without a target there is nothing to learn; weights would only decay.
  if (targets > 0) {
    optimizer_->update(last.step, last.learning_rate,
                       clip_scale(last.grad_norm, options_.max_grad_norm));
    network_.parameters_changed(false);
  }
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
  EvalReport& report = result_.eval;
  if (!held_out_->evaluate(callbacks_.should_stop, &report)) return false;
  report.step = result_.last.step;
  if (!log) return true;
  log_->write(report);
  write_curves();
  if (callbacks_.on_eval) callbacks_.on_eval(report);
  return true;
}

bool Trainer::weights_finite() {
  const HostView weights(network_.memory(), network_.parameters(), network_.table().flat_count());
  if (all_finite(network_.table(), weights.as<float>())) return true;
  diverged(weights.as<float>(), true);
  return false;
}

bool Trainer::save() {
  if (!weights_finite()) return false;
  const TrainProgress& last = result_.last;
  const TrainerState state{last.step, samples_,       last.seconds,
                           last.loss, last.grad_norm, setup_.course};
  log_->sync();  // the lines up to a checkpoint last as long as it does
  result_.checkpoint = save_checkpoint(options_.output_dir, state, network_, *optimizer_,
                                       tokenizer_, template_text(options_, setup_),
                                       checkpoint_card(options_, setup_.plan, result_));
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
  if (setup_.plan.tokenizer == "bytes") labels.bits_per_nat = 1 / kLn2;
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
  result_.norms = tensor_norms(network_.table(), flat, weights ? nullptr : &network_.trained());
}

TrainPlan plan_train(const TrainOptions& options) { return prepare_run(options, true).plan; }

TrainResult train(const TrainOptions& options, const TrainCallbacks& callbacks) {
  return Trainer(options, callbacks).run();
}

}  // namespace mamba
