"""The simulator's own routes, on a port of their own: faults at run time, and what it knows of itself."""

from __future__ import annotations

import json

from aiohttp import web

from loadgen.engine.faults import FaultError, read_fault
from loadgen.engine.process import Process


class Admin:
    """The routes."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/faults", self.faults),
                web.post("/faults", self.inject),
                web.delete("/faults", self.clear),
                web.delete("/faults/{number}", self.remove),
                web.get("/state", self.state),
            ]
        )
        return application

    async def faults(self, request: web.Request) -> web.Response:
        """All faults."""
        process = self._process
        return web.json_response(list(process.faults.shown(process.clock())))

    async def inject(self, request: web.Request) -> web.Response:
        """Add a fault: an object with ``kind`` and its fields."""
        try:
            content = json.loads(await request.read())
        except (ValueError, RecursionError):
            return _refused('the body is not JSON; send an object, such as {"kind": "stall", "seconds": 2}')
        if not isinstance(content, dict):
            return _refused("the body is not an object; send one with kind and its fields")
        try:
            number = self._process.inject(read_fault(content))
        except FaultError as error:
            return _refused(str(error))
        return web.json_response({"id": number}, status=201)

    async def clear(self, request: web.Request) -> web.Response:
        """Remove all faults."""
        self._process.faults.clear()
        return web.Response(status=204)

    async def remove(self, request: web.Request) -> web.Response:
        """Remove one fault."""
        number = request.match_info["number"]
        found = next((n for n in self._process.faults.numbers if str(n) == number), None)
        if found is None:
            return _refused(f"there is no fault {number[:40]}; GET /faults lists them", status=404)
        self._process.faults.remove(found)
        return web.Response(status=204)

    async def state(self, request: web.Request) -> web.Response:
        """Whether it listens, its load, and whether its steps are in time."""
        process = self._process
        running = sum(len(scheduler.running) for scheduler in process.cores.schedulers)
        return web.json_response(
            {
                "is_up": process.is_up,
                "restarts": process.restarts,
                "running": running,
                "waiting": process.cores.unfinished - running,
                "pace": process.cores.pace.shown(),
            }
        )


def _refused(message: str, *, status: int = 400) -> web.Response:
    return web.json_response({"error": message}, status=status)
