"""Engine priority: the field by which an engine may schedule guaranteed requests first."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from sidecar.decisions import AdmittedRequest
from sidecar.dialects.bodies import Parsed
from sidecar.dialects.fields import with_priority, without_priority
from sidecar.engine.state import EngineState

PRIORITY_GUARANTEED, PRIORITY_SHARED, PRIORITY_SPOT = 0, 10, 20
"""The priorities of requests inside a guarantee, of elastic requests and bursts, and of spot requests. A
lower one is scheduled earlier, as in vLLM."""


_PRIORITIES: Final = [PRIORITY_GUARANTEED, PRIORITY_SHARED, PRIORITY_SPOT]
_GUARANTEED: Final = 0
_SHARED: Final = 1
_SPOT: Final = 2
"""The places of the priorities in the lists here."""
_FIELDS: Final = [b'{"priority":%d,' % priority for priority in _PRIORITIES]
"""The beginning of a body with each priority, as ``with_priority`` writes it."""
_BRACE: Final = ord("{")


class PriorityPolicy(StrEnum):
    """Whether requests carry a priority for the engine."""

    AUTO = "auto"
    """Send it unless the engine refuses it. Admission assumes that the engine ignores the field."""
    ON = "on"
    """Always send it: the operator states that the engine schedules by priority."""
    OFF = "off"
    """Never send it."""


class EnginePriority:
    """Writes priorities into requests, and counts them."""

    def __init__(self, policy: PriorityPolicy, engine: EngineState) -> None:
        self._is_off = policy is PriorityPolicy.OFF
        self._is_auto = policy is PriorityPolicy.AUTO
        self._engine = engine
        self._sent = [0] * len(_PRIORITIES)
        self._refused = 0

    def write(self, admitted: AdmittedRequest, parsed: Parsed) -> None:
        """Write the request's priority into its body.

        A client's own field is replaced, or removed if the engine takes none, so that
        a request means the same on every engine.
        """
        ticket = admitted.ticket
        if not parsed.takes_priority or ticket is None or self._is_off:
            return
        engine, is_auto = self._engine, self._is_auto
        if is_auto and (engine.takes_priority is False or not engine.is_vllm):
            if parsed.has_priority:
                admitted.body = without_priority(parsed.body, is_ours=False)
            return
        place = _SPOT
        if not ticket.account.is_spot:
            place = _GUARANTEED if ticket.is_guaranteed else _SHARED
        priority = _PRIORITIES[place]
        self._sent[place] += 1
        body = parsed.body
        if parsed.has_priority or body[0] != _BRACE:
            admitted.body = with_priority(parsed, priority)
        else:
            admitted.body = _FIELDS[place] + body[1:]
        if is_auto:
            admitted.priority = priority

    def refused(self, admitted: AdmittedRequest) -> None:
        """The engine refused the request for its priority. The request is sent again without it."""
        admitted.body, admitted.priority = without_priority(admitted.body, is_ours=True), None
        self._refused += 1

    def metrics(self) -> Iterator[Metric]:
        """The counts, for Prometheus."""
        sent = CounterMetricFamily(
            "tokenpool_engine_priority", "Requests sent with a priority.", labels=("priority",)
        )
        for priority, number in zip(_PRIORITIES, self._sent, strict=True):
            sent.add_metric((str(priority),), number)
        yield sent
        yield CounterMetricFamily(
            "tokenpool_engine_priority_refused",
            "Requests that the engine refused for their priority and that were sent again without it.",
            value=self._refused,
        )
