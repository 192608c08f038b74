"""Prefix affinity: the beginnings in each engine's cache are stated, learned, bounded, and expire."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenpool.admission.affinity import (
    BLOCK,
    LEAST_GAIN,
    MOST_ELSEWHERE,
    MOST_OWN,
    MOST_PLACES,
    MOST_STATED,
    STATE_EVERY_S,
    Cached,
    Preference,
    PrefixCaches,
    beginnings,
)
from tokenpool.pricing.cost import Ask

PROMPT = (Cached(1, 256, 1024), Cached(2, 1024, 2048))
PREFIXES = st.integers(0, 2**56 - 1)
TOKENS = st.integers(0, 10**7)
PROMPTS = st.lists(st.builds(Cached, PREFIXES, TOKENS, TOKENS), max_size=3)


def proven(*prompts: tuple[Cached, ...]) -> PrefixCaches:
    """The caches of a sidecar whose engine reports cached tokens, and has computed these prompts."""
    made = PrefixCaches()
    made.reported((), 16)
    for prompt in prompts:
        made.computed(prompt, 1024, 0.0)
    return made


def told(teacher: PrefixCaches, name: str = "b", now: float = 0.0) -> PrefixCaches:
    """The caches of another sidecar that has read its statement."""
    made = PrefixCaches()
    made.learn(name, teacher.statement(now), now)
    return made


# --- the beginnings of a prompt ---


def test_a_beginning_has_its_part_of_the_prompt_in_whole_blocks() -> None:
    ask = Ask(text_bytes=8192, target=("chat", "m"), prefixes=(1, 2))
    assert [each.tokens for each in beginnings(ask, 2000, 50)] == [240, 992]


def test_a_prompt_of_token_ids_has_a_careful_estimate() -> None:
    ask = Ask(token_ids=2000, target=("completions", "m"), prefixes=(1, 2))
    assert [each.tokens for each in beginnings(ask, 2000, 50)] == [144, 576]


def test_a_short_prompt_has_no_beginning() -> None:
    assert beginnings(Ask(text_bytes=100), 25, 5) == ()


def test_other_models_and_routes_have_other_caches() -> None:
    ask = Ask(text_bytes=8192, target=("chat", "m"), prefixes=(1,))
    hashes = {
        beginnings(each, 2000, 50)[0].prefix
        for each in (ask, ask.changed(target=("chat", "n")), ask.changed(target=("messages", "m")))
    }
    assert len(hashes) == 3


# --- statements ---


def test_a_statement_tells_where_a_prompt_is_cached() -> None:
    caches = told(proven(PROMPT))
    assert caches.preferences(PROMPT, 1500, 1.0) == [Preference("b", 1024, 1024)]
    assert caches.preferences(PROMPT[:1], 1500, 1.0) == [Preference("b", 256, 256)]
    assert caches.preferences((Cached(3, 256),), 1500, 1.0) == []


def test_the_own_cache_lowers_the_gain() -> None:
    caches = told(proven(PROMPT))
    caches.computed(PROMPT[:1], 1024, 0.0)
    assert caches.preferences(PROMPT, 1500, 1.0) == [Preference("b", 1024, 768)]
    caches.computed(PROMPT, 1024, 0.0)
    assert caches.preferences(PROMPT, 1500, 1.0) == []


def test_a_gain_below_the_cost_of_a_handover_counts_nothing() -> None:
    caches = told(proven((Cached(1, LEAST_GAIN + BLOCK),)))
    caches.computed((Cached(2, 2 * BLOCK),), 1024, 0.0)
    assert caches.preferences((Cached(2, 0), Cached(1, 0)), 1500, 1.0) == []


def test_an_engine_that_reports_no_cached_tokens_states_nothing() -> None:
    silent = PrefixCaches()
    silent.reported(PROMPT, 0)
    silent.computed(PROMPT, 1024, 0.0)
    assert silent.statement(0.0) == ""


def test_the_newest_beginnings_are_stated() -> None:
    teacher = proven(*((Cached(number, 512),) for number in range(100)))
    known = told(teacher)
    assert known.elsewhere == MOST_STATED
    assert known.preferences((Cached(99, 512),), 1500, 1.0)
    assert not known.preferences((Cached(0, 512),), 1500, 1.0)


def test_what_was_stated_expires() -> None:
    teacher = proven()
    teacher.resize(1000)
    teacher.computed(PROMPT, 3000, 0.0)  # at 100 tokens/s, 1,000 tokens last for 10 s
    caches = told(teacher)
    assert caches.preferences(PROMPT, 1500, 9.9)
    assert not caches.preferences(PROMPT, 1500, 10.1)


def test_a_statement_is_made_at_most_once_in_a_while() -> None:
    teacher = proven(PROMPT)
    first = teacher.statement(1.0)
    teacher.computed((Cached(9, 512),), 512, 1.0)
    assert teacher.statement(1.0 + STATE_EVERY_S / 2) == first
    assert teacher.statement(1.0 + STATE_EVERY_S) != first


def test_a_restarted_engine_states_nothing() -> None:
    teacher = proven(PROMPT)
    assert teacher.statement(100.0)
    teacher.forget()
    assert (teacher.statement(100.0), teacher.here(PROMPT), teacher.own) == ("", 0, 0)


@given(st.text() | st.binary().map(lambda content: content.hex()))
def test_an_unreadable_statement_is_ignored_or_bounded(statement: str) -> None:
    caches = PrefixCaches()
    caches.learn("b", statement, 0.0)
    assert caches.elsewhere <= MOST_STATED


@given(st.lists(PROMPTS, max_size=20), st.floats(0, 1e7))
def test_a_statement_tells_no_more_than_the_own_cache_has(
    prompts: list[list[Cached]], capacity: float
) -> None:
    teacher = proven()
    teacher.resize(capacity)
    for now, prompt in enumerate(prompts):
        teacher.reported(prompt, 100)
        teacher.computed(prompt, 500, float(now))
    assert len(teacher.statement(100.0)) <= 400
    caches = told(teacher)
    for prompt in prompts:
        for each in prompt:
            for found in caches.preferences((each,), 10**8, 0.0):
                assert LEAST_GAIN <= found.gain <= found.tokens <= 10**8


# --- the own engine ---


def test_a_beginning_is_evicted_by_as_many_tokens_as_the_cache_has() -> None:
    caches = proven(PROMPT)
    caches.resize(2000)
    caches.computed((Cached(3, 256),), 1500, 1.0)
    assert caches.here(PROMPT) == 1024
    caches.computed((Cached(4, 256),), 1500, 2.0)
    assert caches.here(PROMPT) == 0


def test_reports_show_which_part_of_the_rest_the_next_prompt_has() -> None:
    caches = proven(PROMPT)
    assert caches.here(PROMPT) == 1024
    caches.reported(PROMPT, 2048)  # a conversation: its rest is cached, too
    assert caches.here(PROMPT) == 1536
    caches.reported(PROMPT, 2048)
    assert caches.here(PROMPT) == 1792
    caches.computed((Cached(3, 256, 512),), 100, 1.0)
    assert caches.here((Cached(3, 256, 512),)) == 512  # a new beginning starts with the mean
    for _ in range(5):
        caches.reported(PROMPT, 1024)  # a template: only the beginning is
    assert 1024 <= caches.here(PROMPT) < 1060


def test_a_shorter_prompt_is_cached_no_further_than_its_end() -> None:
    caches = proven(PROMPT)
    caches.reported((PROMPT[0], Cached(2, 1024, 1280)), 1280)
    assert caches.rest == 1


def test_an_engine_that_evicts_early_is_trusted_less_and_again() -> None:
    caches = proven(PROMPT)
    for _ in range(30):
        caches.reported(PROMPT, 0)
    assert caches.here(PROMPT) < LEAST_GAIN
    assert told(caches).elsewhere == 0
    for _ in range(30):
        caches.reported(PROMPT, 1024)
    assert caches.here(PROMPT) > 900


@given(st.lists(st.tuples(PROMPTS, TOKENS, TOKENS), max_size=30), st.floats(0, 1e6))
def test_estimates_stay_in_their_bounds(served: list[tuple[list[Cached], int, int]], capacity: float) -> None:
    caches = PrefixCaches()
    caches.resize(capacity)
    for now, (prompt, cached, computed) in enumerate(served):
        caches.reported(prompt, cached)
        caches.computed(prompt, computed, float(now))
        assert 0 <= caches.trust <= 1
        assert 0 <= caches.rest <= 1
        assert 0 <= caches.here(prompt) <= 10**7


# --- bounds ---


def test_the_tables_are_bounded() -> None:
    caches = PrefixCaches()
    for number in range(MOST_OWN + 10):
        caches.computed((Cached(number, 512),), 1, 0.0)
    for first in range(0, MOST_ELSEWHERE + 10 * MOST_STATED, MOST_STATED):
        statement = proven(*((Cached(first + n, 512),) for n in range(MOST_STATED))).statement(0.0)
        for peer in range(MOST_PLACES + 2):
            caches.learn(f"p{peer}", statement, 0.0)
    assert (caches.own, caches.elsewhere) == (MOST_OWN, MOST_ELSEWHERE)
    assert max(len(places) for places in caches._elsewhere.values()) == MOST_PLACES


# --- gains ---


def test_the_gain_and_its_error_add_up() -> None:
    caches = PrefixCaches()
    caches.gained(Preference("b", 1024, 768), 1000)
    caches.gained(Preference("b", 512, 512), 0)
    gains = caches.gains
    assert (gains.requests, gains.expected, gains.reported, gains.error) == (2, 1280, 744, 536)
