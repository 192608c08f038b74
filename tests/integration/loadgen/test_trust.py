"""Runs whose generator cannot keep up complain, and quiet runs do not. On this machine, with real time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from aiohttp import web

from loadgen.records import META, SUMMARY, Meta
from loadgen.summary import Summary
from tests.integration.loadgen.server import Received, Server, event, opened

SCENARIO = """\
name: small
model: tiny
duration_s: {duration}
tenants:
  - {{name: gold, arrivals: {{{arrivals}}}, input: 8, output: {output}}}
"""
STEP_S = 0.02


async def steady(received: Received, request: web.Request) -> web.StreamResponse:
    """Stream a token each 20 ms."""
    response = await opened(request)
    for _ in range(received.json["max_tokens"]):
        await asyncio.sleep(STEP_S)
        await response.write(event({"choices": [{"index": 0, "text": "a", "finish_reason": None}]}))
    await response.write(b"data: [DONE]\n\n")
    return response


BODY = b'data: {"choices": [{"text": "a", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
MISSING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Fast(asyncio.Protocol):
    """A server that answers after exactly 200 ms, with little work. A request is one or two reads."""

    def __init__(self, open_: set[asyncio.Transport]) -> None:
        self._open = open_
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of another class
        self._open.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET"):
            self._transport.write(MISSING)
        elif data.endswith(b"}"):
            asyncio.get_running_loop().call_later(0.2, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


@contextlib.asynccontextmanager
async def fast() -> AsyncIterator[str]:
    connections: set[asyncio.Transport] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Fast(connections), "127.0.0.1", 0, backlog=2048)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for connection in list(connections):
            connection.abort()
        while connections:
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def busy(core: int) -> Iterator[None]:
    """A process that computes on a core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.sched_setaffinity(process.pid, {core})
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def two_cores() -> Iterator[int]:
    """Leaves the first core to this process, and gives the second one."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        pytest.skip("needs two cores: one for the server, one for the generator")
    os.sched_setaffinity(0, {mine[0]})
    try:
        yield mine[1]
    finally:
        os.sched_setaffinity(0, mine)


async def started(
    folder: Path, url: str, core: int, arrivals: str, *, duration: float = 3.0, output: int = 16
) -> asyncio.subprocess.Process:
    text = SCENARIO.format(duration=duration, arrivals=arrivals, output=output)
    (folder / "s.yaml").write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen", "run", str(folder / "s.yaml"), "--url", url,
        "--out", str(folder / "out"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.sched_setaffinity(process.pid, {core})
    return process


async def finished(folder: Path, process: asyncio.subprocess.Process) -> tuple[Meta, list[str]]:
    """What the run recorded, and its complaints, which the terminal has, too."""
    told, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    out = folder / "out"
    complaints = msgspec.json.decode((out / SUMMARY).read_bytes(), type=Summary).complaints
    assert all(f"! This run {complaint}.".encode() in told for complaint in complaints)
    return msgspec.json.decode((out / META).read_bytes(), type=Meta), complaints


def others_s() -> float:
    """The CPU time of all other programs on this machine since its start, s."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split(None, 10)[1:10])
    own = os.times()
    stolen_too = (user + nice + system + sum(interrupts[:3])) / os.sysconf("SC_CLK_TCK")
    return stolen_too - sum(own[:4])


@pytest.mark.exclusive
async def test_a_quiet_run_has_no_complaint(tmp_path: Path) -> None:
    with two_cores() as core:
        async with Server(steady).running() as server:
            before, began = others_s(), time.monotonic()
            meta, complaints = await finished(
                tmp_path, await started(tmp_path, server.url, core, "poisson: {rate: 20}")
            )
            others = (others_s() - before) / (time.monotonic() - began)
    if complaints and others > 0.1:
        pytest.skip(f"the machine is not quiet: other programs used {others:.0%} of a core")
    assert complaints == []
    assert [each.phase for each in meta.loop] == ["whole run"]
    assert 0 < meta.loop[0].p50_s < 0.004


@pytest.mark.exclusive
async def test_a_pause_of_40_ms_is_told(tmp_path: Path) -> None:
    with two_cores() as core:
        async with Server(steady).running() as server:
            process = await started(tmp_path, server.url, core, "poisson: {rate: 20}")
            while len(server.received) < 10:
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.04)
            process.send_signal(signal.SIGCONT)
            meta, complaints = await finished(tmp_path, process)
    assert any(stall.seconds > 0.03 for stall in meta.stalls)
    assert any(
        told.startswith("is not trustworthy in 'whole run': the generator was blocked for ")
        for told in complaints
    )


@pytest.mark.exclusive
async def test_a_shared_core_is_told(tmp_path: Path) -> None:
    with two_cores() as core:
        async with Server(steady).running() as server:
            process = await started(tmp_path, server.url, core, "poisson: {rate: 60}")
            while not server.received:
                await asyncio.sleep(0.02)
            with busy(core), busy(core), busy(core):  # one alone is told on a quiet machine, but not on each
                meta, complaints = await finished(tmp_path, process)
    assert meta.waited > 0.03
    assert any(told.startswith("shared its core: ") for told in complaints)


@pytest.mark.exclusive
async def test_more_workers_than_the_generator_can_serve_are_told(tmp_path: Path) -> None:
    """1,000 workers of a server that takes 200 ms are 5,000 requests/s, which one core cannot send."""
    with two_cores() as core:
        async with fast() as url:
            process = await started(tmp_path, url, core, "closed: {workers: 1000}", output=1)
            meta, complaints = await finished(tmp_path, process)
    assert any(told.startswith("is not trustworthy in 'whole run': ") for told in complaints)
    assert meta.lag_p99_s > 0.0
