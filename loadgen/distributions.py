"""The distribution of each latency: a curve for each tenant, with the tail stretched. Pure.

The horizontal axis is the share of the requests, so that a tail of one request in a thousand has as much room
as the median. The last point is the slowest request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from loadgen.latencies import Latencies, Timed
from loadgen.plots import Frame, Series, curves, tail_place
from loadgen.records import Meta
from loadgen.statistics import percentile
from loadgen.summary import spans

_READ: dict[str, Callable[[Latencies], Timed]] = {
    "Time to first token": lambda made: made.ttft,
    "Time per output token": lambda made: made.tpot,
    "End to end": lambda made: made.e2e,
}
_AXIS = "requests that are faster"


def figures(meta: Meta, made: Mapping[str, Latencies], chosen: Sequence[str]) -> list[str]:
    """A plot for each latency that has values. Tenants that are not ``chosen`` have thin lines."""
    whole = spans(meta)[0]
    found = []
    for title, read in _READ.items():
        kept = {
            name: sorted(value for due, value in read(one) if whole.from_s <= due < whole.to_s)
            for name, one in made.items()
        }
        if any(kept.values()):
            found.append(_figure(title, kept, chosen))
    return found


def _figure(title: str, kept: Mapping[str, Sequence[float]], chosen: Sequence[str]) -> str:
    series = [
        Series(name, tail(values), index, width=1.5, is_minor=name not in chosen)
        for index, (name, values) in enumerate(kept.items())
        if values
    ]
    until = max(one.points[-1][0] for one in series)
    frame = Frame(max(until, tail_place(0.9)), axis=_AXIS, unit="of the requests", is_tail=True)
    return curves(title, series, frame, unit="s", is_log=True, is_half=True)


def tail(ordered: Sequence[float]) -> list[tuple[float, float | None]]:
    """The curve of ordered values, which are not empty: 0 to 90 %, then ten points for each further nine."""
    count = len(ordered)
    last = count / (count + 1)
    shares = [share for share in _shares(count) if share < last]
    return [
        *((tail_place(share), percentile(ordered, share)) for share in shares),
        (tail_place(last), ordered[-1]),
    ]


def _shares(count: int) -> Iterable[float]:
    if count > 1:
        yield from (tenth / 20 for tenth in range(18))
    part = 0.1
    while part * count > 1:
        yield from (1 - part * (10 - step) / 10 for step in range(9))
        part /= 10
