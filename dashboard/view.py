"""The live view: what the page shows, made from one look after another. Pure: time is an argument.

A ``Watch`` keeps what ``recent`` and ``history`` know of every pool, so that the page has rates and the last
five minutes. Numbers are rounded to what an eye can tell: what did not change for the eye does not travel
again. The page shows at most ``MOST_ROWS`` entitlements of a pool, active ones first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence

import msgspec

from dashboard.history import BUCKET_S, History
from dashboard.recent import IDLE, Held, Recent
from dashboard.snapshot import SERVED, EntitlementLook, PoolLook, Replicas, Snapshot, Vector
from dashboard.words import CONCURRENCY, SHED_BY_LIMIT, TOKENS_PER_SECOND, why

MOST_ROWS = 200
"""Of one pool. A browser draws so many twice a second; nobody reads more."""
_EARLY_S = 0.25
"""A bucket may end so much early: the next look may come half a second later."""
SLICE = 25
"""Rows that are made between two chances for requests: about a millisecond."""
STAYS = 1.1
"""An entitlement is shown in its dominant dimension; another one must be so much larger to take its place."""


class ShedView(msgspec.Struct, frozen=True):
    """Requests of one entitlement shed for one reason."""

    reason: str
    per_s: float
    why: str


class Row(msgspec.Struct, frozen=True):
    """One entitlement as it is shown."""

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
    """The place of its dominant dimension, or of the one that it is shed for most."""
    sheds: tuple[ShedView, ...]
    """The most frequent first."""
    first_token_ms: tuple[float, float] | None = None
    """Mean and approximate 95th percentile within the last seconds; ``None``: there was none."""


class Past(msgspec.Struct, frozen=True):
    """The last five minutes of an entitlement, or of a pool where ``name`` is empty; the oldest bucket first.

    Of an entitlement: tokens/s, sheds per 100 s, mean and 95th percentile of the time to first token in ms
    (0: there was none). Of a pool: requests served and shed, per 100 s.
    """

    pool: str
    name: str
    series: list[list[int]]


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One bucket of the same."""

    pool: str
    name: str
    values: list[int]


class PoolView(msgspec.Struct, frozen=True):
    """One pool as it is shown."""

    name: str
    leader: str
    capacity: Vector
    guarantees: Vector
    in_use: Vector
    demand: Vector
    scale: Vector
    """What a whole bar of its entitlements stands for: capacity, or the largest guarantee or limit."""
    replicas: Replicas
    notices: tuple[str, ...]
    served_per_s: float | None
    shed_per_s: float | None
    hidden: int
    """Entitlements that have no row: there are too many."""
    hidden_active: int
    """Those among them that were active within the last seconds."""


class LiveView(msgspec.Struct, frozen=True):
    """All that the page shows."""

    process: str
    name: str
    about: str = ""
    notices: tuple[str, ...] = ()
    pools: tuple[PoolView, ...] = ()
    rows: tuple[Row, ...] = ()
    bucket: int = 0
    """The number of the last bucket of the history."""
    points: tuple[Point, ...] | None = None
    """That bucket, of those that had anything in it; ``None`` where it was told before."""
    past: tuple[Past, ...] = ()
    """The history of all that is shown, where the view is told as a whole."""


class Watch:
    """Turns looks, one after another, into views."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self._pools: dict[str, _PoolWatch] = {}
        self._most_rows = most_rows
        self._bucket = 0
        self._noted_at: float | None = None

    def follow(self, look: Snapshot, now: float) -> LiveView:
        """The view after one more look. ``now`` is seconds on any monotonic clock."""
        steps = self.steps(look, now)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                view: LiveView = done.value
                return view

    def steps(self, look: Snapshot, now: float) -> Generator[None, None, LiveView]:
        """The same in short steps, between which the caller may do anything but take another look."""
        known, self._pools = self._pools, {}
        pools: list[PoolView] = []
        rows: list[Row] = []
        for pool in look.pools:
            watch = self._pools[pool.name] = known.get(pool.name) or _PoolWatch(self._most_rows)
            shown, its_rows = yield from watch.steps(pool, now)
            pools.append(shown)
            rows += its_rows
        points = None
        passed = 1 if self._noted_at is None else int((now - self._noted_at + _EARLY_S) / BUCKET_S)
        if passed:
            self._bucket += passed
            self._noted_at = now
            points = tuple(
                point for each in pools for point in self._pools[each.name].note(self._bucket, each)
            )
        return LiveView(
            look.process, look.name, look.about, look.notices, tuple(pools), tuple(rows), self._bucket, points
        )

    def shown(self) -> set[str]:
        """The names of all rows of the last view, and of what was active shortly before."""
        names: set[str] = set()
        return names.union(*(watch.shown() for watch in self._pools.values()))

    def past(self, rows: Iterable[tuple[str, str]]) -> tuple[Past, ...]:
        """The history of pools (those without a name) and entitlements that have any."""
        return tuple(
            Past(pool, name, series)
            for pool, name in rows
            if (watch := self._pools.get(pool)) is not None and (series := watch.past(name))
        )


_NO_RATES: Mapping[str, float] = {}
_POOL = ""
"""In the place of an entitlement's name: the whole pool."""


