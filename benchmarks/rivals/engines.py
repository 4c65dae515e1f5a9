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

import compare_train

from . import models
from .processes import Result, wait_until_idle
from .rows import Failed

HERE = pathlib.Path(__file__).resolve().parent
PROMPT, GENERATED, BATCH, BATCH_STEPS, BATCH_DEPTH = 512, 64, 8, 32, 16
LLAMA_TYPES = {"f32": "f32", "bf16": "bf16", "8bit": "q8_0", "4bit": "q4_0"}


def label(row):
    name = {"prefill": f"prefill {PROMPT}", "decode": "decode B1",
            "batch": f"decode B{BATCH} in all", "load": "start to 1st token"}.get(row["test"], row["test"])
    return f"{row['variant']} {name} {row['type']}, {row['rival']}"


def unit(row):
    return {"load": "ms", "memory": "MiB"}.get(row["test"], "tok/s")


def describe(row):
    """Gives a row what rows.summary() and the picture need."""
    return dict(row, label=label(row), unit=unit(row),
                less_is_better=row["test"] in ("load", "memory"))


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


def start_figure(test, result):
    """Of a process that loads a model, reads four tokens and ends with the first one generated."""
    return result.peak_rss / 2 ** 20 if test == "memory" else result.seconds * 1e3


class Engine:
    def __init__(self, args, environment):
        self.args, self.environment = args, environment
        self.folder = args.folder / "models"
        self.others = 0.0  # CPUs that other work kept busy in the worst process of the last row

    def run(self, *command):
        if self.args.wait_idle:
            wait_until_idle(self.args.wait_idle)
        result = Result(command, self.environment)
        self.others = max(self.others, result.others)
        return result

    def figure(self, row):
        self.others = 0.0
        return self.measure(row)

    def prepare(self, rows):
        """Builds what the rows need; here nothing."""

    def model(self, variant):
        return models.write_folder(variant, self.args.size, self.folder / f"{variant}-{self.args.size}")


