"""The HTTP client of the commands: it reads the admin port of a coordinator or of a sidecar.

``http.client`` is enough: a command has one request at a time, and starts without an event loop.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cli.command import CommandFailed
from runtime import options
from runtime.options import Origin, option


class Refused(CommandFailed):
    """The process answers with a status that is not 2xx."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (408, 425, 429) or self.status >= 500


DEFAULT = Origin("127.0.0.1", 9091)
"""The default of a coordinator's ``--listen``."""
RECORDS = "/usage/records"
"""The page with usage records."""
RECORDS_PERIOD = "yesterday"
"""The period of records where a command names none: the last one that is complete."""
TIMEOUT_S = 10.0
"""The time limit of each read. A live page sends an event every half second."""
MOST_ERROR_BYTES = 64 * 1024


@options.record
class AdminPort:
    """The options about the process that a command asks."""

    url: Origin = option(
        "URL of the admin port of a coordinator (by default port 9091) or of a sidecar (9090)",
        default=DEFAULT,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--url``."""
    options.add_arguments(parser, AdminPort)


def origin(arguments: argparse.Namespace, environment: Mapping[str, str] | None = None) -> Origin:
    """The process to ask, from parsed arguments or ``TOKENPOOL_URL``. Raises ``SettingsError``."""
    found = os.environ if environment is None else environment
    return options.read(AdminPort, arguments, found, example=f"tokenpool top --url {DEFAULT.url}").url


@contextmanager
def answer(
    where: Origin,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    is_ours: bool = True,
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request.

    Raises ``CommandFailed`` if there is none, and ``Refused`` if its status is not 2xx. ``is_ours``: it must
    be a coordinator or a sidecar, so the message explains what else it may be.
    """
    connection = _connection(where, timeout_s)
    try:
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            raise CommandFailed(
                f"the certificate of {where.url} is not trusted: {error.verify_message}; set SSL_CERT_FILE to"
                " a PEM file of its authorities"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            advice = "; give --url the admin port of a running coordinator or sidecar" if is_ours else ""
            said = f"{where.url} does not answer: {error or type(error).__name__}"
            raise CommandFailed(said + advice) from error
        except ValueError as error:
            # The text of the error has the value, which may be a token.
            raise CommandFailed(
                "a header has a line break or a character that HTTP does not allow; correct the token or"
                " --header"
            ) from error
        if not 200 <= response.status < 300:
            raise Refused(_refusal(where, path, response, is_ours=is_ours), response.status)
        yield response
    finally:
        connection.close()


def get_json(where: Origin, path: str) -> Any:
    """The JSON of a page. Raises ``CommandFailed``."""
    with answer(where, path, headers={"accept": "application/json"}) as response:
        try:
            return json.loads(response.read())
        except ValueError as error:
            raise CommandFailed(f"{where.url}{path} is not JSON; {_NOT_OURS}") from error


def whole(where: Origin, response: http.client.HTTPResponse) -> bytes:
    """The content of an answer. Raises ``CommandFailed`` if it ends early."""
    try:
        return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise CommandFailed(f"{where.url} ended its answer early; run the command again") from error


_NOT_OURS = "it is not the admin port of a coordinator (or of a sidecar, for 'tokenpool top')"


def _connection(where: Origin, timeout_s: float) -> http.client.HTTPConnection:
    if where.tls:
        return http.client.HTTPSConnection(
            where.host, where.port, timeout=timeout_s, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(where.host, where.port, timeout=timeout_s)


def _refusal(where: Origin, path: str, response: http.client.HTTPResponse, *, is_ours: bool) -> str:
    """The words of an answer that is not 2xx: the error that it states, or what its status shows."""
    said = f"{where.url}{path.partition('?')[0]} answers {response.status}"
    text = response.read(MOST_ERROR_BYTES).decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
        error = found.get("error") if isinstance(found, dict) else None
    except ValueError:
        error = None
    if isinstance(error, str):
        return f"{said}: {error}"
    if is_ours and response.status in (401, 404, 405):
        return f"{said}; {_NOT_OURS}"
    return f"{said}: {text[:200]}" if text else said
