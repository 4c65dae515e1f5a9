#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes fuzz/seeds: small valid files and near misses from which the fuzzers start."""
import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz" / "seeds"


def safetensors(header, data=b""):
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_seeds():
    yield "empty", safetensors("{}")
    yield "padded", safetensors("{}      ")
    kinds = [("F64", 8), ("I64", 8), ("F32", 4), ("I32", 4),
             ("BF16", 2), ("F16", 2), ("U8", 1), ("BOOL", 1)]
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, size in kinds:
        header[name.lower()] = tensor(name, [2], at, at + 2 * size)
        at += 2 * size
    yield "all_dtypes", safetensors(header, bytes(range(at)))
    yield "scalar", safetensors({"s": tensor("F32", [], 0, 4)}, b"\0\0\x80\x3f")
    yield "no_elements", safetensors({"e": tensor("F16", [0, 3], 0, 0)})
    yield "overlap", safetensors(
        {"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, b"abc")
    yield "hole", safetensors(
        {"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}, b"abc")
    yield "overflow", safetensors({"a": tensor("F32", [1 << 32, 1 << 32], 0, 0)})
    yield "foreign", safetensors({"a": tensor("F8_E4M3", [1], 0, 1)}, b"a")
    yield "duplicate", safetensors('{"a":{},"a":{}}')
    yield "bare_nan", safetensors('{"a":NaN}')
    yield "length_lies", struct.pack("<Q", 1 << 63) + b"{}"
    yield "short", b"\x02\0\0"


def json_seeds():
    for path in sorted((ROOT / "tests" / "golden").glob("*/config.json")):
        yield path.parent.name, json.dumps(json.loads(path.read_text())).encode()
    yield "state_spaces", (
        b'{"d_model": 64, "n_layer": 2, "vocab_size": 250, "ssm_cfg": {"layer": "Mamba2", '
        b'"d_state": 16, "headdim": 32, "ngroups": 2, "dt_limit": [0.0, Infinity]}, '
        b'"d_intermediate": 100, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, '
        b'"residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 16, '
        b'"tie_embeddings": false}')
    yield "tagged_infinity", (
        b'{"model_type":"mamba2",'
        b'"time_step_limit":[0.0,{"__float__":"Infinity"}]}')
    yield "extension", (
        b'{"model_type":"mamba","vocab_size":8,"hidden_size":8,"num_hidden_layers":1,'
        b'"state_size":2,'
        b'"layer_norm_epsilon":1e-5,"conv_kernel":2,"use_bias":true,"use_conv_bias":false,'
        b'"hidden_act":"silu","expand":1.5,"time_step_rank":"auto","eos_token_id":[1,2],'
        b'"mamba_cpp":{"norm":"layer","d_intermediate":3,'
        b'"conv_silu":false,"dt_limit_max":NaN}}')
    yield "deep", b"[" * 70
    yield "duplicate", b'{"a":1,"\\u0061":2}'
    yield "literals", b'[NaN,-Infinity,Infinity,"NaN",1e999]'
    yield "not_utf8", b'{"model_type":"\xff\xfe"}'


def main():
    for folder, seeds in (("safetensors", safetensors_seeds()), ("json", json_seeds())):
        (SEEDS / folder).mkdir(parents=True, exist_ok=True)
        for name, content in seeds:
            (SEEDS / folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
