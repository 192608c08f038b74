"""One container engine and one compose project for all tests here. Measurements are printed at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.e2e.containers import lent_engine, standins
from tests.e2e.containers.docker_daemon import ContainerEngine, NoEngine, running
from tests.e2e.containers.notes import NOTES, timed
from tests.e2e.containers.stack import Stack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """pytest: sizes and times, at the end."""
    if NOTES:
        terminalreporter.section("containers")
        for what, value in NOTES.items():
            terminalreporter.write_line(f"{what}: {value}")


@pytest.fixture(scope="session")
def container_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerEngine]:
    """A daemon with stand-in images. Skips with a reason if it cannot start."""
    folder = tmp_path_factory.mktemp("containers")
    with contextlib.ExitStack() as stack:
        try:
            with timed("container engine started"):
                engine = stack.enter_context(running(folder))
            engine.notes = NOTES
            with timed("stand-in images made"):
                standins.provide(engine.client, folder)
        except NoEngine as error:
            pytest.skip(f"no container engine: {error}")
        yield engine


@pytest.fixture(scope="session")
def built(container_engine: ContainerEngine, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """compose.yaml with its images built, before its start."""
    lent = lent_engine.beside(container_engine, tmp_path_factory.mktemp("engine"))
    NOTES["engine"] = "vLLM from .venv-engine" if lent else "vLLM, the image of docker/engine.Dockerfile"
    made = Stack(container_engine, lent)
    with timed("images built"):
        made.build()
    return made


@pytest.fixture(scope="session")
def stack(built: Stack) -> Iterator[Stack]:
    """compose.yaml, up and healthy."""
    try:
        with timed("docker-compose up until healthy"):
            built.up()
        yield built
    finally:
        built.down()
