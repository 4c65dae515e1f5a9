#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Objects compiled for one ISA export nothing that the linker could put into another ISA's code.

A weak symbol (an inline function or template that was not inlined) of an AVX-512 object may be the copy
that the linker keeps for the whole program, which then dies on an older CPU. So: no weak symbols, and
every global symbol lives in namespace mamba::<isa>, except the function that returns the table.

    test_symbols.py BUILD_DIR      checks mamba_kernels_{avx2,avx512,avx512_bf16}
    test_symbols.py --self-test    the check finds what it must in made-up nm output
"""

import subprocess
import sys
from pathlib import Path

ISAS = ("avx2", "avx512", "avx512_bf16")
ALLOWED_WEAK = {"DW.ref.__gxx_personality_v0"}


def bad_symbols(nm_output, isa):
    """(symbol, reason) of every line of `nm --defined-only` that breaks the rule."""
    inside = f"_ZN5mamba{len(isa)}{isa}"
    # Read-only data and virtual tables of the namespace would start with _ZTV, _ZTI, ...: none exist.
    table = f"_ZN5mamba{len(isa) + 8}{isa}_kernelsEv"
    for line in nm_output.splitlines():
        fields = line.split()
        if len(fields) < 2:
            continue
        kind, symbol = fields[-2], fields[-1]
        if kind in "WwVvu":
            if symbol not in ALLOWED_WEAK:
                yield symbol, "is weak"
        elif kind.isupper() and not symbol.startswith(inside) and symbol != table:
            yield symbol, f"is global outside mamba::{isa}"


def check_objects(build):
    """Number of objects seen and the complaints about them."""
    seen, complaints = 0, []
    for isa in ISAS:
        folder = build / "CMakeFiles" / f"mamba_kernels_{isa}.dir"
        objects = sorted(folder.rglob("*.o"))
        if not objects:
            complaints.append(f"{folder}: no object files; build first")
        for path in objects:
            seen += 1
            nm = subprocess.run(["nm", "--defined-only", str(path)], check=True, text=True,
                                capture_output=True)
            complaints += [f"{path.relative_to(build)}: {symbol} {reason}"
                           for symbol, reason in bad_symbols(nm.stdout, isa)]
    return seen, complaints


def self_test():
    nm = "\n".join([
        "0000000000000000 T _ZN5mamba6avx51212scan_forwardERNS_6StreamERKNS_8ScanArgsE",
        "0000000000000000 T _ZN5mamba14avx512_kernelsEv",
        "0000000000000000 t _ZL6helperv",
        "0000000000000000 V DW.ref.__gxx_personality_v0",
        "0000000000000000 W _ZSt3maxIfERKT_S2_S2_",
        "0000000000000000 u _ZZN1a1bEvE1c",
        "0000000000000000 T _ZN5mamba4avx26helperEv",
        "0000000000000000 D _ZN5mamba6globalE",
    ])
    got = [symbol for symbol, _ in bad_symbols(nm, "avx512")]
    want = ["_ZSt3maxIfERKT_S2_S2_", "_ZZN1a1bEvE1c", "_ZN5mamba4avx26helperEv", "_ZN5mamba6globalE"]
    return [] if got == want else [f"self-test: expected {want}, got {got}"]


def main():
    if sys.argv[1:] == ["--self-test"]:
        seen, complaints = 1, self_test()
    elif len(sys.argv) == 2:
        seen, complaints = check_objects(Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
    for complaint in complaints:
        print(complaint)
    print(f"symbols: {seen} checked, {len(complaints)} complaint(s)")
    return 1 if complaints or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
