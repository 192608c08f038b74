"""The injector as a service: HTTPS for the API server, pages for the kubelet, certificates that change.

It keeps nothing and asks nobody, so any number of it may run side by side.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from aiohttp import web

from injector.review import ReviewMalformed, answer
from injector.settings import Settings, Template
from runtime.listening import bound, listening
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

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=MAX_REVIEW_BYTES)
        application.add_routes(
            [
                web.post("/mutate", self.mutate),
                web.get("/healthz", self.healthz),
                web.get("/readyz", self.readyz),
            ]
        )
        return application

    async def mutate(self, request: web.Request) -> web.Response:
        """The webhook."""
        try:
            answered = answer(await request.read(), self._template)
        except ReviewMalformed as error:
            log.warning("a malformed review: %s", error)
            return web.Response(status=400, text=f"{error}\n")
        extra = {"pod": answered.pod, "result": answered.result, "reason": answered.reason or None}
        log.info("reviewed", extra=extra)
        return web.json_response(answered.document)

    async def healthz(self, request: web.Request) -> web.Response:
        """Whether this process lives."""
        return web.json_response({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Whether reviews should come here. A certificate that cannot be renewed still serves: degraded."""
        problem = self.certificate.problem
        body = {
            "status": "ready" if problem is None else "degraded",
            "degraded": [problem] if problem else [],
        }
        return web.json_response(body)

    async def start(self) -> None:
        """Listen, and watch the certificate. Raises ``OSError``."""
        self._runner = web.AppRunner(self.application(), access_log=None)
        await self._runner.setup()
        sockets = listening(self._settings.listen)
        addresses = bound(sockets)
        self.listens_on = addresses[0]
        for each in sockets:
            await web.SockSite(self._runner, each, ssl_context=self.certificate.context).start()
        self._watching = asyncio.get_running_loop().create_task(self.certificate.watch.run())
        log.info("listening", extra={"listen": str(addresses), "label": self._template.label})

    async def stop(self) -> None:
        """Answer what is under way, and end."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._runner.cleanup()
        log.info("stopped")


async def serve(settings: Settings, template: Template) -> None:
    """Run an injector until SIGTERM or SIGINT; SIGHUP reads the certificate anew."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    injector = Injector(settings, template)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, injector.certificate.watch.ask)
    await injector.start()
    await stopping.wait()
    await injector.stop()
