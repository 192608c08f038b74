"""Failures of a run are visible: on the terminal, in the report and by the exit status."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from loadgen import client, sse
from loadgen import probe as probing
from loadgen.failures import failures
from loadgen.records import Outcome
from loadgen.scenario import Constant
from tests.certificates import certify, serving
from tests.integration.loadgen.server import Answer, Received, Server, broken, event, opened, stream
from tests.integration.loadgen.test_run import answered, short
from tests.support.loadgen_builders import tenant
from toolbox.ports import free_port

SCENARIO = """\
name: small
model: {model}
duration_s: {duration}
timeout_s: {timeout}
tenants:
  - {{name: gold, key: {key}, arrivals: {{constant: {{rate: 20}}}}, input: 8, output: 2}}
"""
MODELS = {"data": [{"id": "tiny"}]}


async def ran(
    out: Path, url: str, *, model: str = "tiny", key: str = "sk-1", timeout: float = 20, duration: float = 0.5
) -> tuple[int | None, str, str]:
    """The exit status, output and errors of a run."""
    process = await started(out, url, model=model, key=key, timeout=timeout, duration=duration)
    told, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, told.decode(), errors.decode()


async def started(
    out: Path, url: str, *, model: str = "tiny", key: str = "sk-1", timeout: float = 20, duration: float = 0.5
) -> asyncio.subprocess.Process:
    text = SCENARIO.format(model=model, key=key, timeout=timeout, duration=duration)
    (out / "s.yaml").write_text(text)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen", "run", str(out / "s.yaml"), "--url", url, "--out", str(out / "out"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@asynccontextmanager
async def listing(answer: Answer) -> AsyncIterator[Server]:
    """A server that lists its model."""
    async with Server(answer).running() as server:
        server.pages["/v1/models"] = MODELS
        yield server


async def not_found(received: Received, request: web.Request) -> web.StreamResponse:
    error = {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}
    return web.json_response({"error": error}, status=404)


async def error_event(received: Received, request: web.Request) -> web.StreamResponse:
    response = await opened(request)
    await response.write(event({"choices": [{"text": "a"}]}))
    await response.write(event({"error": {"message": "out of memory", "type": "InternalServerError"}}))
    return response


async def other_events(received: Received, request: web.Request) -> web.StreamResponse:
    response = await opened(request)
    await response.write(b"data: not a completion\n\n")
    return response


async def without_tokens(received: Received, request: web.Request) -> web.StreamResponse:
    response = await opened(request)
    await response.write(b"data: [DONE]\n\n")
    return response


async def html(received: Received, request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>Welcome</html>", content_type="text/html")


async def nested(received: Received, request: web.Request) -> web.StreamResponse:
    response = await opened(request)
    await response.write(b"data: " + b'{"x":' * 100_000 + b"\n\n")
    return response


async def nested_error(received: Received, request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, body=b'{"error":' * 5000, content_type="application/json")


async def controlling(received: Received, request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "no", "type": "\x1b[31m" + "sk-1 " * 99}}, status=500)


async def unnamed(received: Received, request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "slow down"}}, status=429)


async def endless_event(received: Received, request: web.Request) -> web.StreamResponse:
    response = await opened(request)
    while True:
        await response.write(b"x" * (1 << 20))


async def endless_body(received: Received, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b"x" * (1 << 16))


async def silent(received: Received, request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def stalled(received: Received, request: web.Request) -> web.StreamResponse:
    response = await opened(request)
    await response.write(event({"choices": [{"text": "a"}]}))
    await asyncio.sleep(30)
    return response


async def unauthorized(received: Received, request: web.Request) -> web.StreamResponse:
    body = {"error": {"message": f"{received.headers['authorization']} is unknown", "code": "invalid_key"}}
    return web.json_response(body, status=401)


@pytest.mark.parametrize(
    ("answer", "outcome", "reason", "message"),
    [
        (not_found, Outcome.ERROR, "NotFoundError", "The model `x` does not exist."),
        (unauthorized, Outcome.ERROR, "invalid_key", "Bearer [key] is unknown"),
        (broken, Outcome.BROKEN, "response cut", "not complete"),
        (error_event, Outcome.ERROR, "InternalServerError", "out of memory"),
        (other_events, Outcome.BROKEN, "stream ended early", "not a completion"),
        (without_tokens, Outcome.ERROR, "no token", ""),
        (html, Outcome.ERROR, "wrong content type", "text/html: <html>Welcome</html>"),
        (nested, Outcome.BROKEN, "stream ended early", '{"x":'),
        (nested_error, Outcome.ERROR, "500", '{"error":'),
        (controlling, Outcome.ERROR, " [31m[key] [key]".strip() + " [key]" * 7 + "...", "no"),
        (unnamed, Outcome.SHED, "429", "slow down"),
        (silent, Outcome.TIMEOUT, "timeout before the response", "timeout_s, 0.3 s"),
        (stalled, Outcome.TIMEOUT, "timeout within the response", "timeout_s, 0.3 s"),
    ],
)
async def test_each_failure_has_a_reason_and_a_message(
    tmp_path: Path, answer: Answer, outcome: Outcome, reason: str, message: str
) -> None:
    gold = tenant(process=Constant(20.0), key="sk-1")
    run, _ = await answered(tmp_path, short(gold, timeout_s=0.3), answer)
    (only,) = failures(run.attempts)
    assert (only.outcome, only.reason, only.attempts) == (outcome, reason, 10)
    assert message in only.message
    assert "sk-1" not in only.message


@pytest.mark.parametrize(
    ("answer", "message"),
    [(endless_event, "an event has more than 0 MiB"), (endless_body, "the response has more than 0 MiB")],
)
async def test_a_response_without_an_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, message: str
) -> None:
    monkeypatch.setattr(sse, "MOST_EVENT_BYTES", 1 << 17)
    monkeypatch.setattr(client, "MOST_BYTES", 1 << 17)
    run, _ = await answered(tmp_path, short(tenant(process=Constant(20.0))), answer)
    (only,) = failures(run.attempts)
    assert (only.outcome, only.reason) == (Outcome.ERROR, "response too large")
    assert only.message == message


@pytest.mark.parametrize("count", [-3, 10**18])
async def test_an_impossible_count_of_tokens_is_not_believed(tmp_path: Path, count: int) -> None:
    async def lying(received: Received, request: web.Request) -> web.StreamResponse:
        usage = {"prompt_tokens": count, "completion_tokens": count}
        response = await opened(request)
        await response.write(event({"choices": [{"text": "a"}]}))
        await response.write(event({"choices": [{"text": "b", "finish_reason": "length"}], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    run, _ = await answered(tmp_path, short(tenant(process=Constant(20.0))), lying)
    assert {(each.tokens, each.is_counted, each.prompt_tokens) for each in run.attempts} == {(2, False, 0)}


async def test_a_dead_port_ends_before_the_run(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    status, _, errors = await ran(tmp_path, url)
    assert status == 1
    assert f"{url} cannot be reached: connection refused" in errors
    assert "start the server, or correct the port" in errors
    assert not (tmp_path / "out").exists()


async def test_a_wrong_model_ends_before_the_run(tmp_path: Path) -> None:
    async with listing(not_found) as server:
        status, _, errors = await ran(tmp_path, server.url, model="x")
    assert status == 1
    assert f"{server.url} does not serve the model 'x' (The model `x` does not exist.)" in errors
    assert "it lists tiny; correct `model` in the scenario" in errors
    assert len(server.received) == 1


async def test_a_model_that_is_served_but_not_listed_is_measured(tmp_path: Path) -> None:
    async with listing(stream) as server:
        status, _, errors = await ran(tmp_path, server.url, model="x")
    assert (status, errors) == (0, errors)
    assert len(server.received) == 11


async def test_a_refused_key_ends_before_the_run(tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Invalid API key sk-1"}}, status=401)

    async with serving_pages(page) as url:
        status, _, errors = await ran(tmp_path, url)
    assert status == 1
    assert f"{url} refuses tenant 'gold' with 401 (Invalid API key [key]); correct `key`" in errors


async def test_one_accepted_key_or_one_that_was_not_tried_is_enough() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.json_response(MODELS, status=200 if "sk-good" in request.headers["authorization"] else 401)

    refused = [tenant(f"t{number}", key=f"sk-{number}") for number in range(probing.MOST_KEYS)]
    async with serving_pages(page) as url:
        await probing.probe(short(*refused[:3], tenant("good", key="sk-good")), [url])
        await probing.probe(short(*refused, tenant("other", key="sk-other")), [url])
        with pytest.raises(probing.ServerUnusable, match="refuses tenant 't0' with 401"):
            await probing.probe(short(*refused), [url])


async def test_a_server_without_an_answer_ends_before_the_run() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with serving_pages(page) as url:
        with pytest.raises(probing.ServerUnusable, match=r"does not answer /v1/models within 0\.2 s; check"):
            await probing.probe(short(), [url], 0.2)


async def test_ctrl_c_before_the_run_ends_with_130(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def page(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(30)
        return web.Response()

    async with serving_pages(page) as url:
        process = await started(tmp_path, url)
        await asyncio.wait_for(asked.wait(), 60)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    assert not (tmp_path / "out").exists()


async def test_a_rate_that_no_generator_reaches_is_sent_and_can_be_ended(tmp_path: Path) -> None:
    async with listing(stream) as server:
        (tmp_path / "s.yaml").write_text(
            SCENARIO.format(model="tiny", key="sk-1", timeout=20, duration=60).replace("20}}", "100000}}")
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadgen", "run", str(tmp_path / "s.yaml"), "--url", server.url,
            "--out", str(tmp_path / "out"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                while not server.received:
                    await asyncio.sleep(0.02)
                process.send_signal(signal.SIGINT)
                told, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 130
    assert "Interrupted after" in told.decode()


async def test_a_sweep_without_a_due_request_ends_with_1(tmp_path: Path) -> None:
    async with listing(stream) as server:
        (tmp_path / "s.yaml").write_text(SCENARIO.format(model="tiny", key="sk-1", timeout=20, duration=0.1))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadgen", "sweep", str(tmp_path / "s.yaml"), "--url", server.url,
            "--out", str(tmp_path / "out"), "--rates", "0.00001",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, _ = await asyncio.wait_for(process.communicate(), 60)
    assert "no request was due" in told.decode()
    assert process.returncode == 1


async def test_a_redirect_ends_before_the_run(tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(status=308, headers={"location": "https://127.0.0.1/"})

    async with serving_pages(page) as url:
        status, _, errors = await ran(tmp_path, url)
    assert status == 1
    assert "redirects to https://127.0.0.1/; give that server with --url" in errors


async def test_a_certificate_of_an_unknown_authority_ends_before_the_run(tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.json_response(MODELS)

    tls = serving(*certify(tmp_path, "server"))
    async with serving_pages(page, tls=tls) as url:
        status, _, errors = await ran(tmp_path, url)
        assert status == 1
        assert f"{url} cannot be reached: TLS error" in errors
        assert "--tls-ca" in errors
        status, _, errors = await ran(tmp_path, url.replace("https", "http"))
        assert status == 1
        assert "it may need https" in errors


@asynccontextmanager
async def serving_pages(page: object, tls: object = None) -> AsyncIterator[str]:
    """A server with one page for every path."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", page)  # type: ignore[arg-type]
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()  # type: ignore[arg-type]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_run_in_which_nothing_is_served_says_why_and_ends_with_1(tmp_path: Path) -> None:
    async def fails(received: Received, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"error": {"message": "CUDA error", "type": "InternalServerError"}}, status=500
        )

    async with listing(fails) as server:
        status, told, _ = await ran(tmp_path, server.url)
    assert status == 1
    assert "! Nothing was served: InternalServerError." in told
    assert "10 x InternalServerError (error, status 500; gold): CUDA error" in told
    assert "CUDA error" in (tmp_path / "out" / "report.html").read_text()
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())["failures"]
    assert [(each["reason"], each["attempts"]) for each in saved] == [("InternalServerError", 10)]


async def test_a_run_with_some_failures_says_why_and_ends_with_0(tmp_path: Path) -> None:
    count = 0

    async def mixed(received: Received, request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        return await (broken if count % 2 else stream)(received, request)

    async with listing(mixed) as server:
        status, told, _ = await ran(tmp_path, server.url)
    assert status == 0
    assert "5 x response cut (broken, status 200; gold): " in told
