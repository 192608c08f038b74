"""Follows the live page of a process: server-sent events in, whole views out.

``dashboard/server.py`` sends a whole view first, and changes afterwards. A view that was made by another
version may have more fields; they are ignored.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from cli.admin_port import answer
from cli.command import CommandFailed
from dashboard.view import PoolView, Row
from runtime.options import Origin

PATH = "/live/events"


class Frame(msgspec.Struct, frozen=True):
    """The data of one event: a whole view, or the changes since the last one."""

    process: str
    name: str
    about: str = ""
    notices: tuple[str, ...] = ()
    pools: tuple[PoolView, ...] = ()
    rows: tuple[Row, ...] = ()
    gone: tuple[tuple[str, str], ...] = ()
    """Pool and name of rows that were removed."""


@dataclass(slots=True)
class View:
    """The current content of a live page."""

    process: str = ""
    name: str = ""
    about: str = ""
    notices: tuple[str, ...] = ()
    pools: tuple[PoolView, ...] = ()
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    """By pool and name."""

    def follow(self, kind: str, frame: Frame) -> None:
        """Use the next event: ``view`` replaces all rows, ``changes`` replaces some."""
        if kind == "view":
            self.rows = {}
        self.process, self.name, self.about = frame.process, frame.name, frame.about
        self.notices, self.pools = frame.notices, frame.pools
        for gone in frame.gone:
            self.rows.pop(gone, None)
        self.rows.update({(row.pool, row.name): row for row in frame.rows})


def views(where: Origin) -> Iterator[View]:
    """The view after each event, until the process ends the connection. Raises ``CommandFailed``."""
    with answer(where, PATH, headers={"accept": "text/event-stream"}) as response:
        if response.headers.get_content_type() != "text/event-stream":
            raise CommandFailed(f"{where.url}{PATH} has no events; it is not the admin port of a coordinator")
        view = View()
        try:
            for kind, data in events(response):
                view.follow(kind, msgspec.json.decode(data, type=Frame))
                yield view
        except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
            raise CommandFailed(f"{where.url}{PATH}: {error or type(error).__name__}") from error


def events(lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """The kind and the data of each event. The data is one line, as ``dashboard.server.event`` writes it."""
    kind, data = "", b""
    for line in lines:
        name, _, value = line.rstrip(b"\r\n").partition(b": ")
        if name == b"event":
            kind = value.decode()
        elif name == b"data":
            data = value
        elif not line.strip() and data:
            yield kind, data
            kind, data = "", b""
