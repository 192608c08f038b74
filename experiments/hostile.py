"""A hostile tenant: the effect of its attacks on another tenant, and on the sidecar's memory.

One engine, one sidecar. A guaranteed tenant, the victim, sends at a steady rate. The hostile tenant has a
ceiling of two sequences, because this experiment does not measure how the engine is shared. Ordinary use of
these two sequences alternates with the attacks of ``attacks``. Goals: the victim's P99 time to first token
rises by less than a fifth, all its requests are served, also on new connections, and the sidecar's memory
stays below the bound in docs/security.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from experiments.attacks import KINDS, MOST_PER_S, ORDINARY
from experiments.processes import Backend, Front, backends, load, parent, pin, sidecars
from loadgen.records import Outcome, Run
from loadgen.records import load as read_run
from loadgen.summary import first_token, requests
from toolbox.percentiles import percentile
from toolbox.processes import module

SLOTS = 16
MOST_RISE = 1.2
"""The largest P99 as a multiple of the P99 during ordinary use."""
CONNECTIONS, BUFFERED = 4000, 128 << 20
MEMORY_MB = 50 + CONNECTIONS * 0.11 + BUFFERED / 1e6
"""The bound of docs/security.md for these two settings."""
FLAGS = ("--max-connections", str(CONNECTIONS), "--max-buffered-bytes", str(BUFFERED))
NEW_CONNECTION_EVERY_S = 0.2
MOST_UNANSWERED = 0.02
"""The share of requests on new connections. In a flood, a client without a key has 0.1 s to send its head."""
MOST_NEW_CONNECTION_S = 0.25
"""The limit for the P50 of requests on new connections, which wait behind those of a flood, s."""
SCENARIO = """\
name: hostile
model: small
duration_s: {duration:g}
drain_s: 10
tenants:
  - name: victim
    key: victim-key
    tier: guaranteed
    arrivals: {{poisson: {{rate: {rate:g}}}}}
    input: 16
    output: 16
"""
POOL = """\
pools:
  - name: chat
    models: [small]
    replica: {tokens_per_second: auto, kv_tokens: auto, concurrency: 16}
entitlements:
  - name: victim
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 1000, kv_tokens: 4000, concurrency: 12}
    api_keys: [victim-key]
  - name: hostile
    pool: chat
    tier: elastic
    ceiling: {concurrency: 2}
    api_keys: [hostile-key]
"""


@dataclass(frozen=True)
class Sizes:
    """The size of a run: seconds of each phase, seconds between two phases, and requests per second."""

    phase: float = 15.0
    pause: float = 2.0
    rate: float = 15.0
    attackers: int = 1
    """Concurrent attacker processes. More than one needs more cores."""

    def duration(self, attacks: int) -> float:
        """The most seconds of a run with so many attacks, with time for an attacker to start and to end."""
        return 2 * (self.phase + self.pause + 10.0) * attacks


@dataclass(frozen=True)
class AttackResult:
    """The results of one attack."""

    attack: str
    actions: dict[str, int]
    """The attacker's counts of its actions."""
    p50_s: float
    p99_s: float
    ordinary_p99_s: float
    """The P99 over all phases of ordinary use."""
    requests: int
    not_served: int
    on_new_connections: int
    unanswered: int
    """The requests on new connections that failed, were refused or got no response within 5 s."""
    new_connection_p50_s: float
    ordinary_new_connection_p50_s: float
    """P50 of the served requests on new connections, in this phase and in ordinary use, s."""
    seconds: float
    """The duration of the phase, s."""
    memory_mb: float
    """The sidecar's largest resident memory."""
    cpu: float
    """The sidecar's CPU time as a share of a core."""

    @property
    def rise(self) -> float:
        """The P99 divided by the P99 of ordinary use."""
        return self.p99_s / self.ordinary_p99_s if self.ordinary_p99_s else float("inf")

    @property
    def new_connection_rise(self) -> float:
        """The P50 on new connections divided by that of ordinary use."""
        return (
            self.new_connection_p50_s / self.ordinary_new_connection_p50_s
            if self.ordinary_new_connection_p50_s
            else float("inf")
        )

    @property
    def actions_per_s(self) -> float:
        """The attacker's actions per second."""
        return sum(self.actions.values()) / self.seconds

    @property
    def least_per_s(self) -> float:
        """The least rate of its actions."""
        return KINDS[self.attack].least_per_s


