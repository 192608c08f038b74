"""``tokenpool keys``: issue, list, rotate and revoke keys through a coordinator.

A new key is made here, and only its digest is sent. So no key crosses the network, and a request that gets no
answer can be repeated. The key goes to standard output, once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from cli import admin_port, command
from tokenpool.credentials import KEY_BYTES, KEY_PREFIX

PATH = "/v1/credentials"
CHANGES_PATH = "/v1/credential-changes"
TOKEN_VARIABLE = "TOKENPOOL_TOKEN"
ROWS = 500
"""The rows that one request asks for."""
ATTEMPTS = 2
"""The times that a change is sent, if there is no answer."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


def add_parser(commands: command.Commands) -> None:
    """Declare the command and its own commands."""
    parser = commands.add_parser(
        "keys", help="issue, list, rotate and revoke keys", description="Issue, list, rotate and revoke keys."
    )
    own = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = _command(own, "list", _list, "list keys, revoked ones included")
    for name in ("pool", "entitlement"):
        listing.add_argument(f"--{name}", metavar="NAME", help=f"only those of this {name}")
    listing.add_argument("--state", choices=("active", "expired", "revoked"), help="only those in this state")
    issuing = _command(own, "issue", _issue, "issue a key, and print it once")
    issuing.add_argument("entitlement", help="the entitlement of the key")
    issuing.add_argument("--concurrency", type=int, metavar="N", help="its own limit of concurrent sequences")
    rotating = _command(own, "rotate", _rotate, "issue a key that replaces another one, and print it once")
    rotating.add_argument("key_id", metavar="ID", help="the id of the key to replace")
    rotating.add_argument(
        "--overlap", type=_duration, default=86400, metavar="TIME", help="how long both are valid [24h]"
    )
    for each in (issuing, rotating):
        each.add_argument("--id", metavar="ID", help="the id of the new key; by default a random one")
        each.add_argument("--expires", metavar="TIME", help="90d, 12h, or such as 2027-01-31T18:00:00Z")
        each.add_argument("--note", metavar="TEXT", help="a remark, at most 200 characters")
    revoking = _command(own, "revoke", _revoke, "revoke a key; all sidecars refuse it within a second")
    revoking.add_argument("key_id", metavar="ID", help="the id of the key")
    _command(own, "changes", _changes, "list who issued, rotated and revoked which key, and when")


def _command(
    commands: command.Commands, name: str, run: command.Run, summary: str
) -> argparse.ArgumentParser:
    parser = command.add(commands, name, run, summary)
    admin_port.add_arguments(parser)
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with an administrator's token; by default the variable {TOKEN_VARIABLE}",
    )
    return parser


def _duration(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 12h or 90d")
    return int(match[1]) * _UNITS[match[2]]


# --- requests ---


class _Client:
    """Requests to the API of one coordinator."""

    def __init__(self, arguments: argparse.Namespace, environment: Mapping[str, str] | None = None) -> None:
        self._where = admin_port.origin(arguments)
        found = os.environ if environment is None else environment
        if arguments.token_file is not None:
            words = arguments.token_file.read_text(encoding="utf-8").split()
            token = words[-1] if words else ""
        else:
            token = found.get(TOKEN_VARIABLE, "")
        if not token.isascii() or not token.isprintable() or not token:
            raise command.CommandFailed(
                f"keys: there is no administrator's token; give --token-file, or set {TOKEN_VARIABLE}"
            )
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        """The JSON of an answer. A request without an answer is repeated: each can be."""
        content = None if body is None else json.dumps(body).encode()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with admin_port.answer(
                    self._where, path, method=method, body=content, headers=self._headers
                ) as response:
                    return json.loads(response.read())
            except admin_port.Refused as error:
                if attempt == ATTEMPTS or error.status < 500:
                    raise
            except ValueError as error:
                raise command.CommandFailed(f"{self._where.url}{path} is not JSON") from error
            except command.CommandFailed:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError  # pragma: no cover

    def pages(self, path: str, name: str, **query: str) -> Iterator[dict[str, Any]]:
        """The rows of all pages."""
        after: str | None = ""
        while after is not None:
            shown = query | {"limit": str(ROWS)} | ({"after": after} if after else {})
            answer = self.ask(f"{path}?{urlencode(shown)}")
            yield from answer[name]
            after = answer["after"]


# --- commands ---


def _list(arguments: argparse.Namespace) -> int:
    names = ("pool", "entitlement", "state")
    query = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    rows = list(_Client(arguments).pages(PATH, "credentials", **query))
    if arguments.json:
        command.print_json(rows)
    else:
        heads = ("id", "entitlement", "state", "expires", "concurrency", "created by", "note")
        fields = ("id", "entitlement", "state", "expires_at", "concurrency", "created_by", "note")
        _print_table(heads, fields, rows)
    return command.OK


def _issue(arguments: argparse.Namespace) -> int:
    key, body = _new(arguments)
    body["entitlement"] = arguments.entitlement
    if arguments.concurrency is not None:
        body["concurrency"] = arguments.concurrency
    made = _Client(arguments).ask(f"{PATH}/{quote(str(body['id']), safe='')}", "PUT", body)
    return _show_key(arguments, made, key)


def _rotate(arguments: argparse.Namespace) -> int:
    key, body = _new(arguments)
    body["overlap_s"] = arguments.overlap
    made = _Client(arguments).ask(f"{PATH}/{quote(arguments.key_id, safe='')}/rotate", "POST", body)
    return _show_key(arguments, made, key)


def _new(arguments: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """A new key, and the fields of the request for it."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    body: dict[str, object] = {
        "id": arguments.id or secrets.token_hex(8),
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
    }
    if arguments.note is not None:
        body["note"] = arguments.note
    if arguments.expires is not None and _DURATION.fullmatch(arguments.expires):
        body["expires_in_s"] = _duration(arguments.expires)
    elif arguments.expires is not None:
        body["expires_at"] = arguments.expires
    return key, body


def _show_key(arguments: argparse.Namespace, made: dict[str, Any], key: str) -> int:
    if arguments.json:
        command.print_json(made | {"key": key})
        return command.OK
    until = f"until {made['expires_at']}" if made["expires_at"] else "without an end"
    command.say(f"key {made['id']} of {made['entitlement']}, valid {until}; it is shown only now:")
    print(key)
    return command.OK


def _revoke(arguments: argparse.Namespace) -> int:
    made = _Client(arguments).ask(f"{PATH}/{quote(arguments.key_id, safe='')}", "DELETE")
    if arguments.json:
        command.print_json(made)
    else:
        print(f"key {made['id']} of {made['entitlement']} is revoked since {made['revoked_at']}")
    return command.OK


def _changes(arguments: argparse.Namespace) -> int:
    rows = list(_Client(arguments).pages(CHANGES_PATH, "changes"))
    if arguments.json:
        command.print_json(rows)
    else:
        heads = ("time", "administrator", "change", "id", "entitlement", "pool")
        _print_table(heads, ("at", "administrator", "change", "credential", "entitlement", "pool"), rows)
    return command.OK


def _print_table(heads: tuple[str, ...], fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    cells = [["-" if row[field] in (None, "") else str(row[field]) for field in fields] for row in rows]
    print(command.table(heads, cells, left=len(heads)))
