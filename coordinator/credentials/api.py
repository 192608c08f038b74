"""The API for issued credentials, on the coordinator's admin port.

Every request needs an administrator's token. A key is shown once, in the answer to the request that made it.
A client may make the key itself and send its digest: then the request can be repeated, and no key crosses
the network. All coordinators serve the same.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client.core import CounterMetricFamily, Metric

from coordinator.credentials.administrators import Administrators
from coordinator.credentials.database import ChangeRow, DatabaseFailed, StoredCredential
from coordinator.credentials.keeper import ChangeRefused, Keeper
from tokenpool.credentials import (
    KEY_BYTES,
    KEY_PREFIX,
    LONGEST_NOTE,
    Change,
    CredentialRecord,
    CredentialState,
)
from tokenpool.entitlements import Quota
from tokenpool.leases.wire import WireError
from tokenpool.poolfile.quotas import quotas_of
from tokenpool.poolfile.reading import CREDENTIAL_ID
from tokenpool.store import StoreDown
from tokenpool.yaml_nodes import Problems, of_values

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 16 * 1024
MOST_LISTED = 500
"""The most rows in one answer."""
CHANGES_PER_S = 50.0
CHANGES_AT_ONCE = 200.0
"""The most changes of one coordinator. A change costs one write to disk, and one read of each sidecar."""
WRONG_TOKENS_PER_S = 5.0
WRONG_TOKENS_AT_ONCE = 20.0
"""The most requests with a wrong token that are answered with 401 and logged. Others are answered with 429.

A right token is never refused for the wrong ones of others."""
DEFAULT_OVERLAP_S = 24 * 3600.0
LONGEST_S = 20 * 365 * 86400.0
"""The longest lifetime and the longest overlap, in seconds."""
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")

Handler = Callable[[web.Request, str], Awaitable[web.Response]]


class _Rights(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields that issue and rotation have in common."""

    id: str | None = None
    sha256: str | None = None
    """The digest of a key that the client made; without it the coordinator makes one."""
    expires_at: str | None = None
    """RFC 3339, with a zone."""
    expires_in_s: float | None = None
    note: str | None = None


class _Issue(_Rights, forbid_unknown_fields=True, kw_only=True):
    entitlement: str
    concurrency: int | None = None
    quotas: list[dict[str, str | int | float]] = []
    """Each as in the pool file: tokens, per and optionally timezone."""


class _Rotate(_Rights, forbid_unknown_fields=True, kw_only=True):
    overlap_s: float = DEFAULT_OVERLAP_S


