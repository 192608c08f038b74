"""One contract for quotas in both stores: the same messages at the same times get the same answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest
import pytest_asyncio
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.tokenpool.store.servers import redis_server, served
from tokenpool.quotas.messages import (
    KEEP_RECORD_S,
    REMEMBER_S,
    RESTORE_WITHIN_S,
    QuotaAnswer,
    QuotaMessage,
    QuotaPortion,
    QuotaRequest,
)
from tokenpool.store import Store
from tokenpool.store.memory import MemoryStore
from tokenpool.store.redis import RedisStore

LIFETIME = 1.5
TOKENS = 1000.0
DAY = 86400.0
ASK = QuotaRequest("entitlement/day/UTC/gold", 2000.0, 2000.0 + DAY, TOKENS)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kept(NamedTuple):
    store: Store
    clock: Clock

    async def send(self, holder: str, number: int, *requests: QuotaRequest) -> QuotaAnswer:
        return await self.store.exchange_quotas(QuotaMessage(holder, number, requests))

    async def portion(self, holder: str, number: int, request: QuotaRequest) -> QuotaPortion:
        [found] = (await self.send(holder, number, request)).portions
        return found

    async def wait(self, seconds: float, *holders: str) -> None:
        """Let time pass, while these holders keep their portions."""
        end = self.clock.now + seconds
        for number in itertools.count(10_000):
            for holder in holders:
                await self.send(holder, number)
            if self.clock.now >= end:
                return
            self.clock.now = min(self.clock.now + LIFETIME / 3, end)


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
async def kept(request: pytest.FixtureRequest, server: int, local: AsyncExitStack) -> AsyncIterator[Kept]:
    clock = Clock()
    store: Store
    if request.param == "memory":
        store = MemoryStore(LIFETIME, clock)
    elif request.param == "local":
        store = await local.enter_async_context(served(MemoryStore(LIFETIME, clock)))
    else:
        store = RedisStore(redis.asyncio.Redis(port=server), next(pools), LIFETIME, clock)
    await store.exchange_quotas(QuotaMessage("first", 0))
    clock.now = 2000.0
    yield Kept(store, clock)
    await store.close()


def asks(wanted: float, *, settled: float = 0.0, held: float = 0.0, needed: float = 0.0) -> QuotaRequest:
    return ASK._replace(settled=settled, held=held, needed=max(needed, settled + held), wanted=wanted)


async def test_portions_shrink_as_the_quota_nears_its_end(kept: Kept) -> None:
    portions = []
    for number in range(8):
        portions.append(await kept.portion(f"s{number}", 1, asks(9999)))

    granted = [each.portion for each in portions]
    assert granted[:3] == [500, 125, pytest.approx(62.5)]  # half of the rest, then by twice the holders
    assert granted == sorted(granted, reverse=True)
    assert sum(granted) + portions[-1].free == pytest.approx(TOKENS)
    assert portions[-1].holders == 8


async def test_waiting_requests_get_more_than_the_fair_part(kept: Kept) -> None:
    await kept.portion("s1", 1, asks(400))
    found = await kept.portion("s2", 1, asks(600, needed=600))
    assert (found.portion, found.free, found.is_open) == (600, 0, True)


async def test_spending_is_exact_and_unused_portions_are_returned(kept: Kept) -> None:
    await kept.portion("s1", 1, asks(500))
    await kept.portion("s1", 2, asks(500, settled=300, held=100))
    found = await kept.portion("s1", 3, asks(320, settled=320))
    assert (found.portion, found.spent, found.free) == (320, 320, 680)


async def test_use_beyond_a_portion_is_counted(kept: Kept) -> None:
    await kept.portion("s1", 1, asks(500))
    found = await kept.portion("s1", 2, asks(500, settled=1100))
    assert (found.portion, found.spent, found.free) == (1100, 1100, -100)
    assert (await kept.portion("s2", 1, asks(50, needed=50))).portion == 0


async def test_an_older_message_changes_nothing(kept: Kept) -> None:
    await kept.portion("s1", 2, asks(400, settled=200))
    assert (await kept.portion("s1", 1, asks(100, settled=100))).portion == 400
    assert (await kept.portion("s1", 1, asks(100, settled=100))).spent == 200


async def test_a_silent_holder_loses_its_unused_portion_only(kept: Kept) -> None:
    await kept.portion("s1", 1, asks(400, settled=100, held=50))
    kept.clock.now += LIFETIME
    found = await kept.portion("s2", 1, asks(9999, needed=9999))
    assert (found.portion, found.spent, found.free) == (850, 100, 0)


async def test_the_rows_of_a_holder_end_in_parts(server: int) -> None:
    """20,000 rows at once would keep Redis busy for more than a second."""
    client, clock, pool, rows = redis.asyncio.Redis(port=server), Clock(), next(pools), 450
    kept = Kept(RedisStore(client, pool, LIFETIME, clock), clock)
    await kept.send("first", 0)
    clock.now = 2000.0
    requests = [asks(50, settled=5)._replace(key=f"entitlement/day/UTC/t{n}") for n in range(rows)]
    await kept.send("s", 1, *requests)
    prefix = f"tokenpool:{{{pool}}}"

    async def unused() -> int:
        return sum(1 for state in await kept.store.quotas() if state.portions > 0)

    async def left(kind: str) -> int:
        return int(await client.scard(f"{prefix}:{kind}:s"))  # type: ignore[misc]

    clock.now += LIFETIME + 1
    await kept.send("other", 1)
    assert (await left("quota_ending"), await left("quota_names")) == (rows - 200, 200)
    for number in range(2, 5):
        await kept.send("other", number)
    assert (await left("quota_ending"), await left("quota_names")) == (0, rows)
    assert await unused() == 0

    await kept.wait(REMEMBER_S, "other")
    assert (await left("quota_folding"), await left("quota_names")) == (0, 0)
    assert {state.spent for state in await kept.store.quotas()} == {5.0}
    assert not [key async for key in client.scan_iter(f"{prefix}:quota*:s")]
    await kept.store.close()


async def test_a_holder_that_returns_while_its_rows_end_keeps_them(server: int) -> None:
    client, clock, pool = redis.asyncio.Redis(port=server), Clock(), next(pools)
    kept = Kept(RedisStore(client, pool, LIFETIME, clock), clock)
    await kept.send("first", 0)
    clock.now = 2000.0
    requests = [asks(50, settled=5)._replace(key=f"entitlement/day/UTC/t{n}") for n in range(450)]
    await kept.send("s", 1, *requests)
    clock.now += LIFETIME + 1
    await kept.send("other", 1)

    await kept.send("s", 2)

    prefix = f"tokenpool:{{{pool}}}:quota"
    assert await client.scard(f"{prefix}_names:s") == 450  # type: ignore[misc]
    assert not await client.exists(f"{prefix}_ending:s", f"{prefix}_ending")
    assert {state.spent for state in await kept.store.quotas()} == {5.0}
    await kept.store.close()


async def test_a_holder_forgets_windows_that_have_ended(server: int) -> None:
    """A sidecar that lives for months would otherwise name all windows since its start."""
    client, clock, pool = redis.asyncio.Redis(port=server), Clock(), next(pools)
    kept = Kept(RedisStore(client, pool, LIFETIME, clock), clock)
    await kept.send("first", 0)
    clock.now = 2000.0
    for hour in range(3):
        await kept.send("s", hour, ASK._replace(start=clock.now, end=clock.now + 3600.0))
        clock.now += 3600.0

    clock.now += KEEP_RECORD_S
    await kept.send("s", 10)

    assert await client.scard(f"tokenpool:{{{pool}}}:quota_names:s") == 0  # type: ignore[misc]
    await kept.store.close()


async def test_a_holder_that_returns_is_not_counted_twice(kept: Kept) -> None:
    first = await kept.portion("s1", 1, asks(400, settled=100, held=50))
    await kept.wait(LIFETIME + REMEMBER_S + 1, "s2")
    known = asks(180, settled=180)._replace(born=first.born, counted=150, portion=400)
    found = await kept.portion("s1", 2, known)
    assert (found.portion, found.spent, found.free) == (180, 180, TOKENS - 180)


async def test_a_holder_without_memory_is_another_one(kept: Kept) -> None:
    await kept.portion("s1", 1, asks(100, settled=100))
    await kept.wait(LIFETIME + REMEMBER_S + 1, "s2")
    assert (await kept.portion("s3", 1, asks(10, settled=10))).spent == 110


async def test_each_level_is_reported_once(kept: Kept) -> None:
    seen = [
        (await kept.portion(holder, number, asks(tokens, settled=tokens))).crossed
        for number, (holder, tokens) in enumerate(
            [("s1", 790), ("s1", 800), ("s2", 10), ("s2", 145), ("s2", 150), ("s1", 900), ("s1", 901)]
        )
    ]
    assert seen == [0, 80, 0, 0, 95, 100, 0]


async def test_windows_and_budgets_are_apart(kept: Kept) -> None:
    await kept.portion("s1", 1, asks(400, settled=400))
    tomorrow = asks(100)._replace(start=ASK.end, end=ASK.end + DAY)
    other = asks(100)._replace(key="entitlement/day/UTC/silver")
    answer = await kept.send("s1", 2, tomorrow, other)
    assert [(each.spent, each.portion) for each in answer.portions] == [(0, 100), (0, 100)]
    assert (answer.at, answer.since) == (2000, 1000)
    states = {(each.key, each.start): each for each in await kept.store.quotas()}
    assert len(states) == 3
    state = states[ASK.key, ASK.start]
    assert (state.spent, state.portions, state.tokens, state.end) == (400, 0, TOKENS, ASK.end)
    kept.clock.now = ASK.end
    assert {(each.key, each.start) for each in await kept.store.quotas()} == {(ASK.key, ASK.end)}
    kept.clock.now += KEEP_RECORD_S
    assert (await kept.portion("s1", 3, asks(400, settled=400))).holders == 1


async def test_more_states_than_one_page(kept: Kept) -> None:
    requests = [asks(1)._replace(key=f"entitlement/day/UTC/{number}") for number in range(250)]
    await kept.send("s1", 1, *requests)
    assert {each.key for each in await kept.store.quotas()} == {each.key for each in requests}


async def test_a_changed_quota_applies_to_what_was_spent(kept: Kept) -> None:
    await kept.portion("s1", 1, asks(400, settled=400))
    assert (await kept.portion("s2", 1, asks(10, needed=10)._replace(tokens=300))).portion == 0
    assert (await kept.portion("s2", 2, asks(10, needed=10)._replace(tokens=500))).portion == 10


EARLY = asks(500, needed=500)._replace(start=500.0, end=500.0 + DAY)
"""A request for a window that had begun before the store kept quotas."""


async def test_a_window_that_had_begun_is_restored_before_anyone_spends_more(kept: Kept) -> None:
    kept.clock.now = 1000.0  # the store is new
    assert (await kept.portion("s1", 1, EARLY)).portion == 0
    assert not await kept.store.restore_quota(ASK.key, 500.0, 700.0), "not all sidecars have stated"
    [state] = await kept.store.quotas()
    assert (state.is_restored, state.may_restore) == (False, False)
    await kept.wait(LIFETIME, "s1")
    [state] = await kept.store.quotas()
    assert (state.is_restored, state.may_restore) == (False, True)
    closed = await kept.portion("s1", 20_000, EARLY)
    assert (closed.portion, closed.is_open) == (0, False)

    assert await kept.store.restore_quota(ASK.key, 500.0, 700.0)

    found = await kept.portion("s1", 20_001, EARLY)
    assert (found.portion, found.spent, found.is_open) == (300, 700, True)
    [state] = await kept.store.quotas()
    assert state.is_restored
    assert not await kept.store.restore_quota("entitlement/day/UTC/unknown", 500.0, 1.0)


async def test_the_first_use_of_a_quota_is_restored_at_once_in_an_old_store(kept: Kept) -> None:
    assert (await kept.portion("s1", 1, EARLY)).portion == 0
    [state] = await kept.store.quotas()
    assert (state.is_restored, state.may_restore) == (False, True)
    assert await kept.store.restore_quota(ASK.key, 500.0, 700.0)
    assert (await kept.portion("s1", 2, EARLY)).portion == 300


async def test_what_sidecars_state_themselves_is_not_restored_twice(kept: Kept) -> None:
    live = EARLY._replace(settled=250.0, held=50.0, portion=400.0, needed=300.0, wanted=400.0, born=7.0)
    found = await kept.portion("s1", 1, live)
    assert (found.portion, found.is_open) == (400, False), "a portion of the lost store stays"
    await kept.wait(LIFETIME, "s1")
    assert await kept.store.restore_quota(ASK.key, 500.0, 600.0)
    found = await kept.portion("s2", 1, EARLY)
    assert (found.spent, found.portion) == (600, 1000 - 350 - 400)


async def test_a_reserve_that_is_claimed_before_the_store_opens_is_granted_to_nobody_else(kept: Kept) -> None:
    live = EARLY._replace(settled=200.0, portion=300.0, needed=200.0, wanted=300.0, born=7.0)
    first = await kept.portion("s1", 1, live)
    claim = live._replace(portion=450.0, wanted=450.0, born=first.born, counted=200.0)
    assert (await kept.portion("s1", 2, claim)).portion == 450
    await kept.wait(LIFETIME, "s1")
    assert await kept.store.restore_quota(ASK.key, 500.0, 0.0)
    assert (await kept.portion("s2", 1, EARLY._replace(needed=900.0, wanted=900.0))).portion == 550


async def test_a_holder_that_states_its_spending_late_finds_it_restored(kept: Kept) -> None:
    await kept.portion("s1", 1, EARLY)
    await kept.wait(LIFETIME, "s1")
    assert await kept.store.restore_quota(ASK.key, 500.0, 600.0)
    late = EARLY._replace(settled=450.0, held=20.0, portion=470.0, needed=470.0, wanted=470.0, born=7.0)
    found = await kept.portion("s2", 1, late)
    assert (found.spent, found.portion) == (600, 470)
    later = late._replace(settled=480.0, held=0.0, born=found.born, counted=470.0)
    found = await kept.portion("s2", 2, later)
    assert (found.spent, found.portion) == (630, 480)


async def test_less_usage_than_the_sidecars_state_lowers_nothing(kept: Kept) -> None:
    await kept.portion("s1", 1, EARLY._replace(settled=250.0, needed=250.0, wanted=250.0))
    await kept.wait(LIFETIME, "s1")
    assert await kept.store.restore_quota(ASK.key, 500.0, 100.0)
    assert (await kept.portion("s2", 1, EARLY)).spent == 250


async def test_without_a_coordinator_quotas_are_granted_after_a_time(kept: Kept) -> None:
    await kept.portion("s1", 1, EARLY)
    await kept.wait(RESTORE_WITHIN_S, "s1")
    found = await kept.portion("s1", 20_000, EARLY)
    assert (found.portion, found.is_open) == (500, True)


steps = st.lists(
    st.tuples(
        st.sampled_from(["s1", "s2", "s3"]),
        st.floats(0, 400),  # settled since the last message
        st.floats(0, 200),  # held
        st.floats(0, 600),  # wanted beyond that
        st.floats(0, 300),  # needed beyond that
        st.sampled_from([0.0, 0.2, 1.0, 2.0, 70.0]),
        st.booleans(),
    ),
    max_size=25,
)


async def play(kept: Kept, moves: list[tuple[str, float, float, float, float, float, bool]]) -> list[object]:
    """Play some messages. Each holder settles at most what its portion allows, unless it outgrows it."""
    seen: list[object] = []
    settled: dict[str, float] = {}
    last: dict[str, tuple[float, QuotaPortion]] = {}
    for number, (holder, more, held, wanted, needed, pause, is_lost) in enumerate(moves):
        total = settled[holder] = settled.get(holder, 0.0) + more
        counted, known = last.get(holder, (0.0, QuotaPortion()))
        used = total + held
        request = ASK._replace(
            settled=total,
            held=held,
            portion=max(known.portion, used),
            needed=used + needed,
            wanted=used + max(wanted, needed),
            born=known.born,
            counted=counted,
        )
        found = await kept.portion(holder, number, request)
        seen.append(
            [
                round(each, 6)
                for each in (found.portion, found.free, found.spent, found.holders, found.crossed)
            ]
        )
        if not is_lost:
            last[holder] = used, found
        kept.clock.now += pause
    return seen


@settings(max_examples=60, deadline=None)
@given(steps)
def test_both_stores_answer_the_same(
    server: int, moves: list[tuple[str, float, float, float, float, float, bool]]
) -> None:
    async def compare() -> None:
        clock = Clock()
        memory = Kept(MemoryStore(LIFETIME, clock), clock)
        other = Clock()
        real = Kept(RedisStore(redis.asyncio.Redis(port=server), next(pools), LIFETIME, other), other)
        for each in (memory, real):
            await each.send("first", 0)
            each.clock.now = 2000.0
        assert await play(memory, moves) == await play(real, moves)
        await real.store.close()

    asyncio.run(compare())


@settings(max_examples=200, deadline=None)
@given(steps)
def test_what_is_spent_and_leased_never_exceeds_the_quota_by_grants(
    moves: list[tuple[str, float, float, float, float, float, bool]],
) -> None:
    """Only use beyond portions exceeds it: an answer grants nothing while no token is free."""

    async def check() -> None:
        clock = Clock()
        kept = Kept(MemoryStore(LIFETIME, clock), clock)
        await kept.send("first", 0)
        clock.now = 2000.0
        for holder, more, held, wanted, needed, pause, _ in moves:
            number = round(clock.now * 1000)
            found = await kept.portion(
                holder,
                number,
                ASK._replace(
                    settled=more, held=held, needed=more + held + needed, wanted=more + held + wanted
                ),
            )
            assert found.free >= -1e-6 or found.portion <= more + held + 1e-6
            clock.now += pause + 0.001

    asyncio.run(check())
