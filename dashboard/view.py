"""The live view: the content of the page, made from consecutive snapshots. Pure: time is an argument.

A ``ViewMaker`` keeps the recent changes and the history of every pool, so that the page has rates and the
last five minutes. Numbers are rounded to three digits: a row that looks the same is not sent again. The page
shows at most ``MOST_ROWS`` entitlements of a pool, active ones first.

The records of the view and the code that fills them are one file, because each field is filled in one place.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence

import msgspec

from dashboard.history import BUCKET_S, History
from dashboard.recent import IDLE, Recent, UseMeans
from dashboard.snapshot import (
    SERVED,
    Replicas,
    ShownEntitlement,
    ShownHandover,
    ShownPool,
    Snapshot,
    Vector,
)
from dashboard.words import CONCURRENCY, SHED_BY_LIMIT, TOKENS_PER_SECOND, not_enforced, why

MOST_ROWS = 200
"""Rows of one pool. A browser can draw so many twice a second, and a person reads no more."""
_EARLY_S = 0.25
"""A bucket may end so much early, in seconds, because the next snapshot comes up to 0.5 s later."""
SLICE = 25
"""Rows that are made in one step: about 1 ms. Requests are served between steps."""
STAYS = 1.1
"""A row shows the dominant dimension. Another dimension replaces it once it is larger by this factor."""


class ShedView(msgspec.Struct, frozen=True):
    """Requests of one entitlement shed for one reason."""

    reason: str
    per_s: float
    why: str


class Row(msgspec.Struct, frozen=True):
    """One entitlement as the page shows it."""

    pool: str
    name: str
    tier: str
    guarantee: Vector
    ceiling: Vector
    limit: Vector
    in_use: Vector
    demand: Vector
    debt: float
    served_per_s: float | None
    shed_per_s: float | None
    dimension: int
    """The index of the dimension that causes most sheds; without sheds, of the dominant one."""
    sheds: tuple[ShedView, ...]
    """The most frequent first."""
    first_token_ms: tuple[float, float] | None = None
    """Mean and approximate 95th percentile over the window, in ms; ``None`` without any first token."""
    shadow: str = ""
    """A sentence about decisions that are not enforced; empty for an enforced entitlement."""


class Past(msgspec.Struct, frozen=True):
    """The last five minutes of an entitlement, or of a pool if ``name`` is empty; the oldest bucket first.

    The series of an entitlement are tokens/s, sheds per 100 s, and the mean and 95th percentile of the time
    to first token in ms (0: none). The series of a pool are requests served and requests shed, per 100 s.
    """

    pool: str
    name: str
    series: list[list[int]]


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One bucket of the series of ``Past``."""

    pool: str
    name: str
    values: list[int]


class PoolView(msgspec.Struct, frozen=True):
    """One pool as the page shows it."""

    name: str
    leader: str
    capacity: Vector
    guarantees: Vector
    in_use: Vector
    demand: Vector
    scale: Vector
    """The amount of a full bar of its entitlements: capacity, or the largest guarantee or limit."""
    replicas: Replicas
    notices: tuple[str, ...]
    served_per_s: float | None
    shed_per_s: float | None
    hidden: int
    """The number of entitlements without a row."""
    hidden_active: int
    """The number of these that were active within the window."""
    waiting: tuple[tuple[str, int], ...] = ()
    """The requests that wait now, by tier; empty if they are unknown."""
    handover: ShownHandover | None = None


class LiveView(msgspec.Struct, frozen=True):
    """The whole content of the page."""

    process: str
    name: str
    about: str = ""
    notices: tuple[str, ...] = ()
    pools: tuple[PoolView, ...] = ()
    rows: tuple[Row, ...] = ()
    bucket: int = 0
    """The number of the last bucket of the history."""
    points: tuple[Point, ...] | None = None
    """The values of that bucket, for active names; ``None`` if an earlier view had them."""
    past: tuple[Past, ...] = ()
    """The history of everything that is shown, if the whole view is sent."""


