#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mamba-cpp beside mamba_ssm, causal-conv1d and transformers on one NVIDIA GPU: the same sizes and types,
the programs in turn.

    cmake --preset release && cmake --build --preset release --target mamba-cpp sequence_cuda
    benchmarks/compare_gpu.py [--quick] [--large] [-o results.json] [--svg chart.svg]

--python names the Python that has torch and the rivals; those that it lacks are missing, with the
reason. A rival counts once its logits and ours agree on a small model that we saved. A ratio is that of
the figures of one round, ours first in one and second in the next; printed are medians, with the range
of the ratios.
"""

import argparse
import json
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from rivals import chart, equal_models, gpu_engines, rows as common  # noqa: E402

RIVALS = ("mamba_ssm", "causal-conv1d", "transformers")
TESTS = ("prefill", "decode", "train", "kernels")
MODELS = {False: "mamba-130m,mamba2-130m", True: "mamba-130m,mamba2-130m,mamba-2.8b,mamba2-2.7b"}
TORCH_TYPES = {"f32": "float32", "bf16": "bfloat16"}
# Shapes of the kernels' rows, as `sequence_cuda time` has them; conv1d is f32, as `bench kernel` is.
KERNELS = (
    ("scan", "bf16", {"B": 8, "D": 2048, "N": 16, "L": 2048}),
    ("scan", "bf16", {"B": 1, "D": 5120, "N": 16, "L": 16384}),
    ("scan", "bf16", {"B": 1, "D": 2048, "N": 16, "L": 65536}),
    ("ssd", "bf16", {"B": 8, "L": 2048, "H": 32, "P": 64, "N": 128}),
    ("ssd", "bf16", {"B": 1, "L": 16384, "H": 80, "P": 64, "N": 128}),
    ("conv1d", "f32", {"B": 8, "L": 2048, "C": 1536, "K": 4}),
)
DECODE_PROMPT = 16  # ours, where a process decodes alone
UNITS = {"prefill": "ms", "decode": "tok/s", "train": "tok/s", "train memory": "GiB", "kernel": "ms"}
QUICK = {"prompt_lengths": "1024", "batch_sizes": "1,64", "rounds": 2, "seconds": 0.3,
         "train_steps": 5, "max_call_seconds": 5.0, "tests": "prefill,decode,train",
         "time_limit": 230.0}
FULL = {"prompt_lengths": "1024,4096", "batch_sizes": "1,8,64", "rounds": 5, "seconds": 0.5,
        "train_steps": 10, "max_call_seconds": 60.0, "tests": ",".join(TESTS), "time_limit": 0.0}
LARGE_PROMPTS = "4096,16384"  # of the models that --large adds
NO_DEVICE, NO_TORCH, INTERRUPTED = 4, 3, 130


class Ended(Exception):
    """The time of --time-limit is over."""


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    release = HERE.parent / "build" / "release"
    parser.add_argument("--binary", default=str(release / "mamba-cpp"))
    parser.add_argument("--sequence-cuda", default=str(release / "benchmarks" / "sequence_cuda"),
                        help="the program of our kernels' times; default %(default)s")
    parser.add_argument("--python", default=sys.executable, help="has the rivals; default this one")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N; cpu tries the programs out")
    parser.add_argument("--rivals", default=",".join(RIVALS), help="default %(default)s")
    parser.add_argument("--tests", help=f"default {FULL['tests']}")
    parser.add_argument("--models", help="presets or configurations, with commas between them; "
                        f"default {MODELS[False]}")
    parser.add_argument("--large", action="store_true",
                        help=f"mamba-2.8b and mamba2-2.7b too, with prompts of {LARGE_PROMPTS}")
    parser.add_argument("--dtype", choices=TORCH_TYPES, default="bf16")
    parser.add_argument("--prompt-lengths", help=f"default {FULL['prompt_lengths']}")
    parser.add_argument("--batch-sizes", help=f"of decode; default {FULL['batch_sizes']}")
    parser.add_argument("--train", default="8x2048", metavar="BxL", help="default %(default)s")
    parser.add_argument("--rounds", type=int, help=f"default {FULL['rounds']}")
    parser.add_argument("--seconds", type=float, help="of a figure of a round at least, warm-up "
                        f"excluded; default {FULL['seconds']}")
    parser.add_argument("--train-steps", type=int, help=f"ours; default {FULL['train_steps']}")
    parser.add_argument("--max-call-seconds", type=float, help="leave out rows of transformers without "
                        f"its kernels in which a call takes longer; default {FULL['max_call_seconds']}")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS",
                        help="begin no figure after this time; 0: none, the default")
    parser.add_argument("--quick", action="store_true",
                        help="fewer rows, rounds and seconds: under four minutes")
    parser.add_argument("--dry-run", action="store_true",
                        help="print what would be run; needs neither GPU nor rivals nor --binary")
    parser.add_argument("-o", "--output", type=pathlib.Path, help="JSON of all samples")
    parser.add_argument("--svg", type=pathlib.Path, help="bars of all ratios")
    args = parser.parse_args()
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.models = args.models or MODELS[args.large]
    check_arguments(parser, args)
    return args


def positive(parser, flag, text):
    if not text.isdecimal() or int(text) < 1:
        parser.error(f"{flag}: expected whole numbers from 1 up, got '{text}'")
    return int(text)


def check_arguments(parser, args):
    for name, words in (("rivals", RIVALS), ("tests", TESTS)):
        chosen = getattr(args, name).split(",")
        unknown = [word for word in chosen if word not in words]
        if unknown:
            parser.error(f"--{name}: expected words of {', '.join(words)}, got '{unknown[0]}'")
        setattr(args, name, chosen)
    for name in ("prompt_lengths", "batch_sizes"):
        flag = "--" + name.replace("_", "-")
        setattr(args, name, [positive(parser, flag, text) for text in getattr(args, name).split(",")])
    args.train = [positive(parser, "--train", text) for text in args.train.split("x")]
    if len(args.train) != 2:
        parser.error("--train: expected sequences x tokens as in 8x2048")
    for name in ("rounds", "train_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected 1 or more, got {getattr(args, name)}")
    number = args.device.removeprefix("cuda:")
    if args.device not in ("cpu", "cuda") and not (number != args.device and number.isdecimal()):
        parser.error(f"--device: expected cuda, cuda:N or cpu, got '{args.device}'")
    args.models = args.models.split(",")
    for path in (args.output, args.svg):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"expected a folder for '{path}', found none")
    if not args.dry_run and not os.access(args.binary, os.X_OK):
        parser.error(f"--binary: expected the program, got '{args.binary}'; build it first")
    # What a rival may take for one answer: its longest call in warm-up and samples, and compiling.
    args.answer_seconds = 300 + 5 * args.max_call_seconds
    if args.time_limit:
        args.answer_seconds = min(args.answer_seconds, max(60, args.time_limit))


# ---- rows ----

def add_row(rows, test, rival, label, kind, job, **more):
    rows.append({"test": test, "rival": rival, "type": kind, "job": job, "value": None,
                 "label": label, "unit": UNITS[test], "less_is_better": UNITS[test] != "tok/s",
                 "missing": None, "note": None, "ours": [], "theirs": [], **more})


def prompt_lengths(args, model):
    large = args.large and model in MODELS[True].split(",")[2:]
    return [int(length) for length in LARGE_PROMPTS.split(",")] if large else args.prompt_lengths


def model_rows(args, rows, model, rival):
    name = pathlib.Path(model).stem if model.endswith(".json") else model
    common_job = {"model": model, "dtype": TORCH_TYPES[args.dtype], "seconds": args.seconds,
                  "max_call_seconds": args.max_call_seconds}

    def add(test, words, value, job, **more):
        add_row(rows, test, rival, f"{name} {words} {args.dtype}", args.dtype,
                {**common_job, **job}, value=value, model=model, **more)
    lengths = prompt_lengths(args, model)
    if "prefill" in args.tests:
        for length in lengths:
            add("prefill", f"prefill {length:,}", "ms",
                {"kind": "prefill", "batch": 1, "tokens": length})
    if "decode" in args.tests:
        for batch in args.batch_sizes:
            shared = batch == 1 and "prefill" in args.tests
            add("decode", f"decode B{batch}", "tokens_per_s", {"kind": "decode", "batch": batch},
                prompt=lengths[0] if shared else DECODE_PROMPT)
    small = not args.large or model not in MODELS[True].split(",")[2:]
    if "train" in args.tests and small:
        batch, length = args.train
        job = {"kind": "train", "batch": batch, "length": length}
        add("train", f"training {batch}x{length}", "tokens_per_s", job)
        if args.device != "cpu":
            add("train memory", f"training {batch}x{length} memory", "gib", job)


def make_rows(args):
    rows = []
    for model in args.models:
        for rival in ("mamba_ssm", "transformers"):
            if rival in args.rivals:
                model_rows(args, rows, model, rival)
    if "kernels" in args.tests and args.device != "cpu":
        for kernel, kind, shape in KERNELS:
            rival = "causal-conv1d" if kernel == "conv1d" else "mamba_ssm"
            if rival not in args.rivals:
                continue
            sizes = " ".join(f"{name}{size}" for name, size in shape.items())
            for value, words in (("forward", "fwd"), ("both", "fwd+bwd")):
                add_row(rows, "kernel", rival, f"{kernel} {sizes} {words} {kind}", kind,
                        {"kind": "kernel", "kernel": kernel, "shape": shape,
                         "dtype": TORCH_TYPES[kind]}, value=value)
    return rows


def name_rivals(rows, plain):
    """The rival behind a row's name: transformers says that it runs without kernels."""
    for row in rows:
        rival = row["rival"] + (" without its kernels" if row["rival"] == "transformers" and plain else "")
        row["label"] += f", {rival}"


