#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of CONTRIBUTING.md that a machine can check. Standard library only; run by ctest.

    tools/lint.py [--root DIR]              text rules over the tree
    tools/lint.py --compile [--root DIR]    every header compiles alone (g++ -fsyntax-only)

Prints one line per finding, "path:line: [rule] message", and exits 1 if there is one.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

Finding = namedtuple("Finding", "path line rule message")

MAX_LINES = 600
MAX_COLUMNS = 100
SKIPPED_FOLDERS = {".git", ".cache", "__pycache__", "build", "models"}
CXX = {".h", ".cpp", ".def", ".inc", ".cu", ".cuh"}
HAS_SPDX = CXX | {".py", ".sh"}
TEXT = HAS_SPDX | {".cmake", ".md", ".in", ".json"}

# A folder of src/ and its height; an include points down, or stays in its own folder.
HEIGHT = {"base": 0, "quant": 1, "device": 1, "formats": 2, "kernels": 2, "tokenizer": 3, "model": 4, "train": 5,
          "generate": 5, "eval": 5, "bench": 6, "cli": 7}
# Device owns a table of kernels, so that file stands above kernels/ while the stream, memory and CPU
# features of its folder stand below.
HEIGHT_OF_FILE = {f"src/device/{name}": 3 for name in
                  ("device.h", "device.cpp", "choice_file.h", "choice_file.cpp", "cuda.h", "cuda.cpp",
                   "cuda_absent.cpp")}

LIBRARY = ("src/", "include/")
PRINTS_AND_EXITS = re.compile(
    r"(?<!\w)(?:v?f?printf|f?puts|putchar|fmt::print|std::print|getenv|secure_getenv|_?exit|_Exit|"
    r"quick_exit|abort|terminate)\s*\(|std::(?:cout|cerr|clog)\b")
UNORDERED_SUM = re.compile(
    r"atomic\s*<\s*(?:float|double)\s*>|atomicAdd|#pragma omp atomic|omp\b.*\breduction\s*\(")
OPEN_NOTE = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))")
MACHINE_PATH = re.compile(r"(?<![\w/.:}\])-])/(?:home|root|Users|work|tmp|mnt)/\w|\.\./shared\b")
MACHINE_PATH_ALLOWED = {".ci/run"}
CODE_STATEMENT = re.compile(
    r"(?:return\b[^ ]*( [^ ]+){0,3};|(?:break|continue);|#\s*(?:include|define|if|endif)\b.*|"
    r"using [\w:]+( = .+)?;|[\w:.]+(?:->|\.|::)?\w*\(.*\);|"
    r"(?:const |auto |int |float |double |bool |std::|[\w:]+[*&] )[\w:<>*&,\[\]. ]*(?:=.*|\{.*\});|"
    r"[\w.>\[\]-]+ [-+*/|&]?= [^ ]+( [-+*/] [^ ]+)*;|"
    r"(?:if|for|while|switch)\s*\(.*\)\s*(?:\{|.*;)|\}( else \{)?|\} else if .*)$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def read_tree(root):
    """Relative path -> text of every checked file."""
    tree = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders
                            if f not in SKIPPED_FOLDERS and not f.startswith("build-"))
        for name in sorted(names):
            path = Path(folder, name)
            known = path.suffix in TEXT or name == "CMakeLists.txt" or path.parent.name == ".ci"
            if known:
                relative = path.relative_to(root).as_posix()
                tree[relative] = path.read_text(encoding="utf-8", errors="surrogateescape")
    return tree


def suffix(path):
    return Path(path).suffix


def without_comments_and_strings(text):
    """The text with comments, string and character literals blanked; lines keep their numbers."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|R"\w*\(.*?\)\w*"|"(?:\\.|[^"\\\n])*"'
                         r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'", re.S)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def includes_of(text):
    """(line, quote, name) of every include."""
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1), match.group(2)


def resolve(tree, includer, name):
    """The file of the tree that #include "name" means, or None."""
    here = os.path.normpath(os.path.join(os.path.dirname(includer), name)).replace(os.sep, "/")
    for candidate in ("src/" + name, "include/" + name, "tests/" + name, here,
                      "include/" + name + ".in"):
        if candidate in tree:
            return candidate
    return None


def height(path):
    """The layer of a file of src/, or None where any include is fine or none is checked."""
    if path in HEIGHT_OF_FILE:
        return HEIGHT_OF_FILE[path]
    parts = path.split("/")
    return HEIGHT.get(parts[1]) if parts[0] == "src" and len(parts) > 2 else None


