"""Connections to Redis are open before a message needs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio

from tests.integration.tokenpool.store.servers import redis_server
from tokenpool.leases.messages import LeaseRequest, Message
from tokenpool.store.address import open_store
from tokenpool.store.redis import RedisStore

COUNT = 8


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with redis_server(tmp_path) as (found, _):
        yield found


@pytest_asyncio.fixture
async def store(port: int) -> AsyncIterator[RedisStore]:
    made = open_store(f"redis://127.0.0.1:{port}", "p", 1.5, 2.0)
    yield made
    await made.close()


async def ids(port: int) -> set[str]:
    """The ids of all connections, without the asking one."""
    async with redis.asyncio.Redis(port=port) as client:
        own = str(await client.client_id())
        return {row["id"] for row in await client.client_list()} - {own}


async def test_connections_are_open_before_the_messages(store: RedisStore, port: int) -> None:
    await asyncio.gather(store.connect(COUNT), store.connect(COUNT))  # each connection is opened once
    opened = await ids(port)
    messages = [Message("s", n, {f"t{n}": LeaseRequest(concurrency_wanted=1)}) for n in range(1, COUNT + 1)]
    await asyncio.gather(*(store.exchange(message) for message in messages))
    await store.connect(COUNT)
    assert len(opened) == COUNT
    assert await ids(port) == opened


async def test_after_a_failure_connections_are_opened_again(store: RedisStore, port: int) -> None:
    await store.connect(COUNT)
    opened = await ids(port)
    async with redis.asyncio.Redis(port=port) as client:
        await client.config_set("maxmemory", 1)
        with pytest.raises(ConnectionError):
            await store.exchange(Message("s", 1, {"t": LeaseRequest(concurrency_wanted=1)}))
        await store.connect(COUNT)  # a full server would answer a ping, but is not used
        assert len(await ids(port)) == 1  # the connection of the test
        await client.config_set("maxmemory", 0)
    await store.exchange(Message("s", 2, {"t": LeaseRequest(concurrency_wanted=1)}))
    await store.connect(COUNT)
    again = await ids(port)
    assert len(again) == COUNT
    assert not again & opened


async def test_a_server_that_allows_few_connections_is_usable(store: RedisStore, port: int) -> None:
    async with redis.asyncio.Redis(port=port) as client:
        await client.config_set("maxclients", 4)
        await store.connect(COUNT)
        await store.exchange(Message("s", 1, {"t": LeaseRequest(concurrency_wanted=1)}))
