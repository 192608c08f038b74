"""The curves of growth: a small run of the simulated pool, and clear errors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from bench.scale import FileRow, main, picture
from bench.simulated_pool import TickRow, tick_rows
from toolbox.redis import RedisProcess


async def test_a_tick_is_measured_for_each_part_of_changed_records(tmp_path: Path) -> None:
    with RedisProcess(tmp_path) as server:
        rows = await tick_rows(server.url, 20, 3, 2, 4, (1.0, 0.0))
    assert [(row.entitlements, row.sidecars, row.groups, row.changed) for row in rows] == [
        (20, 3, 4, 1.0),
        (20, 3, 4, 0.0),
    ]
    assert all(0 < row.plan <= row.coordinator <= row.total for row in rows)


def test_an_unknown_section_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tick"])
    assert "no such section: tick; there are ticks, traffic, memory, pool-file" in capsys.readouterr().err


def test_the_picture_has_a_panel_for_each_measured_section() -> None:
    row = TickRow(100, 10, 0, 1.0, 1.0, 2.0, 3.0, 4.0, 50.0)
    files = [FileRow(10, 0.3, 0.8), FileRow(100, 0.4, 1.0)]
    made = picture({"ticks": [asdict(row)], "pool-file": [asdict(each) for each in files]})
    assert [panel.title.split(",")[0] for panel in made.panels] == [
        "CPU of one tick",
        "Time to enforce a changed pool file",
    ]
    assert made.panels[0].lines[0].points == ((100, 10.0),)
    assert made.panels[1].lines[1].points == ((10, 0.8), (100, 1.0))
