"""Runs in several processes: the same requests as in one, one report, one Ctrl-C, and visible failures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadgen.__main__ import main
from loadgen.records import Outcome, Run, load
from tests.integration.loadgen.server import Server, stream

MIXED = """\
name: mixed
model: tiny
duration_s: {duration}
timeout_s: 20
tenants:
  - {{name: gold, arrivals: {{poisson: {{rate: 60}}}}, input: {{uniform: {{least: 4, most: 9}}}}, output: 2}}
  - name: burst
    arrivals: {{bursty: {{rate: 40, burst: 5}}}}
    input: 8
    output: {{uniform: {{least: 1, most: 4}}}}
  - {{name: loop, arrivals: {{closed: {{workers: 5, think_s: 0.02}}}}, input: 8, output: 2}}
"""


async def started(
    folder: Path, server: Server, processes: int, duration: float
) -> asyncio.subprocess.Process:
    (folder / "s.yaml").write_text(MIXED.format(duration=duration))
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen", "run", str(folder / "s.yaml"), "--url", server.url,
        "--out", str(folder / str(processes)), "--processes", str(processes), "--state", server.url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def running(
    folder: Path, server: Server, *, processes: int = 3, duration: float = 60.0
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await started(folder, server, processes, duration)
    try:
        async with asyncio.timeout(60):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(word) for word in text.split()]


async def until_served(server: Server, process: asyncio.subprocess.Process, count: int) -> None:
    while len(server.received) < count:
        assert process.returncode is None
        await asyncio.sleep(0.02)


def drawn(run: Run) -> Counter[tuple[str, str, float, int, int]]:
    """The open-loop requests: all that the seed decides."""
    return Counter(
        (a.tenant, a.request, a.intended_s, a.input_tokens, a.output_tokens)
        for a in run.attempts
        if a.tenant != "loop"
    )


async def test_several_processes_send_the_requests_of_one(tmp_path: Path) -> None:
    runs, bodies = [], []
    for processes in (1, 3):
        async with Server(stream).running() as server:
            server.pages["/debug/state"] = {"entitlements": {"gold": {"level": 1.0}}}
            async with running(tmp_path, server, processes=processes, duration=1.5) as process:
                out, error = await process.communicate()
        assert process.returncode == 0, error
        assert b"gold" in out
        run = load(tmp_path / str(processes))
        runs.append(run)
        of_loop = {a.request for a in run.attempts if a.tenant == "loop"}
        assert {name.partition(".")[0] for name in of_loop} == {f"w{worker}" for worker in range(5)}
        bodies.append(Counter(received.body for received in server.received))
    one, three = runs
    assert drawn(one) == drawn(three)
    assert drawn(one).total() > 60
    assert (bodies[0] & bodies[1]).total() >= drawn(one).total()
    assert {a.outcome for a in three.attempts} == {Outcome.SERVED}
    assert len({(a.tenant, a.request, a.attempt) for a in three.attempts}) == len(three.attempts)
    assert len(three.attempts) == bodies[1].total()
    assert [run.meta.processes for run in runs] == [1, 3]
    assert three.samples
    assert len({sample.at_s for sample in three.samples}) == len(three.samples)  # read once in a run
    names = {path.name for path in (tmp_path / "3").iterdir()}
    assert names == {path.name for path in (tmp_path / "1").iterdir()}


async def test_ctrl_c_ends_all_processes_with_one_report(tmp_path: Path) -> None:
    async with Server(stream).running() as server, running(tmp_path, server) as process:
        await until_served(server, process, 20)
        assert len(children(process.pid)) == 3
        process.send_signal(signal.SIGINT)
        out, error = await process.communicate()
    assert process.returncode == 130, error
    assert b"! Interrupted after" in out
    run = load(tmp_path / "3")
    assert sum(a.outcome is Outcome.SERVED for a in run.attempts) >= 15
    assert run.meta.is_interrupted
    assert run.meta.duration_s == 60.0


async def test_a_process_that_dies_ends_the_run_with_an_error(tmp_path: Path) -> None:
    async with Server(stream).running() as server, running(tmp_path, server) as process:
        await until_served(server, process, 20)
        one, *others = children(process.pid)
        os.kill(one, signal.SIGKILL)
        _, error = await process.communicate()
    assert process.returncode == 1
    assert error.decode().splitlines()[-1] == (
        "loadgen: process 1 of 3 was ended by SIGKILL, so the run is not complete and has no report; "
        "run the scenario again"
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in others)
    assert not (tmp_path / "3" / "report.html").exists()


async def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    async with Server(stream).running() as server, running(tmp_path, server) as process:
        await until_served(server, process, 20)
        left = children(process.pid)
        process.kill()
        while any(Path(f"/proc/{pid}/cwd").exists() for pid in left):
            await asyncio.sleep(0.02)
        _, error = await process.communicate()
    assert b"Traceback" not in error


async def test_the_error_of_a_process_is_told(tmp_path: Path) -> None:
    async with Server(stream).running() as server, running(tmp_path, server) as process:
        await until_served(server, process, 20)
        resource.prlimit(children(process.pid)[0], resource.RLIMIT_FSIZE, (0, 0))
        _, error = await process.communicate()
    assert process.returncode == 1
    assert b"process 1 of 3 failed: " in error
    assert b"requests.jsonl: File too large; " in error
    assert b"Traceback" not in error


@pytest.mark.parametrize("text", ["0", "two", "-1", "1.5", "257"])
def test_a_wrong_number_of_processes_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", "s.yaml", "--url", "http://a", "--out", str(tmp_path), "--processes", text])
    assert f"--processes: {text} is not a whole number from 1 to 256" in capsys.readouterr().err
