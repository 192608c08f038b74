"""The rules of the lease store: leases never add up to more than the limit, for any messages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.amounts import Amount
from tokenpool.leases.messages import FREED, RECLAIM, REMEMBER_S, LeaseRequest, Limit, Message, Push
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.planning.idle import IdleTerms

LIFETIME = 1.5
LIMIT = Limit(100, 1000, 4, 200)
TERMS = IdleTerms((50.0, 500.0, 2.0), (100.0, 1000.0, 4.0))
OPEN = LIFETIME
"""The time at which a new lease store begins to grant leases."""


class Got(NamedTuple):
    """The lease of a holder."""

    kv_tokens: float = 0.0
    concurrency: float = 0.0
    tokens: float = 0.0


NOTHING = Got()


def send(
    made: ReferenceLeaseStore,
    holder: str,
    number: int,
    lease_requests: Mapping[str, LeaseRequest],
    now: float,
    *,
    whole: bool = True,
) -> dict[str, Got]:
    """Send one message; returns the lease of its sender."""
    answer = made.exchange(Message(holder, number, lease_requests, whole), now).answer
    return {name: Got(g.kv_tokens, g.concurrency, g.tokens) for name, g in answer.leases.items()}


def meanwhile(made: ReferenceLeaseStore, start: float, end: float) -> None:
    """Another holder sends messages, so that the lease store stays open."""
    while start < end:
        send(made, "other", int(start * 1000), {}, start)
        start += LIFETIME / 2
    send(made, "other", int(end * 1000), {}, end)


def held(made: ReferenceLeaseStore, now: float) -> Got:
    """The sum of all leases of entitlement a."""
    amount = made.read(now).records["a"].held
    return Got(amount.kv_tokens, amount.concurrency, amount.tokens_per_second)


def lease_store(limit: Limit = LIMIT) -> ReferenceLeaseStore:
    made = ReferenceLeaseStore(0.0, LIFETIME)
    made.publish({"a": limit}, TERMS, 1, 0.0)
    return made


def lease_request(
    concurrency: float = 0,
    *,
    in_use: float = 0,
    tokens: float = 0,
    spent: float = 0,
    bound: float = 0,
    urgent: bool = False,
) -> LeaseRequest:
    return LeaseRequest(
        is_urgent=urgent,
        kv_bound=bound * 100,
        concurrency_bound=bound,
        kv_in_use=in_use * 100,
        concurrency_in_use=in_use,
        kv_wanted=concurrency * 100,
        concurrency_wanted=concurrency,
        tokens_spent=spent,
        tokens_wanted=tokens,
    )


def test_a_wanted_lease_is_granted_while_capacity_is_free() -> None:
    made = lease_store()
    assert send(made, "s1", 0, {"a": lease_request(3)}, OPEN)["a"].concurrency == 3
    assert send(made, "s2", 0, {"a": lease_request(3)}, OPEN)["a"].concurrency == 1
    assert held(made, OPEN) == Got(600, 4, 0)


def test_a_returned_lease_is_free_at_once() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(4)}, OPEN)
    send(made, "s1", 1, {}, OPEN)
    assert send(made, "s2", 0, {"a": lease_request(4)}, OPEN)["a"].concurrency == 4


def test_a_holder_without_a_renewal_loses_its_lease_one_lifetime_later() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(4)}, OPEN)
    assert send(made, "s2", 0, {"a": lease_request(4)}, OPEN + LIFETIME - 0.01)["a"].concurrency == 0
    assert send(made, "s2", 1, {"a": lease_request(4)}, OPEN + LIFETIME)["a"].concurrency == 4


def test_the_running_requests_of_a_returning_holder_count_beyond_the_limit_but_it_gets_no_lease() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(4)}, OPEN)
    meanwhile(made, OPEN, OPEN + 2)
    send(made, "s2", 0, {"a": lease_request(4)}, OPEN + 2)
    assert send(made, "s1", 1, {"a": lease_request(4, in_use=2)}, OPEN + 2)["a"].concurrency == 0
    assert held(made, OPEN + 2).concurrency == 6
    assert send(made, "s2", 1, {"a": lease_request(4, in_use=1)}, OPEN + 2)["a"].concurrency == 2


def test_a_smaller_limit_does_not_reduce_the_current_use() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(4, in_use=3)}, OPEN)
    made.publish({"a": Limit(100, 1000, 2, 200)}, TERMS, 1, OPEN)
    # Its running requests count as held, and it starts no request until they are below the limit.
    assert send(made, "s1", 1, {"a": lease_request(4, in_use=3)}, OPEN)["a"].concurrency == 2
    assert held(made, OPEN).concurrency == 3
    assert send(made, "s1", 2, {"a": lease_request(4, in_use=1)}, OPEN)["a"].concurrency == 2
    assert held(made, OPEN).concurrency == 2


def test_tokens_are_drawn_from_a_bucket_that_refills_by_the_lease_store_clock() -> None:
    made = lease_store()
    assert send(made, "s1", 0, {"a": lease_request(tokens=150)}, OPEN)["a"].tokens == 150
    assert send(made, "s2", 0, {"a": lease_request(tokens=150)}, OPEN)["a"].tokens == 50
    spent = send(made, "s1", 1, {"a": lease_request(tokens=150, spent=150)}, OPEN)["a"]
    assert spent.tokens == 0
    assert send(made, "s1", 2, {"a": lease_request(tokens=150, spent=150)}, OPEN + 0.5)["a"].tokens == 50


def test_a_settlement_may_lower_the_level_below_zero_for_all_holders() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(tokens=10)}, OPEN)
    send(made, "s1", 1, {"a": lease_request(spent=500)}, OPEN)  # one large request: level 200 - 500
    meanwhile(made, OPEN, OPEN + 2.9)
    assert send(made, "s2", 0, {"a": lease_request(tokens=10)}, OPEN + 2.9)["a"].tokens == 0
    assert send(made, "s2", 1, {"a": lease_request(tokens=10)}, OPEN + 3.1)["a"].tokens == pytest.approx(10)


def test_a_refund_returns_to_the_bucket() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(tokens=200)}, OPEN)
    send(made, "s1", 1, {"a": lease_request(spent=200)}, OPEN)
    send(made, "s1", 2, {"a": lease_request(spent=50)}, OPEN)
    assert send(made, "s2", 0, {"a": lease_request(tokens=500)}, OPEN)["a"].tokens == 150


def test_duplicated_and_late_messages_change_nothing() -> None:
    made = lease_store()
    send(made, "s1", 5, {"a": lease_request(2, tokens=100, spent=30)}, OPEN)
    send(made, "s1", 6, {"a": lease_request(1, tokens=50, spent=80)}, OPEN)
    for number in (6, 5, 0):
        late = send(made, "s1", number, {"a": lease_request(4, tokens=100, spent=0)}, OPEN)
        assert late["a"] == Got(100, 1, 50)
    assert held(made, OPEN) == Got(100, 1, 50)


def test_a_forgotten_holder_must_begin_a_lifetime() -> None:
    made = lease_store()
    send(made, "s1", 9, {"a": lease_request(2)}, OPEN)
    later = OPEN + REMEMBER_S
    assert send(made, "s1", 0, {"a": lease_request(2)}, OPEN + LIFETIME)["a"] == NOTHING
    meanwhile(made, OPEN + LIFETIME, later)
    assert send(made, "s1", 0, {"a": lease_request(2)}, later)["a"].concurrency == 2


def test_usage_during_a_failed_connection_is_charged_at_the_return() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(tokens=150)}, OPEN)
    meanwhile(made, OPEN, OPEN + 3)
    assert send(made, "s2", 0, {"a": lease_request(tokens=300)}, OPEN + 3)["a"].tokens == 200
    send(made, "s1", 1, {"a": lease_request(spent=150)}, OPEN + 3)
    send(made, "s2", 1, {"a": lease_request(spent=200)}, OPEN + 3)
    meanwhile(made, OPEN + 3, OPEN + 4.4)
    assert send(made, "s2", 2, {"a": lease_request(tokens=1, spent=200)}, OPEN + 4.4)["a"].tokens == 0
    assert send(made, "s2", 3, {"a": lease_request(tokens=1, spent=200)}, OPEN + 4.6)["a"].tokens == 1


def test_a_new_lease_store_counts_running_requests_and_grants_nothing_for_a_lifetime() -> None:
    made = lease_store()
    assert send(made, "s1", 0, {"a": lease_request(4, in_use=1, tokens=10)}, 0.1)["a"] == NOTHING
    assert held(made, 0.1) == Got(100, 1, 0)
    assert send(made, "s1", 1, {"a": lease_request(4, in_use=1, tokens=10)}, OPEN)["a"] == Got(400, 4, 10)


def test_only_the_latest_coordinator_writes_limits() -> None:
    made = lease_store()
    assert made.publish({"a": Limit(100, 1000, 2, 200)}, TERMS, 3, OPEN)
    assert not made.publish({"a": LIMIT}, TERMS, 2, OPEN)
    assert made.publish({"a": Limit(100, 1000, 3, 200)}, TERMS, 3, OPEN)
    assert send(made, "s1", 0, {"a": lease_request(9)}, OPEN)["a"].concurrency == 3


def test_a_removed_entitlement_gets_no_further_lease() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(2, in_use=1)}, OPEN)
    made.publish({}, TERMS, 1, OPEN)
    assert send(made, "s1", 1, {"a": lease_request(2, in_use=1)}, OPEN)["a"] == NOTHING
    assert held(made, OPEN) == Got(100, 1, 0)
    send(made, "s1", 2, {}, OPEN)
    made.publish({}, TERMS, 1, OPEN)
    assert made.read(OPEN).records == {}


def test_an_entitlement_without_a_limit_gets_no_lease() -> None:
    assert send(lease_store(), "s1", 0, {"b": lease_request(1, tokens=1)}, OPEN)["b"] == NOTHING


def test_the_bound_counts_as_held_until_the_next_message() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(4)}, OPEN)
    made.publish({"a": Limit(100, 1000, 2, 200)}, TERMS, 1, OPEN)
    # The answer may be lost: s1 may use 4 until its next message.
    assert send(made, "s1", 1, {"a": lease_request(4, bound=4)}, OPEN)["a"].concurrency == 2
    assert held(made, OPEN).concurrency == 4
    assert send(made, "s1", 2, {"a": lease_request(4, bound=2)}, OPEN)["a"].concurrency == 2
    assert held(made, OPEN).concurrency == 2


def test_a_partial_message_changes_only_the_named_entitlements_and_renews_no_lease() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(3)}, OPEN)
    assert send(made, "s1", 1, {"b": lease_request(1)}, OPEN + 1, whole=False)["b"] == NOTHING
    assert held(made, OPEN + 1).concurrency == 3
    assert held(made, OPEN + LIFETIME).concurrency == 0


def test_a_holder_without_a_lifetime_cannot_begin_with_a_partial_message() -> None:
    made = lease_store()
    assert send(made, "s1", 0, {"a": lease_request(3)}, OPEN, whole=False)["a"] == NOTHING
    assert send(made, "s1", 1, {"a": lease_request(3)}, OPEN)["a"].concurrency == 3


def test_a_holder_that_lacks_capacity_causes_a_reclaim_and_is_notified_of_free_capacity() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(4, in_use=2, tokens=9)}, OPEN)
    send(made, "s2", 0, {}, OPEN)
    short = {"a": lease_request(1, tokens=1, urgent=True)}
    asked = made.exchange(Message("s2", 1, short, False), OPEN)
    assert asked.answer.leases["a"].concurrency == 0
    assert asked.pushes == [Push("s1", RECLAIM, "a")]
    returned = made.exchange(Message("s1", 1, {"a": lease_request(2, in_use=2)}, False), OPEN)
    assert returned.pushes == [Push("s2", FREED, "a")]
    assert send(made, "s2", 2, short, OPEN, whole=False)["a"].concurrency == 1


def test_a_lease_store_without_a_message_for_a_lifetime_is_closed_for_one() -> None:
    made = lease_store()
    send(made, "s1", 0, {"a": lease_request(4)}, OPEN)
    cut = OPEN + 2 * LIFETIME
    assert send(made, "s2", 0, {"a": lease_request(4)}, cut)["a"].concurrency == 0
    assert send(made, "s1", 1, {"a": lease_request(4, in_use=3)}, cut + 0.1)["a"].concurrency == 0
    assert held(made, cut + 0.1).concurrency == 3
    assert send(made, "s2", 1, {"a": lease_request(4)}, cut + LIFETIME)["a"].concurrency == 1


def test_usage_during_an_outage_is_charged_to_the_refill_of_that_time() -> None:
    made = lease_store()
    spent = lease_request(1)._replace(tokens_spent=0.0)
    for holder in ("s1", "s2"):
        send(made, holder, 0, {"a": spent}, OPEN)
    back = OPEN + 10  # 1,000 tokens came in, the bucket holds 200
    for holder in ("s1", "s2"):
        send(made, holder, 1, {"a": spent._replace(tokens_spent=450.0)}, back)
    record = made.read(back + 1).records["a"]
    assert record.level == 200 + 1000 - 900 + 100
    send(made, "s1", 2, {"a": spent._replace(tokens_spent=450.0)}, back + LIFETIME)
    assert made.read(back + LIFETIME).records["a"].level == 200  # full


def test_a_lease_store_without_messages_is_closed_to_the_coordinator() -> None:
    made = lease_store()
    send(made, "s1", 0, {}, OPEN)
    assert made.read(OPEN + LIFETIME).is_open
    assert not made.read(OPEN + LIFETIME + 0.1).is_open


def test_an_answer_has_the_age_of_the_limits() -> None:
    made = lease_store()
    answer = made.exchange(Message("s1", 0, {}), OPEN).answer
    made.publish({"a": LIMIT}, TERMS, 2, OPEN + 1)
    later = made.exchange(Message("s1", 1, {}), OPEN + 3).answer
    assert (answer.limits_age_s, later.limits_age_s) == (OPEN, 2)
    new = ReferenceLeaseStore(0.0, LIFETIME).exchange(Message("s1", 0, {}), 1.0).answer
    assert new.limits_age_s == math.inf


def test_the_coordinator_reads_sums_over_all_holders_with_a_lifetime() -> None:
    made = lease_store()
    request_with_totals = lease_request(2, in_use=1)._replace(
        demand=(10, 20, 3), fresh=(4, 2, 1), floor=(7, 100, 1)
    )
    send(made, "s1", 0, {"a": request_with_totals}, OPEN)
    send(made, "s2", 0, {"a": request_with_totals._replace(floor=(9, 50, 2))}, OPEN + 1)
    record = made.read(OPEN + 1).records["a"]
    assert record.demand.as_dict() == {"tokens_per_second": 20, "kv_tokens": 40, "concurrency": 6}
    assert (record.fresh.concurrency, record.in_use.concurrency) == (2, 2)
    assert 50 < record.floor.kv_tokens <= 100
    assert (record.floor.tokens_per_second, record.floor.concurrency) == (9, 2)
    assert set(made.read(OPEN + 1).reports) == {"s1", "s2"}
    assert made.read(OPEN + LIFETIME).records["a"].demand.concurrency == 3


def test_service_is_the_sum_of_the_totals_of_all_holders_at_any_time() -> None:
    made = lease_store()

    def request_with_totals(tokens: float, kv_seconds: float, seconds: float) -> LeaseRequest:
        return lease_request(1)._replace(
            tokens_spent=tokens, kv_seconds=kv_seconds, concurrency_seconds=seconds
        )

    send(made, "s1", 0, {"a": request_with_totals(1000, 2000, 30)}, OPEN)
    send(made, "s2", 0, {"a": request_with_totals(5, 5, 5)}, OPEN)
    assert made.read(OPEN).records["a"].served == Amount()  # the usage before is not known
    send(made, "s1", 1, {"a": request_with_totals(1100, 2200, 31)}, OPEN + 0.2)
    send(made, "s2", 1, {"a": request_with_totals(0, 10, 6)}, OPEN + 0.3)
    assert made.read(OPEN + 0.3).records["a"].served == Amount(95, 205, 2)
    send(made, "s1", 2, {}, OPEN + 0.4)
    assert made.read(OPEN + 0.4).records["a"].served == Amount(95, 205, 2)


def test_an_older_coordinator_cannot_replace_the_pool_file() -> None:
    made = lease_store()
    assert made.publish_file("v7", b"seven", 7)
    assert not made.publish_file("v6", b"six", 6)
    assert made.exchange(Message("s1", 0, {}), OPEN).answer.file_version == "v7"


HOLDERS = ["s1", "s2", "s3"]
steps = st.lists(
    st.tuples(
        st.sampled_from(["exchange", "exchange", "exchange", "limit", "spend", "late"]),
        st.sampled_from(HOLDERS),
        st.integers(0, 4),
        st.integers(0, 6),
        st.floats(0, 200),
        st.floats(0, 2.0),
    ),
    max_size=60,
)


@given(steps)
def test_the_lease_store_never_grants_more_than_the_limit_and_tokens_are_conserved(
    script: list[tuple[str, str, int, int, float, float]],
) -> None:
    """If no holder uses more than its lease, all together never exceed the largest limit."""
    now, limit = OPEN, 4.0
    made = lease_store()
    granted = dict.fromkeys(HOLDERS, NOTHING)
    spent = dict.fromkeys(HOLDERS, 0.0)
    numbers = dict.fromkeys(HOLDERS, 0)
    heard = dict.fromkeys(HOLDERS, -math.inf)
    for action, holder, in_use, wanted, tokens, wait in script:
        now += wait
        if now - heard[holder] >= LIFETIME:
            granted[holder] = NOTHING  # the lease expired for the holder too
        if action == "limit":
            limit = float(wanted)
            made.publish({"a": Limit(100, 1000, limit, 200)}, TERMS, 1, now)
        elif action == "spend":
            unheard = min(tokens, granted[holder].tokens)
            spent[holder] += unheard
            granted[holder] = granted[holder]._replace(tokens=granted[holder].tokens - unheard)
        elif action == "late" and numbers[holder] > 1:
            send(made, holder, numbers[holder] - 1, {"a": lease_request(6, tokens=200)}, now)
        elif action == "exchange":
            runs = min(in_use, granted[holder].concurrency)
            spent[holder] += min(tokens, granted[holder].tokens)
            numbers[holder] += 1
            before = held(made, now)
            request_with_totals = lease_request(
                max(wanted, runs), in_use=runs, tokens=tokens, spent=spent[holder]
            )
            got = send(made, holder, numbers[holder], {"a": request_with_totals}, now)["a"]
            granted[holder], heard[holder] = got, now
            after = held(made, now)
            assert after.concurrency >= runs
            assert after.concurrency <= max(limit, before.concurrency)
            if got.concurrency > runs:
                assert after.concurrency <= limit
            assert got.tokens <= tokens
    assert sum(spent.values()) <= 200 + 100 * now + 1e-6
