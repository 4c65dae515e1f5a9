# SPDX-License-Identifier: Apache-2.0
"""Model folders for tests of the program, made with the standard library alone."""
import json
import os
import random
import struct
import subprocess

BYTES = {"d_model": 16, "n_layer": 2, "vocab_size": 256, "ssm_cfg": {"layer": "Mamba1"},
         "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
         "pad_vocab_size_multiple": 8, "tie_embeddings": True}
SIZES = {"F64": 8, "F32": 4, "BF16": 2, "I64": 8, "I32": 4}


def safetensors(tensors, metadata=None):
    """tensors: name -> (dtype, shape, bytes)."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape),
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path):
    """name -> (dtype, shape, bytes)."""
    with open(path, "rb") as file:
        content = file.read()
    size = struct.unpack("<Q", content[:8])[0]
    tensors = {}
    for name, entry in json.loads(content[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"],
                             content[8 + size + begin:8 + size + end])
    return tensors


def write(path, content):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb" if isinstance(content, bytes) else "w") as file:
        file.write(content)
    return path


def floats(count, rng, scale):
    return struct.pack(f"<{count}f", *(rng.uniform(-scale, scale) for _ in range(count)))


def byte_model(program, folder, seed=1, **changes):
    """A model over bytes with random weights; the tensors are those that `inspect` expects."""
    write(f"{folder}/config.json", json.dumps({**BYTES, **changes}))
    result = subprocess.run([program, "inspect", folder, "--json"], capture_output=True, check=True)
    rng = random.Random(seed)
    tensors = {}
    for tensor in json.loads(result.stdout)["tensors"]:
        count = 1
        for size in tensor["shape"]:
            count *= size
        tensors[tensor["name"]] = ("F32", tensor["shape"], floats(count, rng, 0.8))
    write(f"{folder}/model.safetensors", safetensors(tensors))
    return folder
