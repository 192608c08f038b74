"""``make sim``: simulates large pools, and prints their figures. ``SIM_SEED`` sets the seed.

``python -m simulation one-pool`` compares handover with its alternatives instead: ``simulation.one_pool``.
``python -m simulation quotas`` simulates tenants that spend their quotas: ``simulation.quotas``.
``python -m simulation convergence`` compares the planner with the bound of docs/convergence.md.
``python -m simulation explore`` visits every state of small worlds: ``simulation.explore``.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from simulation import convergence as convergence_bound
from simulation import one_pool, quotas
from simulation.explore import command as explore
from simulation.fairness import Convergence, fairness_of
from simulation.figures import Figures
from simulation.mixes import all_of, lone_tenant, scarcity, skewed, small_tenants
from simulation.setup import Setup
from simulation.world import simulate

OUT = Path(__file__).parent.parent / "out" / "sim"
SIZES = ((100, 200, 12.0, 1.5), (1000, 200, 6.0, 0.5))
"""Sidecars, entitlements, seconds, load."""
MIXES = 20
"""The number of random mixes of tenants in scarcity."""


def main() -> int:
    """Run all simulations once, print the figures, and return 1 if a goal is missed."""
    if sys.argv[1:2] == ["explore"]:
        return explore.main(sys.argv[2:])
    if sys.argv[1:] == ["convergence"]:
        return convergence_bound.main()
    seed = int(os.environ.get("SIM_SEED") or secrets.randbelow(10**6))
    print(f"sim: seed {seed} (SIM_SEED={seed} repeats it)\n", flush=True)
    if sys.argv[1:] == ["one-pool"]:
        return one_pool.main(seed)
    if sys.argv[1:] == ["quotas"]:
        return quotas.main(seed)
    print(_HEAD)
    runs: list[tuple[str, Setup]] = [
        ("small tenants", small_tenants(seed=seed)),
        ("lone tenant", lone_tenant(seed=seed)),
        ("skewed, four sidecars", skewed(4, seed=seed)),
        ("skewed, one sidecar", skewed(1, seed=seed)),
    ]
    for sidecars, entitlements, seconds, load in SIZES:
        runs += [
            (f"{sidecars} x {entitlements}, {name}", setup)
            for name, setup in all_of(sidecars, entitlements, seed=seed, seconds=seconds, load=load)
        ]
    rows = []
    for name, setup in runs:
        started = time.monotonic()
        figures = simulate(setup)
        rows.append(row(name, setup, figures))
        print(_line(rows[-1]) + f"   ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"\nscarcity, {MIXES} random mixes, four of ten engines left", flush=True)
    fair, unfair = convergence(seed, {}), convergence(seed, {"debt_gain": 0.0})
    print(f"with debt:    {fair}\nwithout debt: {unfair}", flush=True)
    result = {"seed": seed, "runs": rows, "with_debt": asdict(fair), "without_debt": asdict(unfair)}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "result.json").write_text(json.dumps(result, indent=1))
    return 0 if all(float(r["over"]) < 1 for r in rows) and fair.holds else 1


def convergence(seed: int, options: Mapping[str, float]) -> Convergence:
    """The fairness of ``MIXES`` random mixes."""
    setups = [scarcity(seed=seed + number, **options) for number in range(MIXES)]
    return Convergence([fairness_of(setup, simulate(setup)) for setup in setups])


def row(name: str, setup: Setup, figures: Figures) -> dict[str, float | str]:
    """The figures of one run."""
    requests = max(figures.requests, 1)
    seconds = max(setup.seconds, 1e-9)
    return {
        "run": name,
        "requests": figures.requests,
        "over": figures.over_admitted,
        "over_fallback": figures.over_fallback,
        "utilisation": figures.utilisation,
        "idle_refusals": figures.idle_refusals / requests,
        "guaranteed_sheds": figures.guaranteed_sheds / requests,
        "lease_waits": figures.lease_waits / requests,
        "lease_wait_ms": 1000 * figures.lease_waited_s / max(figures.lease_waits, 1),
        "reconverged_s": figures.reconverged_s,
        "messages": figures.messages / setup.sidecars / seconds,
        "rows": figures.rows / setup.sidecars / seconds,
    }


_COLUMNS: Sequence[tuple[str, str, str]] = (
    ("requests", "requests", "{:.0f}"),
    ("over", "over", "{:.2f}"),
    ("over_fallback", "over, fallback", "{:.1f}"),
    ("utilisation", "utilised", "{:.1%}"),
    ("idle_refusals", "idle refusals", "{:.2%}"),
    ("guaranteed_sheds", "guaranteed shed", "{:.2%}"),
    ("lease_waits", "lease waits/req", "{:.2f}"),
    ("lease_wait_ms", "ms each", "{:.1f}"),
    ("reconverged_s", "reconverged s", "{:.2f}"),
    ("messages", "messages/s", "{:.1f}"),
)
_HEAD = f"{'':26}" + "".join(f"{title:>16}" for _, title, _ in _COLUMNS)


def _line(figures: dict[str, float | str]) -> str:
    return f"{figures['run']:26}" + "".join(f"{form.format(figures[key]):>16}" for key, _, form in _COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
