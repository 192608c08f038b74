"""The books: what is held never adds up to more than the limit, whatever messages come."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.amounts import Amount
from tokenpool.books import NO_GRANT, REMEMBER_S, Books, Grant, Holding, Limit

LIFETIME = 1.5
LIMIT = Limit(Amount(100, 1000, 4), depth=200)
OPEN = LIFETIME
"""When new books begin to give."""


def books(limit: Limit = LIMIT) -> Books:
    made = Books(0.0, LIFETIME)
    made.publish({"a": limit}, 1, 0.0)
    return made


def want(concurrency: float = 0, *, in_use: float = 0, tokens: float = 0, spent: float = 0) -> Holding:
    return Holding(
        kv_in_use=in_use * 100,
        concurrency_in_use=in_use,
        kv_wanted=concurrency * 100,
        concurrency_wanted=concurrency,
        tokens_spent=spent,
        tokens_wanted=tokens,
    )


def test_what_is_wanted_is_given_while_it_is_free() -> None:
    made = books()
    assert made.exchange("s1", 0, {"a": want(3)}, OPEN)["a"].concurrency == 3
    assert made.exchange("s2", 0, {"a": want(3)}, OPEN)["a"].concurrency == 1
    assert made.held(OPEN)["a"] == Grant(600, 4, 0)


def test_what_is_returned_is_free_at_once() -> None:
    made = books()
    made.exchange("s1", 0, {"a": want(4)}, OPEN)
    made.exchange("s1", 1, {}, OPEN)
    assert made.exchange("s2", 0, {"a": want(4)}, OPEN)["a"].concurrency == 4


def test_a_silent_holder_loses_its_grant_one_lifetime_later() -> None:
    made = books()
    made.exchange("s1", 0, {"a": want(4)}, OPEN)
    assert made.exchange("s2", 0, {"a": want(4)}, OPEN + LIFETIME - 0.01)["a"].concurrency == 0
    assert made.exchange("s2", 1, {"a": want(4)}, OPEN + LIFETIME)["a"].concurrency == 4


def test_a_holder_that_wakes_up_has_what_runs_booked_beyond_the_limit_but_gets_no_more() -> None:
    made = books()
    made.exchange("s1", 0, {"a": want(4)}, OPEN)
    made.exchange("s2", 0, {"a": want(4)}, OPEN + 2)
    assert made.exchange("s1", 1, {"a": want(4, in_use=2)}, OPEN + 2)["a"].concurrency == 2
    assert made.held(OPEN + 2)["a"].concurrency == 6
    assert made.exchange("s2", 1, {"a": want(4, in_use=1)}, OPEN + 2)["a"].concurrency == 2


def test_a_limit_that_shrinks_takes_nothing_from_what_runs() -> None:
    made = books()
    made.exchange("s1", 0, {"a": want(4, in_use=3)}, OPEN)
    made.publish({"a": Limit(Amount(100, 1000, 2), 200)}, 1, OPEN)
    assert made.exchange("s1", 1, {"a": want(4, in_use=3)}, OPEN)["a"].concurrency == 3
    assert made.exchange("s1", 2, {"a": want(4, in_use=1)}, OPEN)["a"].concurrency == 2


def test_tokens_are_drawn_from_a_bucket_that_refills_by_the_books_clock() -> None:
    made = books()
    assert made.exchange("s1", 0, {"a": want(tokens=150)}, OPEN)["a"].tokens == 150
    assert made.exchange("s2", 0, {"a": want(tokens=150)}, OPEN)["a"].tokens == 50
    spent = made.exchange("s1", 1, {"a": want(tokens=150, spent=150)}, OPEN)["a"]
    assert spent.tokens == 0
    assert made.exchange("s1", 2, {"a": want(tokens=150, spent=150)}, OPEN + 0.5)["a"].tokens == 50


def test_a_settlement_may_bring_the_level_below_zero_and_is_paid_off_by_all() -> None:
    made = books()
    made.exchange("s1", 0, {"a": want(tokens=10)}, OPEN)
    made.exchange("s1", 1, {"a": want(spent=500)}, OPEN)  # one large request: level 200 - 500
    assert made.exchange("s2", 0, {"a": want(tokens=10)}, OPEN + 2.9)["a"].tokens == 0
    assert made.exchange("s2", 1, {"a": want(tokens=10)}, OPEN + 3.1)["a"].tokens == pytest.approx(10)


def test_a_refund_comes_back_to_the_bucket() -> None:
    made = books()
    made.exchange("s1", 0, {"a": want(tokens=200)}, OPEN)
    made.exchange("s1", 1, {"a": want(spent=200)}, OPEN)
    made.exchange("s1", 2, {"a": want(spent=50)}, OPEN)
    assert made.exchange("s2", 0, {"a": want(tokens=500)}, OPEN)["a"].tokens == 150


def test_doubled_and_late_messages_book_nothing() -> None:
    made = books()
    made.exchange("s1", 5, {"a": want(2, tokens=100, spent=30)}, OPEN)
    made.exchange("s1", 6, {"a": want(1, tokens=50, spent=80)}, OPEN)
    for number in (6, 5, 0):
        late = made.exchange("s1", number, {"a": want(4, tokens=100, spent=0)}, OPEN)
        assert late["a"] == Grant(100, 1, 50)
    assert made.held(OPEN)["a"] == Grant(100, 1, 50)


def test_a_holder_that_was_forgotten_begins_anew() -> None:
    made = books()
    made.exchange("s1", 9, {"a": want(2)}, OPEN)
    later = OPEN + REMEMBER_S
    assert made.exchange("s1", 0, {"a": want(2)}, OPEN + LIFETIME)["a"] == NO_GRANT
    made.close_idle(later)
    assert made.exchange("s1", 0, {"a": want(2)}, later)["a"].concurrency == 2


def test_what_was_spent_while_cut_off_is_charged_on_coming_back() -> None:
    made = books()
    made.exchange("s1", 0, {"a": want(tokens=150)}, OPEN)
    assert made.exchange("s2", 0, {"a": want(tokens=300)}, OPEN + 3)["a"].tokens == 200
    made.exchange("s1", 1, {"a": want(spent=150)}, OPEN + 3)
    made.exchange("s2", 1, {"a": want(spent=200)}, OPEN + 3)
    assert made.exchange("s2", 2, {"a": want(tokens=1, spent=200)}, OPEN + 4.4)["a"].tokens == 0
    assert made.exchange("s2", 3, {"a": want(tokens=1, spent=200)}, OPEN + 4.6)["a"].tokens == 1


def test_new_books_book_what_runs_and_give_nothing_for_a_lifetime() -> None:
    made = books()
    assert made.exchange("s1", 0, {"a": want(4, in_use=1, tokens=10)}, 0.1)["a"] == Grant(100, 1, 0)
    assert made.exchange("s1", 1, {"a": want(4, in_use=1, tokens=10)}, OPEN)["a"] == Grant(400, 4, 10)


def test_only_the_latest_coordinator_writes_limits() -> None:
    made = books()
    assert made.publish({"a": Limit(Amount(100, 1000, 2), 200)}, 3, OPEN)
    assert not made.publish({"a": LIMIT}, 2, OPEN)
    assert made.publish({"a": Limit(Amount(100, 1000, 3), 200)}, 3, OPEN)
    assert made.exchange("s1", 0, {"a": want(9)}, OPEN)["a"].concurrency == 3


def test_an_entitlement_that_is_gone_gives_no_more() -> None:
    made = books()
    made.exchange("s1", 0, {"a": want(2, in_use=1)}, OPEN)
    made.publish({}, 1, OPEN)
    assert made.exchange("s1", 1, {"a": want(2, in_use=1)}, OPEN)["a"] == Grant(100, 1, 0)
    made.exchange("s1", 2, {}, OPEN)
    made.publish({}, 1, OPEN)
    assert made.held(OPEN) == {}


def test_an_entitlement_without_a_limit_gets_nothing() -> None:
    assert books().exchange("s1", 0, {"b": want(1, tokens=1)}, OPEN)["b"] == NO_GRANT


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
def test_the_books_never_give_more_than_the_limit_and_tokens_are_conserved(
    script: list[tuple[str, str, int, int, float, float]],
) -> None:
    """Each holder runs no more than it holds: then all together never pass the largest limit."""
    now, limit = OPEN, 4.0
    made = books()
    granted = dict.fromkeys(HOLDERS, NO_GRANT)
    spent = dict.fromkeys(HOLDERS, 0.0)
    numbers = dict.fromkeys(HOLDERS, 0)
    heard = dict.fromkeys(HOLDERS, -math.inf)
    for action, holder, in_use, wanted, tokens, wait in script:
        now += wait
        if now - heard[holder] >= LIFETIME:
            granted[holder] = NO_GRANT  # it expired, for the holder as well
        if action == "limit":
            limit = float(wanted)
            made.publish({"a": Limit(Amount(100, 1000, limit), 200)}, 1, now)
        elif action == "spend":
            unheard = min(tokens, granted[holder].tokens)
            spent[holder] += unheard
            granted[holder] = replace(granted[holder], tokens=granted[holder].tokens - unheard)
        elif action == "late" and numbers[holder] > 1:
            made.exchange(holder, numbers[holder] - 1, {"a": want(6, tokens=200)}, now)
        elif action == "exchange":
            runs = min(in_use, granted[holder].concurrency)
            spent[holder] += min(tokens, granted[holder].tokens)
            numbers[holder] += 1
            before = made.held(now)["a"]
            said = want(max(wanted, runs), in_use=runs, tokens=tokens, spent=spent[holder])
            got = made.exchange(holder, numbers[holder], {"a": said}, now)["a"]
            granted[holder], heard[holder] = got, now
            after = made.held(now)["a"]
            assert got.concurrency >= runs
            assert after.concurrency <= max(limit, before.concurrency)
            if got.concurrency > runs:
                assert after.concurrency <= limit
            assert got.tokens <= tokens
    assert sum(spent.values()) <= 200 + 100 * now + 1e-6
