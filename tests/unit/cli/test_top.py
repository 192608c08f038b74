"""``tokenpool top`` makes rows and JSON from the events of a live page."""

from __future__ import annotations

import argparse

import pytest

from cli import top
from cli.command import CommandFailed
from cli.live import Frame, View, events
from dashboard.snapshot import Replicas, Vector
from dashboard.view import PoolView, Row, ShedView

NONE: Vector = (None, None, None)


def row(name: str, *, in_use: Vector = (0.0, 0.0, 0.0), shed: float = 0.0, why: str = "") -> Row:
    return Row(
        pool="chat",
        name=name,
        tier="elastic",
        guarantee=(0.0, 0.0, 0.0),
        ceiling=NONE,
        limit=(1000.0, None, 8.0),
        in_use=in_use,
        demand=in_use,
        debt=0.25 if shed else 0.0,
        served_per_s=1.0,
        shed_per_s=shed,
        dimension=2,
        sheds=(ShedView("concurrency", shed, why),) if shed else (),
    )


def pool(name: str = "chat", hidden: int = 0) -> PoolView:
    return PoolView(
        name=name,
        leader="this coordinator",
        capacity=(2000.0, None, 16.0),
        guarantees=(0.0, 0.0, 0.0),
        in_use=(500.0, 100.0, 3.0),
        demand=(500.0, 100.0, 3.0),
        scale=(2000.0, None, 16.0),
        replicas=Replicas(sidecars=2, engines_up=2),
        notices=(),
        served_per_s=2.0,
        shed_per_s=0.5,
        hidden=hidden,
        hidden_active=0,
    )


def view(*rows: Row, hidden: int = 0) -> View:
    made = View()
    made.follow("view", Frame("coordinator", "c1", pools=(pool(hidden=hidden),), rows=rows))
    return made


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"pool": None, "sort": "shed", "active": False, **given})


QUIET, BUSY, SHED = (
    row("quiet"),
    row("busy", in_use=(800.0, 400.0, 6.0)),
    row("short", in_use=(100.0, 50.0, 1.0), shed=0.5, why="sequences: limit 8, in use 8"),
)


def test_changes_replace_rows_and_remove_gone_ones() -> None:
    made = view(QUIET, BUSY)

    made.follow("changes", Frame("coordinator", "c1", rows=(SHED,), gone=(("chat", "quiet"),)))

    assert set(made.rows) == {("chat", "busy"), ("chat", "short")}


def test_a_whole_view_replaces_all_rows() -> None:
    made = view(QUIET, BUSY)

    made.follow("view", Frame("coordinator", "c1", rows=(SHED,)))

    assert set(made.rows) == {("chat", "short")}


def test_events_are_split_at_empty_lines() -> None:
    lines = [b"event: view\n", b"data: {}\n", b"\n", b"event: changes\n", b'data: {"a": "b: c"}\n', b"\n"]

    assert list(events(lines)) == [("view", b"{}"), ("changes", b'{"a": "b: c"}')]


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("shed", ["short", "busy", "quiet"]),
        ("tokens", ["busy", "short", "quiet"]),
        ("kv", ["busy", "short", "quiet"]),
        ("sequences", ["busy", "short", "quiet"]),
        ("debt", ["short", "busy", "quiet"]),
        ("name", ["busy", "quiet", "short"]),
    ],
)
def test_rows_are_sorted(sort: str, names: list[str]) -> None:
    rows = top.rows_of(view(QUIET, BUSY, SHED), pool(), options(sort=sort))

    assert [each.name for each in rows] == names


def test_every_order_is_tested() -> None:
    assert set(top.SORTS) == {"shed", "tokens", "kv", "sequences", "debt", "name"}


def test_the_table_says_why() -> None:
    lines = top.screen(view(QUIET, SHED), options())

    [line] = [each for each in lines if each.startswith("short")]
    assert line.split()[:8] == ["short", "elastic", "100", "1,000", "50", "any", "1", "8"]
    assert line.endswith("sequences: limit 8, in use 8")


def test_hidden_entitlements_are_counted() -> None:
    assert top.screen(view(QUIET, hidden=7), options())[-1] == "... and 7 more, 0 of them active"


def test_control_characters_do_not_reach_the_terminal() -> None:
    lines = top.screen(view(row("x", shed=1.0, why="\x1b[2Jgone")), options())

    assert not any("\x1b" in line for line in lines)


def test_an_unknown_pool_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(CommandFailed, match="there is chat"):
        top.screen(view(QUIET), options(pool="other"))


def test_json_has_the_entitlements_by_pool() -> None:
    made = top.as_json(view(QUIET, SHED), options())

    assert list(made["pools"]["chat"]["entitlements"]) == ["short", "quiet"]
    assert made["pools"]["chat"]["entitlements"]["short"]["sheds"][0]["reason"] == "concurrency"
