"""Reading the keys of one issuer: from a file, from a URL, or from the URL in its discovery document.

All of it happens in the background. Redirects are not followed, and sizes and times are bounded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp

from runtime.filewatch import FileWatch
from runtime.options import SettingsError
from runtime.tls import client_context
from sidecar.jwt.keys import KeySet, KeysUnusable
from sidecar.jwt.schedule import ReadSchedule
from tokenpool.entitlements import Issuer
from tokenpool.poolfile.issuers import is_safe_url

log = logging.getLogger(__name__)

MOST_DOCUMENT_BYTES = 256 * 1024
"""The longest document that is read. Microsoft Entra's key set has about 20 kB with its certificates."""
TIMEOUT_S = 5.0
"""Seconds for one document."""
_ACCEPT = "application/json, application/jwk-set+json, */*;q=0.1"
"""The API server of Kubernetes states the second type for its keys."""
DISCOVERY = "/.well-known/openid-configuration"


class SourceFailed(Exception):
    """The keys cannot be read. The text has the reason."""


class KeySource:
    """The keys of one issuer, kept up to date in the background."""

    def __init__(
        self,
        issuer: Issuer,
        clock: Callable[[], float],
        spread: float,
        changed: Callable[[], None],
    ) -> None:
        """``changed`` is called after each change of the keys. ``spread`` is from 0 to 1."""
        self.issuer = issuer
        self.keys = KeySet()
        self.reads = {"ok": 0, "failed": 0}
        self.problem: str | None = None
        """The reason why the keys could not be read last time; ``None`` if they were."""
        self.first_read = asyncio.Event()
        """Set after the first read, successful or not."""
        self._clock = clock
        self._began_at = clock()
        self._changed = changed
        self._schedule = ReadSchedule(self._began_at, spread)
        self._earlier = asyncio.Event()
        file = issuer.jwks_file
        self._file = None if file is None else FileWatch((Path(file),), self.read)

    @property
    def age_s(self) -> float:
        """Seconds since the keys were read; without keys, since the start."""
        read_at = self._schedule.read_at
        return self._clock() - (self._began_at if read_at is None else read_at)

    def ask(self) -> None:
        """Read the keys earlier, because a JWT has an unknown key id. At most one read in 10 s follows."""
        if self.issuer.jwks_file is None and self._schedule.ask(self._clock()):
            self._earlier.set()

    def request_read(self) -> None:
        """Read the keys now, because the operator wants it."""
        if self._file is not None:
            self._file.request_reload()
        self._schedule.request(self._clock())
        self._earlier.set()

    async def run(self) -> None:
        """Read the keys until cancelled."""
        await self.read()
        if self._file is not None:
            await self._file.run()
        while True:
            wait_s = self._schedule.due_at - self._clock()
            if wait_s <= 0:
                await self.read()
                continue
            self._earlier.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._earlier.wait()
            except TimeoutError:
                continue

    async def read(self) -> None:
        """Read the keys once, and put them in force. A failure is logged, and leaves the old ones."""
        try:
            is_changed = self.keys.replace(await self._document())
        except (SourceFailed, KeysUnusable) as error:
            self._failed(str(error))
        except Exception:
            log.critical("reading the keys of issuer %s failed", self.issuer.name, exc_info=True)
            self._failed("see the log")
        else:
            if self.problem is not None or self._schedule.read_at is None:
                log.info(
                    "the keys of issuer %s are in force", self.issuer.name, extra={"keys": len(self.keys)}
                )
            self.problem = None
            self.reads["ok"] += 1
            self._schedule.succeeded(self._clock())
            if is_changed:
                self._changed()
        self.first_read.set()

    def _failed(self, reason: str) -> None:
        now = self._clock()
        self.reads["failed"] += 1
        self._schedule.failed(now)
        problem = f"the keys of issuer {self.issuer.name!r} cannot be read: {reason}"
        if problem != self.problem:
            log.error(
                "%s; %s", problem, "the last ones stay in force" if self.keys else "its JWTs are refused"
            )
        self.problem = problem
        if self._schedule.has_lapsed(now) and self.keys:
            log.error("issuer %s: its keys are too old, and no longer in force", self.issuer.name)
            self.keys.retire()
            self._changed()

    async def _document(self) -> bytes:
        """The published key set. Raises ``SourceFailed``."""
        issuer = self.issuer
        if issuer.jwks_file is not None:
            return await asyncio.to_thread(_contents, issuer.jwks_file)
        context = await asyncio.to_thread(_context, issuer.ca_file)
        headers = {"accept": _ACCEPT, "accept-encoding": "identity"}
        if issuer.token_file is not None:
            token = (await asyncio.to_thread(_contents, issuer.token_file)).decode("ascii", "replace").strip()
            headers["authorization"] = f"Bearer {token}"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers, trust_env=True) as session:
            url = issuer.jwks_url or await self._discovered(session, context)
            return await _get(session, url, context)

    async def _discovered(self, session: aiohttp.ClientSession, context: ssl.SSLContext) -> str:
        """The URL of the keys in the discovery document. Raises ``SourceFailed``."""
        where = self.issuer.issuer.rstrip("/") + DISCOVERY
        try:
            document = json.loads(await _get(session, where, context))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise SourceFailed(f"{where} is not a JSON object")
        if document.get("issuer") != self.issuer.issuer:
            raise SourceFailed(
                f"{where} is the document of another issuer; copy its issuer into the pool file"
            )
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not is_safe_url(url):
            raise SourceFailed(f"{where} names no jwks_uri with https://")
        return url


async def _get(session: aiohttp.ClientSession, url: str, context: ssl.SSLContext) -> bytes:
    try:
        async with session.get(url, ssl=context, allow_redirects=False) as answer:
            if answer.status != 200:
                raise SourceFailed(f"{url} answers {answer.status}")
            content = bytearray()
            async for data in answer.content.iter_any():
                content += data
                if len(content) > MOST_DOCUMENT_BYTES:
                    raise SourceFailed(f"{url} has more than {MOST_DOCUMENT_BYTES} bytes")
            return bytes(content)
    except TimeoutError:
        raise SourceFailed(f"{url} does not answer within {TIMEOUT_S:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise SourceFailed(f"{url}: {error or type(error).__name__}") from error


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise SourceFailed(f"{path}: {error.strerror or error}") from error
    if len(content) > MOST_DOCUMENT_BYTES:
        raise SourceFailed(f"{path} has more than {MOST_DOCUMENT_BYTES} bytes")
    return content


def _context(ca_file: str | None) -> ssl.SSLContext:
    """The trusted authorities. They are read anew, as their file may have changed: 20 ms, in a thread."""
    try:
        return client_context(
            None if ca_file is None else Path(ca_file), None, ca_option="ca_file", pair_options=""
        )
    except SettingsError as error:
        raise SourceFailed(str(error)) from error
