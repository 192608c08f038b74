"""The loads: scenarios for loadgen, with rates as parts of the engine's measured capacity.

- capacity: more workers than slots, without a proxy; then one request after the other.
- moderate: the guaranteed tenant alone; then with one elastic tenant, at 50 % and at 80 % of the capacity.
- overload: the guaranteed tenant at a quarter of the capacity, spot at twice the capacity.
- fairness: persistent demand of four elastic tenants with weights and sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.peers.system import System
from experiments.peers.tenants import ELASTIC, GUARANTEED, SLOTS, SPOT, TENANTS, Tenant

INPUT, OUTPUT = 16, 32
"""Tokens of the usual request."""
GUARANTEED_LOAD = 0.25
"""The guaranteed tenant's part of the capacity: four slots on average."""
EVEN = 0.5
"""The coefficient of variation of its gaps, so that it stays within its eight slots.

With 1, as of a Poisson process, it would exceed them for 2 % of the time.
"""
MODERATE = {"half": 0.5, "most": 0.8}
"""All load of these phases, as a part of the capacity."""
FLOOD = 2.0
"""The load of spot, as a multiple of the capacity."""
BURSTING = "large"
"""The elastic tenant that uses what others leave. Its share by weight is a third."""
FAIR_SIZES = {"small": (8, 24), "large": (80, 240), "middle": (24, 72), "long": (40, 120)}
WORKERS = 24
"""Concurrent requests of each tenant with persistent demand."""
DRAIN_S = 4
HEAD = """\
name: {name}
model: small
endpoint: chat
duration_s: {seconds:g}
drain_s: {drain:g}
spread: random
tenants:
"""


@dataclass(frozen=True)
class Sizes:
    """The duration of each load in seconds."""

    seconds: float = 24.0

    @property
    def alone(self) -> float:
        """The guaranteed tenant alone."""
        return self.seconds / 2

    @property
    def step(self) -> float:
        """Each of the other phases of the moderate load."""
        return self.seconds / 4

    @property
    def settle(self) -> float:
        """The start of the overload, which is not measured."""
        return self.seconds / 6

    @property
    def fair(self) -> float:
        """The persistent demand: a third longer."""
        return self.seconds * 4 / 3

    @property
    def settle_fair(self) -> float:
        """The start of the persistent demand, which is not measured: sizes are learned, and debts settle."""
        return self.seconds / 2


def _tenant(system: System, tenant: Tenant, fields: str) -> str:
    lines = [f"name: {tenant.name}", f"key: {tenant.key}", f"tier: {tenant.tier}", fields]
    if tenant.tier in system.priorities:
        lines.append(f"priority: {system.priorities[tenant.tier]}")
    if tenant.tier in system.headers:
        inner = ", ".join(f"{name}: {value}" for name, value in system.headers[tenant.tier].items())
        lines.append(f"headers: {{{inner}}}")
    return f"  - {{{', '.join(lines)}}}\n"


def _named(name: str) -> Tenant:
    return next(tenant for tenant in TENANTS if tenant.name == name)


def _head(name: str, seconds: float) -> str:
    return HEAD.format(name=name, seconds=seconds, drain=DRAIN_S)


def _poisson(rate: float) -> str:
    return f"arrivals: {{poisson: {{rate: {rate:.4f}}}}}, input: {INPUT}, output: {OUTPUT}"


def _even(rate: float) -> str:
    """The guaranteed tenant's requests."""
    return f"arrivals: {{gamma: {{rate: {rate:.4f}, cv: {EVEN:g}}}}}, input: {INPUT}, output: {OUTPUT}"


def capacity(system: System, seconds: float) -> str:
    """One tenant with more workers than the engine has slots."""
    fields = f"arrivals: {{closed: {{workers: {2 * SLOTS}}}}}, input: {INPUT}, output: {OUTPUT}"
    return _head("capacity", seconds) + _tenant(system, _named(SPOT), fields)


def one_by_one(system: System, seconds: float) -> str:
    """One request after the other."""
    fields = f"arrivals: {{closed: {{workers: 1}}}}, input: {INPUT}, output: {OUTPUT}"
    return _head("one by one", seconds) + _tenant(system, _named(SPOT), fields)


def moderate(system: System, sizes: Sizes, requests_per_s: float) -> str:
    """Loads within the engine's capacity."""
    low, high = (share - GUARANTEED_LOAD for share in MODERATE.values())
    alone, half, end = sizes.alone, sizes.alone + sizes.step, sizes.seconds
    burst = f"{_poisson(requests_per_s * low)}, starts_s: {alone:g}"
    rates = f"rates: {{{BURSTING}: {high / low:.4f}}}"
    return (
        _head("moderate", sizes.seconds)
        + _tenant(system, _named(GUARANTEED), _even(requests_per_s * GUARANTEED_LOAD))
        + _tenant(system, _named(BURSTING), burst)
        + "phases:\n"
        + f"  - {{name: alone, from: 0, to: {alone:g}}}\n"
        + f"  - {{name: half, from: {alone:g}, to: {half:g}}}\n"
        + f"  - {{name: most, from: {half:g}, to: {end:g}, {rates}}}\n"
    )


def overload(system: System, sizes: Sizes, requests_per_s: float) -> str:
    """A flood of spot beside the guaranteed tenant."""
    rate = FLOOD * requests_per_s
    ramp = f"{{from: {requests_per_s:.4f}, to: {rate:.4f}, over_s: {sizes.settle / 2:g}}}"
    return (
        _head("overload", sizes.seconds)
        + _tenant(system, _named(GUARANTEED), _even(requests_per_s * GUARANTEED_LOAD))
        + _tenant(system, _named(SPOT), f"arrivals: {{ramp: {ramp}}}, input: {INPUT}, output: {OUTPUT}")
        + "phases:\n"
        + f"  - {{name: settle, from: 0, to: {sizes.settle:g}}}\n"
        + f"  - {{name: overload, from: {sizes.settle:g}, to: {sizes.seconds:g}}}\n"
    )


def fairness(system: System, sizes: Sizes) -> str:
    """Persistent demand of the elastic tenants, which try again after a refusal."""
    retries = "retries: {most: 100000, honour_retry_after: true}"
    text = _head("fairness", sizes.fair)
    for tenant in TENANTS:
        if tenant.tier == ELASTIC:
            given, made = FAIR_SIZES[tenant.name]
            arrivals = f"arrivals: {{closed: {{workers: {WORKERS}}}}}"
            text += _tenant(system, tenant, f"{arrivals}, input: {given}, output: {made}, {retries}")
    return text
