"""A hostile tenant: what its attacks on the sidecar do to another tenant, and to the sidecar's memory.

One engine, one sidecar. A guaranteed tenant sends at a steady rate; another has a ceiling of two sequences,
since how the engine itself is shared is not what is measured here. In turn that one uses them as it may, and
attacks as ``attacks`` has it. Wanted: the first one's P99 time to first token rises by less than a fifth,
every one of its requests is served, also on new connections, and the sidecar's memory stays under the bound
that docs/security.md states.
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
"""The largest P99, as a multiple of the P99 beside ordinary use."""
CONNECTIONS, BUFFERED = 4000, 128 << 20
MEMORY_MB = 50 + CONNECTIONS * 0.11 + BUFFERED / 1e6
"""The bound of docs/security.md for these two settings."""
FLAGS = ("--max-connections", str(CONNECTIONS), "--max-buffered-bytes", str(BUFFERED))
KNOCK_EVERY_S = 0.2
MOST_UNANSWERED = 0.02
"""Of requests on new connections: in a flood a stranger has a tenth of a second to send its head."""
MOST_KNOCK_S = 0.25
"""The time limit of a request on a new connection, which waits behind those of a flood, s."""
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
    """Seconds of each phase, between two, and requests per second."""

    phase: float = 15.0
    pause: float = 2.0
    rate: float = 15.0
    attackers: int = 1
    """Processes that attack at once, where there are cores for them."""

    def duration(self, attacks: int) -> float:
        """Of a whole run with so many attacks, at most: an attacker takes a moment to begin and to end."""
        return 2 * (self.phase + self.pause + 10.0) * attacks


@dataclass(frozen=True)
class Suffered:
    """The results of one attack."""

    attack: str
    did: dict[str, int]
    """The attacker's own counts."""
    p50_s: float
    p99_s: float
    usual_p99_s: float
    """Over all phases without an attack."""
    requests: int
    not_served: int
    knocked: int
    unanswered: int
    """Requests on new connections; those without an answer within some seconds, or with a refusal."""
    knock_p50_s: float
    usual_knock_p50_s: float
    """Durations of the answered ones, and in phases without an attack, s."""
    seconds: float
    """The duration of the phase, s."""
    memory_mb: float
    """The sidecar's largest."""
    cpu: float
    """Of a core, that the sidecar took."""

    @property
    def rise(self) -> float:
        """P99 over the usual one."""
        return self.p99_s / self.usual_p99_s if self.usual_p99_s else float("inf")

    @property
    def knock_rise(self) -> float:
        """P50 on new connections over the usual one."""
        return self.knock_p50_s / self.usual_knock_p50_s if self.usual_knock_p50_s else float("inf")

    @property
    def did_per_s(self) -> float:
        """The attacker's actions per second."""
        return sum(self.did.values()) / self.seconds

    @property
    def least_per_s(self) -> float:
        """The least number of its actions."""
        return KINDS[self.attack].least_per_s


def goals(all_suffered: Sequence[Suffered]) -> list[tuple[str, bool]]:
    """The goals in words, and whether they are reached."""
    found: list[tuple[str, bool]] = []
    for one in all_suffered:
        found += [
            (f"{one.attack}: P99 is {one.rise:.2f} of the usual, under {MOST_RISE:g}", one.rise < MOST_RISE),
            (
                f"{one.attack}: {one.not_served} of {one.requests} not served,"
                f" {one.unanswered} of {one.knocked} on new connections; none, one in fifty",
                one.not_served == 0 < one.knocked and one.unanswered <= MOST_UNANSWERED * one.knocked,
            ),
            (
                f"{one.attack}: {one.memory_mb:.0f} MB, under {MEMORY_MB:.0f}",
                0 < one.memory_mb < MEMORY_MB,
            ),
            (
                f"{one.attack}: new connections' P50 {one.knock_p50_s:.3f} s, under {MOST_KNOCK_S:g}",
                one.knock_p50_s < MOST_KNOCK_S,
            ),
            (
                f"{one.attack}: {one.did_per_s:.0f} things done in a second, {one.least_per_s:g} or more",
                one.did_per_s >= one.least_per_s,
            ),
        ]
    return found


