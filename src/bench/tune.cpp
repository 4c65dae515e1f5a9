// SPDX-License-Identifier: Apache-2.0
// First the parts of steps, then the steps that may consist of them, each with the winners of what
// was measured before it.
#include "bench/tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "model/explain.h"
#include "model/network.h"

namespace mamba {
namespace {

constexpr double kMargin = 1.005;
constexpr int64_t kMuch = 500'000'000;  // parameters of a network whose weights no cache holds

SizeRange octave(int64_t v) {
  const int64_t low = v < 1 ? 0 : static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(v)));
  return {low, v < 1 ? 0 : 2 * low - 1};
}

bool same_range(const SizeRange& a, const SizeRange& b) {
  return a.low == b.low && a.high == b.high;
}
bool same_row_class(const ChoiceRow& a, const ChoiceRow& b) {
  return a.operation == b.operation && a.any_type == b.any_type && a.type == b.type &&
         same_range(a.rows, b.rows) && same_range(a.size, b.size) && same_range(a.depth, b.depth);
}
bool has_class(const std::vector<ChoiceRow>& rows, const ChoiceRow& row) {
  return std::any_of(rows.begin(), rows.end(),
                     [&](const ChoiceRow& r) { return same_row_class(r, row); });
}

// Operations that are fused of others, whose parts must have been measured before.
constexpr Operation kWhole[] = {Operation::kNormLinear, Operation::kMamba1Step,
                                Operation::kMamba2Step};

bool is_whole(Operation operation) {
  return std::find(std::begin(kWhole), std::end(kWhole), operation) != std::end(kWhole);
}

class Tuner {
 public:
  Tuner(Model& model, const std::vector<ChoiceRow>& known, const TuneOptions& tuning)
      : device_(model.network().device()),
        network_(model.network()),
        tuning_(tuning),
        known_(known),
        before_(device_.choices()) {}
  ~Tuner() {
    before_.version = device_.choices().version + 1;
    device_.choices() = before_;
  }
  Tuner(const Tuner&) = delete;
  Tuner& operator=(const Tuner&) = delete;

  std::vector<ChoiceRow> run() {
    int64_t rows_from = 1;
    for (const int64_t batch : tuning_.batches) {
      tokens_.assign(static_cast<size_t>(batch), 0);
      State state = network_.new_state(batch);
      state_ = &state;
      force_sequences(true);
      measure_classes(rows_from, false);
      force_sequences(false);
      measure_classes(rows_from, true);
      rows_from = batch + 1;
    }
    return std::move(rows_);
  }

 private:
  void step() { network_.step(tokens_.data(), *state_); }

  // So that the parts run, and alone.
  void force_sequences(bool yes) {
    for (const Operation operation : kWhole) {
      device_.choices().forced[static_cast<int>(operation)] = yes ? bit(Way::kSequence) : 0;
    }
  }

  void measure_classes(int64_t rows_from, bool whole) {
    use_rows();
    const std::vector<ExplainedChoice> choices = choices_of(device_, [&] { step(); });
    for (const ExplainedChoice& e : choices) {
      if (is_whole(e.request.operation) != whole || std::has_single_bit(e.request.possible)) {
        continue;
      }
      ChoiceRow row = class_of(e.request, rows_from);
      if (has_class(known_, row) || has_class(rows_, row)) continue;
      measure(e.request, &row);
      rows_.push_back(row);
      use_rows();
      tell(row);
    }
  }

  // Rounds over all ways, so that what changes meanwhile (clocks, heat) is the same for all.
  void measure(const Request& request, ChoiceRow* row) {
    Choices& choices = device_.choices();
    const Way usual = choose(Choices{}, request).way;
    choices.focus = &request;
    const uint64_t first = choices.version + 1;
    for (int64_t round = 0; round < tuning_.rounds; ++round) {
      for (int i = 0; i < kWays; ++i) {
        if ((request.possible & (1u << i)) == 0) continue;
        if (tuning_.interrupted && tuning_.interrupted()) {
          fail(ErrorCode::kCancelled, "[tune] interrupted; nothing was written");
        }
        choices.focus_ways = 1u << i;
        choices.version = first + static_cast<uint64_t>(i);  // a graph for each way
        const double microseconds = median_step() * 1e6;
        float& best = row->microseconds[i];
        if (best == 0 || microseconds < static_cast<double>(best)) {
          best = static_cast<float>(microseconds);
        }
      }
    }
    choices.focus = nullptr;
    choices.version = first + kWays;
    row->winner = winner_of(*row, usual);
  }

