"""Prices over hundreds of requests of a mix, before and after a change of the mix; seeded.

The figures in ``estimators`` come from the same mixes, with more seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import entitlement
from tokenpool.entitlements import Pricing
from tokenpool.pricing.cost import Ask, EngineShape, Pricer, Usage
from tokenpool.pricing.estimators import InputTokens, OutputQuantile
from tokenpool.pricing.learned_costs import MOST_TARGETS

SHAPE = EngineShape(block_size=16)
MESSAGE_BYTES = 16
SEEDS = range(20)


class Drawn(NamedTuple):
    ask: Ask
    usage: Usage


class Met(NamedTuple):
    """The comparison of a price with the actual usage."""

    input_ratio: float
    is_outgrown: bool


Mix = Callable[[random.Random], Drawn]


def prompt(chance: random.Random, log_bytes: float, ratio: float = 0.23, *, messages: int = 1) -> Drawn:
    """A chat through a template of 23 tokens and 5 per message, its text's tokens spread by 5 %."""
    sizes = [chance.lognormvariate(log_bytes, 0.6) for _ in range(messages)]
    tokens = 23 + 5 * messages + sum(sizes) * ratio * chance.gauss(1, 0.05)
    ask = Ask(text_bytes=MESSAGE_BYTES * messages + round(sum(sizes)), target=("chat", "m"))
    return Drawn(ask, Usage(round(tokens), 1))


def answer(chance: random.Random, log_tokens: float, spread: float = 0.8) -> Drawn:
    output = max(round(chance.lognormvariate(log_tokens, spread)), 1)
    return Drawn(Ask(token_ids=10, target=("chat", "m")), Usage(10, output))


def meet(pricer: Pricer, chance: random.Random, mix: Mix, requests: int) -> list[Met]:
    met = []
    for _ in range(requests):
        ask, usage = mix(chance)
        cost = pricer.price(ask, SHAPE)
        met.append(Met(cost.input_tokens / usage.input_tokens, usage.output_tokens > cost.output_tokens))
        pricer.learn(ask, usage)
    return met


def over_seeds(*mixes: Mix) -> list[Met]:
    """Each mix for 400 requests after the one before; the second half of the last."""
    met: list[Met] = []
    for seed in SEEDS:
        pricer, chance = Pricer(entitlement(), Pricing()), random.Random(seed)
        for mix in mixes:
            last = meet(pricer, chance, mix, 400)
        met += last[200:]
    return met


def error(met: list[Met]) -> float:
    return median(abs(m.input_ratio - 1) for m in met)


def short(chance: random.Random) -> Drawn:
    return prompt(chance, 4.5)


def long(chance: random.Random) -> Drawn:
    return prompt(chance, 9)


def short_or_long(chance: random.Random) -> Drawn:
    return prompt(chance, chance.choice((4, 9)))


def conversation(chance: random.Random) -> Drawn:
    return prompt(chance, 5, messages=chance.randint(1, 20))


def code(chance: random.Random) -> Drawn:
    return prompt(chance, 7, 0.35)


def prose(chance: random.Random) -> Drawn:
    return prompt(chance, 7, 0.22)


@pytest.mark.parametrize(
    "mixes",
    [
        (short,),
        (long,),
        (short_or_long,),
        (conversation,),
        (short, long),
        (long, short),
        (prose, code),
        (code, short_or_long),
    ],
    ids=lambda mixes: " then ".join(mix.__name__ for mix in mixes),
)
def test_input_is_within_five_per_cent_two_hundred_requests_after_a_change(mixes: tuple[Mix, ...]) -> None:
    assert error(over_seeds(*mixes)) <= 0.05


def test_two_kinds_of_text_are_less_accurate_under_one_model_than_under_two() -> None:
    def mixed(chance: random.Random, *, is_split: bool) -> Drawn:
        drawn, model = chance.choice(((code(chance), "coder"), (prose(chance), "writer")))
        return drawn._replace(ask=drawn.ask.changed(target=("chat", model))) if is_split else drawn

    assert 0.15 < error(over_seeds(lambda chance: mixed(chance, is_split=False))) < 0.25
    assert error(over_seeds(lambda chance: mixed(chance, is_split=True))) <= 0.05


