"""The knee of a rate-latency curve. Pure.

The knee is the rate with the largest power: served requests per second, divided by their mean latency
(Kleinrock, 1979). Below it, a higher rate costs little latency; above it, latency grows faster than the rate.
A line from the origin touches the curve of latency over rate there. Only rates that the server keeps up with,
below the first that it does not keep up with, take part. A run in which the generator did not keep up says
nothing about the server. It is left out, unless there is no other at a higher rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadgen.rates.points import Point, rate_text


class Knee(msgspec.Struct, frozen=True):
    """The knee, and the limit of what the server keeps up with. Rates are requests per second."""

    at: float | None
    """``None`` if the server kept up with no rate."""
    low: float | None
    """The lowest and the highest rate whose power differs from that of the knee by no more than chance.

    ``None`` if the runs are too short for the interval of a power.
    """
    high: float | None
    keeps_up_to: float | None
    """The highest rate below the first that was not kept up with."""
    fails_at: float | None
    """The lowest rate that was not kept up with; ``None`` if there is none."""
    fails_by: str
    """The reason, as in `Point.obstacle`."""
    is_open: bool
    """Whether the knee may lie above the highest rate."""


def ascending(points: Sequence[Point]) -> list[Point]:
    """The points by rate."""
    return sorted(points, key=lambda point: point.rate)


def telling(points: Sequence[Point]) -> list[Point]:
    """The points by rate, without unreliable ones that have a reliable one above them."""
    found = ascending(points)
    highest = max((index for index, point in enumerate(found) if point.is_reliable), default=-1)
    return [point for index, point in enumerate(found) if point.is_reliable or index > highest]


def sustained(points: Sequence[Point]) -> list[Point]:
    """The points below the first rate that was not kept up with, by rate."""
    found: list[Point] = []
    for point in telling(points):
        if not point.keeps_up:
            break
        found.append(point)
    return found


def find(points: Sequence[Point]) -> Knee:
    """The knee of a curve."""
    kept = sustained(points)
    failed = next((point for point in telling(points) if not point.keeps_up), None)
    fails_at, fails_by = (failed.rate, failed.obstacle) if failed is not None else (None, "")
    able = [point for point in kept if point.power is not None]
    if not able:
        return Knee(None, None, None, None, fails_at, fails_by, False)
    best = max(able, key=_power)
    index = able.index(best)
    is_open = fails_at is None and index == len(able) - 1
    return Knee(best.rate, *_within_chance(able, index), kept[-1].rate, fails_at, fails_by, is_open)


def _within_chance(able: Sequence[Point], index: int) -> tuple[float | None, float | None]:
    """The rates around the knee whose intervals of power overlap with the knee's."""
    best = able[index].power
    if best is None or best.low is None:
        return None, None
    ends = []
    for step in (-1, 1):
        end = index
        while 0 <= end + step < len(able):
            other = able[end + step].power
            if other is None or other.high is None:
                return None, None
            if other.high < best.low:
                break
            end += step
        ends.append(able[end].rate)
    return ends[0], ends[1]


def _power(point: Point) -> float:
    return point.power.value if point.power is not None else 0.0


def told(knee: Knee) -> list[str]:
    """The knee in sentences."""
    if knee.at is None:
        lowest = f", {rate_text(knee.fails_at)} ({knee.fails_by})" if knee.fails_at is not None else ""
        return [f"The knee is below the lowest rate{lowest}. Give lower --rates."]
    if knee.is_open:
        return [f"The curve has no knee up to {rate_text(knee.at)}, its highest rate. Give higher --rates."]
    lines = [
        f"The knee is at {rate_text(knee.at)}: there, served requests per second / mean latency is largest."
    ]
    if knee.low is None or knee.high is None:
        lines.append("The runs are too short to say how much of this is chance. Give a longer --duration.")
    elif knee.low != knee.high:
        ends = f"{rate_text(knee.low)} to {rate_text(knee.high)}"
        lines.append(f"From {ends}, this number differs by no more than chance.")
    limit = f"The server keeps up with {rate_text(knee.keeps_up_to)}" if knee.keeps_up_to is not None else ""
    if knee.fails_at is not None:
        limit += f", and not with {rate_text(knee.fails_at)} ({knee.fails_by})"
    return [*lines, f"{limit}."]
