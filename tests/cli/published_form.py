# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as people have it on disk, with the GPT-NeoX tokenizer and in both forms, through
convert, verify, tokenize, generate, chat on a terminal, eval and fine-tuning.

Usage: published_form.py PROGRAM; needs MAMBA_TEST_DATA for tokenizer.json, exits 77 without it.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import models

PROGRAM = os.path.abspath(sys.argv[1])
DATA = os.environ.get("MAMBA_TEST_DATA", "")
TOKENIZER = os.path.join(DATA, "tokenizers", "gpt-neox-20b", "tokenizer.json")
TEXT = ("It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
        "age of foolishness. \u00c9t\u00e9 na\u00efve, 12,345 \U0001f600!\n") * 30


def run(*arguments, **options):
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, timeout=600,
                            stdin=options.pop("stdin", subprocess.DEVNULL), **options)
    assert result.returncode == 0, (arguments, result.returncode, result.stderr.decode()[-800:])
    return result.stdout.decode()


def run_json(*arguments, **options):
    return json.loads(run(*arguments, "--json", **options))


def content(path):
    with open(path, "rb") as file:
        return file.read()


def checkpoint(folder, layer):
    """Random weights with the real vocabulary: 50,277 tokens, padded as the published ones are."""
    models.byte_model(PROGRAM, folder, vocab_size=50277, pad_vocab_size_multiple=16,
                      ssm_cfg={"layer": layer, **({"headdim": 16} if layer == "Mamba2" else {})})
    shutil.copy(TOKENIZER, folder)
    run("convert", folder, f"{folder}-hf", "--to", "hf", "--verify")
    run("convert", f"{folder}-hf", f"{folder}-ssm", "--to", "ssm", "--verify")
    run("convert", f"{folder}-ssm", f"{folder}-back", "--to", "hf", "--verify")
    assert content(f"{folder}-hf/model.safetensors") == content(f"{folder}-back/model.safetensors")
    assert content(f"{folder}-hf/config.json") == content(f"{folder}-back/config.json")
    return f"{folder}-hf", f"{folder}-ssm"


def tokenizes(hf, ssm):
    ids = run_json("tokenize", "--tokenizer", hf, "-f", "text")["ids"]
    assert ids == run_json("tokenize", "--tokenizer", ssm, "-f", "text")["ids"]
    models.write("ids", " ".join(map(str, ids)))
    assert run("tokenize", "--tokenizer", hf, "--decode", "-f", "ids").rstrip("\n") == TEXT.rstrip("\n")
    assert len(ids) < len(TEXT) / 2  # words, not bytes
    return ids


def predicts(hf, ssm, ids):
    """The two forms have the same logits, texts and likelihoods."""
    rows = [ids[:16], ids[16:32]]
    packed = b"".join(i.to_bytes(8, "little") for row in rows for i in row)
    models.write("golden", models.safetensors(
        {"input_ids": ("I64", [2, 16], packed),
         "logits": ("F32", [2, 16, 50288], bytes(4 * 2 * 16 * 50288))}))
    subprocess.run([PROGRAM, "verify", hf, "golden", "--dump", "logits"], capture_output=True,
                   check=False)  # the logits are not zero: 1
    logits = models.read_safetensors("logits")["logits"]
    models.write("golden", models.safetensors({"input_ids": ("I64", [2, 16], packed), "logits": logits}))
    assert run_json("verify", ssm, "golden")["passed"]
    answers = [run_json("generate", "-m", m, "-p", "Once upon a time", "-n", "24", "--seed", "3")
               for m in (hf, ssm)]
    assert answers[0]["ids"] == answers[1]["ids"] and len(answers[0]["ids"]) == 24
    assert answers[0]["text"] == run("tokenize", "--tokenizer", hf, "--decode", "-f", models.write(
        "ids", " ".join(map(str, answers[0]["ids"])))).removesuffix("\n")
    ppl = [run_json("eval", "ppl", "-m", m, "-f", "text")["nll_sum"] for m in (hf, ssm)]
    assert ppl[0] == ppl[1]
    items = [{"id": i, "ctx": "It was the", "choices": ["best of times", "worst"], "gold": i % 2}
             for i in range(4)]
    models.write("tasks/piqa.jsonl", "".join(json.dumps(i) + "\n" for i in items))
    result = run_json("eval", "tasks", "-m", ssm, "--tasks", "piqa", "--data", "tasks")
    assert "0.5" in json.dumps(result)  # the golds take turns, the choices do not


def chats(model):
    from test_chat import Terminal
    chat = ("chat", "-m", model, "--seed", "5", "-n", "8", "--chat-template", "plain", "--session",
            "talk")
    for turns in (1, 2):
        terminal = Terminal(*chat)
        terminal.until("> ")
        os.write(terminal.master, b"Hello\r")
        terminal.until("> ")
        os.write(terminal.master, b"/exit\r")
        assert terminal.process.wait(60) == 0
        assert os.path.getsize("talk") > 0, turns


def fine_tunes(ssm):
    run("train", "--init-from", ssm, "--tokenizer", ssm, "--data", "text", "--valid", "text",
        "--output-dir", "tuned", "--max-steps", "20", "--batch-size", "2", "--seq-len", "32",
        "--learning-rate", "1e-2", "--logging-steps", "1", "--lr-scheduler-type", "constant")
    with open("tuned/metrics.jsonl", encoding="utf-8") as file:
        losses = [json.loads(line)["loss"] for line in file if '"grad_norm"' in line]
    assert len(losses) == 20 and losses[-1] < 0.8 * losses[0], losses
    answer = run_json("generate", "-m", "tuned", "-p", "It was the", "-n", "8", "--temp", "0")
    assert len(answer["ids"]) == 8
    run("convert", "tuned", "tuned-ssm", "--to", "ssm", "--verify")


def main():
    if not os.path.exists(TOKENIZER):
        print(f"skipped: no {TOKENIZER or 'MAMBA_TEST_DATA'}")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        models.write("text", TEXT)
        for layer in ("Mamba1", "Mamba2"):
            hf, ssm = checkpoint(layer.lower(), layer)
            predicts(hf, ssm, tokenizes(hf, ssm))
        chats(hf)
        fine_tunes(ssm)
        os.chdir("/")
    print("convert, verify, tokenize, generate, chat, eval and fine-tuning of both forms: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
