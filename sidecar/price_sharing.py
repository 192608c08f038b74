"""The exchange of learned prices with the other sidecars of a pool, through the lease store.

A new sidecar starts from the prices that the pool has learned. Each sidecar writes its own observations, and
reads those of the others. This runs beside the path of requests, in steps of at most 0.3 ms. ``Replication``
reports failures of the store. Without the store, a sidecar learns prices from its own requests only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, Metric

from sidecar.dialects.prefixes import KEY
from sidecar.pool_secret import PREFIX_HASHES, derived_key, read_secret
from sidecar.telemetry import Telemetry
from tokenpool.accounting.account import Account
from tokenpool.leases.wire import (
    WireError,
    decode_prices,
    decode_statistics,
    encode_prices,
    encode_statistics,
)
from tokenpool.pricing.statistics import EntitlementStatistics, PoolStatistics, Statement
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
"""Seconds between two writes of new observations."""
READ_EVERY_S = 60.0
"""Seconds between two reads after the first. They find prefixes that only other sidecars have seen."""
RETRY_S = 1.0
"""Seconds between two attempts of the first read."""
KEEP_S = 120.0
"""Seconds after which an idle sidecar writes again, so that the lease store keeps its record."""
MOST_BYTES = 64 * 1024
"""The most bytes that one sidecar writes: about 40 entitlements with ten templates each, or 300 without
templates. The entitlements whose requests ended last are kept."""
RESULTS = ("written", "read", "failed", "unreadable")


class PriceSharing:
    """One sidecar's exchange of prices."""

    def __init__(self, holder: str, store: Store, telemetry: Telemetry) -> None:
        self._holder = holder
        self._store = store
        self._telemetry = telemetry
        self._changes = telemetry.changes()
        self._accounts: Mapping[str, Account] = {}
        self._encoded: dict[str, bytes] = {}
        """The encoded statistics of entitlements, in the order of their last change."""
        self._has_news = False
        """Whether something was learned since the last write."""
        self._number = 0
        self._written_at = self._read_at = telemetry.clock()
        self.pool = PoolStatistics({})
        """The last statements of the other sidecars."""
        self.results: Counter[str] = Counter()
        """Exchanges by result, and unreadable records."""

    def follow(self, accounts: Mapping[str, Account]) -> None:
        """Use these accounts from now on."""
        self._accounts = accounts

    async def run(
        self,
        *,
        write_every_s: float = WRITE_EVERY_S,
        read_every_s: float = READ_EVERY_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """Read, then write and read at intervals, until cancelled."""
        while not await self._attempt_read():
            await asyncio.sleep(retry_s)
        while True:
            await asyncio.sleep(write_every_s)
            await self._attempt_write()
            if self._telemetry.clock() >= self._read_at + read_every_s:
                await self._attempt_read()

    async def _attempt_read(self) -> bool:
        try:
            await self.read()
        except StoreDown:
            self.results["failed"] += 1
            return False
        except Exception:
            log.critical("the prices of other sidecars could not be used", exc_info=True)
        return True

    async def _attempt_write(self) -> None:
        try:
            await self.write()
        except StoreDown:
            self.results["failed"] += 1
        except Exception:
            log.critical("the learned prices could not be shared", exc_info=True)

    async def read(self) -> None:
        """Read the prices of other sidecars. Estimates start from them, and own observations stay.

        Raises ``StoreDown``.
        """
        secret = await read_secret(self._store)
        stored = await self._store.prices()
        self._read_at = self._telemetry.clock()
        self.results["read"] += 1
        KEY.value = derived_key(secret, PREFIX_HASHES)
        statements: dict[str, Statement] = {}
        for holder, content in stored.items():
            await asyncio.sleep(0)
            try:
                if holder != self._holder:
                    statements[holder] = decode_prices(content)
            except WireError:
                self.results["unreadable"] += 1
        # A delayed write may have replaced a newer record, and an unreadable record a readable one.
        known = {h: each for h, each in self.pool.statements.items() if h in stored}
        self.pool = PoolStatistics(known).merged(PoolStatistics(statements))
        for name in self.pool.entitlements():
            await asyncio.sleep(0)
            account = self._accounts.get(name)
            if account is not None:
                await self._lend(account, self.pool.of(name))

    async def _lend(self, account: Account, contents: list[bytes]) -> None:
        """Start an account's prices from these encoded statistics."""
        parts: list[EntitlementStatistics] = []
        for content in contents:
            try:
                parts.append(decode_statistics(content))
            except WireError:
                self.results["unreadable"] += 1
        try:
            for _ in account.pricer.lend(parts):
                await asyncio.sleep(0)
        except (ValueError, OverflowError):
            self.results["unreadable"] += 1

    async def write(self) -> None:
        """Write the learned prices if they have changed. Raises ``StoreDown``."""
        now = self._telemetry.clock()
        await self._encode()
        if not self._encoded or (not self._has_news and now < self._written_at + KEEP_S):
            return
        self._number += 1
        await self._store.publish_prices(self._holder, encode_prices(Statement(self._number, self._encoded)))
        self._written_at, self._has_news = now, False
        self.results["written"] += 1

    async def _encode(self) -> None:
        """Encode what has changed, from the last change back, as long as all of it fits.

        What has not changed since the last write follows. So a pool of many active entitlements costs no
        more than one whose statistics just fit.
        """
        changed, before = self._changes.take(), self._encoded
        kept: dict[str, bytes] = {}
        size = 0
        unchanged = [name for name in reversed(before) if name not in changed]
        for name in itertools.chain(reversed(changed), unchanged):
            if name in changed:
                await asyncio.sleep(0)
                content = self._statistics(name)
            else:
                content = before[name]
            if content is None:
                continue
            size += len(name) + len(content) + 8
            if size > MOST_BYTES:
                break
            kept[name] = content
            self._has_news = self._has_news or name in changed
        self._encoded = dict(reversed(kept.items()))

    def _statistics(self, name: str) -> bytes | None:
        """The encoded statistics of one entitlement; ``None`` if it is gone, or nothing was learned."""
        account = self._accounts.get(name)
        if account is None:
            return None
        statistics = account.pricer.statistics()
        return encode_statistics(statistics) if statistics.targets else None

    def metrics(self) -> Iterator[Metric]:
        """The metrics of the exchange, for Prometheus."""
        exchanges = CounterMetricFamily(
            "tokenpool_price_exchanges",
            "Writes and reads of learned prices in the lease store, and records that could not be read.",
            labels=("result",),
        )
        for result in RESULTS:
            exchanges.add_metric((result,), self.results[result])
        yield exchanges
