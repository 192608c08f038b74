"""The feed of issued credentials: the store in Redis has the same rules as the one in Python."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing

import pytest
import pytest_asyncio
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.tokenpool.store.servers import redis_server, served
from tokenpool.leases.credential_feed import (
    CHECK_MODULUS,
    PAGE,
    CredentialFeed,
    CredentialPage,
    CredentialPut,
    CredentialRemoval,
    FeedState,
)
from tokenpool.leases.messages import CREDENTIALS, KEEP_S, Message, Push
from tokenpool.store import Store
from tokenpool.store.memory import MemoryStore
from tokenpool.store.redis import RedisStore

LIFETIME = 1.5
NOW = 1_700_000_000.25
MS = 1_700_000_000_250
names = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis")) as (port, _):
        yield port


@pytest_asyncio.fixture
async def local() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest_asyncio.fixture(params=["memory", "local", "redis"])
async def kept(
    request: pytest.FixtureRequest, server: int, local: AsyncExitStack
) -> AsyncIterator[tuple[Store, Clock]]:
    clock = Clock()
    store: Store
    if request.param == "memory":
        store = MemoryStore(LIFETIME, clock)
    elif request.param == "local":
        store = await local.enter_async_context(served(MemoryStore(LIFETIME, clock)))
    else:
        store = RedisStore(redis.asyncio.Redis(port=server), f"p{next(names)}", LIFETIME, clock)
    yield store, clock
    await store.close()


async def test_a_new_store_has_no_feed(kept: tuple[Store, Clock]) -> None:
    store, _ = kept

    assert await store.credentials(0) == CredentialPage(FeedState(), [])
    assert (await store.exchange(Message("s", 0, {}))).credentials == ""


async def test_changes_are_read_in_their_order_after_a_sequence(kept: tuple[Store, Clock]) -> None:
    store, clock = kept

    assert (
        await store.put_credentials([CredentialPut("a", b"\x00a 1"), CredentialPut("b", b"b1")]) == [MS] * 2
    )
    clock.now += 0.001
    assert await store.put_credentials([CredentialPut("a", b"a2", expected=MS)]) == [MS + 1]

    page = await store.credentials(0)
    assert [tuple(each) for each in page.entries] == [("b", MS, MS + 1, b"b1"), ("a", MS + 1, MS + 2, b"a2")]
    assert page.state == FeedState(MS, MS + 2, 2, (2 * MS + 1) % CHECK_MODULUS)
    assert [each.id for each in (await store.credentials(MS + 1)).entries] == ["a"]
    assert (await store.exchange(Message("s", 0, {}))).credentials == str(page.state)
    assert FeedState.parse(str(page.state)) == page.state


async def test_a_change_of_another_version_is_not_written(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    await store.put_credentials([CredentialPut("a", b"1")])
    before = await store.credentials(0)

    assert await store.put_credentials([CredentialPut("a", b"2")]) == [0]
    assert await store.put_credentials([CredentialPut("a", b"2", expected=7)]) == [0]
    assert await store.put_credentials([CredentialPut("new", b"2", expected=7)]) == [0]

    assert await store.credentials(0) == before


async def test_a_restored_record_keeps_its_version_and_wins_only_if_it_is_later(
    kept: tuple[Store, Clock],
) -> None:
    store, _ = kept
    await store.put_credentials([CredentialPut("a", b"now")])

    puts = [
        CredentialPut("a", b"older", version=MS - 5),
        CredentialPut("a", b"same", version=MS),
        CredentialPut("b", b"lost", version=MS - 5),
    ]
    assert await store.put_credentials(puts) == [0, 0, MS - 5]
    assert await store.put_credentials([CredentialPut("a", b"later", version=MS + 5)]) == [MS + 5]

    page = await store.credentials(MS)
    assert [(each.id, each.version, each.content) for each in page.entries] == [
        ("b", MS - 5, b"lost"),
        ("a", MS + 5, b"later"),
    ]
    # The next change of the credential is later than the restored one, whatever the clock says.
    assert await store.put_credentials([CredentialPut("a", b"x", expected=MS + 5)]) == [MS + 6]


async def test_a_long_feed_is_read_in_pages(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    puts = [CredentialPut(f"c{number}", b"x") for number in range(2 * PAGE + 1)]

    assert all(await store.put_credentials(puts))

    read, after = [], 0
    while entries := (await store.credentials(after)).entries:
        read.append(len(entries))
        after = entries[-1].sequence
    assert read == [PAGE, PAGE, 1]
    assert (await store.credentials(after)).state.records == 2 * PAGE + 1


async def test_sidecars_are_notified(server: int) -> None:
    pool = f"p{next(names)}"
    store = RedisStore(redis.asyncio.Redis(port=server), pool, LIFETIME)
    await store.exchange(Message("s", 0, {}))
    async with aclosing(store.listen("s")) as pushes:  # type: ignore[type-var]
        heard = asyncio.ensure_future(anext(pushes))
        async with asyncio.timeout(5):
            while not heard.done():
                written = await store.put_credentials([CredentialPut(str(next(names)), b"x")])
                assert all(written)
                await asyncio.sleep(0.01)
    assert heard.result() == Push("s", CREDENTIALS, "")
    await store.close()


async def test_removed_credentials_leave_the_feed_and_its_sums(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    [first, second] = await store.put_credentials([CredentialPut("a", b"a"), CredentialPut("b", b"b")])
    before = (await store.credentials(0)).state

    await store.remove_credentials(
        [
            CredentialRemoval("a", first),
            CredentialRemoval("b", second - 1),
            CredentialRemoval("unknown", first),
        ]
    )

    page = await store.credentials(0)
    assert [each.id for each in page.entries] == ["b"]
    assert page.state == before._replace(records=1, check=second % CHECK_MODULUS)
    await store.remove_credentials([CredentialRemoval("b", second)])
    assert (await store.credentials(0)) == CredentialPage(before._replace(records=0, check=0), [])
    # The next one has a later sequence, so a reader that has read all so far sees it.
    await store.put_credentials([CredentialPut("c", b"c")])
    assert [each.id for each in (await store.credentials(before.sequence)).entries] == ["c"]


async def test_a_removal_from_an_empty_feed_changes_nothing(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    await store.remove_credentials([CredentialRemoval("a", 1)])
    assert await store.credentials(0) == CredentialPage(FeedState(), [])


async def test_credentials_stay_while_sidecars_send_messages(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    pool, clock = f"p{next(names)}", Clock()
    store = RedisStore(client, pool, LIFETIME, clock)
    await store.put_credentials([CredentialPut("a", b"x")])
    keys = [f"tokenpool:{{{pool}}}:{name}" for name in ("credentials", "credential_feed", "meta")]
    for key in keys:
        await client.expire(key, 30)

    clock.now += 61
    await store.exchange(Message("s", 0, {}))

    assert min([await client.ttl(key) for key in keys]) > KEEP_S - 30
    await store.close()


def test_a_state_that_is_no_state_is_an_error() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        FeedState.parse("a b c d")


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 6), st.integers(-2, 5)),
        max_size=30,
    )
)
def test_versions_and_sequences_only_rise_and_the_sums_belong_to_the_records(
    calls: list[tuple[str, int, int, int]],
) -> None:
    feed, now = CredentialFeed(), 0.005
    for name, expected, version, step in calls:
        before = {each.id: each for each in feed.page(0).entries}
        at = feed.state
        now = max(now + step / 1000, 0.0)  # the clock may go back
        known = before[name].version if name in before else 0
        feed.put([CredentialPut(name, b"", known if expected else 0, version)], now)
        after = feed.page(0).entries
        assert all(each.version >= before[each.id].version for each in after if each.id in before)
        changed = [each for each in after if before.get(each.id) != each]
        assert all(each.sequence > at.sequence for each in changed)
        assert feed.state.sequence == max((each.sequence for each in after), default=0)
        assert feed.state[2:] == (len(after), sum(each.version for each in after) % CHECK_MODULUS)
