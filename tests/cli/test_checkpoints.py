# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of either form in every command, conversions, and public configurations.

Usage: test_checkpoints.py PROGRAM GOLDEN_FOLDER
"""
import itertools
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import models

PROGRAM, GOLDEN = map(os.path.abspath, sys.argv[1:3])


def run(*arguments, code=0):
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, timeout=300,
                            stdin=subprocess.DEVNULL)
    if result.returncode != code:
        raise AssertionError(f"{arguments}: exit code {result.returncode}, expected {code}\n"
                             f"{result.stderr.decode()[-500:]}")
    return result.stdout.decode()


def run_json(*arguments, **options):
    return json.loads(run(*arguments, "--json", **options))


def content(path):
    with open(path, "rb") as file:
        return file.read()


class Checkpoints(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        models.byte_model(PROGRAM, "model")
        models.write("text", "It was the best of times, it was the worst of times. " * 40)
        run("convert", "model", "hf", "--to", "hf")
        run("convert", "hf", "ssm", "--to", "ssm", "--verify")

    @classmethod
    def tearDownClass(cls):
        os.chdir("/")
        cls.folder.cleanup()

    def test_a_state_spaces_folder_works_in_every_command(self):
        def ids(model):
            return run_json("generate", "-m", model, "-p", "Hello", "-n", "20", "--seed", "1")["ids"]
        self.assertEqual(ids("ssm"), ids("hf"))
        self.assertEqual(run_json("eval", "ppl", "-m", "ssm", "-f", "text")["nll_sum"],
                         run_json("eval", "ppl", "-m", "hf", "-f", "text")["nll_sum"])
        inspected = run_json("inspect", "ssm")
        self.assertEqual(inspected["parameters"], run_json("inspect", "hf")["parameters"])
        self.assertTrue(inspected["weights"])
        run("train", "--init-from", "ssm", "--data", "text", "--output-dir", "run", "--seq-len",
            "16", "--max-steps", "1", "--lr-scheduler-type", "constant", "--batch-size", "1")
        card = content("run/README.md").decode()
        self.assertIn('base_model: "ssm"\nbase_model_relation: finetune\n', card)
        self.assertTrue(run_json("convert", "run", "tuned", "--to", "ssm", "--verify")["verify"]
                        ["passed"])

    def test_golden_logits_hold_in_the_state_spaces_form(self):
        for name in ("mamba1", "mamba1_bias_untied", "mamba2", "mamba2_groups_bias_untied"):
            run("convert", f"{GOLDEN}/{name}", f"{name}.ssm", "--to", "ssm")
            run("verify", f"{name}.ssm", f"{GOLDEN}/{name}/golden.safetensors")
            run("convert", f"{name}.ssm", f"{name}.hf", "--to", "hf")
            self.assertEqual(content(f"{name}.hf/model.safetensors"),
                             content(f"{GOLDEN}/{name}/model.safetensors"))

    def test_verify_measures_what_rounding_did(self):
        result = run_json("convert", "hf", "half", "--to", "hf", "--dtype", "bf16", "--verify")
        self.assertTrue(result["verify"]["passed"])
        self.assertGreater(result["verify"]["max_abs_error"], 0)
        result = run_json("convert", "hf", "half", "--to", "hf", "--dtype", "bf16", "--verify",
                          "--tolerance", "1e-9", "--force", code=1)
        self.assertFalse(result["verify"]["passed"])

    def test_inspect_shows_what_is_readable_of_broken_weights(self):
        whole = run_json("inspect", "model")
        self.assertNotIn("error", whole)
        size = os.path.getsize("model/model.safetensors")
        self.assertEqual(whole["files"], [{"name": "model.safetensors", "bytes": size}])
        shutil.copytree("model", "broken")
        os.truncate("broken/model.safetensors", size - 100)
        broken = run_json("inspect", "broken", code=3)
        for key in ("config", "parameters", "memory"):
            self.assertEqual(broken[key], whole[key])
        self.assertEqual((broken["weights"], broken["files"][0]["bytes"]), (False, size - 100))
        self.assertEqual((broken["error"]["type"], broken["error"]["code"]), ("bad_file", 3))
        told = subprocess.run([PROGRAM, "inspect", "broken"], capture_output=True, timeout=60)
        out, error = told.stdout.decode(), told.stderr.decode()
        self.assertEqual(told.returncode, 3)
        self.assertIn(f"parameters           {whole['parameters']}\n", out)
        self.assertIn(f"model.safetensors        {size - 100} bytes", out)
        self.assertEqual(error, f"error: {broken['error']['message']}\n")

    def test_ctrl_c_and_sigterm_leave_nothing_behind(self):
        models.write("large/model/config.json",
                     json.dumps({**models.BYTES, "d_model": 256, "n_layer": 24}))
        tensors = {t["name"]: ("F32", t["shape"], bytes(4 * math.prod(t["shape"])))
                   for t in run_json("inspect", "large/model")["tensors"]}
        models.write("large/model/model.safetensors", models.safetensors(tensors))
        for number, words in itertools.product(
                (signal.SIGINT, signal.SIGTERM),
                (("convert", "large/model", "large/out", "--to", "ssm"),
                 ("quantize", "large/model", "large/out.gguf", "q4_k", "-t", "1"))):
            process = subprocess.Popen([PROGRAM, *words], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE)
            while process.poll() is None and len(os.listdir("large")) == 1:
                time.sleep(0.001)
            process.send_signal(number)
            error = process.stderr.read().decode()
            process.stderr.close()
            if process.wait() == 0:  # it was faster than the signal
                shutil.move("large/model", "model-alone")
                shutil.rmtree("large")
                os.renames("model-alone", "large/model")
                continue
            self.assertEqual((process.returncode, error), (128 + number, "error: interrupted\n"))
            self.assertEqual(os.listdir("large"), ["model"])

    def test_a_model_of_mamba_c_is_read(self):
        tensors = models.read_safetensors("hf/model.safetensors")
        config = json.loads(content("hf/config.json"))
        layers = config["num_hidden_layers"]

        def data(name, layer=None):
            return tensors[f"backbone.{name}" if layer is None else
                           f"backbone.layers.{layer}.{name}"][2]
        header = struct.pack("<II8i", 0x4D616D62, 1, layers, 256, config["hidden_size"],
                             config["intermediate_size"], config["time_step_rank"],
                             config["state_size"], config["conv_kernel"], 1)
        out = header.ljust(256, b"\0") + data("embeddings.weight")
        for name in ("mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.conv1d.bias",
                     "mixer.x_proj.weight", "mixer.dt_proj.weight", "mixer.dt_proj.bias",
                     "mixer.A_log", "mixer.D", "mixer.out_proj.weight", "norm.weight"):
            for layer in range(layers):
                values = data(name, layer)
                if name == "mixer.A_log":
                    floats = struct.unpack(f"<{len(values) // 4}f", values)
                    values = struct.pack(f"<{len(floats)}f", *(-math.exp(v) for v in floats))
                out += values
        models.write("model.bin", out + data("norm_f.weight"))
        self.assertEqual(run_json("inspect", "model.bin")["parameters"],
                         run_json("inspect", "hf")["parameters"])
        result = run_json("convert", "model.bin", "from_c", "--to", "hf", "--verify")
        self.assertEqual(result["verify"]["max_abs_error"], 0)
        self.assertIn("tokenizer.bin", result["notices"][0])
        logits = models.safetensors({
            "input_ids": ("I64", [1, 3], struct.pack("<3q", 72, 105, 33)),
            "logits": ("F32", [1, 3, 256], bytes(3 * 1024))})
        models.write("golden", logits)
        run("verify", "hf", "golden", "--dump", "want", "--tolerance", "1e6")
        want = models.read_safetensors("want")["logits"]
        models.write("golden", models.safetensors({
            "input_ids": ("I64", [1, 3], struct.pack("<3q", 72, 105, 33)), "logits": want}))
        run("verify", "model.bin", "golden", "--tolerance", "1e-3")

    def test_public_configurations_have_their_listed_sizes(self):
        folder = os.path.join(os.environ.get("MAMBA_TEST_DATA", ""), "configs")
        if not os.path.isdir(folder):
            self.skipTest("needs the folder configs/ of MAMBA_TEST_DATA")
        rows = re.findall(r"^\| (\S+/\S+) \| ([^|]*) \|.*\| ([\d,]+|-) \| [^|]* \|$",
                          content(f"{folder}/README.md").decode(), re.M)
        counted = 0
        for name, kind, parameters in rows:
            path = f"{folder}/{name.replace('/', '--')}"
            if not re.match(r"Mamba[12]( \(HF\)| \+ weightless.*)?$", kind):
                run("inspect", path, code=3)  # another architecture, or only part of a config
                continue
            self.assertEqual(run_json("inspect", path)["parameters"],
                             int(parameters.replace(",", "")), name)
            counted += 1
        self.assertGreaterEqual(counted, 19)
        print(f"{counted} public configurations counted, {len(rows) - counted} refused")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
