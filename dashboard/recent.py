"""Recent changes: totals and gauges of one look after another, as rates and means. Pure.

A sidecar that restarts, comes back or leaves entitlements out of its report makes no rate that never was.
Work and memory follow the entitlements that changed within the window, not those that exist.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from dashboard.snapshot import FirstTokens, PoolLook, Tally, Vector

WINDOW_S = 5.0
"""Rates are means over this time: sheds that come once in two seconds do not flicker."""
USE_WINDOW_S = 2.0
"""KV tokens and sequences in use are means of the looks within this time: at the moment of one look an
entitlement that is being shed at its limit may have nothing in use."""
QUANTILE = 0.95

IDLE = (0.0, 0.0)
_TOKENS = ""
"""In the place of an outcome: throughput tokens. A number there is a bucket of times to first token."""
_SECONDS = -1
"""In the place of a bucket: the sum of the times to first token."""
_NOTHING = 1e-6
"""The rounding error that is left of a sum of which all parts were taken away."""

_Key = str | int
_Added = dict[str, dict[_Key, float]]
"""By entitlement, then by outcome, bucket or what stands in its place."""


class Recent:
    """What was added to one pool's totals within the last ``WINDOW_S`` seconds."""

    def __init__(self) -> None:
        self._totals: dict[str, dict[str, Mapping[str, int]]] = {}
        """As last said, by sidecar; what a sidecar leaves out for a while is remembered."""
        self._firsts: dict[str, dict[str, FirstTokens]] = {}
        """The same of times to first token."""
        self._bounds: Sequence[float] = ()
        self._spent: dict[str, float] = {}
        self._at: float | None = None
        self._steps: deque[tuple[float, float, _Added]] = deque()
        """From when to when, and what was added."""
        self._sums: _Added = {}
        """Over all steps: only of entitlements that have any."""

    def follow(
        self, tallies: Mapping[str, Tally], spent: Mapping[str, float], now: float, *, from_zero: bool = False
    ) -> None:
        """Take one more look at the totals; ``spent`` is throughput tokens by entitlement.

        ``from_zero``: after the first look, ``spent`` of a new name began at 0; otherwise nobody knows where.
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
            # Refunds take a little off again; a total that lost half of itself has begun anew.
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
        """Add the times to first token of one sidecar; as ``_count`` does it for outcomes."""
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
                before = (0.0, ())  # begun anew
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
        """How long the steps are together; 0 after the first look."""
        return self._steps[-1][1] - self._steps[0][0] if self._steps else 0.0

    def tokens_per_s(self, name: str) -> float | None:
        """What an entitlement spends, in tokens/s; ``None`` before two looks were taken."""
        elapsed = self.elapsed_s
        if not elapsed:
            return None
        sums = self._sums.get(name)
        return max(sums.get(_TOKENS, 0.0), 0.0) / elapsed if sums else 0.0

    def per_s(self) -> dict[str, dict[str, float]]:
        """Requests per second by entitlement and outcome: those that there were."""
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
        """Mean and approximate 95th percentile of the times to first token; ``None``: there were none."""
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
        """The entitlements to which anything was added within the window."""
        return set(self._sums)


def quantile(counts: Sequence[float], bounds: Sequence[float], mean: float) -> float:
    """The ``QUANTILE`` of a histogram, by a straight line within the bucket where it falls.

    Where all values are in one bucket its mean is the better answer. Beyond the last bound nothing is known:
    that bound.
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


class Held:
    """What one pool's entitlements, and all together, had in use within the last ``USE_WINDOW_S`` seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[str | None, Vector]]] = deque()
        """When, and who had what; ``None`` stands for all together."""

    def follow(self, pool: PoolLook, now: float) -> None:
        """Take one more look at the gauges."""
        seen: dict[str | None, Vector] = {None: pool.in_use}
        for entitlement in pool.entitlements:
            if entitlement.in_use[1:] != IDLE:
                seen[entitlement.name] = entitlement.in_use
        self._looks.append((now, seen))
        while self._looks[0][0] <= now - USE_WINDOW_S:
            self._looks.popleft()

    def means(self) -> dict[str | None, tuple[float, float]]:
        """KV tokens and sequences of those that had any."""
        sums: dict[str | None, tuple[float, float]] = {}
        for _, seen in self._looks:
            for name, (_, kv_tokens, concurrency) in seen.items():
                a, b = sums.get(name, IDLE)
                sums[name] = a + (kv_tokens or 0.0), b + (concurrency or 0.0)
        looks = len(self._looks)
        return {name: (a / looks, b / looks) for name, (a, b) in sums.items()}


def _add(added: _Added, name: str, key: _Key, count: float) -> None:
    parts = added.setdefault(name, {})
    parts[key] = parts.get(key, 0.0) + count


def _count(
    tally: Tally, known: dict[str, Mapping[str, int]] | None, added: _Added
) -> dict[str, Mapping[str, int]]:
    """Add what one sidecar counted since it was looked at last. Of one that is new, nothing: when was it?

    Returns the totals to remember of it.
    """
    remembered = known if known is not None else {}
    for name, counts in tally.outcomes.items():
        before = remembered.get(name)
        if before is None:
            # Never named before: it had none, if all that had any were named.
            before = {} if known is not None and tally.is_whole else counts
        remembered[name] = counts
        if counts == before:
            continue
        for outcome, total in counts.items():
            then = before.get(outcome, 0)
            # A total that fell has begun anew.
            gained = total - then if total >= then else total
            if gained:
                _add(added, name, outcome, gained)
    return remembered
