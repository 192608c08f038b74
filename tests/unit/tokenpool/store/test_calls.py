"""The calls of a lease store as frames: whole, byte by byte, and with bytes that are no frames."""

import msgspec
import pytest

from tokenpool.leases.messages import Answer, Lease, LeaseRequest, Limit, Message, Push, ReplicaRoom
from tokenpool.store.calls import (
    LISTEN,
    LONGEST_FRAME,
    CallInvalid,
    FrameReader,
    Kind,
    decode_call,
    decode_reply,
    encode_call,
    encode_reply,
    result_of,
    text_of,
)

MESSAGE = Message(
    "s1", 7, {"a": LeaseRequest(kv_wanted=float("inf"))}, kept=["b"], room=ReplicaRoom(1, 2, 3, "h:1")
)
ANSWER = Answer({"a": Lease(1, 2, 3, Limit(4))}, True, 2, peers=[])


def frames(data: bytes, step: int) -> list[bytes]:
    reader = FrameReader()
    return [frame for at in range(0, len(data), step) for frame in reader.feed(data[at : at + step])]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_calls_are_cut_from_a_stream_in_any_pieces(step: int) -> None:
    data = encode_call(1, "exchange", (MESSAGE,)) + encode_call(2, "limits", ()) + b"\0\0"

    assert [decode_call(frame) for frame in frames(data, step)] == [
        (1, "exchange", (MESSAGE,)),
        (2, "limits", ()),
    ]


def test_a_result_has_the_type_of_its_method() -> None:
    (frame,) = frames(encode_reply(3, Kind.RESULT, ANSWER), 1000)
    reply = decode_reply(frame)

    assert (reply.number, reply.kind, result_of(reply, "exchange")) == (3, Kind.RESULT, ANSWER)


def test_a_push_and_a_failure() -> None:
    push, failure = frames(
        encode_reply(1, Kind.PUSH, Push("s", "freed", "a")) + encode_reply(2, Kind.FAILURE, "no"), 1000
    )

    assert result_of(decode_reply(push), LISTEN) == Push("s", "freed", "a")
    assert text_of(decode_reply(failure)) == "no"


@pytest.mark.parametrize("name", ["close", "connect", "host", "__init__", "rules"])
def test_only_the_calls_of_a_store_can_be_called(name: str) -> None:
    (frame,) = frames(encode_call(1, name, ()), 1000)
    with pytest.raises(CallInvalid, match=f"no method '{name}'"):
        decode_call(frame)


@pytest.mark.parametrize("content", [b"", b"\xc1", msgspec.msgpack.encode([1]), b"\xff" * 9])
def test_other_bytes_are_an_error(content: bytes) -> None:
    with pytest.raises(CallInvalid, match="a call of the lease store cannot be read"):
        decode_call(content)
    with pytest.raises(CallInvalid, match="a reply of the lease store cannot be read"):
        decode_reply(content)


def test_arguments_of_another_type_are_an_error() -> None:
    (frame,) = frames(encode_call(1, "lead", ("me", "long")), 1000)
    with pytest.raises(CallInvalid, match="cannot be read"):
        decode_call(frame)


def test_results_of_another_type_are_an_error() -> None:
    (frame,) = frames(encode_reply(1, Kind.RESULT, "text"), 1000)
    with pytest.raises(CallInvalid, match="a result of exchange cannot be read"):
        result_of(decode_reply(frame), "exchange")
    (frame,) = frames(encode_reply(1, Kind.FAILURE, 5), 1000)
    with pytest.raises(CallInvalid, match="the text of a failure"):
        text_of(decode_reply(frame))


def test_a_frame_has_a_bound() -> None:
    with pytest.raises(CallInvalid, match="is longer than"):
        FrameReader().feed((LONGEST_FRAME + 1).to_bytes(4))
