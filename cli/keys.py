"""``tokenpool keys``: issues, lists, rotates and revokes API keys, through the API of a coordinator.

The key is made here, and only its SHA-256 digest is sent. So no key crosses the network, and a request whose
answer was lost can be sent again. It is printed once; neither the coordinator nor this command can show it
again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from cli import admin_port, command
from cli.command import CommandFailed
from runtime import options
from runtime.options import Origin, option
from tokenpool.credentials import KEY_BYTES, KEY_PREFIX

PATH = "/v1/credentials"
CHANGES = "/v1/credential-changes"
ATTEMPTS, PAUSE_S = 4, 0.5
"""How often a change is sent, and the seconds between: an election of coordinators takes less than 2 s."""
DAY_S = 86400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
TOKEN = "TOKENPOOL_TOKEN"
"""The variable with the administrator's token."""


@options.record
class Access:
    """The options about the administrator."""

    token_file: Path | None = option(
        f"file with an administrator's token for the API of the coordinator; or {TOKEN} has the token",
        default=None,
    )


def add_parser(commands: command.Commands) -> None:
    """Declare the commands."""
    summary = "issue, list, rotate and revoke API keys"
    parser: argparse.ArgumentParser = commands.add_parser("keys", help=summary, description=f"{summary}.")
    inner = parser.add_subparsers(dest="keys_command", required=True, metavar="COMMAND")
    issue = _add(inner, "issue", _issue, "issue a key for an entitlement, and print it once")
    issue.add_argument("entitlement", metavar="ENTITLEMENT", help="the entitlement that the key names")
    issue.add_argument("--id", metavar="ID", help="id of the credential [random]")
    issue.add_argument("--concurrency", type=int, metavar="N", help="most sequences at the same time with it")
    issue.add_argument(
        "--quota",
        type=_quota,
        action="append",
        metavar="QUOTA",
        help="budget of the key, such as 5M/month or 5M/month/Europe/Berlin; repeatable",
    )
    _add_rights(issue)
    rotate = _add(
        inner, "rotate", _rotate, "issue a key with the same rights; the old one ends after a while"
    )
    rotate.add_argument("id", metavar="ID", help="id of the credential to replace")
    rotate.add_argument(
        "--overlap",
        type=_duration,
        metavar="TIME",
        help="time for which both are accepted, such as 24h [24h]",
    )
    rotate.add_argument("--new-id", metavar="ID", help="id of the new credential [random]")
    _add_rights(rotate)
    revoke = _add(inner, "revoke", _revoke, "revoke a key; within a second no sidecar accepts it")
    revoke.add_argument("id", metavar="ID", help="id of the credential")
    show = _add(inner, "show", _show, "show a credential; never its key")
    show.add_argument("id", metavar="ID", help="id of the credential")
    listed = _add(inner, "list", _list, "list the credentials")
    listed.add_argument("--entitlement", metavar="NAME", help="only those of this entitlement")
    listed.add_argument("--pool", metavar="NAME", help="only those of this pool")
    listed.add_argument("--state", metavar="STATE", help="only those that are active, expired or revoked")
    _add(inner, "changes", _changes, "list all changes of credentials, with time, change and administrator")


def _add(commands: command.Commands, name: str, run: command.Run, summary: str) -> argparse.ArgumentParser:
    parser = command.add(commands, name, run, summary)
    admin_port.add_arguments(parser)
    options.add_arguments(parser, Access)
    return parser


def _add_rights(parser: argparse.ArgumentParser) -> None:
    """The options that a new key has, issued or rotated."""
    parser.add_argument(
        "--expires-in", type=_duration, metavar="TIME", help="time until it expires, such as 90d [never]"
    )
    parser.add_argument("--note", metavar="TEXT", help="a note for people")
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="write the key to this new file instead of the output"
    )


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90d, 24h, 30m or 10s")
    return float(match[1]) * _UNITS[match[2]]


def _quota(text: str) -> dict[str, str]:
    """A quota as the API takes it, which checks its values."""
    tokens, _, rest = text.partition("/")
    per, _, timezone = rest.partition("/")
    if not tokens or not per:
        raise argparse.ArgumentTypeError(f"{text!r} is not a quota such as 5M/month")
    return {"tokens": tokens, "per": per} | ({"timezone": timezone} if timezone else {})


# --- the API ---


