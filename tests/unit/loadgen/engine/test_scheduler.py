"""The scheduler: slots, budget, blocks, prefixes, preemption and priorities. Every sequence ends once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.engine.counters import REQUESTS, TOKENS
from loadgen.engine.model import Costs, Ending, Model, Policy
from loadgen.engine.scheduler import limit_reached
from loadgen.engine.sequence import State
from tests.unit.loadgen.engine.steps import Engine


def test_a_lone_sequence_gets_a_token_in_each_step_until_its_bound() -> None:
    engine = Engine()
    sequence = engine.add(10, 3)

    plans = engine.run()

    assert [(p.decoding, p.prefilled, p.started) for p in plans] == [(0, 10, 1), (1, 0, 0), (1, 0, 0)]
    assert sequence.produced == 3
    assert sequence.ending is Ending.LENGTH
    assert engine.scheduler.pool.used == 0


def test_a_sequence_stops_at_its_natural_length() -> None:
    engine = Engine()
    sequence = engine.add(10, 10, natural=2)

    engine.run()

    assert (sequence.produced, sequence.ending) == (2, Ending.STOP)


def test_at_most_one_sequence_per_slot_runs_and_the_next_begins_when_one_ends() -> None:
    engine = Engine(slots=2)
    first, second, third = engine.add(4, 2), engine.add(4, 5), engine.add(4, 2)

    engine.step()
    assert engine.scheduler.running == [first, second]
    engine.step()
    engine.step()

    assert first.ending is Ending.LENGTH
    assert engine.scheduler.running == [second, third]


def test_a_long_prompt_is_computed_in_parts_together_with_other_tokens() -> None:
    engine = Engine(batched_tokens=10)
    short = engine.add(4, 10)
    engine.step()
    engine.add(30, 2)

    plans = [engine.step() for _ in range(4)]

    assert [p.prefilled for p in plans] == [9, 9, 9, 3]
    assert all(p.decoding == 1 for p in plans)
    assert short.produced == 5


def test_a_step_computes_no_more_tokens_than_its_budget() -> None:
    engine = Engine(batched_tokens=10)
    first, second = engine.add(7), engine.add(7)

    plan = engine.step()

    assert [(s, n) for s, n in plan.parts] == [(first, 7), (second, 3)]
    assert engine.tokens == [first]


def test_a_cached_prefix_is_not_computed_again() -> None:
    engine = Engine()
    engine.add(range(12), 1)
    engine.run()
    second = engine.add([*range(8), 99, 98, 97], 1)

    (plan,) = engine.run()

    assert second.cached == 8
    assert plan.prefilled == 3
    statistics = engine.scheduler.statistics
    assert (statistics.cache_queries, statistics.cache_hits) == (23, 8)


def test_the_last_token_of_a_fully_cached_prompt_is_computed() -> None:
    engine = Engine()
    engine.add(range(8), 1)
    engine.run()
    second = engine.add(range(8), 1)

    (plan,) = engine.run()

    assert second.cached == 4
    assert plan.prefilled == 4


def test_running_sequences_share_the_blocks_of_their_prefix() -> None:
    engine = Engine()
    engine.add(range(9), 2)
    engine.add(range(9), 2)

    engine.step()

    assert engine.scheduler.pool.used == 2 + 1 + 1


def test_without_prefix_caching_all_tokens_are_computed() -> None:
    engine = Engine(caches_prefixes=False)
    engine.add(range(12), 1)
    engine.run()
    second = engine.add(range(12), 1)

    (plan,) = engine.run()

    assert (second.cached, plan.prefilled) == (0, 12)
    assert engine.scheduler.statistics.cache_hits == 0


def test_the_longest_idle_blocks_are_taken_first_and_a_prefix_from_its_end() -> None:
    engine = Engine(blocks=16)
    old, young = engine.add(9, 1), engine.add(9, 1)
    engine.run()
    # There are 12 blank blocks, for a sequence of 13.
    engine.add(52, 1)
    engine.run()

    assert [engine.scheduler.pool.known(s.keys(2, 4)) for s in (old, young)] == [1, 2]


def test_without_free_blocks_the_last_sequence_is_preempted_and_computed_again() -> None:
    engine = Engine(window=24, blocks=6, caches_prefixes=False)
    first, second = engine.add(8, 16), engine.add(8, 8)

    plans = engine.run()

    assert (first.preemptions, second.preemptions) == (0, 1)
    assert engine.scheduler.statistics.preemptions == 1
    assert (first.produced, second.produced) == (16, 8)
    # Its prompt and its output so far are computed again.
    assert sum(p.prefilled for p in plans) > 16
    assert sum(p.started for p in plans) == 2


def test_a_preempted_sequence_waits_before_later_arrivals() -> None:
    engine = Engine(window=24, blocks=6, slots=2, caches_prefixes=False)
    engine.add(8, 16)
    second, third = engine.add(8, 8), engine.add(4, 1)

    while not second.preemptions:
        engine.step()

    assert engine.scheduler.waiting == [second, third]


def test_none_overtakes_a_sequence_that_waits_for_blocks() -> None:
    engine = Engine(window=24, blocks=6)
    engine.add(12, 4)
    large, small = engine.add(16, 1), engine.add(2, 1)

    engine.step()

    assert engine.scheduler.waiting == [large, small]


def test_by_priority_lower_values_are_served_first_and_equal_values_by_arrival() -> None:
    engine = Engine(slots=1, policy=Policy.PRIORITY)
    engine.add(4, 2)
    engine.step()
    late = [engine.add(4, 1, priority=p) for p in (5, 0, 5, -1)]

    engine.run()

    assert engine.tokens[-4:] == [late[3], late[1], late[0], late[2]]


def test_by_arrival_priorities_do_not_matter() -> None:
    engine = Engine(slots=1)
    sequences = [engine.add(4, 1, priority=p) for p in (5, 0, -1)]

    engine.run()

    assert engine.tokens == sequences


def test_by_priority_the_least_important_sequence_is_preempted_even_if_it_arrived_first() -> None:
    engine = Engine(window=24, blocks=6, caches_prefixes=False, policy=Policy.PRIORITY)
    first, second = engine.add(8, 8, priority=9), engine.add(8, 8, priority=0)

    engine.run()

    assert (first.preemptions, second.preemptions) == (1, 0)
    assert (first.produced, second.produced) == (8, 8)


def test_an_abort_frees_blocks_at_once() -> None:
    engine = Engine()
    running = engine.add(10, 20)
    engine.step()
    assert engine.scheduler.kv_usage > 0

    assert engine.abort(running)

    assert engine.scheduler.kv_usage == 0
    assert (running.state, running.ending) == (State.ENDED, Ending.ABORT)
    assert engine.scheduler.unfinished == 0


def test_an_abort_during_a_step_gives_no_token() -> None:
    engine = Engine()
    sequence = engine.add(10, 20)
    plan = engine.scheduler.plan(0.0)

    engine.abort(sequence)

    assert engine.scheduler.complete(plan, 1.0) == []
    assert sequence.produced == 0


def test_a_waiting_sequence_can_be_aborted_and_an_ended_one_cannot() -> None:
    engine = Engine(slots=1)
    engine.add(4, 1)
    waiting = engine.add(4, 1)

    assert engine.abort(waiting)
    assert not engine.abort(waiting)
    engine.run()

    assert waiting not in engine.tokens
    assert engine.scheduler.prefilling_tokens == 0


def test_a_reached_queue_limit_is_named() -> None:
    requests = Engine(max_queued_requests=2, slots=1)
    tokens = Engine(max_queued_tokens=10)

    assert limit_reached([requests.scheduler], 2) is None
    requests.add(4)
    assert limit_reached([requests.scheduler], 1) is None
    assert limit_reached([requests.scheduler], 2) == REQUESTS
    # The limit compares the backlog without the request, so a long request passes without a backlog.
    assert limit_reached([tokens.scheduler], 1) is None
    tokens.add(10, 5)
    assert limit_reached([tokens.scheduler], 1) == TOKENS
    tokens.step()
    assert limit_reached([tokens.scheduler], 1) is None


def test_times_are_measured_from_arrival_to_each_token() -> None:
    engine = Engine(slots=1)
    engine.add(4, 2)
    engine.add(4, 3)

    engine.run()

    statistics = engine.scheduler.statistics
    assert statistics.time_to_first_token.total == 1.0 + 3.0
    assert statistics.queue_time.total == 2.0
    assert statistics.inter_token_latency.total == 3.0
    assert statistics.e2e_latency.total == 2.0 + 5.0


def test_the_duration_of_a_step_depends_on_its_work() -> None:
    costs = Costs(step_s=1.0, per_sequence_s=0.1, per_prompt_token_s=0.01, per_request_s=0.001)

    seconds = costs.seconds(decoding=2, prefilled=3, started=4, chance=random.Random(0))

    assert seconds == pytest.approx(1.234)


def test_noise_keeps_the_mean_of_steps_and_repeats_with_its_seed() -> None:
    costs, chance = Costs(step_s=1.0, noise=0.2), random.Random(1)
    seen = [costs.seconds(decoding=0, prefilled=0, started=0, chance=chance) for _ in range(2000)]

    assert sum(seen) / len(seen) == pytest.approx(1.0, abs=0.02)
    assert max(seen) > 1.2
    assert seen[0] == costs.seconds(decoding=0, prefilled=0, started=0, chance=random.Random(1))


def test_natural_lengths_have_the_given_mean() -> None:
    model, chance = Model(output_tokens=50.0), random.Random(1)

    lengths = [model.natural_length(chance) for _ in range(5000)]

    assert min(lengths) >= 1
    assert sum(lengths) / len(lengths) == pytest.approx(50.0, rel=0.05)
    assert Model().natural_length(chance) is None


def test_a_cache_that_cannot_hold_one_sequence_is_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match="give --blocks 128 or more, or a smaller --window"):
        Model(blocks=10, window=2048)


SEQUENCES = st.tuples(
    st.integers(0, 2),  # number of the shared prefix
    st.integers(1, 30),  # prompt
    st.integers(1, 12),  # bound
    st.one_of(st.none(), st.integers(1, 12)),  # natural
    st.integers(-2, 2),  # priority
    st.integers(0, 6),  # steps until the next arrival
    st.one_of(st.none(), st.integers(0, 8)),  # steps until its abort
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SEQUENCES, min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(11, 20),
    st.integers(1, 40),
    st.sampled_from(Policy),
    st.booleans(),
)
def test_every_sequence_ends_once_and_all_blocks_and_tokens_are_accounted_for(
    arrivals: list[tuple[int, int, int, int | None, int, int, int | None]],
    slots: int,
    blocks: int,
    budget: int,
    policy: Policy,
    caches: bool,
) -> None:
    engine = Engine(
        window=44, blocks=blocks, slots=slots, batched_tokens=budget, policy=policy, caches_prefixes=caches
    )
    scheduler, pool = engine.scheduler, engine.scheduler.pool
    leaving: list[tuple[float, object]] = []
    sequences = []

    def step() -> None:
        plan = engine.step()
        assert plan.parts or not scheduler.unfinished
        assert sum(count for _, count in plan.parts) <= budget
        assert len(scheduler.running) <= slots
        assert pool.blank + len(pool.idle) + len(pool.held) + pool.unnamed == blocks
        assert scheduler.unfinished == sum(s.ending is None for s in sequences)
        named = {key for s in scheduler.running for key in s.held if key is not None}
        unnamed = sum(key is None for s in scheduler.running for key in s.held)
        assert (set(pool.held), pool.unnamed) == (named, unnamed)
        for at, sequence in leaving:
            if at <= engine.now:
                engine.abort(sequence)

    for prefix, prompt, bound, natural, priority, pause, leaves in arrivals:
        tokens = [prefix * 100 + index // 2 for index in range(prompt)]
        sequence = engine.add(tokens, bound, priority=priority, natural=natural)
        sequences.append(sequence)
        if leaves is not None:
            leaving.append((engine.now + leaves, sequence))
        for _ in range(pause):
            step()
    for _ in range(2000):
        if not scheduler.unfinished:
            break
        step()

    statistics = scheduler.statistics
    assert all(s.ending is not None and not s.held for s in sequences)
    assert sum(statistics.endings.values()) == len(sequences)
    assert statistics.generation_tokens == sum(s.produced for s in sequences) == len(engine.tokens)
    assert statistics.prompt_tokens == sum(len(s.prompt) for s in sequences if s.produced)
    assert all(
        s.produced == min(s.bound, s.natural or s.bound) for s in sequences if s.ending != Ending.ABORT
    )
    assert pool.used == scheduler.prefilling_tokens == 0
