# SPDX-License-Identifier: Apache-2.0
"""The programs of compare_cpu.py: each measures one row, in a process of its own."""

import functools
import importlib.util
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading

from . import models

HERE = pathlib.Path(__file__).resolve().parent
PROMPT, GENERATED, BATCH, BATCH_STEPS, BATCH_DEPTH = 512, 64, 8, 32, 16
LLAMA_TYPES = {"f32": "f32", "bf16": "bf16", "8bit": "q8_0", "4bit": "q4_0"}


class Failed(Exception):
    """Why a program gave no figure."""


def label(row):
    name = {"prefill": f"prefill {PROMPT}", "decode": "decode B1",
            "batch": f"decode B{BATCH} in all"}.get(row["test"], row["test"])
    return f"{row['variant']} {name} {row['type']}, {row['rival']}"


def unit(row):
    return {"load": "ms", "memory": "MiB"}.get(row["test"], "tok/s")


def less_is_better(row):
    return row["test"] in ("load", "memory")


def summary(row):
    """Medians of both sides and of the ratios of each round, more than 1 being ours; or None."""
    pairs = list(zip(row["ours"], row["theirs"]))
    if not pairs or row["missing"]:
        return None
    ratios = [theirs / ours if less_is_better(row) else ours / theirs for ours, theirs in pairs]
    return {"ours": statistics.median(row["ours"]), "theirs": statistics.median(row["theirs"]),
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def cpu_name():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*:\s*(.*)", text)
    return found.group(1) if found else "unknown CPU"


def one_cpu_of_each_core(count):
    """The first CPU of `count` physical cores that this process may use."""
    chosen, seen = [], set()
    for cpu in sorted(os.sched_getaffinity(0)):
        topology = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            core = tuple((topology / name).read_text() for name in ("physical_package_id", "core_id"))
        except OSError:
            core = (cpu,)
        if core not in seen:
            seen.add(core)
            chosen.append(cpu)
    if len(chosen) < count:
        raise SystemExit(f"--threads: expected at most the {len(chosen)} physical cores, got {count}")
    return chosen[:count]


def pinned_environment(threads):
    """Variables for OpenMP; this process and what it starts are kept to the cores as well."""
    os.sched_setaffinity(0, one_cpu_of_each_core(threads))
    return dict(os.environ, OMP_PROC_BIND="true", OMP_PLACES="cores", OMP_NUM_THREADS=str(threads))


def run(command, environment):
    """Standard output, standard error and the peak of resident bytes of a process."""
    try:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env=environment)
    except OSError as error:
        raise Failed(f"{command[0]}: {error}") from error
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    out = process.stdout.read()
    reader.join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = errors[0].strip().splitlines() or ["no message"]
        raise Failed(f"{pathlib.Path(command[0]).name} ended with {process.returncode}: {lines[-1]}")
    return out, errors[0], usage.ru_maxrss * 1024


class Engine:
    def __init__(self, args, environment):
        self.args, self.environment = args, environment
        self.folder = args.folder / "models"

    def prepare(self, rows):
        """Builds what the rows need; here nothing."""

    def model(self, variant):
        return models.write_folder(variant, self.folder / f"{variant}-130m")


class Ours(Engine):
    def __init__(self, args, environment):
        super().__init__(args, environment)
        out, _, _ = run([args.binary, "bench", "--help-all"], environment)
        listed = re.search(r"--dtype ([a-z0-9_|]+)", out)
        self.dtypes = listed.group(1).split("|") if listed else []
        self.version = run([args.binary, "--version"], environment)[0].strip()

    def bench(self, row, *arguments):
        out, _, _ = run([self.args.binary, "bench", "-m", self.model(row["variant"]), "--dtype",
                         row["ours_type"], "-t", self.args.threads, "-o", "json", *arguments],
                        self.environment)
        return json.loads(out)[0]

    def measure(self, row):
        test, many = row["test"], ("-r", self.args.repetitions)
        if test.startswith("train"):
            return self.train(row)
        if test == "prefill":
            return self.rate(self.bench(row, "-p", PROMPT, "-n", 0, *many))
        if test == "decode":
            return self.rate(self.bench(row, "-p", 0, "-n", GENERATED, *many))
        if test == "batch":
            return self.rate(self.bench(row, "-p", 0, "-n", BATCH_STEPS, "-d", BATCH_DEPTH,
                                        "--batch-sizes", BATCH, *many))
        one = self.bench(row, "-p", 0, "-n", 16, "-r", 1, "--no-warmup")
        return one["load_ns"] * 1e-6 if test == "load" else one["peak_rss"] / 2 ** 20

    @staticmethod
    def rate(result):
        return statistics.median(result["samples_ts"])

    def train(self, row):
        import compare_train
        shape = row["test"].split()[1]
        with_work = self.folder.parent / "train"
        with_work.mkdir(parents=True, exist_ok=True)
        result = compare_train.ours(self.args.binary, shape, row["variant"], self.args.threads,
                                    row["ours_type"], with_work, self.environment)
        _, _, batch, length = compare_train.SHAPES[shape]
        return batch * length / result["step"]["median_seconds"]


