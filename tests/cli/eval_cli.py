# SPDX-License-Identifier: Apache-2.0
"""What the commands of eval do with good input. Usage: eval_cli.py PROGRAM"""
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest

import models
import signals

PROGRAM = os.path.abspath(sys.argv[1])
TASKS = ["eval", "tasks", "-m", "model", "--data", "evals"]


def run(*arguments, code=0):
    result = subprocess.run([PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, timeout=300)
    if result.returncode != code:
        raise AssertionError(f"{arguments}: exit code {result.returncode}, expected {code}\n"
                             f"{result.stderr.decode()[-500:]}")
    return result.stdout.decode()


def run_json(*arguments):
    return json.loads(run(*arguments, "--json"))


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_lines(path, rows):
    models.write(path, "".join(json.dumps(row) + "\n" for row in rows))


EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples/evals")


class Eval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        models.byte_model(PROGRAM, "model")
        models.byte_model(PROGRAM, "other", seed=2)
        models.write("text", "It was the best of times, it was the worst of times. " * 40)
        texts = [f"Sentence number {i} of them all" for i in range(12)]
        choices = [["ends here", "goes on and on", "is the last one"], ["\u00fcber", "two"]]
        write_lines("evals/piqa.jsonl", [
            {"id": f"q{i}", "ctx": t, "choices": choices[i % 2], "gold": i % 2}
            for i, t in enumerate(texts)])
        write_lines("evals/winogrande.jsonl", [
            {"contexts": [t + " one", t + " other"], "target": " is it.", "gold": i % 2}
            for i, t in enumerate(texts)])
        write_lines("evals/lambada_openai.jsonl", [{"ctx": t, "target": " end"} for t in texts])

    @classmethod
    def tearDownClass(cls):
        os.chdir("/")
        cls.folder.cleanup()

    def test_the_examples_have_every_task(self):
        result = run_json("eval", "tasks", "-m", "model", "--tasks", "all", "--data", EXAMPLES)
        self.assertEqual([task["items"] for task in result["results"].values()], [2] * 9)

    def test_windows_of_perplexity_and_their_sum(self):
        flags = ["--window", "64", "--stride", "64"]
        whole = run_json("eval", "ppl", "-m", "model", "-f", "text", *flags)
        self.assertEqual(whole["scored"], 33 * 63 + 7)  # 2120 tokens: 33 windows and 8 tokens
        full = run_json("eval", "ppl", "-m", "model", "-f", "text", *flags, "--drop-tail")
        self.assertEqual(full["scored"], 33 * 63)
        self.assertLess(full["nll_sum"], whole["nll_sum"])
        two = run_json("eval", "ppl", "-m", "model", "-f", "text", *flags, "--windows", "2")
        self.assertEqual((two["scored"], two["tokens"]), (126, 128))
        self.assertAlmostEqual(two["perplexity"], math.exp(two["nll_sum"] / 126), places=9)
        printed = run("eval", "ppl", "-m", "model", "-f", "text", *flags, "--windows", "2")
        self.assertIn(f"nll sum        {two['nll_sum']:.4f}", printed)

    def test_divergence_of_two_models(self):
        zero = run_json("eval", "kl", "model", "model", "-f", "text")
        self.assertEqual(zero["kl_max"], 0)
        self.assertEqual(zero["same_top"], 1)
        self.assertEqual(zero["perplexity_change"], 0)
        far = run_json("eval", "kl", "model", "other", "-f", "text", "--window", "128")
        self.assertGreater(far["kl_mean"], 0.01)
        order = ["kl_min", "kl_median", "kl_90", "kl_95", "kl_99", "kl_99.9", "kl_max"]
        values = [far[key] for key in order]
        self.assertEqual(values, sorted(values))
        for key, folder in (("perplexity_base", "model"), ("perplexity", "other")):
            alone = run_json("eval", "ppl", "-m", folder, "-f", "text", "--window", "128")
            self.assertAlmostEqual(far[key] / alone["perplexity"], 1, places=5)
        self.assertNotEqual(far["base"]["fingerprint"], far["model"]["fingerprint"])
        bf16 = run_json("eval", "kl", "model", "model", "-f", "text", "--dtype", "bf16",
                        "--base-dtype", "f32")
        self.assertGreater(bf16["kl_mean"], 0)
        self.assertLess(bf16["kl_mean"], far["kl_mean"])
        self.assertIn("same top", run("eval", "kl", "model", "other", "-f", "text"))

    def test_tasks_do_not_depend_on_batch_or_threads(self):
        names = "piqa,winogrande,lambada_openai"
        want = run_json(*TASKS, "--tasks", names, "--output", "items")
        items = read_lines("items")
        self.assertEqual(len(items), 36)
        self.assertFalse(want["partial"])
        for flags in (["--batch-size", "1", "--threads", "1"], ["--batch-size", "5"],
                      ["--threads", "2"]):
            got = run_json(*TASKS, "--tasks", names, "--output", "again", *flags)
            self.assertEqual(got["results"], want["results"])
            self.assertEqual(read_lines("again"), items)
        self.assertEqual(want["model"]["parameters"], run_json("inspect", "model")["parameters"])
        for name in names.split(","):
            part = [item for item in items if item["task"] == name]
            mean = sum(item["acc"] for item in part) / 12
            result = want["results"][name]
            self.assertAlmostEqual(result["acc"], mean, places=12)
            error = math.sqrt(mean * (1 - mean) / 11)
            self.assertAlmostEqual(result["acc_stderr"], error, places=12)
            self.assertEqual((result["items"], result["total"]), (12, 12))
            for item in part:
                values = item["log_likelihoods"]
                if name != "lambada_openai":
                    self.assertEqual(item["predicted"], values.index(max(values)))
        logs = [item["log_likelihoods"][0] for item in items if item["task"] == "lambada_openai"]
        self.assertAlmostEqual(want["results"]["lambada_openai"]["perplexity"],
                               math.exp(-sum(logs) / 12), places=3)

    def test_tasks_of_a_limit_and_their_table(self):
        table = run(*TASKS, "--tasks", "piqa,lambada_openai", "--limit", "3").splitlines()
        self.assertEqual(table[0].split(), ["task", "metric", "value", "stderr", "items"])
        self.assertEqual([line.split()[:2] for line in table[1:]],
                         [["piqa", "acc"], ["piqa", "acc_norm"], ["piqa", "acc_bytes"],
                          ["lambada_openai", "perplexity"], ["lambada_openai", "acc"]])
        self.assertTrue(all(line.endswith(" 3") for line in table[1:]))
        one = run_json(*TASKS, "--tasks", "piqa", "--limit", "1")
        self.assertEqual(one["limit"], 1)
        self.assertIsNone(one["results"]["piqa"]["acc_stderr"])

    def test_long_contexts_are_cut_and_said_to_be(self):
        result = subprocess.run([PROGRAM, *TASKS, "--tasks", "lambada_openai", "--max-length", "16",
                                 "--json"], capture_output=True, check=True, timeout=300)
        self.assertIn(b"12 of 12 items were cut to their last 16 tokens", result.stderr)
        cut = json.loads(result.stdout)["results"]["lambada_openai"]
        self.assertEqual(cut["truncated"], 12)
        free = run_json(*TASKS, "--tasks", "lambada_openai", "--max-length", "0")
        self.assertEqual(free["results"]["lambada_openai"]["truncated"], 0)

    def test_ctrl_c_leaves_a_partial_table(self):
        row = {"ctx": "word " * 400, "choices": ["a b c", "d e f"], "gold": 0}
        write_lines("many/piqa.jsonl", [row] * 5000)
        write_lines("many/boolq.jsonl", [row])
        process = subprocess.Popen(
            [PROGRAM, "eval", "tasks", "-m", "model", "--data", "many", "--tasks", "piqa,boolq",
             "--batch-size", "1", "--output", "part"], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        signals.send_when_ready(process, signal.SIGINT, 2)
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertRegex(output, r"piqa +acc .* partial, of 5000\n")
        self.assertNotIn("boolq", output)
        done = int(re.search(r"piqa +acc .* (\d+)  partial", output).group(1))
        self.assertGreater(done, 0)
        self.assertEqual(len(read_lines("part")), done)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
