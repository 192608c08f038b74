"""Prices: the cost of a request before it runs, and the lessons from its actual usage."""

from __future__ import annotations

import pytest

from tests.support.domain_builders import SHAPE, entitlement
from tokenpool.entitlements import OutputEstimate, Pricing
from tokenpool.pricing.cost import Ask, EngineShape, Pricer, Usage


def pricer(estimate: float | None = 0.9, **prices: float) -> Pricer:
    pricing = Pricing(**prices)  # type: ignore[arg-type]
    return Pricer(entitlement(output_estimate=OutputEstimate(estimate)), pricing)


def taught(*outputs: int, estimate: float | None = 0.9) -> Pricer:
    made = pricer(estimate)
    for output in outputs:
        made.learn(Ask(token_ids=1), Usage(1, output))
    return made


def test_input_is_bytes_times_the_ratio() -> None:
    cost = pricer().price(Ask(text_bytes=1000, output_bound=10), SHAPE)
    assert (cost.input_tokens, cost.output_tokens, cost.throughput) == (250, 10, 260)


def test_token_ids_are_counted_and_not_estimated() -> None:
    assert pricer().price(Ask(token_ids=77, output_bound=1), SHAPE).input_tokens == 77


def test_images_audio_and_tools_have_configured_prices() -> None:
    made = pricer(image_tokens=100, audio_tokens=50, tool_tokens=7)
    assert made.price(Ask(images=2, audios=1, tools=3, output_bound=1), SHAPE).input_tokens == 271


def test_weights_apply_to_throughput_and_not_to_kv_tokens() -> None:
    cost = pricer(input_weight=0.5, output_weight=3).price(Ask(token_ids=100, output_bound=20), SHAPE)
    assert cost.throughput == 0.5 * 100 + 3 * 20
    assert cost.kv_tokens == 128  # 120 in blocks of 16


def test_sequences_are_prompts_times_n_and_share_their_prompts_prefill() -> None:
    ask = Ask(token_ids=100, prompts=2, sequences_per_prompt=3, output_bound=10)
    cost = pricer().price(ask, SHAPE)
    assert (cost.sequences, cost.input_tokens, cost.output_tokens) == (6, 100, 60)
    assert cost.kv_tokens == 6 * 64  # 50 + 10 each, in blocks


@pytest.mark.parametrize(
    ("bound", "window", "expected"),
    [
        (5, 2048, 5),  # the request's bound is the smaller
        (2000, 2048, 40),  # the quantile is
        (None, 2048, 40),
        (None, None, 40),
        (2000, 110, 10),  # the rest of the context window is
        (2000, 50, 1),  # no window is left: the engine refuses, and one token is priced
    ],
)
def test_output_is_the_smallest_of_bound_quantile_and_window(
    bound: int | None, window: int | None, expected: int
) -> None:
    made = taught(*[40] * 20)
    cost = made.price(Ask(token_ids=100, output_bound=bound), EngineShape(16, window))
    assert cost.output_tokens == expected


def test_max_reserves_the_whole_bound() -> None:
    made = taught(*[40] * 20, estimate=None)
    assert made.price(Ask(token_ids=100, output_bound=1000), SHAPE).output_tokens == 1000
    assert made.price(Ask(token_ids=100), SHAPE).output_tokens == 2048 - 100


def test_cached_input_is_not_charged() -> None:
    assert pricer().throughput(Usage(100, 10, cached_tokens=80)) == 30
    assert pricer().throughput(Usage(100, 10, cached_tokens=200)) == 10


def test_outputs_are_learned_per_sequence() -> None:
    made = pricer()
    for _ in range(10):
        made.learn(Ask(token_ids=1, prompts=2, sequences_per_prompt=2), Usage(1, 80))
    assert made.overall.output.value == 20


def test_prompts_with_images_do_not_teach_the_ratio() -> None:
    made = pricer()
    for _ in range(50):
        made.learn(Ask(text_bytes=10, images=1), Usage(5000, 1))
    assert made.overall.input.per_byte == 0.25


def test_the_price_of_tools_is_not_learned_as_text() -> None:
    made = pricer(tool_tokens=1000)
    for _ in range(50):
        made.learn(Ask(text_bytes=400, tools=1), Usage(1100, 1))
    assert made.price(Ask(text_bytes=400, tools=1, output_bound=1), SHAPE).input_tokens == 1100


def test_each_route_and_model_has_its_own_learned_costs() -> None:
    made = pricer()
    for _ in range(100):
        made.learn(Ask(text_bytes=1000, target=("chat", "a")), Usage(200, 10))
        made.learn(Ask(text_bytes=1000, target=("chat", "b")), Usage(400, 90))
    a, b = (made.price(Ask(text_bytes=1000, target=("chat", model)), SHAPE) for model in "ab")
    assert (a.input_tokens, a.output_tokens) == (pytest.approx(200, abs=1), 10)
    assert (b.input_tokens, b.output_tokens) == (pytest.approx(400, abs=1), 90)
    assert 200 < made.price(Ask(text_bytes=1000, target=("chat", "c")), SHAPE).input_tokens < 400


def test_a_cached_prompt_costs_only_its_computed_tokens() -> None:
    made = pricer(input_weight=2)
    ask = Ask(text_bytes=4000, output_bound=10, prefixes=(1,))
    whole = made.price(ask, SHAPE)
    for _ in range(2):
        made.learn(ask, Usage(1000, 10, cached_tokens=960))
    cost = made.price(ask, SHAPE)
    assert (whole.cached_tokens, whole.throughput) == (0, 2010)
    assert (cost.input_tokens, cost.cached_tokens, cost.throughput) == (1000, 960, 2 * 40 + 10)
    assert cost.kv_tokens == whole.kv_tokens
    assert made.spent_so_far(cost, 3) == Usage(1000, 3, 960)
    assert made.price(ask.changed(text_bytes=400), SHAPE).cached_tokens == 99  # the last token is computed
    made.forget_cache()
    assert (made.price(ask, SHAPE).cached_tokens, made.experts.cached_prefixes) == (0, 0)


def test_new_prices_and_another_quantile_keep_the_learned_costs() -> None:
    made = taught(*range(10, 30))
    made.reprice(entitlement(), Pricing(output_weight=2))
    assert made.overall.output.value == 29
    assert made.throughput(Usage(0, 5)) == 10
    made.reprice(entitlement(output_estimate=OutputEstimate(0.5)), Pricing())
    assert made.overall.output.value == 20
