#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every rule of tools/lint.py finds its bad snippet, at its line, and nothing in a good tree."""

import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import lint  # noqa: E402

TOP = "// SPDX-License-Identifier: Apache-2.0\n// What this file is.\n"
HEADER = TOP + "#pragma once\n"
GOOD = {
    "CMakeLists.txt": "mamba_add_kernels(mamba\n  scan)\n",
    "include/mamba/error.h": HEADER,
    "src/base/check.h": HEADER + '#include "mamba/error.h"\n',
    "src/device/stream.h": HEADER + '#include "base/check.h"\n',
    "src/device/device.h": HEADER + '#include "kernels/scan.h"\n',
    "src/kernels/kernels.def": TOP + "MAMBA_KERNEL(scan_forward, ScanArgs)\n",
    "src/kernels/scan.h": HEADER + '#include "device/stream.h"\n// h = a * h + b, in f32;\n',
    "src/kernels/scan_ref.cpp": TOP + "#include <cmath>\n",
    "src/kernels/scan_cpu.cpp": TOP + "#include <stdint.h>\n",
    "src/kernels/scan_cuda.cu": TOP + "#include <cstdint>\n",
    "src/cli/main.cpp": TOP + "void f() { printf(\"x\"); }\n",
    "tests/kernels/test_scan.cpp": TOP + '#include "kernels/scan.h"\n',
}
# (rule, path, text, line): added to the good tree, this is the one finding. None removes the file.
BAD = [
    ("layer", "src/base/a.h", HEADER + '#include "device/stream.h"\n', 4),
    ("layer", "src/kernels/a.h", HEADER + '#include "formats/b.h"\n', 4),
    ("layer", "src/formats/a.h", HEADER + '#include "kernels/scan.h"\n', 4),
    ("layer", "src/kernels/a.h", HEADER + '#include "device/device.h"\n', 4),
    ("layer", "src/train/a.h", HEADER + '#include "cli/b.h"\n', 4),
    ("layer", "include/mamba/a.h", HEADER + '#include "base/check.h"\n', 4),
    ("layer", "src/base/a.h", HEADER + '#include "support/t.h"\n', 4),
    ("include", "src/base/a.h", HEADER + '#include "base/none.h"\n', 4),
    ("cycle", "src/base/a.h", HEADER + '#include "base/a.h"\n', 1),
    ("length", "src/base/a.cpp", TOP + "\n" * 599, 601),
    ("spdx", "src/base/a.cpp", "// What this file is.\n", 1),
    ("spdx", "src/base/a.cpp", "// SPDX-License-Identifier: Apache-2.0\nint a;\n", 2),
    ("spdx", "scripts/a.sh", "#!/bin/sh\necho\n", 2),
    ("pragma", "src/base/a.h", TOP, 1),
    ("ascii", "docs/a.md", "caf\u00e9\n", 1),
    ("tab", "src/base/a.cpp", TOP + "\tint a;\n", 3),
    ("space", "src/base/a.cpp", TOP + "int a; \n", 3),
    ("width", "src/base/a.cpp", TOP + "int " + "a" * 96 + ";\n", 3),
    ("silent", "src/model/a.cpp", TOP + 'void f() { printf("x"); }\n', 3),
    ("silent", "src/model/a.cpp", TOP + 'void f() { std::fprintf(out, "x"); }\n', 3),
    ("silent", "src/model/a.cpp", TOP + "void f() { std::cerr << 1; }\n", 3),
    ("silent", "src/model/a.cpp", TOP + 'auto f() { return std::getenv("A"); }\n', 3),
    ("silent", "src/model/a.cpp", TOP + "void f() { exit(1); }\n", 3),
    ("silent", "src/model/a.cpp", TOP + "void f() { std::abort(); }\n", 3),
    ("kernel", "src/kernels/scan_ref.cpp", None, 1),
    ("kernel", "src/kernels/scan_cpu.cpp", None, 1),
    ("kernel", "src/kernels/scan_cuda.cu", None, 1),
    ("kernel", "src/kernels/lost_cuda.cu", TOP, 1),
    ("kernel", "tests/kernels/test_scan.cpp", None, 1),
    ("kernel", "src/kernels/lost_ref.cpp", TOP, 1),
    ("kernel", "src/kernels/kernels.def", GOOD["src/kernels/kernels.def"]
     + "MAMBA_KERNEL(lost_forward, LostArgs)\n", 1),
    ("isa", "src/kernels/scan_cpu.cpp", TOP + "#include <vector>\n", 3),
    ("isa", "src/kernels/a.h", HEADER + "#include <algorithm>\n", 4),
    ("order", "src/kernels/scan_cpu.cpp", TOP + "std::atomic<float> sum;\n", 3),
    ("order", "src/kernels/scan_cpu.cpp", TOP + "#pragma omp atomic\n", 3),
    ("order", "src/kernels/scan_cuda.cu", TOP + "atomicAdd(&sum, v);\n", 3),
    ("order", "src/kernels/scan_cpu.cpp", TOP + "#pragma omp parallel for reduction(+ : s)\n", 3),
    ("note", "src/base/a.cpp", TOP + "// TO" "DO: later\n", 3),
    ("dead", "src/base/a.cpp", TOP + "// int x = compute(y);\n", 3),
    ("dead", "src/base/a.cpp", TOP + "// return x;\n", 3),
    ("dead", "src/base/a.cpp", TOP + "// out.push_back(x);\n", 3),
    ("dead", "src/base/a.cpp", TOP + "// for (int i = 0; i < n; ++i) {\n", 3),
    ("dead", "src/base/a.cpp", TOP + "// #include <vector>\n", 3),
    ("path", "docs/a.md", "see /ho" "me/me/notes\n", 1),
    ("path", "src/base/a.cpp", TOP + '// see ..' '/shared/notes\n', 3),
]
# Lines that look close to a violation and are none.
FINE = [
    ("src/base/a.cpp", TOP + "// Says printf( and exit( in words, and 'abort()' too.\n"),
    ("src/base/a.cpp", TOP + 'const char* kText = "exit(1) /* std::cout";\n'),
    ("src/base/a.cpp", TOP + "int n = snprintf(buffer, 8, format);\n"),
    ("src/base/a.cpp", TOP + "// the result is kept here; a second call returns at once;\n"),
    ("src/base/a.cpp", TOP + "// dA = sum over t of g_t h_{t-1};\n"),
    ("src/base/a.cpp", TOP + "// TO" "DO(#12): the wider kernel\n"),
    ("tests/base/test_a.cpp", TOP + 'void f() { printf("x"); exit(1); }\n'),
]


