"""The capacity of one engine: configured, read from the engine, or learned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tokenpool.amounts import NO_KV_BOUND, Amount
from tokenpool.capacity.model import (
    DEFAULT_SLOTS,
    LEARNED_SLACK,
    OBSERVATIONS_UNTIL_QUEUED,
    UNLEARNED_TOKENS_PER_SECOND,
    CapacityModel,
    EngineObservation,
)
from tokenpool.entitlements import ReplicaCapacity

AUTO = ReplicaCapacity()
IDLE = EngineObservation(at=0.0, running=0, waiting=0, kv_usage=0.0, kv_tokens=10_000)


def test_numbers_of_the_pool_file_hold() -> None:
    model = CapacityModel(ReplicaCapacity(1000, 5000, 8))
    assert model.amount() == Amount(1000, 5000, 8)
    assert model.is_known


def test_the_engines_kv_capacity_bounds_the_pool_files() -> None:
    model = CapacityModel(ReplicaCapacity(1000, 50_000, 8))
    model.observe(IDLE, lacked_throughput=False)
    assert model.amount().kv_tokens == 10_000


def test_auto_reads_the_cache_and_starts_with_no_bound_on_throughput() -> None:
    model = CapacityModel(AUTO)
    assert not model.is_known
    assert model.amount() == Amount(UNLEARNED_TOKENS_PER_SECOND, 0, DEFAULT_SLOTS)
    model.observe(IDLE, lacked_throughput=False)
    assert model.is_known
    assert model.amount().kv_tokens == 10_000


def test_without_a_stated_kv_capacity_there_is_no_kv_bound() -> None:
    model = CapacityModel(AUTO)
    model.forget_load()  # the engine stated no capacity
    assert (model.is_known, model.lacks_kv_bound) == (True, True)
    assert model.amount().kv_tokens == model.room(0, 0).kv_tokens == NO_KV_BOUND
    model.observe(IDLE, lacked_throughput=False)
    assert (model.is_known, model.lacks_kv_bound, model.amount().kv_tokens) == (True, False, 10_000)


def test_a_page_that_does_not_state_the_capacity_leaves_it_without_a_bound() -> None:
    model = CapacityModel(AUTO)
    model.observe(replace(IDLE, kv_tokens=None, kv_usage=0.9), lacked_throughput=False)
    assert (model.is_known, model.lacks_kv_bound) == (True, True)
    room = model.room(0, 0)
    assert (room.kv_tokens, room.foreign_kv_tokens) == (NO_KV_BOUND, 0)  # a share of an unknown capacity is 0


def test_a_stated_kv_capacity_stays_without_a_page_until_the_engine_restarts() -> None:
    model = CapacityModel(AUTO)
    model.observe(IDLE, lacked_throughput=False)
    model.observe(replace(IDLE, at=1.0, kv_tokens=None), lacked_throughput=False)
    model.forget_load()
    assert (model.lacks_kv_bound, model.amount().kv_tokens) == (False, 10_000)
    model.engine_restarted()
    assert (model.is_known, model.amount().kv_tokens) == (False, 0)


def test_numbers_of_the_pool_file_bind_if_the_engine_states_none() -> None:
    for spec in (ReplicaCapacity(kv_tokens=5000), ReplicaCapacity(start=Amount(0, 5000, 0))):
        model = CapacityModel(spec)
        model.forget_load()
        assert (model.lacks_kv_bound, model.amount().kv_tokens) == (False, 5000)


def test_an_engine_without_a_kv_cache_has_only_the_pool_files_bound() -> None:
    seen = replace(IDLE, kv_tokens=math.inf, kv_usage=1.0)
    for spec, kv_tokens in ((AUTO, NO_KV_BOUND), (ReplicaCapacity(kv_tokens=5000), 5000)):
        model = CapacityModel(spec)
        model.observe(seen, lacked_throughput=False)
        assert (model.is_known, model.lacks_kv_bound) == (True, False)
        assert model.amount().kv_tokens == kv_tokens
        assert model.room(0, 0).foreign_kv_tokens == 0


def test_a_capacity_that_no_engine_has_is_no_bound() -> None:
    model = CapacityModel(AUTO)
    model.observe(replace(IDLE, kv_tokens=1e300), lacked_throughput=False)
    assert model.amount().kv_tokens == NO_KV_BOUND


def saturated(seconds: int, rate: float, model: CapacityModel, start: float = 0.0) -> None:
    """``seconds`` observations of a full engine with waiting requests."""
    for step in range(seconds + 1):
        at = start + step
        tokens = rate * at
        model.observe(
            replace(IDLE, at=at, running=8, waiting=3, prompt_tokens=tokens, generation_tokens=tokens),
            lacked_throughput=False,
        )


def test_a_queue_shows_how_many_sequences_the_engine_runs() -> None:
    model = CapacityModel(AUTO)
    saturated(3, 100, model)
    assert model.amount().concurrency == 8


def test_more_running_sequences_raise_the_slots_without_a_queue() -> None:
    model = CapacityModel(AUTO)
    saturated(3, 100, model)
    model.observe(replace(IDLE, at=10.0, running=12), lacked_throughput=False)
    assert model.amount().concurrency == 12


def test_throughput_is_learned_while_saturated_and_not_while_idle() -> None:
    model = CapacityModel(AUTO)
    saturated(30, 100, model)
    assert model.amount().tokens_per_second == pytest.approx(200 * LEARNED_SLACK, rel=0.01)
    for second in range(31, 60):
        seen = replace(IDLE, at=second, running=1, prompt_tokens=3000, generation_tokens=3000)
        model.observe(seen, lacked_throughput=False)
    assert model.amount().tokens_per_second == pytest.approx(200 * LEARNED_SLACK, rel=0.01)


def test_arrivals_at_an_engine_with_room_teach_neither_slots_nor_throughput() -> None:
    """An observation between two of the engine's steps shows a request that waits for the next step."""
    model = CapacityModel(AUTO)
    for number in range(100):
        tokens = 10.0 * number
        waiting = 0 if number % OBSERVATIONS_UNTIL_QUEUED == 0 else 1
        seen = replace(IDLE, at=0.25 * number, running=2, waiting=waiting, generation_tokens=tokens)
        model.observe(seen, lacked_throughput=False)
    assert model.amount().concurrency == DEFAULT_SLOTS
    assert model.amount().tokens_per_second == UNLEARNED_TOKENS_PER_SECOND


