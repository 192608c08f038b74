"""The exchange of learned prices: new sidecars start from the pool's. Unreadable records do not stop it."""

from __future__ import annotations

import asyncio
from collections import UserDict
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import msgspec
import pytest

from sidecar.dialects.prefixes import KEY, prefixes
from sidecar.price_sharing import KEEP_S, MOST_BYTES, PriceSharing
from sidecar.telemetry import Telemetry
from tests.support.domain_builders import entitlement
from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.entitlements import Pricing
from tokenpool.leases.wire import (
    PRICES_SCHEMA,
    WireError,
    decode_prices,
    decode_statistics,
    encode_prices,
    encode_statistics,
)
from tokenpool.outcomes import Ending
from tokenpool.planning.active_accounts import ActiveAccounts
from tokenpool.pricing.cost import Ask, EngineShape, Usage
from tokenpool.pricing.statistics import (
    EntitlementStatistics,
    OutputStatistics,
    Statement,
    TargetStatistics,
)
from tokenpool.store import StoreDown
from tokenpool.store.memory import MemoryStore

CHAT = ("chat", "m")
OPEN = EngineShape(16, None)


class Store(MemoryStore):
    """A lease store that fails as the test says."""

    def __init__(self) -> None:
        super().__init__(1.5, lambda: 1000.0)
        self.failures = 0
        self.writes = 0

    async def publish_prices(self, holder: str, content: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreDown("stopped")
        self.writes += 1
        await super().publish_prices(holder, content)

    async def prices(self) -> Mapping[str, bytes]:
        if self.failures:
            self.failures -= 1
            raise StoreDown("stopped")
        return await super().prices()


class Replica:
    """The accounts, the telemetry and the exchange of one sidecar."""

    def __init__(self, name: str, store: Store, *tenants: str) -> None:
        self.now = 0.0
        self.telemetry = Telemetry(10)
        self.telemetry.clock = lambda: self.now
        self.accounts = {t: Account(entitlement(t), Pricing(), 0.0) for t in tenants or ("a",)}
        self.ledger = Ledger()
        self.telemetry.follow(self.accounts, self.ledger, ActiveAccounts(), "chat")
        self.sharing = PriceSharing(name, store, self.telemetry)
        self.sharing.follow(self.accounts)

    def serve(self, output: int, *found: int, times: int = 1, tenant: str = "a") -> None:
        account = self.accounts[tenant]
        for _ in range(times):
            ask = Ask(text_bytes=2000, target=CHAT, prefixes=found)
            ticket = self.ledger.reserve(account, ask, account.pricer.price(ask, OPEN), 0.0)
            self.telemetry.settled(ticket, Ending.FINISHED, Usage(600, output), reported=True)
            self.ledger.settle(ticket, Usage(600, output), Ending.FINISHED, 1.0)

    def reserves(self, *found: int, tenant: str = "a") -> int:
        ask = Ask(text_bytes=2000, target=CHAT, prefixes=found)
        return self.accounts[tenant].pricer.price(ask, OPEN).output_tokens


@pytest.fixture(autouse=True)
def key() -> Iterator[None]:
    """The key of this process is the same after each test."""
    before = KEY.value
    yield
    KEY.value = before


async def taught(store: Store) -> Replica:
    """A replica that knows two templates, and has written it."""
    replica = Replica("s1", store)
    for _ in range(40):
        replica.serve(10, 1)
        replica.serve(500, 2)
    await replica.sharing.read()
    await replica.sharing.write()
    return replica


async def test_a_new_replica_starts_from_what_the_pool_has_learned() -> None:
    store = Store()
    await taught(store)
    replica = Replica("s2", store)
    assert replica.reserves(1) == 256
    await replica.sharing.read()
    assert (replica.reserves(1), replica.reserves(2), replica.reserves()) == (10, 500, 500)
    ask = Ask(text_bytes=2000, target=CHAT)
    assert replica.accounts["a"].pricer.price(ask, OPEN).input_tokens == pytest.approx(600, abs=5)
    assert replica.sharing.results == {"read": 1}


async def test_a_replica_does_not_read_its_own_and_tells_only_its_own() -> None:
    store = Store()
    first = await taught(store)
    second = Replica("s2", store)
    await second.sharing.read()
    second.serve(10, 1, times=5)
    await second.sharing.write()
    await second.sharing.read()
    assert set(second.sharing.pool.statements) == {"s1"}
    await first.sharing.read()
    (told,) = first.sharing.pool.of("a")
    assert [each.output.count for each in decode_statistics(told).targets] == [5]


async def test_no_tenant_starts_from_another() -> None:
    store = Store()
    await taught(store)
    replica = Replica("s2", store, "a", "b")
    await replica.sharing.read()
    assert (replica.reserves(1, tenant="a"), replica.reserves(1, tenant="b")) == (10, 256)


async def test_all_replicas_hash_with_the_key_of_the_pool() -> None:
    store, text = Store(), (msgspec.Raw(b"x" * 2000),)
    first = Replica("s1", store)
    await first.sharing.read()
    hashes = prefixes(2000, text)
    KEY.value = b"the key of another process"
    assert prefixes(2000, text) != hashes
    await Replica("s2", store).sharing.read()
    assert prefixes(2000, text) == hashes


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1 not msgpack",
        msgspec.msgpack.encode([PRICES_SCHEMA + 1, 1, {}]),
        msgspec.msgpack.encode([PRICES_SCHEMA, 1, {"a": [0.9, "no targets"]}]),
        encode_prices(
            Statement(
                1,
                {
                    "a": encode_statistics(
                        EntitlementStatistics(0.9, (TargetStatistics("r", "m", (float("nan"),) * 5, 9),))
                    )
                },
            )
        ),
        encode_prices(
            Statement(
                1,
                {
                    "a": encode_statistics(
                        EntitlementStatistics(0.9, (TargetStatistics("r", "m", (1.7e308,) * 5, 9),) * 2)
                    )
                },
            )
        ),
    ],
    ids=["empty", "garbage", "later version", "other statistics", "not a number", "overflow"],
)
async def test_what_cannot_be_read_is_ignored_and_counted(content: bytes) -> None:
    store = Store()
    await taught(store)
    await store.publish_prices("bad", content)
    replica = Replica("s2", store)
    await replica.sharing.read()
    assert replica.sharing.results == {"read": 1, "unreadable": 1}
    if content.startswith(b"\x93\x01"):
        assert replica.reserves(1) in (10, 256)
    else:
        assert replica.reserves(1) == 10


