"""History: the last five minutes of pools and entitlements, in buckets of two seconds. Pure and bounded.

A line begins when its name is first active. It is dropped after five idle minutes. At most ``MOST_LINES``
lines are kept, of 2.4 kB each. A new line replaces the one that has been idle longest.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

BUCKET_S = 2.0
BUCKETS = 150
MOST_LINES = 400
_LARGEST = 2**31 - 1
"""The largest number that an item of an array holds."""


class Line:
    """The buckets of one name: rings of whole numbers, one ring for each series."""

    __slots__ = ("born", "last", "rings")

    def __init__(self, series: int, bucket: int) -> None:
        self.rings = tuple(array("i", bytes(4 * BUCKETS)) for _ in range(series))
        self.born = bucket
        self.last = bucket
        """The last bucket in which the name was active."""


class History:
    """The lines of one pool. A name has zeros in a bucket whose points do not include it."""

    def __init__(self, series: int, most: int = MOST_LINES) -> None:
        self._series = series
        self._most = most
        self._lines: dict[str, Line] = {}
        self._bucket: int | None = None

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, bucket: int, points: Mapping[str, Sequence[float]]) -> None:
        """Add one bucket. Buckets that were skipped since the last call get the same values.

        The values are means over the time since the last call. A busy process may skip buckets.
        """
        since = bucket - 1 if self._bucket is None else max(self._bucket, bucket - BUCKETS)
        self._bucket = bucket
        for name in [n for n, line in self._lines.items() if bucket - line.last >= BUCKETS]:
            del self._lines[name]
        places = [number % BUCKETS for number in range(since + 1, bucket + 1)]
        nothing = (0.0,) * self._series
        for name in points.keys() & self._lines.keys():
            self._lines[name].last = bucket
        for name in points.keys() - self._lines.keys():
            self._new(name, bucket)
        for name, line in self._lines.items():
            values = points.get(name)
            for ring, value in zip(line.rings, values or nothing, strict=True):
                for place in places:
                    ring[place] = min(round(value), _LARGEST)

    def _new(self, name: str, bucket: int) -> None:
        if len(self._lines) >= self._most:
            longest_idle = min(self._lines, key=lambda each: self._lines[each].last)
            if self._lines[longest_idle].last == bucket:
                return  # every kept line is active
            del self._lines[longest_idle]
        self._lines[name] = Line(self._series, bucket)

    def has(self, name: str) -> bool:
        """Whether a name has a line."""
        return name in self._lines

    def of(self, name: str) -> list[list[int]]:
        """The series of a name, oldest first, up to the last bucket; at most ``BUCKETS`` numbers each."""
        line = self._lines.get(name)
        if line is None or self._bucket is None:
            return []
        length = min(self._bucket - line.born + 1, BUCKETS)
        after = self._bucket % BUCKETS + 1
        return [(ring[after:] + ring[:after]).tolist()[-length:] for ring in line.rings]
