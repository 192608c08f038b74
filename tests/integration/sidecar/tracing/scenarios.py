"""Requests with different fates, each with a trace: for the tests, and for the pictures in the documents.

Each function runs live sidecars with a scripted engine, and returns the spans of one request. ``pace_s`` is
the time that an engine takes for a token, and 0 in tests.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from sidecar.app import Sidecar
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.integration.sidecar.handover.peers import POOL as ONE_SLOT
from tests.integration.sidecar.handover.peers import handover_of, known, replica, shared_store
from tests.support.harness import STREAM, Response, ask, connected, request, sidecar_for, until
from toolbox.collector import Collector, Span

CHAT_PATH = "/v1/chat/completions"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
"""The span of the caller."""
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"
TRACED = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
TOKENS = 5


class Engine:
    """Answers streams of ``TOKENS`` tokens at a pace. Those of ``holder`` last until they are released."""

    def __init__(self, pace_s: float) -> None:
        self.pace_s = pace_s
        self.may_end = asyncio.Event()

    async def __call__(self, received: Received, writer: asyncio.StreamWriter) -> None:
        is_held = received.json().get("user") == "holder"
        await asyncio.sleep(2 * self.pace_s)  # the prefill
        writer.write(fake.STREAM_HEAD)
        for _ in range(TOKENS):
            writer.write(fake.chunk(fake.token_event()))
            await asyncio.sleep(self.pace_s)
        if is_held:
            await self.may_end.wait()
        writer.write(fake.chunk(fake.FINISH_EVENT) + fake.chunk(fake.usage_event()))
        writer.write(fake.chunk(fake.DONE) + b"0\r\n\r\n")


def chat(key: str, *, user: str = "", headers: dict[str, str] | None = None) -> bytes:
    """A streamed chat request."""
    return request(CHAT_PATH, STREAM | {"user": user}, key=key, headers=headers)


async def hold(sidecar: Sidecar, engine: FakeEngine, key: str = "e-key") -> asyncio.Future[Response]:
    """Take one slot until the engine is released."""
    count = len(engine.received)
    held = asyncio.ensure_future(ask(sidecar, chat(key, user="holder"), seconds=20))
    await until(lambda: len(engine.received) > count)
    return held


async def served(engine: FakeEngine, folder: Path, collector: Collector, pace_s: float = 0.0) -> list[Span]:
    """A request that the engine here serves at once."""
    engine.answer = Engine(pace_s)
    async with sidecar_for(engine.port, folder, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, chat("e-key", headers=TRACED))).status == 200
    return collector.of(TRACE_ID)


async def shed(engine: FakeEngine, folder: Path, collector: Collector, pace_s: float = 0.0) -> list[Span]:
    """A request that waits in the queue until its deadline."""
    engine.answer = answer = Engine(pace_s)
    async with sidecar_for(
        engine.port,
        folder,
        pool=ONE_SLOT,
        queue_timeout_elastic=10 * pace_s or 0.1,
        otlp_endpoint=endpoint(collector),
    ) as sidecar:
        for _ in range(3):  # without a known pace, a request that may wait only briefly is refused at once
            assert (await ask(sidecar, chat("e-key"))).status == 200
        held = await hold(sidecar, engine)
        assert (await ask(sidecar, chat("e-key", headers=TRACED))).status == 429
        answer.may_end.set()
        await held
    return collector.of(TRACE_ID)


async def queued(engine: FakeEngine, folder: Path, collector: Collector, pace_s: float = 0.0) -> list[Span]:
    """A request that waits in the queue until another one ends."""
    engine.answer = answer = Engine(pace_s)
    async with sidecar_for(
        engine.port, folder, pool=ONE_SLOT, queue_timeout_elastic=5.0, otlp_endpoint=endpoint(collector)
    ) as sidecar:
        held = await hold(sidecar, engine)
        waiting = asyncio.ensure_future(ask(sidecar, chat("e-key", headers=TRACED)))
        await until(lambda: len(sidecar.control.queue) > 0)
        await asyncio.sleep(6 * pace_s)
        answer.may_end.set()
        await held
        assert (await waiting).status == 200
    return collector.of(TRACE_ID)


async def handed_over(
    engine: FakeEngine, second: FakeEngine, folder: Path, collector: Collector, pace_s: float = 0.0
) -> list[Span]:
    """A request that finds no room here. It waits for another replica, which is the first to have room."""
    store = await shared_store()
    engine.answer = answer = Engine(pace_s)
    second.answer = there_answer = Engine(pace_s)
    options = {"otlp_endpoint": endpoint(collector)}
    async with (
        replica(engine.port, folder, store, name="here", **options) as here,
        replica(second.port, folder, store, name="there", **options) as there,
    ):
        held = [await hold(here, engine), await hold(there, second)]
        await until(lambda: len(known(here)) == 1)
        waiting = asyncio.ensure_future(ask(here, chat("e-key", headers=TRACED)))
        await until(lambda: handover_of(there).port.waiting["elastic"] > 0)
        await asyncio.sleep(4 * pace_s)
        there_answer.may_end.set()
        assert (await waiting).status == 200
        answer.may_end.set()
        await asyncio.gather(*held)
    return collector.of(TRACE_ID)


async def preempted(
    engine: FakeEngine, folder: Path, collector: Collector, pace_s: float = 0.0
) -> list[Span]:
    """A spot stream that ends for a guarantee."""
    engine.answer = Engine(pace_s)
    async with (
        sidecar_for(engine.port, folder, pool=ONE_SLOT, otlp_endpoint=endpoint(collector)) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        writer.write(chat("s-key", user="holder", headers=TRACED))
        await reader.readuntil(b"\n\n")
        await asyncio.sleep(2.5 * pace_s)
        assert (await ask(sidecar, chat("g-key"))).status == 200
        await reader.readuntil(b"0\r\n\r\n")
    return collector.of(TRACE_ID)


def endpoint(collector: Collector) -> str:
    """The value of ``--otlp-endpoint`` for a collector."""
    return f"{collector.url}/v1/traces"
