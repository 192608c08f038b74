"""A killed worker's leases are free at once, and a late message of it takes nothing back."""

from __future__ import annotations

from sidecar.workers.release import release
from tokenpool.leases.messages import LeaseRequest, Limit, Message
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.leases.wire import decode_report
from tokenpool.planning.idle import IdleTerms

WANT = LeaseRequest(kv_wanted=100, concurrency_wanted=4, concurrency_in_use=4, tokens_wanted=10)


def test_the_others_get_its_leases() -> None:
    store = ReferenceLeaseStore(0.0, 1.5, is_first=True)
    store.publish({"a": Limit(100, 1000, 4, depth=100)}, IdleTerms(), 1, 0.0)
    store.exchange(Message("lost", 7, {"a": WANT}), 0.1)
    assert store.exchange(Message("other", 1, {"a": WANT}), 0.2).answer.leases["a"].concurrency == 0

    message = release("lost", 4)
    store.exchange(message, 0.3)
    store.exchange(Message("lost", 8, {"a": WANT}), 0.4)  # it was on its way

    assert store.exchange(Message("other", 2, {"a": WANT}), 0.5).answer.leases["a"].concurrency == 4
    report = decode_report(message.report)
    assert (report.capacity.concurrency, report.workers) == (0, 4)
