"""Prefix affinity in a sidecar: the beginnings in an ask, those of token ids, and the metrics."""

from __future__ import annotations

import pytest

from sidecar.dialects.openai import parse_completion
from sidecar.handover.ask_fields import AskFields
from sidecar.handover.frames import FrameReader, Kind, ProtocolError, decode_ask, encode_ask
from sidecar.handover.handover import affinity_metrics
from tokenpool.admission.affinity import Cached, Preference, PrefixCaches


def read(fields: AskFields) -> AskFields:
    ((kind, payload),) = FrameReader(1).receive(encode_ask(fields))
    assert kind is Kind.ASK
    return decode_ask(payload)


def test_an_ask_has_the_beginnings_of_its_prompt() -> None:
    fields = AskFields(1, "elastic", True, 1, 512, 0, prompt=(Cached(2**56 - 1, 256, 1024),))
    assert read(fields).prompt == ((2**56 - 1, 256, 1024),)
    assert read(AskFields(1, "elastic", True, 1, 512, 0)).prompt == ()


@pytest.mark.parametrize("beginning", [(2**56, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, 2**32)])
def test_a_beginning_out_of_range_breaks_the_protocol(beginning: tuple[int, int, int]) -> None:
    with pytest.raises(ProtocolError, match="out of range"):
        read(AskFields(1, "elastic", True, 1, 512, 0, prompt=(beginning,)))


def test_a_prompt_of_token_ids_has_beginnings() -> None:
    def prefixes(ids: list[int]) -> tuple[int, ...]:
        return parse_completion(b'{"model": "m", "prompt": %s}' % str(ids).encode()).ask.prefixes

    common = list(range(1000, 1200))
    first, second = prefixes([*common, 1, 2]), prefixes([*common, 3])
    assert len(first) == 1
    assert first == second
    assert prefixes(common[:50]) == ()


def test_the_gain_and_its_error_are_published() -> None:
    caches = PrefixCaches()
    caches.computed((Cached(1, 256),), 256, 0.0)
    caches.gained(Preference("b", 1024, 768), 1000)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in affinity_metrics(caches)
        for sample in family.samples
    }
    assert samples == {
        ("tokenpool_affinity_requests_total",): 1,
        ("tokenpool_affinity_tokens_total", "expected"): 768,
        ("tokenpool_affinity_tokens_total", "reported"): 744,
        ("tokenpool_affinity_tokens_total", "error"): 24,
        ("tokenpool_affinity_prefixes", "here"): 1,
        ("tokenpool_affinity_prefixes", "elsewhere"): 0,
        ("tokenpool_affinity_trust",): 1,
    }
