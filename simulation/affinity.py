"""Prefix affinity in the simulation: ``python -m simulation.affinity`` prints the cache hits of a pool.

Sixty conversations send Poisson arrivals to four replicas with eight slots each, at random. A conversation
has four requests on average, and each prompt continues it. The cache of an engine is as large as the KV cache
of its slots. The bound is one engine with all slots and all caches.
"""

from __future__ import annotations

from dataclasses import replace

from simulation.setup import Setup, Tenant
from simulation.world import simulate
from tokenpool.entitlements import Entitlement, Tier

RATES = (9.0, 12.0, 15.0, 18.0, 21.0)
"""Requests per second."""
SEEDS = range(1, 9)
HEAD = """\
| requests/s | | requests | refused, % | cache hits, % of tokens | handovers per request | wait P99, ms |
| --- | --- | --- | --- | --- | --- | --- |"""


def worlds(rate: float) -> dict[str, Setup]:
    """The pools to compare, at ``rate`` requests per second."""
    tenant = Tenant(Entitlement("a", "pool", Tier.ELASTIC), 0)
    whole = Setup([tenant], 4, seconds=60.0, open_loop=rate, conversations=60)
    return {
        "one engine of 32 slots": replace(whole, sidecars=1, slots=32),
        "no handover": replace(whole, handover=False),
        "handover": replace(whole, affinity=False),
        "handover, prefix affinity": whole,
    }


def line(rate: float, name: str, setup: Setup) -> str:
    """A row of the table: all seeds together."""
    runs = [simulate(replace(setup, seed=seed)) for seed in SEEDS]
    count = sum(run.requests for run in runs)
    refused = sum(run.sheds.total() for run in runs) / count
    hits = sum(run.found_tokens for run in runs) / sum(run.prompt_tokens for run in runs)
    waits = sorted(wait for run in runs for wait in run.waits)
    handovers = sum(run.handovers for run in runs) / count
    return (
        f"| {rate:g} | {name} | {count:,} | {100 * refused:.2f} | {100 * hits:.1f} | {handovers:.2f}"
        f" | {1000 * waits[len(waits) * 99 // 100]:.0f} |"
    )


def main() -> None:
    """Print the table."""
    print(HEAD, flush=True)
    for rate in RATES:
        for name, setup in worlds(rate).items():
            print(line(rate, name, setup), flush=True)


if __name__ == "__main__":
    main()