def findings(changes):
    with tempfile.TemporaryDirectory() as folder:
        extra = {"src/cli/b.h": HEADER, "src/formats/b.h": HEADER, "tests/support/t.h": HEADER}
        for path, text in {**GOOD, **extra, **changes}.items():
            if text is not None:
                file = Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
        return lint.lint(Path(folder))


class LintTest(unittest.TestCase):
    def test_good_tree_has_no_findings(self):
        self.assertEqual(findings({}), [])

    def test_each_bad_snippet_is_found_where_it_is(self):
        for rule, path, text, line in BAD:
            with self.subTest(rule=rule, path=path, text=text):
                found = [(f.rule, f.line) for f in findings({path: text})]
                self.assertEqual(found, [(rule, line)])

    def test_what_only_looks_bad_passes(self):
        for path, text in FINE:
            with self.subTest(text=text):
                self.assertEqual(findings({path: text}), [])

    def test_cycle_through_two_headers(self):
        found = findings({"src/base/a.h": HEADER + '#include "base/b.h"\n',
                          "src/base/b.h": HEADER + '#include "base/a.h"\n'})
        self.assertEqual([f.rule for f in found], ["cycle"])
        self.assertIn("src/base/a.h -> src/base/b.h -> src/base/a.h", found[0].message)

    def test_header_that_does_not_compile_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder, "src/base")
            base.mkdir(parents=True)
            (base / "good.h").write_text(HEADER + "inline int f() { return 1; }\n")
            (base / "bad.h").write_text(HEADER + "std::string f();\n")
            found = list(lint.compile_headers(Path(folder), "g++", []))
            self.assertEqual([(f.path, f.rule) for f in found], [("src/base/bad.h", "alone")])


if __name__ == "__main__":
    unittest.main()
