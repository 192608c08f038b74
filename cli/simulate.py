"""``tokenpool simulate``: replays recorded usage against a changed pool file, and predicts the sheds."""

from __future__ import annotations

import argparse
from pathlib import Path

from cli import admin_port, command, pool_file
from coordinator.usage.periods import PERIODS


def add_parser(commands: command.Commands) -> None:
    """Declare the command."""
    parser = command.add(
        commands,
        "simulate",
        run,
        "replay recorded usage against a pool file, and show which entitlements would be shed",
    )
    pool_file.add_argument(parser)
    admin_port.add_arguments(parser)
    parser.add_argument(
        "--period", choices=list(PERIODS), help=f"the recorded requests [{admin_port.RECORDS_PERIOD}]"
    )
    parser.add_argument(
        "--since", metavar="DATE", help="start, instead of a period: a date or an ISO 8601 time"
    )
    parser.add_argument("--until", metavar="DATE", help="end, not included [now]")
    parser.add_argument("--timezone", metavar="ZONE", default="UTC", help="time zone of the dates [UTC]")
    parser.add_argument(
        "--records",
        action="append",
        metavar="[ENTITLEMENT=]FILE",
        help="requests from CSV or CSV.gz instead, as 'tokenpool export' writes them; may be repeated",
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="the pool file in force, to compare with"
    )
    parser.add_argument("--pool", metavar="NAME", help="the pool; required if the pool file has several")
    parser.add_argument(
        "--replicas", type=_count, metavar="N", help="number of replicas [replicas.min of the pool file]"
    )
    parser.add_argument(
        "--rate", type=_factor, default=1.0, metavar="X", help="multiply the rate of all requests [1]"
    )
    parser.add_argument(
        "--engine",
        type=Path,
        metavar="FILE",
        help="sizes and speeds of the engine, from python -m loadgen.engine.calibrate;"
        " otherwise from the pool file",
    )
    parser.add_argument(
        "--states-bound",
        action="store_true",
        help="requests state their recorded output as max_tokens; otherwise they state no bound",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the simulation [1]")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and print the predictions; returns the exit status."""
    # Imported here: the simulation takes 0.3 s to import, and no other command needs it.
    from cli import prediction  # noqa: PLC0415

    return prediction.run(arguments)
