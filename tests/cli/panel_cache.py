# SPDX-License-Identifier: Apache-2.0
"""Files of prepared weights beside models: made, used, and never in the way.

Usage: panel_cache.py PROGRAM
"""
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time

import models

PROGRAM = os.path.abspath(sys.argv[1])
KEPT, USED, UNUSED, NOT_KEPT = "panels kept in", "panels from", "is not used", "panels are not kept"
TEXT = ["-p", "It was", "-n", "16", "--temp", "0", "--ignore-eos", "-v"]


def start(*arguments, after="0", cache_home=None, **options):
    """A run of generate that keeps panels at once; `options` of Popen."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAMBA_CPP_")}
    environment["XDG_CACHE_HOME"] = cache_home or os.path.abspath("home")
    return subprocess.Popen([PROGRAM, "generate", *TEXT, "--cache-after", after, "-m", *arguments],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment, **options)


def generate(*arguments, **options):
    """Text and notes."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (arguments, process.returncode, err.decode())
    notes = [line for line in err.decode().splitlines() if line.startswith("note: ")]
    return out, "\n".join(notes)


def expect(wanted, notes, *unwanted):
    assert wanted in notes, (wanted, notes)
    for word in unwanted:
        assert word not in notes, (word, notes)


def files_of(folder):
    return sorted(name for name in os.listdir(folder) if "panels" in name)


def check_made_and_used(want):
    """One file for a type, and the same text with and without."""
    for model, flags, name in (("one", ["--dtype", "q4_0"], ".model.safetensors.q4_0.v1.panels"),
                               ("two", ["--dtype", "q5_k"], ".model.safetensors.q5_k.v1.panels"),
                               ("blocks/m.gguf", [], ".m.gguf.q4_k.v1.panels")):
        folder = model if os.path.isdir(model) else os.path.dirname(model)
        text, notes = generate(model, *flags, "--no-cache")
        assert notes.strip() == "" and files_of(folder) == [], (notes, files_of(folder))
        text_2, notes = generate(model, *flags, after="1000")
        assert notes.strip() == "" and files_of(folder) == [], notes
        first, notes = generate(model, *flags)
        expect(KEPT, notes, USED)
        assert files_of(folder) == [name], files_of(folder)
        again, notes = generate(model, *flags, after="1000")
        expect(USED, notes, KEPT)
        assert text == text_2 == first == again, model
        # A state of one way goes on in the other: the weights are the same by a bit.
        generate(model, *flags, "--state-out", "state")
        generate(model, *flags, "--no-cache", "--state-in", "state")
        told = subprocess.run([PROGRAM, "inspect", model], capture_output=True, check=True).stdout.decode()
        assert name in told, told
        want[model] = text
    _, notes = generate("one", "--dtype", "f32")
    assert notes.strip() == "", notes
    _, notes = generate("one", "--dtype", "q8_0", "--isa", "ref")
    assert notes.strip() == "" and len(files_of("one")) == 1, notes


