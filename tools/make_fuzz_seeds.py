#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes fuzz/seeds: small valid files and near misses from which the fuzzers start."""
import io
import json
import pathlib
import pickletools
import struct
import sys
import zipfile

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


def tasks_seeds():
    # The first byte chooses the task: 0 LAMBADA, 1 HellaSwag, 5 WinoGrande.
    yield "target", b'\0{"id": 0, "ctx": "It is", "target": " so"}\n{"ctx": "a", "target": "b"}'
    yield "choices", b'\x01{"id": "q", "ctx": "It", "choices": ["is", "was"], "gold": 1}\r\n'
    yield "contexts", b'\x05{"contexts": ["a b", "a c"], "target": " d", "gold": 0}'
    yield "blank_line", b'\0\n\n{"ctx": "a", "target": "b"}'
    yield "wrong_gold", b'\x01{"ctx": "It", "choices": ["is", "was"], "gold": 1e99}'


def jinja_seeds():
    sys.path.insert(0, str(ROOT / "tests" / "formats"))
    import jinja_cases
    yield from ((name, text.encode()) for name, text in jinja_cases.TEMPLATES.items())
    corners = [text for text, _ in jinja_cases.SMALL] + jinja_cases.BROKEN
    for i in range(0, len(corners), 10):
        yield f"corners_{i // 10}", "".join(corners[i:i + 10]).encode()
    for i, text in enumerate(corners[::6]):
        yield f"corner_{i}", text.encode()


def tokenizer_seeds():
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    vocab = {c: i for i, c in enumerate("abcdehlot.,'!0123\u0120\u010a\u00c3\u00a9")}
    for merged in ("th", "the", "\u0120the", "\u0120a", "ab", "abab"):
        vocab[merged] = len(vocab)
    merges = ["t h", "th e", "\u0120 the", ["\u0120", "a"], "a b", "ab ab"]
    text = "the ab  abab<s> don't\n\n the\u00e9 e\u0301 123 tot"

    def seed(**changes):
        model = {"type": "BPE", "vocab": vocab, "merges": merges, **changes.pop("model", {})}
        file = {"added_tokens": [], "normalizer": None, "pre_tokenizer": byte_level,
                "decoder": byte_level, "model": model, **changes}
        return json.dumps(file, ensure_ascii=False).encode() + b"\0" + text.encode() + b"\xff a"

    def added(number, content, **flags):
        return {"id": number, "content": content, "special": False, **flags}

    def split(pattern, behavior="Isolated", **more):
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, **more}

    yield "plain", seed()
    yield "added", seed(added_tokens=[added(50, "<s>", special=True, rstrip=True),
                                      added(51, "  ", normalized=True), added(52, " a", lstrip=True),
                                      added(53, "tot", single_word=True)],
                        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]})
    yield "unknown", seed(model={"unk_token": "a", "fuse_unk": True, "ignore_merges": True})
    yield "fallback", seed(model={"byte_fallback": True, "vocab": {**vocab, "<0xC4>": 60}})
    bare = {**byte_level, "use_regex": False}
    yield "llama", seed(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        split("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
              " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"), bare]})
    yield "stages", seed(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"}, {**byte_level, "add_prefix_space": True},
        {"type": "Digits", "individual_digits": True}, split("[0-9][0-9]", "MergedWithNext"),
        split("t", "MergedWithPrevious", invert=True)]})
    yield "template", seed(post_processor={
        "type": "TemplateProcessing", "special_tokens": {"s": {"ids": [1]}},
        "single": [{"SpecialToken": {"id": "s"}}, {"Sequence": {"id": "A"}}]})
    yield "bad_merge", seed(model={"merges": ["a zz"]})
    yield "unigram", seed(model={"type": "Unigram"})
    yield "bad_pattern", seed(pre_tokenizer=split("(a+)+$(?<"))


def golden_zip(name):
    return (ROOT / "tests" / "golden" / "torch" / name).read_bytes()


def golden_pickle(name):
    with zipfile.ZipFile(ROOT / "tests" / "golden" / "torch" / name) as file:
        return file.read(f"{name.removesuffix('.bin')}/data.pkl")


def pickle_seeds():
    for name in ("protocol2", "protocol4", "protocol5", "with_metadata", "with_number", "module"):
        yield name, golden_pickle(name + ".bin")
    yield "optimized", pickletools.optimize(golden_pickle("protocol2.bin"))
    yield "os_system", b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R."
    yield "inst", b"\x80\x02(X\x02\0\0\0idios\nsystem\n."
    yield "stack_global", b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."
    yield "cycle", b"\x80\x02]q\x01h\x01ah\x01\x85."
    yield "own_value", b"\x80\x02}q\x01X\x01\0\0\0wh\x01s."
    yield "deep", b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b"."
    yield "huge_text", b"\x80\x02\x8d" + b"\xff" * 8
    yield "long", b"\x80\x02}X\x01\0\0\0w\x8a\x08" + b"\xff" * 8 + b"s."


def zip_of(members, method=zipfile.ZIP_STORED, force_zip64=False):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with file.open(info, "w", force_zip64=force_zip64) as member:
                member.write(content)
    return out.getvalue()


def torch_members(name):
    with zipfile.ZipFile(ROOT / "tests" / "golden" / "torch" / name) as file:
        return [(info.filename, file.read(info)) for info in file.infolist()]


def mamba_c(vocab, width, inner, rank, states, taps):
    header = struct.pack("<II8i", 0x4D616D62, 1, 1, vocab, width, inner, rank, states, taps, 1)
    rows = (vocab + 7) // 8 * 8
    before = rows * width + 2 * inner * width + inner * taps + inner
    before += (rank + 2 * states) * inner + inner * rank + inner
    after = inner + width * inner + width + width
    data = [0.5] * before + [-1.0] * (inner * states) + [0.25] * after
    return header.ljust(256, b"\0") + struct.pack(f"<{len(data)}f", *data)


def torch_zip_seeds():
    for name in ("protocol2.bin", "with_metadata.bin", "legacy.bin", "module.bin"):
        yield name.removesuffix(".bin"), golden_zip(name)
    members = torch_members("with_metadata.bin")
    yield "zip64", zip_of(members, force_zip64=True)
    yield "deflated", zip_of(members, zipfile.ZIP_DEFLATED)
    yield "mamba_c", mamba_c(5, 2, 3, 1, 2, 2)


def main():
    for folder, seeds in (("safetensors", safetensors_seeds()), ("json", json_seeds()),
                          ("tasks", tasks_seeds()), ("jinja", jinja_seeds()),
                          ("tokenizer", tokenizer_seeds()), ("pickle", pickle_seeds()),
                          ("torch_zip", torch_zip_seeds())):
        (SEEDS / folder).mkdir(parents=True, exist_ok=True)
        for name, content in seeds:
            (SEEDS / folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
