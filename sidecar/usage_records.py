"""Usage records, where the pool file has them on. Otherwise nothing of them is loaded but their interface."""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from sidecar.configuration import Configuration
from sidecar.controller.settlement import Settlement
from sidecar.settings import Settings
from tokenpool.store import Store

if TYPE_CHECKING:
    from sidecar.usage.carrier import UsageCarrier

log = logging.getLogger(__name__)


class UsageRecords:
    """Follows the pool file in whether each settled request becomes a usage record."""

    def __init__(
        self,
        settings: Settings,
        store: Store | None,
        settlement: Settlement,
        clock: Callable[[], float],
        configuration: Configuration,
        workers: int = 1,
    ) -> None:
        """``workers`` share the folder and its size. Each has files of its own there."""
        self._spool_bytes = settings.usage_spool_bytes // workers
        self._settings = settings
        self._store = store
        self._settlement = settlement
        self._clock = clock
        self._is_started = False
        self.carrier: UsageCarrier | None = None
        """Carries the records; ``None`` until a pool file has them on."""
        self.follow(configuration)

    def follow(self, configuration: Configuration) -> None:
        """Use this pool file from now on. Requests that run keep what it was when they began."""
        is_on = configuration.pool.usage_records
        if is_on and self.carrier is None:
            self.carrier = self._made(configuration.pool.name)
        if self.carrier is not None:
            self.carrier.recorder.is_on = is_on
            self._settlement.usage = self.carrier.recorder
            if self._is_started:
                self.carrier.start()

    def _made(self, pool: str) -> UsageCarrier | None:
        from sidecar.usage.carrier import UsageCarrier  # noqa: PLC0415
        from sidecar.usage.recorder import UsageRecorder  # noqa: PLC0415
        from sidecar.usage.spool import Spool  # noqa: PLC0415
        from tokenpool.store.redis import RedisStore  # noqa: PLC0415
        from tokenpool.store.usage_stream import UsageStream  # noqa: PLC0415

        if not isinstance(self._store, RedisStore):
            log.warning("there are no usage records without a lease store", extra={"pool": pool})
            return None
        settings, process = self._settings, secrets.token_hex(8)
        recorder = UsageRecorder(process, settings.name or socket.gethostname(), self._clock, time.time)
        spool = Spool(settings.usage_spool / pool, self._spool_bytes, process)
        return UsageCarrier(recorder, spool, UsageStream(self._store), process, self._clock)

    def start(self) -> None:
        """Begin to carry. Needs the event loop."""
        self._is_started = True
        if self.carrier is not None:
            self.carrier.start()

    async def stop(self) -> None:
        """Write all records, and wait a bounded time until the usage store has them."""
        if self.carrier is not None:
            await self.carrier.stop()

    def degraded(self) -> list[str]:
        """Notices for the operator while requests are served."""
        return self.carrier.degraded() if self.carrier is not None else []

    def metrics(self) -> Iterable[Metric]:
        """The metrics of usage records, for Prometheus; none while they are off."""
        return self.carrier.metrics() if self.carrier is not None else ()
