"""The build that a process reports: --version and the metric tokenpool_build_info."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

import sidecar.controller.controller
from coordinator.admin import Admin
from coordinator.telemetry import Telemetry
from runtime import build, data_path
from runtime.build import BuildInfo, are_compiled, this_build
from tests.fakes.scripted_engine import FakeEngine
from tests.support.harness import sidecar_for

ROOT = Path(__file__).parents[3]
AN_EXTENSION = "msgspec._core"
"""A dependency's module that is always machine code."""
IS_COMPILED = str(sidecar.controller.controller.__file__).endswith(".so")


def test_the_data_path_lists_existing_modules_in_alphabetical_order() -> None:
    assert list(data_path.MODULES) == sorted(data_path.MODULES)
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in data_path.MODULES)


def test_compiled_means_that_every_module_is_an_extension() -> None:
    assert are_compiled([AN_EXTENSION])
    assert not are_compiled([AN_EXTENSION, "runtime.build"])
    assert not are_compiled(["runtime.build"])


@pytest.mark.parametrize("missing", ["service.no_such_module", "no_such_package.module"])
def test_a_module_that_is_missing_is_not_compiled(missing: str) -> None:
    assert not are_compiled([AN_EXTENSION, missing])


def test_a_build_is_one_line() -> None:
    made = build.Build("0.1.0", True, "3.12.1", "Linux x86_64")
    assert made.line("tokenpool-sidecar") == "tokenpool-sidecar 0.1.0, compiled, Python 3.12.1, Linux x86_64"
    pure = build.Build("0.1.0", False, "3.12.1", "Linux x86_64")
    assert pure.line("loadgen") == "loadgen 0.1.0, not compiled, Python 3.12.1, Linux x86_64"


def test_this_build_reports_whether_the_running_controller_is_compiled() -> None:
    assert this_build().compiled == IS_COMPILED
    assert this_build().python == platform.python_version()


def test_the_metric_has_the_same_numbers() -> None:
    registry = CollectorRegistry()
    registry.register(BuildInfo())
    made = this_build()
    labels = f'compiled="{str(IS_COMPILED).lower()}",python="{made.python}",version="{made.version}"'
    assert f"tokenpool_build_info{{{labels}}} 1.0" in generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("module", "program"),
    [
        ("sidecar", "tokenpool-sidecar"),
        ("coordinator", "tokenpool-coordinator"),
        ("loadgen", "loadgen"),
        ("injector.dry_run", "tokenpool-inject"),
    ],
)
def test_every_program_prints_its_build_and_ends(module: str, program: str) -> None:
    command = f"import sys; sys.argv = ['x', '--version']; from {module}"
    command += f"{'' if module.endswith('dry_run') else '.__main__'} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == this_build().line(program) + "\n"
    assert done.stderr == ""


async def test_a_sidecars_metrics_page_has_it(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert "tokenpool_build_info{" in await page(f"http://{sidecar.admin_on}/metrics")


async def test_a_coordinators_metrics_page_has_it() -> None:
    runner = web.AppRunner(Admin(dict, Telemetry(dict), time.monotonic).application())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        assert "tokenpool_build_info{" in await page(f"http://127.0.0.1:{runner.addresses[0][1]}/metrics")
    finally:
        await runner.cleanup()


async def page(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.text()
