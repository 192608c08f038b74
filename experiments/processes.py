"""Processes of one run: engines, what stands in front of them, the load. Each ends with its context."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.engine import Engine, free_port
from demo.redis import executable

READY_S = 240.0
MODEL = "small"


class NotReady(RuntimeError):
    """A part did not come up; the text names it and its log."""


@dataclass
class Part:
    """A process of ours."""

    name: str
    command: Sequence[str]
    folder: Path
    probe: str = ""
    """A URL that answers 200 once it is ready."""
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again, and wait until it is ready. Raises ``NotReady``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{self.name}.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        deadline = time.monotonic() + READY_S
        while self.probe and not answers(self.probe):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NotReady(f"{self.name} did not come up; see {log}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def kill_and_start(self, gone_s: float) -> None:
        """End it at once, and start it again so much later."""
        self.kill()
        time.sleep(gone_s)
        self.start()

    def stand_still(self, still_s: float) -> None:
        """Keep it from running for so long."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            time.sleep(still_s)
            self._process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """End it politely."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(part: Part) -> Iterator[Part]:
    """Start a part, and stop it at the end."""
    try:
        part.start()
        yield part
    finally:
        part.stop()


def answers(url: str) -> bool:
    """Whether a page answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class Backend:
    """One engine: real, or simulated. Can be killed and brought back."""

    def __init__(self, kind: str, folder: Path, number: int, flags: Sequence[str], slots: int) -> None:
        self._log = folder / f"engine{number}.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._slots, self._flags = slots, tuple(flags)
        self._real: Engine | None = None
        self._simulated: Part | None = None
        if kind == "vllm":
            self._real = Engine(self._log, self.port, slots, extra=self._flags, model=MODEL)
        else:
            command = [*module("loadgen.engine"), "--port", str(self.port), "--slots", str(slots)]
            command += ["--model", MODEL, *flags]
            self._simulated = Part(f"engine{number}", command, folder, f"{self.url}/health")

    @property
    def pid(self) -> int | None:
        """Of a real engine's server."""
        return self._real.pid if self._real is not None else None

    def start(self) -> None:
        """Start it; ``wait_ready`` waits."""
        if self._real is not None:
            self._real.start()
        elif self._simulated is not None:
            self._simulated.start()

    def wait_ready(self) -> None:
        """Wait until it answers."""
        if self._real is not None:
            self._real.wait_ready(READY_S)

    def kill(self) -> None:
        """End it at once, as a node that fails does."""
        if self._real is not None:
            self._real.stop(grace=0.0)
        elif self._simulated is not None:
            self._simulated.kill()

    def stop(self) -> None:
        """End it."""
        if self._real is not None:
            self._real.stop()
        elif self._simulated is not None:
            self._simulated.stop()


@contextlib.contextmanager
def backends(
    kind: str, folder: Path, count: int, flags: Sequence[str], slots: int
) -> Iterator[list[Backend]]:
    """Some engines, all ready."""
    made = [Backend(kind, folder, number, flags, slots) for number in range(count)]
    try:
        for backend in made:
            backend.start()
        for backend in made:
            backend.wait_ready()
        yield made
    finally:
        for backend in made:
            backend.stop()


@contextlib.contextmanager
def core_of_its_own(engine: Backend) -> Iterator[None]:
    """Give an engine's computing process the first core; its server, proxies and load share the others.

    On two cores the load would else run on the engine's, now and then, and that is what would be measured.
    """
    cores = sorted(os.sched_getaffinity(0))
    server = engine.pid
    if server is None or len(cores) < 2:
        yield
        return
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
    """Have all threads of a process run on these cores."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def resident_kb(process: int | None) -> int:
    """What a process has in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def parent(folder: Path) -> int:
    """Of a process, by its folder in ``/proc``."""
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def module(name: str) -> list[str]:
    """The command that runs one of this project's modules."""
    return [sys.executable, "-m", name]


@dataclass(frozen=True)
class Front:
    """What tenants are given: addresses, and pages that tell about them."""

    urls: Sequence[str]
    states: Sequence[str] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    """Our processes, by name."""


@contextlib.contextmanager
def sidecars(
    folder: Path, pool_file: Path, engines: Sequence[Backend], flags: Sequence[str], debt_gain: float | None
) -> Iterator[Front]:
    """A sidecar for each engine; with several of them a Redis and a coordinator."""
    gain = [] if debt_gain is None else ["--debt-gain", f"{debt_gain:g}"]
    parts: dict[str, Part] = {}
    with contextlib.ExitStack() as stack:

        def start(part: Part) -> None:
            parts[part.name] = stack.enter_context(running(part))

        store: list[str] = []
        if len(engines) > 1:
            port, page = free_port(), free_port()
            command = [executable(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
            start(Part("redis", [*command, "--dir", str(folder)], folder))
            store = ["--store", f"redis://127.0.0.1:{port}"]
            lead = [*module("coordinator"), "run", "--config", str(pool_file), *store, *gain]
            lead += ["--listen", f"127.0.0.1:{page}", "--log-level", "warning"]
            start(Part("coordinator", lead, folder, f"http://127.0.0.1:{page}/healthz"))
        urls, states = [], []
        for number, engine in enumerate(engines):
            listen, admin = free_port(), free_port()
            run = [*module("sidecar"), "run", "--config", str(pool_file), "--upstream", engine.url, *store]
            run += ["--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"]
            run += ["--name", f"s{number}", "--log-level", "warning", *flags, *([] if store else gain)]
            probe = f"http://127.0.0.1:{admin}/readyz"
            start(Part(f"sidecar{number}", run, folder, probe))
            urls.append(f"http://127.0.0.1:{listen}")
            states.append(f"http://127.0.0.1:{admin}/debug/state")
        yield Front(urls, states, parts)


@contextlib.contextmanager
def fixed_limit(folder: Path, engine: Backend, limits: dict[str, float]) -> Iterator[Front]:
    """A proxy with fixed tokens per minute by key."""
    port = free_port()
    command = [*module("experiments.fixed_limit"), "--upstream", engine.url, "--port", str(port)]
    command += [f"{key}={limit:g}" for key, limit in limits.items()]
    with running(Part("fixed_limit", command, folder, f"http://127.0.0.1:{port}/health")):
        yield Front([f"http://127.0.0.1:{port}"])


def load(scenario: Path, front: Front, out: Path, seed: int, label: str) -> subprocess.Popen[bytes]:
    """Start the load generator; its folder is ``out``."""
    command = [*module("loadgen"), "run", str(scenario), "--out", str(out), "--seed", str(seed)]
    command += ["--label", label]
    command += [part for url in front.urls for part in ("--url", url)]
    command += [part for url in front.states for part in ("--state", url)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def finished(process: subprocess.Popen[bytes], out: Path, timeout_s: float) -> None:
    """Wait for a load generator that writes to ``out``. Raises ``RuntimeError`` where it failed."""
    if process.wait(timeout_s) != 0:
        raise RuntimeError(f"the load generator failed; see {out}.log")


def lose(engines: Sequence[Backend], from_s: float, to_s: float) -> None:
    """Kill engines ``from_s`` seconds from now, and start them again ``to_s`` seconds from now."""
    began = time.monotonic()
    time.sleep(from_s)
    for engine in engines:
        engine.kill()
    time.sleep(max(to_s - (time.monotonic() - began), 0.0))
    for engine in engines:
        engine.start()
