"""The cost of a decision: authenticate, parse, price and admit, in this process, without a socket."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from bench.peers import KEY, POOL
from sidecar.configuration import Configuration
from sidecar.controller.controller import Controller
from sidecar.decisions import AdmittedRequest, Refusal
from sidecar.engine.state import EngineState
from sidecar.identity import KeyRing, digests
from sidecar.lifecycle import Lifecycle
from sidecar.ports import LoopPorts
from sidecar.proxy.heads import RequestHead
from sidecar.telemetry import Telemetry
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.amounts import Amount
from tokenpool.capacity.model import CapacityModel, EngineObservation
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.entitlements import ReplicaCapacity
from tokenpool.outcomes import Ending
from tokenpool.poolfile.reading import parse
from tokenpool.pricing.cost import Usage


def chat(prompt_bytes: int) -> bytes:
    """The body of a chat request with a prompt of so many bytes."""
    words = "The quick brown fox jumps over the lazy dog. "
    prompt = (words * (prompt_bytes // len(words) + 1))[:prompt_bytes]
    return json.dumps(
        {"model": "bench", "messages": [{"role": "user", "content": prompt}], "max_tokens": 64}
    ).encode()


def decision_seconds(prompt_bytes: int) -> float:
    """Seconds per request from its head to its ticket, without its settlement."""
    controller, head, body = _controller(), _head(), chat(prompt_bytes)
    spent = 0.0
    rounds = max(20_000_000 // (prompt_bytes + 10_000), 50)
    best = float("inf")
    for _ in range(5):
        spent = 0.0
        for _ in range(rounds):
            began = time.perf_counter()
            authorized = controller.authorize(head)
            assert not isinstance(authorized, Refusal)
            admitted = controller.admit(*authorized, body)
            spent += time.perf_counter() - began
            assert isinstance(admitted, AdmittedRequest)
            controller.settlement.settle(
                admitted, Ending.FINISHED, Usage(prompt_bytes // 4, 60), 0, spent=True
            )
        best = min(best, spent / rounds)
    return best


def json_seconds(prompt_bytes: int) -> float:
    """Seconds that the standard library needs to decode the same body, for comparison."""
    body = chat(prompt_bytes)
    return _timed(lambda: json.loads(body), max(20_000_000 // (prompt_bytes + 10_000), 50))


def _timed(work: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(rounds):
            work()
        best = min(best, (time.perf_counter() - began) / rounds)
    return best


def _controller() -> Controller:
    file = parse(POOL, name="bench").file
    keys = KeyRing(digests(file.entitlements, lambda ref: ref.value))
    telemetry, engine = Telemetry(400), _engine()
    control = AdmissionControl(telemetry.clock(), AdmissionQueue(QueueSettings()))
    controller = Controller(
        Driver(control, LoopPorts(telemetry.clock)),
        engine,
        telemetry,
        Lifecycle(),
        Configuration(file, file.pools[0], keys, KeyRing({}), (), ""),
    )
    for account in controller.accounts.values():
        account.set_limits(Amount(1e12, 1e9, 10_000), Amount(), 0.0, time.monotonic())
    controller.engine_changed()
    return controller


def _engine() -> EngineState:
    """An engine with room for every request."""
    engine = EngineState(CapacityModel(ReplicaCapacity(1e9, 1e9, 10_000)))
    engine.health_answered()
    engine.page_read(EngineObservation(at=0.0, running=0, waiting=0, kv_usage=0.0, kv_tokens=1e9), 0, 0)
    engine.context_window_read(262_144)
    return engine


def _head() -> RequestHead:
    head = RequestHead()
    head.method, head.path = b"POST", b"/v1/chat/completions"
    head.target = head.path
    head.headers = [
        (b"host", b"bench"),
        (b"authorization", f"Bearer {KEY}".encode()),
        (b"content-type", b"application/json"),
    ]
    return head
