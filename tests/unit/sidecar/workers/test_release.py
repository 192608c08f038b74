"""A killed worker's leases are free at once, and a late message of it takes nothing back."""

from __future__ import annotations

import pytest

from sidecar.workers.release import release
from tokenpool.leases.messages import LeaseRequest, Limit, Message, PoolSnapshot
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.leases.tick import tick
from tokenpool.leases.wire import SidecarReport, decode_report, encode_report
from tokenpool.planning.idle import IdleTerms

WANT = LeaseRequest(kv_wanted=100, concurrency_wanted=4, concurrency_in_use=4, tokens_wanted=10)


def test_the_others_get_its_leases() -> None:
    store = ReferenceLeaseStore(0.0, 1.5, is_first=True)
    store.publish({"a": Limit(100, 1000, 4, depth=100)}, IdleTerms(), 1, 0.0)
    store.exchange(Message("lost", 7, {"a": WANT}), 0.1)
    assert store.exchange(Message("other", 1, {"a": WANT}), 0.2).answer.leases["a"].concurrency == 0

    message = release("lost")
    store.exchange(message, 0.3)
    store.exchange(Message("lost", 8, {"a": WANT}), 0.4)  # it was on its way

    assert store.exchange(Message("other", 2, {"a": WANT}), 0.5).answer.leases["a"].concurrency == 4
    report = decode_report(message.report)
    assert (report.capacity.concurrency, report.engine_up) == (0, True)


@pytest.mark.parametrize("parts", [[2], [1], [2, 2], [4, 4, 4], [3, 3]], ids=lambda parts: f"{parts}")
def test_an_ended_worker_is_a_part_of_no_engine(parts: list[int]) -> None:
    """``parts``: the workers that each living one has counted. It counts the ended one for a moment."""
    reports = {
        f"w{i}": encode_report(SidecarReport(engine_up=True, workers=each)) for i, each in enumerate(parts)
    }
    reports["lost"] = release("lost").report

    made = tick(PoolSnapshot({}, reports, 1, True, 0.0, ""), {}, None)

    assert (made.engines, made.engines_up) == (1, 1)