class Llama(Engine):
    def prepare(self, rows):
        subprocess.run([HERE / "build_llama.sh", self.args.folder], check=True,
                       stdout=sys.stderr, env=dict(os.environ, PYTHON=sys.executable))
        for variant, kind in sorted({(row["variant"], row["type"]) for row in rows}):
            self.file(variant, kind)

    def program(self, name):
        return self.args.folder / "llama" / "bin" / name

    @functools.lru_cache(maxsize=None)  # noqa: B019  as long as the engine, which lives to the end
    def file(self, variant, kind):
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            f32 = self.write(variant, self.folder / f"{variant}-130m-f32.gguf")
            return models.quantized(self.program("llama-quantize").parent, f32, LLAMA_TYPES[kind])
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"no GGUF file for llama.cpp: {error}") from error

    def write(self, variant, path):
        if importlib.util.find_spec("gguf") is None and not path.exists():
            raise Failed("the python package gguf is not installed here")
        return models.write_gguf(variant, path)

    def measure(self, row):
        path, threads = self.file(row["variant"], row["type"]), self.args.threads
        test = row["test"]
        if test in ("prefill", "decode"):
            sizes = ("-p", PROMPT, "-n", 0) if test == "prefill" else ("-p", 0, "-n", GENERATED)
            out, _, _ = run([self.program("llama-bench"), "-m", path, "-t", threads, *sizes, "-r",
                             self.args.repetitions, "-o", "json"], self.environment)
            return statistics.median(json.loads(out)[0]["samples_ts"])
        if test == "batch":
            rates = []
            for _ in range(self.args.repetitions):
                out, _, _ = run([self.program("llama-batched-bench"), "-m", path, "-c", 2048, "-b",
                                 2048, "-ub", 512, "-npp", BATCH_DEPTH, "-ntg", BATCH_STEPS, "-npl",
                                 BATCH, "-t", threads, "-tb", threads, "--output-format", "jsonl"],
                                self.environment)
                line = next(text for text in out.splitlines() if text.startswith("{"))
                rates.append(json.loads(line)["speed_tg"])
            return statistics.median(rates)
        _, errors, peak = run([self.program("llama-completion"), "-m", path, "-p", "abcd", "-n", 16,
                               "-no-cnv", "-t", threads, "-c", 512, "--ignore-eos", "--no-warmup"],
                              self.environment)
        if test == "memory":
            return peak / 2 ** 20
        found = re.search(r"load time =\s*([\d.]+)", errors)
        if not found:
            raise Failed("llama-completion printed no load time")
        return float(found.group(1))


class MambaC(Engine):
    def measure(self, row):
        out, errors, _ = run(self.args.mamba_c.split(), self.environment)
        found = re.findall(r"tok/s:?\s*([\d.]+)|([\d.]+)\s*tok/s", out + errors)
        if not found:
            raise Failed("the command of --mamba-c printed no 'tok/s'")
        return float(found[-1][0] or found[-1][1])


class Torch(Engine):
    name = ""

    def measure(self, row):
        dtype = {"f32": "float32", "bf16": "bfloat16"}[row["type"]]
        out, _, _ = run([sys.executable, HERE / "torch_rival.py", self.name,
                         self.model(row["variant"]), dtype, self.args.threads, row["test"]],
                        self.environment)
        return json.loads(out)["tokens_per_s"]


class MambaPy(Torch):
    name = "mamba.py"

    def measure(self, row):
        if not row["test"].startswith("train"):
            return super().measure(row)
        import compare_train
        shape = row["test"].split()[1]
        out, _, _ = run([sys.executable, HERE.parent / "compare_train.py", "--rival", shape,
                         "--threads", self.args.threads], self.environment)
        _, _, batch, length = compare_train.SHAPES[shape]
        return batch * length / json.loads(out)["step"]["median_seconds"]


class Transformers(Torch):
    name = "transformers"


RIVALS = {"llama.cpp": Llama, "mamba.c": MambaC, "mamba.py": MambaPy, "transformers": Transformers}
