#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`mamba-cpp bench` as llama-bench has it: tests, columns, fields, ranges; and `bench roofline`.

Usage: bench_cli.py PROGRAM
"""
import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest
import xml.dom.minidom

import models

PROGRAM = os.path.abspath(sys.argv[1])

# llama-bench's, in its order, then ours.
FIELDS = ("build_commit build_number cpu_info gpu_info backends model_filename model_type model_size "
          "model_n_params n_batch n_ubatch n_threads n_prompt n_gen n_depth test_time avg_ns stddev_ns "
          "avg_ts stddev_ts samples_ns samples_ts test n_train n_sequences dtype isa state_bytes "
          "peak_rss load_ns random_weights").split()


def run(*arguments, code=0):
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=300)
    if result.returncode != code:
        raise AssertionError(f"{arguments}: {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout if code == 0 else result.stderr


def bench(*arguments):
    repetitions = () if "-r" in arguments else ("-r", "2")
    return run("bench", "-m", "model", "-t", "1", *repetitions, *arguments)


def rows(*arguments):
    return json.loads(bench("-o", "json", *arguments))


def median(report):
    return report["decode"]["time"]["median_seconds"]


class BenchTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        models.byte_model(PROGRAM, "model")
        shutil.copy("model/config.json", "config.json")

    @classmethod
    def tearDownClass(cls):
        os.chdir("/")
        cls.folder.cleanup()

    def test_default_tests_and_fields_of_json(self):
        prompt, generated = rows()
        self.assertEqual((prompt["test"], generated["test"]), ("pp512", "tg128"))
        self.assertEqual(list(prompt), FIELDS)
        for row, tokens in ((prompt, 512), (generated, 128)):
            self.assertEqual(len(row["samples_ns"]), 2)
            for ns, rate in zip(row["samples_ns"], row["samples_ts"]):
                self.assertAlmostEqual(ns * rate, tokens * 1e9, delta=tokens * rate)
            mean = sum(row["samples_ts"]) / 2
            self.assertAlmostEqual(row["avg_ts"], mean, delta=1e-9 * mean)
            self.assertAlmostEqual(row["stddev_ts"],
                                   abs(row["samples_ts"][0] - mean) * 2 ** 0.5, delta=1e-9 * mean)
        self.assertEqual(prompt["model_size"], 4 * prompt["model_n_params"])
        self.assertGreater(prompt["load_ns"], 0)
        self.assertGreater(prompt["peak_rss"], prompt["model_size"])
        self.assertGreater(prompt["state_bytes"], 0)
        self.assertFalse(prompt["random_weights"])
        self.assertEqual((prompt["n_threads"], prompt["n_batch"], prompt["n_ubatch"]), (1, 2048, 512))

    def test_lists_and_ranges(self):
        def tests(*arguments):
            return [row["test"] for row in rows("-r", "1", *arguments)]
        self.assertEqual(tests("-p", "1-3,8-40+16,2-8*2", "-n", "0"),
                         ["pp1", "pp2", "pp3", "pp8", "pp24", "pp40", "pp2", "pp4", "pp8"])
        self.assertEqual(tests("-p", "0", "-n", "2", "-d", "0,5"), ["tg2", "tg2 @ d5"])
        self.assertEqual(tests("-p", "0", "-n", "0", "-pg", "4,2,8,1"), ["pp4+tg2", "pp8+tg1"])
        self.assertEqual(tests("-p", "4", "-n", "2", "-npl", "1,3"),
                         ["pp4", "tg2", "pp4 x3", "tg2 x3"])

    def test_sequences_together_count_together(self):
        one, three = rows("-p", "0", "-n", "4", "--batch-sizes", "1,3")
        self.assertEqual((one["n_sequences"], three["n_sequences"]), (1, 3))
        for row in (one, three):
            for ns, rate in zip(row["samples_ns"], row["samples_ts"]):
                self.assertAlmostEqual(ns * rate, 4e9 * row["n_sequences"], delta=20 * rate)

    def test_types_threads_and_batches_make_rows(self):
        found = rows("-p", "8", "-n", "0", "--dtype", "f32,bf16", "-b", "4,8", "-ub", "2")
        self.assertEqual([(row["dtype"], row["n_batch"], row["n_ubatch"]) for row in found],
                         [("f32", 4, 2), ("f32", 8, 2), ("bf16", 4, 2), ("bf16", 8, 2)])
        self.assertLess(found[2]["model_size"], found[0]["model_size"])

    def test_threads_are_bound_on_request(self):
        told = json.loads(run("bench", "-m", "model", "-p", "4", "-n", "0", "-r", "2", "-t", "2,1,2", "--pin",
                              "--train", "1x4", "-o", "json"))
        self.assertEqual([row["n_threads"] for row in told], [2, 2, 1, 1, 2, 2])

    def test_random_weights_of_a_config_and_training(self):
        (prompt, train) = json.loads(run(
            "bench", "-m", "config.json", "-p", "4", "-n", "0", "--train", "2x16", "-r", "3", "--json"))
        self.assertTrue(prompt["random_weights"])
        self.assertIsNone(prompt["load_ns"])
        self.assertEqual((train["test"], train["n_train"], train["n_sequences"]),
                         ("train 2x16", 16, 2))
        self.assertEqual(len(train["samples_ns"]), 3)

    def test_training_in_blocks_is_refused_or_left_out(self):
        only = ("-p", "0", "-n", "0", "--train", "1x8", "-r", "1")
        self.assertIn("[--train] expected --dtype f32 or bf16",
                      run("bench", "-m", "config.json", "--dtype", "q4_0,q8_0", *only, code=2))
        self.assertIn("[--dtype] expected f32 or bf16",
                      run("bench", "train", "config.json", "--dtype", "q8_0", code=2))
        result = subprocess.run(
            [PROGRAM, "bench", "-m", "model", "--dtype", "q4_0,f32,q8_0", "-p", "4", "-n", "0",
             "--train", "1x8", "-r", "1", "-o", "json"], capture_output=True, text=True, timeout=300)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([row["test"] for row in json.loads(result.stdout)],
                         ["pp4", "pp4", "train 1x8", "pp4"])
        self.assertEqual(result.stderr.count("no training in q4_0, q8_0"), 1)

    def test_training_ends_between_two_steps_when_interrupted(self):
        with subprocess.Popen(
                [PROGRAM, "bench", "-m", "config.json", "-p", "0", "-n", "0", "--train", "8x64", "-r",
                 "10000", "-t", "1", "--progress", "-o", "jsonl"], stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True) as process:
            self.assertIn("train 8x64", process.stderr.readline())
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=300)
        self.assertEqual((process.returncode, out), (130, ""))
        self.assertIn("error: interrupted", error)

    def test_model_of_a_file_is_measured_in_its_types(self):
        models.byte_model(PROGRAM, "wide", d_model=128)
        run("quantize", "wide", "wide.gguf", "q4_0")
        of = {}
        for name in ("wide", "wide.gguf"):
            of[name] = json.loads(run("bench", "model", name, "--seconds", "0", "-t", "1", "--json"))
            self.assertFalse(of[name]["random_weights"])
        self.assertEqual([of[name]["dtype"] for name in of], ["f32", "q4_0"])
        self.assertLess(of["wide.gguf"]["decode"]["gb_per_s"] * median(of["wide.gguf"]),
                        of["wide"]["decode"]["gb_per_s"] * median(of["wide"]))
        points = json.loads(run("bench", "roofline", "-m", "wide.gguf", "--dtype", "f32", "--seconds",
                                "0", "-t", "1", "--no-kernels", "-o", "json"))["points"]
        self.assertEqual({(p["name"].split()[1], p["type"]) for p in points}, {("q4_0", "int8")})
        train = json.loads(run("bench", "train", "wide.gguf", "--seq-len", "8", "--steps", "1",
                               "--json"))
        self.assertEqual((train["dtype"], train["random_weights"]), ("f32", True))

    def test_flags_of_others_and_types_of_states(self):
        (row,) = rows("-p", "8", "-n", "0", "-ngl", "99", "--state-dtype", "bf16")
        (wide,) = rows("-p", "8", "-n", "0")
        self.assertEqual(row["state_bytes"] * 2, wide["state_bytes"])

    def test_what_was_measured_before_an_error_is_json(self):
        with open("damaged.gguf", "wb") as file:
            file.write(b"GGUF")
        arguments = ("-p", "8", "-n", "0", "-r", "1", "-o", "json")
        result = subprocess.run([PROGRAM, "bench", "-m", "model,damaged.gguf", *arguments],
                                capture_output=True, text=True, timeout=300)
        self.assertEqual(result.returncode, 3)
        self.assertEqual(len(json.loads(result.stdout)), 1)

    def test_an_error_behind_rows_is_the_last_item_of_their_list(self):
        with open("damaged.gguf", "wb") as file:
            file.write(b"GGUF")
        result = subprocess.run([PROGRAM, "bench", "-m", "model", "-m", "damaged.gguf", "-p", "8", "-n",
                                 "0", "-r", "1", "--json"], capture_output=True, text=True, timeout=300)
        self.assertEqual(result.returncode, 3)
        row, last = json.loads(result.stdout)
        self.assertEqual(row["test"], "pp8")
        self.assertEqual(last["error"]["code"], 3)
        self.assertEqual(result.stderr, f"error: {last['error']['message']}\n")

    def test_flags_given_again_add_up(self):
        found = rows("-p", "4", "-p", "5,6", "-n", "0", "--dtype", "f32", "--dtype", "bf16", "-b", "4",
                     "-b", "8", "-pg", "2,1", "-pg", "3,1")
        tests = ["pp4", "pp5", "pp6", "pp2+tg1", "pp3+tg1"]
        self.assertEqual([(row["dtype"], row["n_batch"], row["test"]) for row in found],
                         [(dtype, batch, test) for dtype in ("f32", "bf16") for batch in (4, 8)
                          for test in tests])
        found = rows("-m", "config.json", "-p", "4", "-n", "0")
        self.assertEqual([row["model_filename"] for row in found], ["model", "config.json"])

    def test_values_of_others_that_change_nothing_are_taken(self):
        result = subprocess.run(
            [PROGRAM, "bench", "-m", "model", "-p", "4", "-n", "0", "-r", "1", "-ngl", "0", "-fa", "0",
             "-mmp", "1", "-sm", "none", "-mg=0", "-C", "0x0", "--prio", "0", "-nkvo", "0", "-o", "jsonl"],
            capture_output=True, text=True, timeout=300, check=True)
        self.assertEqual(result.stderr, "")
        self.assertEqual(json.loads(result.stdout)["test"], "pp4")

    def test_sql(self):
        base = sqlite3.connect(":memory:")
        base.executescript(bench("-p", "4,5", "-n", "0", "-o", "sql"))
        found = base.execute("SELECT * FROM llama_bench")
        self.assertEqual([column[0] for column in found.description],
                         [f for f in FIELDS if not f.startswith("samples")])
        self.assertEqual(base.execute("SELECT test, n_prompt FROM llama_bench").fetchall(),
                         [("pp4", 4), ("pp5", 5)])

    def test_what_goes_to_standard_error(self):
        start = time.monotonic()
        result = subprocess.run(
            [PROGRAM, "bench", "-m", "model", "-p", "4,5", "-n", "0", "-r", "1", "-oe", "csv", "-v",
             "--delay", "1", "-o", "jsonl"], capture_output=True, text=True, timeout=300, check=True)
        self.assertGreater(time.monotonic() - start, 1)
        told = result.stderr.splitlines()
        self.assertEqual([line for line in told if line.startswith("bench: test")],
                         ["bench: test 1 of 2: pp4 of model", "bench: test 2 of 2: pp5 of model"])
        self.assertRegex(result.stderr, r"bench: model is mamba1 .* loaded in [\d.]+ ms")
        table = [line for line in told if not line.startswith("bench: ")]
        self.assertEqual([row["test"] for row in csv.DictReader(table)], ["pp4", "pp5"])
        quiet = subprocess.run([PROGRAM, "bench", "-m", "model", "-p", "4", "-n", "0", "-r", "1",
                                "--progress"], capture_output=True, text=True, check=True, timeout=300)
        self.assertEqual(quiet.stderr, "bench: test 1 of 1: pp4 of model\n")

    def test_blocks_of_a_file_stay_unless_a_type_is_asked_for(self):
        models.byte_model(PROGRAM, "narrow", d_model=32)
        run("quantize", "narrow", "blocks.gguf", "q8_0")
        def types(*arguments):
            return [row["dtype"] for row in json.loads(run(
                "bench", "-m", "blocks.gguf", "-p", "4", "-n", "0", "-r", "1", "--json", *arguments))]
        self.assertEqual(types(), ["q8_0"])
        self.assertEqual(types("--dtype", "f32,bf16"), ["f32", "bf16"])

    def test_markdown(self):
        text = bench("-p", "4", "-n", "2", "-d", "3")
        lines = text.splitlines()
        self.assertEqual([cell.strip() for cell in lines[0].split("|")[1:-1]],
                         ["model", "size", "params", "backend", "threads", "dtype", "test", "t/s"])
        self.assertEqual(len({len(line) for line in lines[:4]}), 1)  # the columns stand in line
        self.assertRegex(lines[2], r"^\| mamba1 .*\| +pp4 @ d3 \| +[\d.]+ \u00b1 [\d.]+ \|$")
        self.assertIn("tg2 @ d3", lines[3])
        self.assertEqual([cell.strip() for cell in lines[5].split("|")[1:-1]],
                         ["model", "dtype", "threads", "load", "weights", "state a sequence",
                          "peak memory"])
        self.assertRegex(lines[-1], r"^build: \w+ \(\d+\)$")

    def test_csv_and_json_lines(self):
        (row,) = csv.DictReader(bench("-p", "4", "-n", "0", "-o", "csv").splitlines())
        self.assertEqual(list(row), [f for f in FIELDS if not f.startswith("samples")])
        self.assertEqual((row["test"], row["n_prompt"]), ("pp4", "4"))
        lines = bench("-p", "4,5", "-n", "0", "-o", "jsonl").splitlines()
        self.assertEqual([json.loads(line)["test"] for line in lines], ["pp4", "pp5"])

    def test_kernel_of_blocks_is_held_against_multiplies_of_its_type(self):
        out = json.loads(run("bench", "kernel", "linear_q_forward", "--shape", "M=1,N=64,type=q5_k",
                             "--seconds", "0", "-t", "1", "--isa", "base", "-o", "json"))
        self.assertEqual(out["kernels"][0]["shape"], "M=1 N=64 K=768 type=q5_k")
        self.assertIn(out["kernels"][0]["multiplies"], ("int8", "f32"))
        self.assertGreater(out["kernels"][0]["share_of_rate"], 0)
        self.assertIn("'q3_k'", run("bench", "kernel", "linear_q_forward", "--shape", "type=q3_k",
                                    code=2))

    def test_roofline(self):
        out = json.loads(run("bench", "roofline", "-m", "config.json", "--dtype", "f32", "--seconds",
                             "0", "-t", "1", "--no-kernels", "--svg", "roof.svg", "-o", "json"))
        self.assertEqual([read["level"] for read in out["machine"]["read"]], ["L2", "L3", "memory"])
        self.assertIn("f32", [rate["type"] for rate in out["machine"]["compute"]])
        self.assertEqual([(p["name"], p["shape"]) for p in out["points"]],
                         [("config.json f32 prefill", "L=512"), ("config.json f32 decode", "B=1"),
                          ("config.json f32 decode", "B=8")])
        for p in out["points"]:
            self.assertAlmostEqual(p["flops"] / p["seconds"] * 1e-9, p["gflop_per_s"], places=6)
            self.assertAlmostEqual(p["gflop_per_s"] / p["limit_gflop_per_s"], p["share_of_limit"],
                                   places=6)
            self.assertEqual(p["above_limit"], p["share_of_limit"] > 1)
        page = xml.dom.minidom.parse("roof.svg")
        self.assertEqual(len(page.getElementsByTagName("rect")), 2 + 3)  # page, frame, points


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=1)
