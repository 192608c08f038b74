"""The code of probes and hooks in the engine's container, run for real beside an engine and a sidecar."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from injector.probes import Places, turned, waits_for_sidecar
from injector.settings import Template
from injector.sidecar_container import Settled, Surroundings, sidecar
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import ask, request, sidecar_for, until
from toolbox.ports import free_port


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


SIDECAR = "import signal, sys, time; print('up', flush=True); time.sleep(60)"
"""A process whose command line looks like a sidecar's."""


PROGRAM = f"tokenpool-sidecar-of-{os.getpid()}"


async def started(*before: str) -> asyncio.subprocess.Process:
    """That process, which runs."""
    process = await asyncio.create_subprocess_exec(
        *before,
        sys.executable,
        "-c",
        SIDECAR,
        f"/usr/local/bin/{PROGRAM}",
        "run",
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 20)
    return process


async def test_a_sidecar_that_is_not_process_1_is_found_and_told_to_drain() -> None:
    template = Template(drain_delay=0)
    made = sidecar(template, Settled(1, 2, 3, None, ()), Surroundings(shares_processes=True))
    # Another test of this machine may run a real sidecar, which the hook must not find.
    code = made["lifecycle"]["preStop"]["exec"]["command"][2].replace("tokenpool-sidecar", PROGRAM)
    # Its own mount namespace, as that of a container: the sidecar of another pod is not told.
    ours = await started()
    theirs = await started("unshare", "--mount") if os.geteuid() == 0 else None
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", SIDECAR, "run")
    hook = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    try:
        assert await asyncio.wait_for(hook.wait(), 20) == 0
        assert await asyncio.wait_for(ours.wait(), 20) == -signal.SIGTERM
        assert other.returncode is None
        assert theirs is None or theirs.returncode is None
    finally:
        for process in (ours, theirs, other):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()


async def test_a_probe_in_the_sidecars_container_tells_ready_from_unready(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as running:
        ports = Settled(1, 2, running.admin_on.port, None, ())
        made = sidecar(Template(), ports, Surroundings(is_in_mesh=True))
        ready = {"exec": {"command": [sys.executable, *made["readinessProbe"]["exec"]["command"][1:]]}}
        assert (await ended(ready))[0] == 0
    assert (await ended(ready))[0] == 1
