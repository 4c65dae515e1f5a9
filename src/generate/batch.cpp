// SPDX-License-Identifier: Apache-2.0
// Many prompts through one batch: a row that has ended takes the next prompt.
#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "base/check.h"
#include "generate/answer.h"
#include "mamba/generate.h"
#include "model/network.h"

namespace mamba {
namespace {

constexpr int64_t kMaxBatch = 4096;
// Requests begun beyond the first that is not answered yet, for each row of the batch: what may
// wait in memory for one long answer.
constexpr int64_t kWindow = 16;

using Source = std::function<bool(GenerateRequest&)>;
using Sink = std::function<void(int64_t, Generation&&)>;

// A request under way: its last token is drawn but not yet taken into its state.
struct Row {
  int64_t index = 0;
  std::unique_ptr<GenerateRequest> request;  // what the answer refers to
  std::unique_ptr<Answer> answer;
  State state;  // of one sequence, until it joins the batch
  int32_t token = 0;
};

class BatchRun {
 public:
  BatchRun(Generator& generator, Model& model, const Tokenizer* tokenizer, const Source& source,
           const Sink& sink, const BatchOptions& options)
      : generator_(generator),
        model_(model),
        tokenizer_(tokenizer),
        source_(source),
        sink_(sink),
        options_(options),
        drawer_(model.network().device()) {}

  bool run() {
    refill();
    while (!rows_.empty()) {
      if (interrupted()) return false;
      step();
      refill();
      report();
    }
    return !interrupted_;
  }

 private:
  bool interrupted() {
    interrupted_ = interrupted_ || (options_.interrupted && options_.interrupted());
    return interrupted_;
  }

  void report() {
    if (!options_.on_progress) return;
    progress_.running = running();
    options_.on_progress(progress_);
  }

  // Takes every row's token into its state and draws the next one.
  void step() {
    std::vector<int32_t> tokens;
    for (const Row& row : rows_) tokens.push_back(row.token);
    const std::vector<LogitRow> logits = step_rows(model_, tokens, batch_, &room_);
    std::vector<Row*> rows;
    for (Row& row : rows_) rows.push_back(&row);
    draw(rows, logits);
  }

  void draw(const std::vector<Row*>& rows, const std::vector<LogitRow>& logits) {
    std::vector<SampleRow> each;
    for (size_t i = 0; i < rows.size(); ++i) each.push_back(rows[i]->answer->ask(logits[i]));
    std::vector<int32_t> tokens(rows.size());
    drawer_.draw(each, logits[0].on_host, tokens.data());
    for (size_t i = 0; i < rows.size(); ++i) {
      std::string text;
      rows[i]->token = tokens[i];
      if (rows[i]->answer->take(tokens[i], logits[i], &text)) ++progress_.generated_tokens;
    }
  }

  // Hands over what has ended and puts new requests in its place and into free rows.
  void refill() {
    bool resized = false;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (!rows_[i].answer->done()) continue;
      hand_over(rows_[i]);
      Row row;
      if (admit(row)) {
        batch_.assign(static_cast<int64_t>(i), row.state, 0);
        row.state = State();
        rows_[i] = std::move(row);
      } else {
        rows_[i].answer.reset();
        resized = true;
      }
    }
    const size_t before = rows_.size();
    for (Row row; running() < options_.batch_size && admit(row);) {
      rows_.push_back(std::move(row));
      resized = true;
    }
    if (resized) rebuild(before);
  }

  int64_t running() const {
    return std::count_if(rows_.begin(), rows_.end(),
                         [](const Row& r) { return r.answer != nullptr; });
  }

  // A batch of the rows that have an answer; the first `old` have their state in the old one.
  void rebuild(size_t old) {
    const int64_t count = running();
    State batch = count > 0 ? model_.new_state(count) : State();
    std::vector<Row> rows;
    for (size_t i = 0; i < rows_.size(); ++i) {
      Row& row = rows_[i];
      if (row.answer == nullptr) continue;
      const int64_t to = static_cast<int64_t>(rows.size());
      batch.assign(to, i < old ? batch_ : row.state, i < old ? static_cast<int64_t>(i) : 0);
      row.state = State();
      rows.push_back(std::move(row));
    }
    rows_ = std::move(rows);
    batch_ = std::move(batch);
  }

  // The next request whose first token does not end it already; false when there is none, when too
  // many answers wait, or when interrupted.
  bool admit(Row& row) {
    while (!source_ended_ && begun_ - given_ < kWindow * options_.batch_size && !interrupted()) {
      row = Row();
      row.request = std::make_unique<GenerateRequest>();
      if (!source_(*row.request)) {
        source_ended_ = true;
        return false;
      }
      row.index = begun_++;
      if (!begin(row)) return false;
      if (!row.answer->done()) return true;
      hand_over(row);
      report();  // many may end so before the next step
    }
    return false;
  }

  // Reads the prompt and draws the first token; false when interrupted.
  bool begin(Row& row) {
    const GenerateRequest& request = *row.request;
    const AnswerTask task = {request.sampling, request.stop, request.max_tokens,
                             options_.ignore_eos};
    check_task(task, model_.config(), tokenizer_);
    Session session = generator_.start();
    session.history_limit = history_needed(request.sampling);
    if (!generator_.prefill(session, request.prompt, options_.interrupted)) {
      interrupted_ = true;
      return false;
    }
    check_session(session, request.sampling);
    progress_.prompt_tokens += session.tokens;
    row.answer = std::make_unique<Answer>(model_, tokenizer_, task, session);
    if (!row.answer->done()) draw({&row}, {{CBuf(session.logits.data()), true}});
    row.state = std::move(session.state);
    return true;
  }

  // To the sink, once all before have gone there.
  void hand_over(Row& row) {
    row.answer->end_text(false);
    waiting_.emplace(row.index, std::move(row.answer->result()));
    ++progress_.finished;
    for (auto first = waiting_.begin(); first != waiting_.end() && first->first == given_;
         first = waiting_.erase(first)) {
      sink_(given_++, std::move(first->second));
    }
  }

  Generator& generator_;
  Model& model_;
  const Tokenizer* tokenizer_;
  const Source& source_;
  const Sink& sink_;
  const BatchOptions& options_;
  std::vector<Row> rows_;
  State batch_;  // (rows)
  TokenDrawer drawer_;
  std::vector<float> room_;                // of logits, where the model computes in f64
  std::map<int64_t, Generation> waiting_;  // for an earlier one
  int64_t begun_ = 0, given_ = 0;          // requests taken, answers given to the sink
  bool source_ended_ = false, interrupted_ = false;
  BatchProgress progress_;
};

}  // namespace

bool Generator::generate_batch(const Source& source, const Sink& sink,
                               const BatchOptions& options) {
  if (options.batch_size < 1 || options.batch_size > kMaxBatch) {
    fail(ErrorCode::kInvalidArgument, "[generate] expected batch_size in 1..{}, got {}", kMaxBatch,
         options.batch_size);
  }
  return BatchRun(*this, *model_, tokenizer_, source, sink, options).run();
}

}  // namespace mamba
