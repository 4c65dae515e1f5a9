#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mamba-cpp beside its rivals on this machine's CPU: the same shapes, the same threads, pinned, the
programs in turn.

    cmake --preset release && cmake --build --preset release
    pip install numpy gguf                       # and torch, mambapy, transformers for those rivals
    benchmarks/compare_cpu.py [--rounds 5] [-o results.json] [--svg chart.svg]

llama.cpp is built once from the PyPI package llama-cpp-python (benchmarks/rivals/build_llama.sh).
Every figure of a round is a process of its own; a ratio is that of the two processes of one round,
ours first in one round and second in the next. Printed are the median ratio and its range. What one
side cannot do stands in the table as missing, with the reason.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
try:
    from rivals import chart, engines, rows as common  # noqa: E402
except ModuleNotFoundError as missing:
    if not {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(f"compare_cpu.py: expected the Python package {missing.name}, found none; "
                 "pip install numpy gguf")

VARIANTS = ("mamba1", "mamba2")
SIZES = ("130m", "370m", "790m")
TYPES = ("f32", "bf16", "8bit", "4bit")
TESTS = ("prefill", "decode", "batch", "load", "memory", "train")
RIVALS = ("llama.cpp", "mamba.c", "mamba.py", "transformers")


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "mamba-cpp" / "rivals"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(HERE.parent / "build" / "release" / "mamba-cpp"))
    parser.add_argument("--folder", type=pathlib.Path, default=cache_folder(),
                        help="rivals and models; default %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default=SIZES[0],
                        help="of the models; default %(default)s")
    parser.add_argument("--repetitions", type=int, default=3, help="inside of each process")
    for name, words in (("variants", VARIANTS), ("types", TYPES), ("tests", TESTS)):
        parser.add_argument(f"--{name}", default=",".join(words), help="default %(default)s")
    parser.add_argument("--rivals", default="llama.cpp,mamba.c,mamba.py",
                        help=f"of {','.join(RIVALS)}; default %(default)s")
    parser.add_argument("--dtype-8bit", default="q8_0", help="ours, against the rival's Q8_0")
    parser.add_argument("--dtype-4bit", default="q4_0", help="ours, against the rival's Q4_0")
    parser.add_argument("--mamba-c", metavar="COMMAND",
                        help="a command line that runs mamba.c on a 130m model and prints tok/s")
    parser.add_argument("--wait-idle", type=float, default=0, metavar="SECONDS",
                        help="before each process, wait so long for other work to end")
    parser.add_argument("--max-others", type=float, default=float("inf"), metavar="CPUS",
                        help="leave out rounds of a row in which other work took more")
    parser.add_argument("-o", "--output", type=pathlib.Path, help="JSON of all samples")
    parser.add_argument("--svg", type=pathlib.Path, help="bars of all ratios")
    parser.add_argument("--draw", type=pathlib.Path, metavar="JSON",
                        help="only draw the --svg of an earlier run")
    args = parser.parse_args()
    for name, words in (("variants", VARIANTS), ("types", TYPES), ("tests", TESTS),
                        ("rivals", RIVALS)):
        chosen = getattr(args, name).split(",")
        unknown = [word for word in chosen if word not in words]
        if unknown:
            parser.error(f"--{name}: expected words of {', '.join(words)}, got '{unknown[0]}'")
        setattr(args, name, chosen)
    for name in ("threads", "rounds", "repetitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(args, name)}")
    if args.draw is None and not os.access(args.binary, os.X_OK):
        parser.error(f"--binary: expected the program, got '{args.binary}'; build it first")
    return args


def installed(module):
    return importlib.util.find_spec(module) is not None


