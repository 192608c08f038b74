"""A server that is no healthy primary any more, but still runs: its connections are not used again.

A relay represents the address. Its open connections stay at the old server when its target changes, like
connections behind a DNS name or a load balancer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis.asyncio

from experiments.relay import Relay
from tests.integration.tokenpool.store.servers import redis_server
from tokenpool.leases.messages import FREED, LeaseRequest, Limit, Message, Push
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import StoreDown
from tokenpool.store.address import open_store
from tokenpool.store.redis import RedisStore
from toolbox.ports import free_port

TERMS = IdleTerms((50.0, 500.0, 2.0), (100.0, 1000.0, 4.0))
LIMIT = Limit(100, 1000, 4, 200)
TIMEOUT_S = 0.3
Server = tuple[int, int, Path]
Spoil = Callable[[redis.asyncio.Redis, Server, int], Awaitable[None]]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    """Two servers; port, process and folder of each."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("old", "new"):
            folder = tmp_path / name
            folder.mkdir()
            made.append((*stack.enter_context(redis_server(folder)), folder))
        yield made
        for _, process, _ in made:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@pytest_asyncio.fixture
async def relay(servers: list[Server]) -> AsyncIterator[Relay]:
    made = Relay(servers[0][0])
    await made.start()
    yield made
    await made.stop()


def stored(port: int) -> RedisStore:
    return open_store(f"redis://127.0.0.1:{port}", "p", 0.01, TIMEOUT_S)


numbers = iter(range(1, 1_000_000))


async def exchange_a_message(store: RedisStore) -> None:
    await store.exchange(Message("s1", next(numbers), {"a": LeaseRequest(concurrency_wanted=1)}))


async def replica(client: redis.asyncio.Redis, old: Server, new: int) -> None:
    await client.replicaof("127.0.0.1", new)


async def replica_without_its_primary(client: redis.asyncio.Redis, old: Server, new: int) -> None:
    await client.config_set("replica-serve-stale-data", "no")
    await client.replicaof("127.0.0.1", free_port())


async def full(client: redis.asyncio.Redis, old: Server, new: int) -> None:
    await client.config_set("maxmemory", 1)


async def without_its_replicas(client: redis.asyncio.Redis, old: Server, new: int) -> None:
    await client.config_set("min-replicas-to-write", 1)


async def without_a_disk(client: redis.asyncio.Redis, old: Server, new: int) -> None:
    await client.config_set("save", "3600 1")
    shutil.rmtree(old[2])
    await client.set("x", 1)
    await client.bgsave()
    while (await client.info("persistence"))["rdb_last_bgsave_status"] == "ok":
        await asyncio.sleep(0.02)


async def with_another_password(client: redis.asyncio.Redis, old: Server, new: int) -> None:
    await client.config_set("requirepass", "rotated")
    for kind in ("normal", "pubsub"):
        await client.client_kill_filter(_type=kind, skipme=True)


async def without_the_right_to_run_scripts(client: redis.asyncio.Redis, old: Server, new: int) -> None:
    await client.acl_setuser("default", enabled=True, nopass=True, commands=["-eval", "-evalsha"])


async def hanging(client: redis.asyncio.Redis, old: Server, new: int) -> None:
    os.kill(old[1], signal.SIGSTOP)


SPOILS = [
    replica,
    replica_without_its_primary,
    full,
    without_its_replicas,
    without_a_disk,
    with_another_password,
    without_the_right_to_run_scripts,
    hanging,
]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda each: each.__name__)
async def test_connections_to_a_server_that_is_no_healthy_primary_are_dropped(
    servers: list[Server], relay: Relay, spoil: Spoil
) -> None:
    old, new = servers
    store = stored(relay.port)
    await store.publish({"a": LIMIT}, TERMS, 1)
    await exchange_a_message(store)
    assert await store.limits() == ({"a": LIMIT}, TERMS)
    pushes = store.listen("s1")
    listening = asyncio.ensure_future(anext(pushes))
    await until(lambda: _subscribers(old[0], 1))
    async with redis.asyncio.Redis(port=old[0], single_connection_client=True) as client:
        await spoil(client, old, new[0])
        with pytest.raises(StoreDown):
            await exchange_a_message(store)
        with pytest.raises(StoreDown):  # a replica would answer this
            await store.limits()
        with pytest.raises(StoreDown):
            await listening
        relay.target = new[0]
        await until(lambda: _answers(store))
        assert await _clients(new[0]) > 0
        assert await store.publish({"a": LIMIT}, TERMS, 2)
        assert await store.limits() == ({"a": LIMIT}, TERMS)
        os.kill(old[1], signal.SIGCONT)
        await until(lambda: _is_left(client))
    await pushes.aclose()  # type: ignore[attr-defined]
    await _pushes_arrive(store, new[0])
    await store.close()


