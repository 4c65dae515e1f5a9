// SPDX-License-Identifier: Apache-2.0
// The card of a trained model.
#include "train/model_card.h"

#include <fmt/format.h>

#include <cmath>

#include "mamba/version.h"

namespace mamba {
namespace {

std::string names_of(const std::vector<std::string>& paths) {
  std::string names;
  for (const std::string& path : paths)
    names += (names.empty() ? "`" : ", `") + card_name(path) + "`";
  return names;
}

std::string row(const std::string& name, const std::string& value) {
  return fmt::format("| {} | {} |\n", name, value);
}

std::string held_out_names(const TrainOptions& o) {
  std::string names;
  for (const std::string& path : o.valid) names += (names.empty() ? "" : ", ") + card_name(path);
  return names;
}

std::string schedule_text(const TrainOptions& o) {
  return fmt::format("{} from {:g} after {} warm-up steps to {:g} of it",
                     lr_schedule_name(o.lr_schedule), o.learning_rate, o.warmup_steps,
                     o.lr_schedule == LrSchedule::kConstant ? 1.0 : o.min_lr_ratio);
}

std::string data_summary(const TrainOptions& o, const TrainPlan& plan) {
  std::string text = fmt::format("{} ({} tokens", names_of(o.data), with_commas(plan.data_tokens));
  int64_t documents = 0, scored = 0;
  for (const TrainSource& source : plan.sources) {
    documents += source.documents;
    scored += source.scored;
  }
  text += fmt::format(" in {} document{}", with_commas(documents), documents == 1 ? "" : "s");
  if (scored < plan.data_tokens) text += fmt::format(", {} with a loss", with_commas(scored));
  text += ")";
  if (plan.sources.size() > 1) {
    text += "; shares";
    for (const TrainSource& source : plan.sources) text += fmt::format(" {:.4g}", source.weight);
  }
  if (o.packing == Packing::kDocuments) {
    text += fmt::format("; whole documents packed, {:.1f} % padding", 100 * plan.padding);
  }
  return text;
}

std::string training_table(const TrainOptions& o, const TrainPlan& plan,
                           const TrainResult& result) {
  std::string table = "| | |\n|---|---|\n";
  if (!o.init_from.empty()) table += row("started from", "`" + o.init_from + "`");
  table += row("data", data_summary(o, plan));
  table += row("tokenizer", plan.tokenizer == "bytes"
                                ? plan.tokenizer
                                : fmt::format("byte-level BPE, {} ids (`tokenizer.json`)",
                                              with_commas(plan.tokenizer_size)));
  table +=
      row("steps", fmt::format("{} of {} tokens ({} x {} x {}), {} tokens in all",
                               with_commas(result.last.step), with_commas(plan.tokens_per_step),
                               o.gradient_accumulation_steps, o.batch_size, o.seq_len,
                               with_commas(result.last.tokens)));
  table += row("learning rate", schedule_text(o));
  table += row("AdamW", fmt::format("betas {:g} and {:g}, epsilon {:g}, weight decay {:g}, clipped "
                                    "at {:g}",
                                    o.adam_beta1, o.adam_beta2, o.adam_epsilon, o.weight_decay,
                                    o.max_grad_norm));
  table += row("products", o.bf16 ? "bf16, the rest f32" : "f32");
  table += row("seed", std::to_string(o.seed));
  table += row("machine", fmt::format("{}, {} threads", plan.device, plan.threads));
  table += row("time", duration_text(result.last.seconds));
  table += row("loss of the last step", fmt::format("{:.4f} nats a token", result.last.loss));
  if (result.eval.targets > 0) {
    table +=
        row("held out", fmt::format("{} ({} tokens scored): {:.4f} nats a token, **{:.4f} bits "
                                    "per byte**",
                                    names_of(o.valid), with_commas(result.eval.targets),
                                    result.eval.loss, result.eval.bits_per_byte));
  }
  return table;
}

// What both kinds of cards begin with; `about` follows the heading.
std::string card_start(const TrainOptions& o, const TrainPlan& plan, const TrainResult& result,
                       const std::string& about) {
  CardFacts facts;
  if (!o.init_from.empty()) {
    facts.base_model = card_name(o.init_from);
    facts.base_model_relation = "finetune";
    facts.carried = carried_facts(o.init_from, Descent::kTrained);
  }
  for (const std::string& path : o.data) facts.datasets.push_back(card_name(path));
  if (result.eval.targets > 0) {
    facts.evaluation =
        card_evaluation(card_name(o.output_dir), held_out_names(o),
                        {{"loss", "loss (nats a token)", result.eval.loss},
                         {"perplexity", "perplexity of a token", result.eval.perplexity},
                         {"bits_per_byte", "bits per byte", result.eval.bits_per_byte}});
  }
  return card_front_matter(plan.config, facts) + card_heading(plan.config, plan.parameters) +
         about + training_table(o, plan, result);
}

std::string command_text(const TrainOptions& o) {
  return o.command_line.empty() ? "" : "\nThe command:\n\n```sh\n" + o.command_line + "\n```\n";
}

}  // namespace

std::string duration_text(double seconds) {
  if (!(seconds >= 0) || !std::isfinite(seconds)) return "unknown";
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string model_card(const TrainOptions& o, const TrainPlan& plan, const TrainResult& result) {
  return card_start(o, plan, result,
                    fmt::format(" Trained with mamba-cpp {}.\n\n", MAMBA_VERSION)) +
         "\n![training curves](curves.svg)\n" + command_text(o);
}

std::string checkpoint_card(const TrainOptions& o, const TrainPlan& plan,
                            const TrainResult& result) {
  TrainResult here = result;
  if (here.eval.step != here.last.step) here.eval = {};
  const std::string about = fmt::format(
      " A checkpoint of mamba-cpp {} after {} of {} steps; training goes on from here with "
      "`mamba-cpp "
      "train --resume`.\n\n",
      MAMBA_VERSION, with_commas(result.last.step), with_commas(plan.max_steps));
  return card_start(o, plan, here, about) + command_text(o);
}

}  // namespace mamba
