# SPDX-License-Identifier: Apache-2.0
"""Our GGUF files in llama.cpp: the same ids of text, and the same greedy continuation.

Usage: llama_cpp_package.py PROGRAM MODEL...; skips (77) without the PyPI package llama-cpp-python.
"""
import json
import os
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


def compare(path, least):
    """The first `least` of the greedy tokens agree, and all ids of the text."""
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
    print(f"{os.path.basename(path)}: {same} of {COUNT} greedy tokens equal")
    assert same >= least, (path, theirs, ours)


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        models.byte_model(PROGRAM, "one", d_model=256)
        models.byte_model(PROGRAM, "two", d_model=256, ssm_cfg={
            "layer": "Mamba2", "d_state": 16, "headdim": 32, "ngroups": 2})
        for model in ["one", "two", *FOLDERS]:
            name = os.path.basename(model)
            run("convert", model, f"{name}-f32.gguf", "--to", "gguf", "--dtype", "f32")
            compare(os.path.abspath(f"{name}-f32.gguf"), COUNT)
            for kind in ("bf16", "q8_0", "q4_k", "iq4_nl"):
                run("quantize", model, f"{name}-{kind}.gguf", kind)
                # llama.cpp rounds the inputs of these products (to 8 bits for blocks), which turns the
                # order of two close logits: soon where weights are random, late in a trained model.
                compare(os.path.abspath(f"{name}-{kind}.gguf"), COUNT // 4 if model in FOLDERS else 0)
        os.chdir("/")
    print("all passed")


if __name__ == "__main__":
    main()
