"""The formats that processes share: version 1's are read, and what is written now is read by version 1.

A process of the next version may run beside one of this version. So changes are additions only: a new field
of a map, or a new column at the end of a positional record (docs/decisions/0099).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from sidecar.handover.frames import Frame, FrameReader, Kind, ProtocolError, decode_ask, number_of
from tests.support import formats
from tokenpool.leases import wire
from tokenpool.leases.wire import (
    WireError,
    decode_file,
    decode_hint,
    decode_prices,
    decode_report,
    decode_statistics,
)
from tokenpool.poolfile import parse
from tokenpool.pricing.statistics import Statement

GOLDEN = formats.golden()
MAPS = ("report", "file", "hint")
ARRAYS = ("statistics", "prices")


def payload(name: str, content: bytes) -> bytes:
    """The msgpack of a record; that of an ask is behind the header of its frame."""
    return content[5:] if name == "ask" else content


def contains(new: Any, old: Any, path: str) -> None:
    """Fail unless a reader of the old value finds all of it in the new one, in the same place."""
    if isinstance(old, dict):
        assert isinstance(new, dict), path
        assert not old.keys() - new.keys(), f"{path}: a field is gone"
        for name, value in old.items():
            contains(new[name], value, f"{path}.{name}")
    elif isinstance(old, list):
        assert isinstance(new, list), path
        assert len(new) >= len(old), f"{path}: a column is gone"
        for index, value in enumerate(old):
            contains(new[index], value, f"{path}[{index}]")
    else:
        assert new == old, f"{path}: another meaning"


def extended(value: Any) -> Any:
    """A value of a later version: every map of fields has one more, and every positional record, too."""
    if isinstance(value, dict):
        made = {name: extended(each) for name, each in value.items()}
        return made | {"of_a_later_version": 1} if all(isinstance(name, str) for name in value) else made
    return [extended(each) for each in value] if isinstance(value, list) else value


def test_there_is_an_example_of_every_format() -> None:
    assert GOLDEN.keys() == formats.records().keys()
    assert formats.golden_texts().keys() | formats.NEW_SCRIPTS == formats.texts().keys()


def test_what_version_1_wrote_is_read() -> None:
    assert decode_report(GOLDEN["report"]) == formats.REPORT
    assert decode_statistics(GOLDEN["statistics"]) == formats.STATISTICS
    assert decode_prices(GOLDEN["prices"]) == Statement(3, {"gold": GOLDEN["statistics"]})
    assert decode_hint(GOLDEN["hint"]) == formats.HINT
    file, expected = decode_file(GOLDEN["file"]), parse(formats.POOL).file
    assert file.pools == expected.pools
    assert [replace(each, api_keys=()) for each in file.entitlements] == [
        replace(each, api_keys=()) for each in expected.entitlements
    ]
    assert [key.source for key in file.entitlements[0].api_keys] == ["sha256", "env", "file"]
    hello, ask, offer = (_frame(name) for name in ("hello", "ask", "offer"))
    assert (hello.kind, hello.payload[0]) == (Kind.HELLO, 1)
    assert decode_ask(ask.payload) == formats.ASK
    assert (offer.kind, number_of(offer.payload)) == (Kind.OFFER, 7)


def _frame(name: str) -> Frame:
    [found] = FrameReader(1024).receive(GOLDEN[name])
    return found


@pytest.mark.parametrize("name", [*MAPS, *ARRAYS, "ask"])
def test_what_is_written_now_has_all_that_version_1_reads(name: str) -> None:
    decode = msgspec.msgpack.decode
    contains(decode(payload(name, formats.records()[name])), decode(payload(name, GOLDEN[name])), name)


@pytest.mark.parametrize("name", ["hello", "offer"])
def test_frames_are_written_as_by_version_1(name: str) -> None:
    assert formats.records()[name] == GOLDEN[name]


@pytest.mark.parametrize("name", MAPS)
def test_fields_of_a_later_version_are_ignored(name: str) -> None:
    later = msgspec.msgpack.encode(extended(msgspec.msgpack.decode(GOLDEN[name])))
    decode = {"report": decode_report, "file": decode_file, "hint": decode_hint}[name]
    if name == "report":  # its maps by entitlement and outcome have names as keys, so they get no field
        raw = msgspec.msgpack.decode(GOLDEN[name])
        later = msgspec.msgpack.encode(raw | {"of_a_later_version": 1})
    assert decode(later) == decode(GOLDEN[name])


def test_columns_of_a_later_version_are_ignored() -> None:
    def longer(content: bytes) -> bytes:
        return msgspec.msgpack.encode([*msgspec.msgpack.decode(content), {"of": "a later version"}])

    now = {name: payload(name, content) for name, content in formats.records().items()}
    assert decode_statistics(longer(now["statistics"])) == formats.STATISTICS
    assert decode_prices(longer(now["prices"])).number == 3
    assert decode_ask(longer(now["ask"])) == formats.ASK


@pytest.mark.parametrize("name", formats.golden_columns())
def test_columns_of_version_1_stay_where_they_are(name: str) -> None:
    former = formats.golden_columns()[name]
    assert list(formats.columns()[name])[: len(former)] == list(former)


@pytest.mark.parametrize(("name", "decode"), [("file", decode_file), ("hint", decode_hint)])
def test_a_later_schema_is_refused_with_the_fix(name: str, decode: Any) -> None:
    later = msgspec.msgpack.decode(GOLDEN[name]) | {"schema": 2}
    with pytest.raises(WireError, match="has schema 2, and this process knows 1: update this process"):
        decode(msgspec.msgpack.encode(later))


def test_records_without_a_schema_are_of_version_1() -> None:
    raw = msgspec.msgpack.decode(GOLDEN["file"])
    del raw["schema"]
    assert decode_file(msgspec.msgpack.encode(raw)) == decode_file(GOLDEN["file"])
    assert wire.FILE_SCHEMA == wire.HINT_SCHEMA == wire.PRICES_SCHEMA == wire.SCHEMA == 1


def test_frames_of_a_later_version_have_types_that_are_refused() -> None:
    with pytest.raises(ProtocolError, match="99 is not a frame type"):
        FrameReader(1024).receive(b"\x63\0\0\0\0")
