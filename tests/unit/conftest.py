"""Unit tests need no network and no other program: one that uses either fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

FORBIDDEN = {"socket.bind", "socket.connect", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"}
_running: list[str] = []


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if _running and event in FORBIDDEN:
        raise AssertionError(f"{event} in a unit test: {_running[0]} belongs in tests/integration")


sys.addaudithook(_refuse)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """pytest: what a test here calls."""
    _running.append(item.nodeid)
    try:
        return (yield)
    finally:
        _running.clear()
