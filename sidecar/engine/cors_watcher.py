"""Asks the engine once after each of its starts whether it lets every origin read its answers."""

from __future__ import annotations

import asyncio

import aiohttp

from sidecar.controller.controller import Controller
from sidecar.engine.watcher import EngineWatcher
from sidecar.proxy.cors import STRANGER
from sidecar.proxy.upstream import EngineAddress

LOOK_EVERY_S = 0.25
"""How often it is looked whether the engine has started."""


class CorsWatch:
    """Asks one engine. What tenants' requests teach comes in the exchange."""

    def __init__(
        self, engine: EngineAddress, controller: Controller, watcher: EngineWatcher, timeout_s: float
    ) -> None:
        self._engine = engine
        self._controller = controller
        self._watcher = watcher
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def run(self) -> None:
        """Ask until cancelled."""
        asked_at: int | None = None
        headers = {"origin": STRANGER.decode()}
        async with aiohttp.ClientSession(timeout=self._timeout, headers=headers) as session:
            while True:
                start = self._watcher.status.restarts
                if start != asked_at and self._controller.engine.is_up and await self._ask(session):
                    asked_at = start
                await asyncio.sleep(LOOK_EVERY_S)

    async def _ask(self, session: aiohttp.ClientSession) -> bool:
        """Whether the engine answered."""
        engine = self._engine
        try:
            async with session.get(
                engine.origin.url + "/health", ssl=engine.context or True, server_hostname=engine.name
            ) as response:
                allowed = response.headers.get("access-control-allow-origin")
                credentials = response.headers.get("access-control-allow-credentials") == "true"
                self._controller.engine.cors.learn(
                    STRANGER,
                    None if allowed is None else allowed.encode("latin-1", "replace"),
                    credentials=credentials,
                    succeeded=response.ok,
                )
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False
        return True
