# SPDX-License-Identifier: Apache-2.0
"""What all commands share: help, environment, files of settings, errors as JSON, colours,
completions, the manual. Usage: test_command_line.py PROGRAM"""
import itertools
import json
import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import unittest

import models

PROGRAM = os.path.abspath(sys.argv[1])
CLEAN = {k: v for k, v in os.environ.items()
         if not k.startswith("MAMBA_CPP_") and k not in ("NO_COLOR", "TERM")}


def run(*arguments, code=0, env=None, **options):
    """Standard output and standard error."""
    options.setdefault("stdin", subprocess.DEVNULL)
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, timeout=120,
                            env={**CLEAN, **(env or {})}, **options)
    if result.returncode != code:
        raise AssertionError(f"{arguments}: exit code {result.returncode}, expected {code}\n"
                             f"{result.stderr.decode()[-500:]}")
    return result.stdout.decode(), result.stderr.decode()


def settings(name, content):
    return models.write(name, content if isinstance(content, str) else json.dumps(content))


class CommandLine(unittest.TestCase):
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

    def answer(self, *arguments, **options):
        """The answer and how many tokens it has, from flags and elsewhere."""
        out, _ = run("generate", "-m", "model", "-p", "x", "--json", "-s", "1", *arguments, **options)
        return json.loads(out)

    def count(self, *arguments, **options):
        return len(self.answer(*arguments, **options)["ids"])

    def complaint(self, *arguments, code=2, **options):
        out, error = run(*arguments, code=code, **options)
        self.assertEqual(out, "")
        self.assertEqual(error.count("\n"), 1, error)
        return error

    # Help

    def test_help_of_every_command_and_by_every_way(self):
        listed, _ = run("--help")
        for heading in ("Use a model", "Make a model", "Look at models", "Tools"):
            self.assertIn(f"\n{heading}\n", listed)
        for command in ("generate", "train", "eval", "eval ppl", "bench model", "tokenizer train"):
            text, error = run(*command.split(), "--help")
            self.assertIn(f"Usage: mamba-cpp {command} ", text)
            self.assertEqual(error, "")
            self.assertEqual(run("help", *command.split())[0], text)
            everything, _ = run(*command.split(), "--help-all")
            self.assertEqual(run("help", *command.split(), "--all")[0], everything)
            self.assertTrue(all(len(line) <= 80 for line in text.splitlines()
                                if "mamba-cpp" not in line), text)
        self.assertIn("Examples", text)
        self.assertNotIn("--adam-beta1", run("train", "--help")[0])
        self.assertIn("[MAMBA_CPP_ADAM_BETA1]", run("train", "--help-all")[0])
        self.assertIn("did you mean 'ppl'", self.complaint("help", "eval", "pppl"))
        self.assertIn("no more words", self.complaint("help", "eval", "ppl", "x"))

    def test_the_help_of_a_default_that_depends_says_on_what(self):
        text = " ".join(run("convert", "--help-all")[0].split())
        option = text[text.index("--tolerance X"):]
        self.assertRegex(option, r"^--tolerance X +Of --verify: .* default: 1e-5, but 0.02 with "
                                 r"--dtype f16, .* \[MAMBA")

    def test_without_a_command_the_help_goes_to_standard_error(self):
        out, error = run(code=2)
        self.assertEqual(out, "")
        self.assertEqual(error, run("--help")[0])
        self.assertIn("kernel, model, train, roofline", self.complaint("bench"))

    # Names of flags

    def test_names_that_others_use(self):
        want = self.count("-n", "3")
        self.assertEqual(want, 3)
        for flag in ("--max-new-tokens", "--max_new_tokens", "--max_tokens", "--predict",
                     "--n-predict", "--tokens"):
            self.assertEqual(self.count(flag, "3"), 3, flag)
            self.assertEqual(self.count(f"{flag}=3"), 3, flag)
        self.assertEqual(self.answer("-n3", "--temperature=0.5", "-t", "1")["ids"],
                         self.answer("-n", "3", "--temp", "0.5")["ids"])
        _, error = run("generate", "-m", "model", "-p", "abc", "-n", "2", "-c", "4")
        self.assertIn("note: 5 tokens are more than --ctx-size 4", error)
        _, error = run("generate", "-m", "model", "-p", "abc", "-n", "2", "-c", "5")
        self.assertNotIn("note", error)

    def test_flags_of_llama_cpp_and_vllm(self):
        """Those with a meaning mean it; the others are taken with one warning."""
        base = ["generate", "-m", "model", "-p", "x", "-s", "1", "-n", "4"]
        plain, quiet = run(*base)
        self.assertNotIn("warning", quiet)
        for flags, named in ((["-ngl", "99"], "--gpu-layers"), (["--n-gpu-layers=all"], "--gpu-layers"),
                             (["-ngl99"], "--gpu-layers"), (["-ub64"], "--ubatch-size"),
                             (["-ngl", "-1"], "--gpu-layers"),
                             (["-ub", "64"], "--ubatch-size"), (["-cb"], "--cont-batching"),
                             (["--ubatch_size", "64"], "--ubatch-size")):
            out, error = run(*base, *flags)
            self.assertEqual(out, plain)
            self.assertEqual(error.count("warning"), 1, error)
            self.assertIn(f"warning: [{named}] changes nothing here", error)
        for flags in (["--device", "cpu"], ["-dev", "cpu"], ["--max_model_len", "99"],
                      ["--max-model-len", "99"], ["-n=4"], ["-n4"]):
            out, error = run(*base, *flags) if flags[0][:2] != "-n" else run(*base[:-2], *flags)
            self.assertEqual((out, "warning" in error), (plain, False))
        self.assertIn("5 tokens are more than --ctx-size 2", run(*base, "--max-model-len", "2")[1])
        # No machine has a hundred GPUs, and most have none.
        self.assertIn("'cuda:99'", self.complaint(*base, "--device", "cuda:99", code=4))
        for device in ("cuda:", "cuda:x", "cuda0", "tpu"):
            self.assertIn(f"got '{device}'", self.complaint(*base, "--device", device))
        self.assertIn("[--isa]", self.complaint(*base, "--device", "cuda", "--isa", "avx2"))
        listed, _ = run("generate", "--list-devices")
        self.assertIn("base", listed)
        self.assertEqual(run("chat", "--list-devices")[0], listed)
        models.write("prompts", '{"prompt": "a"}\n{"prompt": "b"}\n')
        lines = ["generate", "-m", "model", "--jsonl", "-f", "prompts", "-s", "1", "-n", "3"]
        self.assertEqual(run(*lines, "-np", "2")[0], run(*lines, "-b", "1")[0])
        self.assertEqual(run(*lines, "-np4")[0], run(*lines, "-b", "1")[0])
        models.write("line", "some text\n" * 9)
        for flags in (["-np", "4"], ["--max-num-seqs", "4"]):
            error = run("eval", "ppl", "-m", "model", "-f", "line", *flags)[1]
            self.assertIn("warning: [--parallel] changes nothing here: windows", error)
            error = run("chat", "-m", "model", *flags)[1]
            self.assertIn("warning: [--parallel] changes nothing here: one conversation", error)
        for word in ("-n5", "-n", "--temp", "--max_new_tokens=5", "-ub64"):
            error = self.complaint(*base, "-ngl", word)
            self.assertIn(f"[--gpu-layers] expected a number, got the flag '{word}' behind", error)
        self.assertIn("'-n5' behind '--temp'", self.complaint(*base, "--temp", "-n5"))
        for word in ("--jinja", "--chat-template", "--chat_template=chatml", "--system-prompt"):
            self.assertIn("use 'mamba-cpp chat'", self.complaint(*base, word))
        for word in ("-nx", "-mmodel", "-tfast", "-md"):
            error = self.complaint(*base, word)
            self.assertIn(f"expected a known flag, got '{word}'", error)
        self.assertIn("expected a known flag, got '-ngl'",
                      self.complaint("inspect", "model", "-ngl", "5"))

    def test_answers_until_the_end_token_and_samplers_that_are_off(self):
        self.assertEqual(self.count("-n", "-1", "--stop", "q", "--logit-bias", "113=100"), 1)
        greedy = self.answer("--temp", "0", "-n", "9")["ids"]
        self.assertEqual(self.answer("--top-p", "0", "-n", "9")["ids"], greedy)
        every = self.answer("--top-k", "0", "-n", "9")["ids"]
        self.assertEqual(self.answer("--top-k", "-1", "-n", "9")["ids"], every)
        self.complaint("generate", "-m", "model", "-p", "x", "-n", "-2")
        self.complaint("chat", "-m", "model", "-n", "0")

    def test_a_list_in_a_variable(self):
        for value, wanted in (("65=-inf", {65}), ('["65=-inf", "66=-inf"]', {65, 66})):
            ids = self.answer("-n", "1", "--logprobs", "255",
                              env={"MAMBA_CPP_LOGIT_BIAS": value})["ids"]
            self.assertFalse(wanted & set(ids))
        self.assertEqual(self.count("-n", "5", "--logit-bias", "120=100",
                                    env={"MAMBA_CPP_STOP": '["q", "x"]'}), 1)
        self.assertEqual(self.count("-n", "5", "--logit-bias", "91=100",
                                    env={"MAMBA_CPP_STOP": "["}), 1)

    def test_prompts_whose_answers_need_no_step_are_counted(self):
        models.write("prompts", '{"prompt": "a"}\n{"prompt": "b", "max_tokens": 0}\n')
        _, error = run("generate", "-m", "model", "--jsonl", "-f", "prompts", "-n", "1")
        self.assertIn("answered 2/2 prompts, 1 tokens", error)

    def test_a_failed_run_leaves_no_empty_file(self):
        models.write("bad", '{"prompt": "a"}\n')
        error = self.complaint("generate", "-m", "model", "--jsonl", "-f", "bad", "-o", "full.jsonl",
                               "-n", "9", code=3, preexec_fn=lambda: resource.setrlimit(
                                   resource.RLIMIT_FSIZE, (0, 0)))
        self.assertIn("full.jsonl", error)
        self.assertFalse(os.path.exists("full.jsonl"))

    def test_a_value_may_look_like_a_flag(self):
        out, _ = run("generate", "-m", "model", "-p", "--no_flag", "-n", "0", "--echo")
        self.assertEqual(out, "--no_flag")

    def test_what_was_meant(self):
        for arguments, meant in {
                ("generate", "--max_new_tokns", "3"): "'--max-new-tokens'",
                ("generate", "-temp", "1"): "'--temp'",
                ("generate", "-m", "model", "--isa", "avx_512"): "'avx512'",
                ("evla",): "'eval'",
                ("eval", "pppl"): "'ppl'",
                ("completion", "bsh"): "'bash'",
        }.items():
            self.assertIn(f"did you mean {meant}", self.complaint(*arguments), arguments)

    # Environment and files

    def test_the_order_of_flag_environment_file_default(self):
        file = ["--config", settings("order.toml", "max-new-tokens = 4\n")]
        general, own = {"MAMBA_CPP_MAX_NEW_TOKENS": "3"}, {"MAMBA_CPP_GENERATE_MAX_NEW_TOKENS": "2"}
        self.assertEqual(self.count("-n", "1", *file, env={**general, **own}), 1)
        self.assertEqual(self.count(*file, env={**general, **own}), 2)
        self.assertEqual(self.count(*file, env=general), 3)
        self.assertEqual(self.count(*file), 4)
        self.assertEqual(self.count(), 128)
        self.assertEqual(self.count(env={"MAMBA_CPP_CONFIG": "order.toml"}), 4)
        self.assertEqual(self.count("-n", "5", env={"MAMBA_CPP_MAX_NEW_TOKENS": ""}), 5)
        own_section = settings("own.toml", "max-new-tokens = 4\n[generate]\nmax_new_tokens = 6\n")
        self.assertEqual(self.count("--config", own_section), 6)

    def test_a_byte_order_mark_is_passed_over(self):
        self.assertEqual(self.count("--config", settings("bom.toml", "\ufeffn-predict = 3\n")), 3)
        models.write("bom.json", "\ufeff".encode() + b'{"max_tokens": 2}')
        self.assertEqual(self.count("--config", "bom.json"), 2)
        old_mac = settings("mac.toml", "# of an old system\rpredict = 3\r[eval.ppl]\rwindow = 64\r")
        self.assertEqual(self.count("--config", old_mac), 3)
        letters = settings("letters.toml", "[generate]\nt = 1\ns = 5\n[chat]\nn = 5\n")
        out, _ = run("generate", "-m", "model", "-p", "x", "-n", "3", "--json", "--config", letters)
        self.assertEqual(json.loads(out)["seed"], 5)
        for text in ("n = 5\n", "[generate]\nn = 5\n"):
            error = self.complaint("generate", "-m", "model", "-p", "x", "--config",
                                   settings("n.toml", text))
            self.assertIn("expected 'max-new-tokens' (-n) or 'samples' (--n) of 'generate'", error)

    def test_required_flags_and_booleans_from_the_environment(self):
        env = {"MAMBA_CPP_MODEL": "model", "MAMBA_CPP_PROMPT": "x", "MAMBA_CPP_N": "1"}
        for word in ("1", "true", "on", "enabled"):
            out, _ = run("generate", "-n", "2", env={**env, "MAMBA_CPP_JSON": word})
            self.assertEqual(len(json.loads(out)["ids"]), 2)
        for word in ("0", "false", "off", "disabled", ""):
            out, _ = run("generate", "-n", "2", env={**env, "MAMBA_CPP_JSON": word})
            self.assertFalse(out.startswith("{"))
        error = self.complaint("generate", env={**env, "MAMBA_CPP_ECHO": "maybe"})
        self.assertIn("[MAMBA_CPP_ECHO] expected one of 1, true, on, enabled", error)

    def test_a_flag_beats_a_variable_that_it_excludes(self):
        models.write("prompt", "Hello")
        out, _ = run("generate", "-m", "model", "-n", "0", "--echo", "-f", "prompt",
                     env={"MAMBA_CPP_PROMPT": "other"})
        self.assertEqual(out, "Hello")

    def test_a_wrong_value_names_where_it_came_from(self):
        base = ["generate", "-m", "model", "-p", "x"]
        self.assertIn("[MAMBA_CPP_TEMP] expected a number in 0..1000, got 'warm'",
                      self.complaint(*base, env={"MAMBA_CPP_TEMP": "warm"}))
        self.assertIn("[MAMBA_CPP_GENERATE_ISA] expected one of",
                      self.complaint(*base, env={"MAMBA_CPP_GENERATE_ISA": "sse9"}))
        path = settings("warm.toml", "\n[generate]\ntemp = warm\n")
        self.assertIn("[warm.toml:3] expected a number", self.complaint(*base, "--config", path))
        path = settings("ten.json", {"generate": {"max_new_tokens": 1e0}})
        run(*base, "--config", path)
        path = settings("warm.json", {"generate": {"temp": "warm"}})
        self.assertIn("[warm.json, 'generate.temp'] expected a number", self.complaint(*base, "--config", path))

    def test_typed_flags_win_over_settings_that_exclude_them(self):
        models.write("lines", "some text of a few words\n" * 9)
        ppl = ["eval", "ppl", "-m", "model", "-f", "lines", "--json"]
        carried, windows = (json.loads(run(*ppl, *flags)[0])["nll_sum"]
                            for flags in (["--carry-state"], ["--window", "16"]))
        self.assertNotEqual(carried, windows)
        path = settings("window.toml", "[eval.ppl]\nwindow = 16\n")
        for flags, env in ((["--carry-state"], {"MAMBA_CPP_WINDOW": "16"}),
                           (["--carry-state", "--config", path], {})):
            self.assertEqual(json.loads(run(*ppl, *flags, env=env)[0])["nll_sum"], carried)
        out, _ = run(*ppl, "--window", "16", env={"MAMBA_CPP_CARRY_STATE": "1"})
        self.assertEqual(json.loads(out)["nll_sum"], windows)
        train = ["train", "--data", "lines", "--output-dir", "going", "--max-steps", "2",
                 "--batch-size", "1", "--seq-len", "8"]
        env = {"MAMBA_CPP_INIT_FROM": "model"}
        run(*train, env=env)
        run(*train, "--resume", env=env)
        self.assertIn("--init-from or --resume", self.complaint(*train, "--init-from", "model",
                                                                "--resume"))

    def test_settings_that_this_run_has_no_use_for(self):
        base = ["generate", "-m", "model", "-p", "x", "-n", "1"]
        for name, flag in (("MAMBA_CPP_OUTPUT", "--jsonl"), ("MAMBA_CPP_RESUME", "--output"),
                           ("MAMBA_CPP_LOGPROBS", "--json or --jsonl")):
            told = run(*base, env={name: "1"})[1]
            self.assertEqual(told.count(f"warning: [{name}] changes nothing without {flag}"), 1, told)
        # Two of one place contradict each other; else the place counts.
        both = {"MAMBA_CPP_CARRY_STATE": "1", "MAMBA_CPP_WINDOW": "16"}
        models.write("lines", "some text of a few words\n" * 9)
        ppl = ["eval", "ppl", "-m", "model", "-f", "lines"]
        error = self.complaint(*ppl, env=both)
        for name in both:
            self.assertIn(name, error)
        path = settings("both.toml", "[eval.ppl]\nwindow = 16\ncarry-state = true\n")
        error = self.complaint(*ppl, "--config", path)
        self.assertTrue("both.toml:2" in error and "both.toml:3" in error, error)
        run(*ppl, env={**both, "MAMBA_CPP_CARRY_STATE": "0"})
        own = {"MAMBA_CPP_EVAL_PPL_CARRY_STATE": "1", "MAMBA_CPP_WINDOW": "16"}
        self.assertEqual(run(*ppl, env=own)[0], run(*ppl, "--carry-state")[0])
        self.assertFalse(os.path.exists("1"))
        self.assertIn("logprobs", self.answer("-n", "1", env={"MAMBA_CPP_LOGPROBS": "1"}))
        models.write("lines", "some text of a few words\n" * 9)
        _, told = run("train", "--data", "lines", "--output-dir", "unheld", "--max-steps", "1",
                      "--batch-size", "1", "--seq-len", "8", "--init-from", "model",
                      env={"MAMBA_CPP_EVAL_STEPS": "1"})
        self.assertIn("warning: [MAMBA_CPP_EVAL_STEPS] changes nothing without --valid", told)
        _, told = run("tokenize", "--tokenizer", "bytes", "-f", "lines",
                      env={"MAMBA_CPP_SKIP_SPECIAL": "1"})
        self.assertIn("[MAMBA_CPP_SKIP_SPECIAL] changes nothing without --decode", told)
        error = self.complaint(*base, "--samplers", "temperature", env={"MAMBA_CPP_TOP_K": "5"})
        self.assertIn("(--top-k: MAMBA_CPP_TOP_K)", error)
        error = self.complaint(*base, env={"MAMBA_CPP_MIN_TOKENS": "9"})
        self.assertIn("(--min-tokens: MAMBA_CPP_MIN_TOKENS)", error)
        # --dtype has another meaning there.
        bf16 = {"MAMBA_CPP_DTYPE": "bf16"}
        models.write("word", "word")
        ids = run("tokenize", "--tokenizer", "bytes", "-f", "word")[0]
        self.assertEqual(run("tokenize", "--tokenizer", "bytes", "-f", "word", env=bf16)[0], ids)
        run("convert", "model", "plain", "--to", "hf")
        run("convert", "model", "same", "--to", "hf", env=bf16)
        run("convert", "model", "half", "--to", "hf", env={"MAMBA_CPP_CONVERT_DTYPE": "bf16"})
        sizes = [os.path.getsize(f"{name}/model.safetensors") for name in ("plain", "same", "half")]
        self.assertTrue(sizes[0] == sizes[1] > sizes[2], sizes)

    def test_the_last_value_counts(self):
        self.assertEqual(self.count("-n", "20", "--max-tokens", "3", "-n", "2"), 2)
        self.assertEqual(self.count("-n", "20", "-n", "2", env={"MAMBA_CPP_MAX_NEW_TOKENS": "4"}), 2)

    def test_other_names(self):
        models.write("lines", "some text of a few words\n" * 9)
        self.assertEqual(run("--color", "never", "perplexity", "-m", "model", "-f", "lines")[0],
                         run("eval", "ppl", "-m", "model", "-f", "lines")[0])
        self.assertEqual(run("help", "perplexity")[0], run("help", "eval", "ppl")[0])
        self.assertEqual(run("perplexity", "-m", "model", "-f", "lines")[0],
                         run("eval", "ppl", "-m", "model", "-f", "lines")[0])
        listed, _ = run("generate", "--list-devices", "--json")
        self.assertEqual(json.loads(listed)["devices"],
                         run("generate", "--list-devices")[0].split())

    def test_wrong_settings(self):
        base = ["generate", "-m", "model", "-p", "x", "--config"]
        self.assertIn("[--config] expected a readable file, got 'none.toml'",
                      self.complaint(*base, "none.toml", code=3))
        for content, parts in {
                "tempp = 1\n": ["[x.toml:1]", "'tempp'", "did you mean 'temp'"],
                "[generate]\n\nbatchsize = 1\n": ["[x.toml:3]", "of 'generate'", "'batch-size'"],
                "[genrate]\ntemp = 1\n": ["[x.toml:2]", "did you mean 'generate'"],
                "[train]\nlr-rate = 1\n": ["[x.toml:2]", "'lr-rate'"],
                "help = true\n": ["[x.toml:1]", "'help'"],
                "temp = 1\ntemp = 2\n": ["[x.toml:2]", "twice"],
                "temp = [1, 2]\n": ["[x.toml:1]", "a list of 2"],
        }.items():
            error = self.complaint(*base, settings("x.toml", content))
            for part in parts:
                self.assertIn(part, error)
        self.assertIn("[x.toml:1]", self.complaint(*base, settings("x.toml", "temp\n"), code=3))
        self.assertIn("nowhere", self.complaint(*base, "nowhere", code=3))
        self.assertIn("byte", self.complaint(*base, settings("x.json", "{\"temp\": "), code=3))
        self.assertIn("'temp'", self.complaint(*base, settings("x.json", {"temp": None}), code=3))
        self.assertIn("object", self.complaint(*base, settings("x.json", [1]), code=3))

    def test_training_from_a_file_with_a_flag_over_it(self):
        for name, content in {
                "run.toml": "[train]\nmodel-config = \"model/config.json\"\ndata = [\"text\"]\n"
                            "output_dir = 'run'\nmax-steps = 9\nseq-len = 16\nbatch-size = 1\n"
                            "json = true\n[generate]\ntemp = 0\n",
                "run.json": {"train": {"model_config": "model/config.json", "data": ["text"],
                                       "output_dir": "run2", "max_steps": 9, "seq_len": 16,
                                       "per_device_train_batch_size": 1, "json": True}},
        }.items():
            out, _ = run("train", "--config", settings(name, content), "--max-steps", "2")
            result = json.loads(out)
            self.assertEqual((result["status"], result["step"]), ("finished", 2))
            self.assertGreater(result["loss"], 0)
            again, _ = run("train", "--config", name, "--max-steps", "3",
                           "--resume-from-checkpoint", code=2)  # another course than was begun
        # A random seed is told, and kept by a run that goes on.
        drawing = ["train", "--config", "run.toml", "--output-dir", "drawn", "--seed", "-1",
                   "--lr-scheduler-type", "constant", "--warmup-steps", "0"]
        drawn, error = run(*drawing, "--max-steps", "1")
        seed = json.loads(drawn)["seed"]
        self.assertIn(f"note: --seed {seed}\n", error)
        again, _ = run(*drawing, "--max-steps", "2", "--resume")
        self.assertEqual(json.loads(again)["seed"], seed)
        other, _ = run(*drawing, "--dry-run")
        self.assertNotEqual(json.loads(other)["seed"], seed)
        plan, _ = run("train", "--config", "run.toml", "--dry-run")
        self.assertEqual(json.loads(plan)["tokens_per_step"], 16)

    # Errors as JSON

    def test_errors_as_json(self):
        for arguments, code, kind in (
                (["generate", "-m", "nowhere", "-p", "x", "--json"], 3, "bad_file"),
                (["generate", "--json", "--tmep", "1"], 2, "invalid_argument"),
                (["eval", "ppl", "--json"], 2, "invalid_argument"),
                (["inspect", "mamba-131m", "--json"], 2, "invalid_argument"),
                (["bench", "model", "model", "--json", "--isa", "sse9"], 2, "invalid_argument")):
            out, error = run(*arguments, code=code)
            found = json.loads(out)["error"]
            self.assertEqual((found["code"], found["type"]), (code, kind))
            self.assertEqual(error, f"error: {found['message']}\n")
        out, _ = run("generate", "-m", "nowhere", "-p", "x", code=3, env={"MAMBA_CPP_JSON": "1"})
        self.assertEqual(json.loads(out)["error"]["type"], "bad_file")
        self.complaint("generate", "-m", "nowhere", "-p", "x", code=3, env={"MAMBA_CPP_JSON": "0"})

    def test_bench_as_json_by_both_flags(self):
        for form in (["--json"], ["-o", "json"]):
            out, _ = run("bench", "kernel", "scan_step", "--seconds", "0", *form)
            self.assertEqual(json.loads(out)["kernels"][0]["kernel"], "scan_step")

    # Colours

    def on_terminal(self, *arguments, **env):
        """What a terminal gets of both streams."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen([PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
                                   env={**CLEAN, "TERM": "xterm", **env})
        os.close(theirs)
        text = b""
        try:
            while part := os.read(ours, 65536):
                text += part
        except OSError:  # EIO: the other end is closed
            pass
        os.close(ours)
        process.wait(timeout=60)
        return text

    def test_colours_on_a_terminal_alone(self):
        for arguments in (["--help"], ["generate", "--help"], ["genrate"]):
            self.assertIn(b"\033[", self.on_terminal(*arguments), arguments)
            for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"MAMBA_CPP_COLOR": "never"}):
                if arguments == ["genrate"] and "MAMBA_CPP_COLOR" in env:
                    continue  # the words are refused before settings are read
                self.assertNotIn(b"\033[", self.on_terminal(*arguments, **env), (arguments, env))
            self.assertIn(b"\033[", self.on_terminal(*arguments, NO_COLOR=""))
        self.assertNotIn(b"\033[", self.on_terminal("generate", "--help", "--color", "never"))
        self.assertNotIn("\033[", run("generate", "--help", env={"TERM": "xterm"})[0])
        self.assertIn("\033[", run("generate", "--help", "--color=always")[0])
        self.assertIn("\033[", run("--color", "always", "generate", "--help")[0])
        self.assertIn("--color", self.complaint("version", "--color", "sometimes"))

    def test_bars_on_a_terminal_alone(self):
        flags = ["train", "--model-config", "model/config.json", "--data", "text", "--seq-len", "16",
                 "--batch-size", "1", "--max-steps", "2", "--output-dir"]
        self.assertIn(b"\r", self.on_terminal(*flags, "bar").replace(b"\r\n", b"\n"))
        _, error = run(*flags, "no_bar")
        self.assertNotIn("\r", error)
        self.assertNotIn("\033", error)

    # The manual and completions

    def test_the_manual_is_clean_and_whole(self):
        page, _ = run("man")
        for word in ("mamba\\-cpp eval ppl", "\\-\\-learning\\-rate", "MAMBA_CPP_TRAIN_LEARNING_RATE",
                     ".SH EXIT STATUS"):
            self.assertIn(word, page)
        if not shutil.which("groff"):
            self.skipTest("groff is not installed")
        result = subprocess.run(["groff", "-man", "-Tascii", "-ww", "-z"], input=page.encode(),
                                capture_output=True, check=True)
        self.assertEqual(result.stderr, b"")


def bash_completions(line):
    """What bash offers for this line, whose last word is being typed."""
    words = line.split(" ")
    # As readline splits them: '=' stands alone.
    split = list(itertools.chain.from_iterable(
        [w] if "=" not in w else [p for p in w.replace("=", " = ").split(" ") if p or w.endswith("=")]
        for w in words))
    quoted = " ".join(f"'{w}'" for w in split)
    script = (f"source ./completion.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(split) - 1}; "
              "compopt() { :; }; _mamba_cpp; printf '%s\\n' \"${COMPREPLY[@]}\"")
    result = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, check=True,
                            timeout=60)
    if result.stderr:
        raise AssertionError(result.stderr.decode())
    return [word for word in result.stdout.decode().split("\n") if word]


class Completion(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        for shell in ("bash", "zsh", "fish"):
            models.write(f"completion.{shell}", run("completion", shell)[0])
        models.write("folder with space/file", "x")
        models.write("file.txt", "x")

    @classmethod
    def tearDownClass(cls):
        os.chdir("/")
        cls.folder.cleanup()

    def test_bash(self):
        offers = bash_completions
        self.assertEqual(offers("mamba-cpp gen"), ["generate"])
        self.assertEqual(sorted(offers("mamba-cpp bench ")), ["kernel", "model", "roofline", "train"])
        self.assertEqual(offers("mamba-cpp train --learn"), ["--learning-rate"])
        self.assertIn("-t", offers("mamba-cpp train -"))
        self.assertEqual(offers("mamba-cpp eval ppl --dtype b"), ["bf16"])
        self.assertEqual(offers("mamba-cpp generate --isa=avx2"), ["avx2"])
        types = offers("mamba-cpp generate -m x --dtype=")
        self.assertTrue({"bf16", "f32", "q8_0"} <= set(types), types)
        self.assertEqual(offers("mamba-cpp generate -m fold"), ["folder with space"])
        self.assertEqual(offers("mamba-cpp generate -m fi"), [])
        self.assertEqual(offers("mamba-cpp generate -f fi"), ["file.txt"])
        self.assertEqual(offers("mamba-cpp generate -p "), [])
        self.assertEqual(offers("mamba-cpp completion z"), ["zsh"])
        self.assertEqual(offers("mamba-cpp inspect fi"), ["file.txt"])
        # Words that stand in no list of the help's.
        self.assertEqual(offers("mamba-cpp help ev"), ["eval"])
        self.assertIn("q4_k_m", offers("mamba-cpp quantize a b q4"))
        self.assertIn("piqa", offers("mamba-cpp eval tasks --tasks p"))
        self.assertEqual(offers("mamba-cpp chat --chat-template ze"), ["zephyr"])
        self.assertIn("mamba-130m", offers("mamba-cpp train --model-config mamba-1"))
        self.assertEqual(offers("mamba-cpp train --model-config fi"), ["file.txt"])
        # A command's name as a value of a flag is no command.
        self.assertEqual(offers("mamba-cpp generate -m model --dtype f"), ["f32", "f16"])

    def test_zsh(self):
        if not shutil.which("zsh"):
            self.skipTest("zsh is not installed")
        subprocess.run(["zsh", "-f", "-n", "completion.zsh"], check=True)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs,
                                   env={**CLEAN, "TERM": "dumb", "HOME": os.getcwd()})
        os.close(theirs)

        def read_until(*wanted):
            text = b""
            while not any(word in text for word in wanted):
                ready, _, _ = select.select([ours], [], [], 60)
                part = os.read(ours, 65536) if ready else b""
                if not part:
                    raise AssertionError(f"no {wanted} in {text!r}")
                text += part
            return text
        os.write(ours, b"PS1='READY '; autoload -Uz compinit; compinit -u -d dump; "
                       b". ./completion.zsh; echo LOAD''ED\n")
        read_until(b"LOADED")
        for typed, completed in ((b"gen", b"generate "), (b"eval pp", b"eval ppl "),
                                 (b"train --learn", b"train --learning-rate"),
                                 (b"eval ppl --dtype b", b"--dtype bf16 "),
                                 (b"completion z", b"completion zsh "),
                                 (b"generate -f fi", b"file.txt ")):
            os.write(ours, b"mamba-cpp " + typed + b"\t")
            self.assertIn(completed, read_until(completed))
            os.write(ours, b"\x15")  # Ctrl-U: an empty line again
        os.write(ours, b"exit\n")
        os.close(ours)
        process.kill()
        process.wait(timeout=60)

    def test_fish(self):
        if not shutil.which("fish"):
            self.skipTest("fish is not installed")

        def offers(line):
            script = f"source ./completion.fish; complete -C '{line}'"
            result = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True,
                                    check=True, env={**CLEAN, "HOME": os.getcwd()})
            self.assertEqual(result.stderr, b"")
            return [text.split("\t")[0] for text in result.stdout.decode().splitlines()]
        self.assertEqual(offers("mamba-cpp gen"), ["generate"])
        self.assertEqual(sorted(offers("mamba-cpp bench ")), ["kernel", "model", "roofline", "train"])
        self.assertEqual(offers("mamba-cpp train --learn"), ["--learning-rate"])
        self.assertEqual(offers("mamba-cpp eval ppl --dtype b"), ["bf16"])
        self.assertEqual(offers("mamba-cpp completion z"), ["zsh"])
        self.assertIn("folder with space/", offers("mamba-cpp generate -m fold"))
        self.assertEqual(offers("mamba-cpp generate -f fi"), ["file.txt"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=1)
