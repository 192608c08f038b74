"""The engine watcher: polls the engine's health and pages outside the request path, and records the outcomes.

Serving depends on ``/health`` alone. ``/metrics`` and ``/v1/models`` only refine the state. Without them
requests are served from the sidecar's own counts. Each page is polled by its own loop, so no poll waits for
another one.

At the start, no request is admitted before both pages have answered or failed once, because the KV
bound is not known before. That takes at most ``poll_timeout``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import aiohttp

from sidecar.engine import models_page
from sidecar.engine.address import HEALTH, METRICS, MODELS, EngineAddress
from sidecar.engine.metrics_page import SLICE_BYTES, PageReader, PageUnusable
from sidecar.engine.state import EngineState
from tokenpool.capacity.model import EngineObservation

PAGE_PATIENCE = 10
"""The time limit of a page, as a multiple of ``poll_timeout``."""
LONGEST_MODELS_PAUSE_S = 5.0
"""The longest pause between two requests for a context window that the engine does not state."""


class EngineWatcher:
    """Polls one engine. Times are in seconds."""

    def __init__(
        self,
        address: EngineAddress,
        state: EngineState,
        load: Callable[[], tuple[int, int]],
        *,
        poll_interval: float,
        poll_timeout: float,
    ) -> None:
        self._address = address
        self._state = state
        self._load = load
        """The sequences and KV tokens that this sidecar has put on the engine."""
        self._interval = poll_interval
        self._timeout = poll_timeout
        self._is_well = asyncio.Event()
        """Set while the pages must be read."""
        self._wants_window = asyncio.Event()
        """Set while the context window is unknown."""
        self._observed = asyncio.Event()
        self._wake_loops()

    async def run(self) -> None:
        """Poll until cancelled."""
        # Nothing is decompressed: a small compressed answer could become a large page.
        headers = {"accept-encoding": "identity"}
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), headers=headers, auto_decompress=False
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._check_forever(session))
            group.create_task(self._read_metrics_forever(session))
            group.create_task(self._read_models_forever(session))

    async def polls(self) -> AsyncIterator[None]:
        """Yield each time the metrics page was polled or the engine came or went, until cancelled.

        The state is up to date before. Polls that end while the caller is busy count as one.
        """
        while True:
            await self._observed.wait()
            self._observed.clear()
            yield

    def _request(
        self, session: aiohttp.ClientSession, path: str, *, allow_redirects: bool = True
    ) -> aiohttp.client._RequestContextManager:
        address = self._address
        return session.get(
            address.origin.url + path,
            headers={"authorization": f"Bearer {address.key}"} if address.key else None,
            ssl=address.context or True,
            server_hostname=address.name,
            allow_redirects=allow_redirects,
        )

    def _wake_loops(self) -> None:
        """Start or stop the loops that read pages, by the state of the engine."""
        _set_to(self._is_well, self._state.health.is_well)
        _set_to(self._wants_window, self._state.shape.context_window is None)

    # --- health ---

    async def _check_forever(self, session: aiohttp.ClientSession) -> None:
        while True:
            started = time.monotonic()
            was_up = self._state.is_up
            await self._check_health(session)
            self._wake_loops()
            if self._state.is_up != was_up:
                self._observed.set()
            spent = time.monotonic() - started
            await asyncio.sleep(max(self._interval - spent, 0.01))

    async def _check_health(self, session: aiohttp.ClientSession, *, is_second: bool = False) -> None:
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._request(session, HEALTH, allow_redirects=False) as response,
            ):
                status = response.status
        except TimeoutError:
            self._state.health_silent(f"no answer to {HEALTH} within {self._timeout:g} s")
        except Exception as error:
            # aiohttp raises other errors than its own, and the checks must continue.
            is_refused = isinstance(error, aiohttp.ClientConnectorError)
            if not is_refused and not is_second:
                # A broken connection proves little. If the process ended, the next connection is refused.
                await self._check_health(session, is_second=True)
                return
            self._state.health_failed(_words(error), is_refused=is_refused)
        else:
            if status == 200:
                self._state.health_answered()
            else:
                self._state.health_failed(f"{HEALTH} answers {status}")

    # --- the metrics page ---

    async def _read_metrics_forever(self, session: aiohttp.ClientSession) -> None:
        while True:
            await self._is_well.wait()
            started = time.monotonic()
            await self._poll_metrics(session)
            self._metrics_changed()
            spent = time.monotonic() - started
            # A page that takes long is polled less often.
            await asyncio.sleep(max(self._interval - spent, min(spent, 4 * self._interval)))

    async def _poll_metrics(self, session: aiohttp.ClientSession) -> None:
        """Read the page once, and report each ``poll_timeout`` without it as a miss."""
        late = 0
        reading = asyncio.ensure_future(self._read_metrics(session))
        try:
            while not (await asyncio.wait({reading}, timeout=self._timeout))[0] and late < PAGE_PATIENCE:
                late += 1
                self._state.page_missed(f"it takes longer than {self._timeout:g} s")
                self._metrics_changed()
            if not reading.done():
                return
            seen = reading.result()
        except Exception as error:
            self._state.page_missed(_words(error))
        else:
            if late:
                self._state.page_late(seen)
            else:
                self._state.page_read(seen, *self._load())
        finally:
            reading.cancel()

    def _metrics_changed(self) -> None:
        self._wake_loops()
        self._observed.set()

    async def _read_metrics(self, session: aiohttp.ClientSession) -> EngineObservation:
        reader = PageReader()
        async with self._request(session, METRICS) as response:
            _check_page(response)
            async for data in response.content.iter_any():
                for at in range(0, len(data), SLICE_BYTES):
                    reader.feed(data[at : at + SLICE_BYTES])
                    await asyncio.sleep(0)
        return reader.observation(time.monotonic())

    # --- the context window ---

    async def _read_models_forever(self, session: aiohttp.ClientSession) -> None:
        """Ask for the context window once per start of the engine, and again until it is known."""
        pause = self._interval
        while True:
            await self._is_well.wait()
            await self._wants_window.wait()
            await self._poll_models(session)
            self._wake_loops()
            if not self._wants_window.is_set():
                pause = self._interval
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_MODELS_PAUSE_S)

    async def _poll_models(self, session: aiohttp.ClientSession) -> None:
        try:
            async with asyncio.timeout(self._timeout), self._request(session, MODELS) as response:
                _check_page(response)
                page = await _read(response, models_page.MOST_BYTES)
            window = models_page.context_window(page)
        except TimeoutError:
            self._state.context_window_missed(f"no answer to {MODELS} within {self._timeout:g} s")
        except Exception as error:
            self._state.context_window_missed(f"{MODELS}: {_words(error)}")
        else:
            self._state.context_window_read(window)


def _set_to(event: asyncio.Event, is_set: bool) -> None:
    if is_set:
        event.set()
    else:
        event.clear()


def _words(error: Exception) -> str:
    return str(error) or repr(error)


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
