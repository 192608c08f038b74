"""Counts the tokens of prompts before a run: by the engine's route ``/tokenize``, or by a tokenizer file.

The engine counts what it adds, such as its chat template. A file does not know that.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, NoReturn, Protocol

import aiohttp
import msgspec

from loadgen import bodies, causes, server_urls
from loadgen.decoding import UNDECODABLE
from loadgen.endpoints.dialect import bearer, secrets
from loadgen.fields import ScenarioError
from loadgen.scenario import Scenario
from loadgen.sse import TooLong

_AT_ONCE = 16
_TIMEOUT_S = 30.0
MOST_BYTES = 16 << 20
"""A count, with the ids of all tokens."""
_INSTALL = "install 'tokenpool[tokenizer]', or write 'tokenizer: engine'"


class Counter(Protocol):
    """Counts tokens. Both raise ``ScenarioError`` if that is not possible."""

    async def prompt(self, fields: Mapping[str, object]) -> int:
        """The tokens of a request with these fields: ``model``, and ``prompt`` or ``messages``."""

    async def text(self, text: str) -> int:
        """The tokens of a text alone, without anything that the engine adds."""


class _Counted(msgspec.Struct):
    count: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]


class EngineCounter:
    """Counts by ``POST /tokenize``, as vLLM has it."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, model: str, headers: Mapping[str, str]
    ) -> None:
        self._session = session
        self._url = server_urls.base(url) + "/tokenize"
        self._model = model
        self._headers = headers
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def prompt(self, fields: Mapping[str, object]) -> int:
        """The tokens of a prompt, with what the engine adds."""
        return await self._count(fields)

    async def text(self, text: str) -> int:
        """The tokens of a text alone."""
        return await self._count({"model": self._model, "prompt": text, "add_special_tokens": False})

    async def _count(self, body: Mapping[str, object]) -> int:
        try:
            async with (
                self._free,
                self._session.post(self._url, json=body, headers=self._headers) as response,
            ):
                content = await bodies.read(response, MOST_BYTES)
                if response.status != 200:
                    said = causes.message(content) or "no text"
                    self._fail(f"answered {response.status}: {causes.without(said, secrets(self._headers))}")
                return msgspec.json.decode(content, type=_Counted).count
        except (*UNDECODABLE, TooLong) as error:
            self._fail(f"has no count in its answer ({error})")
        except TimeoutError:
            self._fail(f"does not answer within {_TIMEOUT_S:g} s")
        except (aiohttp.ClientError, OSError) as error:
            reason, message = causes.of_exception(error)
            self._fail(f"cannot be reached: {reason} ({message})")

    def _fail(self, problem: str) -> NoReturn:
        raise ScenarioError(
            f"{self._url} {problem}; let the engine serve /tokenize, or name a tokenizer file"
        ) from None


class FileCounter:
    """Counts by a ``tokenizer.json``. Chat templates and special tokens are not counted."""

    def __init__(self, path: str) -> None:
        try:
            # Imported here: an extra has it, and most runs do not need it.
            from tokenizers import Tokenizer  # noqa: PLC0415
        except ImportError:
            raise ScenarioError(f"{path}: the library 'tokenizers' is missing; {_INSTALL}") from None
        try:
            self._tokenizer = Tokenizer.from_file(path)
        except Exception as error:  # the library raises plain exceptions
            raise ScenarioError(f"{path}: cannot be read ({error}); name a file tokenizer.json") from None

    async def prompt(self, fields: Mapping[str, object]) -> int:
        """The tokens of the contents."""
        messages = fields.get("messages")
        texts = [each["content"] for each in messages] if isinstance(messages, list) else [fields["prompt"]]
        return sum([await self.text(str(text)) for text in texts])

    async def text(self, text: str) -> int:
        """The tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


@asynccontextmanager
async def counting(scenario: Scenario, url: str, tls: ssl.SSLContext | bool = True) -> AsyncIterator[Counter]:
    """What counts for a scenario with a tokenizer, as its first tenant that has a key or headers."""
    assert scenario.tokenizer is not None, "only a scenario with a tokenizer counts tokens"
    if scenario.tokenizer.file:
        yield FileCounter(scenario.tokenizer.file)
        return
    known = (tenant for tenant in scenario.tenants if tenant.key is not None or tenant.headers)
    asks = next(known, scenario.tenants[0])
    headers = bearer(asks.key) | {header.name: header.value for header in asks.headers}
    headers = {name.lower(): value for name, value in headers.items()}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout) as session:
        yield EngineCounter(session, url, scenario.model, headers)
