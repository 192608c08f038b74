"""The engine's state: every transition, and the rule that its own methods alone change it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import sidecar
from sidecar.dialects.stream_reader import FingerprintField
from sidecar.engine.health import MISSES_UNTIL_DOWN, MISSES_UNTIL_STALE
from sidecar.engine.state import EngineState
from tokenpool.amounts import NO_KV_BOUND
from tokenpool.capacity.model import CapacityModel, EngineObservation
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE, PRIORITY_QUEUE
from tokenpool.entitlements import ReplicaCapacity
from tokenpool.pricing.cost import EngineShape

PAGE = EngineObservation(
    at=1.0,
    running=5,
    waiting=0,
    kv_usage=0.5,
    kv_tokens=10_000,
    block_size=32,
    prompt_tokens=100,
    generation_tokens=100,
    started_at=1.0,
    is_vllm=True,
)
UNUSABLE = "the engine's /metrics is not usable: %s; requests are served from this sidecar's own counts"
REPLICA = ReplicaCapacity(tokens_per_second=1000, concurrency=8)


def started(*, schedules_by_priority: bool = False) -> EngineState:
    """An engine that is up, of whose five sequences two are this sidecar's."""
    engine = EngineState(CapacityModel(REPLICA), schedules_by_priority=schedules_by_priority)
    engine.health_answered()
    engine.page_read(PAGE, 2, 1000)
    engine.context_window_read(2048)
    return engine


def page_is_missing(engine: EngineState) -> None:
    for _ in range(MISSES_UNTIL_STALE):
        engine.page_missed("it answers 500")


def page_is_late(engine: EngineState) -> None:
    page_is_missing(engine)
    engine.page_late(PAGE)


def engine_was_down(engine: EngineState) -> None:
    engine.health_failed("/health answers 503")


def engine_is_back(engine: EngineState) -> None:
    engine_was_down(engine)
    engine.health_answered()


def engine_restarted(engine: EngineState) -> None:
    engine.page_read(replace(PAGE, at=2.0, started_at=2.0), 0, 0)


def engine_returned_without_a_page(engine: EngineState) -> None:
    engine.health_failed("connection refused", is_refused=True)
    engine.health_answered()
    engine.page_missed("it answers 404")


def pool_file_changed(engine: EngineState) -> None:
    engine.reconfigure(replace(REPLICA, concurrency=6))


CHANGES: list[Callable[[EngineState], None]] = [
    page_is_missing,
    page_is_late,
    engine_was_down,
    engine_is_back,
    engine_restarted,
    engine_returned_without_a_page,
    pool_file_changed,
]


# --- the room ---


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("schedules_by_priority", [True, False])
def test_no_change_of_the_engine_drops_reserved_slots_or_queues(
    change: Callable[[EngineState], None], schedules_by_priority: bool
) -> None:
    engine = started(schedules_by_priority=schedules_by_priority)
    engine.reserve(1.5)
    change(engine)
    assert engine.room.reserved_slots == 1.5
    assert engine.room.preemptible_queue == PREEMPTIBLE_QUEUE
    assert engine.room.queue == (PRIORITY_QUEUE if schedules_by_priority else 0.0)


def test_the_room_tells_foreign_load_from_the_sidecars_own() -> None:
    room = started().room
    assert (room.slots, room.kv_tokens) == (8, 10_000)
    assert (room.foreign_sequences, room.foreign_kv_tokens) == (3, 4000)


def test_reserved_slots_leave_the_rest_of_the_room_as_it_is() -> None:
    engine = started()
    before = engine.room
    engine.reserve(2.0)
    assert engine.room == replace(before, reserved_slots=2.0)
    engine.reserve(0.0)
    assert engine.room == before


def test_a_page_that_is_missed_once_changes_nothing() -> None:
    engine = started()
    before = engine.room
    engine.page_missed("it answers 500")
    assert engine.room is before
    assert engine.observation == PAGE


@pytest.mark.parametrize("change", [page_is_missing, page_is_late, engine_was_down])
def test_without_a_page_the_foreign_load_is_unknown_and_the_cache_stays(
    change: Callable[[EngineState], None],
) -> None:
    engine = started()
    change(engine)
    assert engine.observation is None
    assert (engine.room.foreign_sequences, engine.room.foreign_kv_tokens) == (0, 0)
    assert (engine.room.slots, engine.room.kv_tokens) == (8, 10_000)


