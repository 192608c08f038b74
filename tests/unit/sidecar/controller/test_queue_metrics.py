"""The metrics of the admission queue, by tier."""

from __future__ import annotations

from sidecar.controller.queue_metrics import length_by_tier, queue_metrics, wait_metrics
from tests.support.domain_builders import ASK, account, cost
from tokenpool.admission.pending import PendingRequest, WaitsFor
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.entitlements import Tier


def samples(queue: AdmissionQueue) -> dict[tuple[str, ...], float]:
    """The samples that are not 0, by name and the values of the labels."""
    metrics = [
        *queue_metrics(queue),
        *wait_metrics("tokenpool_lease_wait", "Requests that waited for a lease.", queue.lease_waits),
    ]
    found = [sample for metric in metrics for sample in metric.samples]
    return {(each.name, *each.labels.values()): each.value for each in found if each.value}


def pending(tier: Tier, *, is_of_peer: bool = False) -> PendingRequest:
    owner = account(name=f"{tier.value}{is_of_peer}", tier=tier)
    return PendingRequest(owner, ASK, cost(), 0.0, longest_wait_s=9.0, is_of_peer=is_of_peer)


def test_the_length_and_the_waits_of_each_tier_are_exposed() -> None:
    queue = AdmissionQueue(QueueSettings())
    gold, elastic, peer_request = (
        pending(Tier.GUARANTEED),
        pending(Tier.ELASTIC),
        pending(Tier.ELASTIC, is_of_peer=True),
    )
    queue.enter_for_lease(gold, 0.0, 9.0)
    queue.enter(elastic, 0.0, WaitsFor.ENGINE)
    queue.enter(peer_request, 0.0, WaitsFor.ENGINE)
    assert samples(queue) == {
        ("tokenpool_queue_length", "guaranteed", "lease"): 1,
        ("tokenpool_queue_length", "elastic", "room"): 1,
        ("tokenpool_queue_waits_total", "elastic"): 1,
        ("tokenpool_lease_waits_total", "guaranteed"): 1,
    }
    queue.leave(gold, 0.5)
    queue.leave(elastic, 2.0)
    queue.leave(peer_request, 3.0)
    assert samples(queue) == {
        ("tokenpool_queue_waits_total", "elastic"): 1,
        ("tokenpool_queue_wait_seconds_total", "elastic"): 2.0,
        ("tokenpool_lease_waits_total", "guaranteed"): 1,
        ("tokenpool_lease_wait_seconds_total", "guaranteed"): 0.5,
    }
    assert all(not number for lengths in length_by_tier(queue).values() for number in lengths.values())
