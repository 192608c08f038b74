"""Work in a child process: what would hold up the event loop, or hold the interpreter lock in a thread.

A child is ``python -m MODULE``. It reads one request from its standard input and answers with frames, which
its parent takes one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

NICE = 5
"""A child has less weight than the processes that serve requests, where there are few cores."""
LONGEST_S = 60.0
SMALL_FILE = 16 * 1024
"""A pool file of at most so many bytes is read in a thread: 15 ms, in turns of 5. A child takes 0.3 s of
CPU to start; six of them on a busy machine of two cores put a changed file in force after 4.8 s."""
_LENGTH = 4


def is_small(path: Path) -> bool:
    """Whether a file is worth no child. What cannot be looked at is: its reader says why."""
    try:
        return path.stat().st_size <= SMALL_FILE
    except OSError:
        return True


class ChildFailed(Exception):
    """The child could not be started, or ended without its answer; the text says how."""


async def frames(
    module: str, request: bytes, longest_s: float = LONGEST_S, *, program: str = sys.executable
) -> AsyncIterator[bytes]:
    """What a child answers to a request. Raises ``ChildFailed``."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    try:
        child = await asyncio.create_subprocess_exec(
            program,
            "-P",
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise ChildFailed(f"no process for {module}: {error}") from error
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        async with asyncio.timeout(longest_s):
            with contextlib.suppress(ConnectionError):
                child.stdin.write(request)
                await child.stdin.drain()
            child.stdin.close()
            while head := await child.stdout.read(_LENGTH):
                head += await child.stdout.readexactly(_LENGTH - len(head)) if len(head) < _LENGTH else b""
                yield await child.stdout.readexactly(int.from_bytes(head))
            status = await child.wait()
    except asyncio.IncompleteReadError:
        raise ChildFailed(f"{module} ended in the middle of its answer") from None
    except TimeoutError:
        raise ChildFailed(f"{module} did not answer within {longest_s:g} s") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if status:
        raise ChildFailed(f"{module} ended with status {status}")


def serve(answer: Callable[[bytes], Iterator[bytes]]) -> None:
    """The child's part: one request, its frames, and the end."""
    gc.disable()  # it ends when it has answered
    with contextlib.suppress(OSError):
        os.nice(NICE)
    out = sys.stdout.buffer
    for frame in answer(sys.stdin.buffer.read()):
        out.write(len(frame).to_bytes(_LENGTH) + frame)
    out.flush()