def check_no_longer_fits(want):
    """Other weights, damage and what is no such file are seen, ignored and made anew."""
    path = "one/.model.safetensors.q4_0.v1.panels"
    flags = ["one", "--dtype", "q4_0"]
    with open(path, "rb") as file:
        good = file.read()

    def again(why, content):
        if content is not None:
            os.remove(path)
            models.write(path, content)
        text, notes = generate(*flags)
        expect(UNUSED, notes, USED)
        expect(KEPT, notes)
        assert text == want["one"], why
        with open(path, "rb") as file:
            return file.read()

    for why, content in (
            ("empty", b""), ("cut", good[:-1]), ("cut in the header", good[:100]), ("longer", good + b"x"),
            ("header", good[:30] + b"!" + good[31:]), ("foreign", b"these are no panels"),
            ("a bit", good[:-100] + bytes([good[-100] ^ 1]) + good[-99:]),
            ("a bit", good[:len(good) // 2] + bytes([good[len(good) // 2] ^ 128]) + good[len(good) // 2 + 1:]),
            ("a hash", good.replace(b'"hash of ', b'"hasH of ', 1)),
            ("another layout", good.replace(b"mamba-cpp-panels", b"mamba-cpp-panelz"))):
        assert again(why, content) == good, why
    # What a process has left that was killed while it wrote goes away, but not what may be running.
    for name, age in (("1-0", 100000), ("2-0", 0)):
        left = models.write(f"one/..model.safetensors.q4_0.v1.panels.mamba-tmp-{name}", "cut")
        os.utime(left, (time.time() - age,) * 2)
    again("cut", good[:-1])
    assert files_of("one") == sorted([os.path.basename(left), os.path.basename(path)]), files_of("one")
    os.remove(left)
    with open("one/model.safetensors", "rb") as file:
        weights = bytearray(file.read())
    os.utime("one/model.safetensors", (1, 1))
    assert again("touched", None) != good
    # Other weights of the same size.
    models.byte_model(PROGRAM, "other", seed=2, d_model=256)
    shutil.copy("other/model.safetensors", "one/model.safetensors")
    text, notes = generate(*flags)
    expect(UNUSED, notes)
    assert text == generate(*flags, "--no-cache")[0] == generate(*flags)[0] != want["one"]
    models.write("one/model.safetensors", bytes(weights))
    assert generate(*flags)[0] == want["one"]


def check_places(want):
    """Where the folder takes no file it stands in the user's cache folder, else nowhere."""
    os.remove("one/.model.safetensors.q4_0.v1.panels")
    flags = ["one", "--dtype", "q4_0"]
    os.mkdir("one/.model.safetensors.q4_0.v1.panels")  # no file can be written there
    text, notes = generate(*flags)
    expect(os.path.abspath("home/mamba-cpp/model.safetensors."), notes)
    assert len(files_of("home/mamba-cpp")) == 1 and text == want["one"]
    text, notes = generate(*flags, after="1000")
    expect(USED, notes)
    models.write("a-file", "")
    text, notes = generate(*flags, cache_home=os.path.abspath("a-file"))
    expect(NOT_KEPT, notes, "panels kept")
    assert text == want["one"]
    os.rmdir("one/.model.safetensors.q4_0.v1.panels")
    if os.geteuid() == 0:  # who may write anywhere
        def without_root():
            os.setuid(65534)
        for folder in (".", "one"):
            os.chmod(folder, 0o755)
        text, notes = generate(*flags, cache_home=os.path.abspath("nowhere"), preexec_fn=without_root)
        expect("ermission", notes)
        assert text == want["one"] and files_of("one") == []
    shutil.rmtree("home")


def check_full_disk(want):
    os.makedirs("disk", exist_ok=True)
    size = os.path.getsize("blocks/m.gguf") + 60000
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", "disk"], capture_output=True).returncode == 0
    if not mounted:
        print("full disk: left out, mounting is not allowed")
        return
    try:
        shutil.copy("blocks/m.gguf", "disk/m.gguf")
        text, notes = generate("disk/m.gguf", cache_home="/dev/null/x")
        expect("No space left", notes, "panels kept")
        assert text == want["blocks/m.gguf"] and os.listdir("disk") == ["m.gguf"], os.listdir("disk")
        _, notes = generate("disk/m.gguf")
        expect("home/mamba-cpp", notes)
    finally:
        subprocess.run(["umount", "disk"], check=True)


def check_together(want):
    """Processes that make the same file at once, over and over."""
    for path in glob.glob("blocks/.*.panels"):
        os.remove(path)
    for _ in range(3):
        running = [start("blocks/m.gguf") for _ in range(4)]
        for process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0 and out == want["blocks/m.gguf"], err.decode()
        assert files_of("blocks") == [".m.gguf.q4_k.v1.panels"], files_of("blocks")
        os.remove("blocks/.m.gguf.q4_k.v1.panels")


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.chmod(folder, 0o755)
        models.byte_model(PROGRAM, "one", d_model=256)
        models.byte_model(PROGRAM, "two", d_model=256, tie_embeddings=False, ssm_cfg={
            "layer": "Mamba2", "d_state": 16, "headdim": 32, "ngroups": 2})
        os.mkdir("blocks")
        subprocess.run([PROGRAM, "quantize", "one", "blocks/m.gguf", "q4_k"], check=True, capture_output=True)
        want = {}
        check_made_and_used(want)
        check_no_longer_fits(want)
        check_places(want)
        check_full_disk(want)
        check_together(want)
        os.chdir("/")
    print("all passed")


if __name__ == "__main__":
    main()
