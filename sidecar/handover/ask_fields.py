"""The payload of an ask: a struct of msgspec, in a module of its own because it cannot be compiled."""

from __future__ import annotations

import msgspec


class AskFields(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The payload of ``ASK``. A new field goes to the end."""

    number: int
    tier: str
    is_preemptible: bool
    sequences: int
    kv_tokens: int
    longest_wait_ms: int
    standing: str = "within"
    """The capacity that the request may use (``pending.Standing``)."""
    prompt: tuple[tuple[int, int, int], ...] = ()
    """The beginnings of the prompt (``affinity.Cached``)."""
    brings_request: bool = False
    """Whether the request follows at once. Then the peer sends no ``OFFER`` before the response."""
