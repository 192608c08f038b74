"""What was of late: totals and gauges of one look after another, as rates and means. Pure.

A sidecar that restarts, comes back or leaves entitlements out of its report makes no rate that never was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from service.live.look import PoolLook, Tally, Vector

WINDOW_S = 5.0
"""Rates are means over so long: sheds that come one in two seconds do not flicker."""
USE_WINDOW_S = 2.0
"""KV tokens and sequences in use are means of the looks over so long: at the moment of one look an
entitlement that is being shed at its limit may have just nothing in use."""

IDLE = (0.0, 0.0)
_TOKENS = ""
"""In the place of an outcome: throughput tokens."""
_NOTHING = 1e-6
"""What is left of a sum of which all parts were taken away."""


class Recent:
    """What was added to one pool's totals within the last ``WINDOW_S`` seconds."""

    def __init__(self) -> None:
        self._totals: dict[str, dict[str, Mapping[str, int]]] = {}
        """As last said, by sidecar; what a sidecar leaves out for a while is remembered."""
        self._spent: dict[str, float] = {}
        self._at: float | None = None
        self._steps: deque[tuple[float, float, dict[tuple[str, str], float]]] = deque()
        """From when to when, and what was added."""
        self._sums: dict[tuple[str, str], float] = {}
        """Over all steps."""

    def follow(self, tallies: Mapping[str, Tally], spent: Mapping[str, float], now: float) -> None:
        """Take one more look at the totals; ``spent`` is throughput tokens by entitlement."""
        added: dict[tuple[str, str], float] = {}
        known, self._totals = self._totals, {}
        for sidecar, tally in tallies.items():
            self._totals[sidecar] = _count(tally, known.get(sidecar), added)
        for name, total in spent.items():
            before = self._spent.get(name, total)
            # Refunds take a little off again; a total that lost half of itself has begun anew.
            if total != before and total >= before / 2:
                added[name, _TOKENS] = total - before
        self._spent = dict(spent)
        since, self._at = self._at, now
        if since is not None:
            self._steps.append((since, now, added))
            self._move(added, 1)
        while self._steps and self._steps[0][1] <= now - WINDOW_S:
            self._move(self._steps.popleft()[2], -1)

    def _move(self, added: Mapping[tuple[str, str], float], sign: int) -> None:
        for key, count in added.items():
            total = self._sums.get(key, 0.0) + sign * count
            if abs(total) < _NOTHING:
                self._sums.pop(key, None)
            else:
                self._sums[key] = total

    @property
    def elapsed_s(self) -> float:
        """How long the steps are together; 0 after the first look."""
        return self._steps[-1][1] - self._steps[0][0] if self._steps else 0.0

    def tokens_per_s(self, name: str) -> float | None:
        """What an entitlement spends, in tokens/s; ``None`` before two looks were taken."""
        elapsed = self.elapsed_s
        return max(self._sums.get((name, _TOKENS), 0.0), 0.0) / elapsed if elapsed else None

    def per_s(self) -> dict[str, dict[str, float]]:
        """Requests per second by entitlement and outcome: those that there were."""
        rates: dict[str, dict[str, float]] = {}
        elapsed = self.elapsed_s
        for (name, outcome), count in self._sums.items():
            if elapsed and outcome != _TOKENS:
                rates.setdefault(name, {})[outcome] = count / elapsed
        return rates


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


def _count(
    tally: Tally, known: dict[str, Mapping[str, int]] | None, added: dict[tuple[str, str], float]
) -> dict[str, Mapping[str, int]]:
    """Add what one sidecar counted since it was looked at last. Of one that is new, nothing: when was it?

    Returns the totals to remember of it.
    """
    remembered = known if known is not None else {}
    for name, counts in tally.outcomes.items():
        before = remembered.get(name)
        if before is None:
            # Not named last time: it had none, if all that had any were named.
            before = {} if known is not None and tally.is_whole else counts
        remembered[name] = counts
        if counts == before:
            continue
        for outcome, total in counts.items():
            then = before.get(outcome, 0)
            # A total that fell has begun anew.
            gained = total - then if total >= then else total
            if gained:
                added[name, outcome] = added.get((name, outcome), 0) + gained
    return remembered
