"""Processes of one run: engines, the proxies in front of them, and the load. Each ends with its context."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.vllm_process import VllmProcess
from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess

MODEL = "small"


def commit() -> str:
    """The commit of this checkout, in its short form."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip() or "unknown"


@dataclass(frozen=True)
class Backend:
    """One engine: a real vLLM or the simulator. It can be killed and started again."""

    process: Process
    url: str
    is_real: bool

    @classmethod
    def of(cls, kind: str, folder: Path, number: int, flags: Sequence[str], slots: int) -> Backend:
        """An engine before its start. ``kind`` is ``vllm`` or ``simulator``."""
        if kind == "vllm":
            log = folder / f"engine{number}.log"
            real = VllmProcess(log, max_num_seqs=slots, extra=flags, model=MODEL)
            return cls(real, real.url, True)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [*module("loadgen.engine"), "--port", str(port), "--slots", str(slots), "--model", MODEL]
        simulated = Process(f"engine{number}", [*command, *flags], folder, probe=f"{url}/health")
        return cls(simulated, url, False)


@contextlib.contextmanager
def backends(
    kind: str, folder: Path, count: int, flags: Sequence[str], slots: int
) -> Iterator[list[Backend]]:
    """Start ``count`` engines, and wait until all are ready."""
    made = [Backend.of(kind, folder, number, flags, slots) for number in range(count)]
    with contextlib.ExitStack() as stack:
        for backend in made:
            backend.process.start()
        for backend in made:
            stack.enter_context(backend.process)
        yield made


@contextlib.contextmanager
def own_core(engine: Backend) -> Iterator[None]:
    """Give the first core to an engine's computing process. Its server, proxies and load share the others.

    Without this, the load sometimes ran on the engine's core of a machine with two, and slowed the engine.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not engine.is_real or len(cores) < 2:
        yield
        return
    server = engine.process.pid
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_core = (folder / "comm").read_text().startswith("VLLM::Eng") and parent(folder) == server
            if is_core or int(folder.name) == server:
                pin(int(folder.name), cores[:1] if is_core else cores[1:])
    os.sched_setaffinity(0, set(cores[1:]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(cores))


def pin(process: int, cores: Sequence[int]) -> None:
    """Restrict all threads of a process to these cores."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def parent(folder: Path) -> int:
    """The parent's id of a process, given its folder in ``/proc``."""
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])


@dataclass(frozen=True)
class Front:
    """The URLs of the proxies, and of their state pages."""

    urls: Sequence[str]
    states: Sequence[str] = ()
    parts: Mapping[str, Process] = field(default_factory=dict)
    """The processes of the product, by name."""


@contextlib.contextmanager
def sidecars(
    folder: Path, pool_file: Path, engines: Sequence[Backend], flags: Sequence[str], debt_gain: float | None
) -> Iterator[Front]:
    """Start a sidecar for each engine; with several engines also a Redis and a coordinator."""
    gain = [] if debt_gain is None else ["--debt-gain", f"{debt_gain:g}"]
    parts: dict[str, Process] = {}
    with contextlib.ExitStack() as stack:

        def start(part: Process) -> None:
            parts[part.name] = stack.enter_context(part)

        store: list[str] = []
        if len(engines) > 1:
            page, redis = free_port(), RedisProcess(folder)
            start(redis)
            store = ["--store", redis.url]
            lead = [*module("coordinator"), "run", "--config", str(pool_file), *store, *gain]
            lead += ["--listen", f"127.0.0.1:{page}", "--log-level", "warning"]
            start(Process("coordinator", lead, folder, probe=f"http://127.0.0.1:{page}/healthz"))
        urls, states = [], []
        for number, engine in enumerate(engines):
            listen, admin = free_port(), free_port()
            run = [*module("sidecar"), "run", "--config", str(pool_file), "--upstream", engine.url, *store]
            run += ["--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"]
            run += ["--name", f"s{number}", "--log-level", "warning", *flags, *([] if store else gain)]
            probe = f"http://127.0.0.1:{admin}/readyz"
            start(Process(f"sidecar{number}", run, folder, probe=probe))
            urls.append(f"http://127.0.0.1:{listen}")
            states.append(f"http://127.0.0.1:{admin}/debug/state")
        yield Front(urls, states, parts)


@contextlib.contextmanager
def fixed_limit(folder: Path, engine: Backend, limits: dict[str, float]) -> Iterator[Front]:
    """Start a proxy with a fixed token rate per key."""
    port = free_port()
    command = [*module("experiments.fixed_limit"), "--upstream", engine.url, "--port", str(port)]
    command += [f"{key}={limit:g}" for key, limit in limits.items()]
    with Process("fixed_limit", command, folder, probe=f"http://127.0.0.1:{port}/health"):
        yield Front([f"http://127.0.0.1:{port}"])


def load(scenario: Path, front: Front, out: Path, seed: int, label: str) -> Process:
    """Start the load generator, which writes to the folder ``out``."""
    command = [*module("loadgen"), "run", str(scenario), "--out", str(out), "--seed", str(seed)]
    command += ["--label", label]
    command += [part for url in front.urls for part in ("--url", url)]
    command += [part for url in front.states for part in ("--state", url)]
    return Process(out.name, command, out.parent).start()


def finished(process: Process, timeout_s: float) -> None:
    """Wait for a load generator. Raises ``RuntimeError`` if it fails."""
    if process.wait(timeout_s) != 0:
        raise RuntimeError(f"the load generator failed; see {process.log}")


def lose(engines: Sequence[Backend], from_s: float, to_s: float) -> None:
    """Kill engines ``from_s`` seconds from now, and start them again ``to_s`` seconds from now."""
    began = time.monotonic()
    time.sleep(from_s)
    for engine in engines:
        engine.process.kill()
    time.sleep(max(to_s - (time.monotonic() - began), 0.0))
    for engine in engines:
        engine.process.start()
