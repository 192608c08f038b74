"""The short form of the comparison with peers, with the systems that need no installation; and failures."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from experiments.peers import command, environment, measuring
from experiments.peers.latency import ProbeFailed, added, settled
from experiments.peers.system import Capacity


def test_the_short_form_measures_every_column_and_calls_add_up(tmp_path: Path) -> None:
    capacity = asdict(Capacity(requests_per_s=24.0, tokens_per_s=1296.0, alone_s=0.37))
    (tmp_path / "results.json").write_text(json.dumps({"capacity": capacity}))
    words = ["--seeds", "1", "--seconds", "4", "--out", str(tmp_path), "--only"]
    assert command.main([*words, "engine alone"]) == 0
    first = json.loads((tmp_path / "results.json").read_text())
    # Whether the goals are reached depends on the machine.
    assert command.main([*words, "tokenpool"]) in (0, 1)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["capacity"] == first["capacity"] == capacity
    assert record["peers"]["litellm"]
    alone, ours = record["results"]
    assert [alone] == first["results"]
    assert alone["guaranteed"] > 5 < alone["idle_requests"]
    assert alone["cpu_s"] is None
    assert 0 < ours["cpu_s"] < 0.1
    assert ours["guaranteed_refused"] < ours["guaranteed"] / 4
    assert ours["ttft_p99_s"] < alone["ttft_p99_s"]
    assert ours["jain"] > 0.7
    assert 0.5 < ours["used"] <= 1
    text = (tmp_path / "results.md").read_text()
    assert "| **tokenpool** |" in text
    assert "- CPU per request, ms: first is tokenpool" in text


def test_a_peer_that_is_not_installed_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seeds", "1", "--seconds", "4", "--only", "Envoy", "--out", str(tmp_path)]
    assert command.main([*words, "--home", str(tmp_path / "nothing")]) == 2
    assert "envoy is not installed; run python -m experiments peers --install" in capsys.readouterr().err


async def test_a_refused_small_request_names_its_status() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=429, text="too many")

    application = web.Application()
    application.router.add_post("/v1/chat/completions", refuse)
    async with TestServer(application, host="127.0.0.1") as server:
        assert server.port is not None
        with pytest.raises(ProbeFailed, match="got status 429: b'too many'"):
            await asyncio.to_thread(added, server.port, server.port, "guaranteed-key", 10)
        with pytest.raises(ProbeFailed, match=r"did not answer a small request within 1 s, for 0\.3 s"):
            await asyncio.to_thread(settled, server.port, "guaranteed-key", 0.3)


@pytest.mark.parametrize(
    ("python", "requirement", "problem"),
    [
        (lambda folder: str(folder / "python9"), "", "No such file or directory: .*python9"),
        (lambda _: sys.executable, "-r missing.txt\n", "cannot be installed: ERROR: .*missing.txt"),
    ],
)
def test_a_failed_installation_says_why(
    python: Callable[[Path], str], requirement: str, problem: str, tmp_path: Path
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(requirement)
    with pytest.raises(environment.NotInstalled, match=problem):
        environment.install(python(tmp_path), tmp_path / "home", requirements)


def test_the_capacity_is_measured_on_the_engine_alone(tmp_path: Path) -> None:
    found = measuring.measured_capacity("simulator", tmp_path)
    assert found.requests_per_s > 5
    assert found.tokens_per_s > 48 * found.requests_per_s
    assert 0.1 < found.alone_s < 2
