"""Arrivals: their rates and seeds, and the independence of tenants."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import (
    Arrival,
    Segment,
    arrivals,
    most_workers,
    requests,
    segments,
    workers_at,
    works_from,
)
from loadgen.lengths import draw, mean
from loadgen.prompts import body, text, token_ids
from loadgen.scenario import (
    Bursty,
    Closed,
    Constant,
    Empirical,
    Endpoint,
    Fault,
    Fixed,
    Lengths,
    Lognormal,
    Normal,
    OnOff,
    Phase,
    Poisson,
    Prefix,
    Process,
    PromptForm,
    Ramp,
    Replay,
    Scenario,
    Tenant,
    Trace,
    Traced,
    Uniform,
    faster,
    lasting,
)
from tests.support.loadgen_builders import scenario, tenant

RATES = st.floats(0.5, 50)
OPEN = st.one_of(
    st.builds(Constant, RATES),
    st.builds(Poisson, RATES),
    st.builds(Bursty, RATES, st.integers(1, 8)),
    st.builds(Ramp, RATES, RATES, st.floats(1, 200)),
    st.builds(OnOff, RATES, st.floats(1, 30), st.floats(1, 30)),
)
PHASES = st.sampled_from(
    [
        (),
        (Phase("a", 0.0, 40.0, (("gold", 0.0),)), Phase("b", 60.0, 80.0, (("gold", 3.0),))),
        (Phase("a", 10.0, 90.0, (("other", 0.0), ("gold", 0.5))),),
    ]
)
SEEDS = st.integers(0, 1000)


def drawn(world: Scenario, who: Tenant, seed: int = 1) -> list[Arrival]:
    return list(arrivals(world, who, seed))


@given(OPEN, PHASES, SEEDS)
def test_arrivals_are_in_order_between_the_tenants_start_and_end_and_repeat_with_the_seed(
    process: Process, phases: tuple[Phase, ...], seed: int
) -> None:
    who = tenant(process=process, starts_s=5.0, ends_s=95.0)
    world = scenario(who, phases=phases)
    made = drawn(world, who, seed)
    moments = [arrival.at_s for arrival in made]
    assert moments == sorted(moments)
    assert all(5.0 <= at <= 95.0 for at in moments)
    assert made == drawn(world, who, seed)
    assert [arrival.request.number for arrival in made] == list(range(len(made)))


@given(OPEN, PHASES, SEEDS)
def test_the_number_of_arrivals_is_the_integral_of_the_rate(
    process: Process, phases: tuple[Phase, ...], seed: int
) -> None:
    who = tenant(process=process)
    world = scenario(who, phases=phases)
    expected = sum(segment.area for segment in segments(world, who))
    burst = process.burst if isinstance(process, Bursty) else 1
    # Six standard deviations of the number of batches, and one batch at either end.
    assert abs(len(drawn(world, who, seed)) - expected) <= 6 * math.sqrt(expected * burst) + burst + 1


@given(OPEN, OPEN, SEEDS)
def test_changing_one_tenant_changes_no_other(one: Process, other: Process, seed: int) -> None:
    gold = tenant()
    with_one, with_other = (scenario(gold, tenant("spot", process)) for process in (one, other))
    assert drawn(with_one, gold, seed) == drawn(with_other, gold, seed)


def test_tenants_and_seeds_have_independent_streams() -> None:
    gold, spot = tenant("gold"), tenant("spot")
    world = scenario(gold, spot)
    assert drawn(world, gold) != drawn(world, spot)
    assert drawn(world, gold, 1) != drawn(world, gold, 2)


def test_a_change_of_lengths_changes_no_arrival_time() -> None:
    short, long = tenant(), tenant(input=Lognormal(100, 1, 1, 1000))
    assert [a.at_s for a in drawn(scenario(short), short)] == [a.at_s for a in drawn(scenario(long), long)]


def test_constant_arrivals_have_equal_gaps() -> None:
    who = tenant(process=Constant(4.0))
    moments = [arrival.at_s for arrival in drawn(scenario(who), who)]
    assert len(moments) == 400
    assert all(b - a == pytest.approx(0.25) for a, b in itertools.pairwise(moments))


def test_the_requests_of_a_burst_arrive_together() -> None:
    who = tenant(process=Bursty(10.0, 5))
    sizes = [len(list(batch)) for _, batch in itertools.groupby(drawn(scenario(who), who), lambda a: a.at_s)]
    assert set(sizes[:-1]) == {5}


def test_a_ramp_has_more_arrivals_at_its_end_and_a_constant_rate_afterwards() -> None:
    who = tenant(process=Ramp(0.0, 20.0, 50.0))
    moments = [arrival.at_s for arrival in drawn(scenario(who), who)]
    quarters = [sum(low <= at < low + 25 for at in moments) for low in (0, 25, 50, 75)]
    assert quarters == pytest.approx([125, 375, 500, 500], rel=0.2)


def test_nothing_arrives_in_a_pause_or_in_a_phase_without_rate() -> None:
    who = tenant(process=OnOff(10.0, 4.0, 6.0))
    world = scenario(who, phases=(Phase("quiet", 0.0, 20.0, (("gold", 0.0),)),))
    moments = [arrival.at_s for arrival in drawn(world, who)]
    assert moments
    assert all(at % 10.0 <= 4.0 and at >= 20.0 for at in moments)


def test_times_within_a_segment_follow_its_area() -> None:
    rising = Segment(10.0, 20.0, 0.0, 2.0)
    assert rising.area == pytest.approx(10.0)
    assert rising.when(0.0) == 10.0
    assert rising.when(2.5) == pytest.approx(15.0)  # a quarter of the area in the first half of the time
    assert rising.when(10.0) == pytest.approx(20.0)
    assert Segment(0.0, 10.0, 3.0, 3.0).when(6.0) == pytest.approx(2.0)


def test_a_trace_is_replayed_and_thinned_by_phases() -> None:
    trace = tuple(Traced(float(at), at + 1, 2) for at in range(100))
    who = tenant(process=Replay(), trace=Trace("trace.jsonl", trace), starts_s=10.0)
    whole = drawn(scenario(who), who)
    assert [(a.at_s, a.request.input_tokens) for a in whole] == [(at + 10.0, at + 1) for at in range(90)]
    phases = (Phase("none", 10.0, 30.0, (("gold", 0.0),)), Phase("half", 30.0, 100.0, (("gold", 0.5),)))
    thin = drawn(scenario(who, phases=phases), who)
    assert all(arrival.at_s >= 30.0 for arrival in thin)
    assert 15 < len(thin) < 55


def test_a_closed_loops_workers_follow_the_phases() -> None:
    who = tenant(process=Closed(4, 0.0), starts_s=10.0)
    world = scenario(who, phases=(Phase("twice", 50.0, 60.0, (("gold", 2.0),)),))
    assert [workers_at(world, who, at) for at in (5.0, 10.0, 55.0, 60.0, 100.0)] == [0, 4, 8, 4, 0]
    assert most_workers(world, who) == 8


def test_a_worker_knows_when_it_is_active_next() -> None:
    who = tenant(process=Closed(4, 0.0), starts_s=10.0, ends_s=90.0)
    world = scenario(who, phases=(Phase("twice", 50.0, 60.0, (("gold", 2.0),)),))
    times = (-0.001, 9.0, 10.0, 49.0, 55.0, 60.0, 89.0, 90.0)
    assert [works_from(world, who, 3, at) for at in times] == [10.0, 10.0, 10.0, 49.0, 55.0, 60.0, 89.0, None]
    assert [works_from(world, who, 7, at) for at in times] == [50.0, 50.0, 50.0, 50.0, 55.0, None, None, None]


def test_workers_send_different_requests() -> None:
    who = tenant(input=Uniform(1, 1000))
    one, two = ([r.input_tokens for r in itertools.islice(requests(who, 1, w), 5)] for w in ("w0", "w1"))
    assert one != two


def test_a_faster_scenario_multiplies_rates_and_workers() -> None:
    processes = (Poisson(1.0), Closed(2, 0.0), Ramp(1.0, 2.0, 5.0))
    made = faster(scenario(*(tenant(str(i), p) for i, p in enumerate(processes))), 2.0)
    assert [one.process for one in made.tenants] == [
        Poisson(2.0), Closed(4, 0.0), Ramp(2.0, 4.0, 5.0),
    ]  # fmt: skip
    replayed = faster(
        scenario(tenant(process=Replay(), trace=Trace("t", (Traced(4.0, 1, 1),)))), 2.0
    ).tenants[0]
    assert replayed.trace == Trace("t", (Traced(2.0, 1, 1),))


def test_a_shorter_scenario_scales_its_parts() -> None:
    phases, faults = (Phase("late", 50.0, 100.0),), (Fault(80.0, ("true",)),)
    whole = scenario(
        tenant(process=OnOff(1.0, 10.0, 20.0), starts_s=10.0, ends_s=90.0), phases=phases, faults=faults
    )
    made = lasting(whole, 10.0)
    who = made.tenants[0]
    assert (made.duration_s, made.phases[0].from_s, made.phases[0].to_s, made.faults[0].at_s) == (
        10,
        5,
        10,
        8,
    )
    assert (who.process, who.starts_s, who.ends_s) == (OnOff(1.0, 1.0, 2.0), 1.0, 9.0)


LENGTHS = st.one_of(
    st.builds(Fixed, st.integers(1, 100)),
    st.just(Uniform(3, 30)),
    st.just(Normal(20, 30, 3, 30)),
    st.just(Lognormal(10, 2.0, 3, 30)),
    st.just(Empirical((3, 7, 30), (1.0, 0.0, 2.0))),
)


@given(LENGTHS, SEEDS)
def test_lengths_stay_in_their_range(lengths: Lengths, seed: int) -> None:
    who = tenant(input=lengths)
    found = [r.input_tokens for r in itertools.islice(requests(who, seed), 50)]
    low, high = (lengths.tokens, lengths.tokens) if isinstance(lengths, Fixed) else (3, 30)
    assert all(low <= length <= high for length in found)
    assert low <= mean(lengths) <= high
    assert 7 not in found or not isinstance(lengths, Empirical)


def test_the_mean_length_is_that_of_drawn_lengths() -> None:
    assert mean(Uniform(0, 100)) == pytest.approx(50, rel=0.05)
    assert mean(Normal(100, 10, 1, 1000)) == pytest.approx(100, rel=0.02)
    assert mean(Empirical((10, 20), (1, 3))) == pytest.approx(17.5, rel=0.02)
    assert draw(Fixed(7), random.Random(1)) == 7


def test_prompts_of_ids_have_exact_lengths_and_differ() -> None:
    world, who = scenario(), tenant()
    first, second = itertools.islice(requests(who, 1), 2)
    one, two = (json.loads(body(world, who, r, 1)) for r in (first, second))
    assert len(one["prompt"]) == 16
    assert all(10 <= token <= 400 for token in one["prompt"])
    assert one["prompt"] != two["prompt"]
    assert one == json.loads(body(world, who, first, 1))
    assert (one["max_tokens"], one["ignore_eos"], one["stream_options"]) == (4, True, {"include_usage": True})


def test_a_shared_prefix_is_part_of_the_length_and_equal_for_all_tenants_with_its_name() -> None:
    world = scenario()
    one, two = (tenant(name, prefix=Prefix(1.0, 6, "system")) for name in ("gold", "spot"))
    first, second = (json.loads(body(world, who, next(requests(who, 1)), 1))["prompt"] for who in (one, two))
    assert first[:6] == second[:6]
    assert first[6:] != second[6:]
    assert len(first) == 16


def test_a_share_of_the_requests_has_the_prefix() -> None:
    who = tenant(prefix=Prefix(0.25, 6, "system"))
    share = sum(r.has_prefix for r in itertools.islice(requests(who, 3), 2000)) / 2000
    assert share == pytest.approx(0.25, abs=0.05)


def test_the_length_of_text_prompts_follows_the_ratio_of_tokens_to_bytes() -> None:
    who = replace(tenant(priority=3, endpoint=Endpoint.CHAT), input=Fixed(100))
    world = scenario(prompt=PromptForm.TEXT, tokens_per_byte=0.5, stream=False)
    made = json.loads(body(world, who, next(requests(who, 1)), 1))
    assert len(made["messages"][0]["content"]) == 200
    assert made["priority"] == 3
    assert "stream_options" not in made


@given(st.integers(0, 200), SEEDS)
def test_made_prompts_have_the_requested_length(size: int, seed: int) -> None:
    assert len(text(size, "x", seed=seed).encode()) == size
    assert len(token_ids(size, "x", seed=seed)) == size
