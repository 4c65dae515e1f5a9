#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Speed of tokenisation on one thread, beside the PyPI package tokenizers: both encode the same text
in turn, several times, and their ids are compared.

    benchmarks/compare_tokenizer.py PROGRAM TOKENIZER.json TEXT [--bytes N] [--rounds R]

Prints MB/s of CPU time (which other work on the machine does not change) and of wall time: the best of
the rounds. The package gets the text by lines of `encode_batch`, where it is fastest, and as one text of
1 MB; here it is one stream, and the time includes starting the program, loading the file, and writing
the ids.
"""
import argparse
import array
import os
import pathlib
import resource
import subprocess
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers  # noqa: E402  after the number of threads is set


def here(program, tokenizer, text_path, out):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([program, "tokenize", "--tokenizer", tokenizer, "-f", text_path, "--out", out,
                    "--dtype", "uint32"], check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime), wall


def there(encode, text):
    cpu, wall = time.process_time(), time.perf_counter()
    ids = encode(text)
    return ids, time.process_time() - cpu, time.perf_counter() - wall


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("program")
    parser.add_argument("tokenizer")
    parser.add_argument("text")
    parser.add_argument("--bytes", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    raw = pathlib.Path(options.text).read_bytes()[:options.bytes]
    raw = raw[:raw.rindex(b"\n") + 1]
    text = raw.decode()
    package = tokenizers.Tokenizer.from_file(options.tokenizer)
    lines = text.splitlines(keepends=True)
    head = raw[:1_000_000].decode(errors="ignore")

    def by_lines(_):
        return [i for e in package.encode_batch(lines, add_special_tokens=False) for i in e.ids]

    def at_once(_):
        return package.encode(head, add_special_tokens=False).ids

    best = {}
    with tempfile.TemporaryDirectory() as folder:
        text_path, head_path = os.path.join(folder, "text"), os.path.join(folder, "head")
        out = os.path.join(folder, "ids.bin")
        pathlib.Path(text_path).write_bytes(raw)
        pathlib.Path(head_path).write_bytes(head.encode())
        for _ in range(options.rounds):
            for name, count, times in (
                    ("tokenizers, lines", len(raw), there(by_lines, None)[1:]),
                    ("mamba-cpp, stream", len(raw), here(options.program, options.tokenizer,
                                                         text_path, out)),
                    ("tokenizers, 1 MB text", len(head.encode()), there(at_once, None)[1:])):
                speeds = [count / t / 1e6 for t in times]
                best[name] = [max(a, b) for a, b in zip(best.get(name, [0, 0]), speeds)]
        here(options.program, options.tokenizer, head_path, out)
        same = array.array("I", pathlib.Path(out).read_bytes()) == array.array("I", at_once(None))
    print(f"| {len(raw) / 1e6:.1f} MB, one thread | MB/s of CPU time | MB/s |\n|---|---|---|")
    for name, (cpu, wall) in best.items():
        print(f"| {name} | {cpu:.2f} | {wall:.2f} |")
    print(f"\nids of the first megabyte: {'equal' if same else 'DIFFERENT'}; tokenizers "
          f"{tokenizers.__version__}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
