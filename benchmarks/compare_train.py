#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Training speed and memory beside mamba.py on this machine, the two programs run in turn.

    pip install torch mambapy safetensors
    python3 benchmarks/compare_train.py --binary build/release/mamba-cpp [--rounds 3] [-o table.json]

T1: d_model 256, 4 layers, vocab 256, batch 8 x 256.  T2: d_model 768, 4 layers, batch 2 x 512. f32.
Every run is a process of its own, pinned, the programs in turn; the figure is the median over rounds of
the median step of each.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

SHAPES = {"T1": (256, 4, 8, 256), "T2": (768, 4, 2, 512)}
STEPS_OURS, STEPS_RIVAL = 12, 4


def rival(shape, threads):
    """One process of mamba.py: median step and peak memory, as `bench train -o json` has them."""
    import resource
    import time

    import torch

    from mambapy_common import LanguageModel
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    d_model, layers, batch, length = SHAPES[shape]
    model = LanguageModel(d_model, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randint(0, 256, (batch, length + 1))
    seconds = []
    for _ in range(STEPS_RIVAL + 1):
        start = time.perf_counter()
        logits = model(x[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 256), x[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step": {"median_seconds": statistics.median(seconds[1:])},
                      "peak_rss_bytes": peak}))


def config(shape, variant):
    d_model, layers, _, _ = SHAPES[shape]
    common = {"d_model": d_model, "n_layer": layers, "vocab_size": 256, "rms_norm": True,
              "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
    return dict(common, ssm_cfg={"layer": "Mamba2"} if variant == "mamba2" else {})


def ours(binary, shape, variant, threads, dtype, work, environment):
    _, _, batch, length = SHAPES[shape]
    path = pathlib.Path(work) / f"{shape}-{variant}.json"
    path.write_text(json.dumps(config(shape, variant)))
    out = subprocess.run(
        [binary, "bench", "train", path, "--batch-size", str(batch), "--seq-len", str(length),
         "--steps", str(STEPS_OURS), "--threads", str(threads), "--dtype", dtype, "-o", "json"],
        check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rival", choices=SHAPES, help="internal: one process of mamba.py")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    if args.rival:
        rival(args.rival, args.threads)
        return 0
    if not args.binary:
        parser.error("--binary is required")
    rows = []
    environment = dict(os.environ, OMP_PROC_BIND="true", OMP_PLACES="cores")
    with tempfile.TemporaryDirectory() as work:
        for shape, (_, _, batch, length) in SHAPES.items():
            results = {}
            for _ in range(args.rounds):
                text = subprocess.run(
                    [sys.executable, __file__, "--rival", shape, "--threads", str(args.threads)],
                    check=True, capture_output=True, text=True, env=environment).stdout
                results.setdefault("mamba.py f32", []).append(json.loads(text))
                for variant in ("mamba1", "mamba2"):
                    for dtype in ("f32", "bf16"):
                        results.setdefault(f"ours {variant} {dtype}", []).append(
                            ours(args.binary, shape, variant, args.threads, dtype, work,
                                 environment))
            base = None
            for name, runs in results.items():
                seconds = [run["step"]["median_seconds"] for run in runs]
                rate = batch * length / statistics.median(seconds)
                peak = max(run["peak_rss_bytes"] for run in runs)
                base = base or (rate, peak)
                rows.append({"shape": shape, "program": name, "tokens_per_second": rate,
                             "ratio": rate / base[0], "peak_rss": peak,
                             "memory_ratio": peak / base[1],
                             "spread": [batch * length / max(seconds), batch * length / min(seconds)]})
                print(f"{shape} {name:18s} {rate:9.0f} tok/s ({rate / base[0]:6.2f}x)  "
                      f"{peak / 2**20:7.0f} MiB ({peak / base[1]:.2f}x)", flush=True)
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
