# SPDX-License-Identifier: Apache-2.0
"""Models for the comparisons: shapes of the papers, random weights with the papers' initialisation, as a folder
in the transformers form and, from the same values, as GGUF for llama.cpp."""

import json
import math
import pathlib
import struct
import subprocess

import numpy as np

# Rounded up as the packages do.
VOCABULARY = {"mamba1": 50280, "mamba2": 50288}
SIZES = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48)}  # width, layers
D_CONV, HEADDIM = 4, 64
STATE = {"mamba1": 16, "mamba2": 128}


def softplus_inverse_dt(rng, count):
    dt = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), count)).clip(min=1e-4)
    return dt + np.log(-np.expm1(-dt))


def tensors(variant, size, seed=0):
    """Names and f32 values in the transformers form, one after the other."""
    vocab, (width, layers) = VOCABULARY[variant], SIZES[size]
    inner, state = 2 * width, STATE[variant]
    heads, rank = inner // HEADDIM, width // 16
    rng = np.random.default_rng(seed)

    def uniform(rows, columns, scale=1.0):
        bound = scale / math.sqrt(columns)
        return rng.uniform(-bound, bound, (rows, columns))

    yield "backbone.embeddings.weight", rng.normal(0, 0.02, (vocab, width))
    for layer in range(layers):
        at = f"backbone.layers.{layer}."
        yield at + "norm.weight", np.ones(width)
        at += "mixer."
        conv = inner if variant == "mamba1" else inner + 2 * state
        yield at + "conv1d.weight", rng.uniform(-0.5, 0.5, (conv, 1, D_CONV))
        yield at + "conv1d.bias", rng.uniform(-0.5, 0.5, conv)
        if variant == "mamba1":
            yield at + "in_proj.weight", uniform(2 * inner, width)
            yield at + "x_proj.weight", uniform(rank + 2 * state, inner)
            yield at + "dt_proj.weight", uniform(inner, rank)
            yield at + "dt_proj.bias", softplus_inverse_dt(rng, inner)
            yield at + "A_log", np.log(np.tile(np.arange(1.0, state + 1), (inner, 1)))
            yield at + "D", np.ones(inner)
        else:
            yield at + "in_proj.weight", uniform(2 * inner + 2 * state + heads, width)
            yield at + "dt_bias", softplus_inverse_dt(rng, heads)
            yield at + "A_log", np.log(rng.uniform(1, 16, heads))
            yield at + "D", np.ones(heads)
            yield at + "norm.weight", np.ones(inner)
        yield at + "out_proj.weight", uniform(width, inner, 1 / math.sqrt(layers))
    yield "backbone.norm_f.weight", np.ones(width)


def config(variant, size):
    vocab, (width, layers) = VOCABULARY[variant], SIZES[size]
    common = {"vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
              "state_size": STATE[variant], "conv_kernel": D_CONV, "expand": 2, "use_bias": False,
              "use_conv_bias": True, "hidden_act": "silu", "layer_norm_epsilon": 1e-5,
              "residual_in_fp32": True, "rescale_prenorm_residual": True,
              "tie_word_embeddings": True, "initializer_range": 0.1, "time_step_min": 0.001,
              "time_step_max": 0.1, "time_step_floor": 1e-4, "bos_token_id": 0, "eos_token_id": 0,
              "pad_token_id": 0}
    if variant == "mamba1":
        return {"model_type": "mamba", "architectures": ["MambaForCausalLM"], **common,
                "intermediate_size": 2 * width, "time_step_rank": width // 16,
                "time_step_scale": 1.0, "time_step_init_scheme": "random"}
    return {"model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], **common,
            "num_heads": 2 * width // HEADDIM, "head_dim": HEADDIM, "n_groups": 1,
            "chunk_size": 256, "rms_norm": True, "norm_before_gate": False,
            "time_step_rank": width // 16, "time_step_limit": [0.0, float("inf")]}


def write_folder(variant, size, folder):
    """config.json and model.safetensors; kept if there."""
    folder = pathlib.Path(folder)
    weights = folder / "model.safetensors"
    if weights.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(variant, size), indent=2))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    values = [(name, np.ascontiguousarray(value, np.float32)) for name, value in tensors(variant, size)]
    for name, value in values:
        header[name] = {"dtype": "F32", "shape": value.shape,
                        "data_offsets": [end, end + value.nbytes]}
        end += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = weights.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, value in values:
            file.write(value.tobytes())
    partial.rename(weights)
    return folder


def byte_tokens(vocab):
    """A vocabulary for llama.cpp's gpt2 tokenizer: its 256 bytes, and names without meaning."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    table = {b: chr(b) if b in plain else chr(next(others)) for b in range(256)}
    return [table[b] for b in range(256)] + [f"<unused{i}>" for i in range(256, vocab)]


GGUF_NAMES = {"norm.weight": "attn_norm.weight", "mixer.in_proj.weight": "ssm_in.weight",
              "mixer.conv1d.weight": "ssm_conv1d.weight", "mixer.conv1d.bias": "ssm_conv1d.bias",
              "mixer.x_proj.weight": "ssm_x.weight", "mixer.dt_proj.weight": "ssm_dt.weight",
              "mixer.dt_proj.bias": "ssm_dt.bias", "mixer.dt_bias": "ssm_dt.bias",
              "mixer.A_log": "ssm_a", "mixer.D": "ssm_d", "mixer.norm.weight": "ssm_norm.weight",
              "mixer.out_proj.weight": "ssm_out.weight"}


def write_gguf(variant, size, path):
    """The f32 GGUF by the PyPI package gguf; kept if there."""
    import gguf
    path = pathlib.Path(path)
    if path.exists():
        return path
    vocab, (width, layers) = VOCABULARY[variant], SIZES[size]
    inner, heads = 2 * width, 2 * width // HEADDIM
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "mamba" if variant == "mamba1" else "mamba2")
    writer.add_name(f"{variant}-{size}-random")
    writer.add_context_length(2 ** 20)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(layers)
    writer.add_vocab_size(vocab)
    writer.add_ssm_conv_kernel(D_CONV)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(STATE[variant])
    writer.add_ssm_time_step_rank(width // 16 if variant == "mamba1" else heads)
    if variant == "mamba2":
        writer.add_ssm_group_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(byte_tokens(vocab))
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.UNUSED] * (vocab - 256))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, value in tensors(variant, size):
        parts = name.split(".")
        if parts[1] == "embeddings":
            name = "token_embd.weight"
        elif parts[1] == "norm_f":
            name = "output_norm.weight"
        else:
            name = f"blk.{parts[2]}." + GGUF_NAMES[".".join(parts[3:])]
        if name.endswith("ssm_a"):
            value = -np.exp(value)
        if name.endswith("ssm_conv1d.weight"):
            value = value.reshape(value.shape[0], D_CONV)
        if variant == "mamba2" and name.endswith(("ssm_a", "ssm_d")):
            value = value.reshape(heads, 1)
        if name.endswith("ssm_norm.weight"):
            value = value.reshape(1, inner)
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


def quantized(bin_folder, f32_path, kind):
    """The GGUF of a type such as q8_0, made by llama-quantize from the f32 one; kept if there."""
    f32_path = pathlib.Path(f32_path)
    if kind == "f32":
        return f32_path
    path = f32_path.with_name(f32_path.name.replace("f32", kind))
    if not path.exists():
        partial = path.with_suffix(".partial")
        subprocess.run([pathlib.Path(bin_folder) / "llama-quantize", f32_path, partial,
                        kind.upper(), "2"], check=True, capture_output=True)
        partial.rename(path)
    return path