def mark_missing(rows, found):
    """Rows of rivals that this Python cannot import."""
    for row in rows:
        package = row["rival"].replace("-", "_")
        if "error" in found[package]:
            row["missing"] = f"{row['rival']} cannot be imported: {found[package]['error']}"


def add_sizes(args, rows):
    """What both sides must share: sizes and the number of parameters, by our program."""
    for model in args.models:
        if not any(row.get("model") == model for row in rows):
            continue
        try:
            sizes, parameters = gpu_engines.inspect(args, model)
        except common.Failed as error:
            raise SystemExit(f"compare_gpu.py: --models: {error}") from error
        for row in rows:
            if row.get("model") == model:
                row["job"].update(sizes=sizes, parameters=parameters)


def check_equal(args, rows, workers):
    """Refuses rows of models whose logits do not agree. Returns the differences found."""
    agreed = {}
    for row in rows:
        if row["missing"] or "sizes" not in row["job"]:
            continue
        key = f"{row['rival']} {row['job']['sizes']['mixer']}"
        if key not in agreed:
            try:
                agreed[key] = equal_models.check(args, workers[row["rival"]], key.split()[1])
                words = f"logits agree within {agreed[key]:.1e} of the largest"
            except common.Failed as error:
                words = agreed[key] = str(error)
            print(f"{key}: {words}", file=sys.stderr, flush=True)
        if isinstance(agreed[key], str):
            row["missing"] = agreed[key]
    return agreed


