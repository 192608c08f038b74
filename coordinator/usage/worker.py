"""A thread that runs blocking calls in turn, and never keeps the process from ending."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class Busy(Exception):
    """A call was given up while it ran, and it runs still."""


class Worker:
    """Runs calls in one thread, which starts with the first call.

    A call that its caller has given up keeps the thread. Until it ends, each further call raises ``Busy``: a
    database that hangs would otherwise collect threads.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stuck: Future[Any] | None = None

    async def run(self, call: Callable[[], _T]) -> _T:
        """The result of a call. Raises what the call raises, and ``Busy``."""
        if self._stuck is not None and not self._stuck.done():
            raise Busy
        self._stuck = None
        if self._thread is None:
            # A daemon: the interpreter waits for other threads when it ends.
            self._thread = threading.Thread(target=self._work, name="usage-store", daemon=True)
            self._thread.start()
        future: Future[_T] = Future()
        self._calls.put((call, future))
        try:
            # Shielded, so that a call that began stays known when its caller gives it up.
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if not future.cancel():
                self._stuck = future
            raise

    async def stop(self, last: Callable[[], None], seconds: float) -> None:
        """End the thread after the calls so far and a last one, and wait for that at most ``seconds``."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._calls.put((last, Future()))
        self._calls.put(None)
        await asyncio.to_thread(thread.join, seconds)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
