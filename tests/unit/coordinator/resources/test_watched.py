"""The watched Secrets: their number is bounded, and no namespace takes the room of another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.resources.reading import SecretName
from coordinator.resources.watched import MOST_SECRETS, chosen


def secrets(namespace: str, count: int) -> set[SecretName]:
    return {SecretName(namespace, f"s{number:03}") for number in range(count)}


def test_one_namespace_has_half_and_the_next_one_finds_room() -> None:
    first = chosen((), secrets("a", 300))
    assert len(first) == MOST_SECRETS // 2
    second = chosen(first, secrets("a", 300) | secrets("b", 10))
    assert second == sorted(secrets("b", 10))


def test_watched_secrets_stay() -> None:
    first = chosen((), secrets("b", 5))
    assert chosen(first, secrets("a", 1) | secrets("b", 5)) == sorted(secrets("a", 1))


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(0, 300), max_size=8))
def test_the_number_is_bounded(counts: dict[str, int]) -> None:
    named = set().union(*(secrets(namespace, count) for namespace, count in counts.items()), set())
    found = chosen((), named)
    assert len(found) <= MOST_SECRETS
    assert len(set(found)) == len(found)