def check_layers(tree):
    """Includes resolve, point down or stay in their folder, and the public headers stay public."""
    for path, text in tree.items():
        if suffix(path) not in CXX:
            continue
        for line, quote, name in includes_of(text):
            if quote != '"':
                continue
            target = resolve(tree, path, name)
            if target is None:
                yield Finding(path, line, "include", f'"{name}" is no file of this project')
                continue
            if path.startswith("include/") and not target.startswith("include/"):
                yield Finding(path, line, "layer", f"a public header includes private {target}")
            if path.startswith(LIBRARY) and target.startswith("tests/"):
                yield Finding(path, line, "layer", f"the library includes {target} of the tests")
            mine, other = height(path), height(target)
            if mine is None or other is None:
                continue
            same_folder = path.split("/")[1] == target.split("/")[1]
            if other > mine or (other == mine and not same_folder):
                yield Finding(path, line, "layer", f"{path} may not include {target}: includes "
                              "point down the layers, see ARCHITECTURE.md")


def check_cycles(tree):
    """No header includes itself by way of others."""
    graph = {path: [resolve(tree, path, name) for _, quote, name in includes_of(text)
                    if quote == '"']
             for path, text in tree.items() if suffix(path) in CXX}
    state = {}

    def visit(path, trail):
        state[path] = "open"
        for target in graph.get(path, ()):
            if target is None:
                continue
            if state.get(target) == "open":
                loop = trail[trail.index(target):] if target in trail else [target]
                yield Finding(path, 1, "cycle", " -> ".join(loop + [target]))
            elif target not in state:
                yield from visit(target, trail + [target])
        state[path] = "done"

    for path in graph:
        if path not in state:
            yield from visit(path, [path])


def check_form(tree):
    """SPDX line and description on top, #pragma once, length, width, ASCII, no tabs."""
    for path, text in tree.items():
        lines = text.split("\n")
        kind = suffix(path)
        if len(lines) - 1 > MAX_LINES and kind != ".json":
            yield Finding(path, MAX_LINES + 1, "length",
                          f"{len(lines) - 1} lines, at most {MAX_LINES}: split it by subject")
        if kind in HAS_SPDX:
            top = 1 if lines[0].startswith("#!") else 0
            second = lines[top + 1] if len(lines) > top + 1 else ""
            if "SPDX-License-Identifier: Apache-2.0" not in lines[top]:
                yield Finding(path, top + 1, "spdx", "the first line is no Apache-2.0 SPDX line")
            elif not second.startswith(("//", "#", '"""')) or second.startswith("#pragma"):
                yield Finding(path, top + 2, "spdx", "no comment says what this file is")
        if kind == ".h" and not re.search(r"^#pragma once$", text, re.M):
            yield Finding(path, 1, "pragma", "a header without #pragma once")
        for number, line in enumerate(lines, 1):
            if not line.isascii():
                yield Finding(path, number, "ascii", f"not plain ASCII: {ascii(line.strip())[:60]}")
            if "\t" in line:
                yield Finding(path, number, "tab", "a tab")
            if line != line.rstrip():
                yield Finding(path, number, "space", "space at the end of the line")
            if kind in CXX and len(line) > MAX_COLUMNS:
                yield Finding(path, number, "width", f"{len(line)} columns, at most {MAX_COLUMNS}")


def check_library_is_silent(tree):
    """The library never prints, exits or reads the environment; src/cli alone does."""
    for path, text in tree.items():
        if not path.startswith(LIBRARY) or path.startswith("src/cli/") or suffix(path) not in CXX:
            continue
        for number, line in enumerate(without_comments_and_strings(text).split("\n"), 1):
            match = PRINTS_AND_EXITS.search(line)
            if match:
                yield Finding(path, number, "silent", f"'{match.group().strip(' (')}' outside src/cli")


