"""Sends one attempt of a request over HTTP, and measures each token. Errors of servers are outcomes.

Every ending is an `Outcome` in the attempt's record. `run` decides when to send and whether to retry.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from types import TracebackType

import aiohttp

from loadgen import causes, sse
from loadgen.records import Attempt, Outcome
from loadgen.statistics import gap_histogram, percentile

MOST_ERROR_BYTES = 1 << 16
PREEMPTED = "preempted"
"""The code of an error event that ends a preempted request."""
_JSON = "application/json"
_BY_STATUS = {429: Outcome.SHED, 503: Outcome.UNAVAILABLE}
_UNTIMED = aiohttp.ClientTimeout(total=None)


class Client:
    """The connections of a run: one for each request in flight."""

    def __init__(self, urls: list[str], path: str, timeout_s: float, clock: Callable[[], float]) -> None:
        self._urls = [url.rstrip("/").removesuffix("/v1") + path for url in urls]
        self._timeout_s = timeout_s
        self._clock = clock
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=_UNTIMED,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 20,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def perform(self, attempt: Attempt, body: bytes, key: str | None) -> None:
        """Send an attempt, and record its course until its end. If cancelled, it stays ``CUT``."""
        stream = _Stream(attempt, self._clock)
        attempt.sent_s = self._clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(attempt, stream, body, key)
        except TimeoutError:
            attempt.outcome = Outcome.TIMEOUT
            attempt.reason, attempt.message = causes.of_timeout(
                self._timeout_s, status=attempt.status, has_token=attempt.first_s is not None
            )
        except (aiohttp.ClientError, OSError) as error:
            attempt.outcome, attempt.reason, attempt.message = stream.ending(*causes.of_exception(error))
        finally:
            attempt.end_s = self._clock()
            attempt.message = causes.without(attempt.message, key)
            stream.close()

    async def _exchange(self, attempt: Attempt, stream: _Stream, body: bytes, key: str | None) -> None:
        headers = {"Content-Type": _JSON}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        url = self._urls[attempt.url]
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            attempt.status = response.status
            if response.status != 200:
                await _refused(attempt, response)
            elif response.content_type == "text/event-stream":
                await _streamed(attempt, stream, response)
            else:
                _whole(attempt, response.content_type, await response.read())


async def _refused(attempt: Attempt, response: aiohttp.ClientResponse) -> None:
    attempt.outcome = _BY_STATUS.get(response.status, Outcome.ERROR)
    attempt.retry_after_s = retry_after(response.headers)
    attempt.reason = response.headers.get("x-tokenpool-reason", "")
    content = await response.content.read(MOST_ERROR_BYTES)
    attempt.message = causes.message(content)
    if not attempt.reason:
        event = sse.decoded(content)
        attempt.reason = event.error.name if event is not None and event.error else str(response.status)


async def _streamed(attempt: Attempt, stream: _Stream, response: aiohttp.ClientResponse) -> None:
    async for chunk in response.content.iter_any():
        stream.feed(chunk)
    attempt.outcome, attempt.reason, attempt.message = stream.ending("stream ended early", stream.unread)


def _whole(attempt: Attempt, content_type: str, content: bytes) -> None:
    """A response that is not streamed: its first token arrives with its last."""
    event = sse.decoded(content)
    if event is None or not event.choices:
        attempt.outcome = Outcome.ERROR
        attempt.reason, attempt.message = causes.of_wrong_content(content_type, content)
        return
    attempt.outcome = Outcome.SERVED
    _count(attempt, event.usage)


def _count(attempt: Attempt, usage: sse.Usage | None) -> None:
    if usage is not None:
        attempt.prompt_tokens = usage.prompt_tokens
        attempt.tokens = usage.completion_tokens or 0


class _Stream:
    """The observations of a stream in progress."""

    __slots__ = (
        "_attempt",
        "_clock",
        "_events",
        "_gaps",
        "_last_s",
        "_reader",
        "_usage",
        "failure",
        "is_finished",
        "unread",
    )

    def __init__(self, attempt: Attempt, clock: Callable[[], float]) -> None:
        self._attempt = attempt
        self._clock = clock
        self._reader = sse.Reader()
        self._events = 0
        self._last_s = 0.0
        self._gaps: list[float] = []
        self._usage: sse.Usage | None = None
        self.failure: sse.Failure | None = None
        self.is_finished = False
        """Whether the server sent the end of the stream."""
        self.unread = ""
        """The first event that is not one of a completion."""

    def feed(self, chunk: bytes) -> None:
        """Count the events in a chunk that arrives now."""
        now = self._clock()
        for data in self._reader.feed(chunk):
            if data == sse.DONE:
                self.is_finished = True
            elif (event := sse.decoded(data)) is not None:
                self._take(event, now)
            elif not self.unread:
                self.unread = causes.message(data)

    def _take(self, event: sse.Event, now: float) -> None:
        if event.is_token:
            if self._events:
                self._gaps.append(now - self._last_s)
            else:
                self._attempt.first_s = now
            self._events += 1
            self._last_s = now
        if event.usage is not None:
            self._usage = event.usage
        if event.error is not None:
            self.failure = event.error
        if event.is_finish:
            self.is_finished = True

    def ending(self, broken: str, message: str) -> tuple[Outcome, str, str]:
        """The outcome, reason and message of an ended stream; the arguments hold if the server sent none."""
        if self.failure is not None:
            name = self.failure.name
            outcome = Outcome.PREEMPTED if name == PREEMPTED else Outcome.ERROR
            return outcome, name, causes.line(self.failure.message)
        if not self.is_finished:
            return Outcome.BROKEN, broken, message
        has_tokens = self._events or (self._usage is not None and self._usage.completion_tokens)
        return (Outcome.SERVED, "", "") if has_tokens else (Outcome.ERROR, "no token", self.unread)

    def close(self) -> None:
        """Record the observations in the attempt."""
        attempt, gaps = self._attempt, self._gaps
        if self._events:
            attempt.tokens = self._events
        _count(attempt, self._usage)
        if gaps:
            attempt.gap_mean_s = sum(gaps) / len(gaps)
            attempt.gap_max_s = max(gaps)
            attempt.gap_p99_s = percentile(sorted(gaps), 0.99)
            attempt.gaps = gap_histogram(gaps)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait before a retry in seconds: ``retry-after-ms``, or else ``Retry-After``, as SDKs read them.

    Dates are ignored, because no LLM server sends them.
    """
    for name, unit in (("retry-after-ms", 0.001), ("Retry-After", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
