"""Fixtures of all tests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from hypothesis import HealthCheck, settings

from tests.fakes.scripted_engine import FakeEngine

# How long an example takes says nothing on a machine that is shared.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("measured", parent=settings.get_profile("shared"), max_examples=25)
settings.load_profile("shared")


class Loop(uvloop.Loop):
    """Closes the servers that a failed test leaves open: with one of them, uvloop may never end its close."""

    def __init__(self) -> None:
        super().__init__()
        self._servers_made: list[asyncio.Server] = []

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        made: asyncio.Server = await super().create_server(*args, **options)
        self._servers_made.append(made)
        return made

    def close(self) -> None:
        if not self.is_closed():
            for server in self._servers_made:
                server.close()
            self.run_until_complete(asyncio.sleep(0.01))
        super().close()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """pytest-asyncio: tests run on the loop that production runs on."""
    return {"uvloop": Loop}


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Commands that run in the process of a test set up the root logger. The next test finds it as before."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    root.setLevel(level)
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """A scripted engine."""
    fake = FakeEngine()
    await fake.start()
    yield fake
    await fake.stop()
