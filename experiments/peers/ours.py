"""tokenpool: one sidecar with default options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from experiments.peers.system import Capacity, Place, Proxy, filled
from experiments.peers.tenants import ELASTIC, GUARANTEED_SHARE, GUARANTEED_SLOTS, TENANTS
from toolbox.ports import free_port
from toolbox.processes import Process, module

USUAL_SLO_MS = 100.0
"""The guaranteed tenant's SLO until its P99 alone is known. Then it is one and a half times that."""


def pool_file(capacity: Capacity) -> str:
    """tokenpool's pool file."""
    alone = capacity.alone_p99_ttft_s
    elastic = "\n".join(
        f"- {{name: {tenant.name}, pool: chat, tier: elastic, weight: {tenant.weight:g},"
        f" api_keys: [{tenant.key}]}}"
        for tenant in TENANTS
        if tenant.tier == ELASTIC
    )
    return filled(
        "tokenpool.yaml",
        guaranteed_slots=GUARANTEED_SLOTS,
        guaranteed_tokens_per_s=round(GUARANTEED_SHARE * capacity.tokens_per_s),
        guaranteed_kv_tokens=128 * GUARANTEED_SLOTS,
        slo_ms=f"{USUAL_SLO_MS if alone is None else 1500 * alone:.0f}",
        elastic=elastic,
    )


@contextlib.contextmanager
def tokenpool(place: Place) -> Iterator[Proxy]:
    """One sidecar with default options."""
    port, admin, file = free_port(), free_port(), place.folder / "pool.yaml"
    file.write_text(pool_file(place.capacity))
    command = [*module("sidecar"), "run", "--config", str(file)]
    command += ["--upstream", f"http://127.0.0.1:{place.upstream}", "--log-level", "warning"]
    command += ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
    ready = f"http://127.0.0.1:{admin}/readyz"
    with Process("sidecar", command, place.folder, probe=ready) as process:
        yield Proxy(port, process)
