"""Sends one attempt of a request over HTTP, and measures each token. Errors of servers are outcomes.

Every ending is an `Outcome` in the attempt's record. `run` decides when to send and whether to retry.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import aiohttp

from loadgen import bodies, causes, server_urls, sse
from loadgen.endpoints.dialect import Dialect, Event, secrets
from loadgen.endpoints.table import DIALECTS
from loadgen.records import Attempt, Outcome
from loadgen.scenario import Cancel, Tenant
from loadgen.statistics import gap_histogram, percentile

MOST_ERROR_BYTES = 1 << 16
MOST_BYTES = 256 << 20
"""The most bytes of a response that is not streamed: more than 2,048 embeddings of 4,096 numbers need."""
MOST_COUNT = 1 << 24
"""The most tokens that a count of a server may have."""
PREEMPTED = frozenset({"preempted", "rate_limit_error", "overloaded_error"})
"""Names of an error event that ends a preempted request. Anthropic's API has no name of its own for it."""
_JSON = "application/json"
_BY_STATUS = {429: Outcome.SHED, 503: Outcome.UNAVAILABLE, 529: Outcome.UNAVAILABLE}
"""529 is Anthropic's status of an overloaded server."""
_UNTIMED = aiohttp.ClientTimeout(total=None)


@dataclass(frozen=True, slots=True)
class Recipient:
    """The endpoint of a tenant's requests, and their headers."""

    dialect: Dialect
    headers: Mapping[str, str]

    @property
    def secrets(self) -> list[str]:
        """The keys in the headers, which a server may repeat in an error."""
        return secrets(self.headers)


def recipient(tenant: Tenant) -> Recipient:
    """The endpoint and the headers of a tenant. The tenant's own headers come last, so that they count."""
    dialect = DIALECTS[tenant.endpoint]
    headers = {"Content-Type": _JSON, **dialect.headers(tenant.key)}
    headers |= {header.name: header.value for header in tenant.headers}
    return Recipient(dialect, {name.lower(): value for name, value in headers.items()})


class Client:
    """The connections of a run: one for each request in flight.

    ``tls`` is for ``https`` URLs; ``True`` verifies certificates with the system's authorities.
    """

    def __init__(
        self,
        urls: list[str],
        timeout_s: float,
        clock: Callable[[], float],
        tls: ssl.SSLContext | bool = True,
    ) -> None:
        self._urls = [server_urls.base(url) for url in urls]
        self._timeout_s = timeout_s
        self._clock = clock
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ssl=tls),
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

    async def perform(
        self,
        attempt: Attempt,
        body: bytes,
        to: Recipient,
        *,
        cancel: Cancel | None = None,
        keeps_answer: bool = False,
    ) -> str:
        """Send an attempt, and record its course until its end. If its task is cancelled, it stays ``CUT``.

        ``cancel`` ends it as a client does. Returns the received text if ``keeps_answer``, or else nothing.
        """
        stream = _Stream(attempt, to.dialect, self._clock, keeps_answer=keeps_answer)
        if cancel is not None:
            stream.most_tokens = cancel.after_tokens
        patience = cancel.after_s if cancel is not None and cancel.after_s is not None else math.inf
        attempt.sent_s = self._clock()
        try:
            async with asyncio.timeout(min(self._timeout_s, patience)):
                await self._exchange(attempt, stream, body, to)
        except TimeoutError:
            if patience < self._timeout_s:
                attempt.outcome, attempt.reason = Outcome.CANCELLED, ""
            else:
                attempt.outcome = Outcome.TIMEOUT
                attempt.reason, attempt.message = causes.of_timeout(
                    self._timeout_s, status=attempt.status, has_token=attempt.first_s is not None
                )
        except sse.TooLong as error:
            attempt.outcome, attempt.reason, attempt.message = Outcome.ERROR, "response too large", str(error)
        except (aiohttp.ClientError, OSError) as error:
            attempt.outcome, attempt.reason, attempt.message = stream.ending(*causes.of_exception(error))
        finally:
            attempt.end_s = self._clock()
            if attempt.message or attempt.reason:
                attempt.message = causes.without(attempt.message, to.secrets)
                attempt.reason = causes.name(causes.without(attempt.reason, to.secrets))
            stream.close()
        return stream.answer

    async def _exchange(self, attempt: Attempt, stream: _Stream, body: bytes, to: Recipient) -> None:
        url = self._urls[attempt.url] + to.dialect.path
        async with self._session.post(url, data=body, headers=to.headers, allow_redirects=False) as response:
            attempt.status = response.status
            if response.status != 200:
                await _refused(attempt, response)
            elif response.content_type == "text/event-stream":
                await _streamed(attempt, stream, response)
            else:
                _whole(
                    attempt,
                    to.dialect,
                    stream,
                    response.content_type,
                    await bodies.read(response, MOST_BYTES),
                )


