"""The metrics of the resources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from coordinator.resources.reading import Kind

Counts = Mapping[Kind, Counter[str]]
"""The number of resources by kind and state."""
STATES = ("accepted", "earlier", "rejected")
ENDS = ("ended", "gone", "failed")
RESULTS = ("ok", "conflict", "gone", "refused", "failed")


def families(
    counts: Counts, ends: Mapping[str, int], writes: Mapping[str, int], *, is_synced: bool
) -> Iterator[Metric]:
    """prometheus-client: the state of the resources."""
    yield GaugeMetricFamily(
        "tokenpool_resources_synced",
        "Whether all resources were listed, and no list or watch fails now.",
        value=float(is_synced),
    )
    resources = GaugeMetricFamily(
        "tokenpool_resources",
        "Resources by state: accepted; earlier (only an earlier version is in force); rejected.",
        labels=("resource", "state"),
    )
    for kind in Kind:
        for state in STATES:
            resources.add_metric((kind, state), counts[kind][state] if kind in counts else 0)
    yield resources
    restarts = CounterMetricFamily(
        "tokenpool_resource_watch_restarts",
        "Ended lists and watches: ended by the server; gone (410, listed again); failed.",
        labels=("cause",),
    )
    for cause in ENDS:
        restarts.add_metric((cause,), ends.get(cause, 0))
    yield restarts
    written = CounterMetricFamily(
        "tokenpool_resource_status_writes", "Writes of a status by result.", labels=("result",)
    )
    for result in RESULTS:
        written.add_metric((result,), writes.get(result, 0))
    yield written
