"""The ids of the processes that hold leases."""

from __future__ import annotations

import pytest

from tokenpool.holders import engine_of, worker_id


def test_the_workers_of_a_sidecar_have_one_engine() -> None:
    ids = {worker_id("pod-7-ab", index, start) for index in range(3) for start in range(2)}

    assert len(ids) == 6
    assert {engine_of(each) for each in ids} == {"pod-7-ab"}
    assert {engine_of(worker_id("a/1-2", 0, 0)), engine_of(worker_id("a", 0, 0))} == {"a/1-2", "a"}


@pytest.mark.parametrize(
    "holder", ["pod-7-ab", "zone/pod-7-ab", "a/1-2-34567890", "a/", "a/1", "", "worker 1"]
)
def test_a_holder_that_is_no_worker_has_an_engine_of_its_own(holder: str) -> None:
    """Also with a slash in ``--name``."""
    assert engine_of(holder) == holder
