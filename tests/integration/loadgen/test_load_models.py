"""Load models against the engine simulator: conversations, cancellations, warm-up, sweeps and capacity."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from loadgen.__main__ import main
from loadgen.engine.model import Costs
from loadgen.engine.scheduler import Scheduler
from loadgen.progress import Progress
from loadgen.records import Outcome, Run, load
from loadgen.run import Order, Runner
from loadgen.scenario import (
    Cancel,
    Closed,
    Constant,
    Conversation,
    Endpoint,
    Fixed,
    PromptForm,
    Scenario,
    Tenant,
)
from loadgen.summary import WHOLE, summarise
from tests.integration.loadgen.engine.simulated import simulated
from tests.integration.loadgen.server import Received, Server
from tests.support.loadgen_builders import scenario, tenant

STEP_S = 0.01


@contextlib.asynccontextmanager
async def engine(**model: Any) -> AsyncIterator[tuple[str, Scheduler]]:
    """The URL and the scheduler of a running simulator."""
    made: dict[str, Any] = {"slots": 64, "costs": Costs(STEP_S, 0.0, 0.0)}
    async with simulated(**made | model) as client:
        yield client.url, client.scheduler


async def measured(out: Path, url: str, world: Scenario) -> Run:
    out.mkdir(exist_ok=True)
    await Runner(Order(world, [url], out, "test"), Progress(io.StringIO()), time.monotonic).run()
    return load(out)


def short(who: Tenant, **fields: Any) -> Scenario:
    return scenario(who, **{"duration_s": 1.0, "drain_s": 10.0, "timeout_s": 10.0, **fields})


async def test_conversations_carry_their_answers_and_think_between_turns(tmp_path: Path) -> None:
    talks = Conversation(Fixed(3), 0.05, later_input=Fixed(8))
    who = tenant(process=Constant(4.0), ends_s=0.5, conversation=talks, endpoint=Endpoint.CHAT)
    async with engine(block_size=4) as (url, scheduler):
        run = await measured(tmp_path, url, short(who, prompt=PromptForm.TEXT))
    assert {attempt.outcome for attempt in run.attempts} == {Outcome.SERVED}
    by_talk = sorted(run.attempts, key=lambda a: (a.request.partition(".")[0], a.turn))
    found = [list(turns) for _, turns in groupby(by_talk, key=lambda a: a.request.partition(".")[0])]
    assert [[a.turn for a in turns] for turns in found] == [[1, 2, 3], [1, 2, 3]]
    for earlier, later in (pair for turns in found for pair in pairwise(turns)):
        assert later.intended_s == pytest.approx(earlier.end_s + 0.05)
        # The prompt has the earlier prompt, the answer and the new tokens, beside the template.
        assert later.prompt_tokens >= earlier.prompt_tokens + earlier.tokens + 8
        assert later.input_tokens == earlier.prompt_tokens + earlier.tokens + 8
    assert scheduler.statistics.cached_tokens > 0


@pytest.mark.parametrize("stops", [Cancel(0.5, after_tokens=3), Cancel(0.5, after_s=0.06)])
async def test_a_share_of_requests_is_cancelled_and_leaves_the_engine(tmp_path: Path, stops: Cancel) -> None:
    who = tenant(process=Constant(40.0), output=Fixed(30), cancel=stops)
    async with engine() as (url, scheduler):
        run = await measured(tmp_path, url, short(who))
        async with asyncio.timeout(10):
            while scheduler.unfinished:
                await asyncio.sleep(0.01)
    counts = Counter(attempt.outcome for attempt in run.attempts)
    assert set(counts) == {Outcome.SERVED, Outcome.CANCELLED}
    assert 8 <= counts[Outcome.CANCELLED] <= 32  # of 40
    ended = [attempt for attempt in run.attempts if attempt.outcome is Outcome.CANCELLED]
    assert all(attempt.tokens < 30 for attempt in ended)
    assert stops.after_tokens is None or all(attempt.tokens >= 3 for attempt in ended)
    cell = summarise(run).cell("gold", WHOLE)
    assert cell is not None
    assert (cell.failed, cell.refused, cell.ended(Outcome.CANCELLED)) == (0, 0, len(ended))


async def test_a_worker_goes_on_at_once_after_a_request_that_it_cancelled(tmp_path: Path) -> None:
    who = tenant(process=Closed(1, 0.0), output=Fixed(100), cancel=Cancel(1.0, after_tokens=2))
    async with engine() as (url, _):
        run = await measured(tmp_path, url, short(who))
    assert len(run.attempts) > 5  # a backoff of 0.5 s would allow two


SCENARIO = """\
name: small
model: tiny
duration_s: {duration}
timeout_s: 20
tenants:
  - {{name: gold, arrivals: {{constant: {{rate: {rate}}}}}, input: 8, output: 10}}
