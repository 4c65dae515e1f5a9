# SPDX-License-Identifier: Apache-2.0
"""GGUF files in every command that takes a model, quantize, imatrix, and both ways of convert.

Usage: test_gguf.py PROGRAM
"""
import json
import os
import subprocess
import sys
import tempfile

import models

PROGRAM = os.path.abspath(sys.argv[1])


def run(*arguments, code=0):
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, stdin=subprocess.DEVNULL,
                            timeout=300)
    assert result.returncode == code, (arguments, result.returncode, result.stderr.decode())
    return result.stdout.decode(errors="replace")


def error_of(*arguments, code=3):
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, stdin=subprocess.DEVNULL,
                            timeout=300)
    assert result.returncode == code, (arguments, result.returncode, result.stderr.decode())
    return result.stderr.decode(errors="replace")


def read_json(*arguments):
    return json.loads(run(*arguments, "--json"))


def generated(model, *more):
    return run("generate", "-m", model, "-p", "It was", "-n", "24", "--temp", "0", *more)


def check_llama_cpp_form():
    """A file as llama.cpp's converter writes it: every command takes it as it takes the folder."""
    values, tensors = models.mamba_gguf("good")
    models.write("theirs.gguf", models.gguf(values, tensors))
    assert generated("theirs.gguf") == generated("good")
    told = read_json("inspect", "theirs.gguf")
    folder = read_json("inspect", "good")
    assert told["parameters"] == folder["parameters"]
    assert {t["name"] for t in told["tensors"]} == {t["name"] for t in folder["tensors"]}
    kl = read_json("eval", "kl", "good", "theirs.gguf", "-f", "text", "--window", "64")
    assert abs(kl["kl_mean"]) < 1e-6, kl
    run("eval", "ppl", "-m", "theirs.gguf", "-f", "text", "--window", "64")
    run("bench", "model", "theirs.gguf", "--seconds", "0.01")


def check_broken_weights():
    """NaN in a vector, a matrix or the scale of a block is refused by file and tensor."""
    values, tensors = models.mamba_gguf("good")
    nan = b"\x00\x00\xc0\x7f"
    for name in ("blk.1.attn_norm.weight", "blk.1.ssm_out.weight"):
        number, shape, content = tensors[name]
        models.write("nan.gguf", models.gguf(values, {**tensors, name: (number, shape, nan + content[4:])}))
        for kind in ("f32", "f16", "bf16", "q8_0"):
            told = error_of("quantize", "nan.gguf", "made.gguf", kind)
            assert "[nan.gguf] expected finite weights" in told and name in told, told
        assert "nan.gguf" in error_of("convert", "nan.gguf", "made.gguf", "--to", "gguf")
        assert not os.path.exists("made.gguf")
    for command in (("generate", "-p", "It was"), ("eval", "ppl", "-f", "text")):
        told = error_of(*command, "-m", "nan.gguf")
        assert "expected finite numbers from the model nan.gguf" in told, told
    told = error_of("eval", "kl", "good", "nan.gguf", "-f", "text")
    assert "expected finite numbers from the model nan.gguf" in told, told
    models.byte_model(PROGRAM, "blocks", d_model=32)
    values, tensors = models.mamba_gguf("blocks")
    shape = tensors["token_embd.weight"][1]
    for scale, code in ((b"\x00\x24", 0), (b"\x00\x7c", 3)):  # 1/64; infinity
        blocks = b"\x00\x24" + b"\1" * 32
        blocks = blocks * (shape[0] * shape[1] // 32 - 1) + scale + b"\1" * 32
        models.write("q8.gguf", models.gguf(values, {**tensors, "token_embd.weight": (8, shape, blocks)}))
        told = error_of("quantize", "q8.gguf", "q8-made.gguf", "q8_0", code=code)
        assert code == 0 or ("[q8.gguf] expected finite" in told and "token_embd" in told), told
        if code == 0:
            os.remove("q8-made.gguf")


def check_convert():
    """Folder -> GGUF -> folder, in both forms: the logits stay."""
    for name, config in {"one": {}, "untied": {"tie_embeddings": False},
                         "two": {"ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 8,
                                             "ngroups": 2}}}.items():
        models.byte_model(PROGRAM, name, **config)
        run("convert", name, f"{name}.gguf", "--to", "gguf", "--verify")
        run("convert", f"{name}.gguf", f"{name}-back", "--to", "hf", "--verify")
        assert generated(f"{name}.gguf") == generated(name), name
        assert os.path.exists(f"{name}.md")
    run("convert", "one", "one-half.gguf", "--to", "gguf", "--dtype", "bf16", "--verify")
    run("convert", "one", "one.gguf", "--to", "gguf", code=2)
    run("convert", "one", "one.gguf", "--to", "gguf", "--force")
    # Few of the weights in blocks are enough to round the inputs of products.
    run("quantize", "one", "few.gguf", "f32", "--tensor-type", "blk.1.ssm_out=q8_0")
    run("convert", "few.gguf", "few", "--to", "hf", "--verify")


