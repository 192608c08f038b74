"""Preemption: the choice of spot requests to end for a guarantee, and no more than needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenpool.admission.preemption import Running, victims

requests = st.lists(
    st.builds(Running, st.floats(0, 100), st.integers(1, 4), st.integers(16, 512)), max_size=12
)


@given(requests, st.integers(0, 10), st.integers(0, 1000))
def test_no_more_requests_are_ended_than_needed(
    running: list[Running], sequences: int, kv_tokens: int
) -> None:
    ended = [request for _, request in victims(enumerate(running), sequences, kv_tokens)]
    if sum(r.sequences for r in running) < sequences or sum(r.kv_tokens for r in running) < kv_tokens:
        assert ended == []
        return
    for left_out in range(len(ended)):
        rest = ended[:left_out] + ended[left_out + 1 :]
        is_enough = (
            sum(r.sequences for r in rest) >= sequences and sum(r.kv_tokens for r in rest) >= kv_tokens
        )
        assert not is_enough
    assert sum(r.sequences for r in ended) >= sequences
    assert sum(r.kv_tokens for r in ended) >= kv_tokens


def test_the_youngest_is_ended_first() -> None:
    running = {name: Running(at, 1, 100) for name, at in (("old", 1.0), ("young", 9.0), ("middle", 5.0))}
    assert [name for name, _ in victims(running.items(), 2, 0)] == ["young", "middle"]
    assert victims(running.items(), 0, 0) == []


def test_a_request_in_the_engines_queue_is_ended_first() -> None:
    running = {"waits": Running(1.0, 1, 100, has_begun=False), "old": Running(5.0, 1, 100)}
    running["young"] = Running(9.0, 1, 100)
    assert [name for name, _ in victims(running.items(), 1, 0)] == ["waits"]
    assert [name for name, _ in victims(running.items(), 2, 0)] == ["waits", "young"]
