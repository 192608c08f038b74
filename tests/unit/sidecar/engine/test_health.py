"""The judgement of the engine's health and of its metrics page, poll by poll."""

from __future__ import annotations

from sidecar.engine.health import MISSES_UNTIL_DOWN, MISSES_UNTIL_STALE, Health, PageHealth


def well() -> Health:
    health = Health()
    health.answered()
    return health


def test_an_engine_is_not_well_before_its_first_answer() -> None:
    health = Health()
    health.silent("no answer")
    assert (health.is_well, health.error, health.misses) == (False, "no answer", 1)
    health.answered()
    assert (health.is_well, health.misses) == (True, 0)


def test_a_busy_engine_may_miss_all_checks_but_the_last() -> None:
    health = well()
    for _ in range(3):
        for _ in range(MISSES_UNTIL_DOWN - 1):
            health.silent("no answer")
        assert health.is_well
        health.answered()
    assert health.error is None


def test_an_engine_that_misses_too_many_checks_is_down() -> None:
    health = well()
    for _ in range(MISSES_UNTIL_DOWN):
        health.silent("no answer")
    assert (health.is_well, health.error) == (False, "no answer")


def test_one_failed_check_is_enough() -> None:
    health = well()
    health.failed("/health answers 503")
    assert (health.is_well, health.error, health.may_be_replaced) == (False, "/health answers 503", False)


def test_a_process_that_ended_may_be_replaced() -> None:
    health = well()
    health.failed("connection refused", is_refused=True)
    health.failed("/health answers 503")  # the next process starts
    health.answered()
    assert health.may_be_replaced
    health.identified()
    assert not health.may_be_replaced


def test_before_the_first_start_there_is_nothing_to_replace() -> None:
    health = Health()
    health.failed("connection refused", is_refused=True)
    assert not health.may_be_replaced


def test_a_page_is_unusable_until_its_first_numbers() -> None:
    page = PageHealth()
    page.missed("it answers 404")
    assert (page.is_usable, page.error) == (False, "it answers 404")
    page.read()
    assert page.is_usable


def test_the_last_numbers_of_a_page_hold_for_a_few_polls() -> None:
    page = PageHealth()
    page.read()
    for _ in range(2):
        for _ in range(MISSES_UNTIL_STALE - 1):
            page.missed("it answers 500")
        assert page.is_usable
        page.read()
    for _ in range(MISSES_UNTIL_STALE):
        page.missed("it answers 500")
    assert not page.is_usable


def test_the_page_of_an_engine_that_was_down_is_judged_again() -> None:
    page = PageHealth()
    page.read()
    page.missed("it answers 500")
    page.forget()
    assert (page.is_usable, page.error, page.misses) == (False, None, 0)
