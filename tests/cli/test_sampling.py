# SPDX-License-Identifier: Apache-2.0
"""The sampling flags and generate --jsonl, with good and with wrong input. Usage: test_sampling.py
PROGRAM"""
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import models

PROGRAM = os.path.abspath(sys.argv[1])
GO = ["generate", "-m", "model"]
EVERYTHING = ["--temp", "0.9", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01", "--typical-p", "0.97",
              "--repeat-penalty", "1.2", "--presence-penalty", "0.1", "--frequency-penalty", "0.05",
              "--repeat-last-n", "-1", "--no-repeat-ngram", "3", "--logit-bias", "65+1", "--logit-bias",
              "0=-inf", "--stop-ids", "7,8", "--logprobs", "2"]


def call(*arguments, code=0, **options):
    options.setdefault("stdin", subprocess.DEVNULL)
    result = subprocess.run([PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            timeout=300, **options)
    if result.returncode != code:
        raise AssertionError(f"{arguments}: exit code {result.returncode}, expected {code}\n"
                             f"{result.stderr.decode()[-500:]}")
    return result


def ids(*arguments):
    return json.loads(call(*GO, "--json", *arguments).stdout)["ids"]


def lines(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def jsonl(objects):
    return "".join((o if isinstance(o, str) else json.dumps(o)) + "\n" for o in objects)


PROMPTS = [{"prompt": "Hello", "id": "a"}, {"prompt_ids": [1, 2, 3], "max_tokens": 5, "id": 7},
           {"prompt": ""}, "   ", {"prompt": "x" * 700, "seed": 4}, {"prompt": "Hi", "max_tokens": 0},
           {"prompt": "Hello", "stop": ["a", "e", "o"]}, {"prompt": "Hello", "stop": "\u00e9", "seed": 0},
           {"prompt_ids": [0], "max_tokens": 60}]
ASKED = [p for p in PROMPTS if not isinstance(p, str)]


class Sampling(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        models.byte_model(PROGRAM, "model")
        models.byte_model(PROGRAM, "words", vocab_size=64)
        models.write("in", jsonl(PROMPTS))

    @classmethod
    def tearDownClass(cls):
        os.chdir("/")
        cls.folder.cleanup()

    def refused(self, code, parts, *arguments, **options):
        result = call(*arguments, code=code, **options)
        error = result.stderr.decode()
        self.assertTrue(error.splitlines()[-1].startswith("error: "), error)
        for part in parts:
            self.assertIn(part, error)
        return result

    def test_every_flag_reaches_the_sampler(self):
        tail = ["-p", "Hello", "-n", "40", "--seed", "3"]
        plain = ids(*tail)
        for flags in (["--temp", "0.3"], ["--top-k", "3"], ["--top-p", "0.3"], ["--min-p", "0.5"],
                      ["--typical-p", "0.3"], ["--typical", "0.3"], ["--repeat-penalty", "3"],
                      ["--repetition-penalty", "3"], ["--presence-penalty", "5"],
                      ["--frequency-penalty", "5"], ["--no-repeat-ngram", "1"],
                      ["--logit-bias", f"{plain[0]}=-inf"], ["--stop-ids", f"{plain[5]}"],
                      ["--samplers", "temperature"]):
            self.assertNotEqual(ids(*tail, *flags), plain, flags)
        self.assertEqual(ids(*tail[:-2], "-s", "3"), plain)
        self.assertNotEqual(ids(*tail[:-2], "-s", "4"), plain)
        self.assertEqual(ids(*tail, "--samplers", "penalties;top-k;typ_p;top_p;min-p;temp"), plain)
        self.assertEqual(ids(*tail, "--repeat-penalty", "3", "--repeat-last-n", "1000"),
                         ids(*tail, "--repeat-penalty", "3", "--repeat-last-n", "-1"))

    def test_biases_in_every_form(self):
        tail = ["-p", "Hello", "-n", "1", "--temp", "0"]
        for form in ("66+500", "66=500", "66=+500", "B+500", "B=500", "66+5e2"):
            self.assertEqual(ids(*tail, "--logit-bias", form), [66], form)
        best = ids(*tail)[0]
        for form in (f"{best}=-inf", f"{best}=false", f"{best}-inf", f"{best}-900", f"{best}=-900"):
            self.assertNotEqual(ids(*tail, "--logit-bias", form), [best], form)
        self.assertEqual(ids(*tail, "--logit-bias", "==500"), [ord("=")])
        self.assertEqual(ids(*tail, "--logit-bias", "++500"), [ord("+")])

    def test_stop_ids_and_min_tokens(self):
        tail = ["-p", "Hello", "-n", "30", "--seed", "3"]
        plain = ids(*tail)
        stopped = json.loads(call(*GO, "--json", *tail, "--stop-ids", f"255,{plain[8]}").stdout)
        self.assertEqual(stopped["ids"], plain[:plain.index(plain[8]) + 1])
        self.assertEqual(stopped["finish_reason"], "stop")
        waits = ids(*tail, "--stop-ids", f"{plain[8]}", "--min-tokens", "20")
        self.assertNotIn(plain[8], waits[:20])

    def test_logprobs_have_the_form_of_completions(self):
        answer = json.loads(call(*GO, "-p", "Hello", "-n", "20", "--json", "--logprobs", "3").stdout)
        found = answer["logprobs"]
        self.assertEqual(set(found), {"tokens", "token_logprobs", "top_logprobs"})
        for token, text, own, top in zip(answer["ids"], found["tokens"], found["token_logprobs"],
                                         found["top_logprobs"], strict=True):
            self.assertEqual(text, chr(token) if token < 128 else f"bytes:\\x{token:02x}")
            self.assertEqual(top[text], own)
            self.assertIn(len(top), (3, 4))
            self.assertLessEqual(sum(math.exp(v) for v in top.values()), 1 + 1e-9)
        none = json.loads(call(*GO, "-p", "x", "-n", "2", "--json", "--logprobs", "0").stdout)
        self.assertEqual(none["logprobs"]["top_logprobs"], [{}, {}])
        bare = json.loads(call("generate", "-m", "words", "--prompt-ids", "1", "-n", "2", "--json",
                               "--logprobs", "1").stdout)
        self.assertEqual(bare["logprobs"]["tokens"], [f"token_id:{i}" for i in bare["ids"]])

    def test_a_state_goes_on_with_penalties(self):
        flags = ["--seed", "3", "--repeat-penalty", "1.5", "--repeat-last-n", "30", "--no-repeat-ngram", "2"]
        whole = ids("-p", "Hello", "-n", "60", *flags)
        first = ids("-p", "Hello", "-n", "25", "--state-out", "state", *flags)
        self.assertEqual(first + ids("--state-in", "state", "-n", "35", *flags), whole)
        call(*GO, "-p", "x" * 5000, "-n", "1", "--state-out", "state")
        self.refused(2, ["4096 of 5001", "no_repeat_ngram"], *GO, "--state-in", "state", *flags)

    def test_the_models_generation_config_stands_between_flag_and_default(self):
        models.byte_model(PROGRAM, "configured")

        def call_ids(*arguments):
            return json.loads(call("generate", "-m", "configured", "-p", "Hello", "-n", "30", "--seed",
                                   "3", "--json", *arguments).stdout)["ids"]

        greedy, plain = call_ids("--temp", "0"), call_ids()
        models.write("configured/generation_config.json", '{"do_sample": false}')
        self.assertEqual(call_ids(), greedy)
        self.assertEqual(call_ids("--temp", "0.8"), plain)
        models.write("configured/generation_config.json",
                     json.dumps({"top_k": 2, "eos_token_id": [255, plain[7]]}))
        self.assertNotEqual(call_ids(), plain)
        ended = call_ids("--top-k", "0")
        self.assertEqual(ended, plain[:plain.index(plain[7]) + 1])
        self.assertEqual(call_ids("--top-k", "0", "--ignore-eos"), plain)
        models.write("configured/generation_config.json", '{"top_p": 7}')
        self.refused(3, ["generation_config.json", "top_p", "7"], "generate", "-m", "configured", "-p", "x")
        models.write("configured/generation_config.json", '{"eos_token_id": 256}')
        self.refused(3, ["generation_config.json", "eos_token_id", "256"], "generate", "-m",
                     "configured", "-p", "x")

    def alone(self, index, prompt, *flags):
        """The line that a prompt gets, from a run with this prompt alone."""
        stop = prompt.get("stop", [])
        for text in [stop] if isinstance(stop, str) else stop:
            flags += ("--stop", text)
        flags += ("-p", prompt["prompt"]) if "prompt" in prompt else (
            "--prompt-ids", ",".join(map(str, prompt["prompt_ids"])))
        answer = json.loads(call(*GO, "--json", "-n", str(prompt.get("max_tokens", 20)), "--seed",
                                 str(prompt.get("seed", 9)), *flags).stdout)
        want = {k: answer[k] for k in ("text", "ids", "finish_reason", "seed", "logprobs")}
        want |= {"index": index, "prompt_tokens": len(answer["prompt_ids"])}
        return want | ({"id": prompt["id"]} if "id" in prompt else {})

    def test_lines_are_answered_as_alone(self):
        flags = [*GO, "--jsonl", *EVERYTHING, "--seed", "9", "-n", "20"]
        for dtype, settings in (("f32", ((1, 1), (2, 2), (3, 1), (7, 2))), ("bf16", ((1, 2), (3, 1)))):
            want = [self.alone(i, p, *EVERYTHING, "--dtype", dtype) for i, p in enumerate(ASKED)]
            for batch, threads in settings:
                got = call(*flags, "-f", "in", "-b", str(batch), "-t", str(threads), "--dtype", dtype)
                results = [json.loads(line) for line in got.stdout.splitlines()]
                for result in results:
                    self.assertEqual(len(result.pop("request")), 16)
                self.assertEqual(results, want)
        with open("in", "rb") as file:
            piped = call(*flags, "--dtype", "bf16", stdin=file)
        self.assertEqual(piped.stdout, got.stdout)

    def test_a_cut_output_is_completed(self):
        flags = [*GO, "--jsonl", "-f", "in", "-n", "20", "--repeat-penalty", "1.3"]
        call(*flags, "-o", "whole")  # its seed is chosen then, and the resumed runs go on with it
        with open("whole", "rb") as file:
            whole = file.read()
        self.assertEqual(whole.count(b"\n"), len(ASKED))
        for size in (0, 1, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) // 2, len(whole) - 1,
                     len(whole)):
            models.write("part", whole[:size])
            self.refused(2, ["--output", "'part'", "--resume"], *flags, "-o", "part")
            seed = [] if size > whole.index(b"\n") else ["--seed", str(lines("whole")[0]["seed"])]
            error = call(*flags, "-o", "part", "--resume", *seed).stderr.decode()
            with open("part", "rb") as file:
                self.assertEqual(file.read(), whole)
            self.assertIn(f"answered {len(ASKED)}/{len(ASKED)} prompts", error)
        for more, parts in ((["--temp", "0.5"], ["whole, line 1", "prompt 0"]),
                            (["--seed", "123"], ["whole, line 1"])):
            self.refused(3, parts, *flags, "-o", "whole", "--resume", *more)
        models.write("fewer", jsonl(PROMPTS[:2]))
        self.refused(3, ["whole, line 3", "at most 2"], *GO, "--jsonl", "-f", "fewer", "-n", "20",
                     "--repeat-penalty", "1.3", "-o", "whole", "--resume")
        models.write("foreign", "[1]\n")
        self.refused(3, ["foreign, line 1"], *flags, "-o", "foreign", "--resume")
        call(*flags, "-o", "fresh", "--resume")  # nothing to go on with: from the start
        self.assertEqual(len(lines("fresh")), len(ASKED))

    def test_ctrl_c_leaves_whole_lines_and_says_how_to_go_on(self):
        many = [{"prompt": str(i)} for i in range(3000)]
        models.write("many", jsonl(many))
        flags = [*GO, "--jsonl", "-f", "many", "-n", "60", "--seed", "1", "-o", "interrupted"]
        process = subprocess.Popen([PROGRAM, *flags], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        while not os.path.exists("interrupted") or os.path.getsize("interrupted") < 1000:
            self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1].decode()
        self.assertEqual(process.returncode, 130)
        self.assertIn("--resume", error)
        with open("interrupted", "rb") as file:
            content = file.read()
        self.assertTrue(content.endswith(b"\n"))
        done = lines("interrupted")
        self.assertTrue(0 < len(done) < 3000)
        self.assertEqual([r["index"] for r in done], list(range(len(done))))
        self.assertIn(f"answered {len(done):,}/3,000 prompts", error)

    def test_answers_that_wait_for_a_cut_one_are_not_counted(self):
        models.write("long first", jsonl([{"prompt": "a"}] + [
            {"prompt": "a", "max_tokens": 10**9 if i == 0 else 1} for i in range(6)]))
        process = subprocess.Popen([PROGRAM, *GO, "--jsonl", "-f", "long first", "-n", "1",
                                    "--ignore-eos", "-o", "waiting"], stderr=subprocess.PIPE,
                                   stdin=subprocess.DEVNULL)
        while not os.path.exists("waiting") or os.path.getsize("waiting") == 0:
            self.assertIsNone(process.poll())
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1].decode()
        self.assertEqual((process.returncode, len(lines("waiting"))), (130, 1), error)
        self.assertIn("answered 1/7 prompts", error)
        self.assertIn("5 more were ready behind an unfinished one, and are not kept", error)

    def test_wrong_lines_are_named_before_anything_is_written(self):
        good = {"prompt": "x"}
        for bad, parts in ((["{"], ["line 2"]), ([[]], ["line 2", "an object", "[]"]),
                           ([{}], ["line 2", "neither"]),
                           ([{"prompt": "x", "prompt_ids": [1]}], ["both"]),
                           ([{"prompt": 5}], ["\"prompt\" to be a string", "5"]),
                           ([{"prompt_ids": []}], ["at least one id"]),
                           ([{"prompt_ids": [1, 256]}], ["0 to 255", "256"]),
                           ([{"prompt_ids": "1"}], ["a list"]),
                           ([{**good, "max_tokens": -1}], ["max_tokens", "-1"]),
                           ([{**good, "seed": 1.5}], ["seed", "1.5"]),
                           ([{**good, "seed": 2**63}], ["seed"]),
                           ([{**good, "stop": [""]}], ["\"stop\"", "none empty"]),
                           ([{**good, "id": [1]}], ["\"id\"", "[1]"]),
                           ([{**good, "max_token": 5}], ["max_tokens (max_new_tokens), seed", "\"max_token\""]),
                           (["   ", "nonsense"], ["line 3"])):
            models.write("bad", jsonl([good, *bad, good]))
            self.refused(3, ["[bad, line", *parts], *GO, "--jsonl", "-f", "bad", "-o", "none", "-n", "2")
            self.assertFalse(os.path.exists("none"))
            with open("bad", "rb") as file:  # a stream: what stood before the line is answered
                result = self.refused(3, ["standard input, line", *parts], *GO, "--jsonl", "-n", "2",
                                      stdin=file)
            self.assertEqual(len(result.stdout.splitlines()), 1)
        models.write("bad", jsonl([{"prompt_ids": [1]}, good]))
        self.refused(3, ["bad, line 2", "prompt_ids", "no tokenizer"], "generate", "-m", "words",
                     "--jsonl", "-f", "bad")
        models.write("bad", jsonl([{**good, "max_tokens": 3}]))
        self.refused(3, ["bad, line 1", "--min-tokens = 4"], *GO, "--jsonl", "-f", "bad", "--min-tokens",
                     "4")

    def test_rows_without_jsonl_change_nothing_and_say_so(self):
        one = ["generate", "-m", "model", "-p", "x", "-n", "2", "--temp", "0"]
        plain = subprocess.run([PROGRAM, *one], capture_output=True, check=True)
        rows = subprocess.run([PROGRAM, *one, "-b", "2"], capture_output=True, check=True)
        self.assertEqual(rows.stdout, plain.stdout)
        self.assertIn(b"warning: [--batch-size] changes nothing without --jsonl", rows.stderr)

    def test_wrong_flags_are_refused(self):
        one = [*GO, "-p", "x", "-n", "2"]
        for flags, parts in (
                (["--typical-p", "0"], ["--typical-p", "0"]),
                (["--repeat-penalty", "0"], ["--repeat-penalty"]),
                (["--repeat-last-n", "-2"], ["--repeat-last-n", "-1..", "-2"]),
                (["--presence-penalty", "nan"], ["--presence-penalty", "nan"]),
                (["--frequency-penalty", "1e9"], ["--frequency-penalty", "1000"]),
                (["--no-repeat-ngram", "-1"], ["--no-repeat-ngram"]),
                (["--logit-bias", "5"], ["--logit-bias", "TOKEN=VALUE", "'5'"]),
                (["--logit-bias", "5=warm"], ["--logit-bias", "'5=warm'"]),
                (["--logit-bias", "5+inf"], ["--logit-bias", "'5+inf'"]),
                (["--logit-bias", "300+1"], ["--logit-bias", "0..255", "300"]),
                (["--logit-bias", "two=1"], ["--logit-bias", "'two' is 3 tokens"]),
                (["--logit-bias", "5+1", "--logit-bias", "5-1"], ["once", "5 twice"]),
                (["--min-tokens", "3"], ["min_tokens", "max_tokens = 2", "3"]),
                (["--stop-ids", "1,x"], ["--stop-ids", "x"]),
                (["--stop-ids", "256"], ["--stop-ids", "0..255", "256"]),
                (["--samplers", "top_k;dry"], ["[samplers]", "'dry'", "typical_p"]),
                (["--samplers", "top_k;top_k"], ["'top_k' twice"]),
                (["--samplers", "top_k", "--temp", "1"], ["--samplers", "temperature", "--temp"]),
                (["--samplers", "temp", "--repeat-penalty", "2"], ["penalties", "--repeat-penalty"]),
                (["--repeat-last-n", "0", "--presence-penalty", "1"], ["--presence-penalty", "0"]),
                (["--logprobs", "2"], ["--logprobs", "--json"]),
                (["--logprobs", "-1", "--json"], ["--logprobs", "0..1000"]),
                (["--output", "new"], ["--output", "--jsonl"]),
                (["--jsonl"], ["--jsonl", "--prompt"])):
            output = self.refused(2, parts, *one, *flags).stdout
            self.assertTrue(output == b"" or "--json" in flags)  # that one has the error as JSON too
        many = [*GO, "--jsonl", "-f", "in"]
        for flags, code, parts in (
                (["--resume"], 2, ["--resume", "--output"]), (["-b", "0"], 2, ["--batch-size", "1..4096"]),
                (["--echo"], 2, ["--echo"]), (["--n", "2"], 2, ["--n"]),
                (["-o", "model"], 2, ["[model] expected a file name, got a folder"]),
                (["-o", "in"], 2, ["--output", "'in'"]), (["-o", "nowhere/x"], 3, ["nowhere/x"])):
            self.assertEqual(self.refused(code, parts, *many, *flags).stdout, b"")
        self.refused(3, ["nowhere"], *GO, "--jsonl", "-f", "nowhere")
        with open("/dev/full", "wb") as full:
            error = subprocess.run([PROGRAM, *many, "-n", "2"], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(error.returncode, 3)
        self.assertIn(b"stdout", error.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=1)
