"""The lease store in Redis: ``tokenpool.leases.reference_store``'s rules as scripts, by Redis' own clock.

All keys of a pool share a hash tag, so they lie in one slot of a cluster, and every key expires. What a
page costs does not depend on the number of its holders: sums are kept beside them. Rows grow at their end
only, and what a reader does not know it ignores, so versions can roll; ``SCHEMA`` is sent with every message,
for the script that must one day tell an older sender.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib import resources
from typing import Any, TypeVar, cast

import msgspec
import redis.asyncio
import redis.exceptions
from msgspec import msgpack

from tokenpool.amounts import Amount
from tokenpool.leases.reference_store import (
    CONTENDED_S,
    FLOOR_MEMORY_S,
    NO_LIMIT,
    REMEMBER_S,
    WAIT_S,
    Answer,
    Census,
    Lease,
    Limit,
    Message,
    Page,
    Push,
    level_of,
)
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import StoreDown, StoredScale

SCHEMA = 1
"""Of messages to the scripts."""
PART = 100
"""Rows in one call of the coordinator, so that no script holds Redis up for long."""

AT_ONCE = 4
"""Such calls under way together, each on a connection of its own."""

QUIET_S = 5.0
"""The silence after which the sidecar sends a ping on a subscription."""
PATIENCE_S = 2.0
"""The longest wait for the answer to the ping."""

OPEN_AGAIN_S = 60.0
"""How long connections that were opened in advance are taken for open."""

_T = TypeVar("_T")
Client = redis.asyncio.Redis | redis.asyncio.RedisCluster


class _Page(msgspec.Struct):
    """A page as it is kept; fields that later versions add are ignored."""

    depth: float
    level: float
    at: float
    floor: list[float]
    sums: list[float]
    served: list[float]


_pages = msgpack.Decoder(_Page)
_answers = msgpack.Decoder(tuple[list[Lease], bool, int, str, float, IdleTerms, bool, int])
_terms = msgpack.Decoder(IdleTerms)
_censuses = msgpack.Decoder(tuple[list[str], float, bool, float, str])
_limit = msgpack.Decoder(Limit)


class _Script:
    """A script, sent whole only where the server does not know it yet."""

    def __init__(self, name: str) -> None:
        folder = resources.files("tokenpool.store")
        self.text = folder.joinpath("lease_store.lua").read_text() + folder.joinpath(name).read_text()
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_EXCHANGE, _PUBLISH, _CENSUS, _PAGES, _LEAD, _FILE = (
    _Script(f"{name}.lua") for name in ("exchange", "publish", "census", "pages", "lead", "publish_file")
)
_SCALE, _PUBLISH_SCALE = _Script("scale.lua"), _Script("publish_scale.lua")


_READ_ONLY = (_CENSUS, _PAGES, _SCALE)


class RedisStore:
    """A store in one Redis.

    After a failed call no connection is used again: the next call connects anew and resolves the name again.
    The kind of the failure does not matter. A replica says READONLY, a full server OOM, one that starts
    LOADING; older servers wrap these words in the error of a script, and a server that hangs says nothing.
    Reads and subscriptions wait until a script has succeeded, because a replica answers them too.

    ``clock`` replaces Redis' clock where a test must own time; ``helpers`` are clients that the client itself
    uses, closed with it.
    """

    def __init__(
        self,
        client: Client,
        pool: str,
        lifetime_s: float,
        clock: Callable[[], float] | None = None,
        helpers: Sequence[Client] = (),
    ) -> None:
        self._client = client
        self._helpers = helpers
        self._prefix = f"tokenpool:{{{pool}}}"
        self._clock = clock
        self.quiet_s, self.patience_s = QUIET_S, PATIENCE_S
        self._generation = 0
        """The number of the current set of connections."""
        self._connected, self._connected_at = -1, 0.0
        """The generation whose connections were opened in advance (-1: none), and when."""
        self._is_down = False
        """Whether the last call failed."""
        self._common = {
            "v": SCHEMA,
            "lifetime": lifetime_s,
            "remember": REMEMBER_S,
            "wait": WAIT_S,
            "contended": CONTENDED_S,
            "floor_memory": FLOOR_MEMORY_S,
        }

    async def connect(self, count: int) -> None:
        """See ``Store``. A handshake takes three round trips, and more with TLS. Not for a cluster's client.

        This is done again after ``OPEN_AGAIN_S``: a server closes idle connections, and the client uses the
        ones that were used last. A failure says nothing here; the next message tells whether Redis is down.
        """
        now, generation = asyncio.get_running_loop().time(), self._generation
        is_fresh = generation == self._connected and now - self._connected_at < OPEN_AGAIN_S
        if is_fresh or self._is_down or not isinstance(self._client, redis.asyncio.Redis):
            return
        self._connected, self._connected_at = generation, now
        # The client gives each concurrent ping a connection of its own.
        await asyncio.gather(*(self._client.ping() for _ in range(count)), return_exceptions=True)

    async def exchange(self, message: Message) -> Answer:
        """See ``Store``."""
        packed = await self._run(
            _EXCHANGE,
            message.report,
            holder=message.holder,
            number=message.number,
            complete=message.is_complete,
            kept=message.kept,
            renews=message.renews,
            holdings=[[name, *said] for name, said in message.holdings.items()],
        )
        with _down():
            rows, is_open, sidecars, version, unled_s, terms, is_known, count = _answers.decode(packed)
            leases = dict(zip(message.holdings, rows, strict=True))
        return Answer(leases, is_open, sidecars, version, unled_s, terms, is_known, count)

    async def listen(self, holder: str) -> AsyncIterator[Push]:
        """See ``Store``. A cluster's client has no subscriptions: there, polling has to do."""
        if not isinstance(self._client, redis.asyncio.Redis):
            await asyncio.Event().wait()
            return
        self._check_up()
        channel = f"{self._prefix}:push:{holder}"
        subscription = self._client.pubsub()
        generation, is_asked = self._generation, False
        try:
            with _down():
                await subscription.subscribe(channel)
            while True:
                with _down():
                    said = await subscription.get_message(
                        timeout=self.patience_s if is_asked else self.quiet_s
                    )
                if generation != self._generation:
                    raise StoreDown("Redis: the connections are made anew")
                if said is not None:
                    is_asked = False
                    if said["type"] == "message":
                        with _down():
                            kind, entitlement = msgpack.decode(said["data"], type=tuple[str, str])
                        yield Push(holder, kind, entitlement)
                elif is_asked:
                    raise StoreDown("Redis: the subscription is dead")
                else:
                    # A network may drop an idle connection and tell neither end.
                    is_asked = True
                    with _down():
                        await subscription.ping()
        finally:
            with suppress(redis.exceptions.RedisError, OSError):
                await subscription.aclose()  # type: ignore[no-untyped-call]

    async def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """See ``Store``."""
        self._check_up()
        async with self._call():
            limited, terms = await cast(
                Awaitable[list[bytes | None]], self._client.hmget(f"{self._prefix}:meta", "limited", "terms")
            )
            if limited is None or terms is None:
                return {}, IdleTerms()
            rows = await cast(Awaitable[dict[bytes, bytes]], self._client.hgetall(f"{self._prefix}:limits"))
        with _down():
            return {name.decode(): _limit.decode(row) for name, row in rows.items()}, _terms.decode(terms)

    async def file(self) -> tuple[str, bytes] | None:
        """See ``Store``."""
        self._check_up()
        async with self._call():
            version, content = await cast(
                Awaitable[list[bytes | None]],
                self._client.hmget(f"{self._prefix}:file", "version", "content"),
            )
        return (version.decode(), content) if version is not None and content is not None else None

    async def lead(self, candidate: str, leadership_s: float) -> int:
        """See ``Store``."""
        epoch = await self._run(_LEAD, candidate=candidate, leadership_ms=round(leadership_s * 1000))
        with _down():
            return int(float(epoch))

    async def resign(self, candidate: str) -> None:
        """See ``Store``."""
        await self._run(_LEAD, candidate=candidate, resigns=True)

    async def read(self) -> Census:
        """See ``Store``."""
        census = await self._run(_CENSUS)
        with _down():
            names, epoch, is_open, now, version = _censuses.decode(census)
        async with self._call():
            reports = await cast(
                Awaitable[dict[bytes, bytes]], self._client.hgetall(f"{self._prefix}:reports")
            )
        pages: dict[str, Page] = {}
        parts = [names[start : start + PART] for start in range(0, len(names), PART)]
        for part in await _at_once(partial(self._read_part, part, now, is_open) for part in parts):
            pages |= part
        return Census(
            pages,
            {holder.decode(): report for holder, report in reports.items()},
            int(epoch),
            is_open,
            now,
            version,
        )

    async def _read_part(self, names: Sequence[str], now: float, is_open: bool) -> dict[str, Page]:
        answer = await self._run(_PAGES, names=names)
        with _down():
            pages, limits = answer
            return {
                name: _view(page, limit, now, is_open)
                for name, page, limit in zip(names, pages, limits, strict=True)
                if page or limit
            }

    async def publish(self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int) -> bool:
        """See ``Store``."""
        names, stand = list(limits), msgpack.encode(terms)
        calls = []
        for start in range(0, len(names), PART) or (0,):
            part = names[start : start + PART]
            packed = [msgpack.encode(limits[name]) for name in part]
            said: dict[str, Any] = {"names": part, "sizes": [len(limit) for limit in packed]}
            if start + PART >= len(names):
                said["all"] = names
            calls.append(partial(self._run, _PUBLISH, b"".join(packed), stand, **said, epoch=epoch))
        # The last one says that the limits are all there: it must not overtake the others.
        return all([*await _at_once(calls[:-1]), await calls[-1]()])

    async def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """See ``Store``."""
        return bool(await self._run(_FILE, content, version=version, epoch=epoch))

    async def scale(self) -> StoredScale | None:
        """See ``Store``."""
        answer = await self._run(_SCALE)
        with _down():
            content, at, now = answer
            if content is None:
                return None
            return StoredScale(content, float(at), max(float(now) - float(at), 0.0))

    async def publish_scale(self, content: bytes, epoch: int) -> float | None:
        """See ``Store``."""
        at = await self._run(_PUBLISH_SCALE, content, epoch=epoch)
        with _down():
            return float(at) or None

    async def _run(self, script: _Script, /, *blobs: bytes, **message: Any) -> Any:
        """Run a script on a message; ``blobs`` are passed on as they are."""
        message |= self._common
        if self._clock is not None:
            message["now"] = self._clock()
        packed = msgpack.encode(message)
        async with self._call():
            call = cast(Callable[..., Awaitable[Any]], self._client.evalsha)
            try:
                answer = await call(script.digest, 1, self._prefix, packed, *blobs)
            except redis.exceptions.NoScriptError:
                call = cast(Callable[..., Awaitable[Any]], self._client.eval)
                answer = await call(script.text, 1, self._prefix, packed, *blobs)
        if script not in _READ_ONLY:
            self._is_down = False  # a replica would answer the others, too
        return answer

    def _check_up(self) -> None:
        """Raise ``StoreDown`` until a script succeeds again: a replica would answer reads without end."""
        if self._is_down:
            raise StoreDown("Redis does not answer")

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """One call; after a failed one all connections are made anew."""
        generation = self._generation
        try:
            with _down():
                yield
        except StoreDown:
            self._is_down = True
            # Calls that fail because of this do not close what later ones opened.
            if generation == self._generation:
                self._generation += 1
                await self._disconnect()
            raise

    async def _disconnect(self) -> None:
        """Close every connection; the clients open others when they are used next."""
        for client in (self._client, *self._helpers):
            with suppress(redis.exceptions.RedisError, OSError):
                if isinstance(client, redis.asyncio.Redis):
                    await client.connection_pool.disconnect()
                else:
                    await client.aclose()

    async def close(self) -> None:
        """See ``Store``."""
        for client in (self._client, *self._helpers):
            with suppress(redis.exceptions.RedisError, OSError):
                await cast(Awaitable[None], client.aclose())


