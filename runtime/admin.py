"""The pages of every process: ``/healthz``, ``/readyz`` and ``/metrics``; and the server for pages."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector

from runtime.build import BuildInfo
from runtime.exposition import CONTENT_TYPE, rendered
from runtime.listening import bound, listening
from runtime.options import Address, Addresses
from runtime.pages import SharedPage


class Readiness(NamedTuple):
    """Whether requests may be sent to this process."""

    problems: Sequence[str] = ()
    """The reasons why no request may be sent."""
    degraded: Sequence[str] = ()
    """Faults that do not stop the process from serving."""

    def response(self) -> web.Response:
        """The page: 503 if there is a problem."""
        status = "unready" if self.problems else "degraded" if self.degraded else "ready"
        body = {"status": status, "problems": list(self.problems), "degraded": list(self.degraded)}
        return web.json_response(body, status=503 if self.problems else 200)


class AdminPages:
    """The pages about health and readiness, and the metrics page if the process has metrics.

    ``metrics`` makes the process' own part of the metrics page. The build, the CPU time and the memory of the
    process are added to it, with ``labels``.
    """

    def __init__(
        self,
        readiness: Callable[[], Readiness],
        metrics: Callable[[], Iterator[str]] | None = None,
        labels: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._readiness = readiness
        self._labels = labels
        self._own_metrics = metrics
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._metrics = SharedPage(self._pieces, CONTENT_TYPE)

    def routes(self) -> Iterable[web.RouteDef]:
        """The routes of these pages."""
        yield web.get("/healthz", self._healthz)
        yield web.get("/readyz", self._readyz)
        if self._own_metrics is not None:
            yield web.get("/metrics", self._metrics.answer)

    async def _healthz(self, request: web.Request) -> web.Response:
        """The process is alive: its event loop runs."""
        return web.json_response({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        return self._readiness().response()

    def _pieces(self) -> Iterator[str]:
        if self._own_metrics is not None:
            yield from self._own_metrics()
        labels = self._labels()
        for metric in BuildInfo().collect():
            yield rendered([metric], labels)
        yield rendered(self._process.collect(), labels)


class PageServer:
    """Serves an application on the addresses of an option."""

    def __init__(self, application: web.Application) -> None:
        self._runner = web.AppRunner(application, access_log=None)

    async def start(
        self, addresses: Sequence[Address], *, option: str = "--listen", tls: ssl.SSLContext | None = None
    ) -> Addresses:
        """Listen on the addresses that an option gave.

        Returns them with the ports that the system chose. Raises ``CannotListen``, which names the option.
        """
        await self._runner.setup()
        sockets = listening(addresses, option)
        listens_on = bound(sockets)
        for each in sockets:
            await web.SockSite(self._runner, each, ssl_context=tls).start()
        return listens_on

    async def start_at(self, path: Path) -> None:
        """Listen on a socket of this host, for a process with access to its folder."""
        await self._runner.setup()
        path.unlink(missing_ok=True)  # of a process that was killed
        await web.UnixSite(self._runner, str(path)).start()

    async def stop(self) -> None:
        """Answer the requests in progress, and close."""
        await self._runner.cleanup()
