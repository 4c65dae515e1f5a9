#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mamba-cpp tokenize and tokenizer train: results, round trips, and wrong inputs with their messages.
Standard library only.   tokenize_command.py PROGRAM"""
import array
import json
import os
import pathlib
import subprocess
import sys
import tempfile

PROGRAM = os.path.abspath(sys.argv[1])
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
USAGE, INPUT = 2, 3
TEXT = "The cat sat.<|endoftext|>  na\u00efve \u65e5\u672c\n\n1234 don't\n"


def run(*arguments, stdin=b"", code=0):
    data = stdin.encode() if isinstance(stdin, str) else stdin
    result = subprocess.run([PROGRAM, *arguments], input=data, capture_output=True, timeout=300)
    assert result.returncode == code, f"{arguments}: {result.returncode} {result.stderr[-500:]}"
    return result.stdout


def encode(text, *flags):
    return [int(i) for i in run("tokenize", "--tokenizer", "bpe", *flags, stdin=text).split()]


def results():
    text = "".join(p.read_text() for p in sorted(ROOT.glob("*.md"))) + TEXT
    pathlib.Path("text").write_text(text)
    made = json.loads(run("tokenizer", "train", "--vocab-size", "600", "--data", "text", "--out", "bpe",
                          "--json"))
    assert made["vocab_size"] == 600 and made["bytes"] == len(text.encode())
    ids = encode(TEXT)
    assert 0 in ids and 0 not in encode(TEXT, "--no-special")
    words = " ".join(map(str, ids))
    for separator in (" ", ",", "\n"):
        back = run("tokenize", "--tokenizer", "bpe", "--decode", stdin=words.replace(" ", separator))
        assert back.decode() == TEXT
    assert run("tokenize", "--tokenizer", "bpe", "--decode", "--skip-special",
               stdin=words).decode() == TEXT.replace("<|endoftext|>", "")
    as_json = json.loads(run("tokenize", "--tokenizer", "bpe", "--json", stdin=TEXT))
    assert as_json == {"ids": ids, "tokens": len(ids), "bytes": len(TEXT.encode())}
    assert json.loads(run("tokenize", "--tokenizer", "bpe", "--json")) == {
        "ids": [], "tokens": 0, "bytes": 0}
    texts = [TEXT, "", "x", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]
    lines = "".join(json.dumps({"text": t, "other": 1}) + "\n" for t in texts)
    out = run("tokenize", "--tokenizer", "bpe", "--jsonl", stdin=lines + "\n")
    assert [json.loads(x)["ids"] for x in out.splitlines()] == [encode(t) for t in texts]
    back = run("tokenize", "--tokenizer", "bpe", "--jsonl", "--decode", stdin=out)
    assert [json.loads(x)["text"] for x in back.splitlines()] == texts
    assert encode("\xff".encode("latin-1")) == encode("\ufffd")
    stream_equals_whole(text)
    token_files(lines, texts)


def stream_equals_whole(text):
    """Larger than what is held at once, from a pipe."""
    text *= (1 << 21) // len(text)
    whole = json.loads(run("tokenize", "--tokenizer", "bpe", "--jsonl",
                           stdin=json.dumps({"text": text})))["ids"]
    assert encode(text) == whole
    run_of_a = encode("a" * 3_000_000)
    assert run("tokenize", "--tokenizer", "bpe", "--decode",
               stdin=" ".join(map(str, run_of_a))) == b"a" * 3_000_000


def token_files(lines, texts):
    for flags, kind in ([], "H"), (["--dtype", "uint32"], "I"):
        out = run("tokenize", "--tokenizer", "bpe", "-f", "text", "--out", "data.bin", *flags)
        assert out == b""
        numbers = array.array(kind, pathlib.Path("data.bin").read_bytes())
        assert list(numbers) == encode(pathlib.Path("text").read_bytes())
        info = json.loads(pathlib.Path("data.json").read_text())
        assert info["count"] == len(numbers) and info["vocab_size"] == 600, info
        assert info["dtype"] == {"H": "uint16", "I": "uint32"}[kind]
        assert info["text_bytes"] == os.path.getsize("text")
    run("tokenize", "--tokenizer", "bpe", "--jsonl", "--out", "lines.bin", stdin=lines)
    numbers = list(array.array("H", pathlib.Path("lines.bin").read_bytes()))
    assert numbers == [i for t in texts for i in encode(t) + [0]], "each text ends with <|endoftext|>"
    assert json.loads(pathlib.Path("lines.json").read_text())["documents"] == len(texts)


def conversations():
    talk = {"messages": [{"role": "user", "content": "<|im_end|>?"},
                         {"role": "assistant", "content": "yes"}]}
    line = json.dumps(talk) + "\n" + json.dumps({"text": "x"}) + "\n"
    command = ("tokenize", "--tokenizer", "bpe", "--jsonl")
    first, second = map(json.loads, run(*command, "--chat-template", "chatml", stdin=line).splitlines())
    assert "assistant_masks" not in second
    ids, mask = first["ids"], first["assistant_masks"]
    assert len(ids) == len(mask) and set(mask) == {0, 1}
    decode = ("tokenize", "--tokenizer", "bpe", "--decode")
    said = run(*decode, stdin=" ".join(str(i) for i, scored in zip(ids, mask) if scored))
    assert said == b"yes<|im_end|>", said
    whole = run(*decode, stdin=" ".join(map(str, ids)))
    assert whole == (b"<|im_start|>user\n<|im_end|>?<|im_end|>\n<|im_start|>assistant\nyes"
                     b"<|im_end|>\n"), whole
    run(*command, "--chat-template", "chatml", "--out", "talk.bin", stdin=json.dumps(talk))
    assert list(array.array("H", pathlib.Path("talk.bin").read_bytes())) == ids


def broken_tokenizers():
    good = json.loads(pathlib.Path("bpe/tokenizer.json").read_text())

    def write(name, change):
        made = json.loads(json.dumps(good))
        change(made)
        pathlib.Path(name).write_text(json.dumps(made))

    write("merge.json", lambda j: j["model"]["merges"].insert(3, "qq zz"))
    write("unigram.json", lambda j: j["model"].update(type="Unigram"))
    write("metaspace.json", lambda j: j.update(pre_tokenizer={"type": "Metaspace"}))
    write("far.json", lambda j: j["model"]["vocab"].update(x9=1 << 40))
    text = json.dumps(good)
    pathlib.Path("cut.json").write_text(text[:len(text) // 2])
    pathlib.Path("not.json").write_bytes(b"\x00\x01")
    os.makedirs("empty")
    os.makedirs("sentencepiece")
    pathlib.Path("sentencepiece/tokenizer.model").write_bytes(b"x")


T = ["tokenize", "--tokenizer", "bpe"]
LEARN = ["tokenizer", "train", "--data", "text", "--out", "new", "--vocab-size", "300"]

# name, arguments, standard input, exit code, what the message must contain
WRONG = [
    ("no_tokenizer", ["tokenize"], "", USAGE, ["--tokenizer"]),
    ("missing_tokenizer", [*T[:2], "nowhere"], "", INPUT, ["nowhere", "does not exist"]),
    ("empty_folder", [*T[:2], "empty"], "", INPUT, ["empty", "tokenizer.json"]),
    ("sentencepiece", [*T[:2], "sentencepiece"], "", INPUT, ["tokenizer.model of SentencePiece"]),
    ("cut_json", [*T[:2], "cut.json"], "", INPUT, ["cut.json", "JSON"]),
    ("zero_bytes", [*T[:2], "not.json"], "", INPUT, ["not.json", "zero byte"]),
    ("unknown_merge", [*T[:2], "merge.json"], "", INPUT, ["merge.json", "merge 3", "'qq'"]),
    ("unigram", [*T[:2], "unigram.json"], "", INPUT, ["Unigram", "BPE"]),
    ("metaspace", [*T[:2], "metaspace.json"], "", INPUT, ["Metaspace", "ByteLevel"]),
    ("id_too_large", [*T[:2], "far.json"], "", INPUT, ["'x9'", str(1 << 40)]),
    ("text_missing", [*T, "-f", "nowhere"], "", INPUT, ["nowhere"]),
    ("text_is_folder", [*T, "-f", "empty"], "", INPUT, ["empty"]),
    ("decode_word", [*T, "--decode"], "1 2 three", INPUT, ["number 3", "three"]),
    ("decode_range", [*T, "--decode"], "1 600", INPUT, ["number 2", "0..599", "600"]),
    ("decode_negative", [*T, "--decode"], "-1", INPUT, ["0..599", "-1"]),
    ("decode_huge", [*T, "--decode"], "9" * 100, INPUT, ["number 1", "999"]),
    ("line_no_json", [*T, "--jsonl"], '{"text":"a"}\n{"text":\n', INPUT, ["line 2", "JSON"]),
    ("line_no_object", [*T, "--jsonl"], '{"text":"a"}\n\n["a"]\n', INPUT, ["line 3", "object"]),
    ("line_no_text", [*T, "--jsonl"], '{"txt":"a"}\n', INPUT, ["line 1", '"text"']),
    ("line_text_number", [*T, "--jsonl"], '{"text":5}', INPUT, ["line 1", "string", "5"]),
    ("line_no_ids", [*T, "--jsonl", "--decode"], '{"ids":5}', INPUT, ["line 1", "list"]),
    ("line_id_range", [*T, "--jsonl", "--decode"], '{"ids":[1,600]}', INPUT, ["line 1", "600"]),
    ("line_id_text", [*T, "--jsonl", "--decode"], '{"ids":["1"]}', INPUT, ["line 1", "0..599"]),
    ("out_and_decode", [*T, "--decode", "--out", "new.bin"], "", USAGE, ["--decode", "--out"]),
    ("dtype_alone", [*T, "--dtype", "uint16"], "", USAGE, ["--dtype", "--out"]),
    ("dtype_unknown", [*T, "--dtype", "int8", "--out", "new.bin"], "", USAGE, ["int8", "uint32"]),
    ("json_and_jsonl", [*T, "--json", "--jsonl"], "", USAGE, ["--json"]),
    ("skip_alone", [*T, "--skip-special"], "", USAGE, ["--skip-special", "--decode"]),
    ("out_nowhere", [*T, "--out", "nowhere/new.bin"], "", INPUT, ["nowhere"]),
    ("out_is_folder", [*T, "--out", "empty"], "", USAGE, ["empty", "folder"]),
    ("train_size", [*LEARN[:-1], "256"], "", USAGE, ["--vocab-size", "257", "256"]),
    ("train_size_text", [*LEARN[:-1], "many"], "", USAGE, ["--vocab-size", "many"]),
    ("train_data", [*LEARN[:3], "nowhere", *LEARN[4:]], "", INPUT, ["nowhere"]),
    ("train_empty", [*LEARN[:3], "empty", *LEARN[4:]], "", INPUT, ["empty", "none in it"]),
    ("train_nothing", [*LEARN[:3], os.devnull, *LEARN[4:]], "", INPUT, ["--data", "none"]),
    ("train_over", [*LEARN[:5], "bpe", *LEARN[6:]], "", USAGE, ["--out", "bpe", "tokenizer.json"]),
    ("train_out_file", [*LEARN[:5], "text", *LEARN[6:]], "", USAGE, ["--out", "text"]),
    ("train_special_twice", [*LEARN, "--special", "<a>", "<a>"], "", USAGE, ["--special", "<a>"]),
    ("train_special_none", [*LEARN, "--special", ""], "", USAGE, ["--special"]),
    ("train_special_both", [*LEARN, "--special", "<a>", "--no-special"], "", USAGE, ["--special"]),
    ("train_frequency", [*LEARN, "--min-frequency", "0"], "", USAGE, ["--min-frequency", "0"]),
]


def wrong_inputs():
    wrong = []
    for name, arguments, stdin, code, parts in WRONG:
        result = subprocess.run([PROGRAM, *arguments], input=stdin.encode(), capture_output=True,
                                timeout=60)
        error = result.stderr.decode()
        if result.returncode != code:
            wrong.append(f"{name}: exit code {result.returncode}, expected {code}: {error}")
        if not error.startswith("error: ") or error.count("\n") != 1:
            wrong.append(f"{name}: not one line of error: {error}")
        wrong += [f"{name}: no {part!r} in {error}" for part in parts if part not in error]
        wrong += [f"{name}: left {p}" for p in ("new", "new.bin", "new.json") if os.path.exists(p)]
    print("\n".join(wrong) or f"{len(WRONG)} wrong inputs refused")
    return len(wrong)


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        results()
        conversations()
        broken_tokenizers()
        failed = wrong_inputs()
        os.chdir("/")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
