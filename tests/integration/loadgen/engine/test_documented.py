"""The options in ``docs/simulator.md`` exist, and its table of faults has all kinds and fields."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from loadgen.engine.__main__ import make_parser, model_of
from loadgen.engine.faults import Fault, Kind, parse_fault

PAGE = (Path(__file__).parents[4] / "docs" / "simulator.md").read_text()
COMMON = {"kind", "path", "share", "at_s", "for_s"}


def test_each_command_line_and_each_replay_is_accepted() -> None:
    replays = re.findall(r"^\|.*\| `(--.*)` \|$", PAGE, re.MULTILINE)
    commands = re.findall(r"^loadgen engine (.*)$", PAGE, re.MULTILINE)

    assert len(replays) > 15
    assert len(commands) == 3
    for line in (*replays, *commands):
        arguments = make_parser().parse_args(shlex.split(line))
        model_of(arguments)
        for fault in arguments.fault:
            parse_fault(fault)


def test_the_table_of_faults_has_all_kinds_with_their_fields() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) ?\| ", PAGE, re.MULTILINE)
    told = {kind: set(re.findall(r"`(\w+)`", fields)) for kind, fields in rows}

    assert told == {str(kind): set(Fault(kind).shown()) - COMMON for kind in Kind}