def check_importance_of_others():
    """imatrix.gguf is of "wide", which has two layers."""
    for layers, told in ((1, "4 entries that the model lacks, and none for 0 of the 4 matrices"),
                         (3, "0 entries that the model lacks, and none for 3 of the 10 matrices")):
        models.byte_model(PROGRAM, f"layers-{layers}", d_model=256, n_layer=layers)
        (notice,) = [n for n in read_json("quantize", f"layers-{layers}", "l.gguf", "q4_0", "--imatrix",
                                          "imatrix.gguf", "--dry-run")["notices"] if "imatrix" in n]
        assert told in notice, notice
    notices = read_json("quantize", "wide", "l.gguf", "q4_0", "--imatrix", "imatrix.gguf",
                        "--dry-run")["notices"]
    assert not notices, notices
    models.write("others.gguf", models.gguf({"general.type": ("str", "imatrix")}, {
        name: (0, shape, b"\0\0\x80\x3f" * shape[1])
        for name, shape in (("blk.0.attn_q.weight.in_sum2", [1, 256]),
                            ("blk.0.attn_q.weight.counts", [1, 1]))}))
    told = error_of("quantize", "wide", "l.gguf", "q4_0", "--imatrix", "others.gguf", "--dry-run")
    assert "[others.gguf]" in told and "1 entries" in told and "attn_q" in told, told


def check_quantize():
    models.byte_model(PROGRAM, "wide", d_model=256, n_layer=2)
    plan = read_json("quantize", "wide", "w.gguf", "Q4_K_M", "--dry-run")
    assert not os.path.exists("w.gguf") and plan["files"] == []
    types = {t["name"]: t["to"] for t in plan["tensors"]}
    assert types["blk.0.ssm_in.weight"] == "q4_k" and types["token_embd.weight"] == "q6_k", types
    for name in ("ssm_a", "ssm_d", "attn_norm.weight", "ssm_conv1d.weight", "ssm_dt.bias"):
        assert types[f"blk.0.{name}"] == "f32", name
    assert types["blk.0.ssm_x.weight"] == "q8_0" and types["blk.0.ssm_dt.weight"] == "bf16"
    run("imatrix", "wide", "-f", "text", "-o", "imatrix.gguf", "--chunk", "64")
    check_importance_of_others()
    errors = {}
    for kind in ("f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q5_1", "q4_k", "q4_0", "q4_1", "iq4_nl"):
        told = read_json("quantize", "wide", f"w-{kind}.gguf", kind, "--imatrix", "imatrix.gguf",
                         "--eval-text", "text", "--tensor-type", r"blk\.1\.ssm_out=f32")
        errors[kind] = told["quality"]["kl_mean"]
        types = {t["name"]: t["to"] for t in told["tensors"]}
        assert types["blk.1.ssm_out.weight"] == "f32"
        assert os.path.getsize(f"w-{kind}.gguf") > told["bytes"]
        generated(f"w-{kind}.gguf")
    assert errors["f16"] < errors["q8_0"] < errors["q5_0"] < errors["q4_0"], errors
    with open("w-q4_k.md") as file:
        card = file.read()
    for part in ("base_model_relation: quantized", "perplexity", "KL divergence", "w-q4_k.gguf"):
        assert part in card, part
    # From one GGUF to another, with what else the file says; and back to a folder, in f32.
    run("quantize", "w-q8_0.gguf", "again.gguf", "q4_0")
    run("convert", "w-q4_k.gguf", "folder", "--to", "hf")
    kl = read_json("eval", "kl", "w-q4_k.gguf", "folder", "-f", "text", "--window", "64")
    assert abs(kl["kl_mean"]) < 0.1, kl  # by the inputs of products alone, which blocks round
    # Loading in few bits is that file, and what is in blocks already stays so, aloud.
    run("quantize", "wide", "plain.gguf", "q4_k")
    assert run("eval", "ppl", "-m", "wide", "-f", "text", "--dtype", "q4_k") == \
        run("eval", "ppl", "-m", "plain.gguf", "-f", "text")
    for dtype, told in (("q8_0", "plain.gguf holds in q6_k, q4_k"), ("q4_k", ""), ("f32", "")):
        warned = subprocess.run([PROGRAM, "eval", "ppl", "-m", "plain.gguf", "-f", "text", "--dtype",
                                 dtype], capture_output=True, check=True).stderr.decode()
        assert told in warned if told else not warned, (dtype, warned)
    shards = read_json("quantize", "wide", "s.gguf", "f32", "--max-shard-mb", "1")["files"]
    assert len(shards) > 1 and generated(shards[0]) == generated("wide"), shards


