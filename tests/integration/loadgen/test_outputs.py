"""``--out`` of commands that send load, and the exit status of a sweep that no server answers."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from aiohttp import web

from loadgen import outputs
from loadgen.__main__ import main
from tests.integration.loadgen.server import Received, Server, stream

SCENARIO = """\
name: small
model: tiny
duration_s: 0.5
tenants: [{name: gold, arrivals: {constant: {rate: 10}}, input: 8, output: 2}]
"""
NOBODY = "http://127.0.0.1:1"
"""No server listens there."""


COMMANDS = {"run": (), "sweep": (), "capacity": ("--slo", "gold.ttft.p50<=1s")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_not_overwrite_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("earlier")
    words = [command, str(tmp_path / "s.yaml"), "--url", NOBODY, "--out", str(out), *COMMANDS[command]]

    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"loadgen: --out: {out} has the results of an earlier run (report.html)" in told
    assert "--force" in told

    # With --force, results stay until the server has answered the probe.
    assert main([*words, "--force"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert (out / "report.html").read_text() == "earlier"


async def told(folder: Path, *words: str) -> tuple[int | None, str]:
    """The exit status and the output of a command on the scenario, with results in ``out``."""
    (folder / "s.yaml").write_text(SCENARIO)
    command, *options = words
    files = (str(folder / "s.yaml"), "--out", str(folder / "out"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen", command, *files, *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode()


@pytest.mark.parametrize("processes", [1, 2])
async def test_forced_results_are_those_of_the_new_run_alone(tmp_path: Path, processes: int) -> None:
    """All names that a run writes are known, so that none of them stays."""
    out, goal = tmp_path / "out", ("--fail-on", "gold.served.count>=1")
    async with Server(stream).running() as server:
        status, said = await told(tmp_path, "run", "--url", server.url, *goal)
        assert status == 0, said
        assert (out / "goals.json").exists()
        assert {path.name for path in out.iterdir()} <= outputs.RESULTS
        (out / "notes.txt").touch()
        status, said = await told(
            tmp_path, "run", "--url", server.url, "--force", "--processes", str(processes)
        )
        assert status == 0, said
    assert not (out / "goals.json").exists()
    assert (out / "notes.txt").exists()
    assert len((out / "requests.jsonl").read_text().splitlines()) == 5


async def failing(received: Received, request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "out of order"}}, status=500)


async def test_a_sweep_without_an_answer_ends_with_1(tmp_path: Path) -> None:
    async with Server(failing).running() as server:
        status, said = await told(tmp_path, "sweep", "--url", server.url, "--rates", "10")
        assert status == 1, said
        assert json.loads((tmp_path / "out/rates.json").read_bytes())["points"][0]["served"] == 0
        again, said = await told(tmp_path, "sweep", "--url", server.url, "--rates", "20")
        assert again == 2
        assert "has the results of an earlier run" in said
        await told(tmp_path, "sweep", "--url", server.url, "--rates", "20", "--force")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "rate-20-run1" in names
    assert "rate-10-run1" not in names
    assert all(name in outputs.RESULTS or Path(name).match(outputs.RATES) for name in names)