class Ours(Engine):
    def __init__(self, args, environment):
        super().__init__(args, environment)
        listed = re.search(r"--dtype ([a-z0-9_|]+)", self.run(args.binary, "bench", "--help-all").out)
        self.quantizes = re.search(r"(?m)^  quantize\b", self.run(args.binary, "--help").out)
        self.dtypes = listed.group(1).split("|") if listed else []
        self.version = self.run(args.binary, "--version").out.strip()

    def prepare(self, rows):
        for row in rows:
            if not row["test"].startswith("train"):
                self.weights(row)

    def weights(self, row):
        """The file of a row's type, made once; f32 where this program does not write the type."""
        folder, kind = self.model(row["variant"]), row["ours_type"]
        if kind == "bf16":
            made = folder.with_name(f"{folder.name}-bf16")
            command = ("convert", folder, made, "--to", "hf", "--dtype", "bf16")
        elif kind != "f32" and self.quantizes:
            made = folder.with_name(f"{folder.name}-ours-{kind}.gguf")
            command = ("quantize", folder, made, kind)
        else:
            return folder
        if not made.exists():
            self.run(self.args.binary, *command)
        return made

    def rate(self, row, *arguments):
        result = self.run(self.args.binary, "bench", "-m", self.weights(row), "--dtype",
                          row["ours_type"], "-t", self.args.threads, "-r", self.args.repetitions,
                          "-o", "json", *arguments)
        return statistics.median(json.loads(result.out)[0]["samples_ts"])

    def measure(self, row):
        test = row["test"]
        if test.startswith("train"):
            return self.train(row)
        if test == "prefill":
            return self.rate(row, "-p", PROMPT, "-n", 0)
        if test == "decode":
            return self.rate(row, "-p", 0, "-n", GENERATED)
        if test == "batch":
            return self.rate(row, "-p", 0, "-n", BATCH_STEPS, "-d", BATCH_DEPTH, "--batch-sizes",
                             BATCH)
        return start_figure(test, self.run(
            self.args.binary, "generate", "-m", self.weights(row), "--dtype", row["ours_type"], "-t",
            self.args.threads, "--prompt-ids", "64,65,66,67", "-n", 1, "--temp", 0))

    def train(self, row):
        shape = row["test"].split()[1]
        _, _, batch, length = compare_train.SHAPES[shape]
        config = self.folder / f"{shape}-{row['variant']}.json"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(compare_train.config(shape, row["variant"])))
        result = self.run(self.args.binary, "bench", "-m", config, "-p", 0, "-n", 0, "--train",
                          f"{batch}x{length}", "--dtype", row["ours_type"], "-t", self.args.threads,
                          "-r", compare_train.STEPS_OURS, "-o", "json")
        return statistics.median(json.loads(result.out)[0]["samples_ts"])


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
            f32 = self.write(variant, self.folder / f"{variant}-{self.args.size}-f32.gguf")
            return models.quantized(self.program("llama-quantize").parent, f32, LLAMA_TYPES[kind])
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"no GGUF file for llama.cpp: {error}") from error

    def write(self, variant, path):
        if importlib.util.find_spec("gguf") is None and not path.exists():
            raise Failed("the python package gguf is not installed here")
        return models.write_gguf(variant, self.args.size, path)

    def measure(self, row):
        path, threads = self.file(row["variant"], row["type"]), self.args.threads
        test = row["test"]
        if test in ("prefill", "decode"):
            sizes = ("-p", PROMPT, "-n", 0) if test == "prefill" else ("-p", 0, "-n", GENERATED)
            result = self.run(self.program("llama-bench"), "-m", path, "-t", threads, *sizes, "-r",
                              self.args.repetitions, "-o", "json")
            return statistics.median(json.loads(result.out)[0]["samples_ts"])
        if test == "batch":
            rates = []
            for _ in range(self.args.repetitions):
                result = self.run(self.program("llama-batched-bench"), "-m", path, "-c", 2048, "-b",
                                  2048, "-ub", 512, "-npp", BATCH_DEPTH, "-ntg", BATCH_STEPS, "-npl",
                                  BATCH, "-t", threads, "-tb", threads, "--output-format", "jsonl")
                line = next(text for text in result.out.splitlines() if text.startswith("{"))
                rates.append(json.loads(line)["speed_tg"])
            return statistics.median(rates)
        return start_figure(test, self.run(
            self.program("llama-completion"), "-m", path, "-p", "abcd", "-n", 1, "-no-cnv", "-t",
            threads, "-c", 512, "--ignore-eos", "--no-warmup", "--temp", 0))


class MambaC(Engine):
    def measure(self, row):
        result = self.run(*self.args.mamba_c.split())
        found = re.findall(r"tok/s:?\s*([\d.]+)|([\d.]+)\s*tok/s", result.out + result.errors)
        if not found:
            raise Failed("the command of --mamba-c printed no 'tok/s'")
        return float(found[-1][0] or found[-1][1])


class Torch(Engine):
    name = ""

    def measure(self, row):
        dtype = {"f32": "float32", "bf16": "bfloat16"}[row["type"]]
        result = self.run(sys.executable, HERE / "torch_rival.py", self.name,
                          self.model(row["variant"]), dtype, self.args.threads, row["test"])
        return json.loads(result.out)["tokens_per_s"]


class MambaPy(Torch):
    name = "mamba.py"

    def measure(self, row):
        if not row["test"].startswith("train"):
            return super().measure(row)
        shape = row["test"].split()[1]
        result = self.run(sys.executable, HERE.parent / "compare_train.py", "--rival", shape,
                          "--threads", self.args.threads)
        _, _, batch, length = compare_train.SHAPES[shape]
        return batch * length / json.loads(result.out)["step"]["median_seconds"]


class Transformers(Torch):
    name = "transformers"


RIVALS = {"llama.cpp": Llama, "mamba.c": MambaC, "mamba.py": MambaPy, "transformers": Transformers}
