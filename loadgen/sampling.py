"""Samples the state pages of sidecars, coordinators and engines during a run.

An unreadable page is a gap in the curves, not an error. The functions that parse a page are pure.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from loadgen import bodies
from loadgen.decoding import UNDECODABLE
from loadgen.records import EntitlementSample, Lines, Sample, numbers
from loadgen.sse import TooLong

INTERVAL_S = 0.5
TIMEOUT_S = 2.0
PAGE = "/debug/state"
MOST_BYTES = 8 << 20
_GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:gpu_cache_usage_perc": "kv_usage",
    "vllm:num_preemptions_total": "preemptions",
    "loadgen_engine_step_delay_seconds_count": "steps",
    "loadgen_engine_step_delay_seconds_sum": "step_delay_s",
    "loadgen_engine_lost_seconds_total": "lost_s",
}


def page_url(url: str) -> str:
    """The URL of the page: ``/debug/state`` if the URL names a server only."""
    return url.rstrip("/") + PAGE if urlsplit(url).path in ("", "/") else url


def samples(content: bytes, at_s: float, source: str) -> list[Sample]:
    """The samples of a page; empty for an unknown page. A coordinator's page has one sample for each pool."""
    if not content.lstrip().startswith(b"{"):
        engine = _metrics(content.decode("utf-8", "replace"))
        return [Sample(at_s, source, "engine", engine=engine)] if engine else []
    try:
        page = msgspec.json.decode(content)
    except UNDECODABLE:
        return []
    if isinstance(pools := page.get("pools"), dict):
        return [
            Sample(at_s, f"{source}#{name}", "coordinator", *_shares(pool))
            for name, pool in pools.items()
            if isinstance(pool, dict) and "entitlements" in pool
        ]
    if "entitlements" not in page:
        return []
    return [Sample(at_s, source, "sidecar", *_shares(page), engine=numbers(page.get("engine")))]


def _shares(page: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, EntitlementSample]]:
    entitlements = page.get("entitlements")
    found = {}
    for name, shown in entitlements.items() if isinstance(entitlements, dict) else ():
        if isinstance(shown, dict):
            limit, demand, in_use = (numbers(shown.get(what)) for what in ("limit", "demand", "in_use"))
            level, debt = (_number(shown.get(what)) for what in ("level", "debt"))
            found[name] = EntitlementSample(limit, demand, in_use, level, debt)
    return numbers(page.get("capacity")), found


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _metrics(text: str) -> dict[str, float]:
    """The gauges of an engine's metrics page, summed over its labels."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = _GAUGES.get(line.partition("{")[0].partition(" ")[0])
        if name is not None:
            try:
                value = float(line.rpartition(" ")[2])
            except ValueError:
                continue
            found[name] = found.get(name, 0.0) + value
    return found


class Sampler:
    """Reads every page twice a second until cancelled."""

    def __init__(
        self,
        urls: list[str],
        lines: Lines,
        clock: Callable[[], float],
        tls: ssl.SSLContext | bool = True,
    ) -> None:
        self._urls = urls
        self._tls = tls
        self._lines = lines
        self._clock = clock
        self.unread = dict.fromkeys(urls, 0)
        """The number of failed reads by URL."""

    async def run(self) -> None:
        """Read the pages until cancelled."""
        if not self._urls:
            return
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(ssl=self._tls)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._watch(session, url) for url in self._urls))

    async def _watch(self, session: aiohttp.ClientSession, url: str) -> None:
        while True:
            due = self._clock() + INTERVAL_S
            found = await self._sample(session, url)
            for sample in found:
                self._lines.write(sample)
            self.unread[url] += not found
            await asyncio.sleep(max(due - self._clock(), 0.0))

    async def _sample(self, session: aiohttp.ClientSession, url: str) -> list[Sample]:
        at = self._clock()
        try:
            async with session.get(page_url(url)) as response:
                content = await bodies.read(response, MOST_BYTES) if response.status == 200 else b""
        except (aiohttp.ClientError, OSError, TooLong):  # TimeoutError is an OSError
            return []
        return samples(content, at, url)
