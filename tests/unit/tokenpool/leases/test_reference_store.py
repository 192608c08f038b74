"""The lease store: what is held never adds up to more than the limit, whatever messages come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.amounts import Amount
from tokenpool.leases.reference_store import (
    FREED,
    RECLAIM,
    REMEMBER_S,
    Holding,
    Limit,
    Message,
    Push,
    ReferenceLeaseStore,
)
from tokenpool.planning.allocation import IdleTerms

LIFETIME = 1.5
LIMIT = Limit(100, 1000, 4, 200)
TERMS = IdleTerms((50.0, 500.0, 2.0), (100.0, 1000.0, 4.0))
OPEN = LIFETIME
"""When new lease store begin to give."""


class Got(NamedTuple):
    """What a holder was given."""

    kv_tokens: float = 0.0
    concurrency: float = 0.0
    tokens: float = 0.0


NOTHING = Got()


def tell(
    made: ReferenceLeaseStore,
    holder: str,
    number: int,
    holdings: Mapping[str, Holding],
    now: float,
    *,
    whole: bool = True,
) -> dict[str, Got]:
    """One message, and what its sender holds then."""
    answer = made.exchange(Message(holder, number, holdings, whole), now)
    return {name: Got(g.kv_tokens, g.concurrency, g.tokens) for name, g in answer.leases.items()}


def meanwhile(made: ReferenceLeaseStore, start: float, end: float) -> None:
    """Somebody else keeps writing, so that the lease store stay open."""
    while start < end:
        tell(made, "other", int(start * 1000), {}, start)
        start += LIFETIME / 2
    tell(made, "other", int(end * 1000), {}, end)


def held(made: ReferenceLeaseStore, now: float) -> Got:
    """What all hold of entitlement a."""
    amount = made.read(now).pages["a"].held
    return Got(amount.kv_tokens, amount.concurrency, amount.tokens_per_second)


def lease_store(limit: Limit = LIMIT) -> ReferenceLeaseStore:
    made = ReferenceLeaseStore(0.0, LIFETIME)
    made.publish({"a": limit}, TERMS, 1, 0.0)
    return made


def want(
    concurrency: float = 0,
    *,
    in_use: float = 0,
    tokens: float = 0,
    spent: float = 0,
    bound: float = 0,
    urgent: bool = False,
) -> Holding:
    return Holding(
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


def test_what_is_wanted_is_given_while_it_is_free() -> None:
    made = lease_store()
    assert tell(made, "s1", 0, {"a": want(3)}, OPEN)["a"].concurrency == 3
    assert tell(made, "s2", 0, {"a": want(3)}, OPEN)["a"].concurrency == 1
    assert held(made, OPEN) == Got(600, 4, 0)


def test_what_is_returned_is_free_at_once() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(4)}, OPEN)
    tell(made, "s1", 1, {}, OPEN)
    assert tell(made, "s2", 0, {"a": want(4)}, OPEN)["a"].concurrency == 4


def test_a_silent_holder_loses_its_lease_one_lifetime_later() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(4)}, OPEN)
    assert tell(made, "s2", 0, {"a": want(4)}, OPEN + LIFETIME - 0.01)["a"].concurrency == 0
    assert tell(made, "s2", 1, {"a": want(4)}, OPEN + LIFETIME)["a"].concurrency == 4


def test_a_holder_that_wakes_up_has_what_runs_booked_beyond_the_limit_but_gets_no_more() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(4)}, OPEN)
    meanwhile(made, OPEN, OPEN + 2)
    tell(made, "s2", 0, {"a": want(4)}, OPEN + 2)
    assert tell(made, "s1", 1, {"a": want(4, in_use=2)}, OPEN + 2)["a"].concurrency == 0
    assert held(made, OPEN + 2).concurrency == 6
    assert tell(made, "s2", 1, {"a": want(4, in_use=1)}, OPEN + 2)["a"].concurrency == 2


def test_a_limit_that_shrinks_takes_nothing_from_what_runs() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(4, in_use=3)}, OPEN)
    made.publish({"a": Limit(100, 1000, 2, 200)}, TERMS, 1, OPEN)
    # It holds what runs, and may begin nothing until that is less than the limit.
    assert tell(made, "s1", 1, {"a": want(4, in_use=3)}, OPEN)["a"].concurrency == 2
    assert held(made, OPEN).concurrency == 3
    assert tell(made, "s1", 2, {"a": want(4, in_use=1)}, OPEN)["a"].concurrency == 2
    assert held(made, OPEN).concurrency == 2


def test_tokens_are_drawn_from_a_bucket_that_refills_by_the_lease_store_clock() -> None:
    made = lease_store()
    assert tell(made, "s1", 0, {"a": want(tokens=150)}, OPEN)["a"].tokens == 150
    assert tell(made, "s2", 0, {"a": want(tokens=150)}, OPEN)["a"].tokens == 50
    spent = tell(made, "s1", 1, {"a": want(tokens=150, spent=150)}, OPEN)["a"]
    assert spent.tokens == 0
    assert tell(made, "s1", 2, {"a": want(tokens=150, spent=150)}, OPEN + 0.5)["a"].tokens == 50


def test_a_settlement_may_bring_the_level_below_zero_and_is_paid_off_by_all() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(tokens=10)}, OPEN)
    tell(made, "s1", 1, {"a": want(spent=500)}, OPEN)  # one large request: level 200 - 500
    meanwhile(made, OPEN, OPEN + 2.9)
    assert tell(made, "s2", 0, {"a": want(tokens=10)}, OPEN + 2.9)["a"].tokens == 0
    assert tell(made, "s2", 1, {"a": want(tokens=10)}, OPEN + 3.1)["a"].tokens == pytest.approx(10)


def test_a_refund_comes_back_to_the_bucket() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(tokens=200)}, OPEN)
    tell(made, "s1", 1, {"a": want(spent=200)}, OPEN)
    tell(made, "s1", 2, {"a": want(spent=50)}, OPEN)
    assert tell(made, "s2", 0, {"a": want(tokens=500)}, OPEN)["a"].tokens == 150


def test_doubled_and_late_messages_book_nothing() -> None:
    made = lease_store()
    tell(made, "s1", 5, {"a": want(2, tokens=100, spent=30)}, OPEN)
    tell(made, "s1", 6, {"a": want(1, tokens=50, spent=80)}, OPEN)
    for number in (6, 5, 0):
        late = tell(made, "s1", number, {"a": want(4, tokens=100, spent=0)}, OPEN)
        assert late["a"] == Got(100, 1, 50)
    assert held(made, OPEN) == Got(100, 1, 50)


def test_a_holder_that_was_forgotten_begins_anew() -> None:
    made = lease_store()
    tell(made, "s1", 9, {"a": want(2)}, OPEN)
    later = OPEN + REMEMBER_S
    assert tell(made, "s1", 0, {"a": want(2)}, OPEN + LIFETIME)["a"] == NOTHING
    meanwhile(made, OPEN + LIFETIME, later)
    assert tell(made, "s1", 0, {"a": want(2)}, later)["a"].concurrency == 2


def test_what_was_spent_while_cut_off_is_charged_on_coming_back() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(tokens=150)}, OPEN)
    meanwhile(made, OPEN, OPEN + 3)
    assert tell(made, "s2", 0, {"a": want(tokens=300)}, OPEN + 3)["a"].tokens == 200
    tell(made, "s1", 1, {"a": want(spent=150)}, OPEN + 3)
    tell(made, "s2", 1, {"a": want(spent=200)}, OPEN + 3)
    meanwhile(made, OPEN + 3, OPEN + 4.4)
    assert tell(made, "s2", 2, {"a": want(tokens=1, spent=200)}, OPEN + 4.4)["a"].tokens == 0
    assert tell(made, "s2", 3, {"a": want(tokens=1, spent=200)}, OPEN + 4.6)["a"].tokens == 1


def test_new_lease_store_book_what_runs_and_give_nothing_for_a_lifetime() -> None:
    made = lease_store()
    assert tell(made, "s1", 0, {"a": want(4, in_use=1, tokens=10)}, 0.1)["a"] == NOTHING
    assert held(made, 0.1) == Got(100, 1, 0)
    assert tell(made, "s1", 1, {"a": want(4, in_use=1, tokens=10)}, OPEN)["a"] == Got(400, 4, 10)


def test_only_the_latest_coordinator_writes_limits() -> None:
    made = lease_store()
    assert made.publish({"a": Limit(100, 1000, 2, 200)}, TERMS, 3, OPEN)
    assert not made.publish({"a": LIMIT}, TERMS, 2, OPEN)
    assert made.publish({"a": Limit(100, 1000, 3, 200)}, TERMS, 3, OPEN)
    assert tell(made, "s1", 0, {"a": want(9)}, OPEN)["a"].concurrency == 3


def test_an_entitlement_that_is_gone_gives_no_more() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(2, in_use=1)}, OPEN)
    made.publish({}, TERMS, 1, OPEN)
    assert tell(made, "s1", 1, {"a": want(2, in_use=1)}, OPEN)["a"] == NOTHING
    assert held(made, OPEN) == Got(100, 1, 0)
    tell(made, "s1", 2, {}, OPEN)
    made.publish({}, TERMS, 1, OPEN)
    assert made.read(OPEN).pages == {}


def test_an_entitlement_without_a_limit_gets_nothing() -> None:
    assert tell(lease_store(), "s1", 0, {"b": want(1, tokens=1)}, OPEN)["b"] == NOTHING


def test_what_may_still_be_used_stays_booked_until_the_next_message() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(4)}, OPEN)
    made.publish({"a": Limit(100, 1000, 2, 200)}, TERMS, 1, OPEN)
    # The answer may be lost: s1 may go on with 4 until it speaks again.
    assert tell(made, "s1", 1, {"a": want(4, bound=4)}, OPEN)["a"].concurrency == 2
    assert held(made, OPEN).concurrency == 4
    assert tell(made, "s1", 2, {"a": want(4, bound=2)}, OPEN)["a"].concurrency == 2
    assert held(made, OPEN).concurrency == 2


def test_a_part_message_moves_only_what_it_names_and_renews_nothing() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(3)}, OPEN)
    assert tell(made, "s1", 1, {"b": want(1)}, OPEN + 1, whole=False)["b"] == NOTHING
    assert held(made, OPEN + 1).concurrency == 3
    assert held(made, OPEN + LIFETIME).concurrency == 0


def test_a_sidecar_that_is_not_known_to_live_cannot_begin_with_a_part() -> None:
    made = lease_store()
    assert tell(made, "s1", 0, {"a": want(3)}, OPEN, whole=False)["a"] == NOTHING
    assert tell(made, "s1", 1, {"a": want(3)}, OPEN)["a"].concurrency == 3


def test_who_is_short_has_the_others_asked_and_is_told_when_something_is_free() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(4, in_use=2, tokens=9)}, OPEN)
    tell(made, "s2", 0, {}, OPEN)
    short = {"a": want(1, tokens=1, urgent=True)}
    assert tell(made, "s2", 1, short, OPEN, whole=False)["a"].concurrency == 0
    assert made.pushes == [Push("s1", RECLAIM, "a")]
    tell(made, "s1", 1, {"a": want(2, in_use=2)}, OPEN, whole=False)
    assert made.pushes[1:] == [Push("s2", FREED, "a")]
    assert tell(made, "s2", 2, short, OPEN, whole=False)["a"].concurrency == 1


def test_lease_store_that_nobody_wrote_in_for_a_lifetime_are_closed_for_one() -> None:
    made = lease_store()
    tell(made, "s1", 0, {"a": want(4)}, OPEN)
    cut = OPEN + 2 * LIFETIME
    assert tell(made, "s2", 0, {"a": want(4)}, cut)["a"].concurrency == 0
    assert tell(made, "s1", 1, {"a": want(4, in_use=3)}, cut + 0.1)["a"].concurrency == 0
    assert held(made, cut + 0.1).concurrency == 3
    assert tell(made, "s2", 1, {"a": want(4)}, cut + LIFETIME)["a"].concurrency == 1


def test_what_was_spent_while_nobody_could_speak_is_set_against_what_came_in_meanwhile() -> None:
    made = lease_store()
    spent = want(1)._replace(tokens_spent=0.0)
    for holder in ("s1", "s2"):
        tell(made, holder, 0, {"a": spent}, OPEN)
    back = OPEN + 10  # 1,000 tokens came in, the bucket holds 200
    for holder in ("s1", "s2"):
        tell(made, holder, 1, {"a": spent._replace(tokens_spent=450.0)}, back)
    page = made.read(back + 1).pages["a"]
    assert page.level == 200 + 1000 - 900 + 100
    tell(made, "s1", 2, {"a": spent._replace(tokens_spent=450.0)}, back + LIFETIME)
    assert made.read(back + LIFETIME).pages["a"].level == 200  # full, and no more


def test_lease_store_in_which_nobody_speaks_are_closed_to_the_coordinator() -> None:
    made = lease_store()
    tell(made, "s1", 0, {}, OPEN)
    assert made.read(OPEN + LIFETIME).is_open
    assert not made.read(OPEN + LIFETIME + 0.1).is_open


def test_an_answer_says_how_long_nobody_has_led() -> None:
    made = lease_store()
    answer = made.exchange(Message("s1", 0, {}), OPEN)
    made.publish({"a": LIMIT}, TERMS, 2, OPEN + 1)
    later = made.exchange(Message("s1", 1, {}), OPEN + 3)
    assert (answer.unled_s, later.unled_s) == (OPEN, 2)
    assert ReferenceLeaseStore(0.0, LIFETIME).exchange(Message("s1", 0, {}), 1.0).unled_s == math.inf


def test_the_coordinator_reads_sums_over_all_that_live() -> None:
    made = lease_store()
    said = want(2, in_use=1)._replace(demand=(10, 20, 3), fresh=(4, 2, 1), floor=(7, 100, 1))
    tell(made, "s1", 0, {"a": said}, OPEN)
    tell(made, "s2", 0, {"a": said._replace(floor=(9, 50, 2))}, OPEN + 1)
    page = made.read(OPEN + 1).pages["a"]
    assert page.demand.as_dict() == {"tokens_per_second": 20, "kv_tokens": 40, "concurrency": 6}
    assert (page.fresh.concurrency, page.in_use.concurrency) == (2, 2)
    assert 50 < page.floor.kv_tokens <= 100
    assert (page.floor.tokens_per_second, page.floor.concurrency) == (9, 2)
    assert set(made.read(OPEN + 1).reports) == {"s1", "s2"}
    assert made.read(OPEN + LIFETIME).pages["a"].demand.concurrency == 3


def test_what_was_served_is_summed_from_totals_whoever_tells_them_and_when() -> None:
    made = lease_store()

    def said(tokens: float, kv_seconds: float, seconds: float) -> Holding:
        return want(1)._replace(tokens_spent=tokens, kv_seconds=kv_seconds, concurrency_seconds=seconds)

    tell(made, "s1", 0, {"a": said(1000, 2000, 30)}, OPEN)
    tell(made, "s2", 0, {"a": said(5, 5, 5)}, OPEN)
    assert made.read(OPEN).pages["a"].served == Amount()  # what was before is not known
    tell(made, "s1", 1, {"a": said(1100, 2200, 31)}, OPEN + 0.2)
    tell(made, "s2", 1, {"a": said(0, 10, 6)}, OPEN + 0.3)
    assert made.read(OPEN + 0.3).pages["a"].served == Amount(95, 205, 2)
    tell(made, "s1", 2, {}, OPEN + 0.4)
    assert made.read(OPEN + 0.4).pages["a"].served == Amount(95, 205, 2)


def test_an_older_coordinator_cannot_replace_the_pool_file() -> None:
    made = lease_store()
    assert made.publish_file("v7", b"seven", 7)
    assert not made.publish_file("v6", b"six", 6)
    assert made.exchange(Message("s1", 0, {}), OPEN).file_version == "v7"


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
def test_the_lease_store_never_give_more_than_the_limit_and_tokens_are_conserved(
    script: list[tuple[str, str, int, int, float, float]],
) -> None:
    """Each holder runs no more than it holds: then all together never pass the largest limit."""
    now, limit = OPEN, 4.0
    made = lease_store()
    granted = dict.fromkeys(HOLDERS, NOTHING)
    spent = dict.fromkeys(HOLDERS, 0.0)
    numbers = dict.fromkeys(HOLDERS, 0)
    heard = dict.fromkeys(HOLDERS, -math.inf)
    for action, holder, in_use, wanted, tokens, wait in script:
        now += wait
        if now - heard[holder] >= LIFETIME:
            granted[holder] = NOTHING  # it expired, for the holder as well
        if action == "limit":
            limit = float(wanted)
            made.publish({"a": Limit(100, 1000, limit, 200)}, TERMS, 1, now)
        elif action == "spend":
            unheard = min(tokens, granted[holder].tokens)
            spent[holder] += unheard
            granted[holder] = granted[holder]._replace(tokens=granted[holder].tokens - unheard)
        elif action == "late" and numbers[holder] > 1:
            tell(made, holder, numbers[holder] - 1, {"a": want(6, tokens=200)}, now)
        elif action == "exchange":
            runs = min(in_use, granted[holder].concurrency)
            spent[holder] += min(tokens, granted[holder].tokens)
            numbers[holder] += 1
            before = held(made, now)
            said = want(max(wanted, runs), in_use=runs, tokens=tokens, spent=spent[holder])
            got = tell(made, holder, numbers[holder], {"a": said}, now)["a"]
            granted[holder], heard[holder] = got, now
            after = held(made, now)
            assert after.concurrency >= runs
            assert after.concurrency <= max(limit, before.concurrency)
            if got.concurrency > runs:
                assert after.concurrency <= limit
            assert got.tokens <= tokens
    assert sum(spent.values()) <= 200 + 100 * now + 1e-6
