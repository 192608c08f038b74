"""The API server: the only module of this package with input and output.

lightkube finds and reads the configuration (in a cluster, or a kubeconfig), verifies the server, and renews
the service account's token. Lists and watches are here, because its watch asks for no bookmarks. When a
server ends a watch, it also asks again without a pause.

Reading follows the API's rules: a list in pages, then a watch from the list's version. A bookmark moves the
version on. After 410 Gone the list is read again. All failures are ``ApiFailure``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, NamedTuple

import httpx2
import msgspec
from lightkube.config.client_adapter import AsyncClient, ConnectionParams, verify_cluster
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ConfigError

from coordinator.resources.fields import Json
from coordinator.resources.reading import Key, Kind
from coordinator.resources.schema import GROUP, VERSION

PAGE = 500
"""Objects in one page of a list, as kubectl asks for."""
TIMEOUT_S = 10.0
"""The time limit of an answer. A watch has none: the server ends it."""
WATCH_S = 240
"""The time after which the server ends a watch. client-go uses 5 to 10 minutes."""
LONGEST_RETRY_AFTER_S = 60.0
MOST_REFUSED = 10
"""The times that a page is read again after 429, as in client-go."""
MOST_CONNECTIONS = 512
KEEPALIVE = (
    (socket.SO_KEEPALIVE, 1),
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
)
"""A connection whose other end is gone is found after 25 s. A watch may be silent for longer."""
MERGE_PATCH = "application/merge-patch+json"
FIELD_MANAGER = "tokenpool-coordinator"
_PLURALS = {Kind.POOL: "tokenpools", Kind.ENTITLEMENT: "entitlements"}


class Collection(NamedTuple):
    """Objects that are listed and watched together: a kind in a namespace, or one Secret by its name."""

    kind: Kind | None
    """``None`` for a Secret."""
    namespace: str
    secret: str = ""

    def __str__(self) -> str:
        what = f"Secret {self.secret}" if self.kind is None else _PLURALS[self.kind]
        return f"{what} in namespace {self.namespace}"

    @property
    def path(self) -> str:
        """The path of the collection's URL."""
        if self.kind is None:
            return f"/api/v1/namespaces/{self.namespace}/secrets"
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{_PLURALS[self.kind]}"

    @property
    def selector(self) -> dict[str, str]:
        """The query that selects its objects. A Role that names a Secret admits only this selector."""
        return {"fieldSelector": f"metadata.name={self.secret}"} if self.secret else {}