async def test_an_unreadable_record_does_not_replace_the_one_before() -> None:
    store = Store()
    await taught(store)
    replica = Replica("s2", store, "b")
    await replica.sharing.read()
    await store.publish_prices("s1", b"garbage")
    await replica.sharing.read()
    assert list(replica.sharing.pool.statements) == ["s1"]


async def test_only_what_changed_is_written_and_kept_alive() -> None:
    store = Store()
    replica = Replica("s1", store)
    await replica.sharing.write()
    assert store.writes == 0
    replica.serve(10, times=3)
    await replica.sharing.write()
    await replica.sharing.write()
    assert store.writes == 1
    replica.now += KEEP_S
    await replica.sharing.write()
    assert store.writes == 2


async def test_a_failed_write_is_repeated() -> None:
    store = Store()
    replica = Replica("s1", store)
    replica.serve(10)
    store.failures = 1
    with pytest.raises(StoreDown):
        await replica.sharing.write()
    await replica.sharing.write()
    assert store.writes == 1


@pytest.mark.parametrize("writes_every", [1, 7, 1000])
async def test_what_is_written_is_bounded_and_has_the_last_used_entitlements(writes_every: int) -> None:
    names = [f"tenant-{number:04}" for number in range(1000)]
    store = Store()
    replica = Replica("s1", store, *names)
    for name in names[500:]:
        replica.serve(10, times=20, tenant=name)
    for number, name in enumerate(names, start=1):
        replica.serve(10, times=20, tenant=name)
        if number % writes_every == 0:
            await replica.sharing.write()
    await replica.sharing.write()
    content = (await store.prices())["s1"]
    assert 0.9 * MOST_BYTES <= len(content) <= MOST_BYTES + 100
    told = list(decode_prices(content).entitlements)
    assert 100 < len(told) < 1000
    assert told == names[-len(told) :]


