# SPDX-License-Identifier: Apache-2.0
"""What the commands do with good input. Usage: test_cli.py PROGRAM GOLDEN_FOLDER"""
import json
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

import models
import signals

PROGRAM, GOLDEN = map(os.path.abspath, sys.argv[1:3])


def run(*arguments, code=0, **options):
    options.setdefault("stdin", subprocess.DEVNULL)
    result = subprocess.run([PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            timeout=300, **options)
    if result.returncode != code:
        raise AssertionError(f"{arguments}: exit code {result.returncode}, expected {code}\n"
                             f"{result.stderr.decode()[-500:]}")
    return result.stdout


def run_json(*arguments, **options):
    return json.loads(run(*arguments, **options))


class Commands(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        models.byte_model(PROGRAM, "model")
        models.write("text", "It was the best of times, it was the worst of times. " * 40)

    @classmethod
    def tearDownClass(cls):
        os.chdir("/")
        cls.folder.cleanup()

    def test_version_says_what_is_built_in_and_the_forced_path_runs(self):
        facts = run_json("version", "--json")
        self.assertEqual(facts["isas"], ["ref", "base", "avx2", "avx512", "avx512_bf16"])
        self.assertIn("cpu:base", facts["available"])
        processors = [d for d in facts["available"] if not d.startswith("cuda:")]
        self.assertEqual(facts["device"], processors[0])
        ran = []
        for device in processors:
            if device == "ref64":
                continue
            isa = device.split(":")[-1]
            forced = run_json("version", "--json", "--isa", isa, "--threads", "2")
            self.assertEqual(forced["device"], device)
            self.assertEqual(forced["kernels"], isa)
            self.assertEqual(forced["threads"], 2)
            answer = run_json("generate", "-m", "model", "-p", "x", "-n", "1", "--isa", isa, "--json")
            self.assertEqual(answer["model"]["device"], device)
            ran.append(isa)
        print("isas:", *ran)
        self.assertIn(facts["version"], run("--version").decode())

    def test_help_of_every_command(self):
        for command in ("train", "generate", "chat", "eval", "verify", "inspect", "bench", "version"):
            self.assertIn(b"Usage: mamba-cpp " + command.encode(), run(command, "--help"))

    def test_every_golden_model_passes_on_every_isa(self):
        available = run_json("version", "--json")["available"]
        for name in sorted(os.listdir(GOLDEN)):
            golden = f"{GOLDEN}/{name}/golden.safetensors"
            if not os.path.exists(golden):
                continue
            for device in available:
                if device == "ref64" or device.startswith("cuda:"):
                    continue
                result = run_json("verify", f"{GOLDEN}/{name}", golden, "--json", "--isa",
                                  device.split(":")[-1])
                self.assertEqual([m["mode"] for m in result["modes"]], ["full", "chunked", "steps"])
                for mode in result["modes"]:
                    self.assertLessEqual(mode["max_abs_error"], 1e-4)
                    self.assertIsNone(mode["first_greedy_mismatch"])

    def test_verify_writes_what_it_computed_and_fails_beyond_the_tolerance(self):
        ids = struct.pack("<6q", 1, 2, 3, 250, 0, 9)
        models.write("golden", models.safetensors({
            "input_ids": ("I64", [2, 3], ids), "logits": ("F32", [2, 3, 256], bytes(6 * 1024))}))
        failed = run_json("verify", "model", "golden", "--dump", "dump", "--json", code=1)
        self.assertFalse(failed["passed"])
        self.assertIsNotNone(failed["modes"][0]["first_greedy_mismatch"])
        dumped = models.read_safetensors("dump")
        self.assertEqual(dumped["logits"][:2], ("F32", [2, 3, 256]))
        models.write("golden", models.safetensors({
            "input_ids": ("I64", [2, 3], ids), "logits": dumped["logits"]}))
        passed = run_json("verify", "model", "golden", "--json")
        self.assertEqual(passed["modes"][0]["max_abs_error"], 0)
        values = bytearray(dumped["logits"][2])
        values[4 * 300:4 * 301] = struct.pack("<f", 1e6)
        models.write("golden", models.safetensors({
            "input_ids": ("I64", [2, 3], ids), "logits": ("F32", [2, 3, 256], bytes(values))}))
        broken = run_json("verify", "model", "golden", "--json", "--tolerance", "1000", code=1)
        worst = broken["modes"][0]["worst"]
        self.assertEqual((worst["row"], worst["position"], worst["token"]), (0, 1, 44))
        values[4 * 300:4 * 301] = struct.pack("<f", math.nan)
        models.write("golden", models.safetensors({
            "input_ids": ("I64", [2, 3], ids), "logits": ("F32", [2, 3, 256], bytes(values))}))
        refused = run_json("verify", "model", "golden", "--json", code=3)
        self.assertIn("nan at element 300", refused["error"]["message"])

    def test_broken_weights_are_refused_where_they_would_become_text(self):
        models.byte_model(PROGRAM, "broken")
        tensors = models.read_safetensors("broken/model.safetensors")
        dtype, shape, values = tensors["backbone.layers.1.mixer.D"]
        tensors["backbone.layers.1.mixer.D"] = (dtype, shape, struct.pack("<f", math.nan) + values[4:])
        models.write("broken/model.safetensors", models.safetensors(tensors))
        models.write("some_text", "It was the best of times. " * 20)
        for arguments in (("generate", "-m", "broken", "-p", "x", "-n", "4", "--state-out", "never"),
                          ("eval", "ppl", "-m", "broken", "-f", "some_text")):
            refused = run_json(*arguments, "--json", code=3)
            self.assertIn("overflow or hold NaN", refused["error"]["message"])
        self.assertFalse(os.path.exists("never"))

    def test_paths_that_are_no_utf8_are_shown_in_json(self):
        path = b"mod\xff"
        os.symlink("model", path)
        self.assertEqual(run_json("inspect", path, "--json")["path"], "mod\ufffd")
        answer = run_json("generate", "-m", path, "-p", "x", "-n", "1", "--json")
        self.assertEqual(answer["model"]["path"], "mod\ufffd")

    def test_a_saved_state_goes_on_in_another_process(self):
        def ids(*arguments):
            return run_json("generate", "-m", "model", "--json", "--seed", "3", *arguments)["ids"]
        whole = ids("-p", "Hello", "-n", "50")
        first = ids("-p", "Hello", "-n", "20", "--state-out", "state")
        second = ids("--state-in", "state", "-n", "30")
        self.assertEqual(first + second, whole)
        # Without a seed the saved one counts, and in several hops.
        hop = run_json("generate", "-m", "model", "--json", "--state-in", "state", "-n", "10",
                       "--state-out", "state")
        self.assertEqual(hop["seed"], 3)
        rest = run_json("generate", "-m", "model", "--json", "--state-in", "state", "-n", "20")
        self.assertEqual(first + hop["ids"] + rest["ids"], whole)
        # A prompt behind a state is the prompt behind the text.
        run("generate", "-m", "model", "-p", "He", "-n", "0", "--state-out", "state")
        joined = ids("--state-in", "state", "-p", "llo", "-n", "50")
        self.assertEqual(joined, whole)

    def test_states_of_either_type_go_on_in_the_other(self):
        def answer(*arguments):
            return run_json("generate", "-m", "model", "--json", "--temp", "0", "--pin", *arguments)

        plain = answer("-p", "Hello", "-n", "12")
        answer("-p", "Hello", "-n", "6", "--state-dtype", "bf16", "--state-out", "narrow")
        answer("-p", "Hello", "-n", "6", "--state-out", "wide")
        self.assertLess(os.path.getsize("narrow"), os.path.getsize("wide"))
        for saved, types in (("narrow", ("f32", "bf16")), ("wide", ("f32", "bf16"))):
            for state in types:
                rest = answer("-n", "6", "--state-in", saved, "--state-dtype", state)
                self.assertEqual(len(rest["ids"]), 6)
                if saved == "wide" and state == "f32":
                    self.assertEqual(rest["ids"], plain["ids"][6:])

    def test_a_character_cut_by_the_end_of_a_state_is_completed(self):
        go = ["generate", "-m", "model", "-n", "0"]
        self.assertEqual(run(*go, "-p", b"\xc3", "--echo", "--state-out", "half"), b"")
        again = [*go, "--state-in", "half", "-p", b"\xa9", "--echo"]
        self.assertEqual(run(*again), b"\xc3\xa9")
        self.assertEqual(run_json(*again, "--json")["text"], "\u00e9")
        # Without a state the answer ends here, and with it the character.
        self.assertEqual(run(*go, "-p", b"\xc3", "--echo"), "\ufffd".encode())
        # Text in pieces is the text in one.
        tail = ["generate", "-m", "model", "--seed", "3", "-n"]
        whole = run(*tail, "60", "-p", "Hello")
        pieces = run(*tail, "1", "-p", "Hello", "--state-out", "half")
        for _ in range(58):
            pieces += run(*tail, "1", "--state-in", "half", "--state-out", "half")
        pieces += run(*tail, "1", "--state-in", "half")
        self.assertEqual(pieces, whole)

    def test_ctrl_c_ends_the_wait_for_input(self):
        for command in (["generate", "-m", "model", "-n", "1"],
                        ["eval", "ppl", "-m", "model", "-f", "-"]):
            process = subprocess.Popen([PROGRAM, *command], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            signals.send_when_ready(process, signal.SIGINT)  # when it waits
            process.wait(timeout=60)
            self.assertEqual(process.returncode, 130)
            self.assertEqual(process.stderr.read(), b"error: interrupted\n")
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()

    def test_answers_of_one_call_are_those_of_any_other(self):
        one = run_json("generate", "-m", "model", "-p", "Hi", "-n", "20", "--seed", "5", "--json")
        four = run_json("generate", "-m", "model", "-p", "Hi", "-n", "20", "--seed", "5", "--json",
                        "--n", "4", "--threads", "1")
        self.assertEqual(len(four), 4)
        self.assertEqual(four[0]["ids"], one["ids"])
        self.assertEqual(len({tuple(a["ids"]) for a in four}), 4)
        self.assertEqual(set(one), {"prompt_ids", "ids", "text", "finish_reason", "timings", "seed",
                                    "model"})
        self.assertEqual(one["prompt_ids"], [72, 105])
        self.assertEqual(one["finish_reason"], "length")
        self.assertEqual(one["timings"]["prompt_tokens"], 2)
        self.assertEqual(one["timings"]["generated_tokens"], 20)

    def test_text_is_the_same_however_the_prompt_comes(self):
        tail = ["-n", "30", "--seed", "1"]
        want = run("generate", "-m", "model", "-p", "Hello", *tail)
        want.decode()  # never half a character
        models.write("prompt", "Hello")
        self.assertEqual(run("generate", "-m", "model", "-f", "prompt", *tail), want)
        with open("prompt", "rb") as file:
            self.assertEqual(run("generate", "-m", "model", *tail, stdin=file), want)
        self.assertEqual(run("generate", "-m", "model", "-p", "Hello", "--echo", *tail),
                         b"Hello" + want)
        answer = run_json("generate", "-m", "model", "-p", "Hello", "--json", *tail)
        self.assertEqual(answer["text"].encode(), want)
        ids = run("generate", "-m", "model", "--prompt-ids", "72,101,108,108,111", *tail)
        self.assertEqual([int(i) for i in ids.split()], answer["ids"])
        spaced = run("generate", "-m", "model", "--prompt-ids", "72, 101, 108,108 ,111", *tail)
        self.assertEqual(spaced, ids)
        # An empty prompt over bytes starts behind the end of a line.
        self.assertEqual(run_json("generate", "-m", "model", "-p", "", "--json")["prompt_ids"], [10])

    def test_a_stop_string_ends_the_text_before_it(self):
        tail = ["-p", "Hello", "-n", "60", "--seed", "1"]
        text = run_json("generate", "-m", "model", "--json", *tail)["text"]
        plain = [i for i in range(5, len(text) - 2) if "\ufffd" not in text[i:i + 2]]
        stop = text[plain[0]:plain[0] + 2]
        cut = run_json("generate", "-m", "model", "--json", "--stop", "nothing of it", "--stop", stop,
                       *tail)
        self.assertEqual(cut["finish_reason"], "stop")
        self.assertEqual(cut["text"], text[:text.index(stop)])

    def test_ctrl_c_prints_what_there_is_and_saves_the_state(self):
        process = subprocess.Popen([PROGRAM, "generate", "-m", "model", "-p", "x", "-n", "100000000",
                                    "--state-out", "interrupted"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.assertTrue(process.stdout.read(10))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        rest.decode(errors="strict" if rest[:1] < b"\x80" else "ignore")
        run("generate", "-m", "model", "--state-in", "interrupted", "-n", "1")

    def test_a_reader_that_leaves_is_no_error(self):
        process = subprocess.Popen([PROGRAM, "generate", "-m", "model", "-p", "x", "-n", "100000000"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(10)
        process.stdout.close()
        process.stdout = None
        _, error = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)
        self.assertNotIn(b"error", error)
        closed = subprocess.run(f"exec '{PROGRAM}' inspect model >&-", shell=True,
                                capture_output=True, timeout=60)
        self.assertEqual((closed.returncode, closed.stderr), (0, b""))

    def test_inspect_counts_parameters_with_and_without_weights(self):
        count = 0
        for _, shape, _ in models.read_safetensors("model/model.safetensors").values():
            count += math.prod(shape)
        full = run_json("inspect", "model", "--json")
        bare = run_json("inspect", "model/config.json", "--json")
        self.assertEqual(full["parameters"], count)
        self.assertEqual(bare["parameters"], count)
        self.assertTrue(full["weights"])
        self.assertFalse(bare["weights"])
        self.assertEqual([t["name"] for t in full["tensors"]], [t["name"] for t in bare["tensors"]])
        # Two layers of conv (32, 3) and ssm (32, 16), f32.
        self.assertEqual(full["state_bytes_per_sequence"], 4 * 2 * (32 * 3 + 32 * 16))
        self.assertIn(b"parameters           %d" % count, run("inspect", "model"))

    def test_inspect_of_published_sizes(self):
        # 129,135,360 is the count that transformers gives for state-spaces/mamba-130m-hf.
        self.assertEqual(run_json("inspect", "mamba-130m", "--json")["parameters"], 129135360)

    def test_perplexity_of_both_kinds(self):
        for flags in (["--window", "64", "--stride", "16"], ["--carry-state"]):
            result = run_json("eval", "ppl", "-m", "model", "-f", "text", "--json", *flags)
            self.assertEqual(result["tokens"], 53 * 40)
            self.assertEqual(result["scored"], 53 * 40 - 1)
            self.assertAlmostEqual(result["perplexity"], math.exp(result["nll_sum"] / result["scored"]),
                                   delta=1e-6 * result["perplexity"])
            self.assertAlmostEqual(result["bits_per_byte"],
                                   result["nll_sum"] / math.log(2) / result["bytes"], places=9)
            self.assertGreater(result["standard_error"], 0)
        self.assertIn(b"bits per byte", run("eval", "ppl", "-m", "model", "-f", "text"))

    def test_bench_reports_times_and_shares(self):
        kernel = run_json("bench", "kernel", "scan_step", "--seconds", "0", "-o", "json")
        (entry,) = kernel["kernels"]
        self.assertLessEqual(entry["error"], entry["tolerance"])
        self.assertLessEqual(entry["time"]["min_seconds"], entry["time"]["median_seconds"])
        self.assertGreater(kernel["machine"]["read_gb_per_s"], 0)
        self.assertGreater(kernel["machine"]["f32_gflop_per_s"], 0)
        model = run_json("bench", "model", "model", "--seconds", "0", "--prompt-length", "64", "-o",
                         "json")
        self.assertGreater(model["prefill"]["tokens_per_s"], 0)
        self.assertGreater(model["decode"]["tokens_per_s"], 0)
        train = run_json("bench", "train", "model", "--batch-size", "2", "--seq-len", "32", "--steps",
                         "5", "-o", "json")
        self.assertEqual(train["step"]["runs"], 5)
        self.assertLess(train["last_loss"], train["first_loss"])
        self.assertGreater(train["peak_rss_bytes"], train["planned_bytes"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=1)
