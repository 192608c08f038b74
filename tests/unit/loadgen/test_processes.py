"""The division of a run among processes, its messages, and the merged results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.processes import link
from loadgen.processes.link import Done, Message, Reached, Ready
from loadgen.processes.merging import merge, merged
from loadgen.processes.part import WHOLE, Part
from loadgen.records import META, REQUESTS, STATE, Attempt, Lines, LoopDelay, Meta, Stall, load, save
from loadgen.run import Order
from tests.support.loadgen_builders import attempt, meta, scenario, tenant


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 10_000))
def test_each_request_belongs_to_exactly_one_process(processes: int, tenant: int, number: int) -> None:
    parts = [Part(index, processes) for index in range(processes)]
    assert sum(part.has(number, tenant) for part in parts) == 1


@given(st.integers(1, 40), st.integers(0, 1000))
def test_the_processes_have_equal_parts_within_one_request(processes: int, requests: int) -> None:
    parts = [Part(index, processes) for index in range(processes)]
    counts = [sum(part.has(number, 3) for number in range(requests)) for part in parts]
    assert max(counts) - min(counts) <= 1


def test_one_process_has_all_requests() -> None:
    assert all(WHOLE.has(number, 1) for number in range(10))
    assert WHOLE.is_first
    assert not Part(1, 2).is_first


@pytest.mark.parametrize("message", [Ready(), Reached(3, {"served": 7}), Done(), Done("disk full")])
def test_messages_are_read_as_written(message: Message) -> None:
    line = link.line(message)
    assert line.endswith(b"\n")
    assert link.read(line) == message


def test_an_order_is_read_as_written() -> None:
    order = Order(scenario(tenant(key="sk")), ["http://a"], Path("out"), "x", part=Part(1, 3))
    content = link.packed(order)
    (length,) = link.HEAD.unpack(content[: link.HEAD.size])
    assert length == len(content) - link.HEAD.size
    assert link.unpacked(content[link.HEAD.size :]) == order
    assert link.started(link.start(12.3456789)) == 12.3456789
    assert link.started(b"") is None


def test_the_description_of_a_run_is_that_of_all_its_parts() -> None:
    parts = [meta(cpu=0.3, ended_s=10.5), meta(cpu=0.95, ended_s=12.0, is_interrupted=True)]
    whole = merged(parts, [0.001] * 98 + [0.08, 0.2])
    assert (whole.processes, whole.cpu, whole.ended_s, whole.is_interrupted) == (2, 0.95, 12.0, True)
    assert (whole.lag_p50_s, whole.lag_max_s) == (0.001, 0.2)
    assert len(whole.complaints) == 2


def test_the_delay_of_a_run_is_that_of_its_worst_process() -> None:
    parts = [
        meta(
            waited=0.01,
            ran=0.5,
            loop=[LoopDelay("whole run", 0.001, 0.002, 0.05)],
            stalls=[Stall(3.0, 0.03), Stall(5.0, 0.04)],
        ),
        meta(
            waited=0.2,
            ran=0.1,
            loop=[LoopDelay("whole run", 0.0005, 0.004, 0.03), LoopDelay("late", 0.0, 0.0, 0.0)],
            stalls=[Stall(4.0, 0.05)],
        ),
    ]
    whole = merged(parts, [0.0])
    assert whole.loop == [LoopDelay("whole run", 0.001, 0.004, 0.05), LoopDelay("late", 0.0, 0.0, 0.0)]
    assert [stall.at_s for stall in whole.stalls] == [3.0, 4.0, 5.0]
    assert (whole.waited, whole.ran) == (0.2, 0.1)
    assert whole.complaints == []


def test_a_run_without_attempts_is_merged() -> None:
    assert merged([meta()], []).lag_max_s == 0.0


def written(folder: Path, description: Meta, *attempts: Attempt) -> Path:
    folder.mkdir()
    lines = Lines(folder / REQUESTS)
    for each in attempts:
        lines.write(each)
    lines.close()
    (folder / STATE).write_bytes(b"")
    save(folder / META, description)
    return folder


def test_the_records_of_all_parts_are_in_the_order_of_their_ends(tmp_path: Path) -> None:
    one = [attempt(1.0), attempt(3.0, sent_s=3.5, reason="é")]
    one.insert(0, attempt(0.1, sent_s=0.8, end_s=0.9, is_measured=False))  # its delay does not count
    two = [attempt(0.5), attempt(2.0)]
    parts = [written(tmp_path / "1", meta(), *one), written(tmp_path / "2", meta(), *two)]
    (tmp_path / "out").mkdir()
    whole = merge(tmp_path / "out", parts)
    run = load(tmp_path / "out")
    assert [each.end_s for each in run.attempts] == [0.9, 1.5, 2.0, 3.0, 4.0]
    assert {msgspec.json.encode(each) for each in run.attempts} == {
        msgspec.json.encode(each) for each in (*one, *two)
    }
    assert (run.meta, whole.lag_max_s) == (whole, 0.5)


def test_a_part_changes_the_order_only(tmp_path: Path) -> None:
    order = Order(scenario(), ["http://a"], tmp_path, "x")
    assert order.part is WHOLE
    assert replace(order, part=Part(0, 2)).scenario is order.scenario