class _Bound:
    """A token bucket of events, in events per second."""

    def __init__(self, rate: float, at_once: float, clock: Callable[[], float]) -> None:
        self._rate, self._most, self._clock = rate, at_once, clock
        self._level, self._at = at_once, clock()

    def take(self) -> bool:
        """Whether one more event is within the bound."""
        now = self._clock()
        self._level = min(self._level + self._rate * (now - self._at), self._most)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class CredentialApi:
    """The routes for issued credentials."""

    def __init__(self, keeper: Keeper, administrators: Administrators, clock: Callable[[], float]) -> None:
        self._keeper = keeper
        self._administrators = administrators
        self._changes = _Bound(CHANGES_PER_S, CHANGES_AT_ONCE, clock)
        self._wrong_tokens = _Bound(WRONG_TOKENS_PER_S, WRONG_TOKENS_AT_ONCE, clock)
        self.answers: Counter[int] = Counter()
        """Answers by status."""

    def add_to(self, application: web.Application) -> None:
        """Add the routes to an application."""
        changed, read = self._guarded(changes=True), self._guarded(changes=False)
        application.add_routes(
            [
                web.get("/v1/credentials", read(self._list)),
                web.post("/v1/credentials", changed(self._issue)),
                web.get("/v1/credentials/{id}", read(self._show)),
                web.put("/v1/credentials/{id}", changed(self._issue)),
                web.delete("/v1/credentials/{id}", changed(self._revoke)),
                web.post("/v1/credentials/{id}/rotate", changed(self._rotate)),
                web.get("/v1/credential-changes", read(self._list_changes)),
            ]
        )

    # --- who may ask ---

    def _guarded(self, *, changes: bool) -> Callable[[Handler], Callable[[web.Request], Awaitable[Any]]]:
        """A handler that is called for administrators only, within the bounds. Failures become answers."""

        def guard(handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
            @functools.wraps(handler)
            async def answer(request: web.Request) -> web.Response:
                who = self._administrators.name(request.headers.get("Authorization", ""))
                if who is None:
                    response = self._unauthorized(request)
                elif changes and not self._changes.take():
                    response = _error(429, f"more than {CHANGES_PER_S:g} changes per second; retry in 1 s")
                    response.headers["Retry-After"] = "1"
                else:
                    response = await self._answer(handler, request, who)
                response.headers["Cache-Control"] = "no-store"
                self.answers[response.status] += 1
                return response

            return answer

        return guard

    def _unauthorized(self, request: web.Request) -> web.Response:
        if not self._wrong_tokens.take():
            response = _error(429, "too many requests with a wrong token; retry in 1 s")
            response.headers["Retry-After"] = "1"
            return response
        log.warning(
            "a request for credentials has no valid token",
            extra={"remote": request.remote, "path": request.path},
        )
        response = _error(401, "send an administrator's token as 'Authorization: Bearer TOKEN'")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _answer(self, handler: Handler, request: web.Request, who: str) -> web.Response:
        try:
            return await handler(request, who)
        except ChangeRefused as error:
            return _error(error.status, str(error))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return _error(400, f"the body cannot be used: {error}")
        except StoreDown as error:
            return _error(
                503, f"the lease store does not answer, so nothing is confirmed; try again: {error}"
            )
        except DatabaseFailed as error:
            log.error("a change of a credential was not stored: %s", error, extra={"path": request.path})
            return _error(
                503, f"the change may be in force, but it is not stored durably; send it again: {error}"
            )
        except WireError as error:
            return _error(503, str(error))

    # --- handlers ---

    async def _list(self, request: web.Request, who: str) -> web.Response:
        """The credentials, in the order of their ids.

        Parameters: pool, entitlement, state (active, expired or revoked), limit, after (the last id of the
        page before).
        """
        query, now = request.query, self._keeper.wall_clock()
        state = query.get("state")
        if state is not None and state not in tuple(CredentialState):
            raise ChangeRefused(400, f"state is {state!r}; use {', '.join(CredentialState)}")
        count, after = _limit(request), query.get("after", "")
        found: list[StoredCredential] = []
        while len(found) < count:
            rows = await self._keeper.database.page(
                after, count, pool=query.get("pool"), entitlement=query.get("entitlement")
            )
            found += [each for each in rows if state is None or each.record.state(now) == state]
            if len(rows) < count:
                after = ""
                break
            after = rows[-1].record.id
        if len(found) > count:
            found = found[:count]
            after = found[-1].record.id
        return _json({"credentials": [_view(each, now) for each in found], "after": after or None})

    async def _show(self, request: web.Request, who: str) -> web.Response:
        """One credential."""
        stored = await self._keeper.get(request.match_info["id"])
        return _json(_view(stored, self._keeper.wall_clock()))

    async def _issue(self, request: web.Request, who: str) -> web.Response:
        """Issue a credential. With PUT, the path has its id."""
        asked = msgspec.json.decode(await _body(request), type=_Issue)
        now = self._keeper.wall_clock()
        if asked.concurrency is not None and asked.concurrency < 1:
            raise ChangeRefused(422, f"concurrency is {asked.concurrency}; give at least 1, or leave it out")
        digest, key = _digest_of(asked)
        record = CredentialRecord(
            id=_id_of(asked, request.match_info.get("id")),
            entitlement=asked.entitlement,
            digest=digest,
            created_at=now,
            created_by=who,
            expires_at=_expiry_of(asked, now),
            concurrency=asked.concurrency,
            quotas=_quotas_of(asked),
            note=_note_of(asked, ""),
            changed_at=now,
            changed_by=who,
            change=Change.ISSUED,
        )
        return self._issued(*await self._keeper.issue(record), key)

    async def _rotate(self, request: web.Request, who: str) -> web.Response:
        """Issue a credential with the rights of another one, which ends after ``overlap_s`` seconds.

        Without an expiry of its own, it lives as long as the other one was to live.
        """
        asked = msgspec.json.decode(await _body(request) or b"{}", type=_Rotate)
        now = self._keeper.wall_clock()
        if not 0 <= asked.overlap_s <= LONGEST_S:
            raise ChangeRefused(422, f"overlap_s is {asked.overlap_s:g}; give 0 to {LONGEST_S:g} seconds")
        old = (await self._keeper.get(request.match_info["id"])).record
        expires_at = _expiry_of(asked, now)
        if expires_at is None and old.expires_at is not None:
            expires_at = now + max(old.expires_at - old.created_at, 0.0)
        digest, key = _digest_of(asked)
        record = CredentialRecord(
            id=_id_of(asked, None),
            entitlement=old.entitlement,
            digest=digest,
            created_at=now,
            created_by=who,
            expires_at=expires_at,
            concurrency=old.concurrency,
            quotas=old.quotas,
            note=_note_of(asked, old.note),
            replaces=old.id,
            changed_at=now,
            changed_by=who,
            change=Change.ISSUED,
        )
        return self._issued(*await self._keeper.rotate(old.id, record, asked.overlap_s), key)

    def _issued(self, stored: StoredCredential, is_new: bool, key: str | None) -> web.Response:
        shown = _view(stored, self._keeper.wall_clock())
        if is_new and key is not None:
            shown["key"] = key
        return _json(shown, 201 if is_new else 200)

    async def _revoke(self, request: web.Request, who: str) -> web.Response:
        """Revoke a credential. A second time changes nothing."""
        stored = await self._keeper.revoke(request.match_info["id"], who)
        return _json(_view(stored, self._keeper.wall_clock()))

    async def _list_changes(self, request: web.Request, who: str) -> web.Response:
        """The changes of all coordinators, in the order of their times.

        Parameters: limit, after (the text ``after`` of the page before).
        """
        count = _limit(request)
        version, _, name = request.query.get("after", "0").partition("/")
        if not version.isdecimal() or len(version) > 15:
            raise ChangeRefused(400, f"after is {version[:20]!r}; give the text 'after' of the page before")
        rows = await self._keeper.database.changes((int(version), name), count)
        after = f"{rows[-1].version}/{rows[-1].credential}" if len(rows) == count else None
        return _json({"changes": [_change_view(row) for row in rows], "after": after})

    # --- metrics ---

    def metrics(self) -> Iterator[Metric]:
        """The answers of the API, for Prometheus."""
        answers = CounterMetricFamily(
            "tokenpool_credential_api_answers", "Answers of the API for credentials.", labels=("status",)
        )
        for status, count in sorted(self.answers.items()):
            answers.add_metric((str(status),), count)
        yield answers


async def _body(request: web.Request) -> bytes:
    """The body. Raises ``ChangeRefused`` if it is too long."""
    body = await request.content.read(MOST_BODY_BYTES + 1)
    while len(body) <= MOST_BODY_BYTES and (more := await request.content.read(MOST_BODY_BYTES)):
        body += more
    if len(body) > MOST_BODY_BYTES:
        raise ChangeRefused(413, f"the body has more than {MOST_BODY_BYTES} bytes")
    return body


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "100")
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_LISTED:
        raise ChangeRefused(400, f"limit is {text[:20]!r}; give 1 to {MOST_LISTED}")
    return int(text)


