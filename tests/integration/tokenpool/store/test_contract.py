"""One contract for both stores: the same messages at the same times get the same answers.

tests/unit/tokenpool/leases/test_reference_store.py tests the rules in Python. Here a real Redis must give the
same answers.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.tokenpool.store.servers import redis_server, served
from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.leases.messages import (
    FREED,
    KEEP_S,
    MOST_PEERS,
    MOST_PRICES,
    NO_LIMIT,
    POOL_BUCKET_S,
    RECLAIM,
    Answer,
    EntitlementRecord,
    LeaseRequest,
    Limit,
    Message,
    PeerRoom,
    PoolSnapshot,
    Push,
    ReplicaRoom,
    StoredScaleHint,
)
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import Store, StoreDown
from tokenpool.store.memory import MemoryStore
from tokenpool.store.redis import RedisStore

LIFETIME = 1.5
LIMIT = Limit(100, 1000, 4, depth=200, assured_concurrency=2, debt=-0.5)
TERMS = IdleTerms((50.0, 500.0, 2.5), (100.0, 1000.0, 4.0), True)
WANT = LeaseRequest(kv_wanted=200, concurrency_wanted=2, tokens_wanted=50)


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
        store = RedisStore(redis.asyncio.Redis(port=server), next(pools), LIFETIME, clock)
    await store.publish({"a": LIMIT}, TERMS, 1)
    clock.now += LIFETIME
    yield store, clock
    await store.close()


async def send(
    store: Store, holder: str, number: int, lease_requests: dict[str, LeaseRequest], *, whole: bool = True
) -> dict[str, tuple[float, float, float]]:
    """Send one message; returns the lease of its sender."""
    answer = await store.exchange(Message(holder, number, lease_requests, whole, b"\xffreport"))
    return {name: (g.kv_tokens, g.concurrency, g.tokens) for name, g in answer.leases.items()}


async def test_free_capacity_is_granted_and_a_returned_lease_is_free(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert await send(store, "s1", 0, {"a": WANT}) == {"a": (200, 2, 50)}
    more = LeaseRequest(kv_wanted=1000, concurrency_wanted=9, tokens_wanted=900)
    assert await send(store, "s2", 0, {"a": more}) == {"a": (800, 2, 150)}
    await send(store, "s1", 1, {})
    assert await send(store, "s2", 1, {"a": more}) == {"a": (1000, 4, 200)}


async def test_an_answer_has_the_state_of_the_pool(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert await store.publish_file("v1", b"\xff\x00pool", 1)
    await send(store, "s1", 0, {"a": WANT._replace(kv_in_use=32, concurrency_in_use=1)})
    answer = await store.exchange(Message("s2", 0, {"a": WANT}))
    lease = answer.leases["a"]
    assert (lease.limit, lease.level) == (LIMIT, 100)
    assert (lease.kv_elsewhere, lease.concurrency_elsewhere) == (32, 1)
    assert (answer.is_open, answer.sidecars, answer.file_version) == (True, 2, "v1")
    assert await store.file() == ("v1", b"\xff\x00pool")
    assert await store.limits() == ({"a": LIMIT}, TERMS)


async def test_leases_expire_and_spending_is_remembered(kept: tuple[Store, Clock]) -> None:
    store, clock = kept
    await send(store, "s1", 0, {"a": WANT})
    clock.now += LIFETIME
    everything = LeaseRequest(kv_wanted=1000, concurrency_wanted=4, tokens_wanted=1000)
    assert await send(store, "s2", 0, {"a": everything}) == {"a": (1000, 4, 200)}
    back = LeaseRequest(100, 1, 100, 1, 200, 2, tokens_spent=50, tokens_wanted=50)
    assert await send(store, "s1", 1, {"a": back}) == {"a": (0, 0, 0)}
    assert await send(store, "s2", 1, {"a": everything}) == {"a": (900, 3, 150)}


async def test_an_older_coordinator_is_refused(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert await store.publish({"a": LIMIT}, TERMS, 7)
    assert not await store.publish({}, TERMS, 6)
    assert not await store.publish_file("old", b"", 6)
    assert (await send(store, "s1", 0, {"a": WANT}))["a"][1] == 2


async def test_duplicated_and_late_messages_change_nothing(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    await send(store, "s1", 3, {"a": WANT})
    assert await send(store, "s1", 3, {"a": LeaseRequest(kv_wanted=900)}) == {"a": (200, 2, 50)}
    assert await send(store, "s1", 2, {"b": WANT}) == {"b": (0, 0, 0)}


async def test_one_candidate_leads_until_it_resigns_or_its_leadership_expires(
    kept: tuple[Store, Clock],
) -> None:
    store, _ = kept
    epoch = await store.lead("one", 10)
    assert epoch > 1
    assert await store.lead("two", 10) == 0
    assert await store.lead("one", 10) == epoch
    await store.resign("two")
    assert await store.lead("two", 10) == 0
    await store.resign("one")
    later = await store.lead("two", 10)
    assert later > epoch
    assert not await store.publish({"a": LIMIT}, TERMS, epoch)
    assert await store.publish({"a": LIMIT}, TERMS, later)


async def test_a_scale_hint_is_kept_with_its_time_by_the_stores_clock(kept: tuple[Store, Clock]) -> None:
    store, clock = kept
    assert await store.scale_hint() is None
    assert await store.publish_scale_hint(b"\xff\x00hint", 1) == clock.now
    stored_at = clock.now
    clock.now += 2.5
    assert await store.scale_hint() == StoredScaleHint(b"\xff\x00hint", stored_at, 2.5)
    assert await store.publish_scale_hint(b"next", 1) == clock.now
    assert await store.scale_hint() == StoredScaleHint(b"next", clock.now, 0.0)
    clock.now -= 10  # a clock may step back
    found = await store.scale_hint()
    assert found is not None
    assert found.age_s == 0.0


async def test_a_coordinator_without_the_leadership_stores_no_scale_hint(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    epoch = await store.lead("one", 10)
    assert await store.publish_scale_hint(b"one", epoch)
    await store.resign("one")
    assert await store.publish_scale_hint(b"one, late", epoch)  # no candidate leads yet
    later = await store.lead("two", 10)
    assert await store.publish_scale_hint(b"one, too late", epoch) is None
    found = await store.scale_hint()
    assert found is not None
    assert found.content == b"one, late"
    assert await store.publish_scale_hint(b"two", later)
    assert not await store.publish({"a": LIMIT}, TERMS, epoch)


async def test_a_stored_scale_hint_fences_earlier_leaders(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert await store.publish_scale_hint(b"hint", 5)
    assert not await store.publish({"a": LIMIT}, TERMS, 4)  # its epoch counts like any other
    assert (await store.read()).epoch == 5
    assert await store.limits() == ({"a": LIMIT}, TERMS)


async def test_prices_are_replaced_by_their_sidecar_and_expire(kept: tuple[Store, Clock]) -> None:
    store, clock = kept
    await store.publish_prices("s1", b"\xff\x00one")
    clock.now += 5
    await store.publish_prices("s2", b"two")
    await store.publish_prices("s2", b"two, later")
    assert await store.prices() == {"s1": b"\xff\x00one", "s2": b"two, later"}
    clock.now += KEEP_S - 5
    assert await store.prices() == {"s2": b"two, later"}
    await store.publish_prices("s3", b"three")
    clock.now -= 10  # a clock may step back
    assert await store.prices() == {"s2": b"two, later", "s3": b"three"}


async def test_the_prices_of_the_sidecars_that_wrote_last_are_kept(kept: tuple[Store, Clock]) -> None:
    store, clock = kept
    for number in range(MOST_PRICES + 3):
        clock.now += 1
        await store.publish_prices(f"s{number}", b"x")
    await store.publish_prices("s3", b"again")
    assert set(await store.prices()) == {f"s{number}" for number in range(3, MOST_PRICES + 3)}
    for name in ("y", "z"):  # at one time, the last in alphabetical order
        await store.publish_prices(name, b"x")
    assert {"y", "z", "s3"} <= set(await store.prices())


async def test_an_answer_names_other_replicas_with_their_room_and_their_caches(
    kept: tuple[Store, Clock],
) -> None:
    store, _ = kept
    for holder, cached in (("s1", "AAEC"), ("s2", "")):
        room = ReplicaRoom(100.0, 3.0, 0.0, f"{holder}:1", cached)
        await store.exchange(Message(holder, 0, {}, room=room))
    answer = await store.exchange(Message("s2", 1, {}, room=ReplicaRoom(100.0, 3.0, 0.0, "s2:1", "BBBB")))
    assert answer.peers == [PeerRoom("s1", "s1:1", 100.0, 3.0, "AAEC")]
    answer = await store.exchange(Message("s1", 1, {}))
    assert answer.peers == [PeerRoom("s2", "s2:1", 100.0, 3.0, "BBBB")]


async def test_all_sidecars_get_the_secret_that_was_proposed_first(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert [await store.secret(new) for new in (b"\xff\x00one", b"two", b"three")] == [b"\xff\x00one"] * 3


def room_of(
    number: int, *, sequences: float = 2.0, spent: float = 0.0, address: str | None = None
) -> ReplicaRoom:
    """The free room that the sidecar with this number states."""
    return ReplicaRoom(100.0 * number, sequences, spent, f"s{number}:1" if address is None else address)


async def state(store: Store, number: int, sent: int, room: ReplicaRoom | None) -> Answer:
    """Send the room of the sidecar with this number."""
    return await store.exchange(Message(f"s{number}", sent, {}, room=room))


async def test_the_free_room_of_a_pool_is_the_sum_of_its_replicas(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert (await state(store, 1, 0, room_of(1))).free[1:] == (100, 2)
    assert (await state(store, 2, 0, room_of(2, sequences=-3))).free[1:] == (300, -1)
    assert (await state(store, 1, 1, room_of(3, sequences=5))).free[1:] == (500, 2)
    assert (await state(store, 1, 1, room_of(9))).free[1:] == (500, 2)  # a late message states nothing
    assert (await part(store, 0, {})).free[1:] == (500, 2)
    assert (await state(store, 1, 2, None)).free[1:] == (200, -3)  # it stops
    assert (await state(store, 3, 0, None)).free[1:] == (200, -3)


async def test_the_room_of_a_sidecar_expires_with_its_leases(kept: tuple[Store, Clock]) -> None:
    store, clock = kept
    await state(store, 1, 0, room_of(1))
    clock.now += LIFETIME / 2
    assert [p.name for p in (await state(store, 2, 0, room_of(2))).peers] == ["s1"]
    clock.now += LIFETIME / 2
    answer = await part(store, 3, {})  # of s1 itself, too late
    assert answer.free[1:] == (200, 2)
    answer = await state(store, 3, 0, room_of(3))
    assert (answer.free[1:], [p.name for p in answer.peers]) == ((500, 4), ["s2"])


async def test_an_answer_names_other_replicas_that_take_handovers(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    assert (await state(store, 1, 0, room_of(1))).peers == []
    assert (await state(store, 2, 0, room_of(2, address=""))).peers == [PeerRoom("s1", "s1:1", 100, 2)]
    assert (await state(store, 1, 1, room_of(1, sequences=1))).peers == []
    assert (await state(store, 2, 1, room_of(2))).peers == [PeerRoom("s1", "s1:1", 100, 1)]
    assert (await state(store, 3, 0, None)).peers != []  # it may ask others, too


async def test_an_answer_names_few_of_many_replicas_and_all_of_them_in_time(
    kept: tuple[Store, Clock],
) -> None:
    store, _ = kept
    for number in range(1, 13):
        await state(store, number, 0, room_of(number))
    named: set[str] = set()
    for sent in range(1, 100):
        peers = [peer.name for peer in (await state(store, 1, sent, room_of(1))).peers]
        assert len(set(peers)) == len(peers) == MOST_PEERS
        named.update(peers)
    assert named == {f"s{number}" for number in range(2, 13)}


async def test_the_throughput_of_the_pool_is_a_bucket_that_replicas_charge(
    kept: tuple[Store, Clock],
) -> None:
    store, clock = kept
    rate = TERMS.capacity[0]
    await state(store, 1, 0, room_of(1, spent=1000))  # what a sidecar spent before is not charged
    clock.now += LIFETIME * 0.9
    level = rate * POOL_BUCKET_S
    assert (await state(store, 1, 1, room_of(1, spent=1000))).free[0] == pytest.approx(level)
    assert (await state(store, 1, 2, room_of(1, spent=1150))).free[0] == pytest.approx(level - 150)
    assert (await state(store, 2, 0, room_of(2, spent=7))).free[0] == pytest.approx(level - 150)
    assert (await state(store, 1, 3, room_of(1, spent=1130))).free[0] == pytest.approx(
        level - 130
    )  # a refund
    clock.now += 0.5
    assert (await state(store, 2, 1, room_of(2, spent=7))).free[0] == pytest.approx(level - 130 + rate / 2)
    clock.now -= 10  # a clock may step back
    assert (await state(store, 2, 2, room_of(2, spent=7))).free[0] == pytest.approx(level - 130 + rate / 2)


async def test_unused_leases_are_reclaimed_and_their_return_is_notified(
    kept: tuple[Store, Clock],
) -> None:
    store, _ = kept
    first, second = store.listen("s1"), store.listen("s2")
    asked, told = asyncio.ensure_future(anext(first)), asyncio.ensure_future(anext(second))
    await asyncio.sleep(0.05)  # until both are subscribed
    await send(store, "s1", 0, {"a": WANT._replace(concurrency_wanted=4)})
    await send(store, "s2", 0, {})
    short = WANT._replace(is_urgent=True)
    assert (await send(store, "s2", 1, {"a": short}, whole=False))["a"][1] == 0
    assert await asyncio.wait_for(asked, 2) == Push("s1", RECLAIM, "a")
    await send(store, "s1", 1, {"a": LeaseRequest()}, whole=False)
    assert await asyncio.wait_for(told, 2) == Push("s2", FREED, "a")
    assert (await send(store, "s2", 2, {"a": short}, whole=False))["a"][1] == 2
    for listening in (first, second):
        await listening.aclose()  # type: ignore[attr-defined]


async def part(
    store: Store, number: int, lease_requests: dict[str, LeaseRequest], *, renews: bool = False
) -> Answer:
    """A partial message of s1."""
    return await store.exchange(Message("s1", number, lease_requests, False, b"", (), renews))


async def test_messages_may_overtake_each_other(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    await send(store, "s1", 0, {"a": WANT})
    await part(store, 3, {"a": WANT._replace(concurrency_wanted=1)})
    other = await part(store, 2, {"b": WANT._replace(idle_limit=LIMIT)})
    assert other.leases["b"].concurrency == 2  # of another entitlement, so not too late
    late = await part(store, 1, {"a": WANT._replace(concurrency_wanted=4)})
    assert late.leases["a"].concurrency == 1
    # A complete message fences off all that were sent before it.
    await send(store, "s1", 9, {"a": WANT})
    late = await part(store, 8, {"b": WANT._replace(idle_limit=LIMIT)})
    assert late.leases["b"].concurrency == 0
    assert (await store.read()).records["a"].held.concurrency == 2


async def test_a_partial_message_may_overtake_the_complete_message_before_it(
    kept: tuple[Store, Clock],
) -> None:
    store, _ = kept
    await send(store, "s1", 0, {"a": WANT})
    await part(store, 2, {"b": WANT._replace(idle_limit=LIMIT)})
    await send(store, "s1", 1, {"a": WANT})
    answer = await part(store, 3, {})
    assert answer.rows == 2


async def test_a_renewal_returns_no_lease_that_it_does_not_name(kept: tuple[Store, Clock]) -> None:
    store, clock = kept
    await send(store, "s1", 0, {"a": WANT})
    for number in range(1, 4):
        clock.now += LIFETIME * 0.6
        answer = await part(store, number, {}, renews=True)
        assert (answer.is_known, answer.rows) == (True, 1)
    assert (await store.read()).records["a"].held.concurrency == 2
    clock.now += LIFETIME
    answer = await part(store, 4, {"a": WANT}, renews=True)
    assert (answer.is_known, answer.leases["a"].concurrency) == (False, 0)
    assert (await send(store, "s1", 5, {"a": WANT}))["a"][1] == 2


async def test_a_complete_message_keeps_the_leases_that_it_names_as_kept(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    await send(store, "s1", 0, {"a": WANT, "b": WANT._replace(idle_limit=LIMIT)})
    answer = await store.exchange(Message("s1", 1, {}, True, b"", ("b",)))
    assert answer.rows == 1
    records = (await store.read()).records
    assert (records["a"].held.concurrency, records["b"].held.concurrency) == (0, 2)


async def test_the_last_request_of_an_entitlement_drops_its_row(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    await send(store, "s1", 0, {"a": WANT})
    answer = await part(store, 1, {"a": LeaseRequest(tokens_spent=30, is_last=True)})
    assert answer.rows == 0
    record = (await store.read()).records["a"]
    assert (record.held, record.level) == (Amount(), 170)


async def test_an_entitlement_without_a_published_limit_has_the_one_that_follows_from_the_terms(
    kept: tuple[Store, Clock],
) -> None:
    store, _ = kept
    answer = await store.exchange(Message("s1", 0, {"b": WANT._replace(idle_limit=LIMIT)}))
    assert answer.terms == TERMS
    assert answer.leases["b"].limit == LIMIT
    assert answer.leases["b"].concurrency == 2
    assert await store.publish({"a": LIMIT, "b": Limit(100, 1000, 1, 200)}, TERMS, 1)
    answer = await part(store, 1, {"b": WANT._replace(idle_limit=LIMIT)})
    assert answer.leases["b"].limit.concurrency == 1


async def test_a_snapshot_has_the_sums_over_all_holders(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    said = WANT._replace(demand=(1, 2, 3), fresh=(7, 8, 9), floor=(10, 11, 12))
    await send(store, "s1", 0, {"a": said})
    await send(store, "s2", 0, {"a": said})
    await send(store, "s2", 1, {"a": said._replace(tokens_spent=5, kv_seconds=6, concurrency_seconds=7)})
    snapshot = await store.read()
    assert snapshot.is_open
    assert snapshot.records["a"].served == Amount(5, 6, 7)
    assert snapshot.epoch == 1
    assert snapshot.reports == {"s1": b"\xffreport", "s2": b"\xffreport"}
    record = snapshot.records["a"]
    assert record.limit == LIMIT
    assert record.demand == Amount(2, 4, 6)
    assert record.fresh == Amount(14, 16, 18)
    assert record.floor == Amount(10, 11, 12)
    assert record.held == Amount(100, 400, 4)


async def test_a_long_list_of_limits_is_replaced_as_a_whole(kept: tuple[Store, Clock]) -> None:
    store, _ = kept
    many = {f"e{number}": LIMIT for number in range(250)}
    assert await store.publish(many, TERMS, 2)
    assert set((await store.read()).records) == set(many)
    assert await store.limits() == (many, TERMS)
    assert await store.publish({"a": LIMIT}, TERMS, 2)
    assert set((await store.read()).records) == {"a"}


amounts = st.integers(0, 6)
messages = st.fixed_dictionaries(
    {},
    optional={
        name: st.builds(
            lambda runs, bound, wanted, spent, free_tokens, tokens, urgent, is_last, limit: LeaseRequest(
                *(runs * 50.0, runs, bound * 50.0, bound, wanted * 50.0, wanted),
                *(float(spent), float(tokens), urgent),
                demand=(float(spent), wanted * 50.0, wanted),
                floor=(float(tokens), 50.0, runs),
                is_last=is_last,
                idle_limit=limit,
                tokens_borrowed=float(free_tokens),
            ),
            amounts,
            amounts,
            amounts,
            st.integers(0, 300),
            st.integers(0, 300),
            st.integers(0, 300),
            st.booleans(),
            st.booleans(),
            st.sampled_from([NO_LIMIT, LIMIT]),
        )
        for name in ("a", "b", "c")
    },
)
rooms = st.builds(
    lambda units, less, spent, address: ReplicaRoom(units * 50.0, units - less, float(spent), address),
    amounts,
    amounts,
    st.integers(0, 300),
    st.sampled_from(["", "h:1", "h:2"]),
)
limits = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.builds(
        lambda rate, units: Limit(float(rate), units * 50.0, float(units), rate + 50.0),
        st.integers(0, 200),
        st.integers(0, 8),
    ),
)
calls = st.one_of(
    st.tuples(st.just("publish"), limits, st.just(TERMS), st.integers(1, 3)),
    st.tuples(st.just("read")),
    st.tuples(st.just("publish_scale_hint"), st.binary(max_size=3), st.integers(1, 3)),
    st.tuples(st.just("scale_hint")),
    st.tuples(st.just("publish_prices"), st.sampled_from(["s1", "s2"]), st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("prices")),
    st.tuples(st.just("secret"), st.sampled_from([b"k", b"l"])),
    st.builds(
        lambda holder, number, lease_requests, kind, kept, room: (
            "exchange",
            Message(holder, number, lease_requests, kind == "whole", b"", kept, kind == "renewal", room),
        ),
        st.sampled_from(["s1", "s2", "s3"]),
        st.integers(0, 30),
        messages,
        st.sampled_from(["whole", "renewal", "part"]),
        st.sampled_from([(), ("a",), ("b", "c")]),
        st.none() | rooms,
    ),
)
scripts = st.lists(st.tuples(st.sampled_from([0.0, 0.125, 0.5, 2.0, 61.0]), calls), max_size=25)


@pytest.fixture(scope="module")
def runner(server: int) -> Iterator[tuple[asyncio.Runner, redis.asyncio.Redis]]:
    """A loop and a client for all examples."""
    with asyncio.Runner() as made:
        client = redis.asyncio.Redis(port=server)
        yield made, client
        made.run(client.aclose())


@given(script=scripts)
def test_both_stores_give_the_same_answers(
    runner: tuple[asyncio.Runner, redis.asyncio.Redis],
    script: list[tuple[float, tuple[object, ...]]],
) -> None:
    async def play() -> None:
        clock = Clock()
        memory = MemoryStore(LIFETIME, clock)
        stored = RedisStore(runner[1], next(pools), LIFETIME, clock)
        for store in (memory, stored):
            await store.publish({"a": LIMIT}, TERMS, 1)
        for wait, (method, *arguments) in script:
            clock.now += wait
            one, other = [await getattr(store, str(method))(*arguments) for store in (memory, stored)]
            assert numbers(other) == pytest.approx(numbers(one), abs=1e-6)

    runner[0].run(play())


leads = st.one_of(
    calls,
    st.tuples(st.just("lead"), limits),
    st.tuples(st.just("follow"), limits),
    st.tuples(st.just("lose"), st.sampled_from(["*", "meta"])),
)


@given(script=st.lists(st.tuples(st.sampled_from([0.0, 0.125, 0.5, 2.0]), leads), max_size=25))
def test_a_leader_that_reads_and_writes_changes_knows_what_a_whole_read_shows(
    runner: tuple[asyncio.Runner, redis.asyncio.Redis],
    script: list[tuple[float, tuple[object, ...]]],
) -> None:
    """Level and floor may be of an earlier read. Other coordinators write, and the store loses content."""

    async def play() -> None:
        clock, pool, epoch = Clock(), next(pools), 1
        leader, other = (RedisStore(runner[1], pool, LIFETIME, clock) for _ in range(2))
        await leader.publish({"a": LIMIT}, TERMS, epoch)
        for wait, (method, *arguments) in script:
            clock.now += wait
            if method == "lose":
                for key in await runner[1].keys(f"tokenpool:{{{pool}}}:{arguments[0]}"):
                    await runner[1].delete(key)
            elif method in ("lead", "follow", "publish"):
                writer = leader if method == "lead" else other
                epoch += method != "lead"
                published = dict(arguments[0])  # type: ignore[call-overload]
                assert await writer.publish(published, TERMS, epoch, whole=False)
                assert await other.limits() == (published, TERMS)
            elif method == "exchange":
                await other.exchange(arguments[0])  # type: ignore[arg-type]
            known, whole = await leader.read(whole=False), await other.read()
            assert (known.epoch, known.is_open, known.at) == (whole.epoch, whole.is_open, whole.at)
            assert {name: lasting(each) for name, each in known.records.items()} == {
                name: lasting(each) for name, each in whole.records.items()
            }

    runner[0].run(play())


async def test_limits_that_redis_has_lost_are_all_published_again(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    pool = next(pools)
    store = RedisStore(client, pool, LIFETIME)
    published = {"a": LIMIT, "b": LIMIT}
    await store.publish(published, TERMS, 1)
    await client.delete(f"tokenpool:{{{pool}}}:limits")
    assert await store.publish(published, TERMS, 1, whole=False)
    assert await store.limits() == (published, TERMS)
    await store.close()


async def test_a_publication_of_changes_sends_them_alone(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    store = RedisStore(client, next(pools), LIFETIME)
    many = {f"tenant-{number}": LIMIT for number in range(500)}
    await store.publish(many, TERMS, 1)

    async def sent(limits: dict[str, Limit]) -> int:
        before = (await client.info("stats"))["total_net_input_bytes"]
        assert await store.publish(limits, TERMS, 1, whole=False)
        return int((await client.info("stats"))["total_net_input_bytes"] - before)

    assert await sent(many) < 2000
    many["tenant-7"] = NO_LIMIT
    assert await sent(many) < 2000
    assert await store.limits() == (many, TERMS)
    await store.close()


def lasting(record: EntitlementRecord) -> EntitlementRecord:
    """The fields of a record that change only when it is written."""
    return msgspec.structs.replace(record, level=0.0, floor=NOTHING)


def numbers(answer: object) -> dict[str, float]:
    """All numbers of an answer, in one flat mapping."""
    flat: dict[str, float] = {}
    if isinstance(answer, Answer):
        flat |= {"open": answer.is_open, "sidecars": answer.sidecars, "rows": answer.rows}
        flat |= {"known": answer.is_known, "pool": sum(answer.terms.headroom)}
        flat |= {f"free {i}": value for i, value in enumerate(answer.free)}
        for peer in answer.peers:  # fewer than ``MOST_PEERS`` here, so every store names all of them
            flat |= {f"{peer.name} {peer.address}": peer.sequences, f"{peer.name} cache": peer.kv_tokens}
        for name, lease in answer.leases.items():
            values = msgspec.to_builtins(lease)
            flat |= {f"{name} {i}": value for i, value in enumerate((*values[:3], *values[4:], *values[3]))}
    elif isinstance(answer, PoolSnapshot):
        flat |= {"epoch": answer.epoch, "open": answer.is_open, "reports": len(answer.reports)}
        for name, record in answer.records.items():
            flat[f"{name} level"] = record.level
            for what in ("held", "in_use", "demand", "served", "fresh", "floor"):
                amount = getattr(record, what)
                for dimension in Dimension:
                    flat[f"{name} {what} {dimension}"] = amount.get(dimension)
    elif isinstance(answer, StoredScaleHint):
        flat |= {"at": answer.at, "age": answer.age_s, "content": int.from_bytes(b"\1" + answer.content)}
    else:
        flat["answer"] = bool(answer)
    return flat


async def test_every_key_expires_and_lies_in_one_slot(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    await client.flushdb()
    store = RedisStore(client, "mine", LIFETIME)
    await store.publish({"a": LIMIT}, TERMS, 1)
    await store.publish_file("v", b"x", 1)
    await store.lead("one", 10)
    await store.lead("two", 10)
    await store.publish_scale_hint(b"hint", await store.lead("one", 10))
    await store.publish_prices("s1", b"prices")
    await store.secret(b"secret")
    await send(store, "s1", 0, {"a": WANT, "b": WANT})
    later = Message("s1", 1, {}, is_complete=False, room=ReplicaRoom(1000, 8, 0, "10.0.0.1:4000"))
    await store.exchange(later)
    keys = [key async for key in client.scan_iter()]
    assert len(keys) >= 5
    assert all(key.startswith(b"tokenpool:{mine}:") for key in keys)
    left = {key: await client.pttl(key) for key in keys}
    assert all(0 < ms <= 720_000 for ms in left.values())
    records, rows = left[b"tokenpool:{mine}:records"], left[b"tokenpool:{mine}:rows:a"]
    assert rows - records > 60_000  # records are renewed each minute, and never later than rows
    await store.close()


async def test_a_message_that_changes_nothing_leaves_no_key_that_never_expires(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    await client.flushdb()
    store = RedisStore(client, "mine", LIFETIME)
    await part(store, 0, {}, renews=True)
    await store.exchange(Message("s2", -1, {}, room=room_of(2)))
    assert {
        key: await client.pttl(key) async for key in client.scan_iter() if await client.pttl(key) < 0
    } == {}
    await store.close()


async def test_the_secret_is_renewed_with_each_read_and_replaced_once_lost(
    server: int,
) -> None:
    client = redis.asyncio.Redis(port=server)
    await client.flushdb()
    one, other = RedisStore(client, "mine", LIFETIME), RedisStore(client, "other", LIFETIME)
    assert await one.secret(b"first") == b"first"
    assert await other.secret(b"of another pool") == b"of another pool"
    (key,) = [key async for key in client.scan_iter("tokenpool:{mine}:*")]
    await client.pexpire(key, 1000)
    assert await one.secret(b"second") == b"first"
    assert await client.pttl(key) > 60_000
    await client.delete(key)
    assert await one.secret(b"third") == b"third"
    await one.close()
    await other.close()


async def test_the_rows_of_a_lost_record_are_removed(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    await client.flushdb()
    store = RedisStore(client, "gone", LIFETIME)
    await store.publish({"a": LIMIT}, TERMS, 1)
    await send(store, "s1", 0, {"a": LeaseRequest(100, 1, 100, 1, 200, 2)})
    await client.hdel("tokenpool:{gone}:records", "a")
    await send(store, "s2", 0, {"a": LeaseRequest(100, 1, 100, 1, 200, 2)})
    await send(store, "s1", 1, {})
    assert (await store.read()).records["a"].held.values()[1:] == (100, 1)
    await store.close()


async def test_limits_are_readable_once_all_of_them_are_written(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    await client.flushdb()
    store = RedisStore(client, "part", LIFETIME)
    await store.publish({f"e{n}": LIMIT for n in range(250)}, TERMS, 1)
    assert len((await store.limits())[0]) == 250
    await client.hdel("tokenpool:{part}:meta", "complete")  # as after a coordinator's end between two parts
    assert await store.limits() == ({}, IdleTerms())
    await store.close()


async def test_a_store_that_does_not_answer_raises_an_error(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "secret") as (port, process):
        refused = RedisStore(redis.asyncio.Redis(port=port), "p", LIFETIME)
        with pytest.raises(StoreDown, match=r"(?i)authenticat"):
            await refused.publish({}, TERMS, 1)
        client = redis.asyncio.Redis(port=port, password="secret", socket_timeout=0.2, retry=None)
        store = RedisStore(client, "p", LIFETIME)
        assert await store.publish({"a": LIMIT}, TERMS, 1)
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(StoreDown):
            await send(store, "s1", 0, {"a": WANT})
        os.kill(process, signal.SIGCONT)
    with pytest.raises(StoreDown):
        await send(store, "s1", 1, {"a": WANT})
    await store.close()
    await refused.close()


async def test_a_server_that_restarts_empty_is_used_at_once(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (port, _):
        store = RedisStore(redis.asyncio.Redis(port=port), "p", 0.01)
        await store.publish({"a": LIMIT}, TERMS, 1)
    with redis_server(tmp_path, port=port):
        assert (await send(store, "s1", 1, {"a": LeaseRequest(100, 1, 100, 1, 200, 2)}))["a"] == (0, 0, 0)
        assert (await store.read()).records["a"].held == Amount(0, 100, 1)
        assert await store.publish({"a": LIMIT}, TERMS, 1)
    await store.close()


async def test_content_that_cannot_be_decoded_is_reported(server: int) -> None:
    client = redis.asyncio.Redis(port=server)
    store = RedisStore(client, "odd", LIFETIME)
    await store.publish({"a": LIMIT}, TERMS, 1)
    await client.hset("tokenpool:{odd}:limits", "a", b"\xc1")
    with pytest.raises(StoreDown, match="another version"):
        await store.limits()
    await client.hset("tokenpool:{odd}:records", "a", b"\xc1")
    with pytest.raises(StoreDown):
        await send(store, "s1", 0, {"a": WANT})
    with pytest.raises(StoreDown, match="another version"):
        await store.read()
    await store.close()