class ApiFailure(Exception):
    """A request failed; the text gives the status and the server's reason, and for some the next step."""

    def __init__(self, status: int, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        """The HTTP status; 0 without an answer."""
        self.retry_after_s = retry_after_s
        """The time that the server asks to wait."""

    @property
    def is_gone(self) -> bool:
        """Whether the version of a list or a watch has expired: the list must be read again."""
        return self.status == 410


class Event(NamedTuple):
    """One event of a watch."""

    kind: str
    """``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``."""
    object: Json
    version: str


class _ListMeta(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    more: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    items: list[Any] | None = None
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


class _Line(msgspec.Struct):
    type: str
    object: Json


_pages = msgspec.json.Decoder(_Page)
_lines = msgspec.json.Decoder(_Line)
_ADVICE = {
    401: "check the service account's token",
    403: "give the service account the Role of k8s/entitlements/rbac.yaml in this namespace",
    404: "apply k8s/entitlements/crds",
}


class Api:
    """The requests of a coordinator."""

    def __init__(self) -> None:
        """Use the configuration of the pod or of ``KUBECONFIG``. Raises ``ApiFailure``."""
        # They log each request; most requests write a status, which is routine.
        for name in ("httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            config = KubeConfig.from_env().get()
            if config is None:
                raise ConfigError("the kubeconfig has no context")
            context = verify_cluster(config.cluster, config.user, config.abs_file)  # type: ignore[arg-type]
            transport = httpx2.AsyncHTTPTransport(
                verify=context,
                limits=httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=8),
                socket_options=[
                    (socket.SOL_SOCKET if name == socket.SO_KEEPALIVE else socket.IPPROTO_TCP, name, value)
                    for name, value in KEEPALIVE
                ],
            )
            self._client = AsyncClient(
                config,
                ConnectionParams(timeout=httpx2.Timeout(TIMEOUT_S), transport=transport),  # type: ignore[arg-type]
            )
        except (ConfigError, OSError, KeyError, ValueError) as error:
            said = f"no configuration for the API server: {error}; run in a pod, or set KUBECONFIG"
            raise ApiFailure(0, said) from error
        self.server = config.cluster.server
        self.namespace = config.namespace
        """The namespace of the pod, or of the kubeconfig's context."""

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def list(self, collection: Collection) -> tuple[list[Json], str]:
        """All objects of a collection, and their version. Raises ``ApiFailure``."""
        items: list[Json] = []
        query = {"limit": str(PAGE), **collection.selector}
        while True:
            page = await self._page(collection, query)
            items += (_object(each, collection) for each in page.items or ())
            if not page.metadata.more:
                return items, page.metadata.resource_version
            query["continue"] = page.metadata.more

    async def _page(self, collection: Collection, query: Mapping[str, str]) -> _Page:
        """One page of a list. A refused page (429) is read again, and not the whole list."""
        refused = 0
        while True:
            try:
                with _failures(str(collection)):
                    response = await self._client.get(collection.path, params=query)
                    response.raise_for_status()
                    return _pages.decode(response.content)
            except ApiFailure as failure:
                refused += 1
                if failure.status != 429 or not failure.retry_after_s or refused > MOST_REFUSED:
                    raise
                await asyncio.sleep(failure.retry_after_s)

    async def watch(self, collection: Collection, version: str) -> AsyncGenerator[Event]:
        """The events of a collection after a version, until the server ends the watch.

        Raises ``ApiFailure``.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
            **collection.selector,
        }
        # A silent watch is alive. The limit is for a server that neither sends nor ends it.
        timeout = httpx2.Timeout(TIMEOUT_S, read=WATCH_S + TIMEOUT_S)
        with _failures(str(collection)):
            async with self._client.stream("GET", collection.path, params=query, timeout=timeout) as response:
                if response.status_code != 200:
                    await response.aread()
                    response.raise_for_status()
                async for line in response.aiter_lines():
                    if line:
                        yield _event(_lines.decode(line), collection)

    async def patch_status(self, key: Key, status: Json, version: str) -> None:
        """Write the status of an object that still has this version.

        Raises ``ApiFailure``; its status is 409 if the object has another version.
        """
        body = {"metadata": {"resourceVersion": version}, "status": status}
        path = f"{Collection(key.kind, key.namespace).path}/{key.name}/status"
        with _failures(str(key)):
            response = await self._client.patch(
                path,
                params={"fieldManager": FIELD_MANAGER},
                content=msgspec.json.encode(body),
                headers={"content-type": MERGE_PATCH},
            )
            response.raise_for_status()


def _event(line: _Line, collection: Collection) -> Event:
    if line.type == "ERROR":
        status = int(line.object.get("code") or 500)
        details = _mapping(line.object.get("details"))
        wait = details.get("retryAfterSeconds")
        raise ApiFailure(
            status,
            f"{collection}: {status} {line.object.get('message', '')}",
            min(float(wait), LONGEST_RETRY_AFTER_S) if isinstance(wait, int | float) else 0.0,
        )
    version = str(_mapping(line.object.get("metadata")).get("resourceVersion", ""))
    return Event(line.type, _object(line.object, collection), version)


def _object(item: Json, collection: Collection) -> Json:
    """An object with its kind. Of a Secret only its name and its data are kept."""
    if collection.kind is not None:
        return item | {"kind": collection.kind.value}
    return {"metadata": {"name": collection.secret}, "data": _data(item)}


def _data(item: Json) -> dict[str, bytes]:
    made = {}
    for name, value in _mapping(item.get("data")).items():
        with contextlib.suppress(binascii.Error, ValueError):
            made[name] = base64.b64decode(str(value), validate=True)
    return made


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    """Every failure of a request as ``ApiFailure``. Its text has no header and no part of a Secret."""
    try:
        yield
    except httpx2.HTTPStatusError as error:
        response = error.response
        status = response.status_code
        said = f"{what}: {status} {_reason(response)}"
        advice = _ADVICE.get(status)
        raise ApiFailure(status, f"{said}; {advice}" if advice else said, _retry_after(response)) from None
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        raise ApiFailure(0, f"{what}: no answer: {type(error).__name__} {error}".strip()) from None
    except ConfigError as error:
        raise ApiFailure(0, f"{what}: {error}") from None
    except (msgspec.MsgspecError, UnicodeError):
        # The error's own text could quote the content.
        raise ApiFailure(0, f"{what}: the answer is not JSON of the expected form") from None


def _reason(response: httpx2.Response) -> str:
    """The server's message, if the answer is a Status."""
    try:
        message = msgspec.json.decode(response.content).get("message", "")
    except (msgspec.MsgspecError, AttributeError, httpx2.ResponseNotRead):
        message = ""
    return str(message or response.reason_phrase)[:500]


def _retry_after(response: httpx2.Response) -> float:
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), LONGEST_RETRY_AFTER_S)
    except ValueError:
        return 0.0
