"""The code of probes and hooks in the engine's container, run for real beside an engine and a sidecar."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from demo.engine import free_port
from injector.probes import Places, turned, waits_for_sidecar
from tests.fakes import engine as fake
from tests.fakes.engine import FakeEngine, Received
from tests.support.harness import ask, request, sidecar_for, until


def places(*, engine: int = 1, admin: int = 1) -> Places:
    return Places(frozenset({8000}), engine, 8000, admin, sys.executable)


async def run(handler: dict[str, Any]) -> asyncio.subprocess.Process:
    command = handler["exec"]["command"]
    return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)


async def ended(handler: dict[str, Any]) -> tuple[int | None, str]:
    """The exit status and what it said."""
    process = await run(handler)
    _, said = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, said.decode()


@pytest.mark.parametrize(
    "handler",
    [
        {"httpGet": {"path": "/health", "port": 8000, "httpHeaders": [{"name": "a", "value": "'{b}'"}]}},
        {"tcpSocket": {"port": 8000}},
    ],
)
async def test_a_probe_tells_an_engine_that_answers_from_one_that_does_not(
    engine: FakeEngine, handler: dict[str, Any]
) -> None:
    container = {"name": "vllm", "livenessProbe": handler}
    alive, _ = turned(container, places(engine=engine.port))
    dead, _ = turned(container, places(engine=free_port()))
    assert await ended(alive["livenessProbe"]) == (0, "")
    status, said = await ended(dead["livenessProbe"])
    assert (status, "ConnectionRefusedError" in said) == (1, True)


async def test_a_probe_tells_an_engine_that_is_unwell(engine: FakeEngine) -> None:
    container = {"name": "vllm", "livenessProbe": {"httpGet": {"path": "/unknown", "port": 8000}}}

    async def unwell(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary({}, status="500 Internal Server Error"))

    engine.answer = unwell
    fields, _ = turned(container, places(engine=engine.port))
    assert (await ended(fields["livenessProbe"]))[0] == 1


async def test_an_engine_is_told_to_end_when_its_sidecar_has_drained(
    engine: FakeEngine, tmp_path: Path
) -> None:
    goes_on = asyncio.Event()

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        await goes_on.wait()
        await fake.answer_unary(received, writer)

    engine.answer = answer
    context = sidecar_for(engine.port, tmp_path, drain_timeout=20.0)
    sidecar = await context.__aenter__()
    running = asyncio.ensure_future(ask(sidecar, request(), seconds=20))
    await until(lambda: bool(engine.received))
    stopping = asyncio.ensure_future(context.__aexit__(None, None, None))
    await until(lambda: sidecar.controller.is_draining)
    process = await run(waits_for_sidecar(places(admin=sidecar.admin_on.port), drains_within=1, longest=25))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 2)  # twice as long as it waits for a drain to begin
    goes_on.set()
    assert (await running).status == 200
    await stopping
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_an_engine_that_is_only_restarted_does_not_wait_for_a_drain(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        hook = waits_for_sidecar(places(admin=sidecar.admin_on.port), drains_within=1, longest=60)
        assert await ended(hook) == (0, "")


async def test_an_engine_without_a_sidecar_ends_at_once() -> None:
    hook = waits_for_sidecar(places(admin=free_port()), drains_within=60, longest=60)
    assert await ended(hook) == (0, "")
