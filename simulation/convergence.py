"""The time in which debt brings service to the fair share after a loss of capacity: bound and planner.

``docs/convergence.md`` derives the bound from its assumptions. ``Loop`` runs the shipped planner against a
fluid pool, which serves exactly what the planner allocates. With a residence, service follows the allocation
as running requests end. That is outside the assumptions.

``python -m simulation convergence`` prints random mixes beside their bounds, and writes the table that
``python -m docs.plots`` draws.
"""

from __future__ import annotations

import csv
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenpool.accounting.report import Report
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Slo, Tier
from tokenpool.planning.planner import PlanInput, PlannerSettings, plan, slo_factor
from tokenpool.planning.profiles import Profile

TICK_S = 0.25
NEAR = 0.05
"""A tenant is near its fair share if its service differs from it by at most this part."""
WHOLE = Amount(1e8, 4e9, 1e6)
"""Capacity before the loss. It is so large that whole sequences make no difference."""
LEFT = 0.4
"""The part of it that is left."""
MIXES = 100
RESIDENCES_S = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
OUT = Path(__file__).parent.parent / "docs" / "images" / "convergence.csv"


def contraction(settings: PlannerSettings, tick_s: float = TICK_S) -> float:
    """The factor by which the spread of relative service shrinks in each tick, at least."""
    step = settings.debt_gain * tick_s
    return 1 - step + step * step / 2


def bound_s(ratio: float, settings: PlannerSettings, near: float = NEAR, tick_s: float = TICK_S) -> float:
    """The longest time until every tenant is near its fair share, in seconds.

    ``ratio`` is the greatest relative service divided by the least, at the first tick after the loss. Raises
    ``ValueError`` if it is outside the assumptions.
    """
    most = 1 / (settings.debt_gain * tick_s)
    if not 1 <= ratio <= most:
        raise ValueError(f"the bound holds for a ratio from 1 to {most:.2f}, not for {ratio:g}")
    if ratio - 1 <= near:
        return 0.0
    return math.ceil(math.log((ratio - 1) / near) / -math.log(contraction(settings, tick_s))) * tick_s


@dataclass(frozen=True, slots=True)
class Mix:
    """Tenants that all want more than they get, for good."""

    entitlements: Sequence[Entitlement]
    demands: Mapping[str, Amount]
    """The demand of each tenant, as a share of the capacity that is left."""

    @property
    def ratio(self) -> float:
        """The ratio of the greatest to the least relative service at first, without debts."""
        factors = [slo_factor(each.slo) for each in self.entitlements]
        return max(factors) / min(factors)


def random_mix(seed: int) -> Mix:
    """Two to ten elastic tenants with weights 1 to 8, SLO factors 1 to 4, and different kinds of requests.

    Each wants the whole pool in its largest dimension. That is sequences, or clearly another one, and each
    needs some of every dimension.
    """
    chance = random.Random(f"convergence {seed}")
    entitlements, demands = [], {}
    for number in range(chance.randint(2, 10)):
        slo = Slo(ttft_ms=chance.choice([None, 250.0, 330.0, 500.0, 800.0, chance.uniform(250.0, 1000.0)]))
        weight = chance.choice([1.0, 2.0, chance.uniform(1.0, 8.0)])
        name = f"t{number}"
        entitlements.append(Entitlement(name, "pool", Tier.ELASTIC, weight=weight, slo=slo))
        parts = [chance.uniform(0.1, 0.85) for _ in range(3)]
        parts[chance.randrange(3)] = 1.0
        demands[name] = Amount(*parts)
    return Mix(entitlements, demands)