def test_several_waiting_requests_are_a_queue_at_the_second_observation() -> None:
    model = CapacityModel(AUTO)
    for number in range(2):
        model.observe(replace(IDLE, at=0.25 * number, running=8, waiting=2 + number), lacked_throughput=False)
    assert model.amount().concurrency == 8


def test_cached_prompt_tokens_are_no_throughput() -> None:
    model = CapacityModel(AUTO)
    for second in range(10):
        seen = replace(
            IDLE, at=second, running=8, waiting=1, prompt_tokens=100.0 * second, cached_tokens=90.0 * second
        )
        model.observe(seen, lacked_throughput=False)
    assert model.amount().tokens_per_second == pytest.approx(10 * LEARNED_SLACK)


def test_a_learned_throughput_that_sheds_requests_is_probed() -> None:
    model = CapacityModel(AUTO)
    saturated(30, 100, model)
    before = model.amount().tokens_per_second
    seen = replace(IDLE, at=31.0, running=2, prompt_tokens=3000, generation_tokens=3000)
    model.observe(seen, lacked_throughput=True)
    assert model.amount().tokens_per_second == pytest.approx(before * 1.1)


def test_a_restarted_engine_is_learned_again() -> None:
    model = CapacityModel(AUTO)
    saturated(10, 100, model)
    model.engine_restarted()
    assert model.amount() == Amount(UNLEARNED_TOKENS_PER_SECOND, 0, DEFAULT_SLOTS)


def test_room_separates_foreign_load() -> None:
    model = CapacityModel(ReplicaCapacity(None, None, 8))
    model.observe(replace(IDLE, running=5, waiting=0, kv_usage=0.5), lacked_throughput=False)
    room = model.room(own_sequences=2, own_kv_tokens=1000)
    assert (room.slots, room.kv_tokens) == (8, 10_000)
    assert (room.foreign_sequences, room.foreign_kv_tokens) == (3, 4000)


