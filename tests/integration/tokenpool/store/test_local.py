"""The store of another process over a Unix socket: its failures. The contract suite has its answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.tokenpool.store.servers import served
from tokenpool.leases.messages import FREED, LeaseRequest, Limit, Message, Push
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import StoreDown
from tokenpool.store.local import LocalStore, StoreServer
from tokenpool.store.memory import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class BrokenStore(MemoryStore):
    """One method has a defect, one has no store behind it, and one does not end."""

    async def scale_hint(self) -> None:
        raise RuntimeError("a defect")

    async def file(self) -> None:
        raise StoreDown("its own store is away")

    async def secret(self, new: bytes) -> bytes:
        await asyncio.Event().wait()
        return new


@pytest_asyncio.fixture
async def path() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        yield Path(folder) / "store"


async def test_without_a_server_each_call_names_the_socket(path: Path) -> None:
    store = LocalStore(path, 1.0)

    await store.connect(8)  # reports nothing
    with pytest.raises(StoreDown, match=f"the lease store of this pod .{path}.: No such file"):
        await store.limits()
    with pytest.raises(StoreDown, match="No such file"):
        async for _ in store.listen("s"):
            pass


async def test_a_failure_of_the_store_is_raised_by_its_caller() -> None:
    async with served(BrokenStore(1.5, Clock())) as store:
        with pytest.raises(StoreDown, match="the lease store failed: RuntimeError"):
            await store.scale_hint()
        with pytest.raises(StoreDown, match="its own store is away"):
            await store.file()
        assert await store.lead("me", 2.0) > 0  # the connection goes on


async def test_a_call_has_a_time_limit() -> None:
    async with served(BrokenStore(1.5, Clock()), timeout_s=0.05) as store:
        with pytest.raises(StoreDown, match=r"no answer within 0.05 s"):
            await store.secret(b"x" * 32)


async def test_a_lost_server_ends_calls_and_pushes_and_a_new_one_is_found(path: Path) -> None:
    server, store = StoreServer(BrokenStore(1.5, Clock())), LocalStore(path, 5.0)
    await server.start(path)
    waiting = asyncio.ensure_future(store.secret(b"x" * 32))
    pushes = store.listen("s")
    push = asyncio.ensure_future(anext(pushes))
    await store.limits()

    await server.stop()
    with pytest.raises(StoreDown, match="has ended"):
        await waiting
    with pytest.raises(StoreDown, match="has ended"):
        await push

    path.unlink(missing_ok=True)
    second = StoreServer(MemoryStore(1.5, Clock()))
    await second.start(path)
    assert await store.lead("me", 2.0) > 0
    await store.close()
    await second.stop()


async def test_bytes_of_another_protocol_close_their_connection_alone() -> None:
    async with served(MemoryStore(1.5, Clock())) as store:
        reader, writer = await asyncio.open_unix_connection(str(store._path))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        assert await store.lead("me", 2.0) > 0


async def test_pushes_reach_the_process_that_listens() -> None:
    clock = Clock()
    memory = MemoryStore(1.5, clock)
    async with served(memory) as store:
        await store.publish({"a": Limit(100, 100, 1, depth=100)}, IdleTerms(), 1)
        clock.now += 1.5
        want = LeaseRequest(kv_wanted=10, concurrency_wanted=1, concurrency_in_use=1, is_urgent=True)
        await store.exchange(Message("s1", 0, {"a": want}))
        pushes = store.listen("s2")
        push = asyncio.ensure_future(anext(pushes))
        while "s2" not in memory._listeners:
            await asyncio.sleep(0)
        await store.exchange(Message("s2", 0, {"a": want._replace(concurrency_in_use=0)}))
        await store.exchange(Message("s1", 1, {}))

        assert await push == Push("s2", FREED, "a")
        await pushes.aclose()
