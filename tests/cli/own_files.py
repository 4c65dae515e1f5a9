# SPDX-License-Identifier: Apache-2.0
"""What is there already: nothing that is not this program's own is written over, what is its own is,
and what a command leaves behind where it is cut short. Usage: own_files.py PROGRAM"""
import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time

import models
import signals

PROGRAM = os.path.abspath(sys.argv[1])
TRAIN = ["train", "--model-config", "good/config.json", "--seq-len", "16", "--batch-size", "1",
         "--max-steps", "1", "--data"]


def run(*arguments, code=0, text=""):
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, input=text.encode(),
                            timeout=300)
    assert result.returncode == code, (arguments, result.returncode, result.stderr.decode())
    return result.stdout.decode(), result.stderr.decode()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def check_train_folders():
    """Empty folders, and what a run without a checkpoint left, are taken as ever."""
    os.makedirs("empty")
    run(*TRAIN, "text", "--output-dir", "empty")
    run(*TRAIN, "text", "--output-dir", "empty", code=2)
    models.write("begun/metrics.jsonl", "")
    models.write("begun/tokenizer_config.json", '{"tokenizer_class": "Other"}')
    models.write("begun/chat_template.jinja", "{{ messages }}")  # not what this run writes
    run(*TRAIN, "text", "--output-dir", "begun", code=2)
    os.remove("begun/chat_template.jinja")
    run(*TRAIN, "text", "--output-dir", "begun")
    assert "ByteTokenizer" in read("begun/tokenizer_config.json").decode()
    run("tokenizer", "train", "--data", "text", "--vocab-size", "300", "--out", "words")
    run(*TRAIN, "text", "--tokenizer", "words", "--vocab-size", "auto", "--output-dir", "words")
    models.write("notes/todo.txt", "mine")  # not in the way
    run(*TRAIN, "text", "--output-dir", "notes")
    assert read("notes/todo.txt") == b"mine"


def check_data_folders():
    """In folders what is no text is left out with a note, for both commands that learn."""
    models.write("books/a.txt", "It was the best of times. " * 40)
    models.write("books/b.txt.gz", gzip.compress(b"It was the worst of times. " * 40))
    models.write("books/c.jsonl", '{"text": "%s"}\n' % ("the age of wisdom " * 9))
    models.write("books/d.png", b"\x89PNG\r\n\x1a\n" + bytes(600))
    _, told = run(*TRAIN, "books", "--output-dir", "of-books")
    assert "2 of 4 files are no text and left out" in told and "packed by gzip (1)" in told, told
    _, told = run("tokenizer", "train", "--data", "books", "--vocab-size", "300", "--out", "v")
    assert "2 of 4 files are no text and left out" in told, told
    # Lines of JSON are their texts.
    models.write("lines.jsonl", "\ufeff" + "".join(json.dumps(line) + "\n" for line in (
        {"text": "the age of wisdom"}, {"prompt": "the age", "response": " of foolishness"},
        {"messages": [{"role": "user", "content": "the age of wisdom"},
                      {"role": "assistant", "content": "the age of foolishness"}]})))
    run("tokenizer", "train", "--data", "lines.jsonl", "--vocab-size", "280", "--out", "of-lines")
    vocabulary = json.loads(read("of-lines/tokenizer.json"))["model"]["vocab"]
    assert any("age" in token for token in vocabulary) and not any("{" in t and len(t) > 1
                                                                   for t in vocabulary)
    # Any bytes are data for a model of bytes, once they are tokens.
    run("tokenize", "--tokenizer", "bytes", "-f", "books/d.png", "--out", "d.bin")
    run(*TRAIN, "d.bin", "--output-dir", "of-bytes")


def check_token_files():
    run("tokenize", "--tokenizer", "bytes", "-f", "text", "--out", "text.bin")
    before = read("text.bin")
    models.write("other", "another text")
    run("tokenize", "--tokenizer", "bytes", "-f", "other", "--out", "text.bin")
    assert read("text.bin") != before and json.loads(read("text.json"))["count"] == 12
    os.remove("text.json")
    run("tokenize", "--tokenizer", "bytes", "-f", "other", "--out", "text.bin", code=2)


def interrupted_when(path, *arguments):
    """Ctrl-C once a file is there; the exit code."""
    with subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.DEVNULL, stdin=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        for _ in range(1200):
            if os.path.exists(path):
                break
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=120)[1].decode()
    return process.returncode, told


def check_interrupted():
    models.write("long", "It was the best of times, it was the worst of times. " * 40000)
    code, told = interrupted_when("cut.md", "quantize", "good", "cut.gguf", "q8_0", "--eval-text",
                                  "long")
    assert code == 130 and b"quantized" in read("cut.md") and os.path.exists("cut.gguf"), (code, told)
    # Results are replaced whole, by a run that is not cut short.
    item = {"ctx": "One " * 60, "choices": [" two " * 30, " three " * 30], "gold": 0}
    tasks = ["eval", "tasks", "-m", "good", "--data", "evals", "--tasks", "piqa", "-o", "items.jsonl"]
    models.write("item", json.dumps(item) + "\n")
    models.write("evals/piqa.jsonl", json.dumps(item) + "\n")
    for _ in range(2):
        run(*tasks)
        assert len(read("items.jsonl").splitlines()) == 1
    models.write("evals/piqa.jsonl", (json.dumps(item) + "\n") * 20000)
    with subprocess.Popen([PROGRAM, *tasks], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE) as process:
        signals.send_when_ready(process, signal.SIGINT)
        told = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130 and "stays as it was" in told, (process.returncode, told)
    assert len(read("items.jsonl").splitlines()) == 1


