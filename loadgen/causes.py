"""Names and messages for failures of attempts: a reason and a message for each. Pure.

A reason is short and has few values, so that attempts can be counted by it. A message is what the server or
the library said: one printable line of at most ``MOST_MESSAGE`` characters.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterable

import aiohttp
import msgspec

from loadgen.decoding import UNDECODABLE

MOST_MESSAGE = 240
MOST_NAME = 60
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "unknown host"),
    (aiohttp.ClientSSLError, "TLS error"),
    (ssl.SSLError, "TLS error"),
    (aiohttp.ServerDisconnectedError, "connection closed without a response"),
    (aiohttp.ClientPayloadError, "response cut"),
    (aiohttp.ClientResponseError, "invalid HTTP"),
    (aiohttp.InvalidURL, "invalid URL"),
    (ConnectionRefusedError, "connection refused"),
    (ConnectionResetError, "connection reset"),
    (aiohttp.ClientConnectorError, "no connection"),
)
_RESET = (errno.ECONNRESET, errno.EPIPE)
_FILES = (errno.EMFILE, errno.ENFILE)
_ERROR_FIELDS = ("message", "detail", "error", "msg")


def of_exception(error: BaseException) -> tuple[str, str]:
    """The reason and the message of a connection that could not be opened, or that ended early."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, OSError) and inner.errno in _FILES:
        return "too many open files", "this generator may open no more connections: raise 'ulimit -n'"
    found = (name for kind, name in _KINDS if isinstance(error, kind) or isinstance(inner, kind))
    is_reset = isinstance(inner, OSError) and inner.errno in _RESET
    other = "connection reset" if is_reset else type(error).__name__
    return next(found, other), line(str(error) or type(error).__name__)


def of_timeout(timeout_s: float, *, status: int, has_token: bool) -> tuple[str, str]:
    """The reason and the message of an attempt that exceeded the scenario's ``timeout_s``."""
    if not status:
        return "timeout before the response", f"no response within timeout_s, {timeout_s:g} s"
    if not has_token:
        return "timeout before the first token", f"status {status}, and no token within {timeout_s:g} s"
    return "timeout within the response", f"the response did not end within timeout_s, {timeout_s:g} s"


def of_wrong_content(content_type: str, content: bytes) -> tuple[str, str]:
    """The reason and the message of a response with status 200 and no completion."""
    if content_type.endswith("json"):
        return "no completion", message(content) or "the response is empty"
    return "wrong content type", line(f"{content_type}: {_text(content)}")


def message(content: bytes) -> str:
    """The message of an error response: the field for it if the content is JSON, or else its beginning."""
    try:
        found = msgspec.json.decode(content)
    except UNDECODABLE:
        return line(_text(content))
    while isinstance(found, dict) and (name := next((n for n in _ERROR_FIELDS if found.get(n)), None)):
        found = found[name]
    return line(found if isinstance(found, str) else _text(content))


def line(text: str) -> str:
    """Text as one printable line, so that a server cannot control a terminal. Long text is cut."""
    plain = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return plain if len(plain) <= MOST_MESSAGE else f"{plain[: MOST_MESSAGE - 3]}..."


def name(text: str) -> str:
    """A reason of a server as a short printable line."""
    plain = line(text)
    return plain if len(plain) <= MOST_NAME else f"{plain[: MOST_NAME - 3]}..."


def without(text: str, keys: Iterable[str]) -> str:
    """Text without the API keys that a server repeats in its message."""
    for key in keys:
        text = text.replace(key, "[key]")
    return text


def _text(content: bytes) -> str:
    return content[: 4 * MOST_MESSAGE].decode("utf-8", "replace")
