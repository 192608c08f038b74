"""Recent changes: rates and means from the totals and gauges of consecutive snapshots. Pure.

A sidecar may restart, reconnect or omit entitlements from its report. None of that causes a false rate.
Work and memory are proportional to the entitlements that changed within the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from dashboard.snapshot import FirstTokens, ShownPool, Tally, Vector

WINDOW_S = 5.0
"""Rates are means over this time, so that one shed every two seconds shows as a steady rate."""
USE_WINDOW_S = 2.0
"""KV tokens and sequences in use are means over the snapshots within this time. In one single snapshot an
entitlement that is shed at its limit may have nothing in use."""
QUANTILE = 0.95

IDLE = (0.0, 0.0)
_TOKENS = ""
"""The key of throughput tokens. Other texts are outcomes; numbers are buckets of times to first token."""
_SECONDS = -1
"""The key of the sum of the times to first token, in seconds."""
_NOTHING = 1e-6
"""A sum below this is a rounding error: all its parts have been subtracted."""

_Key = str | int
_Added = dict[str, dict[_Key, float]]
"""Numbers by entitlement, then by key: an outcome, a bucket, ``_TOKENS`` or ``_SECONDS``."""


class Recent:
    """The increase of one pool's totals within the last ``WINDOW_S`` seconds."""

    def __init__(self) -> None:
        self._totals: dict[str, dict[str, Mapping[str, int]]] = {}
        """The last totals by sidecar. Totals that a report omits are kept."""
        self._firsts: dict[str, dict[str, FirstTokens]] = {}
        """The same for times to first token."""
        self._bounds: Sequence[float] = ()
        self._spent: dict[str, float] = {}
        self._at: float | None = None
        self._steps: deque[tuple[float, float, _Added]] = deque()
        """Start, end and increase of each step."""
        self._sums: _Added = {}
        """The increase over all steps, of entitlements that have one."""

    def follow(
        self, tallies: Mapping[str, Tally], spent: Mapping[str, float], now: float, *, from_zero: bool = False
    ) -> None:
        """Use the totals of the next snapshot. ``spent`` has throughput tokens by entitlement.

        ``from_zero``: in every snapshot but the first, ``spent`` of a new name began at 0. Without it, the
        start of a new name's total is unknown, so its first value counts as no increase.
        """
        added: _Added = {}
        known, self._totals = self._totals, {}
        firsts, self._firsts = self._firsts, {}
        for sidecar, tally in tallies.items():
            self._totals[sidecar] = _count(tally, known.get(sidecar), added)
            self._firsts[sidecar] = self._count_firsts(tally, firsts.get(sidecar), added)
        is_first = self._at is None
        for name, total in spent.items():
            before = self._spent.get(name)
            if before is None:
                before = 0.0 if from_zero and not is_first else total
            # Refunds reduce a total slightly. A total that fell by more than half was reset.
            if total != before and total >= before / 2:
                _add(added, name, _TOKENS, total - before)
            self._spent[name] = total
        since, self._at = self._at, now
        if since is not None:
            self._steps.append((since, now, added))
            self._move(added, 1)
        while self._steps and self._steps[0][1] <= now - WINDOW_S:
            self._move(self._steps.popleft()[2], -1)

    def _count_firsts(
        self, tally: Tally, known: dict[str, FirstTokens] | None, added: _Added
    ) -> dict[str, FirstTokens]:
        """Add the times to first token of one sidecar, by the rules of ``_count``."""
        remembered = known if known is not None else {}
        if tally.first_tokens:
            self._bounds = tally.bounds_s
        for name, (seconds, counts) in tally.first_tokens.items():
            before = remembered.get(name)
            remembered[name] = (seconds, counts)
            if before is None:
                if known is None or not tally.has_all_first_tokens:
                    continue
                before = (0.0, ())
            elif before[0] > seconds or len(before[1]) != len(counts):
                before = (0.0, ())  # the sidecar restarted
            if before[1] == counts:
                continue
            _add(added, name, _SECONDS, seconds - before[0])
            for place, count in enumerate(counts):
                gained = count - before[1][place] if before[1] else count
                if gained:
                    _add(added, name, place, gained)
        return remembered

    def _move(self, added: _Added, sign: int) -> None:
        for name, parts in added.items():
            sums = self._sums.setdefault(name, {})
            for key, count in parts.items():
                total = sums.get(key, 0.0) + sign * count
                if abs(total) < _NOTHING:
                    sums.pop(key, None)
                else:
                    sums[key] = total
            if not sums:
                del self._sums[name]

    @property
    def elapsed_s(self) -> float:
        """The duration of all steps together, in seconds; 0 after the first snapshot."""
        return self._steps[-1][1] - self._steps[0][0] if self._steps else 0.0

    def tokens_per_s(self, name: str) -> float | None:
        """The throughput of an entitlement, in tokens/s; ``None`` before the second snapshot."""
        elapsed = self.elapsed_s
        if not elapsed:
            return None
        sums = self._sums.get(name)
        return max(sums.get(_TOKENS, 0.0), 0.0) / elapsed if sums else 0.0

    def per_s(self) -> dict[str, dict[str, float]]:
        """Requests per second by entitlement and outcome; rates of 0 are left out."""
        rates: dict[str, dict[str, float]] = {}
        elapsed = self.elapsed_s
        if not elapsed:
            return rates
        for name, sums in self._sums.items():
            of = {key: n / elapsed for key, n in sums.items() if isinstance(key, str) and key != _TOKENS}
            if of:
                rates[name] = of
        return rates

    def first_token_s(self, name: str) -> tuple[float, float] | None:
        """Mean and approximate 95th percentile of the times to first token, in seconds; ``None``: none."""
        sums = self._sums.get(name)
        if not sums or _SECONDS not in sums:
            return None
        counts = [sums.get(place, 0.0) for place in range(len(self._bounds) + 1)]
        number = sum(counts)
        if number < 0.5:
            return None
        mean = max(sums[_SECONDS], 0.0) / number
        return mean, quantile(counts, self._bounds, mean)

    def active(self) -> set[str]:
        """The entitlements of which a total rose within the window."""
        return set(self._sums)


