"""Draws pictures in ``docs/images`` from the tables beside them: ``python -m docs.plots``.

- ``overload.svg``: one bar for each way to protect a guarantee, on a logarithmic axis: tokenpool in a strong
  colour, the others in grey.
- ``convergence.svg``: a line for the bound of ``convergence.md``, and points for random mixes, with requests
  of no length or of 4 s. ``python -m simulation convergence`` makes its table.

The script needs no library.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "images"
OURS = "tokenpool"
HEADING = "A guaranteed tenant while spot asks for ten times the capacity"
SUBHEADING = "P99 of the time to first token; median of five seeds, line to the worst"
LONG_MS = 10_000.0
"""A longer bar has its note inside."""
STRONG, GREY, INK, FAINT = "#0b6e4f", "#b4bac2", "#24292f", "#6b737c"
WIDTH, LEFT, RIGHT = 860.0, 216.0, 100.0
TOP, ROW, BAR = 72.0, 42.0, 24.0
FROM_MS, TO_MS = 10.0, 100_000.0
TICKS = ((10, "10 ms"), (100, "100 ms"), (1_000, "1 s"), (10_000, "10 s"), (100_000, "100 s"))


class Way(NamedTuple):
    """One way to protect a guarantee. Times are in milliseconds: the median and the worst of the seeds."""

    name: str
    median: float
    worst: float
    note: str


def ways() -> list[Way]:
    """The rows of the file."""
    lines = (FOLDER / "overload.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [Way(row["name"], float(row["median"]), float(row["worst"]), row["note"]) for row in rows]


def place(ms: float) -> float:
    """The horizontal place of a time."""
    share = math.log10(ms / FROM_MS) / math.log10(TO_MS / FROM_MS)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def said(ms: float) -> str:
    """A time for readers."""
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s" if ms < 10_000 else f"{ms / 1000:.0f} s"


def text(
    x: float, y: float, words: str, fill: str, *, size: int = 12, weight: int = 400, anchor: str = "start"
) -> str:
    """One line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(words)}</text>'
    )


def bar(row: Way, middle: float) -> list[str]:
    """One way: its name, its bar, the line to the worst seed, its value and its note."""
    is_ours = row.name == OURS
    colour, ink, weight = (STRONG, STRONG, 700) if is_ours else (GREY, INK, 400)
    end, worst, y = place(row.median), place(row.worst), middle + 5
    parts = [
        text(LEFT - 12, y, row.name, ink, size=14, weight=weight, anchor="end"),
        f'<rect x="{LEFT:g}" y="{middle - BAR / 2:.1f}" width="{end - LEFT:.1f}" height="{BAR:g}"'
        f' rx="2" fill="{colour}"/>',
        f'<path d="M{end:.1f} {middle:.1f}H{worst:.1f}" stroke="{INK}" stroke-width="1.5"/>',
        text(worst + 8, y, said(row.median), ink, size=14, weight=weight),
    ]
    if row.note and row.median > LONG_MS:
        parts.append(text(end - 8, y, row.note, INK, anchor="end"))
    elif row.note:
        parts.append(text(worst + 72, y, row.note, STRONG if is_ours else FAINT))
    return parts


def drawing(rows: list[Way]) -> str:
    """The whole picture."""
    bottom = TOP + ROW * len(rows)
    height = bottom + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}"'
        f' height="{height:g}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        "<title>Time to first token of a guaranteed tenant in overload</title>",
        f'<rect width="{WIDTH:g}" height="{height:g}" rx="8" fill="#ffffff"/>',
        text(20, 28, HEADING, INK, size=17, weight=600),
        text(20, 50, SUBHEADING, FAINT, size=13),
    ]
    for ms, name in TICKS:
        x = place(ms)
        parts.append(f'<path d="M{x:.1f} {TOP:g}V{bottom:g}" stroke="#e5e8eb"/>')
        parts.append(text(x, bottom + 20, name, FAINT, anchor="middle"))
    for number, row in enumerate(rows):
        parts += bar(row, TOP + ROW * number + ROW / 2)
    return "\n".join([*parts, "</svg>"]) + "\n"


