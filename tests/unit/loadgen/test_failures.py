"""Failures: their names and messages, their table, and the judgement of a probed server."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import causes, probe, report
from loadgen.failures import failures, table, text
from loadgen.probe import Reply
from loadgen.records import META, REQUESTS, Attempt, Lines, Outcome, load, save
from loadgen.scenario import Header
from loadgen.sse import Failure
from loadgen.summary import summarise
from tests.support.loadgen_builders import attempt, run, tenant

HERE = SimpleNamespace(host="h", port=1, ssl=None, is_ssl=True)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (aiohttp.ClientConnectorError(HERE, ConnectionRefusedError(111, "refused")), "connection refused"),
        (aiohttp.ClientConnectorError(HERE, OSError(113, "no route to host")), "no connection"),
        (aiohttp.ClientConnectorDNSError(HERE, OSError(-2, "not known")), "unknown host"),
        (aiohttp.ClientConnectorCertificateError(HERE, ssl.CertificateError("self-signed")), "TLS error"),
        (aiohttp.ClientConnectorSSLError(HERE, ssl.SSLError("wrong version")), "TLS error"),
        (aiohttp.ServerDisconnectedError(), "connection closed without a response"),
        (aiohttp.ClientOSError(104, "reset"), "connection reset"),
        (ConnectionResetError(104, "reset"), "connection reset"),
        (aiohttp.ClientPayloadError("not enough data"), "response cut"),
        (aiohttp.ClientConnectorError(HERE, OSError(24, "Too many open files")), "too many open files"),
        (OSError("other"), "OSError"),
    ],
)  # fmt: skip
def test_each_exception_has_a_reason_and_a_message(error: Exception, reason: str) -> None:
    named, message = causes.of_exception(error)
    assert named == reason
    assert message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"error": {"message": "no such model", "code": 404}}', "no such model"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": "overloaded"}', "overloaded"),
        (b'{"other": 1}', '{"other": 1}'),
        (b"[1]", "[1]"),
        (b"<html>\n\x1b[31mBad\tGateway</html>", "<html> [31mBad Gateway</html>"),
        (b"", ""),
    ],
)
def test_the_message_of_a_response_is_its_field_or_its_text(content: bytes, message: str) -> None:
    assert causes.message(content) == message


@given(st.binary(max_size=2000))
def test_a_message_is_one_short_printable_line(content: bytes) -> None:
    message = causes.message(content)
    assert len(message) <= causes.MOST_MESSAGE
    assert message.isprintable()


def test_a_message_does_not_contain_the_key() -> None:
    assert causes.without("Incorrect API key: sk-1.", ["sk-1"]) == "Incorrect API key: [key]."
    assert causes.without("as is", []) == "as is"


def test_a_timeout_says_how_far_the_response_was() -> None:
    assert causes.of_timeout(5.0, status=0, has_token=False)[0] == "timeout before the response"
    assert causes.of_timeout(5.0, status=200, has_token=False)[0] == "timeout before the first token"
    reason, message = causes.of_timeout(5.0, status=200, has_token=True)
    assert (reason, message) == (
        "timeout within the response",
        "the response did not end within timeout_s, 5 s",
    )


@pytest.mark.parametrize(
    ("code", "kind", "name"),
    [
        (404, "NotFoundError", "NotFoundError"),
        ("404", "NotFoundError", "NotFoundError"),
        ("preempted", "rate_limit_error", "preempted"),
        (500, None, "500"),
        (None, None, "error"),
    ],
)
def test_an_error_is_named_by_its_code_unless_that_is_a_status(
    code: str | int | None, kind: str | None, name: str
) -> None:
    assert Failure(type=kind, code=code).name == name


def failed(at: float, reason: str, outcome: Outcome, **fields: object) -> Attempt:
    return attempt(at, None, outcome=outcome, reason=reason, tokens=0, **fields)


def test_failures_are_counted_by_reason_with_one_message() -> None:
    found = failures(
        [
            attempt(1.0),
            failed(1.0, "connection refused", Outcome.BROKEN, status=0),
            failed(2.0, "connection refused", Outcome.BROKEN, status=0, tenant="spot", message="port 1"),
            failed(3.0, "connection refused", Outcome.BROKEN, status=0, message="port 2"),
            failed(2.0, "NotFoundError", Outcome.ERROR, status=404, message="no such model"),
            failed(4.0, "", Outcome.CUT, status=200),
        ]
    )
    assert [(each.reason, each.attempts, each.message) for each in found] == [
        ("connection refused", 3, "port 1"),
        ("NotFoundError", 1, "no such model"),
        ("cut by the end of the run", 1, ""),
    ]
    assert (found[0].tenants, found[0].from_s, found[0].to_s) == (["gold", "spot"], 2.0, 4.0)
    assert text(found)[1] == "  3 x connection refused (broken; gold, spot): port 1"
    assert text(found)[2] == "  1 x NotFoundError (error, status 404; gold): no such model"


def test_a_terminal_has_a_bounded_number_of_reasons() -> None:
    found = failures(failed(1.0, f"r{number}", Outcome.ERROR) for number in range(11))
    assert len(text(found)) == 10
    assert "3 more reasons" in text(found)[-1]
    assert all(f"r{number}" in table(found) for number in range(11))


def test_a_request_that_the_client_cancels_as_planned_is_no_failure() -> None:
    cancelled = run(attempt(1.0, outcome=Outcome.CANCELLED))
    summary = summarise(cancelled)
    assert (summary.failures, summary.served) == ([], 1)
    assert "Nothing was served" not in report.text(cancelled.meta, summary)


def test_a_run_without_failures_lists_none() -> None:
    assert failures([attempt(1.0)]) == []
    assert text([]) == []
    assert table([]) == ""


def test_the_report_says_why_nothing_was_served() -> None:
    dead = run(failed(1.0, "connection refused", Outcome.BROKEN, status=0, message="<no> server"))
    summary = summarise(dead)
    assert summary.served == 0
    shown = report.text(dead.meta, summary)
    assert "! Nothing was served: connection refused." in shown
    assert "1 x connection refused (broken; gold): <no> server" in shown
    page = report.html(dead, summary)
    assert "Nothing was served" in page
    assert "&lt;no&gt; server" in page
    assert "no request was due" in report.text(run().meta, summarise(run()))


def test_the_models_of_a_server_are_listed() -> None:
    assert probe.models(Reply(200, content=b'{"data": [{"id": "a"}, {"id": "b"}, {}]}')) == ["a", "b"]
    for content in (b"{", b"[]", b'{"data": 1}', b"\xff"):
        assert probe.models(Reply(200, content=content)) == []
    assert probe.models(Reply(404, content=b'{"data": [{"id": "a"}]}')) == []


def test_a_refused_key_and_a_redirect_are_problems_and_a_busy_server_is_none() -> None:
    gold = tenant(key="sk-1")
    refused = probe.problem(Reply(401, content=b'{"error": {"message": "no key sk-1"}}'), gold)
    assert refused == "refuses tenant 'gold' with 401 (no key [key]); correct `key` in the scenario"
    named = tenant(headers=(Header("X-Api-Key", "sk-2"),))
    assert "(no key [key])" in probe.problem(Reply(401, content=b"no key sk-2"), named)
    assert "give the tenant a `key`" in probe.problem(Reply(403), tenant())
    assert "redirects to https://b" in probe.problem(Reply(308, "https://b"), gold)
    for status in (200, 404, 429, 500, 503):
        assert probe.problem(Reply(status), gold) == ""


def test_a_model_is_wrong_only_if_the_server_refuses_it() -> None:
    answer = Reply(404, content=b'{"error": {"message": "it does not exist"}}')
    told = probe.wrong_model(answer, "x", ["a", "b"])
    assert told == (
        "does not serve the model 'x' (it does not exist); it lists a, b; correct `model` in the scenario"
    )
    for status in (200, 429, 503):
        assert probe.wrong_model(Reply(status), "x", ["a"]) == ""


def test_an_unreachable_server_is_named_with_a_fix() -> None:
    error = aiohttp.ClientConnectorError(HERE, ConnectionRefusedError(111, "refused"))
    told = probe.unreachable("http://h:1", error)
    assert told.startswith("http://h:1 cannot be reached: connection refused (")
    assert told.endswith("; start the server, or correct the port")
    assert probe.unreachable("http://h:1", OSError("x")).endswith("; check the URL")


def test_the_reasons_of_failures_survive_the_file(tmp_path: Path) -> None:
    made = run(failed(1.0, "connection refused", Outcome.BROKEN, message="port 1"))
    lines = Lines(tmp_path / REQUESTS)
    lines.write(made.attempts[0])
    lines.close()
    save(tmp_path / META, made.meta)
    assert load(tmp_path).attempts[0].message == "port 1"
