"""Asks every server before a run whether it can serve the scenario, so that a typing error costs no run.

For each URL, key, model and endpoint, ``GET /v1/models`` shows whether the server answers, accepts the key
and has the model. If the list lacks the model, one request for one token decides: gateways may list less than
they serve. A server that is only busy or starting passes. So does a refused key, if another one is accepted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import msgspec

from loadgen import causes, prompts, server_urls
from loadgen.arrivals import Request
from loadgen.client import recipient
from loadgen.decoding import UNDECODABLE
from loadgen.scenario import Scenario, Tenant

TIMEOUT_S = 10.0
MOST_KEYS = 8
"""The most kinds of tenants that are tried at each URL, so that a scenario with many tenants starts soon."""
_MOST_BYTES = 1 << 20
_MODELS = "/v1/models"
_REFUSED_KEY = (401, 403)
_UNKNOWN_MODEL = (400, 404)
_FIXES = {
    "connection refused": "start the server, or correct the port",
    "unknown host": "correct the host name",
    "no connection": "check the address and the network",
    "TLS error": "correct the scheme (http or https), or name the certificate's authority with --tls-ca",
    "invalid HTTP": "check that an HTTP server listens there; it may need https",
    "connection closed without a response": "check that an HTTP server listens there; it may need https",
    "connection reset": "check that an HTTP server listens there; it may need https",
}


class ServerUnusable(Exception):
    """A server cannot serve the scenario. The text names the URL, the problem and the fix."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's response to a probe."""

    status: int
    location: str = ""
    content: bytes = b""


async def probe(
    scenario: Scenario,
    urls: Iterable[str],
    timeout_s: float = TIMEOUT_S,
    tls: ssl.SSLContext | bool = True,
) -> None:
    """Ask all servers at the same time, each for at most ``timeout_s``. Raises ``ServerUnusable``."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector, jar = aiohttp.TCPConnector(ssl=tls), aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=jar, connector=connector) as session:
        asks = [_probe(session, scenario, url) for url in dict.fromkeys(urls)]
        problems = [problem for problem in await asyncio.gather(*asks) if problem]
    if problems:
        raise ServerUnusable("; ".join(problems))


async def _probe(session: aiohttp.ClientSession, scenario: Scenario, url: str) -> str:
    """The problem of one server; empty if it can serve some tenant."""
    base = server_urls.base(url)
    tenants = list({(t.key, t.model, t.endpoint): t for t in scenario.tenants}.values())
    tried = tenants[:MOST_KEYS]
    try:
        found = await asyncio.gather(*(_ask(session, scenario, base, tenant) for tenant in tried))
    except TimeoutError:
        limit = session.timeout.total
        return f"{url} does not answer {_MODELS} within {limit:g} s; check that the server is healthy"
    except (aiohttp.ClientError, OSError) as error:
        return unreachable(url, error)
    # A tenant that was not tried may be served.
    return f"{url} {found[0]}" if all(found) and len(tried) == len(tenants) else ""


async def _ask(session: aiohttp.ClientSession, scenario: Scenario, base: str, tenant: Tenant) -> str:
    to, model = recipient(tenant), tenant.model or scenario.model
    reply = await _reply(session, "GET", base + _MODELS, to.headers)
    listed = models(reply)
    if not listed or model in listed:
        return problem(reply, tenant)
    body = prompts.body(scenario, tenant, Request(0, 1, 1, has_prefix=False), scenario.seed, "probe")
    tried = await _reply(session, "POST", base + to.dialect.path, to.headers, body)
    return causes.without(wrong_model(tried, model, listed), to.secrets) or problem(tried, tenant)


async def _reply(
    session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
) -> Reply:
    async with session.request(method, url, headers=headers, data=body, allow_redirects=False) as response:
        content = b""
        while len(content) < _MOST_BYTES and (more := await response.content.read(_MOST_BYTES)):
            content += more
        return Reply(response.status, response.headers.get("location", ""), content)


def unreachable(url: str, error: BaseException) -> str:
    """The text for a server without a response."""
    reason, message = causes.of_exception(error)
    fix = _FIXES.get(reason, "check the URL")
    return f"{url} cannot be reached: {reason} ({message}); {fix}"


def models(reply: Reply) -> list[str]:
    """The names that a server lists; empty if it lists none, or in another format."""
    try:
        page = msgspec.json.decode(reply.content) if reply.status == 200 else None
    except UNDECODABLE:
        return []
    entries = page.get("data") if isinstance(page, dict) else None
    if not isinstance(entries, list):
        return []
    return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]


def problem(reply: Reply, tenant: Tenant) -> str:
    """A reason why a response shows that a tenant cannot be served; empty if there is none."""
    if 300 <= reply.status < 400:
        return f"redirects to {causes.line(reply.location) or 'another place'}; give that server with --url"
    if reply.status in _REFUSED_KEY:
        said = causes.without(causes.message(reply.content), recipient(tenant).secrets)
        fix = (
            "give the tenant a `key` in the scenario"
            if tenant.key is None
            else "correct `key` in the scenario"
        )
        return f"refuses tenant '{tenant.name}' with {reply.status} ({said}); {fix}"
    return ""


def wrong_model(reply: Reply, model: str, listed: Sequence[str]) -> str:
    """The text for a server that refuses a request because of its model; empty for another response."""
    if reply.status not in _UNKNOWN_MODEL:
        return ""
    names = ", ".join(map(causes.line, listed[:MOST_KEYS]))
    return (
        f"does not serve the model '{model}' ({causes.message(reply.content)}); it lists {names}; "
        "correct `model` in the scenario"
    )
