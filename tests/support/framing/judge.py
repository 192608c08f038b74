"""Checks of the outcomes of corpus cases on raw bytes, with the strict parser (``tests/support/strict.py``)."""

from __future__ import annotations

from sidecar.proxy.heads import FAIRNESS_HEADERS, OBJECTIVE_HEADERS
from tests.support.framing.cases import Refused, Relayed, get, got, sized
from tests.support.strict import Answer, Request

FIRST, READ_FIRST = sized(b"first"), Relayed(body=b"first")
"""A request before those of a case, and its outcome."""
LAST, READ_LAST = get(b"/version?last", b"Connection: close\r\n"), got(b"/version?last", closes=True)
"""A request after those of a case. It shows whether both sides agree where messages begin."""
MAX_BYTEWISE = 1200
"""Longer cases are split into pieces of a few thousand bytes."""

Outcome = Relayed | Refused


def split(raw: bytes) -> list[bytes]:
    """The bytes of a case, byte by byte."""
    size = 1 if len(raw) <= MAX_BYTEWISE else 4093
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def method_of(outcome: Outcome) -> bytes:
    """The method of a request, which matters for the body of the response."""
    if isinstance(outcome, Relayed):
        return outcome.method
    return b"HEAD" if outcome.is_head else b"GET"


def with_last(outcomes: tuple[Outcome, ...]) -> list[Outcome]:
    """All outcomes on a connection if ``LAST`` is sent after these."""
    return [*outcomes] if outcomes[-1].closes else [*outcomes, READ_LAST]


OF_THE_CALLER = (
    *((name, b"g") for name in FAIRNESS_HEADERS),
    *((name, b"guaranteed") for name in OBJECTIVE_HEADERS),
)
"""The headers about the entitlement of the cases' key."""


def as_engine_reads(outcome: Relayed, host: bytes, *, is_identified: bool = True) -> Request:
    """The request that the engine must read. ``/version`` needs no key, so its caller is unknown."""
    ours = ((b"host", host), (b"accept-encoding", b"identity"))
    if is_identified and not outcome.target.startswith(b"/version"):
        ours += OF_THE_CALLER
    headers = (*ours, *outcome.headers)
    if outcome.body or outcome.method == b"POST":
        headers += ((b"content-length", b"%d" % len(outcome.body)),)
    return Request(outcome.method, outcome.target, headers, outcome.body)


def check_answer(answer: Answer, outcome: Outcome) -> None:
    """Check that the client's response is that of the outcome."""
    reason = answer.get(b"x-tokenpool-reason")
    if isinstance(outcome, Relayed):
        assert (answer.status, reason) == (200, None)
        assert outcome.continues is None or answer.interims == outcome.continues
    else:
        assert (answer.status, answer.interims) == (outcome.status, 0)
        assert reason is not None
    assert (answer.get(b"connection") == b"close") == outcome.closes
