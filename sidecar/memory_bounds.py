"""The bounds on connections and buffered bytes, so that the sidecar stays within its memory limit. Pure.

The kernel ends a process that exceeds the limit of its container, and all streams with it. So by default the
bounds are what the limit has room for, with every connection at its own limit. An explicit option wins.
"""

from __future__ import annotations

from typing import NamedTuple

from runtime.options import SettingsError
from sidecar.settings import Settings

MOST_CONNECTIONS, MOST_BUFFERED = 10_000, 256 << 20
"""The bounds without a memory limit, and the largest default ones with it."""
USED = 0.9
"""The part of the limit that the bounds may fill. The rest is for fragmented memory."""
IDLE_BYTES, ENTITLEMENT_BYTES = 64 << 20, 11 << 10
"""The memory of an idle sidecar, and of each entitlement that was used: 52 to 59 MB, and 95 MB with 4,000."""
CONNECTION_BYTES = 136 << 10
"""The bytes of a connection that are not counted otherwise: 64 KiB of an unread answer here, as much in the
kernel, and the objects."""
TLS_BYTES = 368 << 10
"""The same for TLS in addition: 64 KiB of an answer, 256 KiB of input, and 48 KiB of objects."""
TRACING_BYTES, TRACE_BYTES = 20 << 20, 8 << 10
"""The memory for tracing: OpenTelemetry and a full queue of 2,048 spans take 15 to 18 MB. A running request
takes 7 kB."""
BUFFERED_PART = 0.4
"""The part of the remaining memory for buffered bytes. The rest is for connections."""
FEWEST_CONNECTIONS = 100


class MemoryBounds(NamedTuple):
    """The bounds in force."""

    connections: int
    """The most client connections."""
    buffered_bytes: int
    """The most bytes of all requests and unread answers."""


def derive(settings: Settings, entitlements: int, limit: int | None, workers: int = 1) -> MemoryBounds:
    """The bounds of each of ``workers`` for a memory limit in bytes, and this number of entitlements.

    The workers of a sidecar share its memory, its connections and its buffered bytes in equal parts.

    Raises ``SettingsError`` if the limit has no room for the largest body and a few connections.
    """
    connections, buffered = settings.max_connections, settings.max_buffered_bytes
    most_connections = -(-MOST_CONNECTIONS // workers)
    if connections is not None:
        connections = -(-connections // workers)
    if buffered is not None:
        buffered //= workers
    if limit is not None:
        limit //= workers
    # One entitlement's share must hold the largest body.
    least = int(settings.max_body_bytes / settings.entitlement_share) + 1
    most = max(MOST_BUFFERED // workers, least)
    if limit is None:
        return MemoryBounds(
            most_connections if connections is None else connections, most if buffered is None else buffered
        )
    each = CONNECTION_BYTES + settings.max_head_bytes + (TLS_BYTES if settings.tls_cert is not None else 0)
    # A body is there a second time while it is put together.
    used = IDLE_BYTES + entitlements * ENTITLEMENT_BYTES + settings.max_body_bytes
    if settings.otlp_endpoint is not None:
        each += TRACE_BYTES
        used += TRACING_BYTES
    free = int(limit * USED) - used
    if buffered is None:
        part = min(int(free * BUFFERED_PART), free - FEWEST_CONNECTIONS * each)
        buffered = min(max(part if connections is None else free - connections * each, least), most)
    if connections is None:
        connections = min((free - buffered) // each, most_connections)
        if connections < FEWEST_CONNECTIONS:
            needed = (used + buffered + FEWEST_CONNECTIONS * each) / USED
            raise_to = ((int(needed) >> 20) + 1) * workers
            of_each = f" for each of {workers} workers" if workers > 1 else ""
            raise SettingsError(
                f"the memory limit of {limit * workers >> 20} MiB has no room for {FEWEST_CONNECTIONS}"
                f" connections and {buffered >> 20} MiB of requests and answers{of_each}; raise it to"
                f" {raise_to} MiB, or lower --max-body-bytes, or set --max-connections and"
                " --max-buffered-bytes"
            )
    return MemoryBounds(connections, buffered)
