"""One table has the order of all columns: Python types, Lua scripts and encoded bytes agree with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tokenpool.leases.messages import Lease, LeaseRequest, Limit, PeerRoom, ReplicaRoom
from tokenpool.leases.row_layout import LAYOUTS, HolderRow, Layout, lua_prelude
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import scripts
from tokenpool.store.quota_script import QUOTA_LAYOUTS

SCRIPTS = sorted(path for path in Path(scripts.__file__).parent.glob("*.lua"))
ENCODED = {
    "ROW": HolderRow(*range(11)),
    "REQUEST": LeaseRequest(*range(17)),  # type: ignore[arg-type]
    "LIMIT": Limit(*range(7)),
    "LEASE": Lease(*range(11)),  # type: ignore[arg-type]
    "ROOM": ReplicaRoom(*range(4)),  # type: ignore[arg-type]
    "PEER": PeerRoom(*range(4)),  # type: ignore[arg-type]
    "TERMS": IdleTerms(*range(3)),  # type: ignore[arg-type]
}
"""One value of each type in which every column has another number."""


def positions(layouts: Sequence[Layout]) -> dict[str, int]:
    """The Lua constants of a prelude."""
    found: dict[str, int] = {}
    for names, numbers in re.findall(r"^local ([A-Z_, ]+) = ([\d, ]+)$", lua_prelude(layouts), re.MULTILINE):
        found |= zip(names.split(", "), map(int, numbers.split(", ")), strict=True)
    return found


def misplaced(layouts: Sequence[Layout]) -> list[str]:
    """Constants that point to another column than the one they name, in the encoded bytes."""
    at, wrong = positions(layouts), []
    for layout in layouts:
        value = ENCODED.get(layout.prefix)
        if value is None:
            continue
        row = msgspec.msgpack.decode(msgspec.msgpack.encode(value))
        for column in layout.columns:
            constant = f"{layout.prefix}_{column.upper()}"
            if row[at[constant] - 1] != getattr(value, column):
                wrong.append(constant)
    return wrong


def unknown(text: str, layouts: Sequence[Layout]) -> set[str]:
    """Names of columns in a script that no layout has."""
    prefixes = "|".join(layout.prefix for layout in layouts)
    return set(re.findall(rf"\b(?:{prefixes})_[A-Z_]+\b", code(text))) - positions(layouts).keys()


def code(text: str) -> str:
    """A script without its comments and strings."""
    return re.sub(r"--.*|'[^']*'", "", text)


def literal_indices(text: str) -> list[str]:
    """Accesses of a table by a number, except a script's arguments and the two parts of the time."""
    found = re.findall(r"\b\w+\[\d+\]", code(text))
    return [each for each in found if not each.startswith(("KEYS[", "ARGV[", "time["))]


def test_every_constant_finds_its_column_in_the_encoded_bytes() -> None:
    assert {layout.prefix for layout in LAYOUTS} == {*ENCODED, "DIM"}
    assert misplaced(scripts.SCRIPT_LAYOUTS) == []


def test_two_columns_in_the_wrong_order_are_detected() -> None:
    row, *others = LAYOUTS
    first, second, *rest = row.columns
    planted = [Layout(row.prefix, [second, first, *rest]), *others]
    assert misplaced(planted) == ["ROW_CONCURRENCY", "ROW_KV_TOKENS"]


def test_a_column_that_was_renamed_or_removed_in_python_is_detected() -> None:
    text = (SCRIPTS[0].parent / "exchange.lua").read_text()
    planted = [Layout(each.prefix, each.columns[:-1]) for each in scripts.SCRIPT_LAYOUTS]
    assert {
        "REQUEST_TOKENS_BORROWED",
        "LEASE_TOKENS_ELSEWHERE",
        "ROOM_CACHED",
        "PEER_CACHED",
        "ANSWER_CREDENTIALS",
    } <= unknown(text, planted)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_name_their_columns(path: Path) -> None:
    text = path.read_text()
    assert literal_indices(text) == []
    assert unknown(text, QUOTA_LAYOUTS if path.name == "quotas.lua" else scripts.SCRIPT_LAYOUTS) == set()


def test_a_literal_index_is_detected() -> None:
    planted = "local tokens = row[3] -- not a[1]\nlocal key = KEYS[1]"
    assert literal_indices(planted) == ["row[3]"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_begin_with_what_a_caller_must_know(path: Path) -> None:
    text = path.read_text()
    head = text[: re.search(r"^(?!--)", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    needed: tuple[Any, ...] = ("-- Arguments:", "-- Atomic:")
    needed += ("-- Keys:",) if path.name == "common.lua" else ("Result:",)
    assert all(each in head for each in needed)
