"""Plots as inline SVG: curves over time, stacked layers over time, and intervals. Pure; no asset, no script.

Each plot is drawn twice, for wide and narrow pages, because the letters of a scaled drawing are too small.
The style of the page shows one of the two. Colours are classes, which the page defines for light and dark
mode. Lines of one colour differ in their dashes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from loadgen.words import amount, seconds

COLOURS = 8
"""The number of colours in the page's style. Further series repeat them with dashes."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 12.0, 20.0, 40.0
_WIDE, _HALF, _NARROW = (1000.0, 290.0), (570.0, 260.0), (360.0, 250.0)
"""Widths and heights of plots: wide, half of a wide page, and narrow."""
_LETTER = 6.6
"""The approximate width of a letter."""
_DASHES = ("", "6 3", "2 3")

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Series:
    """One curve or layer. A value of ``None`` is a gap."""

    name: str
    points: Points
    colour: int = 0
    dash: int = 0
    width: float = 2.0
    ranges: Sequence[tuple[float, float | None, float | None]] = ()
    """Intervals as (place, low, high); an unknown bound has no mark. With them, the points are drawn, too."""


@dataclass(frozen=True, slots=True)
class Band:
    """A phase."""

    name: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Mark:
    """An event, such as a fault."""

    name: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Frame:
    """The horizontal axis of all plots of a run, with phases and events. It shows times, unless named."""

    until_s: float
    bands: tuple[Band, ...] = ()
    marks: tuple[Mark, ...] = ()
    axis: str = "seconds"
    unit: str = "s"
    marked: str = "fault"
    """The meaning of the marks, for the legend."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a plot of intervals."""

    name: str
    value: float
    low: float | None
    high: float | None
    colour: int = 0
    note: str = ""
    """The meaning of the line from ``low`` to ``high``."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps a value to a position."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = (math.log10(max(v, self.low)) for v in (value, low, high))
        share = (value - low) / (high - low) if high > low else 0.0
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def nice_ticks(high: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least ``high``."""
    if high <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(high / count))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * count >= high * (1 - 1e-9))
    return [index * step for index in range(math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The values 1, 2 and 5 of each decade (or only 1 of many decades) that enclose the range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1,) if last - first > 3 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max((tick for tick in ticks if tick <= low * (1 + 1e-9)), default=ticks[0])
    end = min((tick for tick in ticks if tick >= high * (1 - 1e-9)), default=ticks[-1])
    return [tick for tick in ticks if start <= tick <= max(end, start * 2)]


def curves(
    title: str,
    series: Sequence[Series],
    frame: Frame,
    *,
    unit: str,
    is_log: bool = False,
    ticks: Sequence[float] | None = None,
    is_half: bool = False,
) -> str:
    """Lines over time. ``unit`` is ``s`` for times, or else the unit of the values."""
    drawn_at = [v for one in series for _, v in one.points if v is not None]
    drawn_at += [end for one in series for _, *ends in one.ranges for end in ends if end is not None]
    values = [v for v in drawn_at if v > 0 or not is_log]
    if not values:
        return _empty(title)
    if ticks is None:
        ticks = log_ticks(min(values), max(values)) if is_log else nice_ticks(max(values))

    def drawn(width: float, height: float) -> str:
        x, y = _scales(frame, ticks, width, height, is_log=is_log)
        return _axes(frame, ticks, x, y, unit) + "".join(
            _curve(one, x, y, unit, frame.unit) for one in series
        )

    return _figure(title, drawn, _legend(series, frame), _HALF if is_half else _WIDE)


def layers(
    title: str, series: Sequence[Series], frame: Frame, *, unit: str, over: Sequence[Series] = ()
) -> str:
    """Stacked areas over time, with the lines ``over`` them. All layers have the same times."""
    moments = [at for at, _ in series[0].points] if series else []
    heights = [0.0] * len(moments)
    edges = [list(heights)]
    for one in series:
        heights = [height + (value or 0.0) for height, (_, value) in zip(heights, one.points, strict=True)]
        edges.append(heights)
    tops = heights + [value for line in over for _, value in line.points if value is not None]
    if not tops or max(tops) <= 0:
        return _empty(title)
    ticks = nice_ticks(max(tops))

    def drawn(width: float, height: float) -> str:
        x, y = _scales(frame, ticks, width, height, is_log=False)
        areas = [
            _layer(one, moments, lower, upper, x, y, unit)
            for one, lower, upper in zip(series, edges, edges[1:], strict=False)
        ]
        lines = [_curve(line, x, y, unit, frame.unit) for line in over]
        return _axes(frame, ticks, x, y, unit) + "".join(areas + lines)

    return _figure(title, drawn, _legend(series, frame, over), _WIDE)


def intervals(title: str, bars: Sequence[Bar], *, unit: str, is_log: bool = False) -> str:
    """Values with their intervals, one per row."""
    ends = [v for bar in bars for v in (bar.value, bar.low, bar.high) if v is not None and v > 0]
    if not ends:
        return _empty(title)
    ticks = log_ticks(min(ends), max(ends)) if is_log else nice_ticks(max(ends))
    row = 40.0

    def drawn(width: float, height: float) -> str:
        x = _Scale(ticks[0], ticks[-1], 26.0, width - 24.0, is_log)
        bottom = height - 34.0
        grid = "".join(f'<path class="grid" d="M{x(tick):.1f} 4V{bottom:.1f}"/>' for tick in ticks) + _labels(
            ticks, x, bottom + 16, unit
        )
        return grid + "".join(_bar(bar, x, 14 + row * index, unit) for index, bar in enumerate(bars))

    return _figure(title, drawn, "", _HALF, height=row * len(bars) + 44)


def _figure(
    title: str,
    drawn: Callable[[float, float], str],
    legend: str,
    wide: tuple[float, float],
    height: float | None = None,
) -> str:
    pictures = "".join(
        f'<svg class="{name}" viewBox="0 0 {width:g} {height or tall:g}" role="img" '
        f'aria-label="{escape(title)}">{drawn(width, height or tall)}</svg>'
        for name, (width, tall) in (("wide", wide), ("narrow", _NARROW))
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{pictures}{legend}</figure>\n"


def _empty(title: str) -> str:
    return f'<figure><figcaption>{escape(title)}</figcaption><p class="none">no data</p></figure>\n'


def _scales(
    frame: Frame, ticks: Sequence[float], width: float, height: float, *, is_log: bool
) -> tuple[_Scale, _Scale]:
    x = _Scale(0.0, frame.until_s, _LEFT, width - _RIGHT)
    return x, _Scale(ticks[0], ticks[-1], height - _BOTTOM, _TOP, is_log)


def _value(value: float, unit: str) -> str:
    return seconds(value) if unit == "s" else f"{amount(value)} {unit}".rstrip()


def _axes(frame: Frame, ticks: Sequence[float], x: _Scale, y: _Scale, unit: str) -> str:
    parts = [_band(band, index, x, y) for index, band in enumerate(frame.bands)]
    for tick in ticks:
        at = y(tick)
        label = seconds(tick) if unit == "s" else amount(tick)
        parts.append(f'<path class="grid" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>')
        parts.append(f'<text x="{x.start - 6:.1f}" y="{at + 4:.1f}" class="end">{label}</text>')
    times = nice_ticks(frame.until_s, max(int((x.end - x.start) / 80), 2))
    parts.append(_labels([t for t in times if t <= frame.until_s * (1 + 1e-9)], x, y.start + 16, ""))
    middle = (x.start + x.end) / 2
    parts.append(f'<text x="{middle:.1f}" y="{y.start + 32:.1f}" class="mid">{escape(frame.axis)}</text>')
    if unit != "s":
        parts.append(f'<text x="4" y="{y.end - 8:.1f}">{escape(unit)}</text>')
    parts += [_mark(mark, x, y, frame.unit) for mark in frame.marks]
    return "".join(parts)


def _labels(ticks: Sequence[float], x: _Scale, y: float, unit: str) -> str:
    """Labels below an axis, as many as fit."""
    written, free = [], -math.inf
    for tick in ticks:
        label = seconds(tick) if unit == "s" else amount(tick)
        half = len(label) * _LETTER / 2
        if x(tick) - half >= free:
            written.append(f'<text x="{x(tick):.1f}" y="{y:.1f}" class="mid">{label}</text>')
            free = x(tick) + half + 8
    return "".join(written)


def _band(band: Band, index: int, x: _Scale, y: _Scale) -> str:
    left, right = x(band.from_s), x(band.to_s)
    fits = int((right - left - 4) / _LETTER)
    name = band.name if len(band.name) <= fits else band.name[: max(fits - 1, 0)] + "…"
    label = f'<text x="{left + 3:.1f}" y="{y.end + 11:.1f}" class="band">{escape(name)}</text>'
    return (
        f'<rect class="band{index % 2}" x="{left:.1f}" y="{y.end:.1f}" width="{right - left:.1f}" '
        f'height="{y.start - y.end:.1f}">'
        f"<title>{escape(band.name)}: {band.from_s:g} to {band.to_s:g} s</title></rect>"
        f"{label if fits > 1 else ''}"
    )


def _mark(mark: Mark, x: _Scale, y: _Scale, unit: str) -> str:
    at = x(mark.at_s)
    return (
        f'<path class="mark" d="M{at:.1f} {y.start:.1f}V{y.end - 6:.1f}">'
        f"<title>{escape(mark.name)} at {mark.at_s:.1f} {escape(unit)}</title></path>"
        f'<path class="tip" d="M{at - 4:.1f} {y.end - 10:.1f}h8l-4 7z"/>'
    )


def _class(series: Series) -> str:
    return f"c{series.colour % COLOURS}"


def _dash(series: Series) -> str:
    dash = _DASHES[(series.dash + series.colour // COLOURS) % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _curve(series: Series, x: _Scale, y: _Scale, unit: str, along: str) -> str:
    """A curve. ``unit`` is that of its values, ``along`` that of the horizontal axis."""
    pieces, dots, is_down = [], [], False
    kind = "point" if series.ranges else "dot"
    for at, value in series.points:
        if value is None or (y.is_log and value <= 0):
            is_down = False
            continue
        place = f"{x(at):.1f} {y(value):.1f}"
        pieces.append(f"{'L' if is_down else 'M'}{place}")
        is_down = True
        title = f"{series.name}: {_value(value, unit)} at {at:.4g} {along}"
        dots.append(
            f'<circle class="{kind} {_class(series)}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="3">'
            f"<title>{escape(title)}</title></circle>"
        )
    return (
        f'<path class="line {_class(series)}" stroke-width="{series.width:g}"{_dash(series)} '
        f'd="{"".join(pieces)}"/>{_whiskers(series, x, y)}{"".join(dots)}'
    )


def _whiskers(series: Series, x: _Scale, y: _Scale) -> str:
    values = dict(series.points)
    parts = [
        f"M{x(at):.1f} {y(value):.1f}V{y(end):.1f}M{x(at) - 4:.1f} {y(end):.1f}h8"
        for at, *ends in series.ranges
        for end in ends
        if end is not None and (value := values.get(at)) is not None
    ]
    return f'<path class="line {_class(series)}" stroke-width="1" d="{"".join(parts)}"/>' if parts else ""


def _layer(
    series: Series,
    moments: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    x: _Scale,
    y: _Scale,
    unit: str,
) -> str:
    there = [f"{x(at):.1f} {y(value):.1f}" for at, value in zip(moments, upper, strict=True)]
    back = [f"{x(at):.1f} {y(value):.1f}" for at, value in zip(moments, lower, strict=True)]
    path = "M" + "L".join(there + back[::-1]) + "Z"
    width = (moments[1] - moments[0]) if len(moments) > 1 else 1.0
    hovers = "".join(
        f'<rect class="hover" x="{x(at - width / 2):.1f}" y="{y(top):.1f}" '
        f'width="{max(x(at + width / 2) - x(at - width / 2), 1):.1f}" height="{y(bottom) - y(top):.1f}">'
        f"<title>{escape(f'{series.name}: {_value(top - bottom, unit)} at {at:g} s')}</title></rect>"
        for at, bottom, top in zip(moments, lower, upper, strict=True)
        if top > bottom
    )
    return f'<path class="area {_class(series)}" d="{path}"/>{hovers}'


def _bar(bar: Bar, x: _Scale, y: float, unit: str) -> str:
    low = bar.low if bar.low is not None else bar.value
    high = bar.high if bar.high is not None else bar.value
    text = f"{bar.name}: {_value(bar.value, unit)}"
    if bar.note:
        text += f" ({bar.note})"
    colour = f"c{bar.colour % COLOURS}"
    return (
        f'<text x="12" y="{y:.1f}">{escape(text)}</text>'
        f'<path class="line {colour}" stroke-width="3" d="M{x(low):.1f} {y + 11:.1f}H{x(high):.1f}"/>'
        f'<circle class="point {colour}" cx="{x(bar.value):.1f}" cy="{y + 11:.1f}" r="5">'
        f"<title>{escape(text)}</title></circle>"
    )


def _legend(series: Sequence[Series], frame: Frame, over: Sequence[Series] | None = None) -> str:
    """The legend. ``over`` names the lines above areas."""
    items = [(_swatch(one, areas=over is not None), one.name) for one in series]
    items += [(_swatch(one, areas=False), one.name) for one in over or ()]
    if frame.marks:
        items.append(('<path class="tip" d="M6 1h10l-5 8z"/>', frame.marked))
    listed = "".join(
        f'<li><svg viewBox="0 0 22 10" aria-hidden="true">{drawn}</svg>{escape(name)}</li>'
        for drawn, name in items
    )
    return f'<ul class="legend">{listed}</ul>'


def _swatch(series: Series, *, areas: bool) -> str:
    if areas:
        return f'<rect class="area {_class(series)}" width="22" height="10"/>'
    return f'<path class="line {_class(series)}" stroke-width="{series.width:g}"{_dash(series)} d="M0 5H22"/>'
