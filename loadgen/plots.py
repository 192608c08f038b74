"""Plots as inline SVG: curves over time, stacked layers over time, and intervals. Pure; no asset, no script.

Each plot is drawn twice, for wide and narrow pages, because the letters of a scaled drawing are too small.
The style of the page shows one of the two. Colours are classes, which the page defines for light and dark
mode. Lines of one colour differ in their dashes. The label of a plot says its values in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

from loadgen.words import amount, name, seconds

COLOURS = 8
"""The number of colours in the page's style. Further series repeat them with dashes."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 12.0, 20.0, 40.0
_WIDE, _HALF, _NARROW = (1000.0, 290.0), (570.0, 260.0), (360.0, 250.0)
"""Widths and heights of plots: wide, half of a wide page, and narrow."""
_LETTER = 6.6
"""The approximate width of a letter."""
_DASHES = ("", "6 3", "2 3")
_MOST_HOVERS = 1500
"""A plot with more points shows the values of none, because each adds 130 bytes to the page."""
_MOST_POINTS, _MOST_MINOR_POINTS = 240, 60
"""The most points of a line. Of more, the extremes of each piece remain."""
_MOST_TOLD = 12
"""The most series that the label of a plot describes."""
_LEAST_CUT = 5
"""The fewest letters of the cut name of a phase; shorter ones say nothing."""
_TAIL = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)

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
    is_minor: bool = False
    """One of many: thin, without a colour, and without an entry of its own in the legend."""


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
    is_tail: bool = False
    """Whether the axis shows the shares of a distribution, with the tail stretched: see `tail_place`."""

    def told(self, at: float) -> str:
        """A place on the axis in words."""
        return f"{_share(1 - 10**-at)} {self.unit}" if self.is_tail else f"{at:.4g} {self.unit}"


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


def tail_place(share: float) -> float:
    """The place of a share below 1 on an axis with a stretched tail: 50 % at 0.3, 90 % at 1, 99 % at 2."""
    return -math.log10(1 - share)