"""


async def command(tmp_path: Path, *arguments: str, rate: float, duration: float) -> tuple[int, str]:
    """The exit status and the output of a command of loadgen."""
    (tmp_path / "s.yaml").write_text(SCENARIO.format(rate=rate, duration=duration))
    name, *options = arguments
    scenario_and_out = (str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen", name, *scenario_and_out, *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode() + error.decode()


async def test_requests_of_the_warm_up_stay_in_the_raw_file_and_are_marked(tmp_path: Path) -> None:
    async with engine() as (url, _):
        status, told = await command(
            tmp_path, "run", "--url", url, "--warm-up", "0.5", "--cool-down", "0.25", rate=20, duration=1
        )
    assert status == 0, told
    assert "Measured: requests that were due from 0.5 to 0.75 s." in told
    run = load(tmp_path / "out")
    assert len(run.attempts) == 20
    assert {a.request for a in run.attempts if a.is_measured} == {
        a.request for a in run.attempts if 0.5 <= a.intended_s < 0.75
    }
    cell = summarise(run).cell("gold", WHOLE)
    assert cell is not None
    assert cell.requests == sum(attempt.is_measured for attempt in run.attempts)


def predicted(slots: int) -> float:
    """Requests per second: a request of 10 tokens holds its slot for 10 steps."""
    return slots / (10 * STEP_S)


async def test_a_sweep_writes_its_runs_and_no_rate_above_the_slots_is_the_knee(tmp_path: Path) -> None:
    """A slow machine lowers the knee, so bounds are tested here, and the exact knee on a virtual clock."""
    slots = 2
    most = predicted(slots)
    rates = [round(most * load, 3) for load in (0.4, 0.75, 1.6)]
    async with engine(slots=slots) as (url, _):
        status, told = await command(
            tmp_path, "sweep", "--url", url, "--rates", ",".join(map(str, rates)), rate=1, duration=3
        )
    assert status == 0, told
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"rate-8-run1", "rate-15-run1", "rate-32-run1", "rates.json", "rates.csv", "report.html"}
    data = json.loads((tmp_path / "out/rates.json").read_bytes())
    assert [point["rate"] for point in data["points"]] == rates
    assert data["result"]["fails_at"] in rates, told
    assert data["result"]["at"] in (None, *rates[:2]), told
    last = data["points"][-1]
    assert last["obstacle"], told
    assert last["served_per_s"] <= most * 1.1


async def test_a_sweep_in_which_nothing_is_served_says_why_and_fails(tmp_path: Path) -> None:
    async def fails(received: Received, request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no memory", "type": "oom"}}, status=500)

    async with Server(fails).running() as server:
        status, told = await command(
            tmp_path, "sweep", "--url", server.url, "--rates", "10", rate=1, duration=1
        )
    assert status == 1
    assert "100% not served, most often: oom" in told


async def test_a_capacity_search_stays_below_that_of_the_slots(tmp_path: Path) -> None:
    """Bounds that hold on a slow machine, too. The exact capacity is tested on a virtual clock."""
    most = predicted(2)
    async with engine(slots=2) as (url, _):
        status, told = await command(
            tmp_path, "capacity", "--url", url, "--slo", "gold.ttft.p50<=60ms", "--from", str(most * 0.8),
            "--resolution", "100%", "--most-runs", "1", "--most-time", "60", rate=1, duration=4,
        )  # fmt: skip
    result = json.loads((tmp_path / "out/rates.json").read_bytes())["result"]
    assert "Capacity:" in told
    assert status in (0, 1), told  # 1 without certainty
    assert result["not_met_at"] <= most * 1.6, told
    assert result["likely_met_at"] is None or result["likely_met_at"] < result["not_met_at"], told


async def test_a_goal_of_no_tenant_is_refused_before_the_first_run(tmp_path: Path) -> None:
    async with engine() as (url, _):
        status, told = await command(
            tmp_path, "capacity", "--url", url, "--slo", "spto.ttft.p50<=1s", rate=1, duration=1
        )
    assert status == 2
    assert "names 'spto', which is no tenant or tier" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--warm-up", "8", "--cool-down", "2"], "s.yaml has 10 s, of which a warm-up of 8 s and a cool-"),
        (["--warm-up", "-1"], "argument --warm-up: -1 is not a number from 0 to"),
        (["--duration", "2", "--warm-up", "2"], "leave nothing to measure; give a longer --duration"),
    ],
)
def test_a_warm_up_that_leaves_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], error: str
) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO.format(rate=1, duration=10))
    with contextlib.suppress(SystemExit):
        assert main(["check", str(tmp_path / "s.yaml"), *options]) == 2
    assert error in capsys.readouterr().err


def test_a_capacity_search_needs_a_goal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["capacity", str(tmp_path / "s.yaml"), "--url", "http://a", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "--slo" in capsys.readouterr().err
