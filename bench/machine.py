"""The machine: its cores for the proxy and for the load, its speed now, and its description."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

PROXY_CORE = min(os.sched_getaffinity(0))


def _load_core() -> int:
    """A core other than the proxy's, and if possible not a hyper-thread of the same core."""
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
    """A part of the benchmark is missing or failed. The text names the part and the next step."""


def pace_ms() -> float:
    """The speed of this core now: milliseconds for a million additions in Python, the best of five.

    Virtual cores on shared hardware vary in speed by a factor of two from hour to hour. Milliseconds can be
    compared only together with this figure.
    """
    best = math.inf
    for _ in range(5):
        began, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number
        best = min(best, time.perf_counter() - began)
    return best * 1000


def is_compiled() -> bool:
    """Whether processes run the compiled data path."""
    command = [sys.executable, "-c", "import tokenpool.accounting.ledger as m; print(m.__file__)"]
    return (
        not subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().endswith(".py")
    )


def describe() -> str:
    """One line about the machine: processor, cores, kernel, Python."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
