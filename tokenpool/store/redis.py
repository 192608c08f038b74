"""The lease store in Redis: the rules of ``tokenpool.leases.reference_store`` as scripts, on Redis' clock.

All keys of a pool share a hash tag, so they are in one slot of a cluster. Every key expires. The cost of a
record does not depend on the number of sidecars, because the scripts keep sums. Every message contains
``SCHEMA``, so that a later script can recognise an older sender.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import msgpack

from tokenpool.leases.credential_feed import (
    CHECK_MODULUS,
    CredentialEntry,
    CredentialPage,
    CredentialPut,
    CredentialRemoval,
    FeedState,
)
from tokenpool.leases.credential_feed import PAGE as CREDENTIALS_PAGE
from tokenpool.leases.messages import (
    CONTENDED_S,
    KEEP_S,
    MOST_PEERS,
    MOST_PRICES,
    NO_LIMIT,
    POOL_BUCKET_S,
    REMEMBER_S,
    REQUEST_SIZE_MEMORY_S,
    WAIT_S,
    Answer,
    EntitlementRecord,
    Limit,
    Message,
    PoolSnapshot,
    Push,
    StoredScaleHint,
)
from tokenpool.leases.records import StoredRecord
from tokenpool.planning.idle import IdleTerms
from tokenpool.quotas.messages import (
    KEEP_RECORD_S,
    KEEP_SINCE_S,
    LEVELS,
    RESTORE_WITHIN_S,
    QuotaAnswer,
    QuotaMessage,
    QuotaState,
)
from tokenpool.store import SECRET_BYTES, StoreDown, quota_script, scripts
from tokenpool.store.quota_script import QuotaPage, QuotaResult
from tokenpool.store.redis_client import Client, RedisClient, failures
from tokenpool.store.scripts import ExchangeResult, Script, SnapshotResult

SCHEMA = 1
"""The version of the messages to the scripts."""
PART = 250
"""The most rows in one call of the coordinator, so that no script occupies Redis for long."""
AT_ONCE = 4
"""The most such calls in flight, each on its own connection."""

_T = TypeVar("_T")

_records = msgpack.Decoder(StoredRecord)
_answers = msgpack.Decoder(ExchangeResult)
_snapshots = msgpack.Decoder(SnapshotResult)
_limits = msgpack.Decoder(Limit)
_terms = msgpack.Decoder(IdleTerms)
_quota_results = msgpack.Decoder(QuotaResult)
_quota_states = msgpack.Decoder(QuotaPage)
_pushes = msgpack.Decoder(tuple[str, str])


class _Published(NamedTuple):
    """A complete publication of limits."""

    limits: Mapping[str, Limit]
    epoch: int
    mark: str


class RedisStore:
    """The lease store of one pool in one Redis.

    ``lifetime_s`` is the lifetime of leases in seconds. ``clock`` replaces Redis' clock in tests.
    """

    def __init__(
        self,
        client: Client,
        pool: str,
        lifetime_s: float,
        clock: Callable[[], float] | None = None,
        helpers: Sequence[Client] = (),
        host: tuple[str, int] = ("127.0.0.1", 6379),
    ) -> None:
        self.client = RedisClient(client, helpers)
        self._prefix = f"tokenpool:{{{pool}}}"
        self._known: PoolSnapshot | None = None
        """The content at the last read."""
        self._published: _Published | None = None
        """The last publication by this store; ``None`` if a later one may have failed."""
        self._new_limits: dict[str, Limit | None] = {}
        """The limits that this store has published since the last read; ``None`` for a removed one."""
        self._clock = clock
        self._host = host
        self.access: object = None
        """What the client connects with, for its owner to compare."""
        self._common = {
            "v": SCHEMA,
            "lifetime": lifetime_s,
            "remember": REMEMBER_S,
            "keep": KEEP_S,
            "wait": WAIT_S,
            "contended": CONTENDED_S,
            "request_size_memory": REQUEST_SIZE_MEMORY_S,
        }

    async def connect(self, count: int) -> None:
        """See ``Store``."""
        await self.client.connect(count)

    async def exchange(self, message: Message) -> Answer:
        """See ``Store``."""
        requests = message.lease_requests
        packed = await self._run(
            scripts.EXCHANGE,
            message.report,
            holder=message.holder,
            number=message.number,
            complete=message.is_complete,
            kept=message.kept,
            renews=message.renews,
            names=[*requests],
            requests=[*requests.values()],
            room=message.room,
            most_peers=MOST_PEERS,
            pool_bucket=POOL_BUCKET_S,
        )
        with failures():
            result = _answers.decode(packed)
            return Answer(
                dict(zip(requests, result.leases, strict=True)),
                result.is_open,
                result.sidecars,
                result.file_version,
                result.limits_age_s,
                result.terms,
                result.is_known,
                result.rows,
                result.free,
                result.peers,
                result.credentials,
            )

    async def listen(self, holder: str) -> AsyncIterator[Push]:
        """See ``Store``."""
        async for content in self.client.subscribe(f"{self._prefix}:push:{holder}"):
            with failures():
                kind, entitlement = _pushes.decode(content)
            yield Push(holder, kind, entitlement)

    async def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """See ``Store``."""
        self.client.check_up()
        complete, terms = await self.client.fields(f"{self._prefix}:meta", "complete", "terms")
        if complete is None or terms is None:
            return {}, IdleTerms()
        rows = await self.client.all_fields(f"{self._prefix}:limits")
        with failures():
            return {name.decode(): _limits.decode(row) for name, row in rows.items()}, _terms.decode(terms)

    async def file(self) -> tuple[str, bytes] | None:
        """See ``Store``."""
        self.client.check_up()
        version, content = await self.client.fields(f"{self._prefix}:file", "version", "content")
        return (version.decode(), content) if version is not None and content is not None else None

    async def lead(self, candidate: str, leadership_s: float) -> int:
        """See ``Store``."""
        epoch = await self._run(scripts.LEAD, candidate=candidate, leadership_ms=round(leadership_s * 1000))
        with failures():
            return int(float(epoch))

    async def resign(self, candidate: str) -> None:
        """See ``Store``."""
        await self._run(scripts.LEAD, candidate=candidate, resigns=True)

    async def read(self, *, whole: bool = True) -> PoolSnapshot:
        """See ``Store``."""
        known = None if whole else self._known
        since: dict[str, Any] = {} if known is None else {"since": known.at}
        packed = await self._run(scripts.SNAPSHOT, **since)
        with failures():
            seen = _snapshots.decode(packed)
        if known is not None and not (
            self._published is not None
            and seen.limits == self._published.mark
            and seen.epoch == self._published.epoch
            and seen.is_open == known.is_open
        ):
            # The store lost its content, or another coordinator has written.
            return await self.read()
        reports = await self.client.all_fields(f"{self._prefix}:reports")
        records: dict[str, EntitlementRecord] = {}
        names = seen.names
        if known is not None:
            records |= known.records
            names += self._with_new_limits(records)
        parts = [names[start : start + PART] for start in range(0, len(names), PART)]
        for part in await _in_parallel(partial(self._read_part, part, seen) for part in parts):
            records |= part
        self._new_limits = {}
        self._known = PoolSnapshot(
            records,
            {holder.decode(): report for holder, report in reports.items()},
            int(seen.epoch),
            seen.is_open,
            seen.at,
            seen.file_version,
        )
        return self._known

    def _with_new_limits(self, records: dict[str, EntitlementRecord]) -> list[str]:
        """Give known records the limits published since. Returns those to read again, and drops them."""
        again = []
        for name, limit in self._new_limits.items():
            if limit is not None and name in records:
                records[name] = msgspec.structs.replace(records[name], limit=limit)
            else:
                records.pop(name, None)
                again.append(name)
        return again

    async def _read_part(self, names: Sequence[str], seen: SnapshotResult) -> dict[str, EntitlementRecord]:
        answer = await self._run(scripts.RECORDS, names=names)
        with failures():
            records, limits = answer
            return {
                name: _view(record, limit, seen.at, seen.is_open)
                for name, record, limit in zip(names, records, limits, strict=True)
                if record or limit
            }

    async def publish(
        self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int, *, whole: bool = True
    ) -> bool:
        """See ``Store``."""
        before, self._published = self._published, None
        mark = f"{epoch} {secrets.token_hex(8)}"
        base = before if before is not None and before.epoch == epoch and not whole else None
        changed: dict[str, Limit] = {}
        removed: list[str] = []
        if base is None:
            results = await self._send_limits(limits, terms, epoch, {}, all=list(limits), mark=mark)
            self._known = None
        else:
            changed = {name: limit for name, limit in limits.items() if limit != base.limits.get(name)}
            removed = [name for name in base.limits if name not in limits]
            known = {"base": base.mark, "before": len(base.limits)}
            results = await self._send_limits(changed, terms, epoch, known, removed=removed, mark=mark)
            if 2 in results:
                return await self.publish(limits, terms, epoch)
        if not all(results):
            return False
        self._published = _Published(dict(limits), epoch, mark)
        self._new_limits |= changed
        self._new_limits |= dict.fromkeys(removed)
        return True

    async def _send_limits(
        self,
        limits: Mapping[str, Limit],
        terms: IdleTerms,
        epoch: int,
        fields: Mapping[str, Any],
        **last: Any,
    ) -> list[int]:
        """Send limits in parts. All parts have ``fields``, and the last one has ``last``, too."""
        names, packed_terms = list(limits), msgpack.encode(terms)
        calls = []
        for start in range(0, len(names), PART) or (0,):
            part = names[start : start + PART]
            packed = [msgpack.encode(limits[name]) for name in part]
            message: dict[str, Any] = {"names": part, "sizes": [len(limit) for limit in packed]}
            message |= fields
            if start + PART >= len(names):
                message |= last
            calls.append(
                partial(self._run, scripts.PUBLISH, b"".join(packed), packed_terms, **message, epoch=epoch)
            )
        # The last part marks the limits as complete, so it is sent after the others.
        return [*await _in_parallel(calls[:-1]), await calls[-1]()]

    async def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """See ``Store``."""
        return bool(await self._run(scripts.PUBLISH_FILE, content, version=version, epoch=epoch))

    async def scale_hint(self) -> StoredScaleHint | None:
        """See ``Store``."""
        answer = await self._run(scripts.SCALE_HINT)
        with failures():
            content, at, now = answer
            if content is None:
                return None
            return StoredScaleHint(content, float(at), max(float(now) - float(at), 0.0))

    async def publish_scale_hint(self, content: bytes, epoch: int) -> float | None:
        """See ``Store``."""
        at = await self._run(scripts.PUBLISH_SCALE_HINT, content, epoch=epoch)
        with failures():
            return float(at) or None

    async def credentials(self, after: int) -> CredentialPage:
        """See ``Store``."""
        self.client.check_up()
        answer = await self._run(scripts.CREDENTIALS, after=after, count=CREDENTIALS_PAGE)
        with failures():
            state, *columns = answer
            entries = [_entry(*row) for row in zip(*columns, strict=True)]
            return CredentialPage(FeedState.parse(state.decode()), entries)

    async def put_credentials(self, puts: Sequence[CredentialPut]) -> list[int]:
        """See ``Store``."""
        written: list[int] = []
        for start in range(0, len(puts), CREDENTIALS_PAGE):
            part = puts[start : start + CREDENTIALS_PAGE]
            versions = await self._run(
                scripts.PUT_CREDENTIALS,
                b"".join(put.content for put in part),
                ids=[put.id for put in part],
                expected=[put.expected for put in part],
                versions=[put.version for put in part],
                sizes=[len(put.content) for put in part],
                modulus=CHECK_MODULUS,
            )
            with failures():
                written += [int(version) for version in versions]
        return written

    async def remove_credentials(self, removals: Sequence[CredentialRemoval]) -> None:
        """See ``Store``."""
        await self._run(
            scripts.REMOVE_CREDENTIALS,
            ids=[each.id for each in removals],
            versions=[each.version for each in removals],
            modulus=CHECK_MODULUS,
        )

    async def secret(self, new: bytes) -> bytes:
        """See ``Store``."""
        return bytes(await self._run(scripts.SECRET, new))

    def host(self) -> tuple[str, int]:
        """See ``Store``."""
        return self._host

    async def move(self, client: RedisClient, access: object, host: tuple[str, int]) -> None:
        """Use another client from now on, if it may run scripts of this pool on a primary.

        Calls in flight end on the former client. If this client does not work, it is closed, the former one
        stays, and ``StoreDown`` is raised.
        """
        try:
            await self._run(scripts.SECRET, secrets.token_bytes(SECRET_BYTES), on=client)
        except StoreDown:
            await client.close()
            raise
        former, self.client = self.client, client
        self.access, self._host = access, host
        await client.succeed(former)

    async def publish_prices(self, holder: str, content: bytes) -> None:
        """See ``Store``."""
        self.client.check_up()
        await self._run(scripts.PUBLISH_PRICES, content, holder=holder, most_prices=MOST_PRICES)

    async def prices(self) -> Mapping[str, bytes]:
        """See ``Store``."""
        self.client.check_up()
        answer = await self._run(scripts.PRICES)
        with failures():
            holders, contents = answer
            found = zip(holders, contents, strict=True)
            return {holder.decode(): bytes(content) for holder, content in found if content}

    async def exchange_quotas(self, message: QuotaMessage) -> QuotaAnswer:
        """See ``Store``."""
        packed = await self._run_quotas(
            "exchange", holder=message.holder, number=message.number, requests=message.requests
        )
        with failures():
            result = _quota_results.decode(packed)
            return QuotaAnswer(result.portions, result.at, result.since)

    async def quotas(self) -> Sequence[QuotaState]:
        """See ``Store``."""
        found: list[QuotaState] = []
        for first in itertools.count(0, PART):
            packed = await self._run_quotas("states", first=first, last=first + PART - 1)
            with failures():
                page = _quota_states.decode(packed)
            found += page.states
            if page.read < PART:
                break
        return found

    async def restore_quota(self, key: str, start: float, spent: float) -> bool:
        """See ``Store``."""
        return bool(await self._run_quotas("restore", key=key, start=start, spent=spent))

    async def _run_quotas(self, action: str, **fields: Any) -> Any:
        return await self._run(
            quota_script.QUOTAS,
            **fields,
            action=action,
            levels=LEVELS,
            keep_record=KEEP_RECORD_S,
            keep_since=KEEP_SINCE_S,
            restore_within=RESTORE_WITHIN_S,
        )

    async def close(self) -> None:
        """See ``Store``."""
        await self.client.close()

    async def run(self, script: Script, /, *blobs: bytes, **message: Any) -> Any:
        """Run another script on the keys of the pool. Raises ``StoreDown``."""
        return await self._run(script, *blobs, **message)

    async def _run(
        self, script: Script, /, *blobs: bytes, on: RedisClient | None = None, **message: Any
    ) -> Any:
        """Run a script with a message. The script gets ``blobs`` without encoding.

        ``on`` is another client than the one in use.
        """
        message |= self._common
        if self._clock is not None:
            message["now"] = self._clock()
        return await (on or self.client).run(script, self._prefix, msgpack.encode(message), *blobs)


async def _in_parallel(calls: Iterable[Callable[[], Awaitable[_T]]]) -> list[_T]:
    """The results of calls, ``AT_ONCE`` at a time. Redis runs one while another is encoded or decoded."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def result(call: Callable[[], Awaitable[_T]]) -> _T:
        async with turns:
            return await call()

    return await asyncio.gather(*(result(call) for call in calls))


def _entry(name: bytes, sequence: bytes, value: bytes) -> CredentialEntry:
    version, _, content = value.partition(b" ")
    return CredentialEntry(name.decode(), int(version), int(float(sequence)), content)


def _view(packed: bytes | None, published: bytes | None, now: float, is_open: bool) -> EntitlementRecord:
    limit = _limits.decode(published) if published else NO_LIMIT
    if not packed:
        return EntitlementRecord(limit, limit.depth)
    return _records.decode(packed).as_of(now, limit, is_open)