  // Seconds of a step; the first two make the graph.
  double median_step() {
    for (int i = 0; i < 2; ++i) step();
    device_.sync();
    std::vector<double> seconds;
    for (int64_t i = 0; i < tuning_.steps; ++i) {
      seconds.push_back(device_.time([&] { step(); }));
    }
    device_.sync();
    std::nth_element(seconds.begin(), seconds.begin() + tuning_.steps / 2, seconds.end());
    return seconds[static_cast<size_t>(tuning_.steps / 2)];
  }

  void use_rows() {
    all_ = merged(rows_, known_);
    Choices& choices = device_.choices();
    choices.tuned = {all_.data(), static_cast<int64_t>(all_.size())};
    ++choices.version;
  }

  void tell(const ChoiceRow& row) const {
    if (!tuning_.on_progress) return;
    std::string text = fmt::format("{} {} x {} x {}: {}", name_of(row.operation), row.rows.high,
                                   row.size.low, row.depth.low, name_of(row.winner));
    for (int i = 0; i < kWays; ++i) {
      if (row.microseconds[i] <= 0) continue;
      text += fmt::format(", {} {:.1f} us", name_of(static_cast<Way>(i)), row.microseconds[i]);
    }
    tuning_.on_progress(text);
  }

  Device& device_;
  Network& network_;
  const TuneOptions& tuning_;
  const std::vector<ChoiceRow>& known_;
  Choices before_;
  std::vector<int32_t> tokens_;
  State* state_ = nullptr;
  std::vector<ChoiceRow> rows_, all_;
};

// Layers enough that their weights come from memory, as those of the whole model do.
int64_t layers_of(const Config& config, int64_t most) {
  const int64_t each = std::max<int64_t>(1, 6 * config.d_model * config.d_model);
  return std::clamp<int64_t>(kMuch / each, 1, std::min(most, config.n_layer));
}

}  // namespace

ChoiceRow class_of(const Request& r, int64_t rows_from) {
  ChoiceRow row = {};
  row.operation = r.operation;
  row.type = r.type;
  row.rows = {rows_from, r.rows};
  row.depth = octave(r.depth);
  // Of steps rows and depth say what the size is.
  const bool product = r.operation == Operation::kLinear || r.operation == Operation::kNormLinear ||
                       r.operation == Operation::kLinearQ;
  row.size = product ? octave(r.size) : SizeRange{0, kNoLimit};
  return row;
}

Way winner_of(const ChoiceRow& row, Way usual) {
  int best = static_cast<int>(usual);
  for (int i = 0; i < kWays; ++i) {
    const double mine = static_cast<double>(row.microseconds[i]);
    if (mine <= 0) continue;
    const double other = static_cast<double>(row.microseconds[best]);
    const double margin = best == static_cast<int>(usual) ? kMargin : 1.0;
    if (other <= 0 || mine * margin < other) best = i;
  }
  return static_cast<Way>(best);
}

void expect_tunable(const Device& device) {
  if (device.card().capability != 0) return;
  fail(ErrorCode::kInvalidArgument,
       "[tune] expected a GPU, got {}, on which every operation has one way to run: there is "
       "nothing to choose; use --device cuda",
       device.name());
}

std::vector<ChoiceRow> tune(const Config& config, const ModelOptions& options,
                            const std::vector<ChoiceRow>& known, const TuneOptions& tuning) {
  Config small = config;
  small.n_layer = layers_of(config, tuning.most_layers);
  Model model = Model::create(small, 1, options);
  expect_tunable(model.network().device());
  return Tuner(model, known, tuning).run();
}

std::vector<ChoiceRow> merged(const std::vector<ChoiceRow>& fresh,
                              const std::vector<ChoiceRow>& old) {
  std::vector<ChoiceRow> all = fresh;
  for (const ChoiceRow& row : old) {
    if (!has_class(fresh, row)) all.push_back(row);
  }
  return all;
}

}  // namespace mamba
