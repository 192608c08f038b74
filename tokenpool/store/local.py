"""A lease store that one process keeps for other processes of its machine, over a Unix socket.

``StoreServer`` answers with any ``Store``, and ``LocalStore`` is the ``Store`` of the other processes. The
workers of a sidecar use them (``sidecar/workers``). ``calls`` has the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenpool.leases.credential_feed import CredentialPage, CredentialPut, CredentialRemoval
from tokenpool.leases.messages import Answer, Limit, Message, PoolSnapshot, Push, StoredScaleHint
from tokenpool.planning.idle import IdleTerms
from tokenpool.quotas.messages import QuotaAnswer, QuotaMessage, QuotaState
from tokenpool.store import Store, StoreDown
from tokenpool.store.calls import (
    LISTEN,
    CallInvalid,
    FrameReader,
    Kind,
    Reply,
    decode_call,
    decode_reply,
    encode_call,
    encode_reply,
    result_of,
    text_of,
)

log = logging.getLogger(__name__)

BACKLOG = 64
LOOPBACK = ("127.0.0.1", 9)


class StoreServer:
    """Answers the calls of other processes with a store of this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Served] = set()

    async def start(self, path: Path) -> None:
        """Listen on a Unix socket. The permissions of its folder decide who may use the store."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Served(self), str(path), backlog=BACKLOG)

    def called(self, connection: _Served, frame: bytes) -> None:
        """Answer a call, in a task of its own. Raises ``CallInvalid``."""
        number, method, arguments = decode_call(frame)
        work = self._listen if method == LISTEN else self._answer
        task = asyncio.get_running_loop().create_task(work(connection, number, method, arguments))
        self._tasks.add(task)
        connection.tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(connection.tasks.discard)

    async def _answer(
        self, connection: _Served, number: int, method: str, arguments: tuple[Any, ...]
    ) -> None:
        try:
            reply = encode_reply(number, Kind.RESULT, await getattr(self._store, method)(*arguments))
        except StoreDown as error:
            reply = encode_reply(number, Kind.FAILURE, str(error))
        except Exception as error:
            log.critical("a call of the lease store failed", exc_info=True, extra={"method": method})
            reply = encode_reply(number, Kind.FAILURE, f"the lease store failed: {error!r}")
        connection.write(reply)

    async def _listen(
        self, connection: _Served, number: int, method: str, arguments: tuple[Any, ...]
    ) -> None:
        async for push in self._store.listen(*arguments):
            connection.write(encode_reply(number, Kind.PUSH, push))

    def opened(self, connection: _Served) -> None:
        """A process has connected."""
        self._open.add(connection)

    def closed(self, connection: _Served) -> None:
        """A process has left. It gets no more answers."""
        self._open.discard(connection)
        for task in connection.tasks:
            task.cancel()

    async def stop(self) -> None:
        """Close all connections."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Served(asyncio.Protocol):
    """One connection of the server."""

    def __init__(self, server: StoreServer) -> None:
        self._server = server
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        try:
            for frame in self._frames.feed(data):
                self._server.called(self, frame)
        except CallInvalid as error:
            log.error("a connection to the lease store is closed", extra={"error": str(error)})
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._server.closed(self)

    def write(self, data: bytes) -> None:
        """Send, unless the other process has left."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


class _Calling(asyncio.Protocol):
    """One connection of a client, and its calls without a reply."""

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self.pushes: asyncio.Queue[Reply | None] = asyncio.Queue()
        """The pushes; ``None`` when the connection has ended."""
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        try:
            for frame in self._frames.feed(data):
                self._replied(decode_reply(frame))
        except CallInvalid:
            self.close()

    def _replied(self, reply: Reply) -> None:
        if reply.kind is Kind.PUSH:
            self.pushes.put_nowait(reply)
            return
        future = self._waiting.pop(reply.number, None)
        if future is not None and not future.done():
            future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self.is_closed = True
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(StoreDown("the process with the lease store has ended"))
        self.pushes.put_nowait(None)

    def send(self, method: str, arguments: tuple[Any, ...]) -> asyncio.Future[Reply]:
        """Send a call. Returns its reply, which may be ``StoreDown``."""
        assert self._transport is not None
        self._number += 1
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = future
        self._transport.write(encode_call(self._number, method, arguments))
        return future

    def close(self) -> None:
        """End the connection."""
        self.is_closed = True
        if self._transport is not None:
            self._transport.close()


class LocalStore:
    """See ``Store``. The store of a ``StoreServer`` at ``path``; ``timeout_s`` bounds each call."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._connection: _Calling | None = None
        self._connecting = asyncio.Lock()

    def _down(self, reason: object) -> StoreDown:
        return StoreDown(f"the lease store of this pod ({self._path}): {reason}")

    async def _connected(self) -> _Calling:
        async with self._connecting:
            if self._connection is None or self._connection.is_closed:
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> _Calling:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(_Calling, str(self._path))
        except OSError as error:
            raise self._down(error.strerror or error) from error
        return connection

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = self._connection
                if connection is None or connection.is_closed:
                    connection = await self._connected()
                reply = await connection.send(method, arguments)
            if reply.kind is Kind.FAILURE:
                raise self._down(text_of(reply))
            return result_of(reply, method)
        except TimeoutError as error:
            raise self._down(f"no answer within {self._timeout_s:g} s") from error
        except CallInvalid as error:
            raise self._down(error) from error

    async def connect(self, count: int) -> None:
        """See ``Store``. One connection carries all calls."""
        with contextlib.suppress(StoreDown):  # the next call raises it
            await self._connected()

    async def listen(self, holder: str) -> AsyncIterator[Push]:
        """See ``Store``."""
        connection = await self._connect()
        try:
            connection.send(LISTEN, (holder,)).add_done_callback(_retrieved)
            while (reply := await connection.pushes.get()) is not None:
                push: Push = result_of(reply, LISTEN)
                yield push
        except CallInvalid as error:
            raise self._down(error) from error
        finally:
            connection.close()
        raise self._down("its process has ended")

    async def exchange(self, message: Message) -> Answer:
        """See ``Store``."""
        answer: Answer = await self._call("exchange", message)
        return answer

    async def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """See ``Store``."""
        limits: tuple[Mapping[str, Limit], IdleTerms] = await self._call("limits")
        return limits

    async def file(self) -> tuple[str, bytes] | None:
        """See ``Store``."""
        file: tuple[str, bytes] | None = await self._call("file")
        return file

    async def lead(self, candidate: str, leadership_s: float) -> int:
        """See ``Store``."""
        epoch: int = await self._call("lead", candidate, leadership_s)
        return epoch

    async def resign(self, candidate: str) -> None:
        """See ``Store``."""
        await self._call("resign", candidate)

    async def read(self, *, whole: bool = True) -> PoolSnapshot:
        """See ``Store``. Every read is whole."""
        snapshot: PoolSnapshot = await self._call("read")
        return snapshot

    async def publish(
        self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int, *, whole: bool = True
    ) -> bool:
        """See ``Store``. Every publication is whole."""
        is_done: bool = await self._call("publish", limits, terms, epoch)
        return is_done

    async def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """See ``Store``."""
        is_done: bool = await self._call("publish_file", version, content, epoch)
        return is_done

    async def scale_hint(self) -> StoredScaleHint | None:
        """See ``Store``."""
        hint: StoredScaleHint | None = await self._call("scale_hint")
        return hint

    async def publish_scale_hint(self, content: bytes, epoch: int) -> float | None:
        """See ``Store``."""
        at: float | None = await self._call("publish_scale_hint", content, epoch)
        return at

    async def credentials(self, after: int) -> CredentialPage:
        """See ``Store``."""
        page: CredentialPage = await self._call("credentials", after)
        return page

    async def put_credentials(self, puts: Sequence[CredentialPut]) -> list[int]:
        """See ``Store``."""
        versions: list[int] = await self._call("put_credentials", puts)
        return versions

    async def remove_credentials(self, removals: Sequence[CredentialRemoval]) -> None:
        """See ``Store``."""
        await self._call("remove_credentials", removals)

    async def secret(self, new: bytes) -> bytes:
        """See ``Store``."""
        secret: bytes = await self._call("secret", new)
        return secret

    def host(self) -> tuple[str, int]:
        """See ``Store``. The other processes are on this machine."""
        return LOOPBACK

    async def publish_prices(self, holder: str, content: bytes) -> None:
        """See ``Store``."""
        await self._call("publish_prices", holder, content)

    async def prices(self) -> Mapping[str, bytes]:
        """See ``Store``."""
        prices: Mapping[str, bytes] = await self._call("prices")
        return prices

    async def exchange_quotas(self, message: QuotaMessage) -> QuotaAnswer:
        """See ``Store``."""
        answer: QuotaAnswer = await self._call("exchange_quotas", message)
        return answer

    async def quotas(self) -> Sequence[QuotaState]:
        """See ``Store``."""
        states: Sequence[QuotaState] = await self._call("quotas")
        return states

    async def restore_quota(self, key: str, start: float, spent: float) -> bool:
        """See ``Store``."""
        is_done: bool = await self._call("restore_quota", key, start, spent)
        return is_done

    async def close(self) -> None:
        """See ``Store``."""
        if self._connection is not None:
            self._connection.close()


def _retrieved(future: asyncio.Future[Reply]) -> None:
    """The end of a ``LISTEN`` call is seen by its pushes, so its own failure needs no handler."""
    if not future.cancelled():
        future.exception()
