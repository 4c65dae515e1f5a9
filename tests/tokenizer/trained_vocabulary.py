#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mamba-cpp tokenizer train against the PyPI package tokenizers: the learned file loads there, gives
the same ids, and is the vocabulary that its own trainer learns.

    trained_vocabulary.py PROGRAM        exits 77 where tokenizers cannot be imported
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

PROGRAM = os.path.abspath(sys.argv[1])
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SKIP = 77

try:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
except ImportError:
    print("SKIPPED: the Python package tokenizers is not installed")
    sys.exit(SKIP)


def text_to_learn():
    """Prose of this repository, and words with characters of other scripts."""
    text = "".join(p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("*.md")))
    text += "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md")))
    rng = random.Random(1)
    words = ["na\u00efve", "\u00e9t\u00e9", "\u65e5\u672c\u8a9e", "\u043c\u0438\u0440", "\U0001f600",
             "aaaa", "abababab", "don't", "x\u0301", "  ", "\n\n", "\t", "1234", "<|endoftext|>"]
    return text + " ".join(rng.choice(words) for _ in range(4000))


def train_here(folder, text, size, special):
    data = folder / "text.txt"
    data.write_bytes(text.encode())
    out = folder / f"out{size}"
    arguments = [PROGRAM, "tokenizer", "train", "--vocab-size", str(size), "--data", str(data),
                 "--out", str(out), "--special", *special]
    subprocess.run(arguments, check=True, capture_output=True)
    return out


def train_there(text, size, special):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, special_tokens=special,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    parts = text.split("<|endoftext|>")
    tokenizer.train_from_iterator(parts, trainer)
    return json.loads(tokenizer.to_str())["model"]


def ids_here(out, text):
    result = subprocess.run([PROGRAM, "tokenize", "--tokenizer", str(out)], input=text.encode(),
                            check=True, capture_output=True)
    return [int(word) for word in result.stdout.split()]


def main():
    special = ["<|endoftext|>", "<pad>"]
    text = text_to_learn()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for size in (258, 700, 2000):
            out = train_here(folder, text, size, special)
            mine = json.loads((out / "tokenizer.json").read_text())["model"]
            other = train_there(text, size, special)
            merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" "))
                      for m in other["merges"]]
            assert mine["vocab"] == other["vocab"], f"{size}: another vocabulary"
            assert [tuple(m.split(" ")) for m in mine["merges"]] == merges, f"{size}: other merges"
            loaded = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
            expected = loaded.encode(text, add_special_tokens=False).ids
            assert ids_here(out, text) == expected, f"{size}: other ids"
            assert loaded.decode(expected, skip_special_tokens=False) == text
            assert loaded.token_to_id("<|endoftext|>") == 0
            print(f"{size}: {len(mine['merges'])} merges, {len(expected)} ids as tokenizers "
                  f"{tokenizers.__version__}")


if __name__ == "__main__":
    main()
