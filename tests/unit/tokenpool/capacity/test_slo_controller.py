"""The SLO controller: slots are reserved while guaranteed requests miss their time to first token."""

from __future__ import annotations

from tokenpool.capacity.slo_controller import EARLY, FEWEST, MOST, WINDOW_S, SloController


def window(
    slo_controller: SloController, now: float, *ttfts: float, slo: float = 0.1, slots: float = 8
) -> float:
    for ttft in ttfts:
        slo_controller.observe(ttft, slo)
    return slo_controller.judge(slots, now)


def test_late_answers_keep_slots_back_and_calm_ones_give_them_back_slowly() -> None:
    slo_controller = SloController(0.0)
    assert window(slo_controller, 0.5 * WINDOW_S, 0.2, 0.05) == 0
    assert window(slo_controller, WINDOW_S, 0.05) == 0  # a single late one says nothing
    assert window(slo_controller, 2 * WINDOW_S, 0.2, 0.2, 0.05) == 1
    assert window(slo_controller, 3 * WINDOW_S, 0.2, 0.2, 0.2) == 2
    assert window(slo_controller, 4 * WINDOW_S, 0.05, 0.05, 0.05) == 1.75
    assert window(slo_controller, 5 * WINDOW_S, *[0.1 * (EARLY + 0.1)] * 3) == 1.75  # kept, but not calm
    assert window(slo_controller, 6 * WINDOW_S, *[0.05] * 9, 0.2) == 1.75  # one late
    for number in range(7, 20):
        window(slo_controller, number * WINDOW_S)  # nobody asks: nothing to protect
    assert slo_controller.reserved_slots == 0


def test_no_more_than_half_an_engine_is_kept_back() -> None:
    slo_controller = SloController(0.0)
    for number in range(1, 20):
        window(slo_controller, number * WINDOW_S, 9.0, 9.0, 9.0)
    assert slo_controller.reserved_slots == 8 * MOST


def test_a_few_measurements_are_not_judged_and_not_forgotten() -> None:
    slo_controller = SloController(0.0)
    assert window(slo_controller, WINDOW_S, *[9.0] * (FEWEST - 1)) == 0
    assert window(slo_controller, WINDOW_S + 0.1, 9.0) == 1
