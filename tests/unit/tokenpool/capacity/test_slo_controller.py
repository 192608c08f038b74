"""The SLO controller: slots are reserved while guaranteed requests miss their time to first token."""

from __future__ import annotations

from tokenpool.capacity.slo_controller import EARLY, FEWEST, MOST, WINDOW_S, SloController


def window(
    slo_controller: SloController, now: float, *ttfts: float, slo: float = 0.1, slots: float = 8
) -> float:
    for ttft in ttfts:
        slo_controller.observe(ttft, slo)
    return slo_controller.judge(slots, now)


def test_late_answers_reserve_slots_and_early_ones_return_them_slowly() -> None:
    slo_controller = SloController(0.0)
    assert window(slo_controller, 0.5 * WINDOW_S, 0.2, 0.05) == 0
    assert window(slo_controller, WINDOW_S, 0.05) == 0  # a single late answer proves nothing
    assert window(slo_controller, 2 * WINDOW_S, 0.2, 0.2, 0.05) == 1
    assert window(slo_controller, 3 * WINDOW_S, 0.2, 0.2, 0.2) == 2
    assert window(slo_controller, 4 * WINDOW_S, 0.05, 0.05, 0.05) == 1.75
    assert window(slo_controller, 5 * WINDOW_S, *[0.1 * (EARLY + 0.1)] * 3) == 1.75  # in time, but not early
    assert window(slo_controller, 6 * WINDOW_S, *[0.05] * 9, 0.2) == 1.75  # one late
    for number in range(7, 20):
        window(slo_controller, number * WINDOW_S)  # a window without answers
    assert slo_controller.reserved_slots == 0


def test_a_reservation_is_bounded_by_a_part_of_the_slots() -> None:
    slo_controller = SloController(0.0)
    for number in range(1, 20):
        window(slo_controller, number * WINDOW_S, 9.0, 9.0, 9.0)
    assert slo_controller.reserved_slots == 8 * MOST


def test_a_window_with_few_answers_lasts_longer() -> None:
    slo_controller = SloController(0.0)
    assert window(slo_controller, WINDOW_S, *[9.0] * (FEWEST - 1)) == 0
    assert window(slo_controller, WINDOW_S + 0.1, 9.0) == 1
