# SPDX-License-Identifier: Apache-2.0
"""Proof that both sides compute the same: a small checkpoint that we save is read by the rival, and the
logits of both are compared. Standard library only."""

import array
import json
import math
import pathlib
import random
import struct
import sys
import tempfile

from .processes import Result
from .rows import Failed

CONFIG = {"d_model": 256, "n_layer": 2, "vocab_size": 512, "rms_norm": True,
          "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
          "tie_embeddings": True}
BATCH, LENGTH = 2, 300  # more than a chunk of SSD, and no multiple of one
# Of the largest logit, f32 on both sides. mamba_ssm's Triton products round their factors to TF32
# (2^-11) and two layers add such errors up; transformers is f32 throughout.
TOLERANCE = {"transformers": 1e-3, "mamba_ssm": 1e-2}


def interval(name, shape):
    """Values of a tensor as in a model that was trained: every part of the layer counts."""
    if name.endswith("A_log"):
        return 0.0, math.log(16)
    if name.endswith(("dt_bias", "dt_proj.bias")):
        return -5.0, -1.0
    if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
        return 0.5, 1.5
    if "conv1d" in name:
        return -0.5, 0.5
    bound = math.sqrt(3 / shape[-1])
    return -bound, bound


def write_folder(folder, config, tensors):
    """tensors: {"name", "shape"} as `inspect` lists them; random values from one seed."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    generator, header, data = random.Random(1), {"__metadata__": {"format": "pt"}}, bytearray()
    for tensor in tensors:
        low, high = interval(tensor["name"], tensor["shape"])
        values = array.array("f", (generator.uniform(low, high)
                                   for _ in range(math.prod(tensor["shape"]))))
        if sys.byteorder == "big":
            values.byteswap()
        header[tensor["name"]] = {"dtype": "F32", "shape": tensor["shape"],
                                  "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def check(args, worker, mixer):
    """Returns the largest difference of logits over the largest logit; raises Failed where the two
    do not agree, or the rival's own prefill or step does not give its logits."""
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        config = dict(CONFIG, ssm_cfg={"layer": "Mamba2" if mixer == "mamba2" else "Mamba1"})
        (work / "config.json").write_text(json.dumps(config))
        listed = Result([args.binary, "inspect", work / "config.json", "--json"]).out
        write_folder(work / "random", config, json.loads(listed)["tensors"])
        form = "ssm" if worker.name == "mamba_ssm" else "hf"
        Result([args.binary, "convert", work / "random", work / "saved", "--to", form])
        job = {"kind": "check", "folder": str(work / "saved"), "batch": BATCH, "length": LENGTH,
               "vocab_size": CONFIG["vocab_size"], "file": str(work / "logits.safetensors")}
        answer = worker.run(job, args.answer_seconds)
        if "error" in answer:
            raise Failed(f"could not be checked for equal logits: {answer['error']}")
        bound = TOLERANCE[worker.name] * answer["largest"]
        for part in ("prefill", "step"):
            off = answer[f"{part}_error"]
            if not off <= bound:
                raise Failed(f"not equal models: a {part} of {worker.name} is {off:.2e} off its own "
                             f"logits, expected at most {bound:.2e}")
        try:
            out = Result([args.binary, "verify", work / "saved", job["file"], "--device", args.device,
                          "--tolerance", f"{bound:.6e}", "--json"], codes=(0, 1)).out
        except Failed as error:
            raise Failed(f"could not be checked for equal logits: {error}") from error
        report = json.loads(out)
        errors = [mode["max_abs_error"] for mode in report["modes"]]  # null: not finite
        if not report["passed"]:
            worst = "not finite" if None in errors else f"{max(errors):.2e} off"
            raise Failed(f"not equal models: our logits are {worst}, expected at most {bound:.2e}")
        return max(errors) / answer["largest"]
