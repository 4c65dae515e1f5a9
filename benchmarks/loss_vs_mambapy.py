#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the same model on the same bytes in the same order here and in mamba.py; compares losses.

    pip install torch mambapy safetensors
    python3 benchmarks/loss_vs_mambapy.py --binary build/release/mamba-cpp --data wikitext-2/train.txt

Exits 1 if the losses of any tenth step differ by more than 1 %.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import torch

from mambapy_common import LanguageModel, write_folder


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = LanguageModel(args.d_model, args.layers)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        write_folder(model, work / "init")
        subprocess.run([
            args.binary, "train", "--init-from", work / "init", "--data", args.data,
            "--tokenizer", "bytes", "--data-order", "sequential", "--output-dir", work / "run",
            "--max-steps", str(args.steps), "--batch-size", str(args.batch_size),
            "--seq-len", str(args.seq_len), "--learning-rate", str(args.learning_rate),
            "--lr-scheduler-type", "constant", "--warmup-steps", "0", "--weight-decay", "0",
            "--adam-beta1", "0.9", "--adam-beta2", "0.999", "--adam-epsilon", "1e-8",
            "--max-grad-norm", "0", "--logging-steps", "1", "--threads", str(args.threads)],
            check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(l) for l in (work / "run/metrics.jsonl").read_text().splitlines()]
    ours = {l["step"]: l["loss"] for l in lines if "loss" in l}
    data = torch.frombuffer(bytearray(pathlib.Path(args.data).read_bytes()), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    worst = 0.0
    for step in range(args.steps):
        rows = [step * args.batch_size + b for b in range(args.batch_size)]
        x = torch.stack([data[r * args.seq_len:(r + 1) * args.seq_len + 1] for r in rows]).long()
        logits = model(x[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 256), x[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            difference = abs(ours[step + 1] - loss.item()) / loss.item()
            worst = max(worst, difference)
            print(f"step {step + 1}: mamba.py {loss.item():.5f}, ours {ours[step + 1]:.5f}, "
                  f"{100 * difference:.4f} %", flush=True)
    print(f"largest difference {100 * worst:.4f} %")
    return 1 if worst > 0.01 else 0


if __name__ == "__main__":
    raise SystemExit(main())
