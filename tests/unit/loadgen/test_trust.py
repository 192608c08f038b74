"""The generator's own delays, and what they mean for the latencies of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loadgen import report
from loadgen.arrivals import next_turn, stagger_s
from loadgen.delays import EVERY_S, MOST_STALLS, Delays, scheduled
from loadgen.records import Attempt, LoopDelay, PhaseMeta, Run, Sample, Stall
from loadgen.sampling import samples
from loadgen.scenario import Closed, Phase
from loadgen.summary import WHOLE, summarise
from loadgen.trust import complaints
from tests.support.loadgen_builders import attempt, run, scenario, tenant

PHASES = [PhaseMeta("alone", 0.0, 5.0), PhaseMeta("together", 5.0, 10.0)]


def measured(delays: Delays, until_s: float, late_s: float = 0.0005) -> Delays:
    """Timers that all run ``late_s`` late, until a time."""
    due = 0.0
    while due < until_s:
        due = delays.woke(due, due + late_s)
    return delays


def test_the_delay_of_the_loop_is_known_by_phase() -> None:
    delays = Delays(PHASES)
    due = 0.0
    while due < 10.0:
        due = delays.woke(due, due + (0.001 if due < 5.0 else 0.004))
    shown = {each.phase: each for each in delays.spans()}
    assert shown["alone"].p99_s == pytest.approx(0.001, rel=0.02)
    assert shown["together"].p50_s == pytest.approx(0.004, rel=0.02)
    assert shown[WHOLE].p99_s == pytest.approx(0.004, rel=0.02)
    assert shown[WHOLE].max_s == pytest.approx(0.004)
    assert delays.stalls == []


def test_a_blocked_loop_counts_for_all_timers_of_that_time() -> None:
    """No coordinated omission: 200 ms in 2 s are a tenth of the time, not one of 361 timers."""
    delays = measured(Delays([]), 1.0)
    due = delays.woke(1.0, 1.201)
    assert due == pytest.approx(1.2 + EVERY_S)
    while due < 2.0:
        due = delays.woke(due, due + 0.0005)
    (whole,) = delays.spans()
    assert whole.p50_s == pytest.approx(0.0005, rel=0.02)
    # The last tenth of the timers are 0 to 200 ms late, so the p99 is at nine tenths of this.
    assert whole.p99_s == pytest.approx(0.18, abs=0.01)
    assert delays.stalls == [Stall(1.0, pytest.approx(0.201))]


def test_warm_up_and_cool_down_do_not_count() -> None:
    delays = Delays(PHASES, 2.0, 8.0)
    for due, late in ((1.0, 0.004), (3.0, 0.001), (7.0, 0.001), (9.0, 0.004)):
        delays.woke(due, due + late)
    assert [(each.phase, round(each.max_s, 6)) for each in delays.spans()] == [
        (WHOLE, 0.001), ("alone", 0.001), ("together", 0.001),
    ]  # fmt: skip


def test_a_timer_that_is_early_is_not_late_and_what_precedes_the_run_does_not_count() -> None:
    delays = Delays([])
    assert delays.woke(-0.05, 0.1) == pytest.approx(0.1 + EVERY_S)
    assert delays.spans() == []
    assert delays.stalls == []
    assert delays.woke(1.0, 0.999) == pytest.approx(1.0 + EVERY_S)
    assert delays.spans()[0].max_s == 0.0


def test_the_record_of_stalls_is_bounded() -> None:
    delays = Delays([])
    due = 0.0
    for _ in range(MOST_STALLS + 5):
        due = delays.woke(due, due + 0.03)
    assert len(delays.stalls) == MOST_STALLS
    assert delays.woke(due, due + 86_400) == pytest.approx(due + 20_001 * EVERY_S)


def test_the_scheduler_says_how_long_a_thread_ran_and_waited(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("1500000000 250000000 42\n")
    assert scheduled(tmp_path / "schedstat") == (1.5, 0.25)
    assert scheduled(tmp_path / "none") == (0.0, 0.0)
    (tmp_path / "other").write_text("?\n")
    assert scheduled(tmp_path / "other") == (0.0, 0.0)


def test_a_run_that_did_not_keep_up_has_complaints() -> None:
    assert complaints(0.049, 0.89) == []
    assert "sent more than 70 ms late" in complaints(0.07, 0.5)[0]
    assert "used 95% of a core" in complaints(0.0, 0.95)[0]


def made(*more: Attempt, loop: tuple[float, float] = (0.0002, 0.002), **fields: object) -> Run:
    """A run with 100 requests in 10 s, times to first token of 20 ms and 10 ms between tokens."""
    requests = [attempt(tenth / 10, 0.02, gaps={349: 63}) for tenth in range(100)]
    delay = LoopDelay(WHOLE, loop[0], loop[1], loop[1])
    return run(*requests, *more, **{"phases": [], "loop": [delay], **fields})


def within(phases: list[PhaseMeta], loop: list[LoopDelay]) -> Run:
    """The same requests in phases."""
    return run(*made().attempts, phases=phases, loop=loop)


def doubts(of: Run) -> list[str]:
    return summarise(of).complaints


def test_a_quiet_run_has_no_complaint() -> None:
    assert doubts(made()) == []
    assert doubts(made(loop=(0.0002, 0.0039))) == []


def test_a_shared_core_is_told() -> None:
    (told,) = doubts(made(waited=0.06, ran=0.04))
    assert told == (
        "shared its core: the generator waited for a core for 6% of the time, and ran for 4%; "
        "give it a core of its own"
    )
    # A neighbour now and then is not a shared core.
    assert doubts(made(waited=0.06, ran=0.2)) == []
    assert doubts(made(waited=0.02, ran=0.01)) == []


def test_a_late_loop_makes_a_latency_doubtful_if_it_is_a_large_part_of_it() -> None:
    (told,) = doubts(made(loop=(0.0002, 0.005)))
    assert told == (
        "is not trustworthy in 'whole run': the generator's own delay was 5 ms, 49% of gap p99 of 'gold' "
        "(10.1 ms); give the generator a core of its own, or send less"
    )
    slow = run(
        *(attempt(tenth / 10, 2.0, lasts_s=3.0) for tenth in range(100)),
        phases=[],
        loop=[LoopDelay(WHOLE, 0.001, 0.1, 0.1)],
    )
    assert doubts(slow) == []  # 100 ms of 2 s


def test_the_median_is_compared_with_the_median_of_the_delays() -> None:
    (told,) = doubts(made(loop=(0.0045, 0.0045)))
    assert "44% of gap p50" in told


def test_late_sending_makes_latencies_doubtful_but_not_the_time_between_tokens() -> None:
    late = [attempt(tenth / 10, 0.03, sent_s=tenth / 10 + 0.01, gaps={349: 63}) for tenth in range(100)]
    (told,) = doubts(run(*late, phases=[], loop=[]))
    assert "own delay was 10 ms, 33% of TTFT p99 of 'gold' (30 ms)" in told


def test_doubts_name_the_phase() -> None:
    loop = [
        LoopDelay(WHOLE, 0.0002, 0.006, 0.05),
        LoopDelay("alone", 0.0002, 0.001, 0.002),
        LoopDelay("together", 0.0002, 0.009, 0.01),
    ]
    (told,) = doubts(within(PHASES, loop))
    assert told.startswith("is not trustworthy in 'together': the generator's own delay was 9 ms, 89% of gap")


def test_many_doubtful_phases_are_counted() -> None:
    phases = [PhaseMeta(f"p{number}", number, number + 1.0) for number in range(10)]
    loop = [LoopDelay(phase.name, 0.0, 0.009, 0.009) for phase in phases]
    told = doubts(within(phases, loop))
    assert len(told) == 5
    assert told[-1] == "has the same problem in 6 more phases"


def test_a_hiccup_of_40_ms_is_told_with_its_time() -> None:
    (told,) = doubts(made(stalls=[Stall(2.1, 0.04)]))
    assert told.startswith(
        "is not trustworthy in 'whole run': the generator was blocked for 40 ms at 2.1 s, which adds"
    )
    (told,) = doubts(made(stalls=[Stall(2.1, 0.03), Stall(4.0, 0.04)]))
    assert "40 ms at 4.0 s, the longest of 2 stalls" in told


def test_a_stall_that_is_small_beside_the_latencies_is_no_complaint() -> None:
    slow = [attempt(tenth / 10, 2.0, lasts_s=3.0) for tenth in range(100)]
    assert doubts(run(*slow, phases=[], stalls=[Stall(2.1, 0.04)])) == []


def test_a_rare_stall_counts_if_it_touches_requests() -> None:
    """20 ms in an hour reach no percentile, unless the few requests of the run waited for their end."""
    long = {"duration_s": 3600.0, "ended_s": 3600.0, "stalls": [Stall(60.0, 0.02)]}
    assert doubts(made(**long)) == []
    touched = attempt(59.99, 0.033, gaps={349: 63})  # its first token is read 3 ms after the stall
    assert doubts(made(touched, **long))[0].startswith(
        "is not trustworthy in 'whole run': the generator was blocked for 20 ms at 60.0 s"
    )


def test_a_rare_stall_of_one_of_several_processes_delays_few_requests() -> None:
    """Two stalls of 45 ms in 60 s are more than one in a thousand, but not in each of two processes."""
    stalls = [Stall(20.5, 0.045), Stall(40.5, 0.045)]
    long = {"duration_s": 60.0, "ended_s": 60.0, "stalls": stalls}
    assert doubts(made(**long))[0].startswith(
        "is not trustworthy in 'whole run': the generator was blocked for 45 ms"
    )
    assert doubts(made(**long, processes=2)) == []


def test_the_report_shows_the_delays_and_the_doubts() -> None:
    doubtful = made(loop=(0.0002, 0.005), waited=0.012)
    summary = summarise(doubtful)
    text = report.text(doubtful.meta, summary)
    assert "event loop 0.2 ms late at p50, 5 ms at p99;" in text
    assert "! This run is not trustworthy in" in text
    page = report.html(doubtful, summary)
    assert "This run is not trustworthy" in page
    assert "it waited for a core for 1.2% of the run" in page


PAGE = """\
vllm:num_requests_running{{engine="0"}} 3.0
loadgen_engine_step_delay_seconds_bucket{{engine="0",le="+Inf"}} {steps}
loadgen_engine_step_delay_seconds_count{{engine="0"}} {steps}
loadgen_engine_step_delay_seconds_sum{{engine="0"}} {delay}
loadgen_engine_lost_seconds_total{{engine="0"}} {lost}
"""


def page(at: float, steps: int, delay: float, lost: float = 0.0) -> Sample:
    (sample,) = samples(PAGE.format(steps=steps, delay=delay, lost=lost).encode(), at, "http://e/metrics")
    return sample


def test_a_simulator_that_is_late_is_told() -> None:
    late = replace_samples(made(), page(0.0, 100, 9.0), page(10.0, 1100, 14.0))
    (told,) = doubts(late)
    assert told.startswith(
        "used a simulator that could not keep up: the tokens of a step of http://e/metrics came 5 ms late"
    )
    assert doubts(replace_samples(made(), page(0.0, 100, 9.0), page(10.0, 1100, 10.0))) == []
    assert doubts(replace_samples(made(), page(0.0, 100, 9.0))) == []
    (told,) = doubts(replace_samples(made(), page(0.0, 100, 0.0), page(10.0, 1100, 0.1, 0.5)))
    assert "0.1 ms late on average, and it lost 500 ms in pauses" in told


def test_the_counters_of_a_simulator_may_begin_again() -> None:
    restarted = (
        page(0.0, 5000, 1.0, 0.5),
        page(4.0, 6000, 1.1, 0.5),
        page(5.0, 100, 0.01),
        page(9.0, 500, 0.1),
    )
    assert doubts(replace_samples(made(), *restarted)) == []


def replace_samples(of: Run, *given: Sample) -> Run:
    return Run(of.folder, of.meta, of.attempts, list(given))


MANY = tenant(process=Closed(1000, 0.0))


def test_workers_start_one_after_another_within_a_tenth_of_the_run() -> None:
    world = scenario(MANY, duration_s=100.0)
    assert [next_turn(world, MANY, worker, None) for worker in (0, 1, 999)] == [
        0.0, 0.002, pytest.approx(1.998),
    ]  # fmt: skip
    brief = scenario(MANY, duration_s=1.0)
    assert stagger_s(brief, MANY, 999) == pytest.approx(0.0999)
    few = replace(MANY, process=Closed(3, 0.0), starts_s=5.0)
    assert next_turn(scenario(few), few, 2, None) == pytest.approx(5.004)


def test_a_worker_is_due_when_it_became_free() -> None:
    world = scenario(MANY, duration_s=100.0)
    assert next_turn(world, MANY, 500, 3.25) == 3.25
    assert next_turn(world, MANY, 500, 100.0) is None


def test_workers_begin_one_after_another_again_after_a_phase_without_them() -> None:
    phases = (Phase("none", 20.0, 40.0, (("gold", 0.0),)), Phase("half", 40.0, 60.0, (("gold", 0.5),)))
    world = scenario(MANY, duration_s=100.0, phases=phases)
    assert next_turn(world, MANY, 10, 25.0) == pytest.approx(40.02)
    assert next_turn(world, MANY, 800, 25.0) == pytest.approx(61.6)
    ends = replace(MANY, ends_s=40.001)
    assert next_turn(scenario(ends, duration_s=100.0, phases=phases[:1]), ends, 800, 25.0) is None
