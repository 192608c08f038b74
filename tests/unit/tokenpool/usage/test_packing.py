"""Packed records are the records that the encoder makes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.usage.packing import PackedIds, PackedTexts
from tokenpool.usage.record import UsageRecord, decode

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
TOKENS = st.integers(0, 1 << 53)
SECONDS = st.floats(0.0, 1e12)
OUTCOMES = ("finished", "lost", "client_gone")


@given(
    process=TEXT,
    texts=st.tuples(TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT),
    tokens=st.tuples(TOKENS, TOKENS, TOKENS),
    seconds=st.tuples(SECONDS, SECONDS, SECONDS),
    time=SECONDS,
    ttft_s=st.none() | SECONDS,
    outcomes=st.lists(st.tuples(st.sampled_from(OUTCOMES), st.booleans()), min_size=1, max_size=4),
)
def test_packed_bytes_are_the_record(
    process: str,
    texts: tuple[str, str, str, str, str, str, str],
    tokens: tuple[int, int, int],
    seconds: tuple[float, float, float],
    time: float,
    ttft_s: float | None,
    outcomes: list[tuple[str, bool]],
) -> None:
    ids, packed = PackedIds(process), PackedTexts(*texts)
    pool, entitlement, model, route, replica, group, credential = texts
    for number, (outcome, is_estimated) in enumerate(outcomes, 1):
        content = packed.pack(
            ids.next(), time, *tokens, *seconds, -1.0 if ttft_s is None else ttft_s, outcome, is_estimated
        )

        assert decode(content) == UsageRecord(
            f"{process}-{number}",
            time,
            pool,
            entitlement,
            model,
            route,
            *tokens,
            *seconds,
            ttft_s,
            outcome,
            replica,
            group,
            credential,
            is_estimated,
        )


@pytest.mark.parametrize("tokens", [-1, 1 << 64])
def test_a_number_that_no_engine_counts_is_refused(tokens: int) -> None:
    packed = PackedTexts("pool", "a", "model", "/route", "replica", "", "")

    with pytest.raises(struct.error):
        packed.pack(PackedIds("p").next(), 0.0, tokens, 0, 0, 0.0, 0.0, 0.0, -1.0, "finished", False)


def test_a_text_without_an_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        PackedTexts("pool", "a", "\ud800", "/route", "replica", "", "")
