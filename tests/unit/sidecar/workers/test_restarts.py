"""The pauses before a worker is started again."""

from sidecar.workers.restarts import LONGEST_PAUSE_S, STABLE_S, Restarts


def test_the_first_restart_is_at_once_and_the_next_ones_wait_longer_each() -> None:
    restarts = Restarts()

    pauses = [restarts.ended(float(at), at + 1.0) for at in range(7)]

    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, LONGEST_PAUSE_S]
    assert restarts.count == 7


def test_a_worker_that_ran_for_long_is_started_again_at_once() -> None:
    restarts = Restarts()
    for _ in range(3):
        restarts.ended(0.0, 1.0)

    assert restarts.ended(0.0, STABLE_S) == 0.0
    assert restarts.ended(0.0, 1.0) == 0.5


def test_many_failures_do_not_overflow() -> None:
    restarts = Restarts()

    assert {restarts.ended(0.0, 1.0) for _ in range(2000)} >= {LONGEST_PAUSE_S}
