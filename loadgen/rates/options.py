"""The options of ``loadgen sweep`` and ``loadgen capacity`` beside those of every run. Pure."""

from __future__ import annotations

import argparse
import math

from loadgen.fields import MOST

AUTO = "auto"
MOST_RATES = 100


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``sweep``."""
    parser.add_argument(
        "--rates",
        type=rates,
        metavar="R,R,…",
        help="requests per second of all tenants together, such as 1,2,4; 'auto' starts with the scenario's "
        "own rate, and searches for the knee (default: auto)",
    )
    parser.add_argument(
        "--resolution",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="with auto: the largest relative gap between the knee and the rates beside it, such as 0.2 "
        "or 20%% (the default)",
    )
    parser.add_argument(
        "--most-runs", type=count, default=12, metavar="N", help="with auto: the most runs (default: 12)"
    )


def add_capacity_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``capacity``."""
    parser.add_argument(
        "--slo",
        action="append",
        required=True,
        metavar="GOAL",
        help="a goal, such as 'guaranteed.ttft.p99<=300ms'; repeat for several",
    )
    parser.add_argument(
        "--from",
        dest="first",
        type=positive,
        metavar="RATE",
        help="the first rate, in requests per second of all tenants together (default: the scenario's own)",
    )
    parser.add_argument(
        "--resolution",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="stop when the rates below and above the capacity differ by less, such as 0.05 or 5%% "
        "(the default)",
    )
    parser.add_argument(
        "--most-runs",
        type=count,
        default=3,
        metavar="N",
        help="the most runs of one rate while the interval of a goal includes its bound (default: 3)",
    )
    parser.add_argument(
        "--most-time",
        type=positive,
        default=3600.0,
        metavar="SECONDS",
        help="begin no run that would end later than this after the start (default: 3600)",
    )


def rates(text: str) -> list[float] | None:
    """Rates in rising order, each once; ``None`` for ``auto``. Raises ``ArgumentTypeError``."""
    if text == AUTO:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor numbers such as 1,2,4") from None
    if not all(0 < rate <= MOST for rate in found):
        raise argparse.ArgumentTypeError(f"{text!r} has a rate that is not above 0, and {MOST:g} at most")
    if len(found) > MOST_RATES:
        raise argparse.ArgumentTypeError(f"{text!r} has {len(found)} rates; give at most {MOST_RATES}")
    return sorted(set(found))


def share(text: str) -> float:
    """A share, written as 0.1 or as 10%. Raises ``ArgumentTypeError`` below 0.1 % and above 100 %."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0.001 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0.1% to 100%")
    return value


def count(text: str) -> int:
    """A whole number of at least 1. Raises ``ArgumentTypeError``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A number above 0. Raises ``ArgumentTypeError``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, and {MOST:g} at most")
    return value
