"""Ids that the sidecar makes, and ids of clients that it accepts."""

from __future__ import annotations

import pytest

from sidecar.proxy.heads import RequestFramer, RequestHead
from sidecar.proxy.request_ids import LONGEST_ID, RequestIds, is_valid


def test_ids_of_one_process_differ_and_those_of_two_processes_too() -> None:
    one, other = RequestIds(), RequestIds()
    made = [ids.next() for ids in (one, one, other, other)]
    assert len(set(made)) == 4
    assert all(len(each) == 32 and is_valid(each) for each in made)


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (b"7", True),
        (b"req_0a-b.c:d/e=", True),
        (b"x" * LONGEST_ID, True),
        (b"x" * (LONGEST_ID + 1), False),
        (b"", False),
        (b"a\tb", False),
        (b"caf\xc3\xa9", False),
        (b"\x7f", False),
    ],
)
def test_an_id_is_a_short_visible_text(value: bytes, valid: bool) -> None:
    assert is_valid(value) is valid


@pytest.mark.parametrize("values", [[], [b""], [b"a", b"b"], [b"\x01"]])
def test_a_request_without_exactly_one_valid_id_gets_one(values: list[bytes]) -> None:
    head, ids = RequestHead(), RequestIds(b"p")
    head.headers = [(b"x-request-id", value) for value in values]
    for number in (1, 2):
        head.identify(ids)
        assert head.id == b"p%016x" % number


def test_the_clients_id_is_kept_for_each_request_with_this_head() -> None:
    head = RequestHead()
    head.headers = [(b"x-request-id", b"mine")]
    for _ in range(2):
        head.identify(RequestIds())
        assert head.id == b"mine"


def test_a_head_that_is_used_again_gets_the_next_id_and_the_new_key_of_the_engine() -> None:
    framer, head, ids = RequestFramer("engine:8000", "old-key", None), RequestHead(), RequestIds(b"p")
    head.method, head.target = b"POST", b"/v1/completions"
    head.identify(ids)
    first = framer.frame(head, 2, None)
    framer.use_key("new-key")
    head.identify(ids)
    second = framer.frame(head, 2, None)
    assert second == first.replace(b"old-key", b"new-key").replace(b"0001\r", b"0002\r")
    assert second.count(b"x-request-id") == 1
