"""Fixtures of all tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest_asyncio
import uvloop

from tests.fakes.engine import FakeEngine


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """pytest-asyncio: tests run on the loop that production runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """A scripted engine."""
    fake = FakeEngine()
    await fake.start()
    yield fake
    await fake.stop()
