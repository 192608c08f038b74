"""No refusal without a shortage: many tenants and a distant lease store, with real processes.

``python -m experiments.distance`` prints the whole table. The simulation limits waits to two round trips,
because its results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.distance import IDLE, measure
from toolbox.ports import free_port
from toolbox.processes import Process, module

pytestmark = pytest.mark.exclusive


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    stub = [*module("toolbox.stub_engine"), str(port), str(IDLE.service_s)]
    with Process("engine", stub, tmp_path, probe=f"http://127.0.0.1:{port}/health"):
        yield port


@pytest.mark.parametrize(
    ("tenants", "sidecars", "distance_ms"),
    [(20, 1, 12.0), (500, 1, 0.0), (500, 2, 40.0)],
)
def test_no_request_is_refused_on_an_idle_pool(
    engine: int, tmp_path: Path, tenants: int, sidecars: int, distance_ms: float
) -> None:
    row = measure(tmp_path, engine, (tenants, sidecars, distance_ms), rate=100.0, seconds=4.0)
    print(row)
    assert row.requests > 300
    assert row.reasons == {}
