"""The engine watcher: reads the engine's health and pages, off the request path.

Serving depends on ``/health`` alone. ``/metrics`` and ``/v1/models`` only refine what the controller knows.
Whatever they answer, however late, requests are served from the sidecar's own counts. Each is polled by a
loop of its own, so that none waits for another.

Only the start waits: no request is admitted before both pages have answered or failed once, and for at most
``poll_timeout``, since the KV bound is not known before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

import aiohttp
import msgspec

from sidecar.controller.controller import Controller
from sidecar.engine.metrics_page import SLICE_BYTES, PageReader, PageUnusable
from sidecar.proxy.upstream import EngineAddress
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry
from tokenpool.capacity.model import CapacityModel, EngineObservation
from tokenpool.pricing.cost import EngineShape

log = logging.getLogger(__name__)

MISSES_UNTIL_STALE = 3
"""Polls of the metrics page in a row without a usable answer after which the last one is not believed."""
MISSES_UNTIL_DOWN = 10
"""Health checks in a row without any answer after which the engine counts as down: another replica serves a
tenant better. A busy engine may answer late, so one silent check means nothing. An answer other than 200, or
a refused connection, needs no second check."""
PAGE_PATIENCE = 10
"""After so many times ``poll_timeout`` a page that still has not come is given up."""
MOST_MODELS_BYTES = 1024 * 1024
LONGEST_MODELS_PAUSE_S = 5.0
METRICS, MODELS, HEALTH = "/metrics", "/v1/models", "/health"


class _Model(msgspec.Struct):
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


@dataclass(slots=True)
class EngineStatus:
    """What ``/debug/state`` shows of the engine."""

    is_up: bool = False
    """Whether requests are sent to it."""
    is_healthy: bool = False
    """Whether ``/health`` answered 200 last; a few silent checks change nothing."""
    error: str | None = None
    """Why it was found to be down last."""
    misses: int = 0
    """Health checks in a row without an answer."""
    page_is_usable: bool = False
    page_error: str | None = None
    """Why the metrics page was not usable last."""
    page_misses: int = 0
    restarts: int = 0
    last: EngineObservation | None = None
    """The last usable metrics page; an old one while ``page_is_usable`` is false."""
    context_window: int | None = None
    models_error: str | None = None
    """Why the context window is not known, where ``/v1/models`` was asked for it in vain."""

    @property
    def seen(self) -> EngineObservation | None:
        """The last metrics page while it is believed."""
        return self.last if self.page_is_usable else None


class EngineWatcher:
    """Polls one engine."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineAddress,
        controller: Controller,
        telemetry: Telemetry,
        capacity: CapacityModel,
    ) -> None:
        self.status = EngineStatus()
        self.capacity = capacity
        self._settings = settings
        self._controller = controller
        self._telemetry = telemetry
        self._sheds_seen = self._slot_sheds_seen = 0
        self._engine = engine
        self._awaited = {METRICS, MODELS}
        """Pages that have neither answered nor failed yet since the start."""
        self._healthy = asyncio.Event()
        self._wants_window = asyncio.Event()
        self._wants_window.set()
        self._has_been_well = self._was_gone = False
        """Whether nothing listened after the engine was well: what listens then is another process."""
        self._page_failure_is_logged = False
        self.engine_key: str | None = None
        """The key that the engine itself asks for."""
        if settings.upstream_key_file is not None:
            self.engine_key = settings.upstream_key_file.read_text().strip()

    async def run(self) -> None:
        """Poll until cancelled."""
        # What is not asked for need not be decompressed: a small answer could become a large page.
        headers = {"accept-encoding": "identity"}
        if self.engine_key:
            headers["authorization"] = f"Bearer {self.engine_key}"
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), headers=headers, auto_decompress=False
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._check_forever(session))
            group.create_task(self._read_metrics_forever(session))
            group.create_task(self._read_models_forever(session))

    def degraded(self) -> list[str]:
        """What is not as it should be, though requests are served."""
        status, degraded = self.status, []
        if status.is_up and not status.page_is_usable and status.page_error is not None:
            degraded.append(
                f"the engine's {METRICS} is not usable: {status.page_error}; requests are served from this"
                " sidecar's own counts"
            )
        if status.is_up and self.capacity.lacks_kv_bound:
            degraded.append(
                "the engine's KV capacity is unknown, so KV tokens have no bound: set replica.kv_tokens"
            )
        return degraded

    def shown(self) -> dict[str, object]:
        """What ``/debug/state`` shows of health and pages."""
        status = self.status
        return {
            "error": None if status.is_up else status.error,
            "health_misses": status.misses,
            "page_usable": status.page_is_usable,
            "page_error": None if status.page_is_usable else status.page_error,
            "models_error": status.models_error,
            "kv_bound": not self.capacity.lacks_kv_bound,
        }

    def _request(
        self, session: aiohttp.ClientSession, path: str, *, allow_redirects: bool = True
    ) -> aiohttp.client._RequestContextManager:
        engine = self._engine
        return session.get(
            engine.origin.url + path,
            ssl=engine.context or True,
            server_hostname=engine.name,
            allow_redirects=allow_redirects,
        )

    # --- health ---

    async def _check_forever(self, session: aiohttp.ClientSession) -> None:
        while True:
            started = time.monotonic()
            await self._check_health(session)
            spent = time.monotonic() - started
            await asyncio.sleep(max(self._settings.poll_interval - spent, 0.01))

    async def _check_health(self, session: aiohttp.ClientSession, *, is_second: bool = False) -> None:
        wait = self._settings.poll_timeout
        try:
            async with (
                asyncio.timeout(wait),
                self._request(session, HEALTH, allow_redirects=False) as response,
            ):
                status = response.status
        except TimeoutError:
            self._is_silent(f"no answer to {HEALTH} within {wait:g} s")
        except Exception as error:
            # Whatever goes wrong, the check must go on: aiohttp raises more than its own errors.
            is_gone = isinstance(error, aiohttp.ClientConnectorError)
            if not is_gone and not is_second:
                # A connection that broke says little: a process that ended refuses the next one.
                await self._check_health(session, is_second=True)
                return
            self._was_gone = self._was_gone or (is_gone and self._has_been_well)
            self._is_down(str(error) or repr(error))
        else:
            if status == 200:
                self._is_well()
            else:
                self._is_down(f"{HEALTH} answers {status}")

    def _is_silent(self, error: str) -> None:
        """No answer in time: busy or hung."""
        status = self.status
        status.misses += 1
        if status.misses >= MISSES_UNTIL_DOWN or not status.is_healthy:
            self._is_down(error)

    def _is_well(self) -> None:
        status = self.status
        status.misses = 0
        if not status.is_healthy:
            log.info("the engine answers", extra={"upstream": self._engine.origin.url})
            status.is_healthy = self._has_been_well = True
            self._healthy.set()
        self._tell()

    def _is_down(self, error: str) -> None:
        status = self.status
        if status.is_healthy or error != status.error:
            log.warning("the engine does not answer", extra={"error": error})
        if status.is_healthy:
            # Its pages are read again once it is back; until then they say nothing.
            self._page_is(usable=False)
            status.page_error, status.page_misses = None, 0
            self.capacity.distrust()
            self._controller.engine.room = self.capacity.room(0, 0)
        status.error, status.is_healthy = error, False
        self._healthy.clear()
        self._tell()

    def _tell(self) -> None:
        """Tell the controller whether the engine is up.

        It may have found it down itself since the last check.
        """
        status = self.status
        status.is_up = status.is_healthy and not self._awaited
        self._controller.engine.is_up = self._telemetry.engine_is_up = status.is_up

    def _page_is(self, *, usable: bool) -> None:
        self.status.page_is_usable = self._telemetry.engine_page_is_usable = usable

    def _has_come(self, page: str) -> None:
        """A page has answered or failed, so nothing waits for it any more."""
        if page in self._awaited:
            self._awaited.remove(page)
            self._tell()

    # --- the metrics page ---

    async def _read_metrics_forever(self, session: aiohttp.ClientSession) -> None:
        interval = self._settings.poll_interval
        while True:
            await self._healthy.wait()
            started = time.monotonic()
            await self._look(session)
            spent = time.monotonic() - started
            # A page that takes long is asked for less often.
            await asyncio.sleep(max(interval - spent, min(spent, 4 * interval)))

    async def _look(self, session: aiohttp.ClientSession) -> None:
        """Read the page once. From a late one only what does not change is used: what ran then is over."""
        wait, late = self._settings.poll_timeout, 0
        reading = asyncio.ensure_future(self._read_metrics(session))
        try:
            while not (await asyncio.wait({reading}, timeout=wait))[0] and late < PAGE_PATIENCE:
                late += 1
                self._page_missed(f"it takes longer than {wait:g} s")
            if not reading.done():
                return
            seen = reading.result()
        except PageUnusable as error:
            self._page_missed(str(error))
        except Exception as error:
            self._page_missed(str(error) or repr(error))
        else:
            if not self.status.is_healthy:
                return
            if late:
                self._take_shape(seen)
                self.capacity.learn_cache(seen.kv_tokens)
                self._serve_from_own_counts()
            else:
                self._observe(seen)
        finally:
            reading.cancel()

    async def _read_metrics(self, session: aiohttp.ClientSession) -> EngineObservation:
        reader = PageReader()
        async with self._request(session, METRICS) as response:
            _check_page(response)
            async for data in response.content.iter_any():
                for at in range(0, len(data), SLICE_BYTES):
                    reader.feed(data[at : at + SLICE_BYTES])
                    await asyncio.sleep(0)
        return reader.observation(time.monotonic())

    def _observe(self, seen: EngineObservation) -> None:
        status, controller = self.status, self._controller
        last = status.last
        if last is not None and _restarted(last, seen):
            self._restarted()
        status.last, status.page_misses = seen, 0
        self._was_gone = False
        self._page_is(usable=True)
        if self._page_failure_is_logged:
            log.info("the engine's metrics page is usable again")
            self._page_failure_is_logged = False
        delayed = controller.throughput_sheds > self._sheds_seen
        lacked_slots = controller.slot_sheds > self._slot_sheds_seen
        self._sheds_seen, self._slot_sheds_seen = controller.throughput_sheds, controller.slot_sheds
        self.capacity.observe(seen, delayed, lacked_slots=lacked_slots)
        self._take_shape(seen)
        controller.engine.is_vllm = seen.is_vllm
        ledger = controller.ledger
        controller.look_at_engine(self.capacity.room(ledger.concurrency_in_use, ledger.kv_in_use))
        self._has_come(METRICS)

    def _take_shape(self, seen: EngineObservation) -> None:
        self._controller.engine.shape = EngineShape(seen.block_size, self.status.context_window)

    def _page_missed(self, error: str) -> None:
        """The page did not come or cannot be used. Its last numbers stand for a few polls more."""
        status = self.status
        if not status.is_healthy:
            return
        status.page_misses += 1
        status.page_error = error
        if status.page_is_usable and status.page_misses < MISSES_UNTIL_STALE:
            return
        self._page_is(usable=False)
        if not self._page_failure_is_logged:
            log.warning("the engine's metrics page is not usable", extra={"error": error})
            self._page_failure_is_logged = True
        if self._was_gone:
            self._restarted()
        self._was_gone = False
        self.capacity.distrust()
        self._serve_from_own_counts()
        self._has_come(METRICS)

    def _serve_from_own_counts(self) -> None:
        """Nothing tells what else runs on the engine: what the ledger counts is all that is known."""
        if not self.status.page_is_usable:
            self._controller.look_at_engine(self.capacity.room(0, 0))

    def _restarted(self) -> None:
        """Another process stands in the engine's place: what was learned of it is forgotten."""
        status = self.status
        log.warning("the engine restarted", extra={"restarts": status.restarts + 1})
        status.restarts += 1
        status.last = None
        self._forget_window()
        self.capacity.forget()
        self._controller.engine_restarted()

    # --- the context window ---

    def _forget_window(self) -> None:
        self.status.context_window = None
        self._wants_window.set()

    async def _read_models_forever(self, session: aiohttp.ClientSession) -> None:
        """Ask for the context window once per start of the engine, and again until it is known."""
        pause = interval = self._settings.poll_interval
        while True:
            await self._healthy.wait()
            await self._wants_window.wait()
            window = await self._read_window(session)
            if window is not None:
                self._wants_window.clear()
                self.status.context_window = window
                self._controller.engine.shape = self._controller.engine.shape._replace(context_window=window)
                pause = interval
            self._has_come(MODELS)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_MODELS_PAUSE_S)

    async def _read_window(self, session: aiohttp.ClientSession) -> int | None:
        """The smallest context window of the engine's models; ``None`` where it does not say."""
        wait, status = self._settings.poll_timeout, self.status
        try:
            async with asyncio.timeout(wait), self._request(session, MODELS) as response:
                _check_page(response)
                page = await _read(response, MOST_MODELS_BYTES)
            models = msgspec.json.decode(page, type=_Models)
        except TimeoutError:
            status.models_error = f"no answer to {MODELS} within {wait:g} s"
            return None
        except Exception as error:
            status.models_error = f"{MODELS}: {str(error) or repr(error)}"
            return None
        windows = [m.max_model_len for m in models.data if m.max_model_len and m.max_model_len > 0]
        status.models_error = None if windows else f"{MODELS} has no max_model_len"
        return min(windows, default=None)


def _check_page(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        raise PageUnusable(f"it answers {response.status}")
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise PageUnusable(f"it is encoded ({encoding[:20]}), which was not asked for")


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    parts, size = [], 0
    async for data in response.content.iter_any():
        size += len(data)
        if size > most:
            raise PageUnusable(f"it is larger than {most >> 20} MiB")
        parts.append(data)
    return b"".join(parts)


def _restarted(last: EngineObservation, seen: EngineObservation) -> bool:
    """A new process, or counters that went backwards."""
    return (
        (None not in (last.started_at, seen.started_at) and last.started_at != seen.started_at)
        or seen.generation_tokens < last.generation_tokens
        or seen.prompt_tokens < last.prompt_tokens
    )
