"""Envoy: adaptive concurrency, and a local rate limit for each key."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator

from experiments.peers.environment import program
from experiments.peers.loads import FAIR_SIZES, OUTPUT
from experiments.peers.system import Place, Proxy, filled
from experiments.peers.tenants import ELASTIC, GUARANTEED, GUARANTEED_SHARE, TENANTS, elastic_share
from toolbox.ports import free_port
from toolbox.processes import Process

LONGEST = max(output for _, output in FAIR_SIZES.values())
"""Output tokens of the longest usual request. Envoy takes its time alone as the minimal latency.

With the time of a short request, the filter treated long requests as a slow engine: 20 % of the slots were in
use.
"""
BURST_S = 1
"""Seconds of its rate that a key may send at once through Envoy. With more, the burst fills the slots."""
SHORTEST_FILL_S = 0.05
"""The shortest interval in which Envoy can fill a token bucket."""


def envoy_bucket(rate: float) -> dict[str, object]:
    """A token bucket of so many requests per second, in Envoy's form."""
    tokens = max(math.ceil(rate * SHORTEST_FILL_S), 1)
    return {
        "max_tokens": max(math.ceil(BURST_S * rate), tokens),
        "tokens_per_fill": tokens,
        "fill_interval": f"{tokens / rate:.6f}s",
    }


def envoy_file(place: Place, port: int) -> str:
    """Envoy's configuration: each key but the guaranteed one has its share of the engine's requests/s."""
    lines = []
    for tenant in TENANTS:
        if tenant.tier == GUARANTEED:
            continue
        share = elastic_share(tenant) if tenant.tier == ELASTIC else 1 - GUARANTEED_SHARE
        entry = {
            "entries": [{"key": "key", "value": f"Bearer {tenant.key}"}],
            "token_bucket": envoy_bucket(place.capacity.requests_per_s * share),
        }
        lines.append(f"              - {json.dumps(entry)}")
    return filled(
        "envoy.yaml",
        port=port,
        upstream=place.upstream,
        min_rtt_s=f"{place.capacity.alone_s * LONGEST / OUTPUT:.3f}",
        guaranteed_key=f"{GUARANTEED}-key",
        descriptors="\n".join(lines),
    )


@contextlib.contextmanager
def envoy(place: Place) -> Iterator[Proxy]:
    """Envoy with adaptive concurrency, and a local rate limit for each key."""
    port, file = free_port(), place.folder / "envoy.yaml"
    file.write_text(envoy_file(place, port))
    command = [
        program("envoy", place.home),
        "-c",
        str(file),
        "--concurrency",
        "1",
        "-l",
        "error",
        "--disable-hot-restart",
    ]
    with Process("envoy", command, place.folder, probe=port) as process:
        yield Proxy(port, process)
