#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the small torch checkpoints of this folder, which tests/formats/test_torch_zip.cpp reads.

The files here came from torch 2.15.0. Usage: make_torch_files.py [FOLDER]
"""
import collections
import pathlib
import sys

import torch


def tensors():
    """Values count up from 0 by halves, which every float type holds exactly."""
    def count(*shape, start=0.0):
        number = 1
        for size in shape:
            number *= size
        return (torch.arange(number, dtype=torch.float64) / 2 + start).reshape(shape)

    shared = count(4, 3).float()
    return collections.OrderedDict([
        ("f32", count(2, 3).float()),
        ("f64", count(3)),
        ("f16", count(2, 2).half()),
        ("bf16", count(5).bfloat16()),
        ("i64", torch.tensor([-1, 2**40])),
        ("i32", torch.tensor([-5, 7], dtype=torch.int32)),
        ("u8", torch.tensor([0, 255], dtype=torch.uint8)),
        ("bool", torch.tensor([True, False])),
        ("scalar", torch.tensor(2.5)),
        ("empty", torch.zeros(0, 4)),
        ("parameter", torch.nn.Parameter(count(2, start=8.0).float())),
        ("shared", shared),
        ("shared_again", shared),
        ("rows", shared[1:3]),
        ("turned", shared.t()),
        ("columns", shared[:, 1:]),
    ])


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    state = tensors()
    for protocol in (2, 4, 5):
        torch.save(state, folder / f"protocol{protocol}.bin", pickle_protocol=protocol)
    torch.save({"w": torch.ones(2)}, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"step": 3, "w": torch.ones(2)}, folder / "with_number.bin")
    torch.save(torch.nn.Linear(2, 1), folder / "module.bin")
    torch.save(torch.nn.Linear(2, 1).state_dict(), folder / "with_metadata.bin")


if __name__ == "__main__":
    main()
