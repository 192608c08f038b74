"""Work in a child process, so that it blocks neither the event loop nor the interpreter lock.

A child is ``python -m MODULE``. It reads one request from its standard input and answers with frames. Its
parent takes the frames one by one. ``Work`` describes a piece of work once, for this process and for a child.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from runtime import config_files

log = logging.getLogger(__name__)

NICE = 5
"""The priority of a child: below that of the processes that serve requests."""
LONGEST_S = 60.0
SMALL_FILE = 16 * 1024
"""A pool file of at most this number of bytes is read in a thread: 15 ms, in turns of 5. A child takes 0.3 s
of CPU to start. Six of them on a busy machine of two cores put a changed file in force after 4.8 s."""
_LENGTH = 4
"""Bytes of a frame's length, which precedes the frame."""


def is_small(path: Path) -> bool:
    """Whether a pool file is too small for a child. So is one without a status: its reader reports why."""
    try:
        return config_files.size(path) <= SMALL_FILE
    except OSError:
        return True


class ChildFailed(Exception):
    """The child could not be started, or ended without its answer; the text says how."""


async def frames(
    module: str, request: bytes, longest_s: float = LONGEST_S, *, program: str = sys.executable
) -> AsyncIterator[bytes]:
    """The frames of a child's answer to a request. Raises ``ChildFailed``.

    A thread starts the child and takes its answer. uvloop's own start of a process copies this process. That
    held the event loop for 4 ms of CPU time and 9 ms in all. ``subprocess`` shares the memory until the child
    runs, and holds the interpreter lock for 0.2 to 0.7 ms.
    """
    exchange = _Exchange([program, "-P", "-m", module])
    try:
        answer, status = await asyncio.to_thread(exchange.run, request, longest_s)
    except OSError as error:
        raise ChildFailed(f"no process for {module}: {error}") from error
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"{module} did not answer within {longest_s:g} s") from None
    finally:
        exchange.end()
    at = 0
    while not status and at < len(answer):
        begin = at + _LENGTH
        at = begin + int.from_bytes(answer[begin - _LENGTH : begin])
        if at > len(answer):
            raise ChildFailed(f"{module} ended in the middle of its answer")
        yield answer[begin:at]
    if status:
        raise ChildFailed(f"{module} ended with status {status}")


class _Exchange:
    """One request to a child, and its answer."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._has_ended = False

    def run(self, request: bytes, longest_s: float) -> tuple[bytes, int]:
        """The whole answer and the status of the child. A thread calls it.

        Raises ``OSError`` and ``subprocess.TimeoutExpired``.
        """
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        with self._lock:
            if self._has_ended:
                return b"", 0
            child = self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
        with child:
            try:
                answer, _ = child.communicate(request, timeout=longest_s)
            except BaseException:
                child.kill()
                raise
        return answer, child.returncode

    def end(self) -> None:
        """Kill the child if it still runs: its answer is not needed any more."""
        with self._lock:
            self._has_ended = True
            child = self._child
        if child is not None and child.poll() is None:
            child.kill()


def serve(answer: Callable[[bytes], Iterator[bytes]]) -> None:
    """The child's part: one request, its frames, and the end."""
    gc.disable()  # the process ends after its answer
    with contextlib.suppress(OSError):
        os.nice(NICE)
    out = sys.stdout.buffer
    for frame in answer(sys.stdin.buffer.read()):
        out.write(len(frame).to_bytes(_LENGTH) + frame)
    out.flush()


Request = TypeVar("Request", bound=msgspec.Struct)
Head = TypeVar("Head", bound=msgspec.Struct)
Part = TypeVar("Part", bound=msgspec.Struct)
Result = TypeVar("Result")


class Work(Generic[Request, Head, Part, Result]):
    """A piece of work that this process or a child can do. The result is the same.

    ``do`` makes the head and the parts, and raises ``failure`` with a text for people. ``begin`` makes a
    result of the head. ``take`` adds a part to it, in less than a millisecond, because the event loop waits.
    The module of the child calls ``serve`` when it is run as a program.
    """

    def __init__(
        self,
        module: str,
        do: Callable[[Request], tuple[Head, Iterable[Part]]],
        begin: Callable[[Head], Result],
        take: Callable[[Result, Part], None],
        *,
        types: tuple[type[Request], type[Head], type[Part]],
        failure: type[Exception],
    ) -> None:
        self._module = module
        self._do = do
        self._begin = begin
        self._take = take
        self._types = types
        self._failure = failure

    def here(self, request: Request) -> Result:
        """Do the work in this thread. Raises ``failure``."""
        head, parts = self._do(request)
        made = self._begin(head)
        for part in parts:
            self._take(made, part)
        return made

    async def apart(self, request: Request, *, is_small: bool) -> Result:
        """Do the work without blocking the event loop. Raises ``failure``.

        A thread does a small request, and one for which no child can be started. The work in a
        thread delays other requests by some milliseconds.
        """
        if not is_small:
            try:
                return await self._in_child(request)
            except ChildFailed as error:
                log.warning("the work is done in this process", extra={"reason": str(error)})
        return await asyncio.to_thread(self.here, request)

    async def _in_child(self, request: Request) -> Result:
        """The first frame is the text of a failure, the second is the head, all others are parts."""
        heads, parts = msgspec.msgpack.Decoder(self._types[1]), msgspec.msgpack.Decoder(self._types[2])
        failed: bytes | None = None
        made: Result | None = None
        async for frame in frames(self._module, msgspec.msgpack.encode(request)):
            if failed is None:
                failed = frame
            elif made is None:
                made = self._begin(heads.decode(frame))
            else:
                self._take(made, parts.decode(frame))
                await asyncio.sleep(0)
        if failed:
            raise self._failure(failed.decode())
        if made is None:
            raise ChildFailed(f"{self._module} ended without an answer")
        return made

    def serve(self) -> None:
        """The child: answer one request, and end."""
        serve(self._answer)

    def _answer(self, request: bytes) -> Iterator[bytes]:
        try:
            head, parts = self._do(msgspec.msgpack.decode(request, type=self._types[0]))
        except self._failure as error:
            yield str(error).encode()
            return
        yield b""
        yield msgspec.msgpack.encode(head)
        yield from map(msgspec.msgpack.encode, parts)
