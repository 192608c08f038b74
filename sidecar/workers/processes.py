"""The processes of the workers: started, started again after a failure, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence

import msgspec

from sidecar.worker import VARIABLE, Place, encoded, keep_descriptors
from sidecar.workers.restarts import Restarts

log = logging.getLogger(__name__)

USAGE_ERROR = 2
"""The exit status of a process whose settings cannot be used."""
KILLED_AFTER_S = 10.0
"""Seconds beyond the drain timeout after which a worker that has not ended is killed."""


class WorkerProcess:
    """One worker.

    ``ended`` is called with its number and the id of its process after each end, before it is started again.
    """

    def __init__(self, place: Place, command: Sequence[str], ended: Callable[[int, int], None]) -> None:
        self._place = place
        self._command = command
        self._ended = ended
        self.index = place.index
        self.restarts = Restarts()
        self.started_at = 0.0
        """Seconds on the monotonic clock."""
        self._stopping = asyncio.Event()
        self.cannot_start = False
        """Whether the first process ended because its settings cannot be used."""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopping.is_set()

    @property
    def pid(self) -> int | None:
        """The id of the process; ``None`` while there is none."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Run the worker until ``stop``, and start it again after each failure.

        Raises ``OSError`` if the first process cannot be started.
        """
        place = self._place
        while not self.is_stopping:
            self.started_at = time.monotonic()
            status: int | str
            try:
                status = await self._run_once(place)
            except OSError as error:
                if not place.is_again:
                    raise
                status = str(error)  # memory or processes may be short for a moment
            if self.is_stopping:
                return
            if status == USAGE_ERROR and not place.is_again:
                self.cannot_start = True
                return
            pause = self.restarts.ended(self.started_at, time.monotonic())
            log.error(
                "a worker has ended; its streams are lost, and it is started again",
                extra={"worker": self.index, "status": status, "pause_s": pause},
            )
            place = msgspec.structs.replace(place, is_again=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _run_once(self, place: Place) -> int:
        """Start a process, and wait for its end. Returns its status. Raises ``OSError``."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, VARIABLE: encoded(place)},
            pass_fds=keep_descriptors(place),
            start_new_session=True,  # a signal of the terminal goes to the supervisor alone
        )
        if self.is_stopping:
            self.signal(signal.SIGTERM)  # ``stop`` found no process
        pid, status = self._process.pid, await self._process.wait()
        self._process = None
        self._ended(self.index, pid)
        return status

    def signal(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def stop(self) -> None:
        """Let the worker drain. It is not started again."""
        self._stopping.set()
        self.signal(signal.SIGTERM)
