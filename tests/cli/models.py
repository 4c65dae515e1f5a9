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


def gguf(values, tensors, version=3):
    """values: key -> (type, value) with the types u32, f32, bool, str, [str], [i32]; tensors: name ->
    (type's number, shape, bytes)."""
    def text(value):
        data = value if isinstance(value, bytes) else value.encode()
        return struct.pack("<Q", len(data)) + data

    def value_of(kind, value):
        if kind == "str":
            return struct.pack("<I", 8) + text(value)
        if kind == "[str]":
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        if kind == "[i32]":
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        number, code = {"u32": (4, "I"), "f32": (6, "f"), "bool": (7, "B")}[kind]
        return struct.pack(f"<I{code}", number, value)

    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, (kind, value) in values.items():
        out += text(key) + value_of(kind, value)
    data = b""
    for name, (number, shape, content) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number,
                                        len(data))
        data += content + b"\0" * (-len(content) % 32)
    return out + b"\0" * (-len(out) % 32) + data


def mamba_gguf(folder):
    """The values and tensors of a Mamba-1 model folder, as llama.cpp's converter writes them."""
    import math
    tensors = read_safetensors(f"{folder}/model.safetensors")
    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    width, layers = config["d_model"], config["n_layer"]
    values = {"general.architecture": ("str", "mamba"), "mamba.context_length": ("u32", 1 << 20),
              "mamba.embedding_length": ("u32", width), "mamba.feed_forward_length": ("u32", 0),
              "mamba.attention.head_count": ("u32", 0), "mamba.block_count": ("u32", layers),
              "mamba.ssm.conv_kernel": ("u32", 4), "mamba.ssm.inner_size": ("u32", 2 * width),
              "mamba.ssm.state_size": ("u32", 16), "mamba.ssm.time_step_rank": ("u32", -(-width // 16)),
              "mamba.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
              "mamba.ssm.dt_b_c_rms": ("bool", False)}
    names = {"backbone.embedding.weight": "token_embd.weight",
             "backbone.embeddings.weight": "token_embd.weight",
             "backbone.norm_f.weight": "output_norm.weight"}
    of_layer = {"norm": "attn_norm", "mixer.in_proj": "ssm_in", "mixer.conv1d": "ssm_conv1d",
                "mixer.x_proj": "ssm_x", "mixer.dt_proj": "ssm_dt", "mixer.out_proj": "ssm_out"}
    out = {}
    for name, (_, shape, content) in tensors.items():
        if name not in names:
            _, _, layer, rest = name.split(".", 3)
            if rest in ("mixer.A_log", "mixer.D"):
                new = "ssm_a" if rest == "mixer.A_log" else "ssm_d"
            else:
                stem, kind = rest.rsplit(".", 1)
                new = f"{of_layer[stem]}.{kind}"
            names[name] = f"blk.{layer}.{new}"
        if name.endswith("A_log"):
            numbers = struct.unpack(f"<{len(content) // 4}f", content)
            content = struct.pack(f"<{len(numbers)}f", *(-math.exp(v) for v in numbers))
        if name.endswith("conv1d.weight"):
            shape = [shape[0], shape[2]]
        out[names[name]] = (0, shape, content)
    return values, out


def write(path, content):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb" if isinstance(content, bytes) else "w") as file:
        file.write(content)
    return path


def floats(count, rng, scale):
    return struct.pack(f"<{count}f", *(rng.uniform(-scale, scale) for _ in range(count)))


def byte_model(program, folder, seed=1, scale=0.8, **changes):
    """A model over bytes with random weights up to `scale`; the tensors are those that `inspect`
    expects."""
    write(f"{folder}/config.json", json.dumps({**BYTES, **changes}))
    result = subprocess.run([program, "inspect", folder, "--json"], capture_output=True, check=True)
    rng = random.Random(seed)
    tensors = {}
    for tensor in json.loads(result.stdout)["tensors"]:
        count = 1
        for size in tensor["shape"]:
            count *= size
        tensors[tensor["name"]] = ("F32", tensor["shape"], floats(count, rng, scale))
    write(f"{folder}/model.safetensors", safetensors(tensors))
    return folder