def goals(results: Sequence[AttackResult]) -> list[tuple[str, bool]]:
    """The goals, and whether each is reached."""
    found: list[tuple[str, bool]] = []
    for one in results:
        found += [
            (
                f"{one.attack}: P99 is {one.rise:.2f} of ordinary use, under {MOST_RISE:g}",
                one.rise < MOST_RISE,
            ),
            (
                f"{one.attack}: {one.not_served} of {one.requests} not served,"
                f" {one.unanswered} of {one.on_new_connections} on new connections; none, one in fifty",
                one.not_served == 0 < one.on_new_connections
                and one.unanswered <= MOST_UNANSWERED * one.on_new_connections,
            ),
            (
                f"{one.attack}: {one.memory_mb:.0f} MB, under {MEMORY_MB:.0f}",
                0 < one.memory_mb < MEMORY_MB,
            ),
            (
                f"{one.attack}: new connections' P50 {one.new_connection_p50_s:.3f} s,"
                f" under {MOST_NEW_CONNECTION_S:g}",
                one.new_connection_p50_s < MOST_NEW_CONNECTION_S,
            ),
            (
                f"{one.attack}: {one.actions_per_s:.0f} actions per second, at least {one.least_per_s:g}",
                one.actions_per_s >= one.least_per_s,
            ),
        ]
    return found


def table(results: Sequence[AttackResult]) -> str:
    """The numbers as a Markdown table."""
    rows = [
        "| | actions per second | P50, ms | P99 | of ordinary use | new connection | not served | MB"
        " | core |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        actions = ", ".join(
            f"{count / one.seconds:,.1f} {what}" for what, count in sorted(one.actions.items())
        )
        rows.append(
            f"| {one.attack} | {actions} | {one.p50_s * 1000:.0f} | {one.p99_s * 1000:.0f} | {one.rise:.2f}"
            f" | {one.new_connection_rise:.2f}"
            f" | {one.not_served + one.unanswered} of {one.requests + one.on_new_connections}"
            f" | {one.memory_mb:.0f}"
            f" | {one.cpu:.0%} |"
        )
    return "\n".join(rows)


@dataclass
class _Phase:
    """A phase of the run in wall-clock time, with its measurements."""

    what: str
    began: float = 0.0
    ended: float = 0.0
    actions: dict[str, int] = field(default_factory=dict)
    memory_mb: float = 0.0
    cpu_s: float = 0.0
    new_connections_s: list[float] = field(default_factory=list)
    unanswered: int = 0


def run(kind: str, sizes: Sizes, seed: int, out: Path, only: Sequence[str] = ()) -> list[AttackResult]:
    """Run the experiment once, with all attacks or those in ``only``."""
    attacks = [attack for attack in KINDS if not only or attack in only]
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file, pool = out / "scenario.yaml", folder / "pool.yaml"
    file.write_text(SCENARIO.format(duration=sizes.duration(len(attacks)), rate=sizes.rate))
    pool.write_text(POOL)
    with (
        backends(kind, folder, 1, (), SLOTS) as engines,
        sidecars(folder, pool, engines, FLAGS, None) as front,
        _cores(front, engines),
    ):
        process = load(file, front, out / "run", seed, "hostile")
        phases = [_phase(one, front, sizes) for attack in attacks for one in (ORDINARY, attack)]
        time.sleep(sizes.pause)
        process.signal(signal.SIGINT)  # ends the load, and keeps its records
        process.wait(60)
    return _results(read_run(out / "run"), phases)


