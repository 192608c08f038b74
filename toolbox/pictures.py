"""Pictures of measurements as SVG: panels of lines above each other, over one horizontal axis.

A picture is a record, so it can be kept as JSON beside its drawing and be drawn again. The drawing needs no
script, no style of a page and no library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen.plots import log_ticks, nice_ticks
from loadgen.words import amount

COLOURS = ("#0b6e4f", "#0969da", "#bf5700", "#8250df", "#57606a")
"""The colours of the lines by name, in the order of their first use; later names repeat them."""
INK, FAINT, LINES, BANDS = "#24292f", "#57606a", "#e5e8eb", ("#ffffff", "#f3f5f7")
WIDTH, LEFT, RIGHT = 860.0, 62.0, 20.0
HEAD, TITLE, PANEL, BOTTOM = 62.0, 30.0, 130.0, 62.0
"""Heights: above the panels, of a panel's title, of a panel, and below the panels."""
DOT = 2.5


class Line(msgspec.Struct, frozen=True):
    """One curve. Lines with one name have one colour in all panels. ``None`` is a gap."""

    name: str
    points: tuple[tuple[float, float | None], ...]
    is_dashed: bool = False


class Panel(msgspec.Struct, frozen=True):
    """One plot with its own vertical axis."""

    title: str
    lines: tuple[Line, ...]
    is_log: bool = False
    has_dots: bool = False
    """Whether each point is marked."""
    levels: tuple[float, ...] = ()
    """Values with a dashed horizontal line, such as a goal."""
    ends: tuple[float, float] | None = None
    """The range of the axis, which may begin above 0. Values outside are drawn at its ends."""


class Phase(msgspec.Struct, frozen=True):
    """A named part of the horizontal axis."""

    name: str
    start: float
    end: float


class Picture(msgspec.Struct, frozen=True):
    """Panels over one horizontal axis."""

    heading: str
    subheading: str
    axis: str
    """The name and the unit of the horizontal axis."""
    panels: tuple[Panel, ...]
    phases: tuple[Phase, ...] = ()
    is_log: bool = False
    """Whether the horizontal axis is logarithmic."""
    ticks: tuple[float, ...] = ()
    """The marked places of the horizontal axis; by default round numbers."""


DIGITS = 4
"""The decimal places of the values in a file."""


def keep(picture: Picture, file: Path) -> None:
    """Write the drawing to ``file``, and the picture as JSON beside it."""
    kept = _rounded(picture)
    file.with_suffix(".json").write_bytes(msgspec.json.encode(kept) + b"\n")
    file.write_text(drawing(kept))


def read(file: Path) -> Picture:
    """The picture of a JSON file. Raises ``msgspec.DecodeError`` for another content."""
    return msgspec.json.decode(file.read_bytes(), type=Picture)


def _rounded(picture: Picture) -> Picture:
    def rounded(line: Line) -> Line:
        points = tuple(
            (round(at, DIGITS), None if value is None else round(value, DIGITS)) for at, value in line.points
        )
        return msgspec.structs.replace(line, points=points)

    panels = tuple(
        msgspec.structs.replace(panel, lines=tuple(rounded(line) for line in panel.lines))
        for panel in picture.panels
    )
    return msgspec.structs.replace(picture, panels=panels)