def make_rows(args, ours):
    """What is to be compared: (test, variant, type, rival), and why a row is missing."""
    rows = []

    def add(test, variant, kind, rival, missing=None):
        our_type = {"8bit": args.dtype_8bit, "4bit": args.dtype_4bit}.get(kind, kind)
        if missing is None and our_type not in ours.dtypes:
            missing = f"mamba-cpp has no --dtype {our_type} yet"
        rows.append(engines.describe(
            {"test": test, "variant": variant, "type": kind, "rival": rival, "ours_type": our_type,
             "missing": missing, "ours": [], "theirs": [], "others": []}))

    for variant in args.variants:
        for test in args.tests:
            if test == "train":
                continue
            for kind in args.types:
                if "llama.cpp" in args.rivals:
                    add(test, variant, kind, "llama.cpp")
                if kind == "f32" and variant == "mamba1" and test == "decode" \
                        and "mamba.c" in args.rivals:
                    add(test, variant, kind, "mamba.c",
                        None if args.mamba_c else "no --mamba-c COMMAND was given")
                for rival, module in (("mamba.py", "mambapy"), ("transformers", "transformers")):
                    if rival not in args.rivals or kind not in ("f32", "bf16") \
                            or test in ("load", "memory"):
                        continue
                    if rival == "mamba.py" and (kind != "f32" or variant != "mamba1"):
                        continue
                    add(test, variant, kind, rival,
                        None if installed(module) else f"{module} is not installed here")
    if "train" in args.tests and "mamba.py" in args.rivals:
        for shape in ("T1", "T2"):
            for variant in args.variants:
                for kind in args.types:
                    if kind in ("f32", "bf16"):
                        add(f"train {shape}", variant, kind, "mamba.py",
                            None if installed("mambapy") else "mambapy is not installed here")
    return rows


def measure(args, rows, ours, rivals):
    """Fills in the samples; rounds of a row with much other work are left out."""
    def figure(row, side, number):
        return (ours if side == "ours" else rivals[row["rival"]]).figure(row)

    def done(row, number, samples):
        others = max(ours.others, rivals[row["rival"]].others)
        counts = others <= args.max_others
        if counts:
            row["others"].append(others)
        print(f"round {number + 1}/{args.rounds} {row['label']:46s} "
              f"{samples['ours']:10.1f} {samples['theirs']:10.1f} "
              f"(others: {others:.2f} CPUs{'' if counts else '; left out'})", file=sys.stderr,
              flush=True)
        return counts

    common.measure(rows, args.rounds, figure, done)


def print_table(rows):
    print(f"{'':46s} {'ours':>10s} {'rival':>10s} {'unit':6s} {'ratio':>7s}  (range), other work")
    for row in rows:
        result = common.summary(row)
        if result is None:
            print(f"{row['label']:46s} missing: {row['missing'] or 'no round counts'}")
            continue
        print(f"{row['label']:46s} {result['ours']:10.1f} {result['theirs']:10.1f} "
              f"{row['unit']:6s} {result['ratio']:6.2f}x  "
              f"({result['low']:.2f} to {result['high']:.2f}), {statistics.median(row['others']):.2f} CPUs")


def main():
    args = parse_arguments()
    if args.draw:
        results = json.loads(args.draw.read_text())
        results["rows"] = [engines.describe(row) for row in results["rows"]]
        common.write_atomically(args.svg, chart.draw(results))
        return 0
    environment = engines.pinned_environment(args.threads)
    ours = engines.Ours(args, environment)
    rivals = {name: engines.RIVALS[name](args, environment) for name in args.rivals}
    rows = make_rows(args, ours)
    ours.prepare([row for row in rows if not row["missing"]])
    for name, rival in rivals.items():
        wanted = [row for row in rows if row["rival"] == name and not row["missing"]]
        if wanted:
            rival.prepare(wanted)
    try:
        measure(args, rows, ours, rivals)
    except KeyboardInterrupt:
        print("interrupted: the rounds that were finished count", file=sys.stderr)
    print_table(rows)
    results = {"cpu": engines.cpu_name(), "threads": args.threads, "rounds": args.rounds,
               "version": ours.version, "rows": [dict(row, summary=common.summary(row))
                                                 for row in rows]}
    if args.output:
        common.write_atomically(args.output, json.dumps(results, indent=1))
    if args.svg:
        common.write_atomically(args.svg, chart.draw(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