class ViewMaker:
    """Makes a view from each snapshot."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self._pools: dict[str, _PoolViewMaker] = {}
        self._most_rows = most_rows
        self._bucket = 0
        self._bucket_ended_at: float | None = None

    def follow(self, snapshot: Snapshot, now: float) -> LiveView:
        """The view after the next snapshot. ``now`` is in seconds by any monotonic clock."""
        steps = self.steps(snapshot, now)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                view: LiveView = done.value
                return view

    def steps(self, snapshot: Snapshot, now: float) -> Generator[None, None, LiveView]:
        """Make the view in short steps. The caller must finish them before the next snapshot."""
        known, self._pools = self._pools, {}
        pools: list[PoolView] = []
        rows: list[Row] = []
        for pool in snapshot.pools:
            watch = self._pools[pool.name] = known.get(pool.name) or _PoolViewMaker(self._most_rows)
            shown, its_rows = yield from watch.steps(pool, now)
            pools.append(shown)
            rows += its_rows
        points = None
        passed = (
            1 if self._bucket_ended_at is None else int((now - self._bucket_ended_at + _EARLY_S) / BUCKET_S)
        )
        if passed:
            self._bucket += passed
            self._bucket_ended_at = now
            points = tuple(
                point for each in pools for point in self._pools[each.name].end_bucket(self._bucket, each)
            )
        return LiveView(
            snapshot.process,
            snapshot.name,
            snapshot.about,
            snapshot.notices,
            tuple(pools),
            tuple(rows),
            self._bucket,
            points,
        )

    def shown(self) -> set[str]:
        """The names of all rows of the last view, and of entitlements that were active within the window."""
        names: set[str] = set()
        return names.union(*(watch.shown() for watch in self._pools.values()))

    def past(self, rows: Iterable[tuple[str, str]]) -> tuple[Past, ...]:
        """The history of pools (with an empty name) and of entitlements, if they have one."""
        return tuple(
            Past(pool, name, series)
            for pool, name in rows
            if (watch := self._pools.get(pool)) is not None and (series := watch.past(name))
        )


_NO_RATES: Mapping[str, float] = {}
_POOL = ""
"""The name of the pool's own history."""


