"""The tracer with headers as hostile callers send them. Nothing is exported: its thread is not started."""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.options import Origin
from sidecar.proxy.heads import RequestHead, with_length
from sidecar.tracing.interface import Trace
from sidecar.tracing.otlp import OtlpTracer
from tests.support.sidecar_builders import head
from tokenpool.outcomes import Ending

TRACE, SPAN = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
VALID = b"00-%b-%b-01" % (TRACE, SPAN)
STATED = re.compile(
    rb"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-0[0-3]\r\n(?:tracestate: ([^\r\n]+)\r\n)?"
)
"""The header lines for the engine."""
ENGINE = Origin("127.0.0.1", 8000)


def tracer() -> OtlpTracer:
    return OtlpTracer(
        "http://127.0.0.1:1/v1/traces", lambda: 7.0, pool="chat", name="one", upstream=ENGINE, is_tls=False
    )


TRACER = tracer()


def stated(*headers: tuple[bytes, bytes]) -> tuple[bytes, bytes, bytes | None]:
    """The trace, the span and the trace state that the engine gets for a request with these headers."""
    trace = TRACER.begin(head(b"/v1/completions", *headers))
    trace.sent(None, None, b"id")
    lines = STATED.fullmatch(trace.headers())
    assert lines is not None
    trace.ended(Ending.FINISHED, 200, 200, None, None)
    return lines[1], lines[2], lines[3]


def test_the_trace_of_the_caller_goes_on_with_another_span() -> None:
    trace, span, state = stated((b"traceparent", VALID), (b"tracestate", b"a=1,b=2"))
    assert (trace, state) == (TRACE, b"a=1,b=2")
    assert span != SPAN


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert stated((b"traceparent", b"cc-%b-%b-01-more" % (TRACE, SPAN)))[0] == TRACE


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        VALID[:-1],
        VALID + b"1",
        VALID + b"-more",
        VALID.upper(),
        b"ff" + VALID[2:],
        b"0" + VALID,
        VALID.replace(b"-", b"_"),
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-0g" % (TRACE, SPAN),
        VALID + b"," + VALID,
        VALID + b"\xff",
        VALID * 500,
        "\N{ARABIC-INDIC DIGIT ZERO}".encode() * 2 + VALID[2:],
    ],
)
def test_an_invalid_parent_begins_a_new_trace_and_its_state_is_dropped(value: bytes) -> None:
    trace, _, state = stated((b"traceparent", value), (b"tracestate", b"a=1"))
    assert trace not in (TRACE, b"0" * 32)
    assert state is None


def test_two_parents_are_ambiguous() -> None:
    assert stated((b"traceparent", VALID), (b"traceparent", VALID))[0] != TRACE


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([b"a=1", b"b=2"], b"a=1,b=2"),
        ([b" a=1 , ,b=2"], b"a=1,b=2"),
        ([b"a=1,a=2"], None),
        ([b"no"], None),
        ([b"a=\xff"], None),
        ([b",".join(b"k%d=1" % number for number in range(33))], None),
        ([b"a=" + b"x" * 600], None),
        ([b""], None),
    ],
)
def test_the_trace_state_passes_if_it_is_valid(given: list[bytes], passed: bytes | None) -> None:
    trace, _, state = stated((b"traceparent", VALID), *((b"tracestate", value) for value in given))
    assert (trace, state) == (TRACE, passed)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"traceparent", b"tracestate"]),
            st.binary(max_size=80) | st.from_regex(rb"[0-9a-fg]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?"),
        ),
        max_size=4,
    )
)
def test_any_headers_give_one_valid_parent(headers: list[tuple[bytes, bytes]]) -> None:
    stated(*headers)


def test_a_malformed_header_is_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stated((b"traceparent", VALID * 500))
    stated((b"traceparent", VALID), (b"tracestate", b"not valid"))
    stated((b"traceparent", VALID), (b"tracestate", b"x" * 2000))
    assert caplog.records == []


def test_a_request_that_ended_keeps_no_span() -> None:
    trace = TRACER.begin(head())
    trace.sent(None, None, b"id")
    recorded = TRACER.recorded
    trace.ended(Ending.FINISHED, 200, 200, None, None)
    trace.left()
    trace.first_token()
    assert TRACER.recorded == recorded + 2  # the engine's, and the server's, once


def test_a_trace_refers_to_no_request_head() -> None:
    """Otherwise a head and its trace would be a reference cycle."""
    made: RequestHead = head()
    made.trace = trace = TRACER.begin(made)
    values = [getattr(trace, name) for name in type(trace).__slots__]
    assert made not in values


def test_the_headers_come_before_the_framing() -> None:
    trace: Trace = TRACER.begin(head())
    trace.sent(None, None, b"id")
    framed = with_length(b"POST / HTTP/1.1\r\n" + trace.headers(), b"id", 3)
    assert framed.endswith(b"\r\nx-request-id: id\r\ncontent-length: 3\r\n\r\n")
