"""Every option's default is justified in docs/defaults.md: the tables there name what the programs have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import coordinator.settings
import injector.settings
import sidecar.settings
from runtime import options

DEFAULTS = Path(__file__).parents[2] / "docs" / "defaults.md"
PROGRAMS: dict[str, list[type[Any]]] = {
    "tokenpool-sidecar run": [sidecar.settings.Settings],
    "tokenpool-coordinator run": [coordinator.settings.Settings],
    "The injector": [injector.settings.Settings, injector.settings.Template],
}
CELLS = 3
"""Options with their defaults; why, with what was measured; what a tenth and ten times of it change."""


def tables() -> dict[str, list[list[str]]]:
    """By program, the cells of each row."""
    section = DEFAULTS.read_text()
    parts = re.split(r"^## (.+)\n", section, flags=re.MULTILINE)
    return {
        title: [
            [cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if "`--" in line
        ]
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def justified(program: str) -> list[tuple[str, str]]:
    """Each option that the program's table names, with the default that it states."""
    return [pair for row in tables()[program] for pair in re.findall(r"`(--[a-z-]+)(?: ([^`]+))?`", row[0])]


def actual(program: str) -> list[tuple[str, str]]:
    """Each option that the program has, with its default; nothing where it has none."""
    return [
        (each.flag, each.default_text) for record in PROGRAMS[program] for each in options.describe(record)
    ]


def test_there_is_a_table_for_each_program() -> None:
    assert list(tables()) == list(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_is_justified_with_its_present_default(program: str) -> None:
    assert sorted(justified(program)) == sorted(actual(program))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_row_has_a_reason_and_what_another_default_would_change(program: str) -> None:
    assert all(len(row) == CELLS and all(row) for row in tables()[program])


def test_no_default_waits_for_its_measurement() -> None:
    section = DEFAULTS.read_text()
    assert "MEASURED" not in section