HEIGHT, AXIS, MARGIN, HEAD, FOOT = 400.0, 64.0, 24.0, 76.0, 56.0
MOST_RATIO, MOST_S = 4.2, 32.0
DEBT_HEADING = "Time until every tenant stays within 5 % of its fair share"
DEBT_SUBHEADING = (
    "100 random mixes after the loss of 60 % of the capacity; the shipped planner on a fluid pool"
)
LONG = "4"
"""The column with requests of 4 s, for which the bound does not hold."""


class Point(NamedTuple):
    """One mix: the first ratio of relative service, and times in seconds."""

    ratio: float
    bound: float
    measured: float
    with_long_requests: float


def points() -> list[Point]:
    """The rows of the file."""
    lines = (FOLDER / "convergence.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [
        Point(float(row["ratio"]), float(row["bound"]), float(row["0"]), float(row[LONG])) for row in rows
    ]


def across(ratio: float) -> float:
    """The horizontal place of a ratio."""
    return AXIS + (ratio - 1) / (MOST_RATIO - 1) * (WIDTH - AXIS - MARGIN)


def down(seconds: float) -> float:
    """The vertical place of a time."""
    return HEIGHT - FOOT - seconds / MOST_S * (HEIGHT - HEAD - FOOT)


def _dots(pairs: Sequence[tuple[float, float]], colour: str) -> list[str]:
    return [
        f'<circle cx="{across(ratio):.1f}" cy="{down(seconds):.1f}" r="3.5" fill="{colour}"'
        ' fill-opacity="0.75"/>'
        for ratio, seconds in pairs
    ]


def convergence(found: Sequence[Point]) -> str:
    """The whole picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}"'
        f' height="{HEIGHT:g}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        f"<title>{DEBT_HEADING}</title>",
        f'<rect width="{WIDTH:g}" height="{HEIGHT:g}" rx="8" fill="#ffffff"/>',
        text(20, 28, DEBT_HEADING, INK, size=17, weight=600),
        text(20, 50, DEBT_SUBHEADING, FAINT, size=13),
    ]
    for seconds in range(0, int(MOST_S) + 1, 8):
        y = down(seconds)
        parts.append(f'<path d="M{AXIS:g} {y:.1f}H{WIDTH - MARGIN:g}" stroke="#e5e8eb"/>')
        parts.append(text(AXIS - 8, y + 4, f"{seconds} s", FAINT, anchor="end"))
    for ratio in (1.0, 2.0, 3.0, 4.0):
        parts.append(text(across(ratio), HEIGHT - FOOT + 20, f"{ratio:g}", FAINT, anchor="middle"))
    parts.append(
        text(
            (AXIS + WIDTH - MARGIN) / 2,
            HEIGHT - 14,
            "greatest / least relative service at the loss",
            FAINT,
            anchor="middle",
        )
    )
    parts += _dots([(each.ratio, each.with_long_requests) for each in found], GREY)
    parts += _dots([(each.ratio, each.measured) for each in found], STRONG)
    line = "L".join(
        f"{across(each.ratio):.1f} {down(each.bound):.1f}" for each in sorted(set(found), key=_by_ratio)
    )
    parts.append(f'<path d="M{line}" fill="none" stroke="{INK}" stroke-width="2"/>')
    parts.append(text(across(2.1), down(7.2), "the bound", INK, size=14, weight=600))
    parts.append(text(across(2.1), down(1.6), "measured", STRONG, size=14, weight=600))
    parts.append(text(across(1.05), down(23), "requests of 4 s: the bound does not apply", FAINT, size=14))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _by_ratio(point: Point) -> tuple[float, float]:
    return point.ratio, point.bound


def main() -> None:
    """Write the pictures."""
    (FOLDER / "overload.svg").write_text(drawing(ways()))
    (FOLDER / "convergence.svg").write_text(convergence(points()))


if __name__ == "__main__":
    main()
