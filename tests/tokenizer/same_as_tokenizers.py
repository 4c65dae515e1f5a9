#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ids against the PyPI package tokenizers: 10 MB of books with published tokenizers (where
MAMBA_TEST_DATA names the data) against the hash of its ids, or with --recompute against the package
itself; and random text with tokenizers of every supported kind, where the package can be imported.

    same_as_tokenizers.py PROGRAM [--recompute] [--bytes N]    exits 77 where neither can run
"""
import array
import hashlib
import json
import lzma
import os
import pathlib
import random
import subprocess
import sys
import tempfile

PROGRAM = os.path.abspath(sys.argv[1])
RECOMPUTE = "--recompute" in sys.argv
BYTES = int(sys.argv[sys.argv.index("--bytes") + 1]) if "--bytes" in sys.argv else 10_000_000
SKIP = 77
GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")

# Of the ids of the books' first 10 MB, as --recompute found them with tokenizers 0.23.3.
EXPECTED = {"gpt-neox-20b": "d92fcdc025c9e502", "gpt2": "3398f96b5a782045"}

try:
    import tokenizers
except ImportError:
    tokenizers = None


def ids_here(path, text, *flags):
    """Through a token file, which is the quickest way out."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "ids.bin")
        subprocess.run([PROGRAM, "tokenize", "--tokenizer", str(path), "--out", out, "--dtype",
                        "uint32", *flags], input=text.encode(), check=True)
        return array.array("I", pathlib.Path(out).read_bytes())


def books(data):
    """By chunks that begin where a paragraph does: one text of 10 MB takes the package minutes."""
    raw = lzma.open(data / "text" / "books" / "train.txt.xz").read(BYTES)
    paragraphs = raw[:raw.rindex(b"\n") + 1].decode().split("\n\n")
    chunks = ["\n\n".join(paragraphs[i:i + 50]) for i in range(0, len(paragraphs), 50)]
    lines = "".join(json.dumps({"text": c}) + "\n" for c in chunks)
    for name, expected in EXPECTED.items():
        path = data / "tokenizers" / name / "tokenizer.json"
        out = subprocess.run([PROGRAM, "tokenize", "--tokenizer", str(path), "--jsonl"],
                             input=lines.encode(), check=True, capture_output=True)
        mine = array.array("I")
        for line in out.stdout.splitlines():
            mine.extend(json.loads(line)["ids"])
        found = hashlib.sha256(mine.tobytes()).hexdigest()[:16]
        if RECOMPUTE:
            there, ids = tokenizers.Tokenizer.from_file(str(path)), array.array("I")
            for encoding in there.encode_batch(chunks, add_special_tokens=False):
                ids.extend(encoding.ids)
            assert mine == ids, f"{name}: other ids"
            head = "\n\n".join(paragraphs)[:1_000_000]
            whole = array.array("I", there.encode(head).ids)
            assert ids_here(path, head) == whole, f"{name}: other ids of one text"
        if BYTES == 10_000_000:
            assert found == expected, f"{name}: ids with the hash {found}, expected {expected}"
        print(f"{name}: {len(raw)} bytes, {len(mine)} ids, sha256 {found}: equal")


