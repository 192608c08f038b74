"""Numbers as text for people, and tables for terminals and pages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadgen.statistics import Estimate

NOTHING = "-"
_MANY = 40
"""Rows above which the box of a page's table has a bounded height."""
_LONG = 60
"""Characters above which a cell of a page's table has several lines."""


def name(text: str) -> str:
    """A name that can be seen: one of spaces alone is quoted."""
    return text if text.strip() else f'"{text}"'


def seconds(value: float) -> str:
    """A time in a suitable unit."""
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 0.9995:
        return f"{value:.3g} s"
    return f"{value * 1000:.3g} ms"


def amount(value: float) -> str:
    """A number of tokens or requests."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.3g}{name}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def estimate(made: Estimate | None, *, rate: bool) -> str:
    """A number without its interval."""
    if made is None:
        return NOTHING
    return amount(made.value) if rate else seconds(made.value)


def interval(made: Estimate | None, *, rate: bool) -> str:
    """A number's interval, with a question mark for an unknown bound.

    "no interval" if there is a reason for it; empty for numbers that never have one.
    """
    if made is None:
        return ""
    if made.low is None and made.high is None:
        return "no interval" if made.reason else ""
    write = amount if rate else seconds
    low = write(made.low) if made.low is not None else "?"
    high = write(made.high) if made.high is not None else "?"
    number, _, unit = low.partition(" ")
    # A common unit is written once.
    return f"{number if unit and high.endswith(f' {unit}') else low} to {high}"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 2) -> str:
    """Columns for a terminal; the first ``left`` are flush left, the others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def written(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join((written(head), rule, *(written(row) for row in rows)))


def html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], note: str, *, label: str, left: int = 2
) -> str:
    """A table for a page, in a box that scrolls. Its head and its first column stay visible.

    Text after a line feed in a cell is small. The first ``left`` columns are flush left, the others right.
    The note is above the table. Screen readers name the box with the label.
    """
    top = "".join(
        f'<th scope="col"{_side(index, left)}>{escape(cell)}</th>' for index, cell in enumerate(head)
    )
    body = "".join(
        f'<tr><th scope="row"><div>{escape(name(row[0]))}</div></th>{_cells(row, left)}</tr>\n'
        for row in rows
    )
    box = "scroll tall" if len(rows) > _MANY else "scroll"
    return (
        f'<p class="soft note">{escape(note)}</p>'
        f'<div class="{box}" role="region" aria-label="{escape(label)}" tabindex="0"><table>'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _side(index: int, left: int) -> str:
    return ' class="left"' if index < left else ""


def _cells(row: Sequence[str], left: int) -> str:
    return "".join(_cell(cell, _side(index, left)) for index, cell in enumerate(row) if index)


def _cell(cell: str, side: str) -> str:
    value, _, small = cell.partition("\n")
    if len(value) > _LONG:
        side = ' class="left long"'
    return f"<td{side}>{escape(value)}{f'<small>{escape(small)}</small>' if small else ''}</td>"