def check_sigterm():
    """SIGTERM ends long work with one message and 143; nothing half written is left."""
    run("quantize", "good", "eval.gguf", "q8_0")
    with open("item") as file:
        models.write("evals/piqa.jsonl", file.read() * 20000)
    for arguments in (("imatrix", "good", "-f", "long", "-o", "new.gguf"),
                      ("eval", "ppl", "-m", "good", "-f", "long"),
                      ("eval", "kl", "good", "eval.gguf", "-f", "long"),
                      ("eval", "tasks", "-m", "good", "--data", "evals", "--tasks", "piqa"),
                      ("bench", "-m", "good", "-p", "65536", "-n", "0", "-r", "10000"),
                      # While weights are made up and quantised, which takes many seconds.
                      ("bench", "-m", "mamba-370m", "--dtype", "q4_k")):
        before = sorted(os.listdir())
        with subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            signals.send_when_ready(process, signal.SIGTERM)
            sent = time.monotonic()
            told = b"".join(process.communicate(timeout=120)).decode()
        took = time.monotonic() - sent
        # A second where the machine does nothing else.
        assert process.returncode == 143 and took < 5, (arguments, process.returncode, took, told)
        said = [line for line in told.splitlines()
                if any(word in line for word in ("interrupted", "stopped after", "partial"))]
        assert said and told.count("error: ") <= 1, (arguments, told)
        assert sorted(os.listdir()) == before, (arguments, before, os.listdir())


def check_states():
    run("generate", "-m", "good", "-p", "a", "-n", "1", "--state-out", "s")
    run("generate", "-m", "good", "-p", "b", "-n", "1", "--state-out", "s")
    run("chat", "-m", "good", "-n", "2", text="hello\n/save c\n/save c\n")
    run("generate", "-m", "good", "-p", "b", "-n", "1", "--state-out", "c", code=2)
    run("chat", "-m", "good", "-n", "2", text="hello\n/save s\n", code=2)


def check_results():
    """Files of logits and of importance replace their like alone."""
    tensors = {"input_ids": ("I64", [1, 2], struct.pack("<2q", 1, 2)),
               "logits": ("F32", [1, 2, 256], bytes(4 * 2 * 256))}
    models.write("golden.safetensors", models.safetensors(tensors))
    verify = ["verify", "good", "golden.safetensors", "--tolerance", "1000", "--dump"]
    for name in ("good/model.safetensors", "golden.safetensors", "text"):
        before = read(name)
        run(*verify, name, code=2)
        assert read(name) == before
    run(*verify, "logits")
    run(*verify, "logits")
    imatrix = ["imatrix", "good", "-f", "text", "--chunk", "8", "-o"]
    run(*imatrix, "mine.gguf")
    run(*imatrix, "mine.gguf")
    run("quantize", "good", "model.gguf", "q8_0")
    for name in ("model.gguf", "text.gguf"):
        if name == "text.gguf":
            models.write(name, "text")
        before = read(name)
        run(*imatrix, name, code=2)
        assert read(name) == before


def check_two_chats():
    """The one that comes second is told, and nothing is lost."""
    chat = ["chat", "-m", "good", "-n", "2", "--session", "both", "--json"]
    with subprocess.Popen([PROGRAM, *chat], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as first:
        def say(text):
            first.stdin.write(text.encode() + b"\n")
            first.stdin.flush()
        say("one")
        answer = json.loads(first.stdout.readline())
        assert answer["turn"] == 1 and answer["finish_reason"], answer
        run(*chat, text="two\r\n")  # has read the first turn
        both = read("both")
        say("/save mine")
        say("three")
        assert json.loads(first.stdout.readline())["turn"] == 2
        first.stdin.close()
        assert first.wait(timeout=60) == 0
        assert b"where the conversation goes on" in first.stderr.read()
    assert read("both") == both
    # Said twice by the template, \r would be a part of it.
    assert b"two\\\\r" not in both and b"two" in both
    for then in (b"six\n", b"/save both\n"):
        with subprocess.Popen([PROGRAM, *chat], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as first:
            first.stdin.write(b"four\n")
            first.stdin.flush()
            first.stdout.readline()
            run(*chat, text="five\n")
            both = read("both")
            told = first.communicate(then, timeout=60)[1].decode()
            assert first.returncode == 3 and "/save FILE" in told, told
        assert read("both") == both


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        models.byte_model(PROGRAM, "good")
        models.write("text", "It was the best of times, it was the worst of times. " * 40)
        for check in (check_train_folders, check_data_folders, check_token_files, check_interrupted,
                      check_sigterm, check_states, check_results, check_two_chats):
            check()
        os.chdir("/")
    print("all passed")


if __name__ == "__main__":
    main()
