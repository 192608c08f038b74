"""The toolbox of the demo, the tests, the benchmarks and the experiments."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from toolbox.contended import classes
from toolbox.fairness import deviation, jain_by_weight
from toolbox.percentiles import percentile
from toolbox.ports import accepts, free_port
from toolbox.processes import NotReady, Process, module


def test_a_process_is_ready_in_its_context_and_ends_with_it(tmp_path: Path) -> None:
    port = free_port()
    command = [*module("http.server"), str(port), "--bind", "127.0.0.1"]
    with Process("server", command, tmp_path, probe=f"http://127.0.0.1:{port}/") as server:
        assert accepts(port)
        assert server.cpu_seconds() > 0
        assert server.resident_mb() > 1
    assert not accepts(port)


def test_a_process_can_be_started_again(tmp_path: Path) -> None:
    port = free_port()
    server = Process("server", [*module("http.server"), str(port)], tmp_path, probe=port, is_group=True)
    with server:
        first = server.pid
        server.kill()
        assert server.start().wait_ready().pid != first


def test_an_early_end_of_a_process_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"]
    with pytest.raises(NotReady, match="no such thing"), Process("early", command, tmp_path, probe=1):
        pass


def test_wait_returns_at_the_end_of_a_process(tmp_path: Path) -> None:
    assert Process("three", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path).start().wait(20) == 3


def test_fairness_is_by_weight() -> None:
    weights = {"a": 1.0, "b": 3.0}
    assert jain_by_weight({"a": 10.0, "b": 30.0}, weights) == 1.0
    assert jain_by_weight({"a": 10.0, "b": 0.0}, weights) == 0.5
    assert deviation({"a": 20.0, "b": 20.0}, weights) == 1.0


def test_a_percentile_accepts_unsorted_and_missing_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert math.isnan(percentile([], 0.5))


def test_the_classes_of_a_contended_pool_share_all_arrivals() -> None:
    made = classes(200)
    assert sum(each.tenants for each in made) == 200
    assert sum(each.tenants * each.arrivals for each in made) == pytest.approx(1.0)
