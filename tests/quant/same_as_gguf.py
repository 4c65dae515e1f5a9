# SPDX-License-Identifier: Apache-2.0
"""Blocks against the PyPI package gguf: equal f32 bit for bit from random bytes, and an error of our
quantisation that is no larger than that of the package where it has one.

Usage: same_as_gguf.py QUANTIZE_COMMAND; skips (77) without the package.
"""
import subprocess
import sys

try:
    import gguf
    import numpy as np
except ImportError:
    print("SKIPPED: needs the Python packages gguf and numpy")
    sys.exit(77)

TYPES = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "iq4_nl"]
# Of the square error of weights from a normal distribution, in its variance: what the search reaches
# (0.00655 for Q4_0, where rounding to the nearest gives 0.0074), and 5 % for other numbers.
BOUNDS = {"q4_0": 0.0068, "q4_1": 0.0050, "q5_0": 0.00167, "q5_1": 0.00120, "q8_0": 2.75e-5,
          "q4_k": 0.0051, "q5_k": 0.00126, "q6_k": 0.00030, "iq4_nl": 0.0057}


def run(mode, name, data, *more):
    return subprocess.run([sys.argv[1], mode, name, *more], input=data.tobytes(),
                          stdout=subprocess.PIPE, check=True).stdout


def ours(name, values, weights=None):
    data = values if weights is None else np.concatenate([values.ravel(), weights.ravel()])
    blocks = run("quantize", name, data, *([] if weights is None else ["weights"]))
    return np.frombuffer(run("dequantize", name, np.frombuffer(blocks, np.uint8)), np.float32)


def check_dequantize(name, rng):
    kind = gguf.GGMLQuantizationType[name.upper()]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (4096, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, kind).reshape(-1, elements)
    got = np.frombuffer(run("dequantize", name, blocks), np.float32).reshape(-1, elements)
    # Scales that are no numbers: those blocks only need to be no numbers here too.
    finite = np.isfinite(expected).all(axis=1)
    assert finite.sum() > 3500, name
    assert np.array_equal(expected[finite].view(np.uint32), got[finite].view(np.uint32)), name
    assert not np.isfinite(got[~finite]).all(axis=1).any(), name


def check_error(name, rng):
    values = rng.standard_normal((64, 1024)).astype(np.float32) * np.float32(0.02)
    mine = float(np.mean((ours(name, values) - values.ravel()) ** 2) / np.var(values))
    assert mine <= BOUNDS[name], (name, mine)
    line = f"{name}: relative square error {mine:.3g}"
    try:
        theirs = gguf.quants.dequantize(
            gguf.quants.quantize(values, gguf.GGMLQuantizationType[name.upper()]),
            gguf.GGMLQuantizationType[name.upper()])
        error = float(np.mean((theirs - values) ** 2) / np.var(values))
        assert mine <= error, (name, mine, error)
        line += f", gguf's {error:.3g}"
    except NotImplementedError:
        pass
    # Weights that matter to different degrees: their weighted error falls.
    weights = np.broadcast_to(rng.gamma(0.3, 1, (1, 1024)).astype(np.float32), values.shape)
    def weighted(got):
        return float(np.sum(weights.ravel() * (got - values.ravel()) ** 2))
    ratio = weighted(ours(name, values, weights)) / weighted(ours(name, values))
    assert ratio < 1, (name, ratio)
    print(line + f", weighted {ratio:.2f} of the unweighted one's")


for type_name in TYPES:
    check_dequantize(type_name, np.random.default_rng(1))
    check_error(type_name, np.random.default_rng(2))
