"""Child processes: start, readiness, pause, measurement and end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from toolbox.ports import accepts, answers

READY_S = 240.0
"""The time limit for readiness. A real engine on busy cores takes minutes to start."""
GRACE_S = 15.0
_PROBE_EVERY_S = 0.01
_LINES = 20
"""The lines of a log that an error contains."""


class NotReady(RuntimeError):
    """A process ended, or was not ready in time. The text ends with the last lines of its log."""


def module(name: str) -> list[str]:
    """The command that runs a Python module of this checkout."""
    return [sys.executable, "-m", name]


class Process:
    """A child process with a log file. Its context begins when it is ready, and ends the process.

    It can be started again after its end. ``probe`` is a URL that answers 200, or a port that accepts
    connections, once the process is ready. ``core`` is the only CPU core that it may use. With ``is_group``,
    signals go to the children of the process too, and Ctrl-C in the terminal does not reach it.
    ``user`` is the name of another user to run it as, for root.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        probe: str | int | None = None,
        core: int | None = None,
        environment: Mapping[str, str] | None = None,
        is_group: bool = False,
        user: str | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = folder / f"{name}.log"
        self.probe = probe
        self._core = core
        self._environment = environment or {}
        self._is_group = is_group
        self._user = user
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. There is none before the start and after the end."""
        assert self._child is not None, f"{self.name} is not running"
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        """Whether it was started and has ended by itself since."""
        return self._child is not None and self._child.poll() is not None

    def last_lines(self) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LINES:])

    def start(self) -> Self:
        """Start the process; ``wait_ready`` waits until it serves."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        pinned = [] if self._core is None else ["taskset", "-c", str(self._core)]
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [*pinned, *self.command],
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=self._is_group,
                user=self._user,
            )
        return self

    def wait_ready(self, seconds: float = READY_S) -> Self:
        """Wait until the probe succeeds. Raises ``NotReady``."""
        self.until(self._is_ready, seconds)
        return self

    def _is_ready(self) -> bool:
        if isinstance(self.probe, int):
            return accepts(self.probe)
        return self.probe is None or answers(self.probe)

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition. Raises ``NotReady`` if the process ends first, or time runs out."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = self._child is None or self._child.poll() is not None
            if ended or time.monotonic() > deadline:
                why = "ended" if ended else f"was not ready within {seconds:g} s"
                raise NotReady(f"{self.name} {why}; {self.log} ends with:\n{self.last_lines()}")
            time.sleep(_PROBE_EVERY_S)

    def replace(self, old: str, new: str) -> None:
        """Start with another argument from now on."""
        self.command = [new if part == old else part for part in self.command]

    def signal(self, number: int) -> None:
        """Send a signal."""
        if self._is_group:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process during the context, with SIGSTOP."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def wait(self, seconds: float) -> int:
        """Wait until the process ends by itself. Returns its exit status; raises ``TimeoutError``."""
        assert self._child is not None, f"{self.name} is not running"
        try:
            status = self._child.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self.name} did not end within {seconds:g} s; see {self.log}") from error
        self._child = None
        return status

    def kill(self) -> None:
        """Kill the process, like the failure of a node."""
        self._end(signal.SIGKILL, None)

    def stop(self, grace: float = GRACE_S) -> int:
        """Ask the process to end, and kill it after ``grace`` seconds. Returns its exit status."""
        return self._end(signal.SIGTERM, grace)

    def _end(self, number: int, grace: float | None) -> int:
        child = self._child
        if child is None:
            return 0
        try:
            if child.poll() is None:
                self.signal(number)
                child.wait(grace)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            child.wait()
        self._child = None
        return child.returncode

    def cpu_seconds(self) -> float:
        """CPU time of all its running threads so far, user and kernel, with nanosecond resolution."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end meanwhile
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def resident_mb(self) -> float:
        """Resident memory now, in units of 10^6 bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def __enter__(self) -> Self:
        if self._child is None:
            self.start()
        try:
            return self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
