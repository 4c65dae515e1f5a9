# SPDX-License-Identifier: Apache-2.0
"""mamba-cpp eval tasks against lm-evaluation-harness, item by item: both score the same items with the
same tiny random model, which the harness runs through transformers. Needs lm_eval, torch, transformers
and tokenizers (pip install lm-eval); exits with 77 where they are missing.

Usage: compare_lm_eval.py PROGRAM DATA_FOLDER [--limit N] [--tasks a,b] [--tokenizer bytes|TOKENIZER_JSON]
                          [--mixer mamba|mamba2] [--model FOLDER]

DATA_FOLDER has <task>.jsonl or <task>.jsonl.xz in the form of docs/evaluation.md. The tasks are
objects of the harness with its own metrics and aggregation; only their texts come from those files.
"""
import argparse
import json
import logging
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata

os.environ.update(HF_HUB_OFFLINE="1", DISABLE_MULTIPROC="1", TOKENIZERS_PARALLELISM="false",
                  TQDM_DISABLE="1")
try:
    import datasets
    import lm_eval
    import tokenizers
    import torch
    import transformers
    from lm_eval import evaluator
    from lm_eval.api import metrics
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import _yaml_loader
except ImportError as error:
    print(f"skipped: {error} (pip install lm-eval torch transformers)")
    sys.exit(77)

# Where the harness describes each task: its output type and metrics are read from there.
YAMLS = {
    "lambada_openai": "lambada/lambada_openai", "hellaswag": "hellaswag/hellaswag",
    "piqa": "piqa/piqa", "arc_easy": "arc/arc_easy", "arc_challenge": "arc/arc_easy",
    "winogrande": "winogrande/default", "openbookqa": "openbookqa/openbookqa",
    "boolq": "super_glue/boolq/default", "wsc273": "wsc273/default",
}
OTHER_NAMES = {"wsc273": "winograd_wsc273"}
# f32 sums in another order: about 1e-6 a token, some hundred tokens at most.
TOLERANCE = 1e-3


class HarnessModel(TemplateLM):
    """The thinnest model that the harness accepts: padded batches through transformers."""

    def __init__(self, folder, max_length, batch_size=8):
        super().__init__()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32).eval()
        path = f"{folder}/tokenizer.json"
        self.codec = tokenizers.Tokenizer.from_file(path) if os.path.exists(path) else None
        self.max_length, self.batch_size = max_length, batch_size

    @property
    def eot_token_id(self):
        return 0

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        if self.codec is None:
            return list(string.encode())
        return self.codec.encode(string, add_special_tokens=add_special_tokens is not False).ids

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        answers = [None] * len(requests)
        inputs = [(c + t)[-(self.max_length + 1):][:-1] for _, c, t in requests]
        order = sorted(range(len(requests)), key=lambda i: -len(inputs[i]))
        for at in range(0, len(order), self.batch_size):
            batch = order[at:at + self.batch_size]
            width = len(inputs[batch[0]])
            ids = torch.tensor([inputs[i] + [0] * (width - len(inputs[i])) for i in batch])
            with torch.no_grad():
                log_probs = self.model(ids).logits.double().log_softmax(-1)
            for row, i in enumerate(batch):
                target = torch.tensor(requests[i][2])
                end = len(inputs[i])
                part = log_probs[row, end - len(target):end]
                answers[i] = (float(part.gather(1, target[:, None]).sum()),
                              bool((part.argmax(-1) == target).all()))
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError


def make_model(folder, tokenizer, mixer):
    """A random model whose logits differ enough between tokens that choices are no near ties."""
    vocab = 256
    os.makedirs(folder, exist_ok=True)
    if tokenizer != "bytes":
        shutil.copy(tokenizer, f"{folder}/tokenizer.json")
        count = tokenizers.Tokenizer.from_file(tokenizer).get_vocab_size()
        vocab = -(-count // 8) * 8
    torch.manual_seed(1)
    common = dict(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, state_size=8,
                  bos_token_id=0, eos_token_id=0, pad_token_id=0)
    if mixer == "mamba2":
        model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(
            **common, head_dim=16, num_heads=4, n_groups=1, chunk_size=32))
    else:
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**common))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "embeddings" in name or "lm_head" in name:
                weights.normal_(0, 0.5)
    model.save_pretrained(folder)


def read_rows(folder, task):
    for name in (task, OTHER_NAMES.get(task, task)):
        for path, opener in ((f"{folder}/{name}.jsonl", open), (f"{folder}/{name}.jsonl.xz", lzma.open)):
            if os.path.exists(path):
                with opener(path, "rt", encoding="utf-8") as file:
                    return [json.loads(line) for line in file]
    raise SystemExit(f"no {task}.jsonl in {folder}")


def harness_task(name, rows):
    """A task of the harness with its own metrics over these rows."""
    root = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
    stated = _yaml_loader.load_yaml(f"{root}/{YAMLS[name]}.yaml")
    wanted = stated["metric_list"]
    if any(m["metric"] == "acc_norm" for m in wanted):
        wanted = wanted + [{"metric": "acc_bytes", "aggregation": "mean", "higher_is_better": True}]
    config = {"task": name, "output_type": stated["output_type"], "metric_list": wanted,
              "test_split": "test", "metadata": {"version": 1.0}, "target_delimiter": "",
              "custom_dataset": lambda **_: datasets.DatasetDict(
                  {"test": datasets.Dataset.from_list(rows)})}
    if "contexts" in rows[0]:  # the choices are contexts, and doc_to_text says which one is right
        config.update(doc_to_text=lambda d: d["gold"], doc_to_target=lambda d: d["target"],
                      doc_to_choice=lambda d: d["contexts"])
    elif "choices" in rows[0]:
        config.update(doc_to_text=lambda d: d["ctx"], doc_to_target=lambda d: d["gold"],
                      doc_to_choice=lambda d: d["choices"], target_delimiter=" ")
    else:
        config.update(doc_to_text=lambda d: d["ctx"], doc_to_target=lambda d: d["target"])
    return ConfigurableTask(config=config)


