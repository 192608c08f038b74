"""The live view: what the page shows, made from one look after another. Pure: time is an argument.

A ``Watch`` keeps what ``recent`` knows of every pool, so that the page has rates. Numbers are rounded to what
an eye can tell: what did not change for the eye does not travel again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from service.live.look import SERVED, EntitlementLook, Look, PoolLook, Replicas, Vector
from service.live.recent import IDLE, Held, Recent
from service.live.words import CONCURRENCY, SHED_BY_LIMIT, TOKENS_PER_SECOND, why

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


class LiveView(msgspec.Struct, frozen=True):
    """All that the page shows."""

    process: str
    name: str
    about: str = ""
    notices: tuple[str, ...] = ()
    pools: tuple[PoolView, ...] = ()
    rows: tuple[Row, ...] = ()


class Watch:
    """Turns looks, one after another, into views."""

    def __init__(self) -> None:
        self._pools: dict[str, _PoolWatch] = {}

    def follow(self, look: Look, now: float) -> LiveView:
        """The view after one more look. ``now`` is seconds on any monotonic clock."""
        known, self._pools = self._pools, {}
        pools: list[PoolView] = []
        rows: list[Row] = []
        for pool in look.pools:
            watch = self._pools[pool.name] = known.get(pool.name) or _PoolWatch()
            shown, its_rows = watch.follow(pool, now)
            pools.append(shown)
            rows += its_rows
        return LiveView(look.process, look.name, look.about, look.notices, tuple(pools), tuple(rows))


_NO_RATES: Mapping[str, float] = {}


class _PoolWatch:
    """One pool."""

    def __init__(self) -> None:
        self._recent = Recent()
        self._held = Held()
        self._rows: dict[str, tuple[object, Row]] = {}
        """What every entitlement's row was made of last, and the row."""

    def follow(self, pool: PoolLook, now: float) -> tuple[PoolView, list[Row]]:
        """The pool and its entitlements after one more look."""
        recent = self._recent
        recent.follow(pool.tallies, {e.name: e.spent for e in pool.entitlements}, now)
        rates = recent.per_s()
        self._held.follow(pool, now)
        means = self._held.means()
        uses: dict[str, Vector] = {
            e.name: (recent.tokens_per_s(e.name), *means.get(e.name, IDLE)) for e in pool.entitlements
        }
        shown = self._pool(pool, uses, means[None], rates)
        around = (shown.capacity, shown.scale, recent.elapsed_s > 0)
        known, self._rows = self._rows, {}
        for entitlement in pool.entitlements:
            name = entitlement.name
            use, its_rates = uses[name], rates.get(name, _NO_RATES)
            before = known.get(name)
            made_of = (entitlement, use, its_rates, around)
            if before is not None and not its_rates and before[0] == made_of:
                self._rows[name] = before  # idle, as most are at most times
                continue
            shown_in = before[1].dimension if before is not None else None
            self._rows[name] = made_of, self._row(shown, entitlement, use, its_rates, shown_in)
        return shown, [row for _, row in self._rows.values()]

    def _pool(
        self,
        pool: PoolLook,
        uses: Mapping[str, Vector],
        held: tuple[float, float],
        rates: Mapping[str, Mapping[str, float]],
    ) -> PoolView:
        entitlements = pool.entitlements
        served = sum(of.get(SERVED, 0.0) for of in rates.values())
        everything = sum(sum(of.values()) for of in rates.values())
        has_rates = self._recent.elapsed_s > 0
        tokens = sum(use[TOKENS_PER_SECOND] or 0.0 for use in uses.values()) if has_rates else None
        return PoolView(
            name=pool.name,
            leader=pool.leader,
            capacity=_rounded(pool.capacity),
            guarantees=_total([pool.unlisted_guarantees, *(e.guarantee for e in entitlements)]),
            in_use=_rounded((tokens, *held)),
            demand=_rounded(_total([e.demand for e in entitlements])),
            scale=_scale(pool.capacity, entitlements),
            replicas=pool.replicas,
            notices=pool.notices,
            served_per_s=_short(served) if has_rates else None,
            shed_per_s=_short(everything - served) if has_rates else None,
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
        )


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
