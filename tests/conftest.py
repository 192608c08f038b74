"""Fixtures of all tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest_asyncio
import uvloop
from hypothesis import HealthCheck, settings

from tests.fakes.engine import FakeEngine

# How long an example takes says nothing on a machine that is shared.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


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