def test_hostile_prompts_among_others_do_not_spoil_the_prices() -> None:
    def mix(chance: random.Random) -> Drawn:
        if chance.random() < 0.02:
            size = chance.choice((10, 1_000_000))
            tokens = chance.choice((1, size // 50, 2 * size))
            return Drawn(Ask(text_bytes=size, target=("chat", "m")), Usage(max(tokens, 1), 1))
        return prompt(chance, 6)

    assert error(over_seeds(mix)) <= 0.07


STEADY = (lambda chance: answer(chance, 5),)
LONGER = (*STEADY, lambda chance: answer(chance, 6.1))
SHORTER = (*STEADY, lambda chance: answer(chance, 3.9))
TEN_TIMES = (lambda chance: answer(chance, 4, 0.5), lambda chance: answer(chance, 6.3, 0.5))
A_TENTH = (lambda chance: answer(chance, 6, 0.5), lambda chance: answer(chance, 3.7, 0.5))


def rare(share: float) -> Mix:
    """Some answers are fifty times as long as the others."""
    return lambda chance: answer(chance, 7 if chance.random() < share else 3, 0.3)


@pytest.mark.parametrize(
    "mixes",
    [STEADY, LONGER, SHORTER, TEN_TIMES, A_TENTH, (rare(0.05), rare(0.15)), (rare(0.15), rare(0.05))],
    ids=["steady", "3x", "1/3", "10x", "1/10", "more of the long", "fewer of the long"],
)
def test_a_tenth_of_outputs_exceed_the_reservation(mixes: tuple[Mix, ...]) -> None:
    met = over_seeds(*mixes)
    assert sum(m.is_outgrown for m in met) / len(met) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("mixes", [LONGER, SHORTER], ids=["longer", "shorter"])
def test_the_first_two_hundred_requests_after_a_change_exceed_little_more(mixes: tuple[Mix, Mix]) -> None:
    missed = 0
    for seed in SEEDS:
        pricer, chance = Pricer(entitlement(), Pricing()), random.Random(seed)
        meet(pricer, chance, mixes[0], 300)
        missed += sum(m.is_outgrown for m in meet(pricer, chance, mixes[1], 200))
    assert missed / (200 * len(SEEDS)) == pytest.approx(0.1, abs=0.02)


def test_a_smaller_bound_of_the_request_is_reserved() -> None:
    pricer, chance = Pricer(entitlement(), Pricing()), random.Random(1)
    meet(pricer, chance, STEADY[0], 300)
    assert pricer.price(Ask(token_ids=10, output_bound=20), SHAPE).output_tokens == 20
    assert 200 < pricer.price(Ask(token_ids=10, output_bound=5000), SHAPE).output_tokens < 1000


numbers = st.integers(0, 10**7)


def drawn(text_bytes: int, images: int, prompts: int, model: int, prefixes: list[int], *usage: int) -> Drawn:
    target = ("chat", str(model))
    ask = Ask(text_bytes, images=images, prompts=prompts, target=target, prefixes=tuple(prefixes))
    return Drawn(ask, Usage(*usage))


requests = st.builds(
    drawn,
    numbers,
    st.integers(0, 1),
    st.integers(1, 3),
    st.integers(0, 30),
    st.lists(st.integers(0, 5), max_size=3),
    numbers,
    numbers,
    numbers,
)


@given(st.lists(st.tuples(requests, st.booleans()), max_size=60))
def test_prices_stay_in_their_bounds_for_any_observations(seen: list[tuple[Drawn, bool]]) -> None:
    pricer = Pricer(entitlement(), Pricing(image_tokens=0))
    for (ask, usage), is_cut in seen:
        if is_cut:
            pricer.learn_cut(ask, usage.output_tokens)
        else:
            pricer.learn(ask, usage)
        cost = pricer.price(ask, SHAPE)
        most = ask.text_bytes * InputTokens.HIGHEST + InputTokens.MOST_OFFSET * ask.prompts
        assert int(ask.text_bytes * InputTokens.LOWEST) <= cost.input_tokens <= most + 1
        assert 1 <= cost.output_tokens // cost.sequences <= OutputQuantile.MOST
        assert 0 <= cost.cached_tokens <= max(cost.input_tokens - 1, 0)
        assert cost.throughput == cost.input_tokens - cost.cached_tokens + cost.output_tokens
        assert cost.kv_tokens >= cost.input_tokens
        assert len(list(pricer.learned_by_target)) <= MOST_TARGETS