class _PoolViewMaker:
    """Makes the views of one pool."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._recent = Recent()
        self._use_means = UseMeans()
        self._rows: dict[str, tuple[object, Row]] = {}
        """The last row of each entitlement, with the values from which it was made."""
        self._own = History(2, most=1)
        self._history = History(4)

    def steps(self, pool: ShownPool, now: float) -> Generator[None, None, tuple[PoolView, list[Row]]]:
        """The pool and its rows after the next snapshot, in steps."""
        recent = self._recent
        spent = {e.name: e.spent for e in pool.entitlements}
        recent.follow(pool.tallies, spent, now, from_zero=pool.spent_from_zero)
        yield
        rates = recent.per_s()
        self._use_means.follow(pool, now)
        means = self._use_means.means()
        yield
        uses: dict[str, Vector] = {
            e.name: (recent.tokens_per_s(e.name), *means.get(e.name, IDLE)) for e in pool.entitlements
        }
        chosen = self._chosen(pool.entitlements, uses, rates)
        shown = self._pool(pool, uses, means[None], rates, chosen)
        yield
        around = (shown.capacity, shown.scale, recent.elapsed_s > 0)
        known, self._rows = self._rows, {}
        for number, entitlement in enumerate(chosen):
            if number % SLICE == SLICE - 1:
                yield
            name = entitlement.name
            use, its_rates = uses[name], rates.get(name, _NO_RATES)
            before = known.get(name)
            first_token = recent.first_token_s(name)
            made_of = (entitlement, use, its_rates, around, first_token)
            if before is not None and not its_rates and before[0] == made_of:
                self._rows[name] = before  # nothing changed; most entitlements are idle
                continue
            shown_in = before[1].dimension if before is not None else None
            self._rows[name] = made_of, self._row(shown, entitlement, use, its_rates, shown_in)
        return shown, [row for _, row in self._rows.values()]

    def _chosen(
        self,
        entitlements: Sequence[ShownEntitlement],
        uses: Mapping[str, Vector],
        rates: Mapping[str, Mapping[str, float]],
    ) -> Sequence[ShownEntitlement]:
        """The entitlements that get a row: shed ones, then the busiest. An equal one keeps its row."""
        if len(entitlements) <= self._most_rows:
            return entitlements

        def worth(entitlement: ShownEntitlement) -> tuple[bool, float, bool, bool]:
            name = entitlement.name
            its_rates, use = rates.get(name, _NO_RATES), uses[name]
            is_shed = bool(its_rates) and any(outcome != SERVED for outcome in its_rates)
            busy = sum(part or 0.0 for part in use) + sum(its_rates.values())
            has_row = name in self._rows
            return is_shed, busy * 1.5 if has_row else busy, self._history.has(name), has_row

        best = {e.name for e in heapq.nlargest(self._most_rows, entitlements, key=worth)}
        return [e for e in entitlements if e.name in best]

    def shown(self) -> Collection[str]:
        """The names that the next snapshot must have."""
        return self._rows.keys() | self._recent.active()

    def end_bucket(self, bucket: int, pool: PoolView) -> list[Point]:
        """Add the current numbers to the history. Returns the points for the page."""
        own = [100 * (pool.served_per_s or 0.0), 100 * (pool.shed_per_s or 0.0)]
        self._own.add(bucket, {_POOL: own})
        points: dict[str, Sequence[float]] = {}
        shed = self._recent.per_s()
        for name in self._recent.active():
            tokens = self._recent.tokens_per_s(name) or 0.0
            sheds = sum(rate for outcome, rate in shed.get(name, _NO_RATES).items() if outcome != SERVED)
            first = self._recent.first_token_s(name)
            mean, high = (max(1000 * seconds, 1.0) for seconds in first) if first else IDLE
            points[name] = (tokens, 100 * sheds, mean, high)
        self._history.add(bucket, points)
        points_of_page = [Point(pool.name, _POOL, [round(value) for value in own])]
        points_of_page += [
            Point(pool.name, name, [round(value) for value in values])
            for name, values in points.items()
            if name in self._rows
        ]
        return points_of_page

    def past(self, name: str) -> list[list[int]]:
        """The history of an entitlement, or of the pool if ``name`` is empty."""
        return self._history.of(name) if name else self._own.of(name)

    def _pool(
        self,
        pool: ShownPool,
        uses: Mapping[str, Vector],
        held: tuple[float, float],
        rates: Mapping[str, Mapping[str, float]],
        chosen: Sequence[ShownEntitlement],
    ) -> PoolView:
        entitlements = pool.entitlements
        rows = {entitlement.name for entitlement in chosen}
        active = self._recent.active() | {e.name for e in entitlements if e.in_use[1:] != IDLE}
        total = pool.total if pool.total is not None else len(entitlements)
        served = sum(of.get(SERVED, 0.0) for of in rates.values())
        everything = sum(sum(of.values()) for of in rates.values())
        has_rates = self._recent.elapsed_s > 0
        tokens = sum(use[TOKENS_PER_SECOND] or 0.0 for use in uses.values()) if has_rates else None
        return PoolView(
            name=pool.name,
            leader=pool.leader,
            capacity=_rounded(pool.capacity),
            guarantees=pool.guarantees or _total([e.guarantee for e in entitlements]),
            in_use=_rounded((tokens, *held)),
            demand=_rounded(_total([e.demand for e in entitlements])),
            scale=_scale(pool.capacity, entitlements),
            replicas=pool.replicas,
            notices=pool.notices,
            served_per_s=_short(served) if has_rates else None,
            shed_per_s=_short(everything - served) if has_rates else None,
            hidden=max(total - len(rows), 0),
            hidden_active=len(active - rows),
            waiting=pool.waiting,
            handover=pool.handover,
        )

    def _row(
        self,
        pool: PoolView,
        entitlement: ShownEntitlement,
        in_use: Vector,
        rates: Mapping[str, float],
        shown_in: int | None,
    ) -> Row:
        limit = _limit(entitlement, pool.capacity)
        around = (pool.capacity, pool.in_use, pool.replicas)
        sheds = sorted(
            (-rate, reason) for reason, rate in rates.items() if reason != SERVED and _short(rate) > 0
        )
        has_rates = self._recent.elapsed_s > 0
        return Row(
            pool=pool.name,
            name=entitlement.name,
            tier=entitlement.tier,
            guarantee=entitlement.guarantee,
            ceiling=entitlement.ceiling,
            limit=_rounded(limit),
            in_use=_rounded(in_use),
            demand=_rounded(entitlement.demand),
            debt=round(entitlement.debt, 2) + 0.0,
            served_per_s=_short(rates.get(SERVED, 0.0)) if has_rates else None,
            shed_per_s=_short(-sum(rate for rate, _ in sheds)) if has_rates else None,
            dimension=_dimension(sheds, in_use, entitlement.guarantee, pool.scale, shown_in),
            sheds=tuple(
                ShedView(reason, _short(-rate), why(reason, limit, in_use, entitlement.demand, around))
                for rate, reason in sheds
            ),
            first_token_ms=_in_ms(self._recent.first_token_s(entitlement.name)),
            shadow="" if entitlement.is_enforced else not_enforced(entitlement.decisions),
        )


def _in_ms(seconds: tuple[float, float] | None) -> tuple[float, float] | None:
    return (_short(1000 * seconds[0]), _short(1000 * seconds[1])) if seconds is not None else None


def _total(amounts: Sequence[Vector]) -> Vector:
    """The sum of the known amounts."""
    a, b, c = (sum(amount[place] or 0.0 for amount in amounts) for place in range(3))
    return a, b, c


def _limit(entitlement: ShownEntitlement, capacity: Vector) -> Vector:
    """The limit as the page shows it. While capacity is unknown, only the ceiling is a bound."""
    if None not in capacity:
        return entitlement.limit
    a, b, c = (
        mine if whole is not None else most
        for mine, most, whole in zip(entitlement.limit, entitlement.ceiling, capacity, strict=True)
    )
    return a, b, c


def _scale(capacity: Vector, entitlements: Sequence[ShownEntitlement]) -> Vector:
    """The amount of a full bar: capacity, or a larger guarantee or limit. Without capacity, demand counts."""
    whole = []
    for place in range(3):
        most = max((e.guarantee[place] or 0.0 for e in entitlements), default=0.0)
        known = capacity[place]
        if known is not None:
            limits = (e.limit[place] or 0.0 for e in entitlements)
            whole.append(max(known, most, *limits) if entitlements else known)
        else:
            asked = max((e.demand[place] or 0.0 for e in entitlements), default=0.0)
            whole.append(max(most, asked))
    a, b, c = whole
    return _rounded((a, b, c))


def _dimension(
    sheds: Sequence[tuple[float, str]],
    in_use: Vector,
    guarantee: Vector,
    scale: Vector,
    shown_in: int | None,
) -> int:
    """The dimension that a row shows: the one with most sheds, or else with the largest share of the pool."""
    if sheds and sheds[0][1] in SHED_BY_LIMIT:
        return SHED_BY_LIMIT[sheds[0][1]]
    for amount in (in_use, guarantee):
        largest, most = CONCURRENCY, 0.0
        for place in range(3):
            share = _share(amount[place], scale[place])
            if share > most:
                largest, most = place, share
        if most > 0:
            stays = shown_in is not None and _share(amount[shown_in], scale[shown_in]) * STAYS >= most
            return shown_in if stays and shown_in is not None else largest
    return shown_in if shown_in is not None else CONCURRENCY


def _share(part: float | None, whole: float | None) -> float:
    return part / whole if part and whole else 0.0


def _rounded(amount: Vector) -> Vector:
    a, b, c = amount
    return a and _short(a), b and _short(b), c and _short(c)


def _short(value: float) -> float:
    """A number with three significant digits. Whole numbers below 10,000 stay exact."""
    if value == 0 or (value == int(value) and abs(value) < 10_000):
        return value + 0.0
    return round(value, 2 - math.floor(math.log10(abs(value))))
