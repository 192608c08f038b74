"""The injector as a service: HTTPS for the API server, pages for the kubelet, certificates that change.

It has no state and calls no other server, so any number of injectors may run.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from aiohttp import web

from injector.review import ReviewMalformed, answer
from injector.settings import Settings, Template
from injector.telemetry import Telemetry
from runtime.admin import AdminPages, PageServer, Readiness
from runtime.tls import Certificate

log = logging.getLogger(__name__)

MAX_REVIEW_BYTES = 8 << 20
"""The API server takes objects of 1.5 MB at most, and sends an old one along with a new one."""


class Injector:
    """One running injector. ``start`` returns once it listens."""

    def __init__(self, settings: Settings, template: Template) -> None:
        self._settings = settings
        self._template = template
        self.certificate = Certificate(settings.tls_cert, settings.tls_key)
        self.telemetry = Telemetry(self.certificate)

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=MAX_REVIEW_BYTES)
        application.add_routes(
            [
                web.post("/mutate", self.mutate),
                *AdminPages(self.readiness, self.telemetry.page).routes(),
            ]
        )
        return application

    async def mutate(self, request: web.Request) -> web.Response:
        """The webhook."""
        body = await request.read()
        start = time.perf_counter()
        try:
            answered = answer(body, self._template)
        except ReviewMalformed as error:
            self.telemetry.malformed()
            log.warning("a malformed review: %s", error)
            return web.Response(status=400, text=f"{error}\n")
        self.telemetry.answered(answered, time.perf_counter() - start)
        extra = {
            "pod": answered.pod,
            "result": answered.result,
            "reason": answered.reason or None,
            "owner": answered.owner,
        }
        log.info("reviewed", extra=extra)
        return web.json_response(answered.document)

    def readiness(self) -> Readiness:
        """Whether reviews may be sent here. A certificate that cannot be renewed is no reason against it."""
        problem = self.certificate.problem
        return Readiness(degraded=[problem] if problem else [])

    async def start(self) -> None:
        """Listen, and watch the certificate. Raises ``OSError``."""
        self._server = PageServer(self.application())
        addresses = await self._server.start(self._settings.listen, tls=self.certificate.context)
        self.listens_on = addresses[0]
        self._watching = asyncio.get_running_loop().create_task(self.certificate.watch.run())
        log.info("listening", extra={"listen": str(addresses), "label": self._template.label})

    async def stop(self) -> None:
        """Answer the requests in progress, and end."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._server.stop()
        log.info("stopped")


async def serve(settings: Settings, template: Template) -> None:
    """Run an injector until SIGTERM or SIGINT; SIGHUP makes it read the certificate again."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    injector = Injector(settings, template)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, injector.certificate.watch.request_reload)
    await injector.start()
    await stopping.wait()
    await injector.stop()
