"""``tokenpool export``: usage records to a webhook or a file, as CloudEvents or CSV.

Each record is delivered at least once. A webhook has taken a batch when it answers 2xx; any other batch is
sent again, in this run or in the next. With ``--state`` a run continues where the last one ended, and finds
records that were stored late. A receiver drops duplicates by the id of the event.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from cli import admin_port, command
from cli.command import CommandFailed
from coordinator.usage.periods import PERIODS
from runtime.options import Origin

BATCH = 100
"""Events of one request to a webhook: about 60 kB."""
CHUNK = 64 * 1024
"""Bytes of one read."""
ATTEMPTS = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 16.0
"""The pause before a batch is sent again. It doubles each time, with jitter: half a minute in all."""
BATCH_TYPE = "application/cloudevents-batch+json"


def add_parser(commands: command.Commands) -> None:
    """Declare the command."""
    parser = command.add(
        commands, "export", run, "export usage records to a webhook or a file, each at least once"
    )
    admin_port.add_arguments(parser)
    parser.add_argument(
        "--to", required=True, metavar="URL|FILE", help="a webhook, http://... or https://..., or a file"
    )
    parser.add_argument(
        "--format",
        choices=("cloudevents", "csv"),
        default="cloudevents",
        help="batches of CloudEvents 1.0 in JSON, or for a file a table that 'simulate' reads [cloudevents]",
    )
    parser.add_argument(
        "--period", choices=list(PERIODS), help=f"settlements of this period [{admin_port.RECORDS_PERIOD}]"
    )
    parser.add_argument(
        "--since", metavar="DATE", help="start, instead of a period: a date or an ISO 8601 time"
    )
    parser.add_argument("--until", metavar="DATE", help="end, not included [now]")
    parser.add_argument("--timezone", metavar="ZONE", default="UTC", help="time zone of the dates [UTC]")
    parser.add_argument("--pool", metavar="NAME", help="only the records of this pool")
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="instead of a period: all records stored since the run that wrote this file",
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME: VALUE",
        help="a header for the webhook, such as 'authorization: Bearer ...'; @FILE as the value reads it",
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A webhook."""

    origin: Origin
    path: str
    headers: dict[str, str]


def run(arguments: argparse.Namespace) -> int:
    """Export; returns the exit status."""
    where = admin_port.origin(arguments)
    target = _target(arguments)
    if target is not None and arguments.format == "csv":
        raise CommandFailed("export: --format csv is for files; a webhook gets cloudevents")
    query = _query(arguments)
    with admin_port.answer(where, f"{admin_port.RECORDS}?{urlencode(query)}") as response:
        until = float(response.headers.get("x-until", "nan"))
        if target is not None:
            sent = _to_webhook(target, _events(where, response))
        else:
            sent = _to_file(Path(arguments.to), where, response, arguments.format)
    if arguments.state is not None:
        _write(arguments.state, json.dumps({"stored_until": until}) + "\n")
    if arguments.json:
        command.print_json({"records": sent, "to": arguments.to, "until": until})
    else:
        is_output = target is None and _is_device(Path(arguments.to))
        print(f"{sent:,} records exported to {arguments.to}", file=sys.stderr if is_output else sys.stdout)
    return command.OK


