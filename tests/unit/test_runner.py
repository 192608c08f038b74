"""What the runner of the tiers may start, and what it says."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.__main__ import JOBS, TIERS, Ended, Job, selected, startable

UNIT = Path(__file__).parent


def job(
    name: str, *needs: str, after: Sequence[str] = (), cores: int = 1, is_background: bool = False
) -> Job:
    return Job(name, ["true"], frozenset(needs), cores, is_background=is_background, after=frozenset(after))


def names(jobs: list[Job]) -> list[str]:
    return [each.name for each in jobs]


def test_a_tier_brings_all_that_it_needs_in_order() -> None:
    jobs = [job("a"), job("b", "a"), job("c"), job("d", "b")]
    assert names(selected(jobs, ["d"])) == ["a", "b", "d"]
    assert names(selected(jobs, ["c", "b"])) == ["a", "b", "c"]


def test_jobs_start_as_far_as_the_cores_allow() -> None:
    jobs = [job("a"), job("b"), job("c")]
    assert names(startable(jobs, {})) == ["a", "b"]
    assert names(startable(jobs[1:], {}, jobs[:1])) == ["b"]
    assert names(startable(jobs[2:], {}, jobs[:2])) == []


def test_a_job_that_waits_for_two_cores_is_not_overtaken() -> None:
    assert names(startable([job("exclusive", cores=2), job("b")], {}, [job("a")])) == []


def test_a_job_that_mostly_waits_always_starts() -> None:
    jobs = [job("exclusive", cores=2), job("fetch", cores=0)]
    assert names(startable(jobs, {}, [job("a")])) == ["fetch"]


def test_a_job_in_the_background_uses_the_cores_of_no_other_job() -> None:
    build, unit = job("build", is_background=True), job("unit", cores=2, is_background=True)
    assert names(startable([job("exclusive", cores=2), build], {})) == ["exclusive", "build"]
    assert names(startable([job("exclusive", cores=2)], {}, [unit])) == ["exclusive"]
    assert names(startable([build], {}, [unit])) == []


def test_a_job_starts_after_what_it_needs_has_passed() -> None:
    waiting = [job("c", "a", "b"), job("d")]
    assert names(startable(waiting, {"a": True})) == ["d"]
    assert names(startable(waiting, {"a": True, "b": False})) == ["d"]
    assert names(startable(waiting, {"a": True, "b": True})) == ["c", "d"]


def test_a_job_starts_after_others_have_ended_if_the_run_has_them() -> None:
    second = job("second", after=["first"], cores=0)
    assert names(startable([second], {}, [job("first")])) == []
    assert names(startable([job("first", "missing"), second], {})) == []
    assert names(startable([second], {"first": False})) == ["second"]
    assert names(startable([second], {})) == ["second"]


def test_how_a_job_ended_is_a_line(tmp_path: Path) -> None:
    output = tmp_path / "a.txt"
    output.write_text("...\n===== 3 passed in 2.00s =====\n")
    assert Ended(job("a"), 0, 12.3, output, 7.4).line == "a: passed in 12 s, 7 s of CPU: 3 passed in 2.00s"
    assert Ended(job("a"), 2, 0.6, output).line == "a: FAILED (2) in 1 s, 0 s of CPU: 3 passed in 2.00s"
    output.write_text("")
    assert Ended(job("a"), 0, 1.0, output).line == "a: passed in 1 s, 0 s of CPU: "
    assert Ended(job("a"), None, 0.0, output).line == "a: not run, a job that it needs failed"


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_can_run_to_its_end(tier: str) -> None:
    passed: dict[str, bool] = {}
    waiting = selected(JOBS, TIERS[tier])
    assert waiting
    while waiting:
        started = startable(waiting, passed)
        assert started
        passed |= {each.name: True for each in started}
        waiting = [each for each in waiting if each not in started]


def test_a_unit_test_cannot_connect() -> None:
    with socket.socket() as one, pytest.raises(AssertionError, match="belongs in tests/integration"):
        one.connect(("127.0.0.1", 9))


def test_a_unit_test_cannot_start_a_program() -> None:
    with pytest.raises(AssertionError, match="belongs in tests/integration"):
        subprocess.run(["true"], check=True)


def test_the_compiled_tier_runs_every_thorough_test() -> None:
    """`make unit` leaves these tests out, so they would not run at all elsewhere."""
    tests = Path(__file__).parents[1]
    marked = {path for path in tests.rglob("test_*.py") if "mark.thorough" in path.read_text()}
    assert all(path.is_relative_to(UNIT) for path in marked)
    (compiled,) = (each for each in JOBS if each.name == "unit-compiled")
    assert "tests/unit" in compiled.command
    assert "-m" not in compiled.command[3:]
