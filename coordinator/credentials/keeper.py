"""Changes of issued credentials, and the loop that keeps the lease stores and the database in step.

A change is written to the lease store first, which orders the changes of all coordinators. Then it is written
to the database, and only then confirmed. Sidecars read the lease store. Every coordinator copies the changes
of the others to its own database. If a lease store has lost records, each coordinator restores its own: the
leader at once, the others after ``RESTORE_AFTER_S``. A record of a later version always wins.

Credentials that ended more than ``KEEP_ENDED_S`` ago are removed everywhere.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from coordinator.credentials.database import CredentialStore, DatabaseFailed, StoredCredential, Sums
from tokenpool.credentials import (
    KEEP_ENDED_S,
    PURGE_MARGIN_S,
    Change,
    CredentialRecord,
    CredentialState,
)
from tokenpool.leases.credential_feed import PAGE, CredentialPut, CredentialRemoval, FeedState
from tokenpool.leases.wire import WireError, decode_credential, encode_credential
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

FOLLOW_S = 0.25
"""Seconds between two reads of the feed."""
RESTORE_AFTER_S = 2.0
"""Seconds for which a lease store must lack records before a coordinator that does not lead restores its own.

The leader needs 3 to 11 s for 100,000 credentials. Two that restore the same do no harm."""
OWN_S = 10.0
"""Seconds for which a coordinator restores its own changes at once, if the lease store has lost records."""
RESTORE_AGAIN_S = 10.0
"""Seconds until a restoration that did not help is repeated."""
PURGE_EVERY_S = 3600.0
"""Seconds between two removals of credentials that ended long ago."""
MOST_ATTEMPTS = 5
"""The times that a change is tried, if other changes of the same credential are faster."""


class Led(Protocol):
    """The part of a pool's leader that is needed here."""

    @property
    def store(self) -> Store:
        """The lease store of the pool."""

    @property
    def epoch(self) -> int:
        """0 if this coordinator does not lead the pool."""

    def has(self, entitlement: str) -> bool:
        """Whether the pool has this entitlement."""


