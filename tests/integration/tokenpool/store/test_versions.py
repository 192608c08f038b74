"""Two versions on one Redis: clients with the scripts of another version beside clients of this one.

The other version is version 1, or a later one that writes one more column of each positional record.

They write the same rows. So a column that only one of them knows must not break the other. The sum of what
both hold never exceeds the limit.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.tokenpool.store.servers import redis_server
from tests.support import formats
from tokenpool.leases.messages import LeaseRequest, Limit, Message, ReplicaRoom
from tokenpool.leases.row_layout import Layout
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import scripts
from tokenpool.store.redis import RedisStore
from tokenpool.store.redis_client import RedisClient
from tokenpool.store.scripts import Script

TERMS = IdleTerms((50.0, 500.0, 2.0), (100.0, 1000.0, 4.0))
LIMIT = Limit(100, 1000, 4, 200)
LIFETIME_S = 1.0
ASK = LeaseRequest(concurrency_wanted=3, kv_wanted=700, tokens_wanted=5)


def former(script: Script, text: str) -> Script:
    """A script with the text of another version."""
    made = copy.copy(script)
    made.text, made.digest = text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return made


FORMER = {
    script: former(script, text)
    for name, text in formats.golden_texts().items()
    if (script := getattr(scripts, name))
}
"""The script of version 1 by the current one."""


POSITIONAL = ("ROW", "LIMIT", "LEASE", "ROOM", "PEER", "TERMS", "ANSWER", "SNAPSHOT")
"""The records that scripts write. A later version may add a column to each."""
LATER = {
    script: Script(
        name.lower(),
        only_reads=script.only_reads,
        layouts=[
            Layout(each.prefix, (*each.columns, "of_a_later_version")) if each.prefix in POSITIONAL else each
            for each in scripts.SCRIPT_LAYOUTS
        ],
    )
    for name, script in vars(scripts).items()
    if isinstance(script, Script)
}
"""The scripts of a later version, which writes one more column of each record."""
OTHERS = {"former": FORMER, "later": LATER}


class OtherClient(RedisClient):
    """Runs the scripts of another version."""

    def __init__(self, port: int, version: str) -> None:
        super().__init__(redis.asyncio.Redis(port=port))
        self._scripts = OTHERS[version]

    async def run(self, script: Script, key: str, *arguments: bytes) -> Any:
        return await super().run(self._scripts[script], key, *arguments)


@pytest.fixture(params=OTHERS)
def version(request: pytest.FixtureRequest) -> str:
    """The other version of a test."""
    made: str = request.param
    return made


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis")) as (port, _):
        yield port


pools = (f"p{number}" for number in itertools.count())


class Mixed:
    """Stores of one pool: ``old`` runs the scripts of another version, ``new`` the current ones."""

    def __init__(self, port: int, version: str) -> None:
        self.now = 1000.0
        pool = next(pools)
        self.old, self.new = (
            RedisStore(redis.asyncio.Redis(port=port), pool, LIFETIME_S, lambda: self.now) for _ in range(2)
        )
        self.old.client = OtherClient(port, version)
        self._numbers = itertools.count()

    @property
    def both(self) -> tuple[RedisStore, RedisStore]:
        return self.old, self.new

    async def held(self, store: RedisStore, holder: str, ask: LeaseRequest = ASK) -> float:
        """Send a message of a holder, and return the sequences of its lease."""
        message = Message(holder, next(self._numbers), {"a": ask}, report=b"r", room=ReplicaRoom(10.0, 2.0))
        return (await store.exchange(message)).leases["a"].concurrency

    async def opened(self, *holders: tuple[RedisStore, str]) -> None:
        """Let these holders join: a new store grants nothing in its first lifetime."""
        for store, holder in holders:
            await self.held(store, holder, LeaseRequest())
        self.now += LIFETIME_S * 0.9
        for store, holder in holders:
            await self.held(store, holder, LeaseRequest())
        self.now += LIFETIME_S * 0.2

    async def close(self) -> None:
        for store in self.both:
            await store.close()


def with_mixed(port: int, version: str, work: Callable[[Mixed], Awaitable[None]]) -> None:
    """Run work on a new pool."""

    async def run() -> None:
        mixed = Mixed(port, version)
        try:
            await work(mixed)
        finally:
            await mixed.close()

    asyncio.run(run())


@pytest.mark.parametrize("leads", ["old", "new"])
def test_sidecars_of_both_versions_share_a_limit(port: int, version: str, leads: str) -> None:
    async def work(mixed: Mixed) -> None:
        assert await getattr(mixed, leads).publish({"a": LIMIT}, TERMS, 1)
        await mixed.opened((mixed.old, "s-old"), (mixed.new, "s-new"))
        assert await mixed.held(mixed.old, "s-old") == 3
        assert await mixed.held(mixed.new, "s-new") == 1
        for store in mixed.both:
            assert await store.limits() == ({"a": LIMIT}, TERMS)
            snapshot = await store.read()
            assert snapshot.reports.keys() == {"s-old", "s-new"}
            assert snapshot.records["a"].held.concurrency == 4
        assert await mixed.held(mixed.old, "s-old", LeaseRequest()) == 0
        assert await mixed.held(mixed.new, "s-new") == 3

    with_mixed(port, version, work)


def test_a_coordinator_of_each_version_takes_over_from_the_other(port: int, version: str) -> None:
    async def work(mixed: Mixed) -> None:
        epochs = []
        for number, store in enumerate((mixed.old, mixed.new, mixed.old)):
            epoch = await store.lead(f"c{number}", 1.0)
            epochs.append(epoch)
            assert await store.publish({"a": LIMIT}, TERMS, epoch)
            assert await store.publish_file("v", b"content", epoch)
            assert await store.publish_scale_hint(b"hint", epoch) is not None
            for reader in mixed.both:
                assert await reader.file() == ("v", b"content")
                hint = await reader.scale_hint()
                assert hint is not None
                assert hint.content == b"hint"
                assert await reader.lead("another", 1.0) == 0
            await store.resign(f"c{number}")
        assert epochs == sorted(set(epochs))
        assert not await mixed.new.publish({}, TERMS, epochs[0])  # a former epoch is fenced across versions

    with_mixed(port, version, work)


def test_secrets_and_prices_are_shared(port: int, version: str) -> None:
    async def work(mixed: Mixed) -> None:
        secret = await mixed.old.secret(b"first")
        assert await mixed.new.secret(b"second") == secret == b"first"
        await mixed.old.publish_prices("s-old", b"1")
        await mixed.new.publish_prices("s-new", b"2")
        for store in mixed.both:
            assert await store.prices() == {"s-old": b"1", "s-new": b"2"}

    with_mixed(port, version, work)


def test_peers_of_both_versions_see_each_other(port: int, version: str) -> None:
    async def work(mixed: Mixed) -> None:
        for number in range(2):
            for store, holder in ((mixed.old, "s-old"), (mixed.new, "s-new")):
                room = ReplicaRoom(1000.0, 2.0, 0.0, f"{holder}:1")
                answer = await store.exchange(Message(holder, number, {}, report=b"r", room=room))
                if number:
                    other = "s-new" if holder == "s-old" else "s-old"
                    assert [(peer.name, peer.address) for peer in answer.peers] == [(other, f"{other}:1")]

    with_mixed(port, version, work)


STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 5), st.booleans(), st.floats(0, 0.4)),
    max_size=25,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_what_both_versions_hold_never_exceeds_the_limit(
    port: int, version: str, steps: list[tuple[bool, int, int, bool, float]]
) -> None:
    """Each step: whether the old version sends, for which holder, the wanted sequences, and what passes."""

    async def work(mixed: Mixed) -> None:
        await mixed.new.publish({"a": LIMIT}, TERMS, 1)
        await mixed.opened((mixed.old, "h0"), (mixed.new, "h1"))
        for is_old, holder, wanted, is_last, passed in steps:
            ask = LeaseRequest(concurrency_wanted=wanted, kv_wanted=100.0 * wanted, is_last=is_last)
            # A sidecar may be replaced by one of the other version under the same id.
            await mixed.held(mixed.old if is_old else mixed.new, f"h{holder}", ask)
            mixed.now += passed
            views = [(await store.read()).records["a"] for store in mixed.both]
            assert views[0] == views[1]
            assert views[0].held.concurrency <= LIMIT.concurrency
            assert views[0].held.kv_tokens <= LIMIT.kv_tokens

    with_mixed(port, version, work)


def test_every_script_has_a_former_version() -> None:
    assert formats.texts().keys() - formats.golden_texts().keys() == formats.NEW_SCRIPTS
    assert all(each.text.startswith("local ROW_KV_TOKENS") for each in FORMER.values())