def table(all_suffered: Sequence[Suffered]) -> str:
    """The numbers as a Markdown table."""
    rows = [
        "| | done in a second | P50, ms | P99 | of the usual | new connection | not served | MB | core |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in all_suffered:
        did = ", ".join(f"{count / one.seconds:,.1f} {what}" for what, count in sorted(one.did.items()))
        rows.append(
            f"| {one.attack} | {did} | {one.p50_s * 1000:.0f} | {one.p99_s * 1000:.0f} | {one.rise:.2f}"
            f" | {one.knock_rise:.2f}"
            f" | {one.not_served + one.unanswered} of {one.requests + one.knocked} | {one.memory_mb:.0f}"
            f" | {one.cpu:.0%} |"
        )
    return "\n".join(rows)


@dataclass
class _Phase:
    """A span of the run, in wall-clock time, and what was seen in it."""

    what: str
    began: float = 0.0
    ended: float = 0.0
    did: dict[str, int] = field(default_factory=dict)
    memory_mb: float = 0.0
    cpu_s: float = 0.0
    knocks_s: list[float] = field(default_factory=list)
    unanswered: int = 0


def run(kind: str, sizes: Sizes, seed: int, out: Path, only: Sequence[str] = ()) -> list[Suffered]:
    """Run it once, with all attacks or some."""
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
        process.signal(signal.SIGINT)  # it has been long enough: keep what was seen
        process.wait(60)
    return _judged(read_run(out / "run"), phases)


@contextmanager
def _cores(front: Front, engines: Sequence[Backend]) -> Iterator[None]:
    """Give the sidecar the last core; all others share the rest, so that none of them is what is measured."""
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
    threads = [threading.Thread(target=work, args=(front, phase, over)) for work in (_sample, _knock)]
    for thread in threads:
        thread.start()
    try:
        phase.did = _attack(what, front.urls[0], sizes)
    finally:
        phase.ended = time.time()
        over.set()
        for thread in threads:
            thread.join()
    return phase


def _attack(kind: str, url: str, sizes: Sizes) -> dict[str, int]:
    """Have processes attack, with what the others leave of their cores: not the machine is attacked."""
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
    did: Counter[str] = Counter()
    try:
        for attacker in attackers:
            os.sched_setscheduler(attacker.pid, os.SCHED_IDLE, os.sched_param(0))
        for attacker in attackers:
            said, _ = attacker.communicate(timeout=sizes.phase + 60)
            if attacker.returncode:
                raise subprocess.CalledProcessError(attacker.returncode, command)
            did.update(json.loads(said))
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.wait()
    return dict(did)


def _sample(front: Front, phase: _Phase, over: threading.Event) -> None:
    sidecar = front.parts["sidecar0"]
    before_s = sidecar.cpu_seconds()
    while not over.wait(0.2):
        phase.memory_mb = max(phase.memory_mb, sidecar.resident_mb())
    phase.cpu_s = sidecar.cpu_seconds() - before_s


def _knock(front: Front, phase: _Phase, over: threading.Event) -> None:
    """Come as the victim does when it has no connection yet."""
    body = json.dumps({"model": "small", "prompt": [5] * 4, "max_tokens": 1}).encode()
    headers = {"authorization": "Bearer victim-key", "content-type": "application/json"}
    while not over.wait(KNOCK_EVERY_S):
        began = time.monotonic()
        request = urllib.request.Request(f"{front.urls[0]}/v1/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                response.read()
            phase.knocks_s.append(time.monotonic() - began)
        except (urllib.error.URLError, OSError):
            phase.unanswered += 1


def _judged(run_: Run, phases: Sequence[_Phase]) -> list[Suffered]:
    began = datetime.fromisoformat(run_.meta.started).timestamp()
    tries = requests(run_.attempts)

    def during(*some: _Phase) -> tuple[list[float], int]:
        """Times to first token of requests due in these phases, and how many were not served."""
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
    usual, _ = during(*ordinary)
    usual_knocks = sorted(took for phase in ordinary for took in phase.knocks_s)
    found = []
    for phase in phases:
        if phase.what != ORDINARY:
            firsts, not_served = during(phase)
            found.append(
                Suffered(
                    phase.what,
                    phase.did,
                    percentile(firsts, 0.5),
                    percentile(firsts, 0.99),
                    percentile(usual, 0.99),
                    len(firsts),
                    not_served,
                    len(phase.knocks_s) + phase.unanswered,
                    phase.unanswered,
                    percentile(phase.knocks_s, 0.5),
                    percentile(usual_knocks, 0.5),
                    phase.ended - phase.began,
                    phase.memory_mb,
                    phase.cpu_s / (phase.ended - phase.began),
                )
            )
    return found