def test_a_late_page_brings_the_numbers_that_do_not_change() -> None:
    engine = EngineState(CapacityModel(REPLICA))
    engine.health_answered()
    engine.page_missed("it takes longer than 1 s")
    assert engine.room.kv_tokens == NO_KV_BOUND
    engine.page_late(PAGE)
    assert (engine.room.kv_tokens, engine.room.foreign_sequences) == (10_000, 0)
    assert (engine.shape.block_size, engine.observation) == (32, None)


def test_a_changed_pool_file_applies_to_the_room_at_once() -> None:
    engine = started()
    pool_file_changed(engine)
    assert (engine.room.slots, engine.room.foreign_sequences) == (6, 3)


def test_pages_of_an_engine_that_is_down_are_ignored() -> None:
    engine = started()
    engine_was_down(engine)
    before = engine.room
    engine.page_read(PAGE, 0, 0)
    engine.page_late(PAGE)
    engine.page_missed("it answers 500")
    assert (engine.room, engine.observation, engine.page.misses) == (before, None, 0)


@pytest.mark.parametrize(("lacks", "grows"), [(True, True), (False, False)])
def test_sheds_for_want_of_slots_make_the_next_page_probe_for_more(lacks: bool, grows: bool) -> None:
    engine = EngineState(CapacityModel(replace(REPLICA, concurrency=None)))
    engine.health_answered()
    for at in (10.0, 11.0, 12.0, 13.0, 14.0):  # requests wait: the engine runs four
        engine.page_read(replace(PAGE, at=at, running=4, waiting=4), 8, 0)
    assert engine.room.slots == 4
    if lacks:
        engine.lacked_slots()
    engine.page_read(replace(PAGE, at=30.0, running=4, waiting=0), 4, 0)
    assert (engine.room.slots > 4) is grows
    before = engine.room.slots
    engine.page_read(replace(PAGE, at=60.0, running=before, waiting=0), 4, 0)
    assert engine.room.slots == before  # a shed counts for one page


# --- health ---


def test_no_request_is_sent_before_both_pages_have_answered_or_failed() -> None:
    engine = EngineState(CapacityModel(REPLICA))
    assert (engine.is_up, engine.problems()) == (False, ["the engine does not answer"])
    engine.health_answered()
    assert (engine.is_up, engine.problems()) == (
        False,
        ["the engine's pages are being read for the first time"],
    )
    engine.page_missed("it answers 404")
    assert not engine.is_up
    engine.context_window_missed("it has no max_model_len")
    assert (engine.is_up, engine.problems()) == (True, [])


def test_a_refused_connection_stops_requests_until_the_next_check() -> None:
    engine = started()
    engine.connection_refused()
    assert not engine.is_up
    assert engine.problems() == [
        "the engine refused a connection; requests resume after its next successful health check"
    ]
    engine.health_silent("no answer")  # which proves nothing
    assert not engine.is_up
    engine.health_answered()
    assert engine.is_up


def test_an_engine_that_is_down_keeps_its_last_known_size() -> None:
    engine = EngineState(CapacityModel(REPLICA))
    assert (engine.room.is_down, engine.room.kv_tokens) == (True, NO_KV_BOUND)  # other replicas decide
    engine = started()
    size = engine.room.slots, engine.room.kv_tokens
    assert not engine.room.is_down
    engine.connection_refused()
    assert engine.room.is_down
    engine.health_failed("/health answers 503")
    assert (engine.room.is_down, engine.room.slots, engine.room.kv_tokens) == (True, *size)
    engine.health_answered()
    assert not engine.room.is_down


def test_an_engine_that_is_down_says_why() -> None:
    engine = started()
    engine.health_failed("/health answers 503")
    assert not engine.is_up
    assert engine.problems() == ["the engine does not answer", "its last health check: /health answers 503"]
    assert engine.shown()["error"] == "/health answers 503"
    engine.health_answered()
    assert engine.is_up
    assert engine.shown()["error"] is None
    assert engine.restarts == 0


def test_silent_checks_are_tolerated_up_to_a_number() -> None:
    engine = started()
    for _ in range(MISSES_UNTIL_DOWN - 1):
        engine.health_silent("no answer")
    assert (engine.is_up, engine.observation) == (True, PAGE)
    engine.health_silent("no answer")
    assert (engine.is_up, engine.observation) == (False, None)


def test_each_change_of_health_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="sidecar.engine.state")
    engine = EngineState(CapacityModel(REPLICA), "http://engine:8000")
    for _ in range(2):
        engine.health_failed("connection refused", is_refused=True)
    for _ in range(2):
        engine.health_answered()
    for _ in range(2):
        page_is_missing(engine)
    for _ in range(2):
        engine.page_read(PAGE, 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "the engine does not answer",
        "the engine answers",
        "the engine's metrics page is not usable",
        "the engine's metrics page is usable again",
    ]