# ---- results ----

def number(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def markdown(results):
    lines = [f"{results['version']} on {results['device']}, {', '.join(results['rivals'])}; median of "
             f"{results['rounds']} rounds, more than 1x is ours", "",
             "| | ours | rival | | ratio | range |", "|---|---|---|---|---|---|"]
    for row in results["rows"]:
        result = row["summary"]
        if result is None:
            lines.append(f"| {row['label']} | | missing: {row['missing'] or 'no round'} | | | |")
            continue
        bold = "**" if result["ratio"] > 1 else ""
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"| {row['label']}{note} | {number(result['ours'])} | {number(result['theirs'])} | "
                     f"{row['unit']} | {bold}{result['ratio']:.2f}x{bold} | "
                     f"{result['low']:.2f} to {result['high']:.2f} |")
    return "\n".join(lines) + "\n"


def dry_run(args, rows):
    ours = gpu_engines.Ours(args)
    print(f"{len(rows)} rows, {args.rounds} rounds; rivals by {args.python} in gpu_worker.py")
    for row in rows:
        print(f"{row['label']}\n    ours:  {' '.join(map(str, ours.command(row)))}\n"
              f"    rival: {json.dumps(row['job'])}")


def measure(args, rows, ours, workers, began):
    def figure(row, side, number_of_round):
        if args.time_limit and time.monotonic() - began > args.time_limit:
            raise Ended
        return (ours if side == "ours" else workers[row["rival"]]).figure(row, number_of_round)

    def done(row, number_of_round, samples):
        print(f"round {number_of_round + 1}/{args.rounds} {row['label']}: {number(samples['ours'])} "
              f"{number(samples['theirs'])} {row['unit']}", file=sys.stderr, flush=True)
        return True
    try:
        common.measure(rows, args.rounds, figure, done)
    except Ended:
        print(f"--time-limit: the figures of {args.time_limit:g} s count", file=sys.stderr)
        for row in rows:
            if not row["theirs"]:
                row["missing"] = row["missing"] or f"not reached in --time-limit {args.time_limit:g}"


