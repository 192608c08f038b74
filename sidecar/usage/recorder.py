"""The recorder: makes the usage record of each request, on the request path.

It packs a record and appends it to a list. ``UsageCarrier`` takes the list at intervals. The packed record
takes a quarter of the memory of the objects that it is made of, which would stay alive until then. The texts
of a record depend on its entitlement, target and credential, so those of each combination are encoded once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from sidecar.decisions import AdmittedRequest
from sidecar.usage.open_requests import OpenRequests
from tokenpool.accounting.ticket import Ticket
from tokenpool.entitlements import Entitlement
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Usage
from tokenpool.usage.packing import PackedIds, PackedTexts
from tokenpool.usage.record import LOST

MOST_BYTES: Final = 4 * 1024 * 1024
"""The most bytes of records in memory: about 25,000 records, or five seconds of a sidecar at its most."""
MOST_TEXT: Final = 128
"""The most characters of a text in a record. A caller chooses the model's name."""

MOST_KINDS: Final = 1024
"""The most combinations of texts that are kept: about 1 MB. Beyond it, all are encoded again."""

_FINISHED: Final = Ending.FINISHED
_FINISHED_TEXT: Final = Ending.FINISHED.value


class UsageRecorder:
    """Makes the records of one sidecar process."""

    __slots__ = (
        "_bytes",
        "_clock",
        "_ids",
        "_kinds",
        "_pending",
        "_replica",
        "_settled_slots",
        "_wall_clock",
        "dropped",
        "dropped_tokens",
        "is_on",
        "open_requests",
        "recorded",
    )

    def __init__(
        self,
        process: str,
        replica: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._ids = PackedIds(process)
        self._replica = replica[:MOST_TEXT]
        self._clock = clock
        self._wall_clock = wall_clock
        self.is_on = True
        """Whether requests that begin now get a record."""
        self.open_requests: OpenRequests | None = None
        """The file of running requests; ``None`` while there is no spool on a disk."""
        self._kinds: dict[tuple[str, str, tuple[str, str]], tuple[Entitlement, PackedTexts]] = {}
        """By the entitlement's name, the credential and the target."""
        self._pending: list[bytes] = []
        self._settled_slots: list[int] = []
        self._bytes = 0
        self.recorded = 0
        """The records so far, without dropped ones."""
        self.dropped = 0
        """The records that had no room in memory, or could not be encoded."""
        self.dropped_tokens = 0
        """Their input and output tokens."""

    def begun(self, admitted: AdmittedRequest, ticket: Ticket) -> None:
        """An admitted request may begin at an engine.

        Until its settlement, its record is that of a lost request. The record has all of its input, and half
        of its expected output: on average, a request is in the middle of its output.
        """
        open_requests = self.open_requests
        if not self.is_on or open_requests is None:
            return
        cost, id_ = ticket.cost, self._ids.next()
        content = self._packed(
            ticket,
            admitted,
            id_,
            cost.input_tokens,
            cost.output_tokens // 2,
            cost.cached_tokens,
            0.0,
            LOST,
            True,
        )
        if content is not None:
            slot = open_requests.take(content)
            if slot >= 0:
                admitted.usage_id, admitted.usage_slot = id_, slot

    def withdrawn(self, admitted: AdmittedRequest) -> None:
        """No engine has begun with an admitted request. It is decided again, without a record."""
        slot = admitted.usage_slot
        if slot >= 0 and self.open_requests is not None:
            admitted.usage_slot = -1
            self.open_requests.free(slot)

    def settled(
        self, admitted: AdmittedRequest, ticket: Ticket, ending: Ending, usage: Usage, *, is_estimated: bool
    ) -> None:
        """An admitted request was settled. Call it before the ledger settles its ticket."""
        slot = admitted.usage_slot
        if slot >= 0:
            id_ = admitted.usage_id
        elif self.is_on:
            id_ = self._ids.next()
        else:
            return
        input_tokens, output_tokens, cached_tokens = usage
        held_s = self._clock() - ticket.admitted_at
        content = self._packed(
            ticket,
            admitted,
            id_,
            input_tokens,
            output_tokens,
            cached_tokens,
            held_s if held_s > 0.0 else 0.0,
            _FINISHED_TEXT if ending is _FINISHED else ending.value,
            is_estimated,
        )
        if slot >= 0 and self.open_requests is not None:
            if content is not None:
                self.open_requests.replace(slot, content)
            self._settled_slots.append(slot)
        if content is None or self._bytes + len(content) > MOST_BYTES:
            self.dropped += 1
            self.dropped_tokens += input_tokens + output_tokens
            return
        self._bytes += len(content)
        self._pending.append(content)
        self.recorded += 1

    def _packed(
        self,
        ticket: Ticket,
        admitted: AdmittedRequest,
        id_: bytes,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int,
        held_s: float,
        outcome: str,
        is_estimated: bool,
    ) -> bytes | None:
        """The record as bytes; ``None`` if a value cannot be encoded."""
        queue_s = ticket.admitted_at - admitted.started_at
        try:
            return self._texts(ticket, admitted).pack(
                id_,
                self._wall_clock(),
                input_tokens,
                output_tokens,
                cached_tokens,
                ticket.kv_held * held_s + ticket.kv_seconds_before,
                ticket.cost.sequences * held_s,
                queue_s if queue_s > 0.0 else 0.0,
                admitted.first_token_s,
                outcome,
                is_estimated,
            )
        except (struct.error, ValueError):
            return None  # no number of tokens that an engine counted, or no text

    def _texts(self, ticket: Ticket, admitted: AdmittedRequest) -> PackedTexts:
        """The texts of a request's record. Raises ``ValueError`` for a text that has no encoding."""
        entitlement, known = ticket.account.entitlement, admitted.usage_texts
        if known is not None and known[0] is entitlement:
            return known[1]
        target, credential_id = ticket.ask.target, admitted.credential_id
        key = (entitlement.name, credential_id, target)
        kind = self._kinds.get(key)
        if kind is not None and kind[0] is entitlement:
            admitted.usage_texts = kind
            return kind[1]
        route, model = target
        texts = PackedTexts(
            entitlement.pool,
            entitlement.name,
            model[:MOST_TEXT],
            route,
            self._replica,
            entitlement.group or "",
            credential_id[:MOST_TEXT],
        )
        if len(model) <= MOST_TEXT:  # the key of a long one would take its memory
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            self._kinds[key] = admitted.usage_texts = (entitlement, texts)
        return texts

    @property
    def waiting(self) -> int:
        """The number of records that ``take`` would return."""
        return len(self._pending)

    def take(self) -> tuple[list[bytes], list[int]]:
        """The records since the last call, and the slots to free once the spool has them."""
        pending, slots = self._pending, self._settled_slots
        self._pending, self._settled_slots, self._bytes = [], [], 0
        return pending, slots

    def written(self, slots: list[int]) -> None:
        """The spool has the records of these slots."""
        if self.open_requests is not None:
            self.open_requests.free_all(slots)
