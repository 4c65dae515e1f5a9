# SPDX-License-Identifier: Apache-2.0
"""benchmarks/compare_gpu.py without GPU or torch: its rows, its refusals, and a whole run against a
stand-in for the rival's process; and what it shares with compare_cpu.py.

Usage: compare_benchmarks.py PROGRAM BENCHMARKS_FOLDER
"""
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.dom.minidom

import models

PROGRAM, BENCHMARKS = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve()
sys.path.insert(0, str(BENCHMARKS))
from rivals import gpu_engines, rows  # noqa: E402

# Stands in the place of --python: answers jobs as gpu_worker.py does. Its logits are those of `mamba-cpp
# verify --dump`, shifted by $SHIFT.
RIVAL = f"""#!{sys.executable}
import array, json, os, subprocess, sys, time
sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
import models
if sys.argv[2] == "probe":
    error = {{"error": "No module named this"}}
    print(json.dumps({{"torch": {{"version": "0"}}, "transformers": {{"version": "1"}},
                      "mamba_ssm": error, "causal_conv1d": error}}))
    sys.exit()
for line in sys.stdin:
    job = json.loads(line)
    answer = {{"ms": 2.0, "tokens_per_s": 3.0}}
    if job["kind"] == "check":
        B, L, V = job["batch"], job["length"], job["vocab_size"]
        ids = ("I64", [B, L], array.array("q", [i % V for i in range(B * L)]).tobytes())
        zeros = ("F32", [B, L, V], bytes(4 * B * L * V))
        models.write(job["file"], models.safetensors({{"input_ids": ids, "logits": zeros}}))
        dump = job["file"] + ".dump"
        subprocess.run([{PROGRAM!r}, "verify", job["folder"], job["file"], "--dump", dump],
                       stdout=subprocess.DEVNULL)
        values = array.array("f", models.read_safetensors(dump)["logits"][2])
        largest = max(values)
        values = array.array("f", [v + float(os.environ.get("SHIFT", 0)) for v in values])
        logits = ("F32", [B, L, V], values.tobytes())
        models.write(job["file"], models.safetensors({{"input_ids": ids, "logits": logits}}))
        answer = {{"largest": largest, "prefill_error": 0.0,
                  "step_error": float(os.environ.get("STEP_ERROR", 0))}}
    elif job["kind"] == os.environ.get("HANG_AT"):
        print("hangs", file=sys.stderr)
        open("hangs", "w").close()
        time.sleep(600)
    elif job["kind"] == os.environ.get("FAIL_AT"):
        answer = {{"error": "it failed"}}
    print(json.dumps(answer), flush=True)
"""
SMALL = ("--device", "cpu", "--dtype", "f32", "--models", "small.json", "--rivals", "transformers",
         "--tests", "prefill,decode,train", "--prompt-lengths", "8", "--batch-sizes", "1",
         "--train", "1x8", "--rounds", "2", "--seconds", "0.001", "--train-steps", "1")
SEQUENCE_TIMES = """scan bf16 B8 D2048 N16 L2048 forward 0.310 ms (target 0.25; bytes 0.063 ms, exps 0.1 ms)
    backward 1.350 ms, both 1.660 ms (target 1.00; bytes of backward 0.11 ms)
ssd f32 B8 L2048 H32 P64 N128 forward 1.060 ms (target 0.00; bytes 0.063 ms)
    backward 2.280 ms, both 3.340 ms (target 0.00; bytes of backward 0.1 ms)
"""


def compare(*arguments, code=0, **environment):
    result = subprocess.run(
        [sys.executable, BENCHMARKS / "compare_gpu.py", "--binary", PROGRAM, *arguments],
        capture_output=True, text=True, timeout=300, env=dict(os.environ, **environment))
    if result.returncode != code:
        raise AssertionError(f"{arguments}: {result.returncode}\n{result.stdout}{result.stderr}")
    return result


class CompareTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        os.chdir(self.folder.name)
        models.write("small.json", json.dumps(models.BYTES))
        models.write("rival", RIVAL)
        os.chmod("rival", 0o755)
        self.rival = os.path.abspath("rival")

    def tearDown(self):
        os.chdir("/")
        self.folder.cleanup()

    def test_dry_run_names_all_rows_and_needs_nothing(self):
        out = compare("--dry-run", "--large", "--binary", "nowhere", "--python", "nowhere").stdout
        for words in ("mamba-130m prefill 1,024 bf16", "mamba2-130m decode B64 bf16",
                      "mamba-130m training 8x2048 memory bf16", "mamba-2.8b prefill 16,384 bf16",
                      "scan B8 D2048 N16 L2048 fwd+bwd bf16", "ssd B8 L2048 H32 P64 N128 fwd bf16",
                      "conv1d B8 L2048 C1536 K4 fwd f32",
                      "bench model mamba2-2.7b --prompt-length 16384 --batch-size 1 --dtype bf16",
                      "bench train mamba-130m --batch-size 8 --seq-len 2048"):
            self.assertIn(words, out)
        quick = compare("--dry-run", "--quick").stdout
        self.assertLess(len(quick), len(out) / 2)
        self.assertNotIn("2.8b", quick)

    def test_wrong_arguments_are_one_line(self):
        for arguments, words in ((("--rivals", "mamba.c"), "got 'mamba.c'"),
                                 (("--device", "rocm"), "got 'rocm'"),
                                 (("--device", "cuda:x"), "got 'cuda:x'"),
                                 (("--train", "8"), "sequences x tokens"),
                                 (("--prompt-lengths", "0"), "got '0'"),
                                 (("--rounds", "0"), "got 0"),
                                 (("-o", "no/folder.json"), "found none"),
                                 (("--binary", "nowhere"), "build it first")):
            self.assertIn(words, compare(*arguments, code=2).stderr.splitlines()[-1])

    def test_without_torch_or_gpu_it_is_one_line(self):
        models.write("none/torch.py", "raise ImportError('torch is not here')\n")
        models.write("blind/torch.py", "class cuda:\n    @staticmethod\n"
                     "    def is_available():\n        return False\n__version__ = '0'\n")
        for folder, code, words in (("none", 3, "torch is not here"), ("blind", 4, "NVIDIA GPU")):
            result = compare(code=code, PYTHONPATH=os.path.abspath(folder))
            self.assertEqual(result.stdout, "")
            self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
            self.assertIn(words, result.stderr)
        self.assertIn("nowhere", compare("--python", "nowhere", code=3).stderr)

    def test_a_whole_run_gives_table_json_and_picture(self):
        result = compare("--python", self.rival, *SMALL, "-o", "out.json", "--svg", "out.svg")
        self.assertIn("| small decode B1 f32, transformers without its kernels |", result.stdout)
        report = json.loads(pathlib.Path("out.json").read_text())
        self.assertEqual([row["test"] for row in report["rows"]], ["prefill", "decode", "train"])
        for row in report["rows"]:
            self.assertIsNone(row["missing"])
            self.assertEqual((len(row["ours"]), len(row["theirs"])), (2, 2))
        prefill, decode, _ = report["rows"]
        ratios = sorted(theirs / ours for ours, theirs in zip(prefill["ours"], prefill["theirs"]))
        self.assertAlmostEqual(prefill["summary"]["ratio"], sum(ratios) / 2)
        self.assertEqual(decode["theirs"], [3.0, 3.0])
        self.assertLess(report["logits"]["transformers mamba1"], 1e-3)
        xml.dom.minidom.parse("out.svg")

    def test_models_that_are_not_equal_are_refused(self):
        for more, words in (({"SHIFT": "0.5"}, "not equal models: our logits"),
                            ({"STEP_ERROR": "0.5"}, "not equal models: a step of transformers")):
            result = compare("--python", self.rival, *SMALL, **more)
            self.assertEqual(result.stdout.count(words), 3, result.stdout)

    def test_what_fails_or_cannot_be_imported_is_missing_with_the_reason(self):
        rivals = ("--rivals", "transformers,mamba_ssm")
        out = compare("--python", self.rival, *SMALL, *rivals, FAIL_AT="decode").stdout
        self.assertEqual(out.count("mamba_ssm cannot be imported: No module named this"), 3)
        self.assertEqual(out.count("missing: it failed"), 1)

    def test_time_limit_ends_before_the_next_figure(self):
        out = compare("--python", self.rival, *SMALL, "--time-limit", "0.001").stdout
        self.assertEqual(out.count("not reached in --time-limit 0.001"), 3, out)

    def test_interruption_leaves_no_file(self):
        process = subprocess.Popen(
            [sys.executable, BENCHMARKS / "compare_gpu.py", "--binary", PROGRAM, "--python",
             self.rival, *SMALL, "-o", "out.json", "--svg", "out.svg"], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=dict(os.environ, HANG_AT="train"))
        end = time.monotonic() + 200
        while not os.path.exists("hangs") and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, out), (130, ""), errors)
        self.assertIn("interrupted; nothing was written", errors)
        self.assertEqual(sorted(os.listdir()), ["hangs", "rival", "small.json"])