class Counted(UserDict[str, Account]):
    """Accounts that count how often one is looked up."""

    lookups = 0

    def __getitem__(self, name: str) -> Account:
        self.lookups += 1
        return super().__getitem__(name)


async def test_only_what_fits_is_encoded() -> None:
    names = [f"tenant-{number:04}" for number in range(2000)]
    store = Store()
    replica = Replica("s1", store, *names)
    for name in names:
        replica.serve(10, times=20, tenant=name)
    accounts = Counted(replica.accounts)
    replica.sharing.follow(accounts)
    await replica.sharing.write()
    told = decode_prices((await store.prices())["s1"]).entitlements
    assert accounts.lookups == len(told) + 1  # the last one does not fit


async def test_an_entitlement_that_is_gone_is_not_told() -> None:
    store = Store()
    replica = Replica("s1", store, "a", "b")
    replica.serve(10)
    replica.serve(10, tenant="b")
    await replica.sharing.write()
    replica.serve(10)
    replica.serve(10, tenant="b")
    replica.sharing.follow({"b": replica.accounts["b"]})
    await replica.sharing.write()
    assert set(decode_prices((await store.prices())["s1"]).entitlements) == {"b"}


async def test_the_loop_survives_failures_and_reads_again() -> None:
    store = Store()
    await taught(store)
    replica = Replica("s2", store, "a", "b")
    store.failures = 2
    running = asyncio.ensure_future(replica.sharing.run(write_every_s=0, read_every_s=0, retry_s=0))
    async with asyncio.timeout(5):
        while replica.sharing.results["read"] < 2:
            await asyncio.sleep(0)
        replica.serve(10, tenant="b")
        store.failures = 1
        while replica.sharing.results["written"] < 1:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert replica.sharing.results["failed"] == 3
    (family,) = replica.sharing.metrics()
    assert {sample.labels["result"] for sample in family.samples if sample.name.endswith("_total")} == {
        "written",
        "read",
        "failed",
        "unreadable",
    }


async def test_a_defect_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    replica = Replica("s2", Store())
    replica.sharing.follow(SimpleNamespace())  # type: ignore[arg-type]
    replica.serve(10)
    await replica.sharing._attempt_write()
    store = Store()
    await taught(store)
    broken = Replica("s3", store)
    broken.sharing.follow(SimpleNamespace())  # type: ignore[arg-type]
    assert await broken.sharing._attempt_read()
    assert [record.levelname for record in caplog.records] == ["CRITICAL", "CRITICAL"]


def test_statistics_are_the_same_after_the_wire() -> None:
    statistics = EntitlementStatistics(
        0.9,
        (
            TargetStatistics(
                "/v1/completions",
                "m",
                (1.5, 2.0, 3.0, 4.0, 5.0),
                7,
                OutputStatistics((1, 20, 300), 3, 3, 1, 0.88),
                {2**56 - 1: OutputStatistics((5,), 1)},
            ),
        ),
    )
    statement = Statement(3, {"a": encode_statistics(statistics)})
    assert decode_prices(encode_prices(statement)) == statement
    assert decode_statistics(statement.entitlements["a"]) == statistics
    with pytest.raises(WireError, match="version 2"):
        decode_prices(msgspec.msgpack.encode([2, 1, {}]))


def test_a_later_version_may_add_fields() -> None:
    target = ["r", "m", [0.0] * 5, 0, [[1], 1, 0, 0, 0.9, "new"], {}, {}, "new"]
    content = msgspec.msgpack.encode([PRICES_SCHEMA, 1, {"a": [0.9, [target], "new"]}, "new"])
    (decoded,) = decode_prices(content).entitlements.values()
    assert decode_statistics(decoded).targets[0].output.outputs == (1,)