def check_width_of_llama_cpp():
    """Which loads Mamba-1 of twice the width alone; Mamba-2 needs no note."""
    for name, config, said in (("narrow", {"ssm_cfg": {"layer": "Mamba1", "expand": 1}}, True),
                               ("narrow-two", {"ssm_cfg": {"layer": "Mamba2", "expand": 1, "d_state": 8,
                                                           "headdim": 8}}, False),
                               ("good", {}, False)):
        if config:
            models.byte_model(PROGRAM, name, **config)
        notices = read_json("quantize", name, "x.gguf", "f32", "--dry-run")["notices"]
        assert any("llama.cpp loads" in n for n in notices) == said, (name, notices)


def types_of(*arguments):
    plan = read_json("quantize", *arguments, "--dry-run")
    return {t["name"]: t["to"] for t in plan["tensors"]}, plan["notices"]


def check_flags_of_llama_quantize():
    models.byte_model(PROGRAM, "untied-wide", d_model=256, n_layer=2, tie_embeddings=False)
    types, _ = types_of("untied-wide", "x.gguf", "q4_k", "--pure")
    assert types["output.weight"] == types["token_embd.weight"] == types["blk.0.ssm_x.weight"] == "q4_k"
    assert types["blk.0.ssm_dt.weight"] == "bf16" and types["blk.0.ssm_a"] == "f32", types
    types, _ = types_of("untied-wide", "x.gguf", "q4_0", "--output-tensor-type", "q5_1",
                        "--token-embedding-type", "F16")
    assert (types["output.weight"], types["token_embd.weight"]) == ("q5_1", "f16"), types
    types, _ = types_of("untied-wide", "x.gguf", "q4_0", "--leave-output-tensor")
    assert (types["output.weight"], types["token_embd.weight"]) == ("f32", "q4_0"), types
    for flag, expected in ((["--output-tensor-type", "q8_0"], "q8_0"), (["--leave-output-tensor"], "f32")):
        types, _ = types_of("wide", "x.gguf", "q4_0", *flag)  # whose head is the embedding
        assert types["token_embd.weight"] == expected, types
    models.write("rules", "blk\\.0\\.=q8_0\nssm_out=q6_k  ssm_x=f32\n")
    types, _ = types_of("wide", "x.gguf", "q4_0", "--tensor-type-file", "rules", "--tensor-type",
                        "blk.1.ssm_out=q5_0")
    assert [types[f"blk.{layer}.ssm_{name}.weight"] for layer, name in (
        (0, "in"), (1, "in"), (0, "out"), (1, "out"), (0, "x"))] == \
        ["q8_0", "q4_0", "q6_k", "q5_0", "f32"], types
    # The file and its card hold what the plan said.
    run("quantize", "untied-wide", "pure.gguf", "q4_k", "--pure")
    with open("pure.md") as file:
        assert "8 tensors in q4_k" in file.read()
    run("quantize", "wide", "one-of.gguf", "q4_0", "--tensor-type", "blk.1.ssm_out=q5_0")
    with open("one-of.md") as file:
        assert " 1 tensor in q5_0" in file.read()
    generated("pure.gguf")
    for more, said in (((), True), (("--allow-requantize",), False)):
        _, notices = types_of("pure.gguf", "x.gguf", "q8_0", *more)
        assert any("second time" in n and "q4_k" in n for n in notices) == said, notices


def check_dtype_of_blocks():
    """--dtype f32 and bf16 give what they say, of blocks too; without it blocks stay."""
    ppl = ("eval", "ppl", "-f", "text", "--window", "64", "-m")
    run("convert", "plain.gguf", "plain-wide", "--to", "hf", "--dtype", "f32")
    blocks = read_json(*ppl, "plain.gguf")
    assert read_json(*ppl, "plain.gguf", "--dtype", "f32")["perplexity"] == \
        read_json(*ppl, "plain-wide")["perplexity"] != blocks["perplexity"]
    assert read_json(*ppl, "plain.gguf", "--dtype", "bf16")["perplexity"] == \
        read_json(*ppl, "plain-wide", "--dtype", "bf16")["perplexity"]
    prints = {}
    for dtype in ((), ("--dtype", "f32"), ("--dtype", "bf16")):
        told = read_json("eval", "kl", "plain.gguf", "plain-wide", "-f", "text", "--window", "64", *dtype)
        prints[dtype] = told["base"]["fingerprint"]
        if dtype:
            assert told["kl_mean"] == 0 and prints[dtype] == told["model"]["fingerprint"], told
    assert len(set(prints.values())) == 3, prints


