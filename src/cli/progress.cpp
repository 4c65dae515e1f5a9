// SPDX-License-Identifier: Apache-2.0
// Draws the progress of a training run.
#include "cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "train/model_card.h"

namespace mamba::cli {
namespace {

constexpr std::chrono::milliseconds kRedraw{100};

int terminal_columns() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

void put(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace

std::string rate_text(double per_second) {
  return per_second >= 1e4 ? fmt::format("{:.1f}k", per_second / 1e3)
                           : fmt::format("{:.0f}", per_second);
}

void TrainDisplay::step(const TrainProgress& p) {
  // The mean of the first ten steps, then an exponential one.
  ++steps_;
  smooth_loss_ += (p.loss - smooth_loss_) / static_cast<double>(std::min<int64_t>(steps_, 10));
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || (drawn_ && now - last_draw_ < kRedraw)) return;
  last_draw_ = now;
  const double done = static_cast<double>(p.step) / static_cast<double>(p.max_steps);
  const std::string numbers =
      fmt::format(" {}/{}  loss {:.4f}  {} tok/s  {} left", p.step, p.max_steps, smooth_loss_,
                  rate_text(p.tokens_per_second), duration_text(p.seconds_left));
  const int room = terminal_columns() - static_cast<int>(numbers.size()) - 8;
  std::string bar;
  if (room >= 8) {
    const int width = std::min(room, 40);
    const int full = static_cast<int>(done * width);
    const char* head = full < width ? ">" : "";
    bar =
        fmt::format("[{}{:<{}}]", std::string(static_cast<size_t>(full), '='), head, width - full);
  }
  put(fmt::format("\r{:3.0f}% {}{}\033[K", 100 * done, bar, numbers));
  drawn_ = true;
}

void TrainDisplay::log(const TrainProgress& p) {
  if (terminal_) return;
  put(fmt::format("step {}/{}  loss {:.4f}  grad norm {:.3f}  lr {:.3g}  {} tok/s  {} left\n",
                  p.step, p.max_steps, p.loss, p.grad_norm, p.learning_rate,
                  rate_text(p.tokens_per_second), duration_text(p.seconds_left)));
}

void TrainDisplay::line(const std::string& text) {
  clear();
  put(text + "\n");
}

void TrainDisplay::clear() {
  if (drawn_) put("\r\033[K");
  drawn_ = false;
}

}  // namespace mamba::cli