class _Scale(NamedTuple):
    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = (math.log10(max(each, self.low)) for each in (value, low, high))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def drawing(picture: Picture) -> str:
    """The picture as SVG."""
    names = list(dict.fromkeys(line.name for panel in picture.panels for line in panel.lines))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    height = HEAD + (TITLE + PANEL) * len(picture.panels) + BOTTOM
    places = [at for panel in picture.panels for line in panel.lines for at, _ in line.points]
    places += [end for phase in picture.phases for end in (phase.start, phase.end)]
    x, ticks = _axis(places or [0.0], picture.is_log, (LEFT, WIDTH - RIGHT), keeps_range=True)
    ticks = list(picture.ticks) or ticks
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}"'
        f' height="{height:g}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        f"<title>{escape(picture.heading)}</title>",
        f'<rect width="{WIDTH:g}" height="{height:g}" rx="8" fill="#ffffff"/>',
        _text(20, 28, picture.heading, INK, size=17, weight=600),
        _text(20, 48, picture.subheading, FAINT),
    ]
    for number, panel in enumerate(picture.panels):
        top = HEAD + (TITLE + PANEL) * number + TITLE
        parts += _panel(panel, top, x, ticks, colours, picture.phases)
    below = height - BOTTOM
    parts += [_text(x(tick), below + 16, amount(tick), FAINT, anchor="middle") for tick in ticks]
    parts.append(_text((x.start + x.end) / 2, below + 32, picture.axis, FAINT, anchor="middle"))
    parts += _legend(picture, colours, below + 52)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axis(
    values: Sequence[float], is_log: bool, ends: tuple[float, float], *, keeps_range: bool = False
) -> tuple[_Scale, list[float]]:
    """The scale of an axis, and its ticks. With ``keeps_range`` the axis ends at the outermost values."""
    if is_log:
        positive = [value for value in values if value > 0] or [1.0]
        ticks = log_ticks(min(positive), max(positive))
        if keeps_range:
            return _Scale(min(positive), max(positive), *ends, True), [
                tick for tick in ticks if min(positive) <= tick <= max(positive)
            ]
        return _Scale(ticks[0], ticks[-1], *ends, True), ticks
    low, high = min(values), max(values)
    above = nice_ticks(high) if high > 0 else [0.0]
    below = [-tick for tick in nice_ticks(-low)[1:]] if low < 0 else []
    if below and len(above) > 1:
        step = max(above[1], -below[0])
        above = [step * number for number in range(math.ceil(high / step) + 1)]
        below = [-step * number for number in range(1, math.ceil(-low / step) + 1)]
    ticks = sorted([*below, *above])
    if keeps_range:
        return _Scale(low, high, *ends, False), [tick for tick in ticks if low <= tick <= high]
    return _Scale(ticks[0], ticks[-1] if len(ticks) > 1 else 1.0, *ends, False), ticks


def _panel(
    panel: Panel,
    top: float,
    x: _Scale,
    ticks: Sequence[float],
    colours: dict[str, str],
    phases: Sequence[Phase],
) -> list[str]:
    bottom = top + PANEL
    values = [value for line in panel.lines for _, value in line.points if value is not None]
    y, heights = _axis([*values, *panel.levels] or [0.0], panel.is_log, (bottom, top + 4))
    if panel.ends is not None:
        low, high = panel.ends
        y = _Scale(low, high, bottom, top + 4, False)
        heights = [low + tick for tick in nice_ticks(high - low) if low + tick <= high]
    parts = [_text(20, top - 10, panel.title, INK, size=13, weight=600)]
    for number, phase in enumerate(phases):
        left, right = x(phase.start), x(phase.end)
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{PANEL:.1f}"'
            f' fill="{BANDS[number % 2]}"/>'
        )
    parts += [f'<path d="M{x(tick):.1f} {top:.1f}V{bottom:.1f}" stroke="{LINES}"/>' for tick in ticks]
    for tick in heights:
        parts.append(f'<path d="M{LEFT:g} {y(tick):.1f}H{WIDTH - RIGHT:g}" stroke="{LINES}"/>')
        parts.append(_text(LEFT - 6, y(tick) + 4, amount(tick), FAINT, size=11, anchor="end"))
    for level in panel.levels:
        parts.append(
            f'<path d="M{LEFT:g} {y(level):.1f}H{WIDTH - RIGHT:g}" stroke="{INK}" stroke-dasharray="2 4"/>'
        )
    for line in panel.lines:
        parts += _curve(line, x, y, colours[line.name], has_dots=panel.has_dots)
    # With a white edge, so that a curve behind a name does not hide it.
    parts.append('<g stroke="#ffffff" stroke-width="3" paint-order="stroke">')
    parts += [_text(x(phase.start) + 4, top + 12, phase.name, FAINT, size=10) for phase in phases]
    parts.append("</g>")
    return parts


def _curve(line: Line, x: _Scale, y: _Scale, colour: str, *, has_dots: bool) -> list[str]:
    pieces, dots, is_begun = [], [], False
    for at, value in line.points:
        if value is None or (y.is_log and value <= 0):
            is_begun = False
            continue
        pieces.append(f"{'L' if is_begun else 'M'}{x(at):.1f} {y(value):.1f}")
        dots.append(f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="{DOT:g}" fill="{colour}"/>')
        is_begun = True
    dash = ' stroke-dasharray="5 3"' if line.is_dashed else ""
    path = f'<path d="{"".join(pieces)}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
    return [path, *(dots if has_dots else [])] if pieces else []


def _legend(picture: Picture, colours: dict[str, str], y: float) -> list[str]:
    parts, x = [], LEFT
    for name, colour in colours.items():
        parts.append(f'<path d="M{x:.1f} {y - 4:.1f}h22" stroke="{colour}" stroke-width="3"/>')
        parts.append(_text(x + 28, y, name, INK))
        x += 28 + 7.2 * len(name) + 24
    return parts


def _text(
    x: float, y: float, words: str, fill: str, *, size: int = 12, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(words)}</text>'
    )
