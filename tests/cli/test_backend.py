# SPDX-License-Identifier: Apache-2.0
"""--backend and --explain of every command that has them, and tune on a machine without a GPU (a GPU
is hidden, if there is one). Usage: test_backend.py PROGRAM"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import models

PROGRAM = os.path.abspath(sys.argv[1])
STEPS = ("mamba1_step", "mamba2_step")
MODEL = ["-m", "model"]
COMMANDS = {
    "generate": ["generate", *MODEL, "-p", "It was", "-n", "12", "--temp", "0"],
    "generate --jsonl": ["generate", *MODEL, "--jsonl", "-f", "prompts.jsonl", "--seed", "1", "-b", "3"],
    "chat": ["chat", *MODEL, "--temp", "0", "-n", "8", "--chat-template", "plain"],
    "eval ppl": ["eval", "ppl", *MODEL, "-f", "text"],
    "eval kl": ["eval", "kl", "model", "model", "-f", "text"],
    "bench model": ["bench", "model", "model", "--seconds", "0", "--prompt-length", "8", "--json"],
    "bench": ["bench", *MODEL, "-p", "8", "-n", "2", "-r", "1", "--no-warmup", "-o", "json"],
}


def call(*arguments, code=0):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAMBA_CPP_")}
    environment.update(CUDA_VISIBLE_DEVICES="", XDG_CACHE_HOME=os.path.abspath("cache"))
    result = subprocess.run([PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            input=b"Hello\n", timeout=300, env=environment)
    if result.returncode != code:
        raise AssertionError(f"{arguments}: exit code {result.returncode}, expected {code}\n"
                             f"{result.stderr.decode()[-500:]}")
    return result


def explained(*arguments):
    """What --explain says, and standard output."""
    result = call(*arguments, "--explain")
    found = [line for line in result.stderr.decode().splitlines() if line.startswith("{")]
    assert len(found) == 1, (arguments, result.stderr)
    return json.loads(found[0]), result.stdout


class Backend(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        models.byte_model(PROGRAM, "model")
        models.write("text", b"It was a dark and stormy night. " * 200)
        models.write("prompts.jsonl", b'{"prompt": "It was"}\n{"prompt": "Hello"}\n')

    @classmethod
    def tearDownClass(cls):
        os.chdir("/")
        cls.folder.cleanup()

    def test_every_command_explains_and_prints_the_same(self):
        for name, command in COMMANDS.items():
            with self.subTest(name):
                facts, out = explained(*command)
                self.assertEqual(facts["backend"], "auto")
                self.assertIsNone(facts["file_of_tune"])
                self.assertEqual([p["phase"] for p in facts["phases"]], ["prefill", "decode"])
                batch = 3 if "jsonl" in name else 1
                self.assertEqual(facts["phases"][1]["batch"], batch)
                steps = [c for c in facts["phases"][1]["choices"] if c["operation"] in STEPS]
                self.assertEqual(len(steps), 1)
                self.assertEqual((steps[0]["chosen"], steps[0]["rows"], steps[0]["calls"]),
                                 ("sequence", batch, 2))
                for phase in facts["phases"]:
                    for choice in phase["choices"]:
                        self.assertIn(choice["chosen"], choice["alternatives"])
                if not name.startswith("bench"):
                    self.assertEqual(call(*command).stdout, out)

    def test_reference_gives_the_text_of_auto(self):
        for command in (COMMANDS["generate"], COMMANDS["generate --jsonl"], COMMANDS["eval ppl"]):
            for dtype in ("f32", "bf16", "q8_0"):
                flags = [*command, "--dtype", dtype]
                want = call(*flags, "--backend", "auto").stdout
                self.assertEqual(call(*flags, "--backend", "reference").stdout, want)
        facts, _ = explained(*COMMANDS["generate"], "--backend", "reference")
        self.assertEqual(facts["backend"], "reference")

    def test_fused_on_a_cpu_is_wrong_usage(self):
        for name, command in COMMANDS.items():
            with self.subTest(name):
                result = call(*command, "--backend", "fused", code=2)
                message = result.stderr.decode()
                self.assertEqual(message.count("\n"), 1, message)
                for part in ("[--backend]", "mamba1_step", "got cpu", "--backend auto"):
                    self.assertIn(part, message)

    def test_wrong_backends_name_the_right_ones(self):
        message = call(*COMMANDS["generate"], "--backend", "fusd", code=2).stderr.decode()
        for part in ("[--backend]", "auto", "reference", "fused", "fusd"):
            self.assertIn(part, message)

    def test_verify_takes_both_flags(self):
        self.assertIn("--backend", call("verify", "--help-all").stdout.decode())
        self.assertIn("--explain", call("verify", "--help-all").stdout.decode())

    def test_tune_needs_a_gpu_and_leaves_no_file(self):
        message = call("tune", "--device", "cpu", code=2).stderr.decode()
        self.assertIn("[tune] expected a GPU", message)
        self.assertIn("nothing to choose", message)
        message = call("tune", code=4).stderr.decode()
        self.assertIn("expected an NVIDIA GPU", message)
        message = call("tune", "no-such-model", code=2).stderr.decode()
        self.assertIn("no-such-model", message)
        message = call("tune", "--dtype", "f33", code=2).stderr.decode()
        self.assertIn("f33", message)
        call("tune", "--to", "source", code=2)
        answer = json.loads(call("tune", "--device", "cpu", "--json", code=2).stdout)
        self.assertEqual(answer["error"]["code"], 2)
        self.assertFalse(os.path.exists("cache/mamba-cpp"))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