def _query(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    query = [("format", arguments.format), ("timezone", arguments.timezone)]
    if arguments.pool is not None:
        query.append(("pool", arguments.pool))
    spans = {name: getattr(arguments, name) for name in ("period", "since", "until")}
    if arguments.state is not None:
        if any(spans.values()):
            raise CommandFailed("export: --state continues where the last run ended; give no period with it")
        since = datetime.fromtimestamp(_stored_until(arguments.state), UTC)
        return [*query, ("by", "storage"), ("since", since.isoformat())]
    if not any(spans.values()):
        spans["period"] = admin_port.RECORDS_PERIOD
    return query + [(name, value) for name, value in spans.items() if value is not None]


def _stored_until(state: Path) -> float:
    """The end of the last run; 0 before the first. Raises ``CommandFailed``."""
    if not state.exists():
        return 0.0
    try:
        return float(json.loads(state.read_text())["stored_until"])
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed(f"{state}: not written by 'tokenpool export' ({error!r}); remove it") from error


def _target(arguments: argparse.Namespace) -> Target | None:
    """The webhook; ``None`` for a file. Raises ``CommandFailed``."""
    wrong = CommandFailed(f"export: {arguments.to!r} is not http://HOST/PATH or https://HOST/PATH")
    try:
        parts = urlsplit(arguments.to)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https"):
        return None
    if not parts.hostname or parts.username is not None:
        raise wrong
    tls = parts.scheme == "https"
    origin = Origin(parts.hostname, port or (443 if tls else 80), tls)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(origin, path, {"content-type": BATCH_TYPE, **dict(map(_header, arguments.header))})


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not name.strip():
        raise CommandFailed(f"export: --header {name!r} has no colon; write 'name: value'")
    return name.strip(), Path(value[1:]).read_text().strip() if value.startswith("@") else value


# --- reading ---


def _events(where: Origin, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of an answer. Raises ``CommandFailed`` if it ends early."""
    for line in _lines(where, response):
        yield json.loads(line)


def _lines(where: Origin, response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The lines of an answer. Raises ``CommandFailed`` if it ends early.

    ``readline`` takes an answer without its last chunk for a whole one; ``read`` does not.
    """
    rest = b""
    try:
        while chunk := response.read(CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    except (OSError, http.client.HTTPException) as error:
        raise CommandFailed(f"{where.url} ended its answer early; run the command again") from error


# --- writing ---


def _to_file(path: Path, where: Origin, response: http.client.HTTPResponse, kind: str) -> int:
    """Write a whole file, and put it in place at the end; returns the number of records.

    A pipe or a device is written as the records arrive.
    """
    is_whole = not _is_device(path)
    part = path.with_name(f"{path.name}.part") if is_whole else path
    count = 0
    with part.open("wb") as target:
        if kind == "csv":
            for count, line in enumerate(_lines(where, response)):  # noqa: B007 - the first line has the heads
                target.write(line + b"\n")
        else:
            for count, line in enumerate(_lines(where, response), 1):
                target.write((b"[" if count == 1 else b",\n") + line)
            target.write(b"]\n" if count else b"[]\n")
    if is_whole:
        os.replace(part, path)
    return count


def _is_device(path: Path) -> bool:
    """Whether a path is a pipe or a device, or a link such as /dev/stdout: it is written, not replaced."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def _to_webhook(target: Target, events: Iterator[dict[str, Any]]) -> int:
    """Send all events in batches; returns their number. Raises ``CommandFailed`` if one is not taken."""
    sent, batch = 0, list[dict[str, Any]]()
    for each in events:
        batch.append(each)
        if len(batch) == BATCH:
            sent += _deliver(target, batch, sent)
            batch = []
    return sent + (_deliver(target, batch, sent) if batch else 0)


def _deliver(
    target: Target,
    batch: Sequence[dict[str, Any]],
    before: int,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    body, wait, problem = json.dumps(batch).encode(), FIRST_PAUSE_S, ""
    for attempt in range(ATTEMPTS):
        if attempt:
            pause(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, LONGEST_PAUSE_S)
        try:
            with admin_port.answer(
                target.origin,
                target.path,
                method="POST",
                body=body,
                headers=target.headers,
                is_ours=False,
            ) as response:
                response.read()
            return len(batch)
        except admin_port.Refused as error:
            problem = str(error)
            if not error.may_pass:
                break
        except CommandFailed as error:
            problem = str(error)
    raise CommandFailed(
        f"{problem}. {before} records were taken; run the command again, which repeats some of them"
    )
