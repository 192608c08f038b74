"""Frames between two sidecars: every split of the bytes, bounds, and the proof of the key."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.handover.ask_fields import AskFields
from sidecar.handover.frames import (
    ASKER,
    MAC_BYTES,
    MOST_CONTROL_BYTES,
    PEER,
    Frame,
    FrameReader,
    Kind,
    ProtocolError,
    decode_ask,
    encode_ask,
    frame,
    header,
    number_of,
    numbered,
    proof,
    proves,
)

LONGEST = 5000
CONTROL = [kind for kind in Kind if kind is not Kind.DATA]
frames = st.one_of(
    st.builds(Frame, st.sampled_from(CONTROL), st.binary(max_size=40)),
    st.builds(Frame, st.just(Kind.DATA), st.binary(max_size=200)),
)


def joined(read: list[Frame]) -> list[Frame]:
    """The frames, with the parts of neighbouring ``DATA`` frames put together."""
    found: list[Frame] = []
    for each in read:
        if each.kind is Kind.DATA and not each.payload:
            continue
        if each.kind is Kind.DATA and found and found[-1].kind is Kind.DATA:
            found.append(Frame(Kind.DATA, found.pop().payload + each.payload))
        else:
            found.append(each)
    return found


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 1000), max_size=8))
def test_frames_are_read_whatever_the_cuts(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(frame(*each) for each in sent)
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    reader = FrameReader(LONGEST)
    read = [each for start, end in itertools.pairwise(at) for each in reader.receive(data[start:end])]
    assert joined(read) == joined(sent)


def test_frames_are_read_byte_by_byte() -> None:
    sent = [Frame(Kind.ASK, b"abc"), Frame(Kind.DATA, b"0123456789"), Frame(Kind.END, b"k")]
    reader = FrameReader(LONGEST)
    data = b"".join(frame(*each) for each in sent)
    assert joined([each for byte in data for each in reader.receive(bytes([byte]))]) == sent


def test_a_part_of_data_is_passed_on_before_the_rest_arrives() -> None:
    reader = FrameReader(LONGEST)
    assert list(reader.receive(header(Kind.DATA, 10) + b"0123")) == [Frame(Kind.DATA, b"0123")]
    assert list(reader.receive(b"456789" + frame(Kind.END))) == [
        Frame(Kind.DATA, b"456789"),
        Frame(Kind.END, b""),
    ]


@pytest.mark.parametrize(
    "data",
    [
        header(Kind.ASK, MOST_CONTROL_BYTES + 1),
        header(Kind.DATA, LONGEST + 1),
        b"\x00\x00\x00\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["long control frame", "long data", "unknown type", "http"],
)
def test_other_bytes_are_refused_before_they_are_kept(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameReader(LONGEST).receive(data))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    reader = FrameReader(LONGEST)
    try:
        for each in reader.receive(data):
            assert len(each.payload) <= max(MOST_CONTROL_BYTES, LONGEST)
    except ProtocolError:
        pass


@given(
    st.builds(
        AskFields,
        st.integers(0, 2**32 - 1),
        st.sampled_from(["guaranteed", "elastic", "spot"]),
        st.booleans(),
        st.integers(1, 1000),
        st.integers(0, 10**7),
        st.integers(0, 10**6),
    )
)
def test_an_ask_comes_back_as_it_was(fields: AskFields) -> None:
    ((kind, payload),) = FrameReader(0).receive(encode_ask(fields))
    assert (kind, decode_ask(payload)) == (Kind.ASK, fields)


@pytest.mark.parametrize("wrong", [(0, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_an_ask_with_numbers_that_make_no_sense_is_refused(wrong: tuple[int, int, int]) -> None:
    ((_, payload),) = FrameReader(0).receive(encode_ask(AskFields(1, "elastic", False, *wrong)))
    with pytest.raises(ProtocolError):
        decode_ask(payload)


@given(st.binary(max_size=60))
def test_an_ask_of_any_bytes_is_read_or_refused(payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_ask(payload)


def test_a_frame_about_an_ask_has_its_number() -> None:
    ((kind, payload),) = FrameReader(0).receive(numbered(Kind.OFFER, 2**32 + 7))
    assert (kind, number_of(payload)) == (Kind.OFFER, 7)
    for wrong in (b"", b"abc", b"abcde"):
        with pytest.raises(ProtocolError):
            number_of(wrong)


def test_a_proof_holds_for_one_key_one_role_and_two_numbers() -> None:
    given_proof = proof(b"key", ASKER, b"1" * 16, b"2" * 16)
    assert len(given_proof) == MAC_BYTES
    assert proves(given_proof, b"key", ASKER, b"1" * 16, b"2" * 16)
    assert not proves(given_proof, b"other", ASKER, b"1" * 16, b"2" * 16)
    assert not proves(given_proof, b"key", PEER, b"1" * 16, b"2" * 16)  # not sent back as the peer's
    assert not proves(given_proof, b"key", ASKER, b"2" * 16, b"1" * 16)
    assert not proves(given_proof[:-1], b"key", ASKER, b"1" * 16, b"2" * 16)
