# SPDX-License-Identifier: Apache-2.0
"""Our GGUF files in llama.cpp: the same ids of text, and the same greedy continuation but for ties.

Usage: llama_cpp_package.py PROGRAM MODEL...; skips (77) without the PyPI package llama-cpp-python.
"""
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

try:
    import llama_cpp
except Exception as error:  # its library may be missing as well
    print(f"SKIPPED: needs the Python package llama-cpp-python ({error})")
    sys.exit(77)

import models

PROGRAM = os.path.abspath(sys.argv[1])
FOLDERS = [os.path.abspath(folder) for folder in sys.argv[2:]]
TEXT = "It was the best of times, it was the worst\n of  times; 1859 -- and we'd all gone  home.\n"
COUNT = 64


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, check=True,
                          stdin=subprocess.DEVNULL).stdout.decode(errors="replace")


def logits_of(path, ids, vocab, *flags):
    """Our logits behind each of `ids`: a list of `vocab` numbers for each."""
    shape, size = (1, len(ids), vocab), 4 * len(ids) * vocab
    models.write("asked", models.safetensors({
        "input_ids": ("I32", shape[:2], struct.pack(f"<{len(ids)}i", *ids)),
        "logits": ("F32", shape, bytes(size))}))
    run("verify", path, "asked", "--tolerance", "1e6", "--dump", "told", *flags)
    values = struct.unpack(f"<{size // 4}f", models.read_safetensors("told")["logits"][2])
    return [values[at:at + vocab] for at in range(0, len(values), vocab)]


def root_mean_square(values):
    return math.sqrt(sum(v * v for v in values) / len(values))


def largest_gap(rows, exact, layers, trained):
    """The gap in logits up to which two tokens are a tie: what rounding the inputs of products, by
    both programs, may move the difference of two logits by.

    The root mean square e of what it moves our own logits by, at this position, is measured: `rows`
    (inputs rounded) beside `exact`. llama.cpp's is up to 1.4 e: in its groups of 256 the largest of
    normal numbers is 2.8 times their root mean square, in ours of 32 it is 2.1, and the step of 8
    bits is that over 127 (bf16 rounds alike on both sides). Both sides together sqrt(1 + 1.4^2) e =
    1.72 e, the difference of two logits sqrt(2) times that: 2.43 e. Four times that leaves out one
    of 16,000 positions.

    That no fault of ours makes e large: a number is rounded by a step / sqrt(12), which is 0.005 of
    the root mean square (2.1 / 127 / sqrt(12)); of 4 products a layer and the head these add up to
    0.005 sqrt(4 layers + 1) of the spread of the logits if each counts in full. (Random weights
    amplify what a layer is given; trained ones do not.)
    """
    moved = root_mean_square([a - b for a, b in zip(rows, exact)])
    mean = sum(exact) / len(exact)
    spread = root_mean_square([v - mean for v in exact])
    limit = 0.005 * math.sqrt(4 * layers + 1) * spread
    assert not trained or moved <= limit, (moved, limit)
    return 4 * 2.43 * moved


def compare(path, rounded=(), exact=None, trained=False):
    """All ids of the text are equal, and the greedy tokens up to the first tie, behind which texts
    differ; then our logits for llama.cpp's text: each of its tokens is our best, or our second best
    in a tie (where weights are random, one of those in a tie). rounded, exact: flags with which our
    inputs of products are rounded as llama.cpp does, and with which they are not; exact None:
    nothing is rounded and nothing is a tie."""
    models.write("text", TEXT)
    llama = llama_cpp.Llama(path, n_ctx=512, n_threads=2, verbose=False)
    prompt = llama.tokenize(TEXT.encode(), add_bos=False, special=True)
    mine = [int(word) for word in run("tokenize", "--tokenizer", path, "-f", "text").split()]
    assert prompt == mine, (path, prompt, mine)
    theirs = []
    for token in llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        theirs.append(token)
        if len(theirs) == COUNT:
            break
    told = json.loads(run("generate", "-m", path, "--prompt-ids", ",".join(map(str, prompt)), "-n",
                          str(COUNT), "--temp", "0", "--ignore-eos", "--json"))
    ours = told["ids"]
    same = next((i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), COUNT)
    name, ties, widest = os.path.basename(path), 0, 0.0
    if exact is None:
        assert same == COUNT, (path, theirs, ours)
    else:
        layers = json.loads(run("inspect", path, "--json"))["config"]["n_layer"]
        text, vocab = prompt + theirs[:-1], llama.n_vocab()
        plain = logits_of(path, text, vocab)[-COUNT:]
        rough = logits_of(path, text, vocab, *rounded)[-COUNT:] if rounded else plain
        fine = logits_of(path, text, vocab, *exact)[-COUNT:]
        for i, token in enumerate(theirs):
            best, second = sorted(range(vocab), key=plain[i].__getitem__, reverse=True)[:2]
            assert i != same or best == ours[i], (path, i, best, ours[i])
            if token == best:
                continue
            gap = plain[i][best] - plain[i][token]
            most = largest_gap(rough[i], fine[i], layers, trained)
            assert i >= same and gap <= most, (path, i, token, best, gap, most)
            assert token == second or not trained, (path, i, token, best, second)
            ties, widest = ties + 1, max(widest, gap / most)
    print(f"{name}: {same} of {COUNT} greedy tokens equal, {ties} ties"
          + (f", the widest {widest:.2f} of what is one" if ties else ""))


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        # 0.3: text that varies, of activations that stay below 65504; past it llama.cpp gives NaN.
        models.byte_model(PROGRAM, "one", scale=0.3, d_model=256)
        models.byte_model(PROGRAM, "two", scale=0.3, d_model=256, ssm_cfg={
            "layer": "Mamba2", "d_state": 16, "headdim": 32, "ngroups": 2})
        for model in ["one", "two", *FOLDERS]:
            name = os.path.basename(model)
            run("convert", model, f"{name}-f32.gguf", "--to", "gguf", "--dtype", "f32")
            compare(os.path.abspath(f"{name}-f32.gguf"))
            for kind in ("bf16", "q8_0", "q4_k", "iq4_nl"):
                run("quantize", model, f"{name}-{kind}.gguf", kind)
                # llama.cpp rounds the inputs of these products: to bf16, or to 8 bits for blocks.
                compare(os.path.abspath(f"{name}-{kind}.gguf"),
                        ["--dtype", "bf16"] if kind == "bf16" else [], ["--dtype", "f32"],
                        model in FOLDERS)
        os.chdir("/")
    print("all passed")


if __name__ == "__main__":
    main()