class ChangeRefused(Exception):
    """A change that is not possible. The text names the credential and the next step."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        """The HTTP status: 404, 409 or 422."""
        super().__init__(text)


class PoolFeed:
    """The copy of one pool's feed in the database."""

    def __init__(
        self,
        pool: str,
        database: CredentialStore,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._database = database
        self._clock = clock
        self._wall_clock = wall_clock
        self._purge_at = -math.inf
        self._generation = self._sequence = 0
        self._sums: Sums | None = None
        self._differs_since: float | None = None
        """The time since which the lease store and the database have different records."""
        self._restored_at = -math.inf
        self._own: dict[str, tuple[float, StoredCredential]] = {}
        """The last changes that this coordinator made itself, by id, with their times."""
        self._reading = asyncio.Lock()
        self.state = FeedState()
        self.restored = 0
        """Records that were restored to the lease store."""
        self.purged = 0
        """Records that this coordinator removed, because they ended long ago."""
        self.problem = ""
        """The reason why both are not in step; empty if they are."""

    async def follow(self, led: Led) -> None:
        """Copy what changed, and restore what is lost. Raises ``StoreDown`` and ``DatabaseFailed``."""
        async with self._reading:
            now = self._clock()
            is_purge_due = now >= self._purge_at
            if is_purge_due:
                await self._check_age(led.store)
            await self._read(led.store)
            if is_purge_due:
                self._purge_at = now + PURGE_EVERY_S
                if await self._purge(led.store, KEEP_ENDED_S):
                    await self._read(led.store)
            await self._compare(led)

    async def changed(self, stored: StoredCredential) -> None:
        """This coordinator has changed a credential. Raises ``DatabaseFailed``."""
        now = self._clock()
        self._own = {name: each for name, each in self._own.items() if each[0] > now - OWN_S}
        self._own[stored.record.id] = now, stored
        await self.write([stored])

    async def write(self, stored: Sequence[StoredCredential]) -> None:
        """Write credentials of the pool to the database. Raises ``DatabaseFailed``."""
        self._sums = None
        await self._database.write(stored)
        self._sums = None  # they may have been read during the write

    async def _read(self, store: Store) -> None:
        while True:
            after = self._sequence
            page = await store.credentials(after)
            self.state = state = page.state
            if not state.generation:
                self._generation = self._sequence = 0
                return
            if state.generation != self._generation or state.sequence < after:
                self._generation, self._sequence = state.generation, 0
                if after:
                    continue
            if page.entries:
                await self.write(
                    [
                        StoredCredential(self._pool, entry.version, decode_credential(entry.content))
                        for entry in page.entries
                    ]
                )
                self._sequence = page.entries[-1].sequence
            if len(page.entries) < PAGE:
                return

    async def _check_age(self, store: Store) -> None:
        """Discard a copy that was away for longer than ended credentials are kept.

        It may have a key as active that was revoked and forgotten meanwhile. Without a copy in the lease
        store it is the only one, and stays.
        """
        now = self._wall_clock()
        followed_at = await self._database.follow(self._pool, now)
        if followed_at is None or now - followed_at < KEEP_ENDED_S - PURGE_MARGIN_S:
            return
        if (await store.credentials(self._sequence)).state.generation:
            await self._database.discard(self._pool)
            self._sums, self._sequence = None, 0
            log.warning(
                "the copy of the credentials was not followed for too long; the lease store's replaces it",
                extra={"pool": self._pool, "days": round((now - followed_at) / 86400)},
            )

    async def _purge(self, store: Store, kept_s: float) -> bool:
        """Remove what ended more than ``kept_s`` ago, everywhere. Returns whether there was anything."""
        before, found = self._wall_clock() - kept_s, False
        while rows := await self._database.ended(self._pool, before, PAGE):
            await store.remove_credentials([CredentialRemoval(each.record.id, each.version) for each in rows])
            self._sums = None
            await self._database.remove(rows)
            self._sums = None
            self.purged += len(rows)
            found = True
        return found

    async def _is_in_step(self) -> bool:
        """Whether the lease store and the database have the same records, by their sums."""
        there = Sums(self.state.records, self.state.check)
        if self._sums != there:
            self._sums = await self._database.sums(self._pool)  # another process may share the database
        if self._sums == there:
            self.problem = ""
            return True
        self.problem = (
            f"the lease store has {there.records} credentials of pool {self._pool!r}, and the database"
            f" {self._sums.records}, or other versions"
        )
        return False

    async def _compare(self, led: Led) -> None:
        """Restore the database's records, if the lease store has others."""
        in_step = await self._is_in_step()
        # Another coordinator may have removed records that this one would remove within the hour.
        if (
            not in_step
            and self._differs_since is None
            and await self._purge(led.store, KEEP_ENDED_S - PURGE_MARGIN_S)
        ):
            await self._read(led.store)
            in_step = await self._is_in_step()
        if in_step:
            self._differs_since = None
            return
        now = self._clock()
        if self._differs_since is None:
            self._differs_since = now
        # No other coordinator may have its last changes yet. One of them may be a revocation.
        await self._put(led.store, [each for at, each in self._own.values() if at > now - OWN_S])
        waited_s = 0.0 if led.epoch else RESTORE_AFTER_S
        if now - self._differs_since >= waited_s and now - self._restored_at >= RESTORE_AGAIN_S:
            await self._restore(led.store)
            self._restored_at = self._clock()
            self._sequence = 0  # if it did not help, the database lacks records

    async def _restore(self, store: Store) -> None:
        after, restored = "", 0
        while rows := await self._database.page(after, PAGE, pool=self._pool):
            restored += await self._put(store, rows)
            after = rows[-1].record.id
        self.restored += restored
        if restored:
            log.warning(
                "credentials were restored to the lease store", extra={"pool": self._pool, "count": restored}
            )

    @staticmethod
    async def _put(store: Store, stored: Sequence[StoredCredential]) -> int:
        """Restore these records to the lease store. Returns the number of those that it lacked."""
        puts = [
            CredentialPut(each.record.id, encode_credential(each.record), version=each.version)
            for each in stored
        ]
        return sum(1 for version in await store.put_credentials(puts) if version)


class Keeper:
    """Changes credentials, and follows the feeds of all pools. Times are in seconds of Unix time."""

    def __init__(
        self,
        leaders: Callable[[], Mapping[str, Led]],
        database: CredentialStore,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        """``clock`` is monotonic. ``wall_clock`` is in seconds of Unix time."""
        self._leaders = leaders
        self.database = database
        self._clock = clock
        self.wall_clock = wall_clock
        self._feeds: dict[str, PoolFeed] = {}
        self.changes: Counter[str] = Counter()
        """Confirmed changes by kind."""
        self._problems: dict[str, str] = {}

    # --- the loop ---

    async def run(self) -> None:
        """Follow the feeds until cancelled."""
        while True:
            # In tasks of their own: the client library may lose a cancellation while it connects.
            async with asyncio.TaskGroup() as group:
                for pool in self._leaders():
                    group.create_task(self.follow(pool))
            await asyncio.sleep(FOLLOW_S)

    async def follow(self, pool: str) -> None:
        """Copy what changed in one pool, and restore what is lost. A failure is reported by ``problems``."""
        try:
            await self._feed(pool).follow(self._leaders()[pool])
        except StoreDown:
            return  # reported by the ticks
        except (DatabaseFailed, WireError) as error:
            problem = f"the credentials of pool {pool!r} are not in step: {error}"
        except Exception as error:
            problem = f"following the credentials of pool {pool!r} failed: {error!r}"
        else:
            self._problems.pop(pool, None)
            return
        if self._problems.get(pool) != problem:
            log.error(problem)
        self._problems[pool] = problem

    def _feed(self, pool: str) -> PoolFeed:
        return self._feeds.setdefault(pool, PoolFeed(pool, self.database, self._clock, self.wall_clock))

    def problems(self) -> list[str]:
        """The reasons why the database and a lease store are not in step."""
        return [*self._problems.values(), *(feed.problem for feed in self._feeds.values() if feed.problem)]

    # --- changes ---

    async def issue(self, record: CredentialRecord) -> tuple[StoredCredential, bool]:
        """Issue a credential. Returns it, and whether it is new.

        The same request a second time returns the first result. Raises ``ChangeRefused``, ``StoreDown`` and
        ``DatabaseFailed``.
        """
        pool = self._pool_of(record.entitlement)
        known = await self._same(record)
        if known is not None:
            return known, False
        stored = await self._write(pool, record)
        self._confirmed(stored)
        return stored, True

    async def rotate(
        self, name: str, successor: CredentialRecord, overlap_s: float
    ) -> tuple[StoredCredential, bool]:
        """Issue a credential that replaces another one, which ends after ``overlap_s`` seconds.

        Returns as ``issue``, and raises the same.
        """
        pool = self._pool_of(successor.entitlement)
        known = await self._same(successor)
        if known is not None:
            # The first request may have failed between its two changes.
            old = await self.get(name)
            is_active = old.record.state(self.wall_clock()) is CredentialState.ACTIVE
            if is_active and old.record.change is not Change.ROTATED:
                self._confirmed(await self._write_ended(name, successor, overlap_s))
            return known, False
        await self._write_ended(name, successor, overlap_s, dry=True)
        stored = await self._write(pool, successor)
        self._confirmed(stored)
        self._confirmed(await self._write_ended(name, successor, overlap_s))
        return stored, True

    async def _write_ended(
        self, name: str, successor: CredentialRecord, overlap_s: float, *, dry: bool = False
    ) -> StoredCredential:
        """End the credential that is rotated out. With ``dry``, only check that this is possible."""

        def change(record: CredentialRecord) -> CredentialRecord:
            state = record.state(self.wall_clock())
            if state is not CredentialState.ACTIVE:
                raise ChangeRefused(409, f"the credential {name!r} is {state}; issue a new one")
            return record.rotated_out(overlap_s, successor.changed_at, successor.changed_by)

        if dry:
            found = await self.get(name)
            change(found.record)
            return found
        return (await self._change(name, change))[0]

    async def revoke(self, name: str, by: str) -> StoredCredential:
        """Revoke a credential. A second time changes nothing. Raises as ``issue``."""
        now = self.wall_clock()

        def change(record: CredentialRecord) -> CredentialRecord:
            return record if record.revoked_at is not None else record.revoked(now, by)

        stored, has_changed = await self._change(name, change)
        if has_changed:
            self._confirmed(stored)
        return stored

    async def get(self, name: str) -> StoredCredential:
        """A credential. Raises ``ChangeRefused`` if there is none."""
        found = await self.database.get(name)
        if found is None:
            # Another coordinator may have issued it in the last moments.
            for pool, led in list(self._leaders().items()):
                await self._feed(pool).follow(led)
            found = await self.database.get(name)
        if found is None:
            raise ChangeRefused(404, f"there is no credential {name!r}")
        return found

    def _pool_of(self, entitlement: str) -> str:
        for pool, led in self._leaders().items():
            if led.has(entitlement):
                return pool
        raise ChangeRefused(422, f"there is no entitlement {entitlement!r} in the pool file in force")

    async def _same(self, record: CredentialRecord) -> StoredCredential | None:
        """The credential that this record would issue a second time; ``None`` if it is new."""
        known = await self.database.get(record.id)
        if known is not None:
            if known.record.is_for_same_key(record):
                return known
            raise ChangeRefused(409, f"there is another credential {record.id!r}; choose another id")
        other = await self.database.of_digest(record.digest)
        if other is not None:
            raise ChangeRefused(409, f"the credential {other.record.id!r} has the same key; make another key")
        return None

    async def _change(
        self, name: str, change: Callable[[CredentialRecord], CredentialRecord]
    ) -> tuple[StoredCredential, bool]:
        """Change a credential, whichever coordinator changes it at the same time.

        Returns it, and whether it has changed.
        """
        for _ in range(MOST_ATTEMPTS):
            before = await self.get(name)
            after = change(before.record)
            if after is before.record:
                return before, False
            led = self._leaders().get(before.pool)
            if led is None:
                raise ChangeRefused(409, f"this coordinator does not lead the pool {before.pool!r}")
            put = CredentialPut(name, encode_credential(after), expected=before.version)
            [version] = await led.store.put_credentials([put])
            if version:
                return await self._stored(before.pool, version, after), True
            await self._feed(before.pool).follow(led)
        raise ChangeRefused(409, f"the credential {name!r} changes too often; try again")

    async def _write(self, pool: str, record: CredentialRecord) -> StoredCredential:
        led = self._leaders()[pool]
        [version] = await led.store.put_credentials([CredentialPut(record.id, encode_credential(record))])
        if not version:
            await self._feed(pool).follow(led)
            known = await self.database.get(record.id)
            if known is not None and known.record.is_for_same_key(record):
                return known
            raise ChangeRefused(409, f"there is another credential {record.id!r}; choose another id")
        return await self._stored(pool, version, record)

    async def _stored(self, pool: str, version: int, record: CredentialRecord) -> StoredCredential:
        stored = StoredCredential(pool, version, record)
        await self._feed(pool).changed(stored)
        return stored

    def _confirmed(self, stored: StoredCredential) -> None:
        record = stored.record
        self.changes[record.change.value] += 1
        log.info(
            "a credential was changed",
            extra={
                "change": record.change.value,
                "credential": record.id,
                "entitlement": record.entitlement,
                "pool": stored.pool,
                "administrator": record.changed_by,
                "version": stored.version,
            },
        )

    # --- metrics ---

    def metrics(self) -> Iterator[Metric]:
        """The changes, and whether the copies are in step, for Prometheus."""
        changes = CounterMetricFamily(
            "tokenpool_credential_changes",
            "Changes of issued credentials that this coordinator confirmed.",
            labels=("change",),
        )
        for change in ("issued", "rotated", "revoked"):
            changes.add_metric((change,), self.changes[change])
        count = GaugeMetricFamily(
            "tokenpool_credential_records",
            "Credentials in the lease store, revoked ones included.",
            labels=("pool",),
        )
        in_step = GaugeMetricFamily(
            "tokenpool_credential_records_in_step",
            "Whether the lease store and the database have the same credentials.",
            labels=("pool",),
        )
        restored = CounterMetricFamily(
            "tokenpool_credential_records_restored",
            "Credentials that this coordinator restored to the lease store.",
            labels=("pool",),
        )
        purged = CounterMetricFamily(
            "tokenpool_credential_records_purged",
            "Credentials that this coordinator removed, because they ended long ago.",
            labels=("pool",),
        )
        for pool in self._leaders():
            feed = self._feed(pool)
            count.add_metric((pool,), feed.state.records)
            in_step.add_metric((pool,), float(not feed.problem and pool not in self._problems))
            restored.add_metric((pool,), feed.restored)
            purged.add_metric((pool,), feed.purged)
        yield from (changes, count, in_step, restored, purged)