def quantile(counts: Sequence[float], bounds: Sequence[float], mean: float) -> float:
    """The ``QUANTILE`` of a histogram, interpolated linearly within its bucket.

    If all values are in one bucket, the result is the mean, which is more accurate. Beyond the last bound the
    result is that bound or the mean, whichever is larger.
    """
    rank, below = QUANTILE * sum(counts), 0.0
    for place, bound in enumerate(bounds):
        inside = counts[place]
        if below + inside >= rank and inside:
            if inside == sum(counts):
                return mean
            low = bounds[place - 1] if place else 0.0
            return low + (bound - low) * (rank - below) / inside
        below += inside
    return max(bounds[-1], mean) if bounds else mean


class UseMeans:
    """KV tokens and sequences in use over the last ``USE_WINDOW_S`` seconds, by entitlement and in all."""

    def __init__(self) -> None:
        self._snapshots: deque[tuple[float, dict[str | None, Vector]]] = deque()
        """The time and the amounts in use by entitlement; the key ``None`` is the whole pool."""

    def follow(self, pool: ShownPool, now: float) -> None:
        """Use the gauges of the next snapshot."""
        seen: dict[str | None, Vector] = {None: pool.in_use}
        for entitlement in pool.entitlements:
            if entitlement.in_use[1:] != IDLE:
                seen[entitlement.name] = entitlement.in_use
        self._snapshots.append((now, seen))
        while self._snapshots[0][0] <= now - USE_WINDOW_S:
            self._snapshots.popleft()

    def means(self) -> dict[str | None, tuple[float, float]]:
        """Mean KV tokens and sequences, of the entitlements that had any in use."""
        sums: dict[str | None, tuple[float, float]] = {}
        for _, seen in self._snapshots:
            for name, (_, kv_tokens, concurrency) in seen.items():
                a, b = sums.get(name, IDLE)
                sums[name] = a + (kv_tokens or 0.0), b + (concurrency or 0.0)
        snapshots = len(self._snapshots)
        return {name: (a / snapshots, b / snapshots) for name, (a, b) in sums.items()}


def _add(added: _Added, name: str, key: _Key, count: float) -> None:
    parts = added.setdefault(name, {})
    parts[key] = parts.get(key, 0.0) + count


def _count(
    tally: Tally, known: dict[str, Mapping[str, int]] | None, added: _Added
) -> dict[str, Mapping[str, int]]:
    """Add the increase of one sidecar's counts since the last snapshot. Returns the totals to keep.

    The first totals of a new sidecar count as no increase, because their start is unknown.
    """
    remembered = known if known is not None else {}
    for name, counts in tally.outcomes.items():
        before = remembered.get(name)
        if before is None:
            # First named now. Its counts began at 0 if the sidecar names every entitlement with counts.
            before = {} if known is not None and tally.is_whole else counts
        remembered[name] = counts
        if counts == before:
            continue
        for outcome, total in counts.items():
            then = before.get(outcome, 0)
            # A total that fell was reset.
            gained = total - then if total >= then else total
            if gained:
                _add(added, name, outcome, gained)
    return remembered