class SharedTest(unittest.TestCase):
    def row(self, **more):
        return {"label": "a", "unit": "ms", "type": "f32", "less_is_better": True, "missing": None,
                "ours": [], "theirs": [], **more}

    def test_sides_take_turns_and_a_failure_stays(self):
        good, bad, order = self.row(), self.row(label="b"), []

        def figure(row, side, number):
            order.append((row["label"], side))
            if row is bad:
                raise rows.Failed("why")
            return 2.0 if side == "ours" else 3.0 + number
        rows.measure([good, bad], 2, figure)
        self.assertEqual(order, [("a", "ours"), ("a", "theirs"), ("b", "ours"), ("a", "theirs"),
                                 ("a", "ours")])
        self.assertEqual(bad["missing"], "why")
        self.assertIsNone(rows.summary(bad))
        self.assertEqual(rows.summary(good),
                         {"ours": 2.0, "theirs": 3.5, "ratio": 1.75, "low": 1.5, "high": 2.0})
        self.assertEqual(rows.summary(self.row(ours=[4.0], theirs=[2.0], less_is_better=False))["ratio"],
                         2.0)

    def test_files_are_written_whole_or_not_at_all(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "out")
            rows.write_atomically(path, "old")
            with self.assertRaises(TypeError):
                rows.write_atomically(path, 5)
            self.assertEqual((path.read_text(), os.listdir(folder)), ("old", ["out"]))

    def test_times_of_sequence_cuda(self):
        times = gpu_engines.parse_sequence_times(SEQUENCE_TIMES)
        scan = ("scan", "bf16", (("B", 8), ("D", 2048), ("L", 2048), ("N", 16)))
        ssd = ("ssd", "f32", (("B", 8), ("H", 32), ("L", 2048), ("N", 128), ("P", 64)))
        self.assertEqual(times, {scan: {"forward": 0.31, "both": 1.66},
                                 ssd: {"forward": 1.06, "both": 3.34}})

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "compare_cpu.py needs numpy")
    def test_compare_cpu_draws_an_earlier_run(self):
        row = {"test": "load", "variant": "mamba1", "type": "8bit", "rival": "llama.cpp",
               "missing": None, "summary": {"ours": 50.0, "theirs": 100.0, "ratio": 2.0, "low": 1.5,
                                            "high": 2.5}}
        with tempfile.TemporaryDirectory() as folder:
            models.write(f"{folder}/run.json", json.dumps(
                {"cpu": "one", "threads": 2, "rounds": 3, "version": "mamba-cpp", "rows": [row]}))
            subprocess.run([sys.executable, BENCHMARKS / "compare_cpu.py", "--draw",
                            f"{folder}/run.json", "--svg", f"{folder}/run.svg"], check=True)
            self.assertIn("mamba1 start to 1st token 8bit, llama.cpp",
                          pathlib.Path(folder, "run.svg").read_text())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
