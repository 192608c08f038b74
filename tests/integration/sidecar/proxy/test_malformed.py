"""Malformed requests get the right 4xx: never a 500, never a hang, never a byte to the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sidecar.app import Sidecar
from tests.fakes.scripted_engine import FakeEngine
from tests.support.corpus import Case, cases
from tests.support.harness import POOL, ask, is_whole, request, sidecar_for

CASES = list(cases())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Sidecar, FakeEngine]]:
    """One sidecar for all cases: whatever one of them does must not hurt the next."""
    engine = FakeEngine()
    await engine.start()
    folder = tmp_path_factory.mktemp("malformed")
    limits = {"max_body_bytes": 1 << 20, "head_timeout": 0.3, "body_timeout": 0.3}
    async with sidecar_for(engine.port, folder, pool=POOL, **limits) as sidecar:
        yield sidecar, engine
    await engine.stop()


def test_there_are_at_least_two_hundred_cases() -> None:
    assert len({case.raw for case in CASES}) >= 200


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=[f"{i:03}" for i in range(len(CASES))])
async def test_a_malformed_request_is_refused(case: Case, guarded: tuple[Sidecar, FakeEngine]) -> None:
    sidecar, engine = guarded
    before = len(engine.received)

    response = await ask(sidecar, case.raw)

    assert response.status in case.statuses, (case.name, response)
    assert {"message", "type", "param", "code"} <= set(json.loads(response.body)["error"])
    assert response.headers["x-tokenpool-reason"]
    assert len(engine.received) == before, case.name
    assert is_whole(sidecar)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_sidecar_still_serves(guarded: tuple[Sidecar, FakeEngine]) -> None:
    sidecar, _ = guarded
    assert (await ask(sidecar, request())).status == 200
