# SPDX-License-Identifier: Apache-2.0
"""What every comparison does alike: a row is measured on both sides in each round, ours first in one
round and second in the next; medians, ratios, and results written at once or not at all.

A row is a dictionary: label, unit, less_is_better, the samples `ours` and `theirs` (one a round), and
`missing`, why there is no figure."""

import os
import pathlib
import statistics
import tempfile


class Failed(Exception):
    """Why a program gave no figure."""


def summary(row):
    """Medians of both sides and of the ratios of each round, more than 1 being ours; or None."""
    pairs = list(zip(row["ours"], row["theirs"]))
    if not pairs or row["missing"]:
        return None
    ratios = [theirs / ours if row["less_is_better"] else ours / theirs for ours, theirs in pairs]
    return {"ours": statistics.median(row["ours"]), "theirs": statistics.median(row["theirs"]),
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def measure(rows, rounds, figure, done=lambda row, number, samples: True):
    """Fills in the samples, a round at a time. figure(row, side, number) gives one; a row that fails
    is missing from there on. done(row, number, samples) says whether the pair counts."""
    for number in range(rounds):
        for row in rows:
            if row["missing"]:
                continue
            sides = ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours")
            try:
                samples = {side: figure(row, side, number) for side in sides}
            except Failed as error:
                row["missing"] = str(error)
                continue
            if done(row, number, samples):
                for side, value in samples.items():
                    row[side].append(value)


def write_atomically(path, text):
    """The file has all of the text, or is what it was."""
    path = pathlib.Path(path)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