def variants(base):
    """Tokenizer files that differ in one thing each."""
    def changed(**changes):
        made = json.loads(json.dumps(base))
        model = changes.pop("model", {})
        made.update(changes)
        made["model"].update(model)
        return made

    def byte_level(prefix=False, regex=True):
        return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True,
                "use_regex": regex}

    def split(pattern, behavior="Isolated", invert=False):
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior,
                "invert": invert}

    def added(content, **flags):
        """With the id of the vocabulary or, as the package counts, the next one."""
        known = base["model"]["vocab"]
        number = known.get(content, len(known) + sum(t["content"] not in known for t in more))
        more.append({"id": number, "content": content, "single_word": False, "lstrip": False,
                     "rstrip": False, "normalized": False, "special": False, **flags})

    def sequence(*parts):
        return {"type": "Sequence", "pretokenizers": list(parts)}

    bare = byte_level(regex=False)
    more = [*base["added_tokens"]]
    added("<l>", lstrip=True)
    added("<r>", rstrip=True)
    added("cat", single_word=True)
    added("  ", normalized=True)
    added("   ")
    added("\u00e9t", normalized=True)
    added("<s>", special=True)
    yield "prefix", changed(pre_tokenizer=byte_level(prefix=True))
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        yield form, changed(normalizer={"type": form}, added_tokens=more)
    yield "added", changed(added_tokens=more)
    yield "added_prefix", changed(added_tokens=more, pre_tokenizer=byte_level(prefix=True))
    yield "llama3", changed(pre_tokenizer=sequence(split(LLAMA3), bare))
    yield "qwen2", changed(pre_tokenizer=sequence(split(LLAMA3.replace("{1,3}", "")), bare))
    yield "gpt2_inverted", changed(pre_tokenizer=sequence(split(GPT2, "Removed", True), bare))
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        yield behavior, changed(pre_tokenizer=sequence(split(r"\p{N}|t", behavior), byte_level()))
        yield f"{behavior}_punctuation", changed(pre_tokenizer=sequence(
            {"type": "Punctuation", "behavior": behavior}, byte_level(prefix=True)))
    yield "falcon", changed(pre_tokenizer=sequence(
        {"type": "Punctuation", "behavior": "Contiguous"}, byte_level(),
        {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]")))
    yield "digits", changed(pre_tokenizer=sequence(
        {"type": "Digits", "individual_digits": True}, byte_level()))
    yield "ignore_merges", changed(model={"ignore_merges": True})
    few = {t: i for t, i in base["model"]["vocab"].items() if t not in "xyz"}
    few["<unk>"] = max(few.values()) + 1
    merges = [m for m in base["model"]["merges"] if not set(m) & set("xyz")]
    few = {t: i for t, i in few.items() if not set(t) & set("xyz")}
    for fuse in (False, True):
        yield f"unknown_{fuse}", changed(added_tokens=[], model={
            "vocab": few, "merges": merges, "fuse_unk": fuse, "unk_token": "<unk>"})
    yield "vanishing", changed(added_tokens=[], model={"vocab": few, "merges": merges})


def random_text(rng):
    pieces = ["the", " cat", "cat", "concat", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "don't", "'S",
              "12345", "7", "!?", "...", "\u00e9t", "e\u0301t", "\u65e5\u672c", "\u00a0", "\u3000", "<l>",
              "<r>", "<s>", "<|endoftext|>", "xyz", "\U0001f600", "\ufb01", "\u00b2", "\u2019s", "t"]
    return "".join(rng.choice(pieces) if rng.random() < 0.9 else chr(rng.randrange(32, 0xd000))
                   for _ in range(rng.randrange(1, 30)))


def kinds():
    rng = random.Random(2)
    texts = [random_text(rng) for _ in range(400)]
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        learn = folder / "learn"
        learn.write_text("".join(p.read_text() for p in sorted(root.glob("*.md"))) + "".join(texts))
        subprocess.run([PROGRAM, "tokenizer", "train", "--vocab-size", "800", "--data", str(learn),
                        "--out", str(folder / "base")], check=True, capture_output=True)
        base = json.loads((folder / "base" / "tokenizer.json").read_text())
        lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
        count = 0
        for kind, file in variants(base):
            path = folder / f"{kind}.json"
            path.write_text(json.dumps(file))
            there = tokenizers.Tokenizer.from_file(str(path))
            out = subprocess.run([PROGRAM, "tokenize", "--tokenizer", str(path), "--jsonl"],
                                 input=lines.encode(), check=True, capture_output=True).stdout
            for text, line in zip(texts, out.splitlines()):
                mine, expected = json.loads(line)["ids"], there.encode(text).ids
                assert mine == expected, f"{kind}: {text!r}: {mine}, expected {expected}"
            count += 1
        print(f"{count} kinds of tokenizers, {len(texts)} texts each: equal to tokenizers "
              f"{tokenizers.__version__}")


def main():
    data = os.environ.get("MAMBA_TEST_DATA")
    if data:
        books(pathlib.Path(data))
    else:
        print("SKIPPED the books: MAMBA_TEST_DATA is not set")
    if tokenizers:
        kinds()
    else:
        print("SKIPPED the kinds of files: the Python package tokenizers is not installed")
    return 0 if data or tokenizers else SKIP


if __name__ == "__main__":
    sys.exit(main())
