"""The issued credentials of the pool at this sidecar, kept in step with the lease store.

Operators issue, rotate and revoke keys at a coordinator. The lease store notifies each sidecar, and every
answer of the store has the state of the feed, too. So a lost notification delays a change by one interval.
The sidecar reads only what changed. Where no credential was ever issued, nothing is read.

A lease store that is away or empty changes nothing: the last known credentials stay in force. So a revoked
key stays revoked, and a new sidecar knows no issued key until the store answers.

Credentials that ended long ago are forgotten. Coordinators remove them from the lease store.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice

from prometheus_client.core import GaugeMetricFamily, Metric

from sidecar.identity import Credential
from tokenpool.credentials import KEEP_ENDED_S, PURGE_MARGIN_S
from tokenpool.leases.credential_feed import PAGE, CredentialEntry, FeedState
from tokenpool.leases.wire import WireError, decode_credential
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

PER_STEP = 50
"""Credentials that are applied in one step: about 0.1 ms."""
PER_SWEEP = 1000
"""Credentials that are looked at in one step of a sweep: about 0.1 ms."""
PAUSE_S = 0.1
"""Seconds between two reads: 50 changes in a second cost a sidecar 10 reads."""


class IssuedKeys:
    """The issued credentials that this sidecar accepts, by the digest of their key.

    They are in one dict. Python's hash of bytes has a random key in each process. So the duration of a
    look-up reveals nothing about a digest.
    """

    def __init__(self, store: Store, wall_clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wall_clock = wall_clock
        self._by_digest: dict[bytes, Credential] = {}
        self._revoked: dict[bytes, float] = {}
        """The digests of revoked keys, with the times of revocation. After a loss, a coordinator may first
        restore an older record."""
        self._generation = self._sequence = 0
        self._announced = ""
        """The state of the feed in the last answer of the lease store."""
        self._read_up_to = ""
        """The state that was read last."""
        self._unreadable: set[str] = set()
        """The ids of credentials that this version cannot decode. They are refused."""
        self.news = asyncio.Event()
        """Whether the feed should be read now."""

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, key: bytes) -> Credential | None:
        """The credential of a key, or ``None``. It may have expired."""
        return self._by_digest.get(hashlib.sha256(key).digest()) if self._by_digest else None

    def announced(self, state: str) -> None:
        """An answer of the lease store has this state of the feed."""
        self._announced = state
        if state and state != self._read_up_to:
            self.news.set()

    async def run(self) -> None:
        """Read the feed at each change, until cancelled."""
        while True:
            await self.news.wait()
            self.news.clear()
            # In a task of its own: the client library may lose a cancellation while it connects.
            async with asyncio.TaskGroup() as group:
                group.create_task(self._try_to_read())
            await asyncio.sleep(PAUSE_S)

    async def _try_to_read(self) -> None:
        try:
            await self.read()
        except StoreDown:
            self.news.set()  # reported by the messages
        except Exception:
            log.critical("reading the issued credentials failed", exc_info=True)

    async def read(self) -> None:
        """Read the credentials that changed, in pages. Raises ``StoreDown``."""
        while True:
            after = self._sequence
            page = await self._store.credentials(after)
            generation, sequence, *_ = page.state
            if not generation:
                return  # the store has lost them; a coordinator restores them
            if generation != self._generation or sequence < after:
                self._generation, self._sequence = generation, 0
                if after:
                    continue
            for number, entry in enumerate(page.entries, 1):
                self._apply(entry)
                self._sequence = entry.sequence
                if number % PER_STEP == 0:
                    await asyncio.sleep(0)
            if len(page.entries) < PAGE:
                self._read_up_to = str(page.state)
                if len(self._by_digest) + len(self._revoked) > page.state.records:
                    await self._forget_ended()
                return

    async def _forget_ended(self) -> None:
        """Forget credentials that ended long ago, as the coordinators do."""
        before = self._wall_clock() - KEEP_ENDED_S + PURGE_MARGIN_S
        ended: list[bytes] = []
        known = iter(self._by_digest.items())  # only the reader changes it
        while part := list(islice(known, PER_SWEEP)):
            ended += [digest for digest, each in part if each.ends_at < before]
            await asyncio.sleep(0)
        for digest in ended:
            del self._by_digest[digest]
        for digest in [digest for digest, at in self._revoked.items() if at < before]:
            del self._revoked[digest]

    def _apply(self, entry: CredentialEntry) -> None:
        try:
            record = decode_credential(entry.content)
        except WireError as error:
            if entry.id not in self._unreadable:
                self._unreadable.add(entry.id)
                log.error("an issued credential is refused here: %s", error, extra={"credential": entry.id})
            return
        known = self._by_digest.get(record.digest)
        if known is not None and known.id != record.id:
            log.error(
                "two issued credentials have the same key; the first one stays in force",
                extra={"credential": record.id, "first": known.id},
            )
            return
        if record.revoked_at is not None:
            self._revoked[record.digest] = record.revoked_at
            if known is not None:
                known.ends_at = -math.inf  # requests with a cached head see this
                del self._by_digest[record.digest]
            return
        if record.digest in self._revoked:
            return
        ends_at = math.inf if record.expires_at is None else record.expires_at
        if known is not None:
            known.ends_at, known.concurrency = ends_at, record.concurrency or 0
            known.quotas = record.quotas
            return
        # Many credentials have the same entitlement: its name is stored once.
        name = sys.intern(record.entitlement)
        self._by_digest[record.digest] = Credential(
            name, record.id, ends_at, record.concurrency or 0, quotas=record.quotas
        )

    def problems(self) -> list[str]:
        """The reason why a request with an issued key cannot be served yet."""
        if self._announced and not self._read_up_to:
            total = FeedState.parse(self._announced).records
            return [f"the issued credentials are being read: {len(self._by_digest)} of about {total}"]
        return []

    def metrics(self) -> Iterator[Metric]:
        """The number of issued credentials, for Prometheus."""
        yield GaugeMetricFamily(
            "tokenpool_issued_credentials",
            "Issued credentials that this sidecar knows, without the revoked ones.",
            value=float(len(self._by_digest)),
        )
        yield GaugeMetricFamily(
            "tokenpool_issued_credentials_current",
            "Whether this sidecar has read the last change of the issued credentials.",
            value=float(self._read_up_to == self._announced or not self._announced),
        )