async def _pushes_arrive(store: RedisStore, port: int) -> None:
    pushes = store.listen("s1")
    listening = asyncio.ensure_future(anext(pushes))
    await until(lambda: _subscribers(port, 1))
    async with redis.asyncio.Redis(port=port) as client:
        await client.publish("tokenpool:{p}:push:s1", b"\x92\xa5freed\xa1a")
    assert await asyncio.wait_for(listening, 2) == Push("s1", FREED, "a")
    await pushes.aclose()  # type: ignore[attr-defined]


async def test_a_standby_coordinator_drops_its_connections_to_a_replica(
    servers: list[Server], relay: Relay
) -> None:
    (old, _, _), (new, _, _) = servers
    store = stored(relay.port)
    leader = stored(new)
    await leader.lead("leader", 60)
    async with redis.asyncio.Redis(port=old, single_connection_client=True) as client:
        await client.replicaof("127.0.0.1", new)
        while (await client.info("replication"))["master_link_status"] != "up":
            await asyncio.sleep(0.02)
        with pytest.raises(StoreDown):
            await store.lead("other", 60)
        relay.target = new
        assert await store.lead("other", 60) == 0
        await until(lambda: _is_left(client))
    await leader.close()
    await store.close()


async def test_sentinels_are_asked_again(servers: list[Server], tmp_path: Path) -> None:
    """The sentinel names another server; the old primary still runs."""
    (old, _, _), (new, _, _) = servers
    primary = [old]

    async def sentinel(words: list[bytes]) -> bytes:
        if words[0].upper() != b"SENTINEL":
            return b"+OK\r\n"
        fields = {"name": "group", "ip": "127.0.0.1", "port": str(primary[0]), "flags": "master"}
        fields |= {"num-other-sentinels": "0", "runid": "x", "link-pending-commands": "0", "quorum": "1"}
        flat = [text for pair in fields.items() for text in pair]
        row = f"%{len(fields)}\r\n" + "".join(f"${len(text)}\r\n{text}\r\n" for text in flat)
        return f"*1\r\n{row}".encode()

    async with scripted(sentinel) as port:
        store = open_store(f"redis+sentinel://127.0.0.1:{port}/group", "p", 0.01, 1.0)
        await exchange_a_message(store)
        async with redis.asyncio.Redis(port=old, single_connection_client=True) as client:
            await client.config_set("maxmemory", 1)
            primary[0] = new
            with pytest.raises(StoreDown):
                await exchange_a_message(store)
            await exchange_a_message(store)
            assert await _clients(new) > 0
            await until(lambda: _is_left(client))
        await store.close()


async def test_a_cluster_is_asked_again_by_the_name_in_its_url(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        ports = []
        for name in ("old", "new"):
            port = free_port()
            while port > 55_000:  # the nodes' own port is 10,000 higher
                port = free_port()
            folder = tmp_path / name
            folder.mkdir()
            stack.enter_context(redis_server(folder, "--cluster-enabled", "yes", port=port))
            ports.append(port)
            async with redis.asyncio.Redis(port=port) as node:
                await node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
                await until(lambda node=node: _is_covered(node))
        old, new = ports
        relay = Relay(old)
        await relay.start()
        store = open_store(f"redis+cluster://127.0.0.1:{relay.port}", "p", 0.01, 1.0)
        await exchange_a_message(store)
        async with redis.asyncio.Redis(port=old, single_connection_client=True) as client:
            await client.config_set("maxmemory", 1)
            relay.target = new
            with pytest.raises(StoreDown):
                await exchange_a_message(store)
            await until(lambda: _answers(store))
            assert await _clients(new) > 0
            await until(lambda: _is_left(client))
        await store.close()
        await relay.stop()


async def _is_covered(node: redis.asyncio.Redis) -> bool:
    return bool((await node.execute_command("CLUSTER INFO"))["cluster_state"] == "ok")


@pytest.mark.parametrize(
    "said",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't\r\n",
        b"-MISCONF Redis is configured to save RDB snapshots, but it is unable to\r\n",
        b"-OOM command not allowed when used memory > 'maxmemory'. script: 1, on @user_script:1.\r\n",
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
        b"-CLUSTERDOWN Hash slot not served\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        b"-NOPERM this user has no permissions to run the 'evalsha' command\r\n",
        b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL\r\n",
        b"-UNKILLABLE never heard of before\r\n",
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x32",
        b"",
    ],
)
async def test_any_unexpected_answer_drops_the_connection(servers: list[Server], said: bytes) -> None:
    """The server changes its answers on connections that already work."""
    (good, _, _), _ = servers
    answer, seen = b"+OK\r\n", 0

    async def answers(words: list[bytes]) -> bytes:
        nonlocal seen
        seen += 1
        return answer if words[0].upper() in {b"CLIENT", b"HELLO", b"SETINFO"} else said

    async with scripted(answers) as bad:
        relay = Relay(bad)
        await relay.start()
        store = stored(relay.port)
        with pytest.raises(StoreDown):
            await exchange_a_message(store)
        relay.target = good
        before = seen
        await exchange_a_message(store)
        assert seen == before
        await store.close()
        await relay.stop()


