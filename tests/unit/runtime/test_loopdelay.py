"""The event loop's delay: counted, and the largest one remembered for a while."""

from __future__ import annotations

import asyncio
import time

from runtime.exposition import rendered
from runtime.loopdelay import BOUNDS, EVERY_S, WINDOW_S, LoopDelay


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_delays_are_counted_by_size() -> None:
    clock = Clock()
    delay = LoopDelay(clock)
    for seconds in (-0.1, 0.0005, 0.015, 3.0):
        delay.observe(seconds, clock.now)

    page = rendered(delay.metrics())

    assert 'tokenpool_loop_delay_seconds_bucket{le="0.001"} 2.0' in page
    assert 'tokenpool_loop_delay_seconds_bucket{le="0.02"} 3.0' in page
    assert 'tokenpool_loop_delay_seconds_bucket{le="+Inf"} 4.0' in page
    assert "tokenpool_loop_delay_max_seconds 3.0" in page
    assert list(BOUNDS) == sorted(BOUNDS)


def test_the_largest_delay_is_forgotten_after_a_while() -> None:
    clock = Clock()
    delay = LoopDelay(clock)
    delay.observe(1.0, clock.now)
    assert delay.largest(clock.now + WINDOW_S - 1) == 1.0
    assert delay.largest(clock.now + WINDOW_S + 1) == 1.0
    assert delay.largest(clock.now + 2 * WINDOW_S + 2) == 0.0


def test_delays_before_a_long_stop_are_not_shown() -> None:
    clock = Clock()
    delay = LoopDelay(clock)
    delay.observe(1.0, clock.now)
    delay.observe(100.0, clock.now + 100)
    assert delay.largest(clock.now + 100) == 100.0


async def test_a_blocking_call_is_measured() -> None:
    delay = LoopDelay(time.monotonic)
    watching = asyncio.create_task(delay.run())
    await asyncio.sleep(0)

    time.sleep(EVERY_S + 0.2)
    await asyncio.sleep(0.01)
    watching.cancel()

    assert delay.largest(time.monotonic()) >= 0.2