def check_states_move():
    """A state written under --dtype goes on under the file that quantize makes, and back."""
    ids = ",".join(map(str, range(40, 90)))

    def taken(model, *more):
        return read_json("generate", "-m", model, "-n", "24", "--temp", "0", "--ignore-eos", *more)["ids"]

    models.byte_model(PROGRAM, "states-1", scale=0.3, d_model=256)
    models.byte_model(PROGRAM, "states-2", scale=0.3, d_model=256, ssm_cfg={
        "layer": "Mamba2", "d_state": 16, "headdim": 32, "ngroups": 2})
    models.byte_model(PROGRAM, "states-3", d_model=96)  # whose types of 256 become others
    for model in ("states-1", "states-2", "states-3"):
        for kind in ("f32", "f16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0",
                     "iq4_nl"):
            run("quantize", model, "moved.gguf", kind, "--force")
            ways = [("moved.gguf",), (model, "--dtype", kind)]
            for here, there in (ways, ways[::-1]):
                begun = taken(*here, "--prompt-ids", ids, "--state-out", "state")
                more = [taken(*way, "--state-in", "state", "--prompt-ids", "7,8") for way in (here, there)]
                assert more[0] == more[1] and begun, (model, kind, more)
    # Memory in the file's own types: less than in bf16, and not told of a folder.
    memory = read_json("inspect", "moved.gguf")["memory"]
    assert memory["inference_stored_bytes"] < memory["inference_bf16_bytes"], memory
    assert "in the types of the file" in run("inspect", "moved.gguf")
    assert "inference_stored_bytes" not in read_json("inspect", "states-1")["memory"]
    # What truly is another model is refused still.
    run("quantize", "states-1", "moved.gguf", "q4_0", "--force", "--tensor-type", "blk.1.ssm_out=q8_0")
    taken("states-1", "--dtype", "q4_0", "--prompt-ids", ids, "--state-out", "state")
    assert "use the model that the state was made with" in error_of(
        "generate", "-m", "moved.gguf", "--state-in", "state", "-n", "1", "--prompt-ids", "7")


def check_license():
    """From the card into the file, and from the file into cards where there is none beside it."""
    models.byte_model(PROGRAM, "licensed")
    models.write("licensed/README.md", "---\nlicense: 'other'  # ours\nlicense_name: a b\n---\n")
    os.mkdir("of")
    run("convert", "licensed", "of/licensed.gguf", "--to", "gguf")
    os.remove("of/licensed.md")
    run("quantize", "of/licensed.gguf", "of/small.gguf", "q8_0", "--no-tokenizer")
    os.remove("of/small.md")
    run("convert", "of/small.gguf", "licensed-back", "--to", "hf")
    with open("licensed-back/README.md") as file:
        card = file.read()
    assert card.startswith('---\nlicense: other\nlicense_name: "a b"\n'), card


def check_tokenizer():
    run("tokenizer", "train", "--data", "text", "--vocab-size", "300", "--out", "vocabulary")
    models.byte_model(PROGRAM, "words", vocab_size=304)
    for name in os.listdir("vocabulary"):
        with open(f"vocabulary/{name}", "rb") as file:
            models.write(f"words/{name}", file.read())
    run("convert", "words", "words.gguf", "--to", "gguf", "--verify")
    same = run("tokenize", "--tokenizer", "vocabulary", "-f", "text")
    assert run("tokenize", "--tokenizer", "words.gguf", "-f", "text") == same
    assert generated("words.gguf") == generated("words")
    run("train", "--init-from", "words.gguf", "--tokenizer", "words.gguf", "--data", "text",
        "--output-dir", "tuned", "--seq-len", "16", "--max-steps", "2", "--batch-size", "1")
    assert run("tokenize", "--tokenizer", "tuned", "-f", "text") == same
    run("quantize", "words", "bare.gguf", "f32", "--no-tokenizer")
    run("generate", "-m", "bare.gguf", "-p", "x", code=2)
    run("generate", "-m", "bare.gguf", "--prompt-ids", "1,2", "-n", "2")


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        models.byte_model(PROGRAM, "good")
        models.write("text", "It was the best of times, it was the worst of times. " * 40)
        check_llama_cpp_form()
        check_broken_weights()
        check_convert()
        check_quantize()
        check_width_of_llama_cpp()
        check_flags_of_llama_quantize()
        check_dtype_of_blocks()
        check_states_move()
        check_license()
        check_tokenizer()
        os.chdir("/")
    print("all passed")


if __name__ == "__main__":
    main()
