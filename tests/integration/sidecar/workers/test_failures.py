"""A worker, the supervisor or the settings fail: what is lost, and what the others and the operator see."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from pathlib import Path

import pytest

from runtime.options import SettingsError
from sidecar.workers.supervisor import private_folder
from tests.integration.sidecar.workers.pod import POOL, CountingEngine, running, until
from toolbox.processes import Process, module

LIMIT = 4
"""The ceiling of the entitlement ``c``."""


def is_running(pid: int) -> bool:
    """Whether a process exists. One that has ended and was not read yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_killed_worker_loses_its_own_streams_only_and_is_started_again(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as (pod, engine):
        finished = [await pod.complete("e") for _ in range(8)]
        assert finished == [(200, True)] * 8

        async def counted() -> bool:
            return await pod.metric("tokenpool_requests_total") >= 8

        await until(counted, "the page was read")
        streams = [asyncio.ensure_future(pod.complete("e", 150)) for _ in range(8)]

        async def do_run() -> bool:
            return engine.running["e"] == 8

        await until(do_run, "the streams run")
        own = [each["in_flight"] for each in await pod.workers()]
        before = await pod.metric("tokenpool_requests_total")
        pid = await pod.kill_worker(0)

        async def is_free() -> bool:
            return engine.running["e"] == own[1]

        await until(is_free, "the engine has ended the lost streams")
        during = time.monotonic() + 1.5
        counts = await asyncio.gather(*(pod.keep_asking("c", during) for _ in range(2)))
        assert sum(each[200] for each in counts) > 10
        assert not any(each[status] for each in counts for status in (0, 429, 503))
        results = await asyncio.gather(*streams)

        assert results.count((200, True)) == own[1]
        assert len(results) - own[1] == own[0]
        assert await pod.metric("tokenpool_requests_total") >= before
        await pod.until_ready(2)
        shown = (await pod.workers())[0]
        assert (shown["restarts"], shown["pid"] != pid) == (1, True)
        assert await pod.metric("tokenpool_worker_restarts_total") == 1
        assert [await pod.complete("e") for _ in range(8)] == [(200, True)] * 8
        assert "a worker has ended; its streams are lost" in pod.process.log.read_text()


@pytest.mark.parametrize("workers", [2, 4])
async def test_limits_hold_under_load_while_workers_are_killed(tmp_path: Path, workers: int) -> None:
    async with running(tmp_path, workers) as (pod, engine):
        end = time.monotonic() + 5
        loads = [
            asyncio.ensure_future(pod.keep_asking(user, end))
            for user, clients in (("c", 8), ("e", 4))
            for _ in range(clients)
        ]
        await asyncio.sleep(2)
        assert engine.most["c"] <= LIMIT
        own = engine.running["c"]
        await pod.kill_worker(workers - 1)
        await asyncio.sleep(0.5)  # the engine notices that connections are closed
        assert engine.most["c"] <= LIMIT + own
        engine.begin()
        counts = await asyncio.gather(*loads)

        assert engine.most["c"] <= LIMIT
        assert sum(each[200] for each in counts) > 100


async def test_workers_end_with_their_supervisor(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as (pod, _):
        pids = [each["pid"] for each in await pod.workers()]
        pod.process.kill()

        async def have_ended() -> bool:
            return not any(is_running(pid) for pid in pids)

        await until(have_ended, "the workers end")
        assert "the supervisor of this worker has ended" in pod.process.log.read_text()


async def failing(tmp_path: Path, *options: str, pool: str = POOL) -> tuple[int, str]:
    """The exit status and the log of a sidecar that cannot start."""
    (tmp_path / "pool.yaml").write_text(pool)
    process = Process(
        "sidecar",
        [
            *(*module("sidecar"), "run", "--config", str(tmp_path / "pool.yaml"), "--workers", "2"),
            *("--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
            *options,
        ],
        tmp_path,
    ).start()
    status = await asyncio.to_thread(process.wait, 30)
    return status, process.log.read_text()


async def test_an_invalid_pool_file_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    status, log = await failing(tmp_path, pool=POOL.replace("tier: spot", "tier: stpo"))

    assert status == 2
    assert "stpo" in log
    assert "supervising" not in log


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    async with CountingEngine() as engine:
        status, log = await failing(tmp_path, "--listen", f"127.0.0.1:{engine.port}")
        assert (status, f"--listen: cannot listen on 127.0.0.1:{engine.port}" in log) == (2, True)
        status, log = await failing(tmp_path, "--admin", f"127.0.0.1:{engine.port}")
        assert (status, f"--admin: cannot listen on 127.0.0.1:{engine.port}" in log) == (2, True)


async def test_settings_that_no_worker_can_use_end_the_sidecar(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")

    status, log = await failing(tmp_path, "--tls-cert", missing, "--tls-key", missing)

    assert status == 2
    assert "missing.pem" in log
    assert "is started again" not in log


async def test_the_folder_of_sockets_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # a socket's path has at most 107 bytes
        monkeypatch.setenv("TMPDIR", name)
        folder = Path(name)
        async with running(tmp_path, 2) as (pod, _):
            (made,) = folder.glob("tokenpool-*")
            assert made.stat().st_mode & 0o077 == 0
            pod.process.signal(signal.SIGTERM)
            assert await asyncio.to_thread(pod.process.wait, 10) == 0
            assert list(folder.iterdir()) == []


def test_the_folder_of_sockets_is_in_the_first_usable_parent(tmp_path: Path) -> None:
    long, short = tmp_path / ("x" * 100), Path("/dev/shm")
    long.mkdir()
    missing = str(tmp_path / "missing")

    made = private_folder((missing, str(long), str(short)))

    assert made.parent == short
    assert made.stat().st_mode & 0o077 == 0
    assert list(long.iterdir()) == []
    made.rmdir()
    with pytest.raises(SettingsError, match="set TMPDIR to a writable folder with a short path"):
        private_folder((missing, str(long)))
