# SPDX-License-Identifier: Apache-2.0
"""GGUF files against the PyPI package gguf: it reads ours, we read what it writes.

Usage: gguf_package.py PROGRAM; skips (77) without the package.
"""
import json
import os
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy as np
except ImportError:
    print("SKIPPED: needs the Python packages gguf and numpy")
    sys.exit(77)

import models

PROGRAM = os.path.abspath(sys.argv[1])


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, check=True,
                          stdin=subprocess.DEVNULL).stdout.decode(errors="replace")


def weights_of(folder):
    found = {}
    for name, (dtype, shape, content) in models.read_safetensors(f"{folder}/model.safetensors").items():
        assert dtype == "F32"
        found[name] = np.frombuffer(content, np.float32).reshape(shape)
    return found


def check_ours(kind):
    """Every value of metadata and every weight, as the package reads them."""
    run("quantize", "wide", f"{kind}.gguf", kind, "--tensor-type", f"ssm_in={kind}")
    run("convert", f"{kind}.gguf", f"{kind}-folder", "--to", "hf", "--dtype", "f32")
    reader = gguf.GGUFReader(f"{kind}.gguf")
    assert reader.get_field("general.architecture").contents() == "mamba"
    assert reader.get_field("mamba.ssm.inner_size").contents() == 512
    assert reader.get_field("general.quantization_version").contents() == 2
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == 256
    assert reader.alignment == 32
    loaded = weights_of(f"{kind}-folder")
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type) \
            if tensor.tensor_type != gguf.GGMLQuantizationType.F32 else tensor.data
        values = values.reshape(-1)
        if tensor.name.endswith("ssm_a"):
            values = np.log(-values.astype(np.float64))
        layer = tensor.name.split(".")[1] if tensor.name.startswith("blk") else ""
        mine = loaded[{"token_embd.weight": "backbone.embeddings.weight",
                       "output_norm.weight": "backbone.norm_f.weight"}.get(
                           tensor.name, f"backbone.layers.{layer}." + {
                               "attn_norm.weight": "norm.weight", "ssm_in.weight": "mixer.in_proj.weight",
                               "ssm_conv1d.weight": "mixer.conv1d.weight",
                               "ssm_conv1d.bias": "mixer.conv1d.bias",
                               "ssm_x.weight": "mixer.x_proj.weight",
                               "ssm_dt.weight": "mixer.dt_proj.weight",
                               "ssm_dt.bias": "mixer.dt_proj.bias", "ssm_a": "mixer.A_log",
                               "ssm_d": "mixer.D", "ssm_out.weight": "mixer.out_proj.weight",
                           }.get(tensor.name.split(".", 2)[-1], ""))].reshape(-1)
        if tensor.name.endswith("ssm_a"):
            assert np.allclose(values, mine, rtol=1e-6), tensor.name
        else:
            assert np.array_equal(values.astype(np.float32), mine), (kind, tensor.name)


def check_theirs(kind):
    """A file of the package's writer, quantised by it where it can."""
    number = gguf.GGMLQuantizationType[kind.upper()]
    values, tensors = models.mamba_gguf("wide")
    writer = gguf.GGUFWriter(f"theirs-{kind}.gguf", "mamba")
    add = {"u32": writer.add_uint32, "f32": writer.add_float32, "bool": writer.add_bool}
    for key, (value_kind, value) in values.items():
        if key != "general.architecture":
            add[value_kind](key, value)
    changed = {}
    for name, (_, shape, content) in tensors.items():
        data = np.frombuffer(content, np.float32).reshape(shape)
        if name.endswith(("ssm_in.weight", "ssm_out.weight")):
            blocks = gguf.quants.quantize(data, number)
            changed[name] = gguf.quants.dequantize(blocks, number)
            writer.add_tensor(name, blocks, raw_dtype=number)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    run("convert", f"theirs-{kind}.gguf", f"theirs-{kind}", "--to", "hf", "--dtype", "f32")
    loaded = weights_of(f"theirs-{kind}")
    for name, expected in changed.items():
        _, layer, rest = name.split(".", 2)
        mine = loaded[f"backbone.layers.{layer}.mixer." +
                      {"ssm_in.weight": "in_proj", "ssm_out.weight": "out_proj"}[rest] + ".weight"]
        assert np.array_equal(expected, mine), (kind, name)
    told = json.loads(run("inspect", f"theirs-{kind}.gguf", "--json"))
    assert sum(t["dtype"] == kind for t in told["tensors"]) == len(changed), kind


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        models.byte_model(PROGRAM, "wide", d_model=256, n_layer=2)
        for kind in ("f32", "f16", "bf16", "q8_0", "q4_0", "q5_1", "q4_k", "q5_k", "q6_k", "iq4_nl"):
            check_ours(kind)
        for kind in ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"):
            check_theirs(kind)
        os.chdir("/")
    print("all passed")


if __name__ == "__main__":
    main()
