#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/tokenizer/unicode_ranges.inc: the classes of characters that tokenizers tell apart, asked
of the PyPI package tokenizers for every code point, so that ours are its classes and no other Unicode
version's."""
import pathlib

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

OUT = pathlib.Path(__file__).resolve().parent.parent / "src" / "tokenizer" / "unicode_ranges.inc"
CLASSES = [
    ("kLetter", "\\p{L}", pre_tokenizers.Split(Regex(r"\p{L}"), "isolated")),
    ("kNumber", "\\p{N}", pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")),
    ("kSpace", "\\s", pre_tokenizers.Split(Regex(r"\s"), "isolated")),
    ("kWord", "\\w of the borders of single_word tokens", None),
    ("kPunctuation", "Punctuation", pre_tokenizers.Punctuation("isolated")),
]
# Neither of a class nor joined with its neighbours by any of the splitters above.
PLAIN = "\x01"


def words():
    """Every code point before which a token with single_word is not seen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken(PLAIN, single_word=True, normalized=False)])
    for start in range(0, 0x110000, 0x1000):
        codes = [c for c in range(start, start + 0x1000) if not 0xD800 <= c < 0xE000]
        encoding = tokenizer.encode("".join(chr(c) + PLAIN + "." for c in codes))
        seen = {begin for begin, _ in encoding.offsets}
        yield from (c for i, c in enumerate(codes) if 3 * i + 1 not in seen)


def members(splitter):
    """Every code point that the splitter isolates from plain neighbours."""
    if splitter is None:
        yield from words()
        return
    for start in range(0, 0x110000, 0x1000):
        codes = [c for c in range(start, start + 0x1000) if not 0xD800 <= c < 0xE000]
        text = "".join(PLAIN + chr(c) for c in codes) + PLAIN
        pieces = {begin for _, (begin, end) in splitter.pre_tokenize_str(text) if end - begin == 1}
        yield from (c for i, c in enumerate(codes) if 2 * i + 1 in pieces and 2 * i + 1 < len(text))


def ranges(codes):
    found = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def main():
    lines = ["// SPDX-License-Identifier: Apache-2.0",
             "// Classes of characters, first and last code point of each range. Written by",
             f"// tools/make_unicode_ranges.py from the answers of tokenizers {tokenizers.__version__}.",
             ""]
    for name, pattern, splitter in CLASSES:
        lines += [f"// {pattern}", f"constexpr CodeRange {name}Ranges[] = {{"]
        line = "   "
        for first, last in ranges(members(splitter)):
            entry = f" {{0x{first:x}, 0x{last:x}}},"
            if len(line) + len(entry) > 100:
                lines.append(line)
                line = "   "
            line += entry
        lines += [line, "};", ""]
    OUT.write_text("\n".join(lines[:-1]) + "\n")


if __name__ == "__main__":
    main()
