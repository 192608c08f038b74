"""The state of the engine: its health, its room and all other data that the sidecar has about it.

The methods of ``EngineState`` are the only code that writes its fields. The watchers report the outcomes of
polls, the exchange reports connections and answers, the controller reports sheds and reserves slots. All
others read. Derived values (``is_up``, ``room``) are computed in one place each, from the last known numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from prometheus_client.core import GaugeMetricFamily, Metric

from sidecar.dialects.stream_reader import FingerprintField
from sidecar.engine.address import METRICS
from sidecar.engine.cors import Cors
from sidecar.engine.health import Health, PageHealth
from tokenpool.amounts import NO_KV_BOUND
from tokenpool.capacity.model import CapacityModel, EngineObservation
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE, PRIORITY_QUEUE
from tokenpool.entitlements import ReplicaCapacity
from tokenpool.pricing.cost import EngineShape

log = logging.getLogger(__name__)

ALWAYS_ACCEPTED_PRIORITY = 0
"""vLLM accepts this priority under any scheduling policy. Only another one proves that it takes them."""


class EngineState:
    """The state of one engine. Each request reads the plain attributes ``is_up``, ``room`` and ``shape``."""

    __slots__ = (
        "_awaits_metrics",
        "_awaits_models",
        "_lacked_slots",
        "_lacked_throughput",
        "_own_kv_tokens",
        "_own_sequences",
        "_page_failure_is_logged",
        "_queue",
        "_reserved_slots",
        "_url",
        "capacity",
        "cors",
        "fingerprint_field",
        "health",
        "is_up",
        "is_vllm",
        "last_page",
        "models_error",
        "page",
        "restarts",
        "room",
        "shape",
        "takes_priority",
    )

    def __init__(
        self, capacity: CapacityModel, url: str = "", *, schedules_by_priority: bool = False
    ) -> None:
        """``url`` is for the log. ``schedules_by_priority``: the operator states that the engine does."""
        self.capacity = capacity
        """The capacity model of this replica. This class alone changes it."""
        self.health = Health()
        self.page = PageHealth()
        self.is_up = False
        """Whether requests are sent to the engine: it is healthy, its pages have answered or failed once, and
        it has refused no connection since."""
        self.shape = EngineShape()
        self.fingerprint_field = FingerprintField()
        self.cors = Cors()
        self.restarts = 0
        """The number of observed restarts of the engine."""
        self.last_page: EngineObservation | None = None
        """The last usable metrics page; an old one while ``page.is_usable`` is false."""
        self.models_error: str | None = None
        """Why the last request for the context window brought none."""
        self.is_vllm = False
        """Whether its metrics page is vLLM's, for which lower priorities are scheduled sooner."""
        self.takes_priority: bool | None = None
        """Whether it accepts requests with a priority; ``None`` until it has answered one."""
        self._url = url
        self._queue = PRIORITY_QUEUE if schedules_by_priority else 0.0
        self._reserved_slots = 0.0
        self._own_sequences = self._own_kv_tokens = 0
        """The sidecar's own load when the last page was read."""
        self._lacked_throughput = self._lacked_slots = False
        """Whether requests were shed since the last page because no slot was free."""
        self._awaits_metrics = self._awaits_models = True
        """Whether the page has neither answered nor failed yet since the start."""
        self._page_failure_is_logged = False
        self._update_room()

    @property
    def observation(self) -> EngineObservation | None:
        """The last metrics page; ``None`` while its numbers are stale."""
        return self.last_page if self.page.is_usable else None

    # --- health ---

    def health_answered(self) -> None:
        """``/health`` answered 200."""
        was_well = self.health.is_well
        self.health.answered()
        if not was_well:
            log.info("the engine answers", extra={"upstream": self._url})
        self._update_is_up()

    def health_silent(self, error: str) -> None:
        """``/health`` did not answer in time."""
        was_well, before = self.health.is_well, self.health.error
        self.health.silent(error)
        if not self.health.is_well:
            self._down(was_well, before)

    def health_failed(self, error: str, *, is_refused: bool = False) -> None:
        """``/health`` answered something else, or broke off; ``is_refused``: no process listens."""
        was_well, before = self.health.is_well, self.health.error
        self.health.failed(error, is_refused=is_refused)
        self._down(was_well, before)

    def connection_refused(self) -> None:
        """A request found no connection: no other one is sent before the next health check succeeds."""
        self.is_up = False
        self._update_room()

    def _down(self, was_well: bool, error_before: str | None) -> None:
        error = self.health.error
        if was_well or error != error_before:
            log.warning("the engine does not answer", extra={"error": error})
        if was_well:
            self.page.forget()
            self.capacity.forget_load()
        self._update_is_up()

    # --- the metrics page ---

    def page_read(self, seen: EngineObservation, own_sequences: int, own_kv_tokens: int) -> None:
        """The metrics page came in time. ``own_*`` is the load that this sidecar's ledger holds now."""
        if not self.health.is_well:
            return
        if self.last_page is not None and _is_another_process(self.last_page, seen):
            self._restarted()
        self.health.identified()
        self.last_page = seen
        self.page.read()
        if self._page_failure_is_logged:
            log.info("the engine's metrics page is usable again")
            self._page_failure_is_logged = False
        self.capacity.observe(
            seen, lacked_throughput=self._lacked_throughput, lacked_slots=self._lacked_slots
        )
        self._lacked_throughput = self._lacked_slots = False
        self._own_sequences, self._own_kv_tokens = own_sequences, own_kv_tokens
        self.is_vllm = seen.is_vllm
        self._set_block_size(seen.block_size)
        self._update_room()
        self._metrics_came()

    def page_late(self, seen: EngineObservation) -> None:
        """The metrics page came late: only its constant numbers are used, because its load is outdated."""
        if not self.health.is_well:
            return
        self.capacity.learn_kv_tokens(seen.kv_tokens)
        self._set_block_size(seen.block_size)
        self._update_room()

    def page_missed(self, error: str) -> None:
        """The metrics page did not come, or is unusable. Its last numbers are used for a few more polls."""
        if not self.health.is_well:
            return
        self.page.missed(error)
        if self.page.is_usable:
            return
        if not self._page_failure_is_logged:
            log.warning("the engine's metrics page is not usable", extra={"error": error})
            self._page_failure_is_logged = True
        if self.health.may_be_replaced:
            self._restarted()
        self.health.identified()
        # Without a page, the ledger's counts are the only known load of the engine.
        self.capacity.forget_load()
        self._update_room()
        self._metrics_came()

    def _restarted(self) -> None:
        """The engine restarted: discard everything that was learned about the old process."""
        self.restarts += 1
        log.warning("the engine restarted", extra={"restarts": self.restarts})
        self.last_page = None
        self.capacity.engine_restarted()
        self.shape = self.shape._replace(context_window=None)
        # The new process may have another fingerprint and another scheduling policy.
        self.fingerprint_field = FingerprintField()
        self.takes_priority, self.is_vllm = None, False

    def _set_block_size(self, block_size: int) -> None:
        self.shape = self.shape._replace(block_size=block_size)

    def _metrics_came(self) -> None:
        if self._awaits_metrics:
            self._awaits_metrics = False
            self._update_is_up()

    # --- the context window ---

    def context_window_read(self, tokens: int) -> None:
        """``/v1/models`` states this context window, in tokens."""
        self.shape = self.shape._replace(context_window=tokens)
        self.models_error = None
        self._models_came()

    def context_window_missed(self, error: str) -> None:
        """``/v1/models`` did not come, or states no context window."""
        self.models_error = error
        self._models_came()

    def _models_came(self) -> None:
        if self._awaits_models:
            self._awaits_models = False
            self._update_is_up()

    # --- reports of the request path ---

    def lacked_throughput(self) -> None:
        """A throughput limit shed a request: the next page shows whether the engine had more."""
        self._lacked_throughput = True

    def lacked_slots(self) -> None:
        """A request was shed because no slot was free: the next page shows whether the engine had more."""
        self._lacked_slots = True

    def priority_answered(self, priority: int, *, is_accepted: bool) -> None:
        """The engine answered a request with this priority, or (not accepted) the same request without."""
        if is_accepted and priority != ALWAYS_ACCEPTED_PRIORITY:
            self.takes_priority = True
        elif not is_accepted and self.takes_priority is not False:
            self.takes_priority = False
            log.warning(
                "the engine refuses priorities; requests are sent without a priority until it restarts",
                extra={"fix": "start vLLM with --scheduling-policy priority, or set --engine-priority off"},
            )

    # --- settings of the operator and the SLO controller ---

    def reserve(self, slots: float) -> None:
        """Reserve ``slots`` slots for requests inside their assured share."""
        if slots != self._reserved_slots:
            self._reserved_slots = slots
            self._update_room()

    def reconfigure(self, replica: ReplicaCapacity) -> None:
        """Use the replica capacity of a changed pool file."""
        self.capacity.reconfigure(replica)
        self._update_room()

    # --- derived ---

    def _update_is_up(self) -> None:
        self.is_up = self.health.is_well and not (self._awaits_metrics or self._awaits_models)
        self._update_room()

    def _update_room(self) -> None:
        room = self.capacity.room(self._own_sequences, self._own_kv_tokens)
        is_down = not self.is_up
        self.room = replace(
            room,
            # An engine that was never seen may be of any size: the other replicas decide.
            kv_tokens=room.kv_tokens if self.capacity.is_known or self.is_up else NO_KV_BOUND,
            reserved_slots=self._reserved_slots,
            queue=self._queue,
            preemptible_queue=PREEMPTIBLE_QUEUE,
            is_down=is_down,
        )

    # --- shown to operators ---

    def problems(self) -> list[str]:
        """The reasons why no request is sent to the engine; empty if requests are sent."""
        if self.is_up:
            return []
        if not self.health.is_well:
            error = self.health.error
            return ["the engine does not answer", *([f"its last health check: {error}"] if error else [])]
        if self._awaits_metrics or self._awaits_models:
            return ["the engine's pages are being read for the first time"]
        return ["the engine refused a connection; requests resume after its next successful health check"]

    def degraded(self) -> list[str]:
        """Notices for the operator while requests are served."""
        degraded = []
        if self.is_up and not self.page.is_usable and self.page.error is not None:
            degraded.append(
                f"the engine's {METRICS} is not usable: {self.page.error}; requests are served from this"
                " sidecar's own counts"
            )
        if self.is_up and self.capacity.lacks_kv_bound:
            degraded.append(
                "the engine's KV capacity is unknown, so KV tokens have no bound: set replica.kv_tokens"
            )
        return degraded

    def shown(self) -> dict[str, object]:
        """The part of ``/debug/state`` about the engine."""
        seen = self.observation
        return {
            "up": self.is_up,
            "restarts": self.restarts,
            "error": None if self.is_up else self.health.error,
            "health_misses": self.health.misses,
            "page_usable": self.page.is_usable,
            "page_error": None if self.page.is_usable else self.page.error,
            "models_error": self.models_error,
            "kv_bound": not self.capacity.lacks_kv_bound,
            "context_window": self.shape.context_window,
            "block_size": self.shape.block_size,
            "running": seen.running if seen else None,
            "waiting": seen.waiting if seen else None,
            "kv_usage": seen.kv_usage if seen else None,
            "slots": self.room.slots,
            "reserved_slots": self.room.reserved_slots,
            "foreign_sequences": self.room.foreign_sequences,
        }

    def metrics(self) -> Iterator[Metric]:
        """The engine's health, for Prometheus."""
        yield GaugeMetricFamily("tokenpool_engine_up", "Whether the engine answers.", value=self.is_up)
        yield GaugeMetricFamily(
            "tokenpool_engine_page_usable",
            "Whether the engine's metrics page is used. Requests are also served without it.",
            value=self.page.is_usable,
        )


def _is_another_process(last: EngineObservation, seen: EngineObservation) -> bool:
    """Whether the start time differs, or a counter went backwards."""
    return (
        (None not in (last.started_at, seen.started_at) and last.started_at != seen.started_at)
        or seen.generation_tokens < last.generation_tokens
        or seen.prompt_tokens < last.prompt_tokens
    )