@contextmanager
def _cores(front: Front, engines: Sequence[Backend]) -> Iterator[None]:
    """Give the sidecar the last core. All other processes share the other cores, so they do not delay it."""
    cores = sorted(os.sched_getaffinity(0))
    sidecar = front.parts["sidecar0"].pid
    if len(cores) < 2:
        yield
        return
    pin(sidecar, cores[-1:])
    servers = {engine.process.pid for engine in engines if engine.is_real}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(process.name) in servers or parent(process) in servers:
                pin(int(process.name), cores[:-1])
    os.sched_setaffinity(0, cores[:-1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _phase(what: str, front: Front, sizes: Sizes) -> _Phase:
    time.sleep(sizes.pause)
    phase = _Phase(what, time.time())
    over = threading.Event()
    threads = [
        threading.Thread(target=work, args=(front, phase, over)) for work in (_sample, _use_new_connections)
    ]
    for thread in threads:
        thread.start()
    try:
        phase.actions = _attack(what, front.urls[0], sizes)
    finally:
        phase.ended = time.time()
        over.set()
        for thread in threads:
            thread.join()
    return phase


def _attack(kind: str, url: str, sizes: Sizes) -> dict[str, int]:
    """Run the attackers with idle priority, so that they do not take CPU time from the other processes."""
    command = [*module("experiments.attacks"), kind, "--url", url, "--key", "hostile-key"]
    count = sizes.attackers if kind != ORDINARY else 1
    attackers = [
        subprocess.Popen(
            [*command, "--seconds", f"{sizes.phase:g}", "--most-per-s", f"{MOST_PER_S / count:g}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for _ in range(count)
    ]
    actions: Counter[str] = Counter()
    try:
        for attacker in attackers:
            os.sched_setscheduler(attacker.pid, os.SCHED_IDLE, os.sched_param(0))
        for attacker in attackers:
            printed, _ = attacker.communicate(timeout=sizes.phase + 60)
            if attacker.returncode:
                raise subprocess.CalledProcessError(attacker.returncode, command)
            actions.update(json.loads(printed))
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.wait()
    return dict(actions)


def _sample(front: Front, phase: _Phase, over: threading.Event) -> None:
    sidecar = front.parts["sidecar0"]
    before_s = sidecar.cpu_seconds()
    while not over.wait(0.2):
        phase.memory_mb = max(phase.memory_mb, sidecar.resident_mb())
    phase.cpu_s = sidecar.cpu_seconds() - before_s


def _use_new_connections(front: Front, phase: _Phase, over: threading.Event) -> None:
    """Send requests of the victim, each on a new connection."""
    body = json.dumps({"model": "small", "prompt": [5] * 4, "max_tokens": 1}).encode()
    headers = {"authorization": "Bearer victim-key", "content-type": "application/json"}
    while not over.wait(NEW_CONNECTION_EVERY_S):
        began = time.monotonic()
        request = urllib.request.Request(f"{front.urls[0]}/v1/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                response.read()
            phase.new_connections_s.append(time.monotonic() - began)
        except (urllib.error.URLError, OSError):
            phase.unanswered += 1


def _results(run_: Run, phases: Sequence[_Phase]) -> list[AttackResult]:
    began = datetime.fromisoformat(run_.meta.started).timestamp()
    tries = requests(run_.attempts)

    def during(*some: _Phase) -> tuple[list[float], int]:
        """Times to first token of the requests due in these phases, and the number of those not served."""
        firsts: list[float] = []
        not_served = 0
        for tried in tries:
            due = began + tried[0].intended_s
            if any(phase.began <= due < phase.ended for phase in some):
                not_served += tried[-1].outcome is not Outcome.SERVED
                first = first_token(tried[-1], run_.meta.drain_s)
                if first is not None:
                    firsts.append(first[0])
        return sorted(firsts), not_served

    ordinary = [phase for phase in phases if phase.what == ORDINARY]
    ordinary_firsts, _ = during(*ordinary)
    ordinary_new_connections = sorted(took for phase in ordinary for took in phase.new_connections_s)
    found = []
    for phase in phases:
        if phase.what != ORDINARY:
            firsts, not_served = during(phase)
            found.append(
                AttackResult(
                    phase.what,
                    phase.actions,
                    percentile(firsts, 0.5),
                    percentile(firsts, 0.99),
                    percentile(ordinary_firsts, 0.99),
                    len(firsts),
                    not_served,
                    len(phase.new_connections_s) + phase.unanswered,
                    phase.unanswered,
                    percentile(phase.new_connections_s, 0.5),
                    percentile(ordinary_new_connections, 0.5),
                    phase.ended - phase.began,
                    phase.memory_mb,
                    phase.cpu_s / (phase.ended - phase.began),
                )
            )
    return found
