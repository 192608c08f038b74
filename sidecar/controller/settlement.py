"""Settlement: the usage of each admitted request, from its reader's counts, exactly once."""

from __future__ import annotations

from typing import Final

from sidecar.controller.access_log import AccessLog
from sidecar.controller.credential_limits import CredentialLimits
from sidecar.controller.stored_responses import StoredResponses
from sidecar.decisions import AdmittedRequest
from sidecar.dialects.reported_usage import NoUsage
from sidecar.engine.state import EngineState
from sidecar.telemetry import Telemetry
from sidecar.usage.recorder import UsageRecorder
from tokenpool.accounting.ticket import Ticket
from tokenpool.control.driver import Driver
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Usage
from tokenpool.pricing.estimators import Average

_FINISHED: Final = Ending.FINISHED


class Settlement:
    """Grows the reservations of running requests, and settles them at their end."""

    def __init__(
        self,
        driver: Driver,
        engine: EngineState,
        stored: StoredResponses,
        telemetry: Telemetry,
        access_log: AccessLog,
        limits: CredentialLimits,
    ) -> None:
        self._driver = driver
        self._engine = engine
        self._stored = stored
        self._telemetry = telemetry
        self._access_log = access_log
        self.usage: UsageRecorder | None = None
        """Makes usage records; ``None`` while the pool file has them off."""
        self._limits = limits
        self.tokens_per_event = Average(1.0, share=0.05)
        """Output tokens per streamed event, to settle streams that end before their usage comes."""

    def relayed(self, admitted: AdmittedRequest, events: int) -> int:
        """A stream has relayed ``events`` events: extend the reservation if the stream outgrows it.

        Returns the number of events at which to ask again.
        """
        ticket = admitted.ticket
        if ticket is None:
            return events + 1
        per_event = max(self.tokens_per_event.value, 0.01)
        tokens = round(events * per_event)
        if tokens >= ticket.output_held:
            block, ledger = self._engine.shape.block_size, self._driver.control.ledger
            ledger.extend(ticket, tokens + block, block, self._telemetry.clock())
        return max(int(ticket.output_held / per_event), events + 1)

    def settle(
        self,
        admitted: AdmittedRequest,
        ending: Ending,
        usage: Usage | None,
        events: int | None,
        *,
        spent: bool,
        unreported: int = 0,
        no_usage: NoUsage | None = None,
        stored: str | None = None,
    ) -> Usage | None:
        """Settle an admitted request. ``usage`` is the engine's report, or ``None`` without one.

        Returns the usage that is charged; ``None`` for a request without a price.

        ``spent``: the engine may have computed tokens. ``events`` is the number of relayed events, or
        ``None`` if they were not counted; ``unreported`` of them came after the report. ``no_usage`` is the
        reason for a missing report. ``stored`` is the name by which the engine may have stored the answer.
        """
        ticket = admitted.ticket
        if ticket is None:
            self._telemetry.ended(admitted.account, ending)
            self._log(admitted, ending, None)
            return None
        admitted.ticket = None
        if admitted.limited_by:
            self._limits.give_back(admitted.limited_by, ticket.cost.sequences)
        reported = usage is not None
        if stored is not None and usage is not None:
            tokens = usage.input_tokens + usage.output_tokens
            self._stored.record(stored, ticket.account.entitlement.name, tokens)
        if usage is None:
            usage = self._guess(ticket, events, ending) if spent else Usage(0, 0)
        elif unreported:
            # The report covers the beginning of a Messages stream that ended early.
            output = usage.output_tokens + round(unreported * self.tokens_per_event.value)
            usage = usage._replace(output_tokens=output)
            reported = ending is not _FINISHED
        elif ending is _FINISHED and events is not None and events > 2:
            self.tokens_per_event.observe(usage.output_tokens / events)
        if ending is _FINISHED and spent and not reported:
            self._telemetry.answered_without_usage(ticket.account, no_usage or NoUsage.MISSING)
        self._telemetry.settled(ticket, ending, usage, reported=reported)
        if ticket.streams:
            seconds = self._telemetry.clock() - admitted.started_at
            self._telemetry.stream_ended(ticket, usage.output_tokens, admitted.first_token_s, seconds)
        self._log(admitted, ending, usage)
        if self.usage is not None:
            self.usage.settled(admitted, ticket, ending, usage, is_estimated=spent and not reported)
        self._driver.settle(ticket, usage, ending, reported=reported)
        return usage

    def _guess(self, ticket: Ticket, events: int | None, ending: Ending) -> Usage:
        """The estimated usage without a report: the prompt, and the relayed output."""
        if events is not None:
            output = round(events * self.tokens_per_event.value)
        else:
            output = ticket.cost.output_tokens if ending is _FINISHED else 0
        return ticket.account.pricer.spent_so_far(ticket.cost, output)

    def _log(self, admitted: AdmittedRequest, ending: Ending, usage: Usage | None) -> None:
        if self._access_log.is_on:
            seconds = self._telemetry.clock() - admitted.started_at
            self._access_log.write(
                admitted.request_id,
                admitted.account,
                ending,
                seconds,
                usage,
                trace=admitted.trace,
                credential_id=admitted.credential_id,
                verdict=admitted.verdict,
            )
