"""Every option's default is justified in docs/decisions.md: the tables there name what the programs have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

import coordinator.settings
import injector.settings
import sidecar.settings
from runtime import options

DECISIONS = Path(__file__).parents[2] / "docs" / "decisions.md"
SECTION = "## Defaults of options\n"
AddArguments = Callable[[argparse.ArgumentParser], None]
PROGRAMS: dict[str, list[tuple[AddArguments, type[Any]]]] = {
    "tokenpool-sidecar run": [(sidecar.settings.add_arguments, sidecar.settings.Settings)],
    "tokenpool-coordinator run": [(coordinator.settings.add_arguments, coordinator.settings.Settings)],
    "The injector": [
        (injector.settings.add_serving_arguments, injector.settings.Settings),
        (injector.settings.add_template_arguments, injector.settings.Template),
    ],
}
CELLS = 3
"""Options with their defaults; why, with what was measured; what a tenth and ten times of it change."""


def tables() -> dict[str, list[list[str]]]:
    """By program, the cells of each row."""
    section = DECISIONS.read_text().partition(SECTION)[2]
    parts = re.split(r"^### (.+)\n", section, flags=re.MULTILINE)
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
    found = []
    for add_arguments, record in PROGRAMS[program]:
        parser = argparse.ArgumentParser(add_help=False)
        add_arguments(parser)
        defaults = {options.option(each.name): each.default for each in fields(record)}
        for name in parser._option_string_actions:
            default = defaults[name]
            found.append((name, "" if default is None or default is MISSING else _text(default)))
    return found


def _text(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_there_is_a_table_for_each_program() -> None:
    assert list(tables()) == list(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_is_justified_with_its_present_default(program: str) -> None:
    assert sorted(justified(program)) == sorted(actual(program))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_row_has_a_reason_and_what_another_default_would_change(program: str) -> None:
    assert all(len(row) == CELLS and all(row) for row in tables()[program])


def test_no_default_waits_for_its_measurement() -> None:
    section = DECISIONS.read_text().partition("Defaults of options")[2]
    assert "MEASURED" not in section
