"""The store's URL and password in files: they change while the store is in use."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio
from msgspec import msgpack

from tests.integration.tokenpool.store.servers import redis_server
from tokenpool.leases.messages import FREED, LeaseRequest, Limit, Message, Push
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import StoreDown
from tokenpool.store.address import AddressInvalid, StoreFiles, with_password
from tokenpool.store.redis import RedisStore

TERMS = IdleTerms((50.0, 500.0, 2.0), (100.0, 1000.0, 4.0))
LIMIT = Limit(100, 1000, 4, 200)
ASK = LeaseRequest(concurrency_wanted=2, kv_wanted=10, tokens_wanted=5)
TIMEOUT_S = 2.0
LIFETIME_S = 0.3
numbers = itertools.count()


@asynccontextmanager
async def served(folder: Path, password: str) -> AsyncIterator[tuple[int, redis.asyncio.Redis]]:
    """A Redis with a password; its port, and a client for its administrator."""
    with redis_server(folder, "--user", "admin", "on", ">admin", "~*", "&*", "+@all") as (port, _):
        async with redis.asyncio.Redis(port=port, username="admin", password="admin") as admin:
            await admin.config_set("requirepass", password)
            yield port, admin


def files_of(folder: Path, port: int, password: str) -> StoreFiles:
    (folder / "password").write_text(f"{password}\n")
    return StoreFiles(f"redis://127.0.0.1:{port}", None, folder / "password")


async def held(store: RedisStore) -> float:
    """Send a message, and return the sequences of the lease."""
    return (await store.exchange(Message("s1", next(numbers), {"a": ASK}))).leases["a"].concurrency


async def others(admin: redis.asyncio.Redis) -> set[str]:
    """The ids of all connections except the administrator's."""
    return {each["id"] for each in await admin.client_list() if each["user"] != "admin"}


async def joined(store: RedisStore) -> None:
    """Publish a limit, and hold a lease of it. A new store grants nothing in its first lifetime."""
    await store.connect(4)
    await store.publish({"a": LIMIT}, TERMS, 1)
    while await held(store) != 2:
        await asyncio.sleep(0.02)


async def test_a_changed_password_moves_the_store_and_keeps_its_leases(tmp_path: Path) -> None:
    async with served(tmp_path, "one") as (port, admin):
        files = files_of(tmp_path, port, "one")
        store = files.open("p", LIFETIME_S, TIMEOUT_S)
        await joined(store)
        former = store.client
        await admin.config_set("requirepass", "two")
        (tmp_path / "password").write_text("two")
        under_way = asyncio.ensure_future(held(store))
        await asyncio.sleep(0)
        assert await files.follow([store], TIMEOUT_S) == (tmp_path / "password",)
        assert await under_way == 2
        assert store.client is not former
        assert await held(store) == 2
        assert await store.limits() == ({"a": LIMIT}, TERMS)
        await store.close()


async def test_connections_of_the_former_password_are_closed_and_replaced_in_advance(tmp_path: Path) -> None:
    async with served(tmp_path, "one") as (port, admin):
        files = files_of(tmp_path, port, "one")
        store = files.open("p", LIFETIME_S, TIMEOUT_S)
        await joined(store)
        before = await others(admin)
        await admin.config_set("requirepass", "two")
        (tmp_path / "password").write_text("two")
        await files.follow([store], TIMEOUT_S)
        async with asyncio.timeout(2):  # Redis sees the end of a connection a little later
            while before & (after := await others(admin)):
                await asyncio.sleep(0.01)
        assert len(after) >= 4
        await store.close()


async def test_a_subscription_ends_at_once_so_that_its_owner_subscribes_again(tmp_path: Path) -> None:
    async with served(tmp_path, "one") as (port, admin):
        files = files_of(tmp_path, port, "one")
        store = files.open("p", LIFETIME_S, TIMEOUT_S)
        await joined(store)
        pushes = store.listen("s1")
        waiting = asyncio.ensure_future(anext(pushes))
        while await admin.pubsub_numsub("tokenpool:{p}:push:s1") != [(b"tokenpool:{p}:push:s1", 1)]:
            await asyncio.sleep(0.01)
        await admin.config_set("requirepass", "two")
        (tmp_path / "password").write_text("two")
        await files.follow([store], TIMEOUT_S)
        with pytest.raises(StoreDown):
            await asyncio.wait_for(waiting, 1)
        again = asyncio.ensure_future(anext(store.listen("s1")))
        while await admin.pubsub_numsub("tokenpool:{p}:push:s1") != [(b"tokenpool:{p}:push:s1", 1)]:
            await asyncio.sleep(0.01)
        await admin.publish("tokenpool:{p}:push:s1", msgpack.encode((FREED, "a")))
        assert await asyncio.wait_for(again, 2) == Push("s1", FREED, "a")
        await store.close()


