"""The sidecar's report to the coordinator: its engine, its mode, and the outcomes of its requests."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

from sidecar.engine.state import EngineState
from sidecar.lifecycle import Lifecycle
from sidecar.telemetry import Telemetry
from sidecar.worker import Worker
from tokenpool.amounts import NOTHING
from tokenpool.leases.leases import Leases
from tokenpool.leases.wire import MOST_REPORTED, REPORTED_OUTCOMES, SidecarReport, encode_report

FirstTokens = tuple[float, tuple[int, ...]]
"""The outcomes in a ``SidecarReport``."""
COUNT_EVERY_S = 0.5
"""Seconds between two counts of outcomes for the reports: the interval at which a page reads them."""


class OutcomeTotals:
    """The outcome counts in the reports: those above zero, of the entitlements that changed last.

    Each step examines only the entitlements that were active since the last one.
    """

    def __init__(self, most: int = MOST_REPORTED) -> None:
        self._most = most
        self._totals: dict[str, Mapping[str, int]] = {}
        """Counts by entitlement, in the order of their last change."""

    def follow(
        self, outcomes: Mapping[str, Mapping[str, int]], known: Container[str]
    ) -> Mapping[str, Mapping[str, int]]:
        """The counts to report, after the counts of some entitlements may have changed.

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
"""Seconds for which changed times to first token are reported. A following coordinator reads every 2 s."""


class FirstTokenTotals:
    """The times to first token in the reports: those that changed in the last seconds."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[FirstTokens, float]] = {}
        """The reported totals, each with the time of its last change."""

    def follow(self, totals: Mapping[str, FirstTokens], now: float) -> Mapping[str, FirstTokens]:
        """The totals to report, after the totals of some entitlements may have changed."""
        for name, total in totals.items():
            before = self._known.get(name)
            if total[0] and (before is None or before[0] != total):
                self._known[name] = (total, now)
        self._known = {
            name: (total, at) for name, (total, at) in self._known.items() if now - at < FIRST_TOKENS_STAY_S
        }
        return {name: total for name, (total, _) in self._known.items()}


class Reporter:
    """Makes the reports of one sidecar."""

    def __init__(
        self,
        engine: EngineState,
        leases: Leases,
        telemetry: Telemetry,
        lifecycle: Lifecycle,
        worker: Worker | None = None,
    ) -> None:
        """``worker`` is this process, if it is one of several: then it reports its part of the capacity."""
        self._worker = worker
        self._engine = engine
        self._leases = leases
        self._telemetry = telemetry
        self._lifecycle = lifecycle
        self.file_version = ""
        """The version of the pool file in force."""
        self._changes = telemetry.changes()
        self._totals = OutcomeTotals()
        self._counted: Mapping[str, Mapping[str, int]] = {}
        self._counted_at = -math.inf
        self._firsts = FirstTokenTotals()
        self._first_tokens: Mapping[str, FirstTokens] = {}

    def report(self, now: float) -> bytes:
        """The current report, encoded."""
        engine, seen, capacity = self._engine, self._engine.observation, self._engine.capacity
        amount = capacity.amount() if capacity.is_known else NOTHING
        workers = self._worker.living(now) if self._worker is not None else 1
        serves = engine.is_up and not self._lifecycle.is_draining
        return encode_report(
            SidecarReport(
                capacity=amount * (1 / workers) if serves else NOTHING,
                replica=amount,
                engine_up=engine.is_up,
                running=seen.running if seen else 0.0,
                waiting=seen.waiting if seen else 0.0,
                kv_usage=seen.kv_usage if seen else 0.0,
                mode=self._leases.mode.value,
                file_version=self.file_version,
                draining=self._lifecycle.is_draining,
                outcomes=self._outcomes(now),
                first_tokens=self._first_tokens,
                workers=workers,
            )
        )

    def _outcomes(self, now: float) -> Mapping[str, Mapping[str, int]]:
        """The outcomes of requests. Changed entitlements are counted every ``COUNT_EVERY_S`` seconds."""
        telemetry, accounts = self._telemetry, self._leases.accounts
        if now - self._counted_at >= COUNT_EVERY_S:
            self._counted_at = now
            changed = [name for name in self._changes.take() if name in accounts]
            self._counted = self._totals.follow({n: telemetry.outcomes(n) for n in changed}, accounts)
            self._first_tokens = self._firsts.follow({n: telemetry.first_tokens(n) for n in changed}, now)
        return self._counted
