"""Replication: carries a sidecar's messages to the lease store, and its answers back.

What is said and what it means is ``tokenpool.leases.leases``'s; here are the clock, the loops and the
failures. No request waits here for anything but the answer to a message, and never longer than its own
patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.configuration import Configuration, ConfigurationInvalid, published
from sidecar.controller.controller import Controller
from sidecar.engine.watcher import EngineWatcher
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry
from tokenpool.amounts import NOTHING
from tokenpool.leases.leases import MOST_UNDER_WAY, Leases, LeaseSettings, Mode
from tokenpool.leases.reference_store import RECLAIM, Answer, Message, Push
from tokenpool.leases.wire import (
    MOST_REPORTED,
    REPORTED_OUTCOMES,
    SidecarReport,
    encode_report,
)
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

FirstTokens = tuple[float, tuple[int, ...]]
"""As ``SidecarReport`` has them."""

UNLED_S = 5.0
"""After so long without new limits somebody should look after the coordinators."""
FAREWELL_S = 1.0
"""How long the last message may take."""
READ_EVERY_S = 2.0
"""How often all limits are read: what shares are made of, should the lease store fails."""
LONGEST_RETRY_S = 60.0
"""A published pool file that cannot be enforced here is read again after 2 s, then ever later."""
COUNT_EVERY_S = 0.5
"""How often outcomes are counted for the reports: as often as a page looks at them."""


class OutcomeTotals:
    """The outcomes that reports carry: not zero, and of too many entitlements those that changed last.

    Only entitlements that were active since are looked at.
    """

    def __init__(self, most: int = MOST_REPORTED) -> None:
        self._most = most
        self._totals: dict[str, Mapping[str, int]] = {}
        """What changed last comes last."""

    def follow(
        self, outcomes: Mapping[str, Mapping[str, int]], known: Container[str]
    ) -> Mapping[str, Mapping[str, int]]:
        """What to report, now that the counts of some entitlements may have changed.

        An entitlement that is no longer ``known`` is forgotten.
        """
        for name in [name for name in self._totals if name not in known]:
            del self._totals[name]
        for name, counts in outcomes.items():
            worth = {outcome: n for outcome, n in counts.items() if n and outcome in REPORTED_OUTCOMES}
            if worth and self._totals.get(name) != worth:
                self._totals.pop(name, None)
                self._totals[name] = worth
        return dict(list(self._totals.items())[-self._most :])


FIRST_TOKENS_STAY_S = 3.0
"""So long changed times to first token are reported: a coordinator that follows reads every two seconds."""


class FirstTokenTotals:
    """The times to first token that reports carry: those that changed lately."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[FirstTokens, float]] = {}
        """Those that are reported, and since when."""

    def follow(self, totals: Mapping[str, FirstTokens], now: float) -> Mapping[str, FirstTokens]:
        """What to report, now that the totals of some entitlements may have changed."""
        for name, total in totals.items():
            before = self._known.get(name)
            if total[0] and (before is None or before[0] != total):
                self._known[name] = (total, now)
        self._known = {
            name: (total, at) for name, (total, at) in self._known.items() if now - at < FIRST_TOKENS_STAY_S
        }
        return {name: total for name, (total, _) in self._known.items()}