async def test_a_password_that_the_server_refuses_leaves_the_old_connections(tmp_path: Path) -> None:
    async with served(tmp_path, "one") as (port, admin):
        files = files_of(tmp_path, port, "one")
        store = files.open("p", LIFETIME_S, TIMEOUT_S)
        await joined(store)
        former = store.client
        (tmp_path / "password").write_text("two")
        with pytest.raises(StoreDown, match=r"(?i)password"):
            await files.follow([store], TIMEOUT_S)
        assert store.client is former
        assert await held(store) == 2
        await admin.config_set("requirepass", "two")
        await files.follow([store], TIMEOUT_S)
        assert store.client is not former
        await store.close()


async def test_credentials_without_the_right_to_write_leave_the_old_connections(tmp_path: Path) -> None:
    async with served(tmp_path, "one") as (port, admin):
        (tmp_path / "url").write_text(f"redis://:one@127.0.0.1:{port}")
        files = StoreFiles(None, tmp_path / "url", None)
        store = files.open("p", LIFETIME_S, TIMEOUT_S)
        await joined(store)
        await admin.acl_setuser("reader", enabled=True, passwords=["+r"], keys=["*"], categories=["+@read"])
        (tmp_path / "url").write_text(f"redis://reader:r@127.0.0.1:{port}")
        with pytest.raises(StoreDown):
            await files.follow([store], TIMEOUT_S)
        assert await held(store) == 2
        await store.close()


async def test_the_url_in_a_file_may_name_another_server(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with redis_server(tmp_path / "a") as (one, _), redis_server(tmp_path / "b") as (two, _):
        (tmp_path / "url").write_text(f"redis://127.0.0.1:{one}\n")
        files = StoreFiles(None, tmp_path / "url", None)
        stores = [files.open(pool, LIFETIME_S, TIMEOUT_S) for pool in ("p", "q")]
        await joined(stores[0])
        (tmp_path / "url").write_text(f"redis://127.0.0.1:{two}\n")
        await files.follow(stores, TIMEOUT_S)
        assert {store.host() for store in stores} == {("127.0.0.1", two)}
        assert await held(stores[0]) == 0  # nothing is published there
        assert files.open("r", LIFETIME_S, TIMEOUT_S).host() == ("127.0.0.1", two)
        for store in stores:
            await store.close()


def test_an_unusable_file_names_itself_and_no_password(tmp_path: Path) -> None:
    url, password = tmp_path / "url", tmp_path / "password"
    url.write_text("redis://:hush@h:port")
    with pytest.raises(AddressInvalid, match="--store-file") as raised:
        StoreFiles(None, url, None)
    assert "hush" not in str(raised.value)
    url.write_text("")
    with pytest.raises(AddressInvalid, match="no content"):
        StoreFiles(None, url, None)
    password.write_text("a\nb\n")
    with pytest.raises(AddressInvalid, match="several lines"):
        StoreFiles("redis://h", None, password)
    password.write_text("hush")
    with pytest.raises(AddressInvalid, match="remove one of them") as raised:
        StoreFiles("redis://:other@h", None, password)
    assert "other" not in str(raised.value)
    with pytest.raises(OSError, match="gone"):
        StoreFiles(None, tmp_path / "gone", None)


def test_tls_files_of_the_url_are_watched_and_read(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("one")
    files = StoreFiles(f"rediss://h?ssl_ca_certs={authority}", None, None)
    assert files.paths == (authority,)
    authority.write_text("two")
    assert files.read() != files.in_force


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", "redis://:p%2Fw@h"),
        ("redis://user@h:1/2", "redis://user:p%2Fw@h:1/2"),
        ("rediss://h?ssl_ca_certs=/a@b", "rediss://:p%2Fw@h?ssl_ca_certs=/a@b"),
        ("unix:///socket?db=1", "unix://:p%2Fw@/socket?db=1"),
        ("redis+sentinel://a:1,b:2/group", "redis+sentinel://:p%2Fw@a:1,b:2/group"),
    ],
)
def test_a_password_is_put_into_any_url(url: str, expected: str) -> None:
    assert with_password(url, "p/w") == expected
