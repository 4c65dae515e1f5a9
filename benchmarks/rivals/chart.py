# SPDX-License-Identifier: Apache-2.0
"""The picture of a comparison: a bar for each ratio, from 1 to the right where mamba-cpp is faster
and to the left where it is slower, on a logarithmic axis."""

import html
import math

LEFT, PLOT, FIGURES, TOP, ROW = 330, 390, 180, 84, 20
CHARACTER = 6.3  # pixels of one in a label
COLOURS = {"f32": "#1763c6", "bf16": "#d4490c", "8bit": "#4f7a28", "4bit": "#7a3fa0"}
STYLE = """<style>
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, sans-serif; }
.title { font-size: 18px; font-weight: 600; fill: #1c2430; }
.note { font-size: 12px; fill: #5a6675; }
.row { font-size: 12px; fill: #1c2430; }
.missing { font-size: 12px; fill: #8a94a3; font-style: italic; }
.grid { stroke: #e6e9ee; } .one { stroke: #46505e; stroke-width: 1.5; }
.range { stroke: #1c2430; stroke-width: 1; }
</style>
"""


def ticks(low, high):
    steps = [m * 10 ** e for e in range(-2, 4) for m in (1, 2, 5)]
    return [t for t in steps if low <= t <= high]


def text(x, y, words, css="row", anchor="start"):
    return (f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{html.escape(words)}</text>\n")


def number(value):
    """Small ones with three digits, large ones in whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bar(row, y, x, left):
    """A bar with its range; x maps a ratio to pixels, from `left` on."""
    result = row["summary"]
    out = text(left - 10, y + 4, row["label"], anchor="end")
    if result is None:
        return out + text(x(1) + 6, y + 4, "missing: " + (row["missing"] or "no round counts"), "missing")
    begin, end = sorted((x(1), x(result["ratio"])))
    out += (f'<rect fill="{COLOURS.get(row["type"], COLOURS["f32"])}" x="{begin:.1f}" y="{y - 6:.1f}" '
            f'width="{max(end - begin, 0.5):.1f}" height="12"/>\n')
    out += (f'<line class="range" x1="{x(result["low"]):.1f}" x2="{x(result["high"]):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>\n')
    figures = (f"{result['ratio']:.2f}x   {number(result['ours'])} / {number(result['theirs'])} "
               f"{row['unit']}")
    return out + text(left + PLOT + 12, y + 4, figures)


def draw(results):
    rows = results["rows"]
    done = [row["summary"] for row in rows if row["summary"]]
    low = min([0.5] + [r["low"] for r in done]) / 1.1
    high = max([2.0] + [r["high"] for r in done]) * 1.1

    left = max([LEFT] + [round(CHARACTER * len(row["label"])) + 20 for row in rows])
    width = left + PLOT + FIGURES

    def x(ratio):
        return left + PLOT * math.log(ratio / low) / math.log(high / low)

    bottom = TOP + ROW * len(rows)
    title = f"{results['version']} beside its rivals" + (
        f", {results['threads']} threads" if "threads" in results else "")
    out = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 40}" '
           f'width="{width}" height="{bottom + 40}" role="img">\n<title>{html.escape(title)}</title>\n'
           f'{STYLE}<rect width="{width}" height="{bottom + 40}" fill="#ffffff"/>\n')
    out += text(20, 32, title, "title")
    where = f"{results['cpu']}; pinned" if "cpu" in results else results["device"]
    out += text(20, 54, f"{where}, in turn, median of {results['rounds']} rounds with its range; "
                "right of 1: mamba-cpp is faster or smaller", "note")
    for tick in ticks(low, high):
        css = "one" if tick == 1 else "grid"
        out += (f'<line class="{css}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 8}" '
                f'y2="{bottom}"/>\n') + text(x(tick), bottom + 18, f"{tick:g}x", "note", "middle")
    for i, row in enumerate(rows):
        out += bar(row, TOP + ROW * i + 4, x, left)
    return out + "</svg>\n"