@dataclass(frozen=True, slots=True)
class Api:
    """The API of one coordinator, as an administrator."""

    where: Origin
    token: str

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer. Raises ``CommandFailed``, which names the cause."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        with admin_port.answer(self.where, path, method=method, body=content, headers=headers) as response:
            try:
                return json.loads(response.read())
            except ValueError as error:
                raise CommandFailed(f"{self.where.url}{path} is not JSON; {error}") from error

    def change(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> Any:
        """The same for a change that can be repeated: it is sent again where that may help."""
        for attempt in range(ATTEMPTS):
            try:
                return self.call(method, path, body)
            except CommandFailed as error:
                is_final = isinstance(error, admin_port.Refused) and not error.may_pass
                if is_final or attempt == ATTEMPTS - 1:
                    raise
            pause(PAUSE_S)
        raise AssertionError("unreachable")

    def pages(self, path: str, name: str, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """The items of all pages of a list. An answer names the place at which the next page begins."""
        after: str | None = None
        while True:
            asked = {**query, "limit": "500", **({} if after is None else {"after": after})}
            answer = self.call("GET", f"{path}?{urlencode(asked)}")
            yield from answer[name]
            after = answer.get("after")
            if after is None:
                return


def _api(arguments: argparse.Namespace) -> Api:
    """The API as the options name it. Raises ``CommandFailed`` without a token."""
    access = options.read(Access, arguments, os.environ, example="tokenpool keys list --token-file token")
    token = os.environ.get(TOKEN, "")
    if access.token_file is not None:
        # A file of a coordinator has a name before the token.
        words = access.token_file.read_text().split()
        if len(words) not in (1, 2):
            raise CommandFailed(f"{access.token_file} has {len(words)} words; write the token alone")
        token = words[-1]
    if not token:
        raise CommandFailed(f"keys: there is no token; give --token-file, or set {TOKEN}")
    return Api(admin_port.origin(arguments), token)


# --- the commands ---


def _issue(arguments: argparse.Namespace) -> int:
    rights = {
        "entitlement": arguments.entitlement,
        "concurrency": arguments.concurrency,
        "quotas": arguments.quota,
    }
    name = arguments.id or secrets.token_hex(8)
    return _new_key(arguments, name, "PUT", f"{PATH}/{quote(name, safe='')}", rights)


def _rotate(arguments: argparse.Namespace) -> int:
    name = arguments.new_id or secrets.token_hex(8)
    rights = {"id": name, "overlap_s": arguments.overlap}
    return _new_key(arguments, name, "POST", f"{PATH}/{quote(arguments.id, safe='')}/rotate", rights)


def _new_key(
    arguments: argparse.Namespace, name: str, method: str, path: str, rights: Mapping[str, Any]
) -> int:
    """Make a key with the id ``name``, let the coordinator accept it, and print it."""
    api, target = _api(arguments), arguments.key_file
    if target is not None and target.exists():
        raise CommandFailed(f"--key-file: {target} exists; name a new file")
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    asked = {
        **rights,
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "expires_in_s": arguments.expires_in,
        "note": arguments.note,
    }
    try:
        made = api.change(method, path, {name: value for name, value in asked.items() if value is not None})
    except CommandFailed as error:
        if isinstance(error, admin_port.Refused) and not error.may_pass:
            raise
        raise CommandFailed(
            f"{error}. The key may have been issued, but it is lost; run tokenpool keys revoke {name}"
        ) from error
    if target is not None:
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{key}\n")
    shown = {**made, **({"key": key} if target is None else {"key_file": str(target)})}
    if arguments.json:
        command.print_json(shown)
    else:
        print(_text(shown))
    return command.OK


def _revoke(arguments: argparse.Namespace) -> int:
    return _print_one(arguments, _api(arguments).change("DELETE", _path(arguments)))


def _show(arguments: argparse.Namespace) -> int:
    return _print_one(arguments, _api(arguments).call("GET", _path(arguments)))


def _path(arguments: argparse.Namespace) -> str:
    return f"{PATH}/{quote(arguments.id, safe='')}"


def _print_one(arguments: argparse.Namespace, credential: dict[str, Any]) -> int:
    if arguments.json:
        command.print_json(credential)
    else:
        print(_text(credential))
    return command.OK


def _text(credential: Mapping[str, Any]) -> str:
    """All fields with a value, a line each."""
    known = {name: value for name, value in credential.items() if value not in (None, "", [])}
    width = max(map(len, known))
    return "\n".join(f"{name:{width}}  {value}" for name, value in known.items())


_COLUMNS = ("id", "entitlement", "state", "created_at", "expires_at", "created_by", "note")


def _list(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in ("entitlement", "pool", "state")}
    query = {name: value for name, value in given.items() if value is not None}
    return _print_all(arguments, _api(arguments).pages(PATH, "credentials", query), _COLUMNS)


_CHANGES = ("at", "change", "credential", "entitlement", "pool", "administrator")


def _changes(arguments: argparse.Namespace) -> int:
    return _print_all(arguments, _api(arguments).pages(CHANGES, "changes", {}), _CHANGES)


def _print_all(arguments: argparse.Namespace, items: Iterator[dict[str, Any]], columns: Sequence[str]) -> int:
    rows = list(items)
    if arguments.json:
        command.print_json(rows)
    elif not rows:
        print("none")
    else:
        cells = [
            [str(row.get(name) if row.get(name) is not None else "-") for name in columns] for row in rows
        ]
        print(command.table(columns, cells, left=len(columns)))
    return command.OK
