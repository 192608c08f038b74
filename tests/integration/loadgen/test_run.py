"""Whole runs against a small server: requests, measurements and endings."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from loadgen import report
from loadgen.__main__ import main
from loadgen.progress import Progress, line
from loadgen.records import META, Attempt, Meta, Outcome, Run, load
from loadgen.run import Order, Runner, backoff
from loadgen.scenario import Closed, Constant, Fault, Phase, Retries, Scenario
from loadgen.summary import summarise
from tests.integration.loadgen.server import (
    Answer,
    Received,
    Server,
    broken,
    event,
    opened,
    preempted,
    shed,
    stream,
)
from tests.support.loadgen_builders import scenario, tenant


async def measured(out: Path, world: Scenario, *servers: Server, **fields: object) -> Run:
    order = replace(Order(world, [server.url for server in servers], out, "test"), **fields)
    await Runner(order, Progress(io.StringIO()), time.monotonic).run()
    return load(out)


async def answered(out: Path, world: Scenario, answer: Answer) -> tuple[Run, Server]:
    async with Server(answer).running() as server:
        return await measured(out, world, server), server


def short(*tenants: object, **fields: object) -> Scenario:
    made = {"duration_s": 0.5, "drain_s": 5.0, "timeout_s": 5.0, **fields}
    return scenario(*(tenants or (tenant(process=Constant(20.0)),)), **made)  # type: ignore[arg-type]


async def test_a_stream_follows_the_scenario_and_is_measured_by_token(tmp_path: Path) -> None:
    who = tenant(process=Constant(20.0), key="sk-1")
    run, server = await answered(tmp_path, short(who), stream)
    assert len(run.attempts) == len(server.received) == 10
    first = run.attempts[0]
    assert (first.outcome, first.status, first.prompt_tokens, first.tokens) == (Outcome.SERVED, 200, 16, 4)
    assert first.first_s is not None
    assert first.intended_s <= first.sent_s
    assert first.sent_s <= first.first_s <= first.end_s
    assert sum(first.gaps.values()) == 3
    assert first.gap_max_s is not None
    assert first.gap_max_s >= (first.gap_p99_s or 0.0) >= 0.0
    assert server.received[0].headers["authorization"] == "Bearer sk-1"
    assert (server.received[0].json["max_tokens"], server.received[0].json["ignore_eos"]) == (4, True)
    assert "sk-1" not in "".join(path.read_text() for path in tmp_path.iterdir())


async def test_an_event_may_carry_several_tokens(tmp_path: Path) -> None:
    async def pairs(received: Received, request: web.Request) -> web.StreamResponse:
        response = await opened(request)
        for finish in (None, "length"):
            await response.write(event({"choices": [{"text": "ab", "finish_reason": finish}]}))
        await response.write(event({"choices": [], "usage": {"prompt_tokens": 16, "completion_tokens": 4}}))
        return response

    run, _ = await answered(tmp_path, short(), pairs)
    for attempt in run.attempts:
        assert (attempt.tokens, attempt.is_counted, sum(attempt.gaps.values())) == (4, True, 1)
        assert attempt.first_s is not None
        assert attempt.last_s is not None
        assert attempt.first_s <= attempt.last_s <= attempt.end_s
    tpot = summarise(run).cells[0].tpot.p50
    assert tpot is not None
    assert tpot.value <= max((a.gap_mean_s or 0.0) for a in run.attempts) / 3 + 1e-9


async def test_without_usage_a_stream_has_no_time_per_token(tmp_path: Path) -> None:
    async def silent(received: Received, request: web.Request) -> web.StreamResponse:
        response = await opened(request)
        for finish in (None, "length"):
            await response.write(event({"choices": [{"text": "a", "finish_reason": finish}]}))
        return response

    run, _ = await answered(tmp_path, short(), silent)
    assert {(a.tokens, a.is_counted) for a in run.attempts} == {(2, False)}
    summary = summarise(run)
    assert (summary.cells[0].tpot.p50, summary.cells[0].uncounted) == (None, 10)
    assert "10 streams reported no usage;" in report.text(run.meta, summary)


async def test_the_same_seed_sends_the_same_bytes(tmp_path: Path) -> None:
    bodies = []
    for _ in range(2):
        _, server = await answered(tmp_path, short(), stream)
        bodies.append(sorted(received.body for received in server.received))
    assert bodies[0] == bodies[1]
    assert len(set(bodies[0])) == 10


async def test_no_request_is_sent_before_its_time(tmp_path: Path) -> None:
    """A timer that is a millisecond early must not make a latency a millisecond too short."""
    run, _ = await answered(tmp_path, short(tenant(process=Constant(200.0))), stream)
    assert len(run.attempts) == 100
    assert all(a.intended_s <= a.sent_s and a.due_s <= a.sent_s for a in run.attempts)


async def test_delays_in_the_warm_up_do_not_count(tmp_path: Path) -> None:
    async def blocks(received: Received, request: web.Request) -> web.StreamResponse:
        if len(server.received) == 1:
            time.sleep(0.15)  # the generator is in the same loop, so it is late
        return await stream(received, request)

    server = Server(blocks)
    async with server.running():
        run = await measured(tmp_path, short(warm_up_s=0.3), server)
    late = {True: [0.0], False: [0.0]}
    for each in run.attempts:
        late[each.is_measured].append(each.sent_s - each.due_s)
    assert max(late[False]) > 0.05
    assert run.meta.lag_max_s == pytest.approx(max(late[True]))


async def test_unary_responses_are_measured_as_a_whole(tmp_path: Path) -> None:
    async def whole(received: Received, request: web.Request) -> web.StreamResponse:
        usage = {"prompt_tokens": 16, "completion_tokens": 4}
        return web.json_response({"choices": [{"text": "a", "finish_reason": "length"}], "usage": usage})

    run, _ = await answered(tmp_path, short(stream=False), whole)
    assert Counter((a.outcome, a.tokens, a.first_s) for a in run.attempts) == {(Outcome.SERVED, 4, None): 10}


async def test_a_slow_server_delays_no_arrival_and_all_waits_count(tmp_path: Path) -> None:
    """No coordinated omission: the server answers nothing until all ten requests are there, after 0.45 s."""
    count = 0
    arrived = asyncio.Event()

    async def slow(received: Received, request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        if count == 10:
            arrived.set()
        await arrived.wait()
        return await stream(received, request)

    run, server = await answered(tmp_path, short(), slow)
    assert len(server.received) == 10
    assert {a.outcome for a in run.attempts} == {Outcome.SERVED}
    first = min(run.attempts, key=lambda a: a.intended_s)
    assert first.first_s is not None
    assert first.first_s - first.intended_s > 0.45


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (shed, Outcome.SHED, "concurrency"),
        (broken, Outcome.BROKEN, "response cut"),
        (preempted, Outcome.PREEMPTED, "preempted"),
    ],
)
async def test_endings_are_distinguished(
    tmp_path: Path, answer: Answer, outcome: Outcome, reason: str
) -> None:
    run, _ = await answered(tmp_path, short(), answer)
    assert {(a.outcome, a.reason) for a in run.attempts} == {(outcome, reason)}
    assert len(run.attempts) == 10
    assert summarise(run).cells[0].outcomes == {outcome: 10}


@pytest.mark.parametrize(
    ("status", "text", "outcome", "reason"),
    [
        (503, '{"error": {"message": "busy", "code": "overloaded"}}', Outcome.UNAVAILABLE, "overloaded"),
        (500, "<html>", Outcome.ERROR, "500"),
        (200, "{}", Outcome.ERROR, "no completion"),
    ],
)  # fmt: skip
async def test_statuses_are_distinguished(
    tmp_path: Path, status: int, text: str, outcome: Outcome, reason: str
) -> None:
    async def answer(received: Received, request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, content_type="application/json")

    run, _ = await answered(tmp_path, short(), answer)
    assert {(a.outcome, a.reason, a.status) for a in run.attempts} == {(outcome, reason, status)}


async def test_a_stream_without_an_end_event_is_broken(tmp_path: Path) -> None:
    async def ends(received: Received, request: web.Request) -> web.StreamResponse:
        response = await opened(request)
        await response.write(b'data: {"choices": [{"text": "a"}]}\n\n')
        return response

    run, _ = await answered(tmp_path, short(), ends)
    assert {(a.outcome, a.reason, a.tokens) for a in run.attempts} == {
        (Outcome.BROKEN, "stream ended early", 1)
    }


async def test_without_a_server_every_request_is_broken(tmp_path: Path) -> None:
    async with Server(stream).running() as server:
        gone = server
    run = await measured(tmp_path, short(), gone)
    assert {(a.outcome, a.status) for a in run.attempts} == {(Outcome.BROKEN, 0)}


async def test_a_request_without_a_response_times_out_and_counts_as_a_wait(tmp_path: Path) -> None:
    async def silent(received: Received, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    run, _ = await answered(tmp_path, short(timeout_s=0.2), silent)
    assert {a.outcome for a in run.attempts} == {Outcome.TIMEOUT}
    cell = summarise(run).cells[0]
    assert cell.bounds == 10
    assert cell.ttft.p50 is not None
    assert 0.19 < cell.ttft.p50.value < 3.0  # the server takes 30 s


async def test_requests_that_outlast_the_drain_are_cut(tmp_path: Path) -> None:
    async def silent(received: Received, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    run, _ = await answered(tmp_path, short(drain_s=0.1), silent)
    assert {a.outcome for a in run.attempts} == {Outcome.CUT}
    assert run.meta.ended_s < 2.0


def flaky() -> Answer:
    """Sheds the first attempt of every body."""
    seen: set[bytes] = set()

    async def answer(received: Received, request: web.Request) -> web.StreamResponse:
        if received.body in seen:
            return await stream(received, request)
        seen.add(received.body)
        return await shed(received, request)

    return answer


async def test_a_retry_sends_the_same_request_after_the_given_time(tmp_path: Path) -> None:
    who = tenant(process=Constant(20.0), retries=Retries(most=2), ends_s=0.25)
    run, server = await answered(tmp_path, short(who), flaky())
    assert [a.outcome for a in run.attempts if a.attempt == 1] == [Outcome.SHED] * 5
    again = [a for a in run.attempts if a.attempt == 2]
    assert len(again) == 5
    assert all(a.due_s - a.intended_s >= 0.05 and a.sent_s >= a.due_s for a in again)
    assert Counter(received.body for received in server.received).most_common()[-1][1] == 2
    cell = summarise(run).cells[0]
    assert (cell.requests, cell.attempts, cell.outcomes) == (5, 10, {Outcome.SERVED: 5})
    assert cell.ttft.p50 is not None
    assert cell.ttft.p50.value >= 0.05  # the latency includes the wait


async def test_a_client_that_ignores_retry_after_uses_its_own_backoff(tmp_path: Path) -> None:
    retries = Retries(most=3, honour_retry_after=False, wait_s=0.002)
    who = tenant(process=Constant(20.0), retries=retries, ends_s=0.25)
    run, _ = await answered(tmp_path, short(who), shed)
    assert Counter(a.attempt for a in run.attempts) == {1: 5, 2: 5, 3: 5, 4: 5}
    assert all(a.retry_after_s == 0.05 for a in run.attempts)
    assert summarise(run).cells[0].outcomes == {Outcome.SHED: 5}


def test_waits_before_retries_double_and_end() -> None:
    retries = Retries(most=9, wait_s=0.5)
    assert backoff(retries, 1, 3.0, 0.0) == 3.0
    assert [backoff(retries, attempt, None, 1.0) for attempt in (1, 2, 3, 9)] == [0.5, 1.0, 2.0, 8.0]
    assert backoff(replace(retries, honour_retry_after=False), 1, 3.0, 0.0) == 0.375


async def test_workers_of_a_closed_loop_wait_for_their_responses(tmp_path: Path) -> None:
    under_way = most = 0

    async def watched(received: Received, request: web.Request) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return await stream(received, request)

    phases = (Phase("none", 0.2, 0.4, (("gold", 0.0),)),)
    run, _ = await answered(tmp_path, short(tenant(process=Closed(3, 0.0)), phases=phases), watched)
    assert most == 3
    assert {a.request.partition(".")[0] for a in run.attempts} == {"w0", "w1", "w2"}
    assert not any(0.2 <= a.intended_s < 0.399 for a in run.attempts)
    assert any(a.intended_s >= 0.4 for a in run.attempts)


async def test_refused_workers_wait_before_the_next_request(tmp_path: Path) -> None:
    run, _ = await answered(tmp_path, short(tenant(process=Closed(1, 0.0))), shed)
    assert (
        2 <= len(run.attempts) <= 15
    )  # one per 50 ms for half a second, as Retry-After says, on a busy machine


@pytest.mark.parametrize(
    ("spread", "shares"), [("round_robin", [5, 5]), ((1.0, 0.0), [10, 0]), ("random", None)]
)
async def test_requests_are_spread_over_the_urls(
    tmp_path: Path, spread: str | tuple[float, ...], shares: list[int] | None
) -> None:
    async with Server(stream).running() as one, Server(stream).running() as two:
        await measured(tmp_path, short(spread=spread), one, two)
    counts = [len(one.received), len(two.received)]
    assert sum(counts) == 10
    assert shares is None or counts == shares


async def test_state_pages_are_stored_and_unreadable_ones_are_gaps(tmp_path: Path) -> None:
    async with Server(stream).running() as server:
        server.pages["/debug/state"] = {
            "capacity": {"tokens_per_second": 900.0},
            "engine": {"running": 3, "stale": False},
            "entitlements": {"gold": {"limit": {"tokens_per_second": 500.0}, "level": 3.0, "debt": 0.25}},
        }
        run = await measured(tmp_path, short(), server, states=[server.url, server.url + "/metrics"])
    assert run.samples
    assert run.samples[0].entitlements["gold"].limit == {"tokens_per_second": 500.0}
    assert run.samples[0].capacity == {"tokens_per_second": 900.0}
    assert run.meta.unread_states.keys() == {server.url + "/metrics"}


async def test_faults_are_inflicted_only_if_allowed(tmp_path: Path) -> None:
    mark, pid = tmp_path / "mark", tmp_path / "pid"
    pid.write_text("1")
    faults = (
        Fault(0.1, ("touch", str(mark))),
        Fault(0.2, ("false",)),
        Fault(0.2, signal="TERM", pid_file=str(pid)),
        Fault(0.2, signal="TERM", pid_file=str(tmp_path / "none")),
    )
    async with Server(stream).running() as server:
        refused = await measured(tmp_path, short(faults=faults), server)
        assert not mark.exists()
        run = await measured(tmp_path, short(faults=faults), server, faults=True)
    assert refused.meta.faults == []
    assert mark.exists()
    assert sorted(done.result.partition(":")[0] for done in run.meta.faults) == [
        "done",
        "failed",
        "failed",
        "failed",
    ]
    assert all(done.at_s >= 0.09 for done in run.meta.faults)


async def test_a_process_is_signalled(tmp_path: Path) -> None:
    sleeping = await asyncio.create_subprocess_exec("sleep", "30")
    (tmp_path / "pid").write_text(f"{sleeping.pid}\n")
    faults = (Fault(0.1, signal="KILL", pid_file=str(tmp_path / "pid")),)
    async with Server(stream).running() as server:
        await measured(tmp_path, short(faults=faults), server, faults=True)
    assert await sleeping.wait() == -signal.SIGKILL


def test_progress_fits_its_line() -> None:
    ended = Counter({Outcome.SERVED: 12, Outcome.SHED: 3})
    assert (
        line(5.0, 10.0, 4, ended, width=200)
        == "[##########..........] 5 of 10 s  4 in flight, 12 served, 3 refused"
    )
    assert "waiting for the last responses" in line(11.0, 10.0, 4, ended, width=200)
    assert len(line(5.0, 10.0, 4, ended, width=30)) == 30


SCENARIO = """\
name: small
model: tiny
duration_s: {duration}
timeout_s: 20
tenants:
  - {{name: gold, arrivals: {{constant: {{rate: 20}}}}, input: 8, output: 2}}
