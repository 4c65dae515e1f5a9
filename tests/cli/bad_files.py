# SPDX-License-Identifier: Apache-2.0
"""The files of bad_input.py: good ones, and the same broken in many ways."""
import bz2
import gzip
import json
import lzma
import os
import shutil
import struct
import subprocess
import zipfile

import models


class Files:
    """Good and broken files under one folder; paths are relative to it."""

    def __init__(self, root, program, run):
        self.root, self.program, self.run = root, program, run
        os.chdir(root)
        models.byte_model(self.program, "good")
        models.byte_model(self.program, "other", seed=2)
        models.byte_model(self.program, "words", vocab_size=64)  # no bytes, no tokenizer
        models.write("text", "It was the best of times, it was the worst of times. " * 40)
        models.write("short", "x")
        models.write("notes.md", "not a model card")
        models.write("empty", "")
        self.make_tasks()
        self.weights = open("good/model.safetensors", "rb").read()
        self.config = json.load(open("good/config.json"))
        self.tensors = models.read_safetensors("good/model.safetensors")
        self.break_weights()
        self.break_configs()
        self.make_golden()
        self.make_data()
        self.make_others()
        self.make_states()
        self.make_run()
        self.break_gguf()

    def break_gguf(self):
        values, tensors = models.mamba_gguf("good")
        good = models.gguf(values, tensors)
        models.write("good.gguf", good)
        models.write("cut.gguf", good[:-100])
        models.write("magic.gguf", b"GGML" + good[4:])
        models.write("version.gguf", models.gguf(values, tensors, version=1))
        models.write("counts.gguf", good[:8] + b"\xff" * 8 + good[16:])
        def changed(name, new_values=None, new_tensors=None):
            models.write(f"{name}.gguf", models.gguf(
                {k: v for k, v in {**values, **(new_values or {})}.items() if v is not None},
                {k: v for k, v in {**tensors, **(new_tensors or {})}.items() if v is not None}))
        kind, shape, content = tensors["blk.0.ssm_in.weight"]
        changed("llama", {"general.architecture": ("str", "llama")})
        changed("no_state", {"mamba.ssm.state_size": None})
        changed("wide", {"mamba.ssm.inner_size": ("u32", 48)})
        changed("text_size", {"mamba.block_count": ("str", "two")})
        changed("old_type", None, {"blk.0.ssm_in.weight": (10, [64, 256], bytes(84 * 64))})
        changed("rows", None, {"blk.0.ssm_in.weight": (8, shape, content)})
        changed("no_tensor", None, {"blk.1.ssm_d": None})
        changed("growing", None, {"blk.0.ssm_a": (0, [32, 16], struct.pack("<512f", *[1.0] * 512))})
        changed("pieces", {"tokenizer.ggml.model": ("str", "llama"),
                           "tokenizer.ggml.tokens": ("[str]", ["a"] * 256)})
        changed("second-00002-of-00002", {"split.no": ("u32", 1), "split.count": ("u32", 2)})
        changed("renamed", {"split.no": ("u32", 0), "split.count": ("u32", 2)})
        changed("taps", {"mamba.ssm.conv_kernel": ("u32", 300)})
        changed("more", new_tensors={"blk.9.ssm_d": tensors["blk.0.ssm_d"]})
        models.write("imatrix.gguf", models.gguf({"general.type": ("str", "imatrix")}, {
            "blk.0.ssm_in.weight.in_sum2": (0, [1, 8], bytes(32)),
            "blk.0.ssm_in.weight.counts": (0, [1, 1], struct.pack("<f", 1))}))

    def model(self, name, weights=None, config=None):
        models.write(f"{name}/model.safetensors", self.weights if weights is None else weights)
        models.write(f"{name}/config.json", json.dumps(self.config) if config is None else config)

    def break_weights(self):
        name = "backbone.layers.0.mixer.A_log"
        dtype, shape, data = self.tensors[name]
        os.makedirs("no_weights")
        shutil.copy("good/config.json", "no_weights/config.json")
        self.model("truncated", self.weights[:-100])
        self.model("no_header", b"\x08")
        self.model("lying_header", b"\xff" * 8 + self.weights[8:])
        self.model("lying_offsets", self.weights.replace(b'"data_offsets": [0, ',
                                                         b'"data_offsets": [8, ', 1))
        self.model("turned", models.safetensors({**self.tensors, name: (dtype, shape[::-1], data)}))
        self.model("missing", models.safetensors(
            {k: v for k, v in self.tensors.items() if k != name}))
        self.model("extra", models.safetensors(
            {**self.tensors, "backbone.layers.9.mixer.D": (dtype, [1], data[:4])}))
        self.break_torch()
        self.model("integers", models.safetensors({**self.tensors, name: ("I32", shape, data)}))

    def break_torch(self):
        def torch(name, pickle):
            with zipfile.ZipFile(self.make(f"{name}/pytorch_model.bin"), "w") as file:
                file.writestr("m/data.pkl", pickle)
            shutil.copy("good/config.json", f"{name}/config.json")
        torch("hostile", b"\x80\x02cposix\nsystem\nX\x0c\0\0\0touch pwned;\x85R.")
        torch("pickle_cut", b"\x80\x02}X\x01\0\0\0w")
        torch("pickle_number", b"\x80\x02}X\x01\0\0\0wK\x01s.")
        with open(self.make("legacy/pytorch_model.bin"), "wb") as file:
            file.write(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
        shutil.copy("good/config.json", "legacy/config.json")
        content = open("hostile/pytorch_model.bin", "rb").read()
        models.write("zip_cut/pytorch_model.bin", content[:-30])
        shutil.copy("good/config.json", "zip_cut/config.json")

    @staticmethod
    def make(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def break_configs(self):
        def changed(**changes):
            return json.dumps({k: v for k, v in {**self.config, **changes}.items()
                               if v is not None})
        self.model("not_json", config="{\"d_model\": 16,")
        self.model("twice", config="{\"d_model\": 16, \"d_model\": 16}")
        self.model("absurd", config=changed(d_model=10**15))
        self.model("negative", config=changed(n_layer=-3))
        self.model("no_width", config=changed(d_model=None))
        self.model("taps", config=changed(ssm_cfg={"d_conv": 300}))
        self.model("unknown_key", config=changed(ssm_cfg={"d_convolution": 4}))
        self.model("foreign", config=json.dumps({"model_type": "llama", "hidden_size": 16}))
        models.write("deep.json", "[" * 100000)

    def make_tasks(self):
        item = {"ctx": "One", "choices": ["two", "three"], "gold": 0}
        for name, last in {
                "evals/piqa": item, "evals/boolq": {**item, "gold": 2},
                "evals/arc_easy": {"ctx": "One", "gold": 0}, "evals/hellaswag": [1],
                "evals/winogrande": {"contexts": ["a", "b"], "target": 5, "gold": 0}}.items():
            models.write(f"{name}.jsonl", json.dumps(item if name != "evals/winogrande" else {
                "contexts": ["a", "b"], "target": "c", "gold": 1}) + "\n" + json.dumps(last) + "\n")
        models.write("evals/openbookqa.jsonl", json.dumps(item) + "\n{\"ctx\": ")
        models.write("evals/arc_challenge.jsonl", "")
        models.write("evals/lambada_openai.jsonl.xz", "x")

    def make_data(self):
        models.write("bad.jsonl", '{"text": "good"}\n{"body": "bad"}\n')
        models.write("broken.jsonl", '{"text": "cut')
        models.write("blank.jsonl", "\r\n \n")
        models.write("messages.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n')
        question = {"role": "user", "content": "x"}
        models.write("role.jsonl", json.dumps(
            {"messages": [question, {"role": "bot", "content": "y"}]}) + "\n")
        talk = {"messages": [question, {"role": "assistant", "content": "y"}]}
        models.write("talk.jsonl", json.dumps(talk) + "\n")
        models.write("parts.jsonl", json.dumps(talk) + "\n" + json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}) + "\n")
        models.write("prompts.jsonl", json.dumps({"prompt": "x" * 200, "response": ""}))
        models.write("far.bin", b"\x01\x00\x2c\x01" + b"\x01\x00" * 40)
        models.write("odd.bin", b"\x01\x00\x01")
        models.write("told.bin", b"\x01\x00\x01\x00")
        models.write("told.json", json.dumps({
            "dtype": "uint16", "count": 3, "vocab_size": 256, "tokenizer": "bytes",
            "tokenizer_hash": "0" * 16, "text_bytes": 3, "documents": 1}))

    @staticmethod
    def make_others():
        """What is no text, and files in the way of what a command writes."""
        packed = {"packed.txt.xz": lzma.compress(b"text"), "packed.gz": gzip.compress(b"text"),
                  "packed.bz2": bz2.compress(b"text"), "packed.zst": b"\x28\xb5\x2f\xfd\x04\0\0text",
                  "packed.zip": b"PK\x03\x04\x14\0", "zeros": b"a\0b\0c\0" * 100}
        for name, content in packed.items():
            models.write(name, content)
        for name in "one", "two":
            models.write(f"packed/{name}.xz", packed["packed.txt.xz"])
        for name in ("README.md", "metrics.jsonl", "curves.svg", "config.json", "tokenizer_config.json",
                     "chat_template.jinja"):
            models.write(f"mine-{name}/{name}", '{"mine": true}\n')
        models.write("data.json", '{"text": "good"}\n')
        models.write("asked.jsonl", '{"prompt": "x"}\n')
        models.write("one.jsonl", '{"prompt": "x"}')
        models.write("settings.json", '{"generate": {"temp": -7}}')

    def make_golden(self):
        ids = (7).to_bytes(8, "little") * 6
        logits = bytes(4 * 6 * 256)
        far = (300).to_bytes(8, "little") * 6
        for name, tensors in {
                "golden": {"input_ids": ("I64", [2, 3], ids), "logits": ("F32", [2, 3, 256], logits)},
                "golden_far": {"input_ids": ("I64", [2, 3], far),
                               "logits": ("F32", [2, 3, 256], logits)},
                "golden_shape": {"input_ids": ("I64", [2, 3], ids),
                                 "logits": ("F32", [3, 2, 256], logits)},
                "golden_part": {"input_ids": ("I64", [2, 3], ids)},
        }.items():
            models.write(name, models.safetensors(tensors))

    def make_states(self):
        subprocess.run([self.program, "generate", "-m", "good", "-p", "Hello", "-n", "3", "--state-out",
                        "state"], check=True, capture_output=True)
        content = open("state", "rb").read()
        models.write("state_short", content[:-4])

    def make_run(self):
        subprocess.run([self.program, *self.run, "--max-steps", "2"], check=True, capture_output=True)
