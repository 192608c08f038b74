"""The metrics of the admission queue by tier: its length, and the number and the sum of its waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tokenpool.admission.queue import AdmissionQueue, WaitCounts
from tokenpool.entitlements import Tier


def length_by_tier(queue: AdmissionQueue) -> Mapping[Tier, Mapping[str, int]]:
    """The number of this replica's requests that wait now for room, and for a lease, by tier."""
    return {
        tier: {
            "room": queue.room_waits[tier].under_way,
            "lease": queue.lease_waits[tier].under_way,
        }
        for tier in Tier
    }


def queue_metrics(queue: AdmissionQueue) -> Iterator[Metric]:
    """The length of the queue, and its waits for room, for Prometheus."""
    length = GaugeMetricFamily(
        "tokenpool_queue_length",
        "Requests that wait now: for room on an engine, or for a lease.",
        labels=("tier", "waits_for"),
    )
    for tier, lengths in length_by_tier(queue).items():
        for waits_for, number in lengths.items():
            length.add_metric((tier.value, waits_for), number)
    yield length
    yield from wait_metrics(
        "tokenpool_queue_wait", "Requests that waited in the admission queue for room.", queue.room_waits
    )


def wait_metrics(prefix: str, text: str, waits: Mapping[Tier, WaitCounts]) -> Iterator[Metric]:
    """The number of waits and their sum in seconds, by tier."""
    count = CounterMetricFamily(f"{prefix}s", text, labels=("tier",))
    sum_text = f"Sum of the waits that {prefix}s_total counts, in seconds."
    seconds = CounterMetricFamily(f"{prefix}_seconds", sum_text, labels=("tier",))
    for tier in Tier:
        count.add_metric((tier.value,), waits[tier].count)
        seconds.add_metric((tier.value,), waits[tier].seconds)
    yield from (count, seconds)