"""


FAULTS = "faults: [{at_s: 1, run: [ls]}]\n"


ONE_WORKER = SCENARIO.replace("constant: {{rate: 20}}", "closed: {{workers: 1, think_s: 0.02}}")


async def started(
    tmp_path: Path, server: Server, duration: float, text: str = SCENARIO, *arguments: str
) -> asyncio.subprocess.Process:
    (tmp_path / "s.yaml").write_text(text.format(duration=duration))
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen", "run", str(tmp_path / "s.yaml"), "--url", server.url,
        "--out", str(tmp_path / "out"), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_the_command_runs_a_scenario_and_writes_its_files(tmp_path: Path) -> None:
    async with Server(stream).running() as server:
        process = await started(
            tmp_path, server, 0.5, SCENARIO, "--export", "vllm-bench", "--export", "guidellm"
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"gold" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "requests.jsonl", "state.jsonl", "meta.json", "summary.json", "summary.csv", "report.html",
        "vllm-bench.json", "guidellm.json",
    }  # fmt: skip
    completed = msgspec.json.decode((tmp_path / "out" / "vllm-bench.json").read_bytes())["completed"]
    assert completed == (tmp_path / "out" / "requests.jsonl").read_text().count('"outcome":"served"') > 0
    meta = msgspec.json.decode((tmp_path / "out" / META).read_bytes(), type=Meta)
    assert (meta.label, meta.name, meta.machine.cores >= 1) == ("out", "small", True)


@pytest.mark.parametrize(("bound", "status"), [("20s", 0), ("0us", 1)])
async def test_a_goal_decides_the_exit_status(tmp_path: Path, bound: str, status: int) -> None:
    async with Server(stream).running() as server:
        process = await started(tmp_path, server, 0.5, SCENARIO, "--fail-on", f"gold.e2e.p50<={bound}")
        out, _ = await process.communicate()
    assert process.returncode == status
    assert f"gold.e2e.p50<={bound}".encode() in out
    assert f"gold.e2e.p50<={bound}" in (tmp_path / "out" / "goals.json").read_text()


async def test_ctrl_c_ends_with_a_report_of_the_measurements(tmp_path: Path) -> None:
    async with Server(stream).running() as server:
        process = await started(tmp_path, server, 60.0, ONE_WORKER)
        try:
            async with asyncio.timeout(60):
                # A worker sends the fifth when four are served.
                while len(server.received) < 5 and process.returncode is None:
                    await asyncio.sleep(0.02)
            assert process.returncode is None, await process.communicate()
            process.send_signal(signal.SIGINT)
            out, _ = await asyncio.wait_for(process.communicate(), 20)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 130
    assert b"! Interrupted after" in out
    assert (tmp_path / "out" / "report.html").exists()
    assert sum(a.outcome is Outcome.SERVED for a in load(tmp_path / "out").attempts) >= 4


@pytest.mark.parametrize(
    ("text", "arguments", "error"),
    [
        ("name: [", ["--url", "http://a"], "s.yaml:"),
        (SCENARIO.format(duration=1), ["--url", "localhost:80"], "'localhost:80' is not the URL of a server"),
        (SCENARIO.format(duration=1) + "spread: [1, 2]\n", ["--url", "http://a"], "2 weights for 1 URLs;"),
        (SCENARIO.format(duration=1) + FAULTS, ["--url", "http://a"], "--allow-faults"),
        (SCENARIO.format(duration=1), ["--url", "http://a", "--fail-on", "x.ttft.p99<1s"], "tenants gold"),
        (SCENARIO.format(duration=1), ["--url", "http://a", "--fail-on", "gold.ttft.p99"], "has no operator"),
    ],
)  # fmt: skip
def test_wrong_input_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], error: str
) -> None:
    (tmp_path / "s.yaml").write_text(text)
    assert main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("loadgen: ")
    assert error in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_scenario_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_scenario_is_checked_with_its_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO.format(duration=10))
    assert (
        main(["check", str(tmp_path / "s.yaml"), "--scale-rate", "2", "--duration", "5", "--seed", "9"]) == 0
    )
    told = capsys.readouterr().out
    assert "small: 5 s, seed 9" in told
    assert "about 200" in told


def test_attempts_share_nothing() -> None:
    one, two = (Attempt("a", "0", 0, 0, 0, 0, 1, 1) for _ in range(2))
    one.gaps[1] = 1
    assert two.gaps == {}
