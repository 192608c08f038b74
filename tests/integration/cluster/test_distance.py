"""No refusal without a shortage: many tenants, a store that is far away, real processes.

The whole table is ``python -m experiments.distance``'s; waits are held to two round trips by the simulation,
where nothing else uses the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.engine import free_port
from experiments.distance import IDLE, measure
from experiments.processes import Part, module, running

pytestmark = pytest.mark.exclusive


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    stub = [*module("experiments.stub_engine"), str(port), str(IDLE.service_s)]
    with running(Part("engine", stub, tmp_path, f"http://127.0.0.1:{port}/health")):
        yield port


@pytest.mark.parametrize(
    ("tenants", "sidecars", "distance_ms"),
    [(20, 1, 12.0), (200, 2, 6.0), (500, 1, 0.0), (500, 2, 40.0)],
)
def test_nobody_is_refused_on_an_idle_pool(
    engine: int, tmp_path: Path, tenants: int, sidecars: int, distance_ms: float
) -> None:
    row = measure(tmp_path, engine, (tenants, sidecars, distance_ms), rate=100.0, seconds=4.0)
    print(row)
    assert row.requests > 300
    assert row.reasons == {}