def check_kernels(tree):
    """A stem of mamba_add_kernels has contract, reference, CPU and CUDA code, test and table entry."""
    call = re.search(r"mamba_add_kernels\(\s*\w+\s+([^)]*)\)", tree.get("CMakeLists.txt", ""))
    stems = call.group(1).split() if call else []
    table = re.findall(r"^MAMBA_KERNEL\((\w+)", tree.get("src/kernels/kernels.def", ""), re.M)
    for stem in stems:
        for needed in (f"src/kernels/{stem}.h", f"src/kernels/{stem}_ref.cpp",
                       f"src/kernels/{stem}_cpu.cpp", f"src/kernels/{stem}_cuda.cu",
                       f"tests/kernels/test_{stem}.cpp"):
            if needed not in tree:
                yield Finding("CMakeLists.txt", 1, "kernel", f"kernel '{stem}' lacks {needed}")
        if not any(entry == stem or entry.startswith(stem + "_") for entry in table):
            yield Finding("src/kernels/kernels.def", 1, "kernel", f"no entry of kernel '{stem}'")
    for entry in table:
        if not any(entry == stem or entry.startswith(stem + "_") for stem in stems):
            yield Finding("src/kernels/kernels.def", 1, "kernel",
                          f"'{entry}' belongs to no stem of mamba_add_kernels")
    for path in tree:
        match = re.fullmatch(r"src/kernels/(\w+)_(?:ref\.cpp|cpu\.cpp|cuda\.cu)", path)
        # A CUDA kernel may have parts: <stem>_<part>_cuda.cu.
        if match and not any(match.group(1) == stem or path.endswith(".cu") and
                             match.group(1).startswith(stem + "_") for stem in stems):
            yield Finding(path, 1, "kernel", "not in mamba_add_kernels of CMakeLists.txt")


def check_isa_files(tree):
    """Files compiled per ISA and the headers of kernels/ include C headers only: inline std templates
    would be weak symbols, and the linker might keep the copy that an old CPU cannot run."""
    for path, text in tree.items():
        per_isa = path.startswith("src/kernels/") and not path.endswith(
            ("_ref.cpp", "_onednn.cpp", "/table.cpp", "/choices.cpp", ".cu", ".cuh",
             "/matrix_library.cpp"))
        if not per_isa:
            continue
        for line, quote, name in includes_of(text):
            if quote == "<" and not name.endswith(".h"):
                yield Finding(path, line, "isa", f"<{name}> in a file compiled per ISA: C headers only")


def check_sums_are_ordered(tree):
    """No atomics on floats and no OpenMP reductions: their order depends on the threads."""
    for path, text in tree.items():
        if not path.startswith("src/") or suffix(path) not in CXX:
            continue
        for number, line in enumerate(without_comments_and_strings(text).split("\n"), 1):
            if UNORDERED_SUM.search(line):
                yield Finding(path, number, "order", "a sum whose order depends on the threads")


def check_comments(tree):
    """No commented-out code, no open note without its issue number."""
    for path, text in tree.items():
        if path == "tools/lint.py" or suffix(path) not in TEXT:
            continue
        for number, line in enumerate(text.split("\n"), 1):
            if OPEN_NOTE.search(line) and suffix(path) != ".md":
                yield Finding(path, number, "note", "an open note without an issue: TODO(#12)")
            comment = re.match(r"\s*//+\s*(.*?)\s*$", line) if suffix(path) in CXX else None
            if comment and CODE_STATEMENT.match(comment.group(1)):
                yield Finding(path, number, "dead", "code in a comment: delete it, git has it")


def check_paths(tree):
    """Nothing names a folder of somebody's machine."""
    for path, text in tree.items():
        if path in MACHINE_PATH_ALLOWED:
            continue
        for number, line in enumerate(text.split("\n"), 1):
            match = MACHINE_PATH.search(line)
            if match:
                yield Finding(path, number, "path", f"a path of one machine: '{match.group()}...'")


CHECKS = (check_layers, check_cycles, check_form, check_library_is_silent, check_kernels,
          check_isa_files, check_sums_are_ordered, check_comments, check_paths)


def lint(root):
    """All findings of the text rules, in order of path and line."""
    tree = read_tree(root)
    return sorted(finding for check in CHECKS for finding in check(tree))


def compile_headers(root, compiler, flags):
    """Every header on its own through the compiler's front end."""
    headers = [p for p in read_tree(root)
               if p.endswith(".h") and p.startswith(("src/", "include/", "tests/support/"))]
    for path in headers:
        name = path.split("/", 1)[1]
        command = [*compiler.split(), "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror",
                   "-fopenmp", "-Wno-unknown-pragmas", *flags, "-Isrc", "-Iinclude", "-Itests",
                   "-x", "c++", "-"]
        done = subprocess.run(command, input=f'#include "{name}"\n', text=True, cwd=root,
                              capture_output=True, check=False)
        if done.returncode != 0:
            first = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr.strip())
            yield Finding(path, 1, "alone", f"does not compile alone: {first}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--compile", action="store_true", help="compile every header alone")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("flags", nargs="*", help="after --: more compiler flags, e.g. -Ibuild/include")
    options = parser.parse_args()
    if options.compile:
        findings = list(compile_headers(options.root, options.compiler, options.flags))
    else:
        findings = lint(options.root)
    for finding in findings:
        print(f"{finding.path}:{finding.line}: [{finding.rule}] {finding.message}")
    print(f"lint: {len(findings)} finding(s)")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
