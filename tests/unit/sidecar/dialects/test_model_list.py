"""The list of models that a caller with a scope sees."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dialects.model_list import LONGEST_LIST, ModelListReader

SCOPE = frozenset({"base", "adapter"})


def relayed(answer: bytes, *cuts: int) -> bytes:
    """The answer for the client, if it arrives in pieces."""
    reader = ModelListReader(SCOPE)
    places = [0, *sorted(cuts), len(answer)]
    sent = b"".join(reader.feed(answer[a:b]) for a, b in itertools.pairwise(places))
    assert sent == b""
    return reader.end()


@given(
    st.lists(st.sampled_from(["base", "adapter", "other", ""])),
    st.lists(st.integers(0, 200), max_size=3),
)
def test_only_models_of_the_scope_are_relayed_as_written(names: list[str], cuts: list[int]) -> None:
    models = [{"id": name, "object": "model", "max_model_len": 4096, "parent": None} for name in names]
    answer = json.dumps({"object": "list", "data": models, "more": {"a": 1.0}}).encode()

    found = json.loads(relayed(answer, *[min(cut, len(answer)) for cut in cuts]))

    expected = [each for each in models if each["id"] in SCOPE]
    assert found == {"object": "list", "data": expected, "more": {"a": 1.0}}


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"[]", b'{"object": "list"}', b'{"data": {}}', b'{"data": [1]}', b"\xff", b"[" * 100_000],
)
def test_of_any_other_answer_nothing_is_relayed(answer: bytes) -> None:
    assert json.loads(relayed(answer)) == {"object": "list", "data": []}


def test_a_list_beyond_the_bound_is_not_kept() -> None:
    reader = ModelListReader(SCOPE)
    reader.feed(b'{"data":[')
    for _ in range(9):
        reader.feed(b" " * (1 << 20))
    reader.feed(b"]}")

    assert LONGEST_LIST < 9 << 20
    assert json.loads(reader.end()) == {"object": "list", "data": []}
