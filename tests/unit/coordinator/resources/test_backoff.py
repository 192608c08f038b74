"""The pause between two attempts to read the API."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.resources.reflector import FIRST_WAIT_S, LONGEST_WAIT_S, Backoff


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_pause_doubles_up_to_its_bound(chances: list[float]) -> None:
    backoff = Backoff()
    expected = FIRST_WAIT_S
    for chance in chances:
        assert expected / 2 <= backoff.wait_s(chance) <= expected
        expected = min(expected * 2, LONGEST_WAIT_S)
    backoff.reset()
    assert backoff.wait_s(1.0) == FIRST_WAIT_S


@given(st.floats(0, 1), st.floats(1, 60))
def test_the_pause_is_as_long_as_the_server_asks(chance: float, asked_s: float) -> None:
    backoff = Backoff()
    for _ in range(10):
        assert asked_s <= backoff.wait_s(chance, asked_s) <= asked_s * 1.1
    assert backoff.wait_s(1.0) == FIRST_WAIT_S, "it does not count as a failure"