def _id_of(asked: _Rights, in_path: str | None) -> str:
    name = in_path if in_path is not None else asked.id
    if name is None:
        return secrets.token_hex(8)
    if asked.id not in (None, name):
        raise ChangeRefused(422, f"the body has the id {asked.id!r}, and the path {name!r}")
    if not CREDENTIAL_ID.fullmatch(name):
        raise ChangeRefused(422, "an id has 1 to 64 letters, digits, dots, dashes and underscores")
    return name


def _digest_of(asked: _Rights) -> tuple[bytes, str | None]:
    """The digest of the new key, and the key if it is made here."""
    if asked.sha256 is None:
        key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
        return hashlib.sha256(key.encode()).digest(), key
    if not _DIGEST.fullmatch(asked.sha256):
        raise ChangeRefused(422, "sha256 is not a SHA-256 digest; write 64 hex digits")
    return bytes.fromhex(asked.sha256), None


def _expiry_of(asked: _Rights, now: float) -> float | None:
    if asked.expires_at is not None and asked.expires_in_s is not None:
        raise ChangeRefused(422, "expires_at and expires_in_s are both given; remove one of them")
    if asked.expires_in_s is not None:
        at = now + asked.expires_in_s
    elif asked.expires_at is not None:
        try:
            time = datetime.fromisoformat(asked.expires_at)
        except ValueError:
            time = None
        if time is None or time.tzinfo is None:
            raise ChangeRefused(
                422, f"expires_at is {asked.expires_at[:40]!r}; write such as 2027-01-31T18:00:00Z"
            )
        at = time.timestamp()
    else:
        return None
    if not now < at <= now + LONGEST_S:
        raise ChangeRefused(422, "the expiry is not in the future, or it is more than 20 years away")
    return at


def _note_of(asked: _Rights, otherwise: str) -> str:
    note = otherwise if asked.note is None else asked.note
    if len(note) > LONGEST_NOTE:
        raise ChangeRefused(422, f"note has {len(note)} characters; at most {LONGEST_NOTE}")
    if not note.isprintable():
        # PostgreSQL stores no NUL, and a line break would break the table of keys.
        raise ChangeRefused(422, "note has a line break or another control character; remove it")
    return note


def _quotas_of(asked: _Issue) -> tuple[Quota, ...]:
    problems = Problems()
    quotas = quotas_of(of_values(asked.quotas, problems, name="quotas"))
    if problems.errors:
        raise ChangeRefused(422, f"{problems.errors[0].message}; {problems.errors[0].fix}")
    return quotas


def _view(stored: StoredCredential, now: float) -> dict[str, Any]:
    record = stored.record
    return {
        "id": record.id,
        "pool": stored.pool,
        "entitlement": record.entitlement,
        "state": record.state(now).value,
        "sha256": record.digest.hex(),
        "created_at": _time(record.created_at),
        "created_by": record.created_by,
        "expires_at": _time(record.expires_at),
        "concurrency": record.concurrency,
        "quotas": [
            {"tokens": each.tokens, "per": each.per.value, "timezone": each.timezone}
            for each in record.quotas
        ],
        "note": record.note,
        "replaces": record.replaces or None,
        "revoked_at": _time(record.revoked_at),
        "changed_at": _time(record.changed_at),
        "changed_by": record.changed_by,
        "version": stored.version,
    }


def _change_view(row: ChangeRow) -> dict[str, Any]:
    return row._asdict() | {"at": _time(row.at)}


def _time(at: float | None) -> str | None:
    """A time in RFC 3339, in UTC with milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(content: object, status: int = 200) -> web.Response:
    return web.json_response(body=msgspec.json.encode(content), status=status)


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