def test_an_engine_with_a_queue_has_no_more_slots_than_it_runs() -> None:
    model = CapacityModel(ReplicaCapacity(None, None, 8))
    model.observe(replace(IDLE, running=4, waiting=2), lacked_throughput=False)
    model.observe(replace(IDLE, at=IDLE.at + 1, running=3, waiting=1), lacked_throughput=False)
    assert model.room(4, 0).slots == 8  # two observations may have fallen on arrivals between two steps
    for later in (2, 3):
        model.observe(replace(IDLE, at=IDLE.at + later, running=4, waiting=1), lacked_throughput=False)
    assert model.room(4, 0).slots == model.room(4, 0).proven_slots == 4
    model.observe(replace(IDLE, at=IDLE.at + 4, running=3), lacked_throughput=False)
    assert model.room(3, 0).slots == 8


def test_an_old_observation_is_not_used() -> None:
    model = CapacityModel(ReplicaCapacity(None, None, 8))
    model.observe(replace(IDLE, running=8, waiting=5, kv_usage=0.9), lacked_throughput=False)
    model.forget_load()
    room = model.room(0, 0)
    assert (room.slots, room.foreign_sequences, room.foreign_kv_tokens) == (8, 0, 0)


def test_a_changed_pool_file_takes_effect() -> None:
    model = CapacityModel(AUTO)
    model.reconfigure(ReplicaCapacity(5, 6, 7))
    assert model.amount() == Amount(5, 6, 7)


def full(model: CapacityModel, at: float, slots: float, *, waiting: float = 0) -> float:
    """One observation of an engine that runs ``slots`` while requests are shed because slots are missing."""
    model.observe(
        replace(IDLE, at=at, running=slots, waiting=waiting), lacked_throughput=False, lacked_slots=True
    )
    return model.amount().concurrency


def test_slots_that_are_too_few_are_probed_until_a_queue_shows() -> None:
    model = CapacityModel(ReplicaCapacity(start=Amount(0, 0, 3)))
    assert model.amount().concurrency == 3
    seen, at = [], 0.0
    while not seen or seen[-1] < 9:
        at += 0.25
        seen.append(full(model, at, min(model.amount().concurrency, 8)))
    assert at <= 2.0
    full(model, at + 0.25, 8, waiting=1)
    assert full(model, at + 0.5, 8, waiting=1) == 8
    # The pause before the next probe grows each time.
    assert full(model, at + 1, 8) == 8
    assert full(model, at + 6, 8) == 9
    full(model, at + 6.25, 8, waiting=1)
    assert full(model, at + 6.5, 8, waiting=1) == 8
    assert full(model, at + 12, 8) == 8
    assert full(model, at + 17, 8) == 9


def test_a_probed_slot_is_proven_once_it_is_in_use() -> None:
    model = CapacityModel(ReplicaCapacity(start=Amount(0, 0, 8)))
    assert full(model, 6, 8) == 8  # the first observation has none to compare with
    assert full(model, 7, 8) == 9
    assert model.room(8, 0).proven_slots == 8
    full(model, 7.25, 9)
    assert model.room(9, 0).proven_slots == 9


def test_too_many_probed_slots_are_dropped_at_the_first_queue() -> None:
    model = CapacityModel(ReplicaCapacity(start=Amount(0, 0, 24)))
    full(model, 1, 8, waiting=16)
    assert full(model, 1.25, 8, waiting=16) == 8


def test_throughput_may_begin_with_a_number_and_is_probed_from_there() -> None:
    model = CapacityModel(ReplicaCapacity(start=Amount(1000, 5000, 0)))
    assert model.amount().tokens_per_second == pytest.approx(1000 * LEARNED_SLACK)
    assert (model.amount().kv_tokens, model.amount().concurrency) == (5000, DEFAULT_SLOTS)
    assert model.is_known
    for step in range(13):
        model.observe(replace(IDLE, at=float(step), running=3), lacked_throughput=True)
    assert model.amount().tokens_per_second > 3000
    model.engine_restarted()
    assert model.amount().tokens_per_second == pytest.approx(1000 * LEARNED_SLACK)


def test_learning_starts_again_after_a_changed_starting_value() -> None:
    model = CapacityModel(AUTO)
    saturated(3, 100, model)
    model.reconfigure(AUTO)
    assert model.amount().concurrency == 8
    model.reconfigure(ReplicaCapacity(start=Amount(0, 0, 5)))
    assert model.amount().concurrency == 5