async def test_one_failure_drops_the_connections_once_for_any_number_of_calls(
    servers: list[Server], relay: Relay
) -> None:
    """Calls in flight fail with the first one. Connections that are opened meanwhile stay open."""
    (old, _, _), (new, _, _) = servers
    store = stored(relay.port)
    await asyncio.gather(*(store.read() for _ in range(4)))
    async with redis.asyncio.Redis(port=old, single_connection_client=True) as client:
        await client.config_set("maxmemory", 1)
        relay.target = new
        failed = await asyncio.gather(*(exchange_a_message(store) for _ in range(4)), return_exceptions=True)
        assert any(isinstance(each, StoreDown) for each in failed)
        await until(lambda: _answers(store))
        for _ in range(5):
            await exchange_a_message(store)
        await until(lambda: _is_left(client))
    await store.close()


async def test_a_connection_that_is_being_opened_during_a_failure_is_not_kept(
    servers: list[Server], relay: Relay
) -> None:
    (old, _, _), (new, _, _) = servers
    store = stored(relay.port)
    async with redis.asyncio.Redis(port=old, single_connection_client=True) as client:
        relay.delay_s = 0.05
        opening = asyncio.ensure_future(store.client.connect(3))
        while await _is_left(client):
            await asyncio.sleep(0)
        with pytest.raises(StoreDown):
            async with store.client._call():
                raise redis.exceptions.ConnectionError("lost")
        assert not opening.done()
        relay.target, relay.delay_s = new, 0.0
        await opening
        await until(lambda: _answers(store))
        await until(lambda: _is_left(client))
    await store.close()


async def test_a_silently_dropped_subscription_is_detected(servers: list[Server], relay: Relay) -> None:
    store = stored(relay.port)
    store.client.ping_after_s, store.client.ping_timeout_s = 0.05, 0.2
    pushes = store.listen("s1")
    listening = asyncio.ensure_future(anext(pushes))
    await until(lambda: _subscribers(servers[0][0], 1))
    await asyncio.sleep(0.5)
    assert not listening.done()  # the pings are answered
    relay.is_cut = True
    with pytest.raises(StoreDown, match="subscription does not answer"):
        await asyncio.wait_for(listening, 2)
    relay.is_cut = False
    await store.close()


# --- what the tests ask the servers ---


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.02)


async def _answers(store: RedisStore) -> bool:
    with contextlib.suppress(StoreDown):
        await exchange_a_message(store)
        return True
    return False


async def _clients(port: int) -> int:
    async with redis.asyncio.Redis(port=port, single_connection_client=True) as client:
        return len(await client.client_list()) - 1


async def _is_left(client: redis.asyncio.Redis) -> bool:
    """Whether no other client is connected, without connections of replication."""
    others: list[dict[str, Any]] = [each for each in await client.client_list() if "M" not in each["flags"]]
    return len(others) == 1


async def _subscribers(port: int, count: int) -> bool:
    async with redis.asyncio.Redis(port=port) as client:
        ((_, subscribed),) = await client.pubsub_numsub("tokenpool:{p}:push:s1")
        return bool(subscribed == count)


@contextlib.asynccontextmanager
async def scripted(answer: Callable[[list[bytes]], Awaitable[bytes]]) -> AsyncIterator[int]:
    """A server that reads Redis commands, and answers each one by ``answer``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readline():
                words = []
                for _ in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                writer.write(await answer(words))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