class Loop:
    """The planner of a pool, tick by tick, after a loss of capacity."""

    def __init__(
        self,
        mix: Mix,
        settings: PlannerSettings | None = None,
        *,
        residence_s: float = 0.0,
        debts: Mapping[str, float] | None = None,
    ) -> None:
        """``residence_s`` is the mean time of a request in the engine; ``debts`` are those at the loss."""
        self._mix = mix
        self._settings = settings or PlannerSettings()
        self._follows = 1.0 if residence_s <= 0 else 1 - math.exp(-TICK_S / residence_s)
        self.capacity = WHOLE * LEFT
        self.debts = dict(debts or {})
        self._profiles: Mapping[str, Profile] = {}
        self._service: dict[str, Amount] = {}

    def tick(self) -> dict[str, float]:
        """Run one tick. Returns the service until the next one, relative to each tenant's fair share."""
        capacity, mix = self.capacity, self._mix
        made = plan(
            PlanInput(
                capacity,
                mix.entitlements,
                {
                    name: Report(_of(capacity, demand), self._service.get(name, NOTHING))
                    for name, demand in mix.demands.items()
                },
                self.debts,
                TICK_S if self._service else 0.0,
                self._settings,
                self._profiles,
            )
        )
        self._profiles = made.profiles
        relative = {}
        for name, part in made.entitlements.items():
            self.debts[name] = part.debt
            before = self._service.get(name, part.allocation)
            served = before + (part.allocation - before) * self._follows
            self._service[name] = served
            relative[name] = _dominant(served, capacity) / part.fair_share
        return relative

    def ratios(self, seconds: float) -> list[float]:
        """The ratio of the greatest to the least relative service at each tick."""
        found = []
        for _ in range(round(seconds / TICK_S)):
            relative = self.tick().values()
            found.append(max(relative) / min(relative))
        return found


def _of(capacity: Amount, shares: Amount) -> Amount:
    return Amount(*(whole * part for whole, part in zip(capacity.values(), shares.values(), strict=True)))


def _dominant(service: Amount, capacity: Amount) -> float:
    return max(part / whole for part, whole in zip(service.values(), capacity.values(), strict=True))


def near_after_s(mix: Mix, *, residence_s: float = 0.0, seconds: float = 60.0) -> float:
    """The time after which every tenant stays near its fair share; infinite if it takes longer than that."""
    loop, last = Loop(mix, residence_s=residence_s), 0
    ticks = round(seconds / TICK_S)
    for number in range(ticks):
        if any(abs(relative - 1) > NEAR for relative in loop.tick().values()):
            last = number + 1
    return last * TICK_S if last < ticks else math.inf


@dataclass(frozen=True, slots=True)
class Row:
    """One mix: the first ratio, the bound and the measured times, in seconds."""

    ratio: float
    bound_s: float
    measured_s: Sequence[float]
    """For each of ``RESIDENCES_S``."""


def rows(mixes: int = MIXES) -> list[Row]:
    """The rows of random mixes."""
    settings, found = PlannerSettings(), []
    for seed in range(mixes):
        mix = random_mix(seed)
        measured = [near_after_s(mix, residence_s=each) for each in RESIDENCES_S]
        found.append(Row(mix.ratio, bound_s(mix.ratio, settings), measured))
    return found


def main() -> int:
    """Print and write all rows. Returns 1 if a measured time without a residence exceeds its bound."""
    found = rows()
    with OUT.open("w", newline="") as file:
        file.write(
            "# python -m simulation convergence: the first ratio of relative service, the bound in s,\n"
        )
        file.write("# and the measured times in s, by the mean residence of a request in s\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["ratio", "bound", *(f"{each:g}" for each in RESIDENCES_S)])
        for row in found:
            table.writerow(
                [f"{row.ratio:.3f}", f"{row.bound_s:g}", *(f"{each:g}" for each in row.measured_s)]
            )
    print(f"{len(found)} mixes; the time until every tenant stays within {NEAR:.0%} of its fair share, s")
    print(f"{'residence':>10}{'median':>9}{'longest':>9}{'beyond its bound':>18}")
    for number, residence in enumerate(RESIDENCES_S):
        times = sorted(row.measured_s[number] for row in found)
        beyond = sum(row.measured_s[number] > row.bound_s for row in found)
        print(f"{residence:>10g}{times[len(times) // 2]:>9.2f}{times[-1]:>9.2f}{beyond:>18}")
    shares = [row.measured_s[0] / row.bound_s for row in found if row.bound_s]
    print(f"without residence, measured / bound: {min(shares):.2f} to {max(shares):.2f}")
    return int(any(row.measured_s[0] > row.bound_s for row in found))


if __name__ == "__main__":
    sys.exit(main())
