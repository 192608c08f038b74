"""Asks the engine after each of its starts whether pages of every origin may read its answers."""

from __future__ import annotations

import asyncio

import aiohttp

from sidecar.engine.address import HEALTH, EngineAddress
from sidecar.engine.cors import PROBE_ORIGIN
from sidecar.engine.state import EngineState

CHECK_EVERY_S = 0.25
"""Seconds between two checks whether the engine has started."""


class CorsWatcher:
    """Asks one engine. Answers to tenants' requests teach ``Cors`` the rest."""

    def __init__(self, address: EngineAddress, state: EngineState, timeout_s: float) -> None:
        self._address = address
        self._state = state
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def run(self) -> None:
        """Ask until cancelled."""
        asked_at: int | None = None
        headers = {"origin": PROBE_ORIGIN.decode()}
        async with aiohttp.ClientSession(timeout=self._timeout, headers=headers) as session:
            while True:
                start = self._state.restarts
                if start != asked_at and self._state.is_up and await self._ask(session):
                    asked_at = start
                await asyncio.sleep(CHECK_EVERY_S)

    async def _ask(self, session: aiohttp.ClientSession) -> bool:
        """Whether the engine answered."""
        address = self._address
        try:
            async with session.get(
                address.origin.url + HEALTH, ssl=address.context or True, server_hostname=address.name
            ) as response:
                allowed = response.headers.get("access-control-allow-origin")
                credentials = response.headers.get("access-control-allow-credentials") == "true"
                self._state.cors.learn(
                    PROBE_ORIGIN,
                    None if allowed is None else allowed.encode("latin-1", "replace"),
                    credentials=credentials,
                    succeeded=response.ok,
                )
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False
        return True
