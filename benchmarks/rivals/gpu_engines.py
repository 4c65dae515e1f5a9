# SPDX-License-Identifier: Apache-2.0
"""The two sides of compare_gpu.py: mamba-cpp, a process for each figure, and a rival in a process of
PyTorch that stays for all rounds, as its start takes longer than its work."""

import json
import pathlib
import re
import select
import subprocess
import tempfile
import threading

from .processes import Result
from .rows import Failed

HERE = pathlib.Path(__file__).resolve().parent


def card_number(device):
    return device.partition(":")[2] or "0"


class CardMemory(threading.Thread):
    """Most MiB of the card in use while it runs, beyond those in use before; None without
    nvidia-smi."""

    def __init__(self, device):
        super().__init__(daemon=True)
        self.command = ["nvidia-smi", "-i", card_number(device), "--query-gpu=memory.used",
                        "--format=csv,noheader,nounits"]
        self.ended = threading.Event()
        self.before = self.most = self.used()
        self.start()

    def used(self):
        try:
            return int(subprocess.run(self.command, capture_output=True, text=True, check=True,
                                      timeout=20).stdout.split()[0])
        except (OSError, ValueError, IndexError, subprocess.SubprocessError):
            return None

    def run(self):
        while self.before is not None and not self.ended.wait(0.1):
            self.most = max(self.most, self.used() or 0)

    def end(self):
        self.ended.set()
        self.join()
        return None if self.before is None else self.most - self.before


def parse_sequence_times(text):
    """Of `sequence_cuda time`: (kernel, type, sizes) -> {"forward": ms, "both": ms}."""
    times, last = {}, None
    for line in text.splitlines():
        found = re.match(r"(scan|ssd) (\w+) ((?:[BDNLHP]\d+ )+)forward ([\d.]+) ms", line)
        if found:
            sizes = tuple(sorted((word[0], int(word[1:])) for word in found[3].split()))
            last = times.setdefault((found[1], found[2], sizes), {"forward": float(found[4])})
            continue
        found = re.search(r"both ([\d.]+) ms", line)
        if found and last is not None:
            last["both"] = float(found[1])
    return times


class Ours:
    def __init__(self, args):
        self.args = args
        self.kept = {}  # (round, command) -> its output: a process may give figures of several rows

    def command(self, row):
        """The process that gives a row's figure; the program's path in front."""
        args, job = self.args, row["job"]
        common = ("--device", args.device, "-o", "json")
        if args.device == "cpu":
            common += ("--threads", 1)
        if row["test"] == "kernel":
            if job["kernel"] != "conv1d":
                return [args.sequence_cuda, "time"]
            shape = ",".join(f"{name}={size}" for name, size in job["shape"].items())
            return [args.binary, "bench", "kernel", "conv1d_forward", "--shape", shape, "--cold", *common]
        if row["test"].startswith("train"):
            return [args.binary, "bench", "train", row["model"], "--batch-size", job["batch"],
                    "--seq-len", job["length"], "--steps", args.train_steps, "--dtype", args.dtype,
                    *common]
        # One sequence: the process of the first prefill has the decode's figure too.
        length = job["tokens"] if row["test"] == "prefill" else row["prompt"]
        return [args.binary, "bench", "model", row["model"], "--prompt-length", length, "--batch-size",
                job["batch"], "--dtype", args.dtype, "--seconds", args.seconds, *common]

    def output(self, command, number):
        key = (number, *map(str, command))
        if key not in self.kept:
            memory = CardMemory(self.args.device) if "train" in command else None
            try:
                out = Result(command).out
            finally:
                used = memory.end() if memory else None
            self.kept[key] = (out, used)
        return self.kept[key]

    def figure(self, row, number):
        command = self.command(row)
        out, used = self.output(command, number)
        if row["test"] == "kernel":
            return self.kernel_ms(row, command, out, number)
        report = json.loads(out)
        if report["parameters"] != row["job"]["parameters"]:
            raise Failed(f"ours has {report['parameters']} parameters, expected "
                         f"{row['job']['parameters']}")
        if row["test"] == "train":
            return report["tokens_per_s"]
        if row["test"] == "train memory":  # as seen from outside; never less than what was planned
            return max(report["planned_bytes"] / 2 ** 30, (used or 0) / 1024)
        if row["test"] == "prefill":
            return report["prefill"]["time"]["median_seconds"] * 1e3
        return report["decode"]["tokens_per_s"]

    def kernel_ms(self, row, command, out, number):
        job = row["job"]
        if job["kernel"] == "conv1d":
            times = {"forward": json.loads(out)["kernels"][0]["time"]["median_seconds"] * 1e3}
            if row["value"] == "both":
                command = ["conv1d_backward" if word == "conv1d_forward" else word for word in command]
                back = json.loads(self.output(command, number)[0])["kernels"][0]["time"]
                times["both"] = times["forward"] + back["median_seconds"] * 1e3
        else:
            sizes = tuple(sorted(job["shape"].items()))
            times = parse_sequence_times(out).get((job["kernel"], row["type"], sizes), {})
        if row["value"] not in times:
            raise Failed(f"{pathlib.Path(command[0]).name} has no time of this shape")
        return times[row["value"]]


class Worker:
    """A rival's process. Jobs and answers are lines of JSON."""

    def __init__(self, args, name):
        self.args, self.name = args, name
        self.errors = tempfile.TemporaryFile("w+")
        self.process = None
        self.kept = {}  # (round, job) -> answer

    def start(self):
        self.process = subprocess.Popen(
            [self.args.python, HERE / "gpu_worker.py", self.name, self.args.device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)

    def last_words(self):
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["no message"])[-1][:300]

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def run(self, job, seconds):
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            line = self.process.stdout.readline() if ready else None
        except OSError:
            line = ""
        if line:
            return json.loads(line)
        self.close()
        if line is None:
            return {"error": f"no answer within {seconds:.0f} s"}
        return {"error": f"{self.name} ended: {self.last_words()}"}

    def figure(self, row, number):
        key = (number, json.dumps(row["job"]))
        if key not in self.kept:
            self.kept[key] = self.run(row["job"], self.args.answer_seconds)
        answer = self.kept[key]
        if "error" in answer:
            raise Failed(answer["error"])
        if answer.get("note"):
            row["note"] = answer["note"]
        if answer.get(row["value"]) is None:
            raise Failed(f"{self.name} gives no {row['value']} here")
        return answer[row["value"]]


def probe(args):
    """What the rivals' Python has."""
    out = Result([args.python, HERE / "gpu_worker.py", "probe", args.device]).out
    return json.loads(out)


def inspect(args, model):
    """Sizes and parameters of a preset or configuration."""
    report = json.loads(Result([args.binary, "inspect", model, "--json"]).out)
    return report["config"], report["parameters"]
