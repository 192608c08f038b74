"""``tokenpool top``: the entitlements of a pool as a live table, from a coordinator or from one sidecar."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from cli import admin_port, command
from cli.command import CommandFailed
from cli.live import View, views
from dashboard.snapshot import Vector
from dashboard.view import PoolView, Row
from runtime.options import Origin

AGAIN_S = 1.0
"""The pause before a lost connection is opened again."""
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_HIDE_CURSOR, _SHOW_CURSOR, _OTHER_SCREEN, _OWN_SCREEN = (
    "\x1b[?25l",
    "\x1b[?25h",
    "\x1b[?1049h",
    "\x1b[?1049l",
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

SORTS: dict[str, Callable[[Row], Any]] = {
    "shed": lambda row: (-(row.shed_per_s or 0.0), -(row.in_use[2] or 0.0), row.name),
    "tokens": lambda row: (-(row.in_use[0] or 0.0), row.name),
    "kv": lambda row: (-(row.in_use[1] or 0.0), row.name),
    "sequences": lambda row: (-(row.in_use[2] or 0.0), row.name),
    "debt": lambda row: (-row.debt, row.name),
    "name": lambda row: row.name,
}
"""The orders of rows: what counts most comes first."""


def add_parser(commands: command.Commands) -> None:
    """Declare the command."""
    parser = command.add(commands, "top", run, "show the entitlements of a pool as a live table")
    admin_port.add_arguments(parser)
    parser.add_argument("--once", action="store_true", help="print the table once, and end")
    parser.add_argument("--pool", metavar="NAME", help="only this pool")
    parser.add_argument("--sort", choices=list(SORTS), default="shed", help="order of the rows [shed]")
    parser.add_argument("--active", action="store_true", help="only entitlements that send requests now")
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="SECONDS", help="time between two updates [1]"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Show the table until it is interrupted, or once; returns the exit status."""
    where = admin_port.origin(arguments)
    if arguments.json:
        return _print_json(where, arguments)
    if arguments.once or not sys.stdout.isatty():
        print("\n".join(screen(_first(where), arguments)))
        return command.OK
    return _follow(where, arguments)


def _first(where: Origin) -> View:
    for view in views(where):
        return view
    raise CommandFailed(f"{where.url} closed the connection; it is shutting down")


def _print_json(where: Origin, arguments: argparse.Namespace) -> int:
    """Print the view once, or a line of JSON for each update if the table would be live."""
    if arguments.once or not sys.stdout.isatty():
        command.print_json(as_json(_first(where), arguments))
        return command.OK
    try:
        for view in _paced(where, arguments.interval):
            print(msgspec.json.encode(as_json(view, arguments)).decode(), flush=True)
    except KeyboardInterrupt:
        pass
    return command.OK


def _paced(where: Origin, interval_s: float) -> Iterator[View]:
    """The views, at most one in each interval."""
    shown_at = -float("inf")
    for view in views(where):
        if time.monotonic() - shown_at >= interval_s:
            shown_at = time.monotonic()
            yield view


def _follow(where: Origin, arguments: argparse.Namespace) -> int:
    """Draw the table again and again. The first connection must succeed; a lost one is opened again."""
    views_of = _paced(where, arguments.interval)
    drawn = next(views_of, None)
    if drawn is None:
        raise CommandFailed(f"{where.url} closed the connection; it is shutting down")
    sys.stdout.write(_OTHER_SCREEN + _HIDE_CURSOR)
    try:
        while True:
            try:
                _draw(screen(drawn, arguments))
                for drawn in views_of:
                    _draw(screen(drawn, arguments))
                problem = f"{where.url} closed the connection"
            except CommandFailed as error:
                problem = str(error)
            _draw([f"! {problem}; trying again", *screen(drawn, arguments)])
            time.sleep(AGAIN_S)
            views_of = _paced(where, arguments.interval)
    except KeyboardInterrupt:
        return command.OK
    finally:
        sys.stdout.write(_SHOW_CURSOR + _OWN_SCREEN)
        sys.stdout.flush()