def _share(share: float) -> str:
    return f"{100 * share:.6g} %"


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """At most so many points: the lowest and the highest value of each piece, in their order."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / (most // 2))
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        piece = points[start : start + size]
        known = [(value, index) for index, (_, value) in enumerate(piece) if value is not None]
        chosen = sorted({min(known)[1], max(known)[1]}) if known else [0]
        kept += [piece[index] for index in chosen]
    return kept


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
    lines = [
        replace(one, points=thinned(one.points, _MOST_MINOR_POINTS if one.is_minor else _MOST_POINTS))
        for one in series
    ]

    def drawn(width: float, height: float) -> str:
        x, y = _scales(frame, ticks, width, height, is_log=is_log)
        ordered = sorted(lines, key=lambda one: not one.is_minor)
        has_hovers = width > _NARROW[0] and sum(len(one.points) for one in lines) <= _MOST_HOVERS
        return _axes(frame, ticks, x, y, unit) + "".join(
            _curve(one, x, y, unit, frame if has_hovers else None) for one in ordered
        )

    told = _told(title, lines, unit)
    return _figure(title, drawn, _legend(lines, frame), _HALF if is_half else _WIDE, told)


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
        has_hovers = width > _NARROW[0] and len(series) * len(moments) <= _MOST_HOVERS
        areas = [
            _layer(one, moments, lower, upper, x, y, unit if has_hovers else None)
            for one, lower, upper in zip(series, edges, edges[1:], strict=False)
        ]
        lines = [_curve(line, x, y, unit, frame if has_hovers else None) for line in over]
        return _axes(frame, ticks, x, y, unit) + "".join(areas + lines)

    told = _told(title, [*series, *over], unit)
    return _figure(title, drawn, _legend(series, frame, over), _WIDE, told)


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

    told = "; ".join([title, *(f"{bar.name}: {_value(bar.value, unit)} {bar.note}".rstrip() for bar in bars)])
    return _figure(title, drawn, "", _HALF, told, height=row * len(bars) + 44)


def _figure(
    title: str,
    drawn: Callable[[float, float], str],
    legend: str,
    wide: tuple[float, float],
    told: str,
    height: float | None = None,
) -> str:
    pictures = "".join(
        f'<svg class="{size}" viewBox="0 0 {width:g} {height or tall:g}" role="img" '
        f'aria-label="{escape(told)}">{drawn(width, height or tall)}</svg>'
        for size, (width, tall) in (("wide", wide), ("narrow", _NARROW))
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{pictures}{legend}</figure>\n"


def _told(title: str, series: Sequence[Series], unit: str) -> str:
    """The content of a plot in words: the range of each series."""
    parts = [title]
    for one in series[:_MOST_TOLD]:
        values = [value for _, value in one.points if value is not None]
        if values:
            low, high = _value(min(values), unit), _value(max(values), unit)
            parts.append(f"{one.name}: {low if low == high else f'{low} to {high}'}")
    if (more := len(series) - _MOST_TOLD) > 0:
        parts.append(f"and {more} more")
    return "; ".join(parts)


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
    parts.append(_times(frame, x, y))
    middle = (x.start + x.end) / 2
    parts.append(f'<text x="{middle:.1f}" y="{y.start + 32:.1f}" class="mid">{escape(frame.axis)}</text>')
    if unit != "s":
        parts.append(f'<text x="4" y="{y.end - 8:.1f}">{escape(unit)}</text>')
    parts += [_mark(mark, x, y, frame.unit) for mark in frame.marks]
    return "".join(parts)


def _times(frame: Frame, x: _Scale, y: _Scale) -> str:
    """The labels of the horizontal axis."""
    if frame.is_tail:
        places = [(tail_place(share), _share(share)) for share in _TAIL]
        shown = [(at, label) for at, label in places if at <= frame.until_s]
        lines = "".join(f'<path class="grid" d="M{x(at):.1f} {y.start:.1f}V{y.end:.1f}"/>' for at, _ in shown)
        return lines + _written(shown, x, y.start + 16)
    times = nice_ticks(frame.until_s, max(int((x.end - x.start) / 80), 2))
    return _labels([t for t in times if t <= frame.until_s * (1 + 1e-9)], x, y.start + 16, "")


def _labels(ticks: Sequence[float], x: _Scale, y: float, unit: str) -> str:
    """Numbers below an axis, as many as fit."""
    return _written([(tick, seconds(tick) if unit == "s" else amount(tick)) for tick in ticks], x, y)


def _written(labels: Sequence[tuple[float, str]], x: _Scale, y: float) -> str:
    written, free = [], -math.inf
    for tick, label in labels:
        half = len(label) * _LETTER / 2
        if x(tick) - half >= free:
            written.append(f'<text x="{x(tick):.1f}" y="{y:.1f}" class="mid">{label}</text>')
            free = x(tick) + half + 8
    return "".join(written)


def _band(band: Band, index: int, x: _Scale, y: _Scale) -> str:
    left, right = x(band.from_s), x(band.to_s)
    fits = int((right - left - 4) / _LETTER)
    cut = band.name if len(band.name) <= fits else f"{band.name[: max(fits - 1, 0)]}…"
    label = f'<text x="{left + 3:.1f}" y="{y.end + 11:.1f}" class="band">{escape(cut)}</text>'
    return (
        f'<rect class="band{index % 2}" x="{left:.1f}" y="{y.end:.1f}" width="{right - left:.1f}" '
        f'height="{y.start - y.end:.1f}">'
        f"<title>{escape(band.name)}: {band.from_s:g} to {band.to_s:g} s</title></rect>"
        f"{label if fits >= min(len(band.name), _LEAST_CUT) else ''}"
    )


def _mark(mark: Mark, x: _Scale, y: _Scale, unit: str) -> str:
    at = x(mark.at_s)
    return (
        f'<path class="mark" d="M{at:.1f} {y.start:.1f}V{y.end - 6:.1f}">'
        f"<title>{escape(mark.name)} at {mark.at_s:.1f} {escape(unit)}</title></path>"
        f'<path class="tip" d="M{at - 4:.1f} {y.end - 10:.1f}h8l-4 7z"/>'
    )


def _class(series: Series) -> str:
    return "minor" if series.is_minor else f"c{series.colour % COLOURS}"


def _dash(series: Series) -> str:
    if series.is_minor:
        return ""
    dash = _DASHES[(series.dash + series.colour // COLOURS) % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _curve(series: Series, x: _Scale, y: _Scale, unit: str, frame: Frame | None) -> str:
    """A curve. ``unit`` is that of its values. Without a frame, only the curve has a name, not its points.

    A point without neighbours would have no line, so it is a visible dot.
    """
    places = [
        None if value is None or (y.is_log and value <= 0) else (at, value) for at, value in series.points
    ]
    pieces, dots = [], []
    for before, place, after in zip([None, *places], places, [*places[1:], None], strict=False):
        if place is None:
            continue
        at, value = place
        pieces.append(f"{'M' if before is None else 'L'}{x(at):.1f} {y(value):.1f}")
        is_shown = bool(series.ranges) or (before is None and after is None)
        if is_shown or (frame is not None and not series.is_minor):
            title = f"{series.name}: {_value(value, unit)}{f' at {frame.told(at)}' if frame else ''}"
            dots.append(
                f'<circle class="{"point" if is_shown else "dot"} {_class(series)}" cx="{x(at):.1f}" '
                f'cy="{y(value):.1f}" r="3"><title>{escape(title)}</title></circle>'
            )
    width = 1.0 if series.is_minor else series.width
    return (
        f'<path class="line {_class(series)}" stroke-width="{width:g}"{_dash(series)} d="{"".join(pieces)}">'
        f"<title>{escape(series.name)}</title></path>{_whiskers(series, x, y)}{''.join(dots)}"
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
    unit: str | None,
) -> str:
    """An area of steps, so that a single window has a width. Without a unit, windows have no values."""
    half = (moments[1] - moments[0]) / 2 if len(moments) > 1 else 0.5
    path = f"M{_steps(moments, upper, half, x, y)}L{_steps(moments[::-1], lower[::-1], -half, x, y)}Z"
    hovers = "".join(
        f'<rect class="hover" x="{x(at - half):.1f}" y="{y(top):.1f}" '
        f'width="{max(x(at + half) - x(at - half), 1):.1f}" height="{y(bottom) - y(top):.1f}">'
        f"<title>{escape(f'{series.name}: {_value(top - bottom, unit)} at {at:g} s')}</title></rect>"
        for at, bottom, top in zip(moments, lower, upper, strict=True)
        if unit is not None and top > bottom
    )
    title = f"<title>{escape(series.name)}</title>"
    return f'<path class="area {_class(series)}" d="{path}">{title}</path>{hovers}'


def _steps(moments: Sequence[float], values: Sequence[float], half: float, x: _Scale, y: _Scale) -> str:
    """A line of steps from ``half`` before each moment to ``half`` after it."""
    return "L".join(
        f"{x(at - half):.1f} {y(value):.1f}H{x(at + half):.1f}"
        for at, value in zip(moments, values, strict=True)
    )


def _bar(bar: Bar, x: _Scale, y: float, unit: str) -> str:
    low = bar.low if bar.low is not None else bar.value
    high = bar.high if bar.high is not None else bar.value
    text = f"{bar.name}: {_value(bar.value, unit)}"
    if bar.note:
        text += f" ({bar.note})"
    most = int((x.end - 12) / _LETTER)
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    colour = f"c{bar.colour % COLOURS}"
    return (
        f'<text x="12" y="{y:.1f}">{escape(shown)}</text>'
        f'<path class="line {colour}" stroke-width="3" d="M{x(low):.1f} {y + 11:.1f}H{x(high):.1f}"/>'
        f'<circle class="point {colour}" cx="{x(bar.value):.1f}" cy="{y + 11:.1f}" r="5">'
        f"<title>{escape(text)}</title></circle>"
    )


def _legend(series: Sequence[Series], frame: Frame, over: Sequence[Series] | None = None) -> str:
    """The legend. ``over`` names the lines above areas."""
    named = [one for one in series if not one.is_minor]
    items = [(_swatch(one, areas=over is not None), one.name) for one in named]
    if minor := [one for one in series if one.is_minor]:
        items.append((_swatch(minor[0], areas=False), f"{len(minor)} others"))
    items += [(_swatch(one, areas=False), one.name) for one in over or ()]
    if frame.marks:
        items.append(('<path class="tip" d="M6 1h10l-5 8z"/>', frame.marked))
    listed = "".join(
        f'<li><svg viewBox="0 0 22 10" aria-hidden="true">{drawn}</svg>{escape(name(said))}</li>'
        for drawn, said in items
    )
    return f'<ul class="legend">{listed}</ul>'


def _swatch(series: Series, *, areas: bool) -> str:
    if areas:
        return f'<rect class="area {_class(series)}" width="22" height="10"/>'
    return f'<path class="line {_class(series)}" stroke-width="{series.width:g}"{_dash(series)} d="M0 5H22"/>'