def available(args, found):
    """The device's name; ends the program, in one line, where nothing can be compared."""
    if "error" in found["torch"]:
        print(f"compare_gpu.py: expected torch in {args.python}, found none "
              f"({found['torch']['error']}); name another --python", file=sys.stderr)
        raise SystemExit(NO_TORCH)
    if args.device == "cpu":
        return "the CPU"
    if not found.get("device"):
        reason = found.get("device_error", "torch sees none")
        print(f"compare_gpu.py: expected an NVIDIA GPU for --device {args.device}, found none "
              f"({reason}); --device cpu tries the programs out", file=sys.stderr)
        raise SystemExit(NO_DEVICE)
    return found["device"]


def compare(args, rows, workers):
    began = time.monotonic()
    try:
        found = gpu_engines.probe(args)
    except common.Failed as error:
        print(f"compare_gpu.py: --python: {error}", file=sys.stderr)
        raise SystemExit(NO_TORCH) from error
    device = available(args, found)
    name_rivals(rows, plain="error" in found["mamba_ssm"] or "error" in found["causal_conv1d"])
    mark_missing(rows, found)
    add_sizes(args, rows)
    agreed = check_equal(args, rows, workers)
    ours = gpu_engines.Ours(args)
    measure(args, rows, ours, workers, began)
    rivals = [f"{name} {entry['version']}" for name, entry in found.items()
              if isinstance(entry, dict) and "version" in entry]
    version = gpu_engines.Result([args.binary, "--version"]).out.strip()
    return {"version": version, "device": device, "rivals": rivals, "rounds": args.rounds,
            "dtype": args.dtype, "logits": agreed,
            "rows": [dict(row, summary=common.summary(row)) for row in rows]}


def main():
    args = parse_arguments()
    rows = make_rows(args)
    if not rows:
        print("compare_gpu.py: no rows of these --tests, --rivals and --device", file=sys.stderr)
        return 2
    if args.dry_run:
        dry_run(args, rows)
        return 0
    workers = {name: gpu_engines.Worker(args, name) for name in args.rivals}
    try:
        results = compare(args, rows, workers)
        print(markdown(results), end="")
        if args.output:
            common.write_atomically(args.output, json.dumps(results, indent=1) + "\n")
        if args.svg:
            common.write_atomically(args.svg, chart.draw(results))
    except KeyboardInterrupt:
        print("compare_gpu.py: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    finally:
        for worker in workers.values():
            worker.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