def test_degraded_names_the_page_and_the_missing_bound() -> None:
    engine = started()
    assert engine.degraded() == []
    page_is_missing(engine)
    assert engine.degraded() == [UNUSABLE % "it answers 500"]
    engine_returned_without_a_page(engine)
    assert engine.degraded() == [
        UNUSABLE % "it answers 404",
        "the engine's KV capacity is unknown, so KV tokens have no bound: set replica.kv_tokens",
    ]
    engine_was_down(engine)
    assert engine.degraded() == []


def test_the_metrics_show_the_state_that_requests_see() -> None:
    engine = started()

    def shown() -> list[float]:
        return [sample.value for family in engine.metrics() for sample in family.samples]

    assert shown() == [1, 1]
    page_is_missing(engine)
    assert shown() == [1, 0]
    engine.connection_refused()
    assert shown() == [0, 0]


# --- restarts ---


@pytest.mark.parametrize(
    "seen",
    [
        replace(PAGE, at=2.0, started_at=2.0),
        replace(PAGE, at=2.0, generation_tokens=99),
        replace(PAGE, at=2.0, prompt_tokens=99),
    ],
)
def test_another_process_is_known_by_its_start_or_its_counters(seen: EngineObservation) -> None:
    engine = started()
    engine.page_read(seen, 0, 0)
    assert (engine.restarts, engine.last_page) == (1, seen)


def test_a_restart_forgets_everything_that_was_learned_of_the_process() -> None:
    engine = started()
    engine.fingerprint_field.learn("fp_1")
    engine.priority_answered(20, is_accepted=False)
    engine_returned_without_a_page(engine)
    assert engine.restarts == 1
    assert engine.shape.context_window is None
    assert isinstance(engine.fingerprint_field, FingerprintField)
    assert engine.fingerprint_field.text is None
    assert (engine.takes_priority, engine.is_vllm, engine.last_page) == (None, False, None)
    assert engine.room.kv_tokens == NO_KV_BOUND
    engine.page_missed("it answers 404")
    assert engine.restarts == 1


def test_the_same_process_is_not_a_restart() -> None:
    engine = started()
    engine_is_back(engine)
    engine.page_read(replace(PAGE, at=2.0), 0, 0)
    assert engine.restarts == 0
    assert engine.shape == EngineShape(32, 2048)


def test_a_failed_request_for_the_context_window_keeps_the_last_one() -> None:
    engine = started()
    engine.context_window_missed("/v1/models: it answers 500")
    assert engine.shape.context_window == 2048
    assert engine.shown()["models_error"] == "/v1/models: it answers 500"
    engine.context_window_read(512)
    assert (engine.shape.context_window, engine.models_error) == (512, None)


# --- priorities ---


@pytest.mark.parametrize(
    ("answers", "takes"),
    [
        ([], None),
        ([(0, True)], None),
        ([(20, True)], True),
        ([(20, False)], False),
        ([(0, False)], False),
        ([(20, False), (10, True)], True),
        ([(20, True), (20, False)], False),
    ],
)
def test_what_answers_say_of_priorities(answers: list[tuple[int, bool]], takes: bool | None) -> None:
    engine = started()
    for priority, is_accepted in answers:
        engine.priority_answered(priority, is_accepted=is_accepted)
    assert engine.takes_priority is takes


def test_refused_priorities_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = started()
    for _ in range(3):
        engine.priority_answered(20, is_accepted=False)
    assert [record.getMessage() for record in caplog.records] == [
        "the engine refuses priorities; requests are sent without a priority until it restarts"
    ]


# --- one writer ---


def written_to_an_engine(path: Path) -> list[str]:
    """Assignments to an attribute of something that is called ``engine``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in (each for outer in targets for each in ast.walk(outer)):
            if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store):
                owner = ast.unparse(target.value).rpartition(".")[2]
                found += [ast.unparse(target)] if owner in ("engine", "_engine", "_state") else []
    return found


def test_nothing_but_its_methods_changes_the_state() -> None:
    root = Path(sidecar.__file__).parent
    assert [found for path in root.rglob("*.py") for found in written_to_an_engine(path)] == []


def test_the_search_for_writers_finds_one(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("self._controller.engine.is_up = x = False\nengine.restarts += 1\nself.engine = y\n")
    assert written_to_an_engine(module) == ["self._controller.engine.is_up", "engine.restarts"]
