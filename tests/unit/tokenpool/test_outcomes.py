"""Reasons: every reason has a status and a meaning, and lack of capacity has a word of llm-d's router."""

from __future__ import annotations

from tokenpool.outcomes import Reason


def test_a_request_that_was_dropped_for_capacity_says_so_in_the_words_of_a_router() -> None:
    """429: there is capacity, but it is contended. 503: there is none at all."""
    dropped = {reason: reason.dropped_reason for reason in Reason if reason.dropped_reason is not None}

    others = {Reason.INSUFFICIENT_QUOTA, Reason.QUOTA_IN_USE, Reason.JWT_UNVERIFIED}
    assert set(dropped) == {reason for reason in Reason if reason.status in (429, 503)} - others
    assert {reason for reason, word in dropped.items() if word.startswith("evicted")} == {Reason.PREEMPTED}
    assert dropped[Reason.ENGINE_FULL] == "rejected-saturated"
    assert dropped[Reason.ENGINE_DOWN] == "rejected-no-endpoints"
    assert dropped[Reason.DRAINING] == "rejected-shutting-down"