def _draw(lines: Sequence[str]) -> None:
    """Write lines over the old ones, cut to the size of the terminal."""
    width, height = shutil.get_terminal_size()
    shown = [line[:width] for line in lines[:height]]
    sys.stdout.write(_HOME + f"{_CLEAR_LINE}\n".join(shown) + _CLEAR_LINE + _CLEAR_BELOW)
    sys.stdout.flush()


# --- content ---


def pools_of(view: View, arguments: argparse.Namespace) -> list[PoolView]:
    """The pools to show. Raises ``CommandFailed`` if there is no pool of the given name."""
    if arguments.pool is None:
        return list(view.pools)
    found = [pool for pool in view.pools if pool.name == arguments.pool]
    if not found:
        known = ", ".join(pool.name for pool in view.pools) or "none"
        raise CommandFailed(f"--pool: there is no pool {arguments.pool!r}; there is {known}")
    return found


def rows_of(view: View, pool: PoolView, arguments: argparse.Namespace) -> list[Row]:
    """The rows of a pool, sorted."""
    rows = [row for row in view.rows.values() if row.pool == pool.name]
    if arguments.active:
        rows = [row for row in rows if _is_active(row)]
    return sorted(rows, key=SORTS[arguments.sort])


def _is_active(row: Row) -> bool:
    return any((*row.in_use, *row.demand, row.served_per_s, row.shed_per_s))


def as_json(view: View, arguments: argparse.Namespace) -> dict[str, Any]:
    """The view as JSON: the fields of the live page, by pool and entitlement."""
    return {
        "process": view.process,
        "name": view.name,
        "notices": view.notices,
        "pools": {
            pool.name: {
                **msgspec.to_builtins(pool),
                "entitlements": {
                    row.name: msgspec.to_builtins(row) for row in rows_of(view, pool, arguments)
                },
            }
            for pool in pools_of(view, arguments)
        },
    }


HEADS = (
    *("entitlement", "tier", "tokens/s", "limit", "KV tokens", "limit", "seq", "limit"),
    *("debt s", "served/s", "shed/s", "why"),
)


def screen(view: View, arguments: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    lines = [f"{view.process} {view.name}".rstrip(), *(f"! {each}" for each in view.notices)]
    if view.about:
        lines.append(view.about)
    for pool in pools_of(view, arguments):
        lines += ["", *_pool(pool), *(f"! {each}" for each in pool.notices)]
        rows = [_cells(row) for row in rows_of(view, pool, arguments)]
        lines += command.table(HEADS, rows, left=2, last_left=True).split("\n")
        if pool.hidden:
            lines.append(f"... and {pool.hidden} more, {pool.hidden_active} of them active")
    return [_CONTROL.sub(" ", line) for line in lines]


def _pool(pool: PoolView) -> Iterator[str]:
    used, most = pool.in_use, pool.capacity
    replicas = pool.replicas
    yield (
        f"pool {pool.name}: {replicas.engines_up} of {replicas.sidecars} engines up,"
        f" {_number(pool.served_per_s)} served/s, {_number(pool.shed_per_s)} shed/s; leader: {pool.leader}"
    )
    yield "  " + ", ".join(
        f"{_number(used[place])} of {_bound(most, place)} {unit}"
        for place, unit in enumerate(("tokens/s", "KV tokens", "sequences"))
    )


def _cells(row: Row) -> tuple[str, ...]:
    numbers = [text for place in range(3) for text in (_number(row.in_use[place]), _bound(row.limit, place))]
    why = row.sheds[0].why if row.sheds else ""
    return (
        row.name,
        row.tier,
        *numbers,
        f"{row.debt:+.2f}" if row.debt else "0",
        _number(row.served_per_s),
        _number(row.shed_per_s),
        why,
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _bound(limit: Vector, place: int) -> str:
    """A limit; without a bound it is ``any``."""
    value = limit[place]
    return "any" if value is None else _number(value)
