"""What the machine says: processes pinned to a core, their CPU time and memory, and what it is."""

from __future__ import annotations

import math
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PROXY_CORE = min(os.sched_getaffinity(0))


def _load_core() -> int:
    """Another core than the proxy's, and not its other thread where there are more."""
    others = os.sched_getaffinity(0) - {PROXY_CORE}
    path = Path(f"/sys/devices/system/cpu/cpu{PROXY_CORE}/topology/thread_siblings_list")
    siblings: set[int] = set()
    for part in (path.read_text().strip() if path.exists() else "").split(","):
        first, _, last = part.partition("-")
        if first:
            siblings |= set(range(int(first), int(last or first) + 1))
    return min(others - siblings or others or {PROXY_CORE})


LOAD_CORE = _load_core()


class BenchError(RuntimeError):
    """Something that the benchmark needs is missing or failed; the text names it and the fix."""


class Process:
    """A child process on one core, ended with its context."""

    def __init__(self, command: Sequence[str], core: int, *, log: Path) -> None:
        self.log = log
        with log.open("ab") as sink:
            self._child = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far, user and kernel, to the nanosecond."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def resident_mb(self) -> float:
        """Memory resident now, in units of 10^6 bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for a condition. Raises ``BenchError`` if the process ends first, or time runs out."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self._child.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
                raise BenchError(f"{self._child.args!r} did not come up:\n{tail}")
            time.sleep(0.005)

    def stop(self) -> None:
        """End it."""
        self._child.terminate()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether something listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def pace_ms() -> float:
    """How fast this core is now: milliseconds that a million additions take in Python, the best of five.

    Cores that share hardware with neighbours change by a factor of two from one hour to the next: figures in
    milliseconds say little without it.
    """
    best = math.inf
    for _ in range(5):
        began, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number
        best = min(best, time.perf_counter() - began)
    return best * 1000


def is_compiled() -> bool:
    """Whether processes run with the data path as machine code."""
    command = [sys.executable, "-c", "import tokenpool.ledger as m; print(m.__file__)"]
    return (
        not subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().endswith(".py")
    )


def describe() -> str:
    """The machine in a line: processor, cores, kernel, Python."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
