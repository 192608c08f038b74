"""``tokenpool usage``: the usage of a period, from the usage store, through a coordinator."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from cli import admin_port, command
from coordinator.usage.periods import DEFAULT, PERIODS
from coordinator.usage.store import By

FORMATS = ("table", "csv", "json", "focus")
_WORDS = {By.CREDENTIAL: "credential"}
"""Words of the command line that differ from the names of columns."""
_BY = {_WORDS.get(each, each.value): each for each in By}
_FILTERS = tuple(name for name, each in _BY.items() if each is not By.DAY)
PATH = "/usage/report"


def add_parser(commands: command.Commands) -> None:
    """Declare the command."""
    parser = command.add(
        commands, "usage", run, "report the usage of a period, with costs if there are prices"
    )
    admin_port.add_arguments(parser)
    parser.add_argument(
        "--by",
        action="append",
        type=_columns,
        metavar="COLUMN,...",
        help=f"what usage is added up by: {', '.join(_BY)} [entitlement]; not for --format focus",
    )
    parser.add_argument("--period", choices=list(PERIODS), help=f"the period [{DEFAULT}]")
    parser.add_argument(
        "--since", metavar="DATE", help="start, instead of a period: a date or an ISO 8601 time"
    )
    parser.add_argument("--until", metavar="DATE", help="end, not included [now]")
    parser.add_argument("--timezone", metavar="ZONE", default="UTC", help="time zone of days and dates [UTC]")
    for name in _FILTERS:
        parser.add_argument(f"--{name}", metavar="NAME", help=f"only the usage of this {name}")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="focus: charges with the columns of FinOps FOCUS 1.2, as CSV [table]",
    )


def _columns(text: str) -> list[By]:
    for name in text.split(","):
        if name not in _BY:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(_BY)}")
    return [_BY[name] for name in text.split(",")]


def run(arguments: argparse.Namespace) -> int:
    """Print the report; returns the exit status."""
    where, kind = admin_port.origin(arguments), "json" if arguments.json else arguments.format
    by = list(dict.fromkeys(each for some in arguments.by or [[By.ENTITLEMENT]] for each in some))
    path = f"{PATH}?{urlencode(_query(arguments, by, kind))}"
    if kind in ("csv", "focus"):
        with admin_port.answer(where, path) as response:
            while chunk := response.read(65536):
                print(chunk.decode(), end="")
        return command.OK
    found = admin_port.get_json(where, path)
    if kind == "json":
        command.print_json(found)
    else:
        print("\n".join(report(found, by)))
    return command.OK


def _query(arguments: argparse.Namespace, by: Sequence[By], kind: str) -> list[tuple[str, str]]:
    query = [("format", "json" if kind == "table" else kind), ("timezone", arguments.timezone)]
    query += [("by", each.value) for each in by]
    query += [
        (name, value)
        for name in ("period", "since", "until")
        if (value := getattr(arguments, name)) is not None
    ]
    query += [
        (_BY[name].value, value) for name in _FILTERS if (value := getattr(arguments, name)) is not None
    ]
    return query


# --- the table ---

_COLUMNS = (
    ("requests", "requests"),
    ("input_tokens", "input"),
    ("cached_tokens", "cached"),
    ("output_tokens", "output"),
    ("sequence_seconds", "sequence s"),
    ("mean_queue_s", "queue s"),
    ("mean_first_token_s", "first token s"),
)


def report(found: dict[str, Any], by: Sequence[By]) -> list[str]:
    """A report as text."""
    lines = [f"{found['since']} to {found['until']} ({found['timezone']})"]
    rows, total = found["rows"], found["total"]
    if not rows:
        return [*lines, "no usage"]
    has_cost = any(each["cost"] is not None for each in rows)
    heads = [*(each.value.removesuffix("_id") for each in by), *(head for _, head in _COLUMNS)]
    cells = [[str(each[column.value]) or "-" for column in by] + _numbers(each) for each in rows]
    if len(rows) > 1 and by:
        cells.append(["all", *("" for _ in by[1:]), *_numbers(total)])
    if has_cost:
        heads.append("cost")
        priced = [*rows, *([total] if len(cells) > len(rows) else [])]
        cells = [[*line, _cost(each)] for line, each in zip(cells, priced, strict=True)]
    lines += command.table(heads, cells, left=len(by)).split("\n")
    estimated = total["estimated_requests"]
    if estimated:
        lines.append(f"{estimated:,} requests have estimated tokens: the engine reported none")
    return lines


def _numbers(row: dict[str, Any]) -> list[str]:
    return [_number(row[name]) for name, _ in _COLUMNS]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _cost(row: dict[str, Any]) -> str:
    return "-" if row["cost"] is None else f"{row['cost']:,.2f} {row['currency']}"