@contextmanager
def _down() -> Iterator[None]:
    """Say of every failure that the store is down."""
    try:
        yield
    except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        raise StoreDown(f"Redis: {error or type(error).__name__}") from error
    except msgspec.MsgspecError as error:
        raise StoreDown(f"what Redis keeps cannot be read, as if of another version: {error}") from error
    except Exception as error:
        # The client trips over answers that no Redis gives: whoever listens there, it is not the store.
        raise StoreDown(f"Redis answers nonsense, as if it were none: {error!r}") from error


async def _at_once(calls: Iterable[Callable[[], Awaitable[_T]]]) -> list[_T]:
    """The answers to some calls at a time: Redis works on one part while another is packed or unpacked."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def answer(call: Callable[[], Awaitable[_T]]) -> _T:
        async with turns:
            return await call()

    return await asyncio.gather(*(answer(call) for call in calls))


def _view(packed: bytes | None, published: bytes | None, now: float, is_open: bool) -> Page:
    """A page as of now: what is published taken over, the bucket filled up, the floor faded."""
    limit = _limit.decode(published) if published else NO_LIMIT
    if not packed:
        return Page(limit, limit.depth)
    page = _pages.decode(packed)
    s, elapsed = page.sums, max(now - page.at, 0.0)
    kept, (tokens, cache, sequences) = math.exp(-elapsed / FLOOR_MEMORY_S), page.floor
    return Page(
        limit,
        level_of(page.level, page.depth, limit, elapsed, is_open),
        Amount(s[2], s[0], s[1]),
        Amount(0.0, s[3], s[4]),
        Amount(s[5], s[6], s[7]),
        Amount(*page.served),
        Amount(s[8], s[9], s[10]),
        Amount(tokens * kept, cache * kept, sequences * kept),
    )