async def _refused(attempt: Attempt, response: aiohttp.ClientResponse) -> None:
    attempt.outcome = _BY_STATUS.get(response.status, Outcome.ERROR)
    attempt.retry_after_s = retry_after(response.headers)
    attempt.reason = response.headers.get("x-tokenpool-reason", "")
    content = await response.content.read(MOST_ERROR_BYTES)
    attempt.message = causes.message(content)
    if not attempt.reason:
        event = sse.decoded(content)
        named = event.error.name if event is not None and event.error else sse.UNNAMED
        attempt.reason = str(response.status) if named == sse.UNNAMED else named


async def _streamed(attempt: Attempt, stream: _Stream, response: aiohttp.ClientResponse) -> None:
    async for chunk in response.content.iter_any():
        stream.feed(chunk)
        if stream.is_enough:
            response.close()
            attempt.outcome = Outcome.CANCELLED
            return
    attempt.outcome, attempt.reason, attempt.message = stream.ending("stream ended early", stream.unread)


def _whole(attempt: Attempt, dialect: Dialect, stream: _Stream, content_type: str, content: bytes) -> None:
    """A response that is not streamed: its first token arrives with its last."""
    event = dialect.whole(content)
    if event is None:
        attempt.outcome = Outcome.ERROR
        attempt.reason, attempt.message = causes.of_wrong_content(content_type, content)
        return
    if event.error is not None:
        attempt.outcome = Outcome.ERROR
        attempt.reason, attempt.message = event.error.name, causes.line(event.error.message)
        return
    attempt.outcome = Outcome.SERVED
    stream.keep(event)
    _count(attempt, event.usage)


def _count(attempt: Attempt, usage: sse.Usage | None) -> None:
    """Record the server's counts. Impossible ones count as absent."""
    if usage is not None:
        if 0 <= usage.prompt_tokens <= MOST_COUNT:
            attempt.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None and 0 <= usage.completion_tokens <= MOST_COUNT:
            attempt.tokens, attempt.is_counted = usage.completion_tokens, True


class _Stream:
    """The observations of a stream in progress."""

    __slots__ = (
        "_answer",
        "_attempt",
        "_clock",
        "_decode",
        "_events",
        "_gaps",
        "_last_s",
        "_reader",
        "_usage",
        "failure",
        "is_finished",
        "most_tokens",
        "unread",
    )

    def __init__(
        self,
        attempt: Attempt,
        dialect: Dialect,
        clock: Callable[[], float],
        *,
        keeps_answer: bool = False,
    ) -> None:
        self._answer: list[str] | None = [] if keeps_answer else None
        self.most_tokens: int | None = None
        """The number of tokens after which the client ends the request."""
        self._attempt = attempt
        self._decode = dialect.event
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
            elif (event := self._decode(data)) is not None:
                self._take(event, now)
            elif not self.unread:
                self.unread = causes.message(data)

    def _take(self, event: Event, now: float) -> None:
        if event.is_token:
            if self._events:
                self._gaps.append(now - self._last_s)
            else:
                self._attempt.first_s = now
            self._events += 1
            self._last_s = now
            self.keep(event)
        if event.usage is not None:
            self._usage = event.usage.after(self._usage)
        if event.error is not None:
            self.failure = event.error
        if event.is_finish:
            self.is_finished = True

    @property
    def is_enough(self) -> bool:
        """Whether the client ends the request now. A finished stream needs no end."""
        return self.most_tokens is not None and self._events >= self.most_tokens and not self.is_finished

    @property
    def answer(self) -> str:
        """The received text; empty if it is not kept."""
        return "".join(self._answer or ())

    def keep(self, event: Event) -> None:
        """Keep the text of an event, or of a whole response, for the next turn of a conversation."""
        if self._answer is not None:
            self._answer.append(event.text)

    def ending(self, broken: str, message: str) -> tuple[Outcome, str, str]:
        """The outcome, reason and message of an ended stream; the arguments hold if the server sent none."""
        if self.failure is not None:
            name = self.failure.name
            outcome = Outcome.PREEMPTED if name in PREEMPTED else Outcome.ERROR
            return outcome, name, causes.line(self.failure.message)
        if not self.is_finished:
            return Outcome.BROKEN, broken, message
        has_tokens = self._events or (self._usage is not None and self._usage.completion_tokens)
        return (Outcome.SERVED, "", "") if has_tokens else (Outcome.ERROR, "no token", self.unread)

    def close(self) -> None:
        """Record the observations in the attempt."""
        attempt, gaps = self._attempt, self._gaps
        if self._events:
            attempt.tokens, attempt.last_s = self._events, self._last_s
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
