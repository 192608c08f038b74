"""One contract over both stores: the same messages at the same times get the same answers.

What the answers must be is tests/tokenpool/test_books.py's; here memory and a real Redis are held to it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from tests.store.servers import redis_server
from tokenpool.amounts import Amount
from tokenpool.books import NO_GRANT, Grant, Holding, Limit
from tokenpool.store import Store, StoreDown
from tokenpool.store.memory import MemoryStore
from tokenpool.store.redis import RedisStore

LIFETIME = 1.5
LIMIT = Limit(Amount(100, 1000, 4), depth=200)
WANT = Holding(kv_wanted=200, concurrency_wanted=2, tokens_wanted=50)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis")) as (port, _):
        yield port


pools = (f"pool-{number}" for number in itertools.count())


@pytest_asyncio.fixture(params=["memory", "redis"])
async def kept(request: pytest.FixtureRequest, server: int) -> AsyncIterator[tuple[Store, Clock]]:
    clock = Clock()
    store: Store
    if request.param == "memory":
        store = MemoryStore(LIFETIME, clock)
    else:
        store = RedisStore(redis.asyncio.Redis(port=server), next(pools), LIFETIME, clock)
    await store.publish({"a": LIMIT}, 1)
    clock.now += LIFETIME
    yield store, clock
    await store.close()


async def test_what_is_free_is_given_and_what_is_returned_is_free(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert await store.exchange("s1", 0, {"a": WANT}) == {"a": Grant(200, 2, 50)}
    more = Holding(kv_wanted=1000, concurrency_wanted=9, tokens_wanted=900)
    assert await store.exchange("s2", 0, {"a": more}) == {"a": Grant(800, 2, 150)}
    await store.exchange("s1", 1, {})
    assert await store.exchange("s2", 1, {"a": more}) == {"a": Grant(1000, 4, 200)}


async def test_grants_expire_and_spending_is_remembered(kept: tuple[Store, Clock]) -> None:
    store, clock = kept
    await store.exchange("s1", 0, {"a": WANT})
    clock.now += LIFETIME
    everything = Holding(0, 0, 1000, 4, 0, 1000)
    assert await store.exchange("s2", 0, {"a": everything}) == {"a": Grant(1000, 4, 200)}
    back = Holding(100, 1, 200, 2, tokens_spent=50, tokens_wanted=50)
    assert await store.exchange("s1", 1, {"a": back}) == {"a": Grant(100, 1, 0)}
    assert await store.exchange("s2", 1, {"a": everything}) == {"a": Grant(900, 3, 150)}


async def test_an_older_coordinator_is_refused(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert await store.publish({"a": LIMIT}, 7)
    assert not await store.publish({}, 6)
    assert (await store.exchange("s1", 0, {"a": WANT}))["a"].concurrency == 2


async def test_doubled_and_late_messages_book_nothing(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    await store.exchange("s1", 3, {"a": WANT})
    assert await store.exchange("s1", 3, {"a": Holding(kv_wanted=900)}) == {"a": Grant(200, 2, 50)}
    assert await store.exchange("s1", 2, {"b": WANT}) == {"b": NO_GRANT}


amounts = st.integers(0, 6)
messages = st.fixed_dictionaries(
    {},
    optional={
        name: st.builds(
            lambda runs, wanted, spent, tokens: Holding(
                runs * 50.0, runs, wanted * 50.0, wanted, float(spent), float(tokens)
            ),
            amounts,
            amounts,
            st.integers(0, 300),
            st.integers(0, 300),
        )
        for name in ("a", "b")
    },
)
limits = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.builds(
        lambda rate, units: Limit(Amount(float(rate), units * 50.0, float(units)), rate + 50.0),
        st.integers(0, 200),
        st.integers(0, 8),
    ),
)
scripts = st.lists(
    st.tuples(st.sampled_from([0.0, 0.125, 0.5, 2.0, 61.0]), st.booleans()).flatmap(
        lambda head: st.tuples(
            st.just(head[0]),
            st.tuples(limits, st.integers(1, 3))
            if head[1]
            else st.tuples(st.sampled_from(["s1", "s2", "s3"]), st.integers(0, 30), messages),
        )
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def runner(server: int) -> Iterator[tuple[asyncio.Runner, redis.asyncio.Redis]]:
    """A loop and a client for all examples."""
    with asyncio.Runner() as made:
        client = redis.asyncio.Redis(port=server)
        yield made, client
        made.run(client.aclose())


@given(script=scripts)
def test_both_stores_answer_alike(
    runner: tuple[asyncio.Runner, redis.asyncio.Redis],
    script: list[tuple[float, tuple[object, ...]]],
) -> None:
    async def play() -> None:
        clock = Clock()
        memory = MemoryStore(LIFETIME, clock)
        stored = RedisStore(runner[1], next(pools), LIFETIME, clock)
        for store in (memory, stored):
            await store.publish({"a": LIMIT}, 1)
        for wait, call in script:
            clock.now += wait
            method = "publish" if len(call) == 2 else "exchange"
            one, other = [await getattr(store, method)(*call) for store in (memory, stored)]
            if isinstance(one, dict):
                assert set(one) == set(other)
                for name, grant in one.items():
                    given = other[name]
                    assert given.concurrency == pytest.approx(grant.concurrency, abs=1e-6)
                    assert given.kv_tokens == pytest.approx(grant.kv_tokens, abs=1e-6)
                    assert given.tokens == pytest.approx(grant.tokens, abs=1e-6)
            else:
                assert one == other

    runner[0].run(play())


async def test_every_key_expires_and_lies_in_one_slot(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    await client.flushdb()
    store = RedisStore(client, "mine", LIFETIME)
    await store.publish({"a": LIMIT}, 1)
    await store.exchange("s1", 0, {"a": WANT, "b": WANT})
    keys = [key async for key in client.scan_iter()]
    assert len(keys) >= 5
    assert all(key.startswith(b"tokenpool:{mine}:") for key in keys)
    assert all([0 < await client.pttl(key) <= 600_000 for key in keys])
    await store.close()


async def test_a_store_that_does_not_answer_says_so(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "secret") as (port, process):
        refused = RedisStore(redis.asyncio.Redis(port=port), "p", LIFETIME)
        with pytest.raises(StoreDown, match=r"(?i)authenticat"):
            await refused.publish({}, 1)
        client = redis.asyncio.Redis(port=port, password="secret", socket_timeout=0.2, retry=None)
        store = RedisStore(client, "p", LIFETIME)
        assert await store.publish({"a": LIMIT}, 1)
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(StoreDown):
            await store.exchange("s1", 0, {"a": WANT})
        os.kill(process, signal.SIGCONT)
    with pytest.raises(StoreDown):
        await store.exchange("s1", 1, {"a": WANT})
    await store.close()
    await refused.close()


async def test_a_server_that_restarts_empty_is_served_at_once(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (port, _):
        store = RedisStore(redis.asyncio.Redis(port=port), "p", 0.01)
        await store.publish({"a": LIMIT}, 1)
    with redis_server(tmp_path, port=port):
        assert (await store.exchange("s1", 1, {"a": Holding(100, 1, 200, 2)}))["a"] == Grant(100, 1, 0)
        assert await store.publish({"a": LIMIT}, 1)
    await store.close()