def with_greedy_answers(rows, harness):
    """LAMBADA rows of which every second one asks for what the model itself would write: a random model
    would never be right otherwise."""
    changed = []
    for i, row in enumerate(rows):
        context = harness.tok_encode(row["ctx"])
        if i % 2 and len(context) <= harness.max_length:
            with torch.no_grad():
                token = int(harness.model(torch.tensor([context])).logits[0, -1].argmax())
            text = (bytes([token]).decode(errors="ignore") if harness.codec is None
                    else harness.codec.decode([token]))
            if harness.tok_encode(row["ctx"] + text) == context + [token]:
                row = {**row, "target": text}
        changed.append(row)
    return changed


def compare_items(name, samples, items):
    """Largest difference of log-likelihoods; raises where an answer differs."""
    assert len(samples) == len(items), (name, len(samples), len(items))
    worst = 0.0
    for sample, item in zip(sorted(samples, key=lambda s: s["doc_id"]), items):
        theirs = sample["filtered_resps"]
        assert len(theirs) == len(item["log_likelihoods"]), (name, item)
        for (value, greedy), ours, our_greedy in zip(theirs, item["log_likelihoods"],
                                                     item["is_greedy"]):
            worst = max(worst, abs(float(value) - ours))
            assert worst <= TOLERANCE, (name, item, theirs)
            assert bool(greedy) == our_greedy, (name, item, theirs)
        for metric in ("acc", "acc_norm", "acc_bytes"):
            assert (metric in sample) == (metric in item), (name, metric, sorted(sample), item)
            if metric in item:
                assert float(sample[metric]) == item[metric], (name, metric, item, theirs)
    return worst


def compare_scores(name, theirs, ours, items):
    lines = []
    for metric in ("perplexity", "acc", "acc_norm", "acc_bytes"):
        if f"{metric},none" not in theirs:
            assert metric not in ours, (name, metric)
            continue
        pairs = [(theirs[f"{metric},none"], ours[metric]),
                 (theirs[f"{metric}_stderr,none"], ours[f"{metric}_stderr"])]
        for which, (a, b) in zip(("value", "stderr"), pairs):
            if a == "N/A":
                assert b is None, (name, metric, b)
                continue
            # A perplexity carries the differences of the log-likelihoods; an accuracy none.
            bound = 2 * TOLERANCE * abs(a) if metric == "perplexity" else 1e-12
            assert abs(a - b) <= bound, (name, metric, which, a, b)
        lines.append(f"{metric} {ours[metric]:.6g} +- {ours[f'{metric}_stderr']}")
        if metric == "perplexity" and len(items) > 1:  # the bootstrap itself, over our numbers
            values = [item["log_likelihoods"][0] for item in items]
            error = metrics.bootstrap_stderr(metrics.perplexity, values, 100000)
            assert abs(error - ours["perplexity_stderr"]) <= 1e-9 * error, (name, error, ours)
    return ", ".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("data")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--tasks", default=",".join(YAMLS))
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--mixer", default="mamba", choices=["mamba", "mamba2"])
    parser.add_argument("--model", help="a model folder instead of a random model")
    parser.add_argument("--max-length", type=int, default=2048)
    args = parser.parse_args()
    for library in ("lm_eval", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    names = args.tasks.split(",")
    with tempfile.TemporaryDirectory() as root:
        model = args.model or f"{root}/model"
        if not args.model:
            make_model(model, args.tokenizer, args.mixer)
        os.makedirs(f"{root}/data")
        rows = {name: read_rows(args.data, name)[:args.limit] for name in names}
        harness = HarnessModel(model, args.max_length)
        if "lambada_openai" in rows:
            rows["lambada_openai"] = with_greedy_answers(rows["lambada_openai"], harness)
        for name in names:
            with open(f"{root}/data/{name}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows[name])
        result = subprocess.run(
            [args.program, "eval", "tasks", "-m", model, "--tasks", args.tasks, "--data",
             f"{root}/data", "--output", f"{root}/items", "--json", "--max-length",
             str(args.max_length)], stdout=subprocess.PIPE, check=True)
        ours = json.loads(result.stdout)["results"]
        with open(f"{root}/items", encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
        for name in names:
            answer = evaluator.evaluate(
                harness, {name: harness_task(name, rows[name])}, bootstrap_iters=100000,
                log_samples=True)
            mine = [item for item in items if item["task"] == name]
            worst = compare_items(name, answer["samples"][name], mine)
            scores = compare_scores(name, answer["results"][name], ours[name], mine)
            print(f"{name}: {len(mine)} items, log-likelihoods within {worst:.2g}; {scores}",
                  flush=True)
    print(f"equal to lm_eval {metadata.version('lm_eval')}")


if __name__ == "__main__":
    main()
