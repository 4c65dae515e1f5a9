#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains with the program, kills it (SIGKILL) at random times, resumes, and compares.

After every kill each checkpoint in the output folder must be whole (sizes as recorded), and the run
that was killed must end in the same bytes as one that was not. Also checks Ctrl-C and SIGTERM.

    kill_resume.py PROGRAM [--kills N] [--steps N] [--seed N] [--all]
"""
import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

TEXT = "the model reads one token and keeps a state. it writes the next word. " * 400


def command(program, folder, out, steps, options):
    return [program, "train", "--model-config", "tiny", "--data", str(folder / "text.txt"),
            "--valid", str(folder / "valid.txt"), "--output-dir", str(folder / out),
            "--max-steps", str(steps), "--batch-size", "2", "--seq-len", "32",
            "--warmup-steps", "5", "--eval-steps", "10",
            "--eval-batches", "1", "--logging-steps", "1",
            "--save-total-limit", "2", "--seed", "7"] + options


def checkpoints(folder):
    return sorted(p for p in folder.glob("checkpoint-*") if p.is_dir())


def check_whole(folder):
    """Every checkpoint that is visible has all its files in their recorded sizes."""
    for checkpoint in checkpoints(folder):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        for name, facts in state["files"].items():
            size = (checkpoint / name).stat().st_size
            assert size == facts["bytes"], f"{checkpoint / name}: {size} of {facts['bytes']} bytes"


def run_whole(args):
    start = time.monotonic()
    subprocess.run(args, check=True, capture_output=True)
    return time.monotonic() - start


def with_resume(args, out):
    """Resumes once there is a checkpoint; a run killed before its first one starts again."""
    return args + (["--resume"] if checkpoints(out) else [])


def run_killed(args, out, kills, seconds, rng):
    """Kills the run until `kills` kills have hit a live process, then lets it end."""
    newest = 0
    hits = 0
    while hits < kills:
        process = subprocess.Popen(with_resume(args, out), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        try:
            process.wait(rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            hits += 1
        errors = process.stderr.read().decode()
        assert process.returncode in (0, -signal.SIGKILL), errors
        assert "damaged" not in errors, errors
        check_whole(out)
        steps = [int(p.name.split("-")[1]) for p in checkpoints(out)]
        assert not steps or steps[-1] >= newest, f"checkpoint {newest} was lost: {steps}"
        newest = steps[-1] if steps else newest
    subprocess.run(with_resume(args, out), check=True, capture_output=True)
    assert not list(out.glob(".*mamba-tmp*")), "temporary files were left"


def timeless(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")}
            for line in lines]


def compare(whole, killed):
    names = ["model.safetensors", "config.json"]
    last = checkpoints(whole)[-1].name
    names += [f"{last}/model.safetensors", f"{last}/optimizer.safetensors"]
    for name in names:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), f"{name} differs"
    assert timeless(whole / "metrics.jsonl") == timeless(killed / "metrics.jsonl"), "metrics differ"


def check_signal(args, out, number, whole):
    """A polite signal saves, says how to go on, and ends with 128 + its number."""
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not checkpoints(out) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate()
    if process.returncode == 0:
        return  # it was faster than the signal
    assert process.returncode == 128 + number, f"{process.returncode}: {errors}"
    assert "go on with: mamba-cpp train" in errors and "--resume" in errors, errors
    check_whole(out)
    subprocess.run(args + ["--resume"], check=True, capture_output=True)
    compare(whole, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=2, help="of each variant")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="f32 and bf16, each with 1 and 2 threads")
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    # With a checkpoint at every step, most kills hit while one is written or an old one removed.
    variants = [["--threads", "2", "--save-steps", "1", "--gradient-accumulation-steps", "2"],
                ["--threads", "1", "--bf16", "--save-steps", "4",
                 "--gradient-accumulation-steps", "3"]]
    if flags.all:
        variants += [["--threads", "1", "--save-steps", "4"],
                     ["--threads", "2", "--bf16", "--save-steps", "1"]]
    os.environ["OMP_WAIT_POLICY"] = "passive"
    with tempfile.TemporaryDirectory(prefix="mamba-kill-") as name:
        folder = pathlib.Path(name)
        (folder / "text.txt").write_text(TEXT)
        (folder / "valid.txt").write_text(TEXT[100:600])
        for i, options in enumerate(variants):
            whole = command(flags.program, folder, f"whole{i}", flags.steps, options)
            killed = command(flags.program, folder, f"killed{i}", flags.steps, options)
            seconds = run_whole(whole)
            run_killed(killed, folder / f"killed{i}", flags.kills, seconds, rng)
            compare(folder / f"whole{i}", folder / f"killed{i}")
            print(" ".join(options), f"{flags.kills} kills, {seconds:.2f} s a run: equal")
        for number in (signal.SIGINT, signal.SIGTERM):
            out = f"signal{number}"
            check_signal(command(flags.program, folder, out, flags.steps, variants[0]),
                         folder / out, number, folder / "whole0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
