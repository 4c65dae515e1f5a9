# SPDX-License-Identifier: Apache-2.0
"""What torch and transformers make of converted models. Skips (77) where they are missing.

Usage: torch_checks.py PROGRAM GOLDEN_FOLDER
"""
import os
import shutil
import subprocess
import sys
import tempfile

try:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

PROGRAM, GOLDEN = map(os.path.abspath, sys.argv[1:3])
NAMES = ("mamba1", "mamba1_bias_untied", "mamba2", "mamba2_groups_bias_untied")
HEAD, EMBEDDING = "lm_head.weight", "backbone.embedding.weight"


def convert(*arguments):
    subprocess.run([PROGRAM, "convert", *arguments], check=True, stdout=subprocess.DEVNULL)


def check_torch_file(name, folder):
    """torch reads the same tensors from our file; and we from the one that torch writes."""
    want = load_file(f"{GOLDEN}/{name}/model.safetensors")
    for mmap in (False, True):
        state = torch.load(f"{folder}/pytorch_model.bin", weights_only=True, mmap=mmap)
        for key, tensor in want.items():
            got = state[key.replace("embeddings", "embedding")]
            assert got.dtype == tensor.dtype and torch.equal(got, tensor), key
        tied = HEAD not in want
        assert len(state) == len(want) + tied
        assert not tied or state[HEAD].data_ptr() == state[EMBEDDING].data_ptr()
    again, back = f"{folder}.again", f"{folder}.back"
    shutil.copytree(folder, again)
    torch.save(dict(state), f"{again}/pytorch_model.bin", pickle_protocol=4)
    convert(again, back, "--to", "hf")
    with open(f"{back}/model.safetensors", "rb") as a:
        with open(f"{GOLDEN}/{name}/model.safetensors", "rb") as b:
            assert a.read() == b.read(), name


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(24)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        return model(ids).logits


def check_transformers(name, folder):
    """Equal logits from the round trip; near ones from 16 bits."""
    want = logits(f"{GOLDEN}/{name}")
    assert torch.equal(logits(f"{folder}.back"), want), name
    for dtype, tolerance in (("f16", 0.02), ("bf16", 0.1)):
        half = f"{folder}.{dtype}"
        convert(f"{GOLDEN}/{name}", half, "--to", "hf", "--dtype", dtype)
        error = (logits(half) - want).abs().max() / want.abs().max()
        assert error <= tolerance, (name, dtype, float(error))


def main():
    with tempfile.TemporaryDirectory() as root:
        for name in NAMES:
            folder = f"{root}/{name}"
            convert(f"{GOLDEN}/{name}", folder, "--to", "ssm")
            check_torch_file(name, folder)
            check_transformers(name, folder)
    print(f"{len(NAMES)} models, torch {torch.__version__}")


if __name__ == "__main__":
    main()