class _PoolWatch:
    """One pool."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._recent = Recent()
        self._held = Held()
        self._rows: dict[str, tuple[object, Row]] = {}
        """What every entitlement's row was made of last, and the row."""
        self._own = History(2, most=1)
        self._history = History(4)

    def steps(self, pool: PoolLook, now: float) -> Generator[None, None, tuple[PoolView, list[Row]]]:
        """The pool and its entitlements after one more look."""
        recent = self._recent
        spent = {e.name: e.spent for e in pool.entitlements}
        recent.follow(pool.tallies, spent, now, from_zero=pool.spent_from_zero)
        yield
        rates = recent.per_s()
        self._held.follow(pool, now)
        means = self._held.means()
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
                self._rows[name] = before  # idle, as most are at most times
                continue
            shown_in = before[1].dimension if before is not None else None
            self._rows[name] = made_of, self._row(shown, entitlement, use, its_rates, shown_in)
        return shown, [row for _, row in self._rows.values()]

    def _chosen(
        self,
        entitlements: Sequence[EntitlementLook],
        uses: Mapping[str, Vector],
        rates: Mapping[str, Mapping[str, float]],
    ) -> Sequence[EntitlementLook]:
        """Those that get a row: those shed, then the busiest. One with a row keeps it against its equals."""
        if len(entitlements) <= self._most_rows:
            return entitlements

        def worth(entitlement: EntitlementLook) -> tuple[bool, float, bool, bool]:
            name = entitlement.name
            its_rates, use = rates.get(name, _NO_RATES), uses[name]
            is_shed = bool(its_rates) and any(outcome != SERVED for outcome in its_rates)
            busy = sum(part or 0.0 for part in use) + sum(its_rates.values())
            has_row = name in self._rows
            return is_shed, busy * 1.5 if has_row else busy, self._history.has(name), has_row

        best = {e.name for e in heapq.nlargest(self._most_rows, entitlements, key=worth)}
        return [e for e in entitlements if e.name in best]

    def shown(self) -> Collection[str]:
        """The names that the next look has to give."""
        return self._rows.keys() | self._recent.active()

    def note(self, bucket: int, pool: PoolView) -> list[Point]:
        """Take the numbers of now into the history; returns what the page is told of them."""
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
        told = [Point(pool.name, _POOL, [round(value) for value in own])]
        told += [
            Point(pool.name, name, [round(value) for value in values])
            for name, values in points.items()
            if name in self._rows
        ]
        return told

    def past(self, name: str) -> list[list[int]]:
        """The history of an entitlement, or with no name of the pool."""
        return self._history.of(name) if name else self._own.of(name)

    def _pool(
        self,
        pool: PoolLook,
        uses: Mapping[str, Vector],
        held: tuple[float, float],
        rates: Mapping[str, Mapping[str, float]],
        chosen: Sequence[EntitlementLook],
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
        )

    def _row(
        self,
        pool: PoolView,
        entitlement: EntitlementLook,
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
        )


def _in_ms(seconds: tuple[float, float] | None) -> tuple[float, float] | None:
    return (_short(1000 * seconds[0]), _short(1000 * seconds[1])) if seconds is not None else None


def _total(amounts: Sequence[Vector]) -> Vector:
    """The sum of what is known."""
    a, b, c = (sum(amount[place] or 0.0 for amount in amounts) for place in range(3))
    return a, b, c


def _limit(entitlement: EntitlementLook, capacity: Vector) -> Vector:
    """The limit as it is shown: where capacity is not known yet, nothing bounds it but its ceiling."""
    if None not in capacity:
        return entitlement.limit
    a, b, c = (
        mine if whole is not None else most
        for mine, most, whole in zip(entitlement.limit, entitlement.ceiling, capacity, strict=True)
    )
    return a, b, c


def _scale(capacity: Vector, entitlements: Sequence[EntitlementLook]) -> Vector:
    """What a whole bar stands for: capacity, or what is more; what is in use where neither is known."""
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
    """In which dimension an entitlement is shown: where it is shed most, or uses most of the pool."""
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
    """Three significant digits; whole numbers below 10,000 as they are."""
    if value == 0 or (value == int(value) and abs(value) < 10_000):
        return value + 0.0
    return round(value, 2 - math.floor(math.log10(abs(value))))