class Replication:
    """One sidecar's line to the lease store."""

    def __init__(
        self,
        settings: Settings,
        controller: Controller,
        telemetry: Telemetry,
        watcher: EngineWatcher,
        store: Store,
        own: Configuration,
        prepare: Callable[[Configuration], Iterator[None]],
        enforce: Callable[[Configuration], None],
    ) -> None:
        self._settings = settings
        self._controller = controller
        self._telemetry = telemetry
        self._watcher = watcher
        self._store = store
        self._prepare = prepare
        """Makes what a pool file needs before it is enforced, in steps that each take a moment."""
        self._enforce = enforce
        self._own = own
        self._own_version = own.version
        self._heard_version = ""
        """Of the published pool file, by the last answer."""
        self.file_version = ""
        """Of the published pool file in force here; empty while this sidecar's own is."""
        self._retry_at = self._retry_in_s = 0.0
        self._refused_version = ""
        """Of a published pool file that cannot be enforced here; it is tried again and again."""
        self._in_force = self._own_version
        name = settings.name or socket.gethostname()
        # A process that starts again is another holder: what its predecessor held has to expire.
        holder = f"{name}-{os.getpid()}-{secrets.token_hex(4)}"
        self.leases = Leases(
            holder,
            LeaseSettings(settings.lease_lifetime, settings.tick),
            controller.pool.max_replicas,
        )
        self.leases.follow(controller.accounts, telemetry.clock())
        controller.leases = self.leases
        controller.on_message_due = self.speak_soon
        telemetry.more.append(self.metrics)
        telemetry.shows_leases = lambda: self.leases.mode is Mode.JOINED
        self.calls: Counter[str] = Counter()
        """Messages to the lease store, by how they ended."""
        self.last_error = ""
        self._is_down = False
        self._look_timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf
        self._calls: set[asyncio.Task[None]] = set()
        """Messages in flight."""
        self._read_now = asyncio.Event()
        self._changes = telemetry.changes()
        self._totals = OutcomeTotals()
        self._counted: Mapping[str, Mapping[str, int]] = {}
        self._counted_at = -math.inf
        self._firsts = FirstTokenTotals()
        self._first_tokens: Mapping[str, FirstTokens] = {}

    # --- what others ask ---

    def problems(self) -> list[str]:
        """Why limits are not to be relied on yet."""
        if self.leases.answered_at is None and not self.leases.failures:
            return ["the lease store has not answered yet"]
        return []

    def degraded(self) -> list[str]:
        """What is not as it should be, though requests are served."""
        found = []
        if self.leases.failures:
            found.append(f"the lease store does not answer: {self.last_error}")
        if self.leases.mode is not Mode.JOINED:
            found.append(f"limits are decided from shares, not from the lease store ({self.leases.mode})")
        if not self.leases.has_limits:
            found.append("no coordinator has published limits yet")
        if self.leases.unled_s > UNLED_S and not self.leases.failures:
            found.append("no coordinator leads: the last limits stand, and nobody recomputes them")
        if self._refused_version:
            found.append("the published pool file cannot be enforced here; the old one is in force")
        if self._telemetry.config_differs:
            found.append("this sidecar's own pool file differs from the one that the coordinator leads with")
        return found

    def metrics(self) -> Iterator[Metric]:
        """How this sidecar stands with the lease store, for Prometheus."""
        leases = self.leases
        mode = GaugeMetricFamily("tokenpool_store_mode", "1 for how limits are decided.", labels=("mode",))
        for each in Mode:
            mode.add_metric((each.value,), float(each is leases.mode))
        calls = CounterMetricFamily(
            "tokenpool_store_calls", "Messages to the lease store.", labels=("result",)
        )
        for result in ("answered", "failed"):
            calls.add_metric((result,), self.calls[result])
        yield from (mode, calls)
        yield CounterMetricFamily(
            "tokenpool_lease_waits", "Requests that waited for a larger lease.", value=leases.lease_waits
        )
        yield CounterMetricFamily(
            "tokenpool_lease_wait_seconds", "... and for how long, all together.", value=leases.lease_waited_s
        )
        for name, text, value in (
            ("tokenpool_store_up", "Whether the lease store answers.", not leases.failures),
            ("tokenpool_store_round_trip_seconds", "Of the last message.", leases.round_trip_s),
            ("tokenpool_store_sidecars", "Sidecars that the lease store knows.", leases.sidecars),
            ("tokenpool_store_unled_seconds", "Since a coordinator published limits.", leases.unled_s),
            (
                "tokenpool_config_refused",
                "Whether a pool file is published that cannot be enforced here.",
                bool(self._refused_version),
            ),
            (
                "tokenpool_config_differs",
                "Whether this sidecar's own pool file is not the published one in force.",
                self._telemetry.config_differs,
            ),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))

    # --- pool files ---

    def own_file(self, configuration: Configuration) -> None:
        """This sidecar's own file was read anew: it counts only until one is published."""
        self._own, self._own_version = configuration, configuration.version
        if not self.file_version:
            self._enforce(configuration)
            self._in_force = self._own_version
        else:
            # A key file may have changed, and the published file may name it.
            self._in_force, self._retry_at = "", 0.0
            self._read_now.set()
        self._compare()

    def _compare(self) -> None:
        differs = bool(self.file_version) and self.file_version != self._own_version
        if differs and not self._telemetry.config_differs:
            log.warning(
                "this sidecar's own pool file differs from the published one, which is in force",
                extra={"own": self._own_version, "published": self.file_version},
            )
        self._telemetry.config_differs = differs

    async def _read_file(self) -> None:
        """Put the published pool file in force."""
        if self._heard_version == self.file_version == self._in_force:
            return  # the content is long: it is fetched only where it is another one
        now = self._telemetry.clock()
        if self._refused_version and self._heard_version == self._refused_version and now < self._retry_at:
            return
        found = await self._store.file()
        if found is None or found[0] == self.file_version == self._in_force:
            return
        version, content = found
        try:
            # Most often it is the very file that lies here, too.
            configuration = (
                self._own
                if version == self._own_version
                else await published(content, self._settings, self._controller.pool.name)
            )
        except ConfigurationInvalid as error:
            if version != self._refused_version:
                log.error("the published pool file cannot be enforced here; the old one stays: %s", error)
                self._telemetry.reloads["invalid"] += 1
                self._retry_in_s = READ_EVERY_S
            self._refused_version = version
            self._retry_at = now + self._retry_in_s
            self._retry_in_s = min(self._retry_in_s * 2, LONGEST_RETRY_S)
            return
        self.file_version, self._refused_version = version, ""
        if version != self._in_force:
            for _ in self._prepare(configuration):
                await asyncio.sleep(0)
            self._enforce(configuration)
            self._in_force = version
            self._telemetry.reloads["ok"] += 1
        log.info("the published pool file is in force", extra={"version": version})
        self._compare()

    # --- loops ---

    async def run(self) -> None:
        """Speak, listen and read until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._speak_forever())
            group.create_task(self._listen_forever())
            group.create_task(self._read_forever())

    async def _speak_forever(self) -> None:
        clock, interval = self._telemetry.clock, self._settings.tick
        # Known before the first answer, limits spare a newcomer a time of living on shares.
        await self._read_limits()
        while True:
            started = clock()
            try:
                for _ in self.leases.tick_steps(started):
                    await asyncio.sleep(0)
                active = self._controller.ledger.active
                for account in [each for each in active if each.entitlement.name not in self.leases.active]:
                    active.retire(account)
            except Exception:
                # A defect must not silence this sidecar for good: the next interval tries again.
                log.critical("looking at what is active failed", exc_info=True)
            self._send_all()
            await asyncio.sleep(max(interval - (clock() - started), 0.001))

    def speak_soon(self) -> None:
        """A message should be sent at once."""
        self._look_in_time()
        self._send_all()

    def _send_all(self) -> None:
        """Send every message that is due, each in a task of its own: none waits for another's answer."""
        try:
            while (message := self.leases.next_message(self._telemetry.clock(), self._report)) is not None:
                task = asyncio.get_running_loop().create_task(self._carry(message))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
        except Exception:
            # A defect must not silence this sidecar for good: the next interval tries again.
            log.critical("a message to the lease store could not be made", exc_info=True)

    async def _carry(self, message: Message) -> None:
        """Bring one message to the lease store, and their answer back."""
        try:
            answer = await self._store.exchange(message)
        except StoreDown as error:
            self._failed(message, error)
        except BaseException:
            # Cancelled, or a defect: requests that wait are decided with what is held.
            self.leases.failed(message, self._telemetry.clock())
            raise
        else:
            self._answered(message, answer)
        self._look_in_time()
        self._send_all()

    def _answered(self, message: Message, answer: Answer) -> None:
        self.leases.answered(message, answer, self._telemetry.clock())
        self.calls["answered"] += 1
        self._recovered()
        self._heard_version = answer.file_version or self._heard_version
        if answer.file_version not in ("", self.file_version, self._refused_version):
            self._read_now.set()

    def _failed(self, message: Message, error: StoreDown) -> None:
        self.calls["failed"] += 1
        self.last_error = str(error)
        self.leases.failed(message, self._telemetry.clock())
        if not self._is_down:
            self._is_down = True
            log.warning(
                "the lease store does not answer; going on with what is held", extra={"error": str(error)}
            )

    def _recovered(self) -> None:
        if self._is_down:
            self._is_down = False
            log.info("the lease store answers again")

    def _report(self) -> bytes:
        """What the coordinator should know of this sidecar."""
        engine, seen, controller = self._controller.engine, self._watcher.status.seen, self._controller
        amount = self._watcher.capacity.amount() if self._watcher.capacity.is_known else NOTHING
        serves = engine.is_up and not controller.is_draining
        return encode_report(
            SidecarReport(
                capacity=amount if serves else NOTHING,
                replica=amount,
                engine_up=engine.is_up,
                running=seen.running if seen else 0.0,
                waiting=seen.waiting if seen else 0.0,
                kv_usage=seen.kv_usage if seen else 0.0,
                mode=self.leases.mode.value,
                file_version=self.file_version or self._own_version,
                draining=controller.is_draining,
                outcomes=self._outcomes(),
                first_tokens=self._first_tokens,
            )
        )

    def _outcomes(self) -> Mapping[str, Mapping[str, int]]:
        """How requests ended so far; what changed is counted anew now and then."""
        telemetry, now = self._telemetry, self._telemetry.clock()
        if now - self._counted_at >= COUNT_EVERY_S:
            self._counted_at = now
            accounts = self._controller.accounts
            changed = [name for name in self._changes.take() if name in accounts]
            self._counted = self._totals.follow({n: telemetry.outcomes(n) for n in changed}, accounts)
            self._first_tokens = self._firsts.follow({n: telemetry.first_tokens(n) for n in changed}, now)
        return self._counted

    async def _listen_forever(self) -> None:
        """Act on what the lease store pushes. Without pushes everything works, a little later."""
        while True:
            try:
                async for push in self._store.listen(self.leases.holder):
                    self._pushed(push)
            except StoreDown:
                pass  # said by whoever speaks
            except Exception:
                log.critical("listening to the lease store failed", exc_info=True)
            await asyncio.sleep(self._settings.tick)

    def _pushed(self, push: Push) -> None:
        if push.kind == RECLAIM:
            wanted = self.leases.reclaimed(push.entitlement, self._telemetry.clock())
        else:
            wanted = self.leases.freed(push.entitlement)
        if wanted:
            self.speak_soon()

    async def _read_forever(self) -> None:
        """Read all limits now and then, and the pool file when another one is published."""
        while True:
            await self._read_limits()
            try:
                await self._read_file()
            except StoreDown:
                pass  # said by whoever speaks
            except Exception:
                log.critical("reading the published pool file failed", exc_info=True)
            wait = READ_EVERY_S if self.leases.has_limits else self._settings.tick
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._read_now.wait(), wait)
            self._read_now.clear()

    async def _read_limits(self) -> None:
        try:
            await self._store.connect(MOST_UNDER_WAY)
            self.leases.learn(*await self._store.limits(), self._telemetry.clock())
        except StoreDown:
            pass  # said by whoever speaks
        except Exception:
            log.critical("reading the limits failed", exc_info=True)

    # --- those who wait ---

    def _look_in_time(self) -> None:
        """Have the requests that wait looked at when the first one's time is up."""
        at = self.leases.looks_at()
        if at >= self._looks_at:
            return
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._looks_at = at
        delay = max(at - self._telemetry.clock(), 0.0)
        self._look_timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        self._look_timer, self._looks_at = None, math.inf
        self.leases.look(self._telemetry.clock())
        if self.leases.has_something_to_say:
            self.speak_soon()
        self._look_in_time()

    async def stop(self) -> None:
        """Return everything that is held, as far as the lease store answers; then let go of the store."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        with contextlib.suppress(StoreDown, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await asyncio.gather(*self._calls, return_exceptions=True)
                await self._store.exchange(self.leases.farewell(self._report()))
        await self._store.close()
