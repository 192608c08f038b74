"""The connections of one process to Redis, and the scripts that run on them.

This module opens connections and drops them after a failure. It does not depend on leases. It turns every
failure into ``StoreDown``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, cast

import msgspec
import redis.asyncio
import redis.exceptions

from tokenpool.store import StoreDown
from tokenpool.store.scripts import Script

PING_AFTER_S = 5.0
"""The seconds without a message on a subscription, after which the client sends a ping."""
PING_TIMEOUT_S = 2.0
"""The longest wait for the answer to the ping, in seconds."""
OPEN_AGAIN_S = 60.0
"""The seconds for which connections that were opened in advance count as open."""

Client = redis.asyncio.Redis | redis.asyncio.RedisCluster


class RedisClient:
    """The connections to one Redis, with the rules for failures.

    After a failed call all connections are dropped. The next call opens new ones and resolves the name again.
    The kind of the failure does not matter. A replica answers READONLY, a full server OOM, a server without
    its disk MISCONF, and a starting server LOADING. Older servers put these words into the error of a script.
    A hanging server does not answer.

    After a failure, reads and subscriptions fail until a script that writes has succeeded, because a replica
    answers reads.

    ``helpers`` are clients that the client uses internally (sentinels). They are closed with it.
    """

    def __init__(self, client: Client, helpers: Sequence[Client] = ()) -> None:
        self._client = client
        self._helpers = helpers
        self.ping_after_s, self.ping_timeout_s = PING_AFTER_S, PING_TIMEOUT_S
        self._generation = 0
        """The number of the current set of connections."""
        self._connected, self._connected_at = -1, 0.0
        """The generation whose connections were opened in advance (-1: none), and the time of that."""
        self._opens = 0
        """The connections that are opened in advance."""
        self._is_down = False
        """Whether the last call failed."""
        self._under_way = 0
        """The calls in flight."""
        self._is_retired = False

    async def connect(self, count: int) -> None:
        """Open ``count`` connections in advance. A handshake takes three round trips, and more with TLS.

        Repeated calls open them again after ``OPEN_AGAIN_S``. A server closes idle connections, and the
        client prefers those that it used last. Failures are ignored, because the next call reports them.

        This does nothing with the client of a cluster.
        """
        self._opens = count
        now, generation = asyncio.get_running_loop().time(), self._generation
        is_open = generation == self._connected and now - self._connected_at < OPEN_AGAIN_S
        if is_open or self._is_down or not isinstance(self._client, redis.asyncio.Redis):
            return
        self._connected, self._connected_at = generation, now
        # Each concurrent ping uses its own connection.
        await asyncio.gather(*(self._client.ping() for _ in range(count)), return_exceptions=True)
        await self._drop_former(generation)

    async def run(self, script: Script, key: str, *arguments: bytes) -> Any:
        """Run a script. Its text is sent only if the server does not have it."""
        async with self._call():
            call = cast(Callable[..., Awaitable[Any]], self._client.evalsha)
            try:
                answer = await call(script.digest, 1, key, *arguments)
            except redis.exceptions.NoScriptError:
                call = cast(Callable[..., Awaitable[Any]], self._client.eval)
                answer = await call(script.text, 1, key, *arguments)
        if not script.only_reads:
            self._is_down = False
        return answer

    async def fields(self, key: str, *names: str) -> list[bytes | None]:
        """Some fields of a hash."""
        async with self._call():
            values = await cast(Awaitable[list[bytes | None]], self._client.hmget(key, *names))
            # An answer of another server than Redis may have any type and length.
            return [value for _, value in zip(names, values, strict=True)]

    async def all_fields(self, key: str) -> dict[bytes, bytes]:
        """All fields of a hash."""
        async with self._call():
            return {**await cast(Awaitable[dict[bytes, bytes]], self._client.hgetall(key))}

    async def subscribe(self, channel: str) -> AsyncIterator[bytes]:
        """The messages of a channel, until ``StoreDown``.

        The client of a cluster has no subscriptions. Then nothing arrives, and regular messages replace it.
        """
        if not isinstance(self._client, redis.asyncio.Redis):
            await asyncio.Event().wait()
            return
        self.check_up()
        subscription = self._client.pubsub()
        generation, is_asked = self._generation, False
        try:
            with failures():
                await subscription.subscribe(channel)
            while True:
                with failures():
                    message = await subscription.get_message(
                        timeout=self.ping_timeout_s if is_asked else self.ping_after_s
                    )
                if generation != self._generation:
                    raise StoreDown("Redis: the connections were dropped after a failure")
                if message is not None:
                    is_asked = False
                    if message["type"] == "message":
                        yield message["data"]
                elif is_asked:
                    raise StoreDown("Redis: the subscription does not answer a ping")
                else:
                    # A network may drop an idle connection without notifying either end.
                    is_asked = True
                    with failures():
                        await subscription.ping()
        finally:
            with suppress(redis.exceptions.RedisError, OSError):
                await subscription.aclose()  # type: ignore[no-untyped-call]

    def check_up(self) -> None:
        """Raise ``StoreDown`` if no script that writes has succeeded since the last failure."""
        if self._is_down:
            raise StoreDown("Redis does not answer")

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """Guard one call. If it fails, all connections are dropped."""
        generation = self._generation
        self._under_way += 1
        try:
            with failures():
                yield
        except StoreDown:
            self._is_down = True
            # Further calls that fail for the same reason must not close the connections of later calls.
            if generation == self._generation:
                self._generation += 1
                generation = self._generation  # all are dropped here
                await self._disconnect()
            raise
        finally:
            # The call has ended, even if it is cancelled while it closes connections.
            self._under_way -= 1
            if self._is_retired and not self._under_way:
                await self.close()
            else:
                await self._drop_former(generation)

    async def _drop_former(self, generation: int) -> None:
        """Close the idle connections if all were dropped since ``generation``.

        A connection that was being opened then is among the idle ones now. It may lead to the former server,
        and a subscription on it would stay there.
        """
        if generation != self._generation and isinstance(self._client, redis.asyncio.Redis):
            with suppress(redis.exceptions.RedisError, OSError):
                await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _disconnect(self) -> None:
        """Close every connection. The clients open new connections at their next use."""
        for client in (self._client, *self._helpers):
            with suppress(redis.exceptions.RedisError, OSError):
                if isinstance(client, redis.asyncio.Redis):
                    await client.connection_pool.disconnect()
                else:
                    await client.aclose()

    async def succeed(self, former: RedisClient) -> None:
        """Take over from another client: open as many connections, then let it end.

        Its calls in flight end first. Its subscriptions fail at once, so that their owners subscribe here.
        """
        await self.connect(former._opens)
        former._is_retired = True
        if not former._under_way:
            await former.close()

    async def close(self) -> None:
        """Close all connections permanently."""
        for client in (self._client, *self._helpers):
            with suppress(redis.exceptions.RedisError, OSError):
                await cast(Awaitable[None], client.aclose())


@contextmanager
def failures() -> Iterator[None]:
    """Raise ``StoreDown`` for every failure of the block."""
    try:
        yield
    except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        raise StoreDown(f"Redis: {error or type(error).__name__}") from error
    except msgspec.MsgspecError as error:
        raise StoreDown(
            f"the content of Redis cannot be decoded; it may be of another version: {error}"
        ) from error
    except Exception as error:
        # The client library may raise any exception for an answer of another server than Redis.
        raise StoreDown(f"Redis: the answer is not from a Redis server: {error!r}") from error
