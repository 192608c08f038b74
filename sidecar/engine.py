"""The engine watcher: reads the engine's own metrics and health, off the request path.

It keeps the gate's picture of the engine current: up or down, how much room, which shapes. A slow page is
not a dead engine: it counts as stale first, and admission goes on with the sidecar's own counts.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass

import aiohttp
import msgspec

from sidecar.gate import Gate
from sidecar.http.upstream import EngineAddress
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry
from tokenpool.capacity import CapacityModel, EngineObservation
from tokenpool.cost import EngineShape

log = logging.getLogger(__name__)

MISSES_UNTIL_STALE = 3
"""Polls in a row without an answer after which the last observation is no longer believed."""
MISSES_UNTIL_DOWN = 10
"""... and after which the engine counts as down: a tenant is better served by another replica."""

_SAMPLE = re.compile(
    rb"^(vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc"
    rb"|num_preemptions_total|prompt_tokens_total|generation_tokens_total|prefix_cache_hits_total"
    rb"|cache_config_info)|process_start_time_seconds)(?:\{(.*)\})? ([^ \n]+)",
    re.MULTILINE,
)
_LABEL = re.compile(rb'(block_size|num_gpu_blocks|kv_cache_size_tokens)="([0-9.]+)"')


class _Model(msgspec.Struct):
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


def parse_metrics(page: bytes, at: float) -> EngineObservation | None:
    """An observation from vLLM's Prometheus page; ``None`` where the page is not vLLM's.

    Values are summed over models and engines behind one server, but for the cache's use, of which the
    fullest counts.
    """
    values: dict[bytes, float] = {}
    cache: dict[bytes, float] = {}
    usage = 0.0
    for name, labels, text in _SAMPLE.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        if name == b"vllm:cache_config_info":
            for label, number in _LABEL.findall(labels):
                cache[label] = float(number)
        elif name.endswith(b"cache_usage_perc"):
            usage = max(usage, value)
        else:
            values[name] = values.get(name, 0.0) + value
    if b"vllm:num_requests_running" not in values:
        return None
    return EngineObservation(
        at=at,
        running=values[b"vllm:num_requests_running"],
        waiting=values.get(b"vllm:num_requests_waiting", 0.0),
        kv_usage=usage,
        kv_tokens=_cache_tokens(cache),
        block_size=int(cache.get(b"block_size", 16)),
        prompt_tokens=values.get(b"vllm:prompt_tokens_total", 0.0),
        generation_tokens=values.get(b"vllm:generation_tokens_total", 0.0),
        cached_tokens=values.get(b"vllm:prefix_cache_hits_total", 0.0),
        preemptions=values.get(b"vllm:num_preemptions_total", 0.0),
        started_at=values.get(b"process_start_time_seconds"),
    )


def _cache_tokens(cache: dict[bytes, float]) -> float | None:
    said = cache.get(b"kv_cache_size_tokens")
    if said:
        return said
    blocks = cache.get(b"num_gpu_blocks")
    return blocks * cache.get(b"block_size", 16) if blocks else None


@dataclass(slots=True)
class EngineStatus:
    """What ``/debug/state`` shows of the engine."""

    is_up: bool = False
    is_stale: bool = True
    restarts: int = 0
    misses: int = 0
    last: EngineObservation | None = None
    context_window: int | None = None
    error: str | None = None
    """Why it was found to be down last."""


class EngineWatcher:
    """Polls one engine."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineAddress,
        gate: Gate,
        telemetry: Telemetry,
        capacity: CapacityModel,
    ) -> None:
        self.status = EngineStatus()
        self.capacity = capacity
        self._settings = settings
        self._gate = gate
        self._telemetry = telemetry
        self._sheds_seen = self._slot_sheds_seen = 0
        self._engine = engine
        self.engine_key: str | None = None
        """The key that the engine itself asks for."""
        if settings.upstream_key_file is not None:
            self.engine_key = settings.upstream_key_file.read_text().strip()

    async def run(self) -> None:
        """Poll until cancelled."""
        timeout = aiohttp.ClientTimeout(total=self._settings.poll_timeout)
        headers = {"authorization": f"Bearer {self.engine_key}"} if self.engine_key else {}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            while True:
                started = time.monotonic()
                await self._poll(session)
                spent = time.monotonic() - started
                await asyncio.sleep(max(self._settings.poll_interval - spent, 0.01))

    async def _poll(self, session: aiohttp.ClientSession) -> None:
        try:
            if not self.status.is_up:
                await self._check_health(session)
            page = await self._get(session, "/metrics")
            seen = parse_metrics(page, time.monotonic())
            if seen is not None:
                self._observe(seen)
            else:
                await self._check_health(session)
            if self.status.context_window is None:
                await self._read_shape(session)
        except (TimeoutError, aiohttp.ServerTimeoutError):
            self._missed()
        except (aiohttp.ClientError, OSError) as error:
            self._is_down(error)
        else:
            self._is_up()

    async def _get(self, session: aiohttp.ClientSession, path: str) -> bytes:
        engine = self._engine
        async with session.get(
            engine.origin.url + path, ssl=engine.context or True, server_hostname=engine.name
        ) as response:
            response.raise_for_status()
            return await response.read()

    async def _check_health(self, session: aiohttp.ClientSession) -> None:
        await self._get(session, "/health")

    async def _read_shape(self, session: aiohttp.ClientSession) -> None:
        """The context window; asked for once per start of the engine."""
        try:
            models = msgspec.json.decode(await self._get(session, "/v1/models"), type=_Models)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        windows = [m.max_model_len for m in models.data if m.max_model_len]
        if windows:
            self.status.context_window = min(windows)

    def _observe(self, seen: EngineObservation) -> None:
        status, gate = self.status, self._gate
        last = status.last
        if last is not None and _restarted(last, seen):
            log.warning("the engine restarted", extra={"restarts": status.restarts + 1})
            status.restarts += 1
            status.context_window = None
            self.capacity.forget()
            gate.engine_restarted()
        status.last, status.misses, status.is_stale = seen, 0, False
        held_back = gate.throughput_sheds > self._sheds_seen
        lacked_slots = gate.slot_sheds > self._slot_sheds_seen
        self._sheds_seen, self._slot_sheds_seen = gate.throughput_sheds, gate.slot_sheds
        self.capacity.observe(seen, held_back, lacked_slots=lacked_slots)
        gate.engine.shape = EngineShape(seen.block_size, status.context_window)
        ledger = gate.ledger
        gate.look_at_engine(self.capacity.room(ledger.concurrency_in_use, ledger.kv_in_use))

    def _missed(self) -> None:
        """No answer in time: busy or hung. What it said last is soon no longer believed."""
        status = self.status
        status.misses += 1
        if status.misses == MISSES_UNTIL_STALE:
            log.warning("the engine's metrics are stale", extra={"misses": status.misses})
            status.is_stale = True
            self.capacity.distrust()
            self._gate.engine.room = self.capacity.room(0, 0)
        if status.misses >= MISSES_UNTIL_DOWN or not status.is_up:
            self._is_down(TimeoutError("no answer to health and metrics in time"))

    def _is_up(self) -> None:
        if not self.status.is_up:
            log.info("the engine answers", extra={"upstream": self._engine.origin.url})
        self._say(True)
        if self._gate.engine.room.slots == 0:
            self._gate.engine.room = self.capacity.room(0, 0)

    def _is_down(self, error: Exception) -> None:
        text = str(error) or repr(error)
        if self.status.is_up or text != self.status.error:
            log.warning("the engine does not answer", extra={"error": text})
        self.status.error = text
        self._say(False)

    def _say(self, is_up: bool) -> None:
        self.status.is_up = self._gate.engine.is_up = self._telemetry.engine_is_up = is_up


def _restarted(last: EngineObservation, seen: EngineObservation) -> bool:
    """A new process, or counters that went backwards."""
    return (
        last.started_at != seen.started_at
        or seen.generation_tokens < last.generation_tokens
        or seen.prompt_tokens < last.prompt_tokens
    )
