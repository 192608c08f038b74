"""LoRA adapters in a batch, several cores on one page, other kinds of engines, and the pace of steps."""

from __future__ import annotations

import asyncio
import itertools
import random

from prometheus_client.parser import text_string_to_metric_families

from loadgen.engine.__main__ import make_parser, model_of
from loadgen.engine.cores import Cores
from loadgen.engine.metrics import Moment, page
from loadgen.engine.model import Costs, Model
from loadgen.engine.pace import Late, Pace
from loadgen.engine.scheduler import limit_reached
from loadgen.engine.sequence import Sequence, State
from tests.unit.loadgen.engine.steps import Engine

MOMENT = Moment(started_at=12.5, now=1000.0, clock=10.0)


def samples(*engines: Engine, moment: Moment = MOMENT) -> dict[tuple[str, str | None], float]:
    told = page([engine.scheduler for engine in engines], {}, moment)
    return {
        (sample.name, sample.labels.get("engine")): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }


def info(*arguments: str) -> dict[str, str]:
    model = model_of(make_parser().parse_args(arguments))
    engine = Engine()
    engine.scheduler.model = model
    (family,) = [
        family
        for family in text_string_to_metric_families(page([engine.scheduler], {}, MOMENT))
        if family.name == "vllm:cache_config_info"
    ]
    return dict(family.samples[0].labels)


def test_each_core_has_its_own_series() -> None:
    one, other = Engine(cores=2), Engine(cores=2)
    one.add(8, 1)
    one.run()
    other.add(4, 4)
    other.step()

    seen = samples(one, other)

    assert [seen["vllm:prompt_tokens_total", core] for core in "01"] == [8, 4]
    assert [seen["vllm:num_requests_running", core] for core in "01"] == [0, 1]
    assert [seen["vllm:time_to_first_token_seconds_count", core] for core in "01"] == [1, 1]
    assert [seen["vllm:cache_config_info", core] for core in "01"] == [1, 1]


def test_the_queue_limits_are_those_of_all_cores_together() -> None:
    one, other = (Engine(max_queued_requests=2) for _ in range(2))
    one.add(4)
    other.add(4)

    assert limit_reached([one.scheduler, other.scheduler], 1) is not None
    assert limit_reached([one.scheduler], 1) is None


def test_a_batch_has_at_most_max_loras_adapters_and_others_are_overtaken() -> None:
    engine = Engine(adapters=("a", "b"), max_loras=1)
    first, second, third, plain = (engine.add(4, 3) for _ in range(4))
    first.adapter, second.adapter, third.adapter = "a", "b", "a"

    engine.step()

    states = [each.state for each in (first, second, third, plain)]
    assert states == [State.RUNNING, State.WAITING, State.RUNNING, State.RUNNING]
    engine.run()
    assert second.state is State.ENDED


def test_the_page_says_when_each_set_of_adapters_was_last_seen() -> None:
    engine = Engine(adapters=("a", "b"), max_loras=2)
    one, other = engine.add(4, 1), engine.add(4, 2)
    one.adapter, other.adapter = "a", "b"
    engine.run()

    families = text_string_to_metric_families(page([engine.scheduler], {}, MOMENT))
    found = {
        s.labels["running_lora_adapters"]: s.value for f in families for s in f.samples if "lora" in f.name
    }

    assert found == {"b": 991.0, "": 992.0}


def test_adapters_do_not_share_cached_prompts() -> None:
    engine = Engine(adapters=("a",), max_loras=1)
    engine.add(range(12), 1)
    engine.run()
    tuned, plain = engine.add(range(12), 1), engine.add(range(12), 1)
    tuned.adapter = "a"
    engine.run()

    assert (tuned.cached, plain.cached) == (0, 8)


def test_an_encoder_reports_one_block_and_no_cache() -> None:
    labels = info("--encoder")

    assert (labels["num_gpu_blocks"], labels["enable_prefix_caching"]) == ("1", "False")


def test_each_core_reports_its_own_size_and_the_blocks_of_all() -> None:
    labels = info("--data-parallel-size", "2", "--blocks", "1000")

    assert (labels["kv_cache_size_tokens"], labels["num_gpu_blocks"]) == ("16000", "2000")


def test_labels_of_hybrid_models_replace_and_extend_the_usual_ones() -> None:
    labels = info(
        *("--cache-label", "block_size=528", "--cache-label", "mamba_block_size=262144"),
        *("--cache-label", "num_gpu_blocks=1000", "--cache-label", "kv_cache_size_tokens="),
    )

    assert "kv_cache_size_tokens" not in labels

    assert (labels["block_size"], labels["mamba_block_size"], labels["num_gpu_blocks"]) == (
        "528",
        "262144",
        "1000",
    )


def test_older_releases_have_other_names() -> None:
    seen = {name for name, _ in samples(Engine(has_old_names=True))}

    assert {"vllm:gpu_cache_usage_perc", "vllm:gpu_prefix_cache_hits_total"} < seen
    assert not {"vllm:kv_cache_usage_perc", "vllm:prefix_cache_hits_total"} & seen


def lates(pace: Pace, *, late_s: float, lost_s: float = 0.0, steps: int = 600) -> list[Late]:
    found = [pace.step(0.01, late_s, lost_s, 0.01 * number) for number in range(steps)]
    return [each for each in found if each is not None]


def test_steps_in_time_are_not_reported() -> None:
    pace = Pace()

    assert lates(pace, late_s=0.0005) == []
    assert pace.shown() == {"steps": 600, "late_windows": 0, "worst_late_s": 0.0005}


def test_late_steps_and_lost_time_are_reported_with_their_numbers() -> None:
    (late,) = lates(Pace(), late_s=0.004)
    (lost,) = lates(Pace(), late_s=0.0, lost_s=0.001)

    assert "steps of 10.0 ms ended 4.0 ms late on average" in str(late)
    assert lost.lost_s > 0.4


def test_a_single_hiccup_is_reported() -> None:
    pace = Pace()
    found = [pace.step(0.01, 0.04 if number == 3 else 0.0, 0.0, 0.01 * number) for number in range(600)]

    assert [each.worst_s for each in found if each is not None] == [0.04]


def test_each_window_is_judged_by_itself() -> None:
    pace = Pace()
    found = [pace.step(0.01, 0.05 if number < 500 else 0.0, 0.0, 0.01 * number) for number in range(2000)]

    assert sum(each is not None for each in found) == 1
    assert pace.late_windows == 1


async def test_a_running_engine_tells_of_late_steps() -> None:
    told: list[Late] = []
    # Between two looks at the clock, 0.3 s pass.
    clock = map(float.__mul__, itertools.repeat(0.3), map(float, itertools.count()))
    cores = Cores(Model(costs=Costs(step_s=0.001)), lambda: next(clock), random.Random(1), told.append)
    sequence = Sequence(1, (1, 2, 3), 40)
    running = asyncio.create_task(cores.run())
    with cores.running([sequence], every_token=False) as changed:
        await changed.wait()
    running.cancel()

    assert sequence.produced == 40
    assert all(each.lost_s > 0 for each in told)
    assert len(told) == cores.pace.late_windows > 0
