"""The reader of the engine's metrics page: text format, exact names, several engines, kinds of caches."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.engine.metrics_page import MOST_LINE_BYTES, PageReader, PageUnusable, read_sample
from tokenpool.capacity.model import EngineObservation

RUNNING = b'vllm:num_requests_running{engine="0",model_name="tiny"} 2.0\n'


def observed(page: bytes, cut: int = 4096) -> EngineObservation:
    """The page, as it is read in pieces of ``cut`` bytes."""
    reader = PageReader()
    for at in range(0, len(page), cut):
        reader.feed(page[at : at + cut])
    return reader.observation(1.0)


def info(**labels: object) -> bytes:
    """One series of ``vllm:cache_config_info``, and a load."""
    text = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"vllm:cache_config_info{{{text}}} 1.0\n".encode()


def cache(*series: bytes) -> float | None:
    return observed(RUNNING + b"".join(series)).kv_tokens


# --- the text format ---


@pytest.mark.parametrize(
    ("rest", "labels", "value"),
    [
        (b" 3", {}, 3),
        (b"\t3\r", {}, 3),
        (b"{} 3", {}, 3),
        (b'{a="1"} 3', {b"a": b"1"}, 3),
        (b'{a="1",} 3', {b"a": b"1"}, 3),
        (b'{ a = "1" , b = "2" } 3', {b"a": b"1", b"b": b"2"}, 3),
        (b'{a=""}3', {b"a": b""}, 3),
        (b'{a="} 9",b="x,y=\\"z\\""} 3', {b"a": b"} 9", b"b": b'x,y="z"'}, 3),
        (b'{a="C:\\\\dir\\nnext"} 3', {b"a": b"C:\\dir\nnext"}, 3),
        (b'{a="\xc3\xa9"} 3', {b"a": b"\xc3\xa9"}, 3),
        (b'{"a.b"="1"} 3', {b"a.b": b"1"}, 3),
        (b'{a="1"} 3 1700000000000', {b"a": b"1"}, 3),
        (b'{a="1"} 3 # {trace_id="x"} 0.5 1700000000', {b"a": b"1"}, 3),
        (b" 1.5e+03", {}, 1500),
        (b" .5", {}, 0.5),
        (b" +Inf", {}, math.inf),
        (b" -2", {}, -2),
    ],
)
def test_a_sample_is_read_as_the_format_says(rest: bytes, labels: dict[bytes, bytes], value: float) -> None:
    sample = read_sample(b"n", rest)
    assert sample is not None
    assert (sample.labels, sample.value) == (labels, value)


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"{",
        b'{a="1" 3',
        b'{a="1"',
        b'{a="1"}',
        b'{a="1} 3',
        b"{a=1} 3",
        b'{="1"} 3',
        b'{a="1" b="2"} 3',
        b'{,a="1"} 3',
        b'{a="1"} x',
        b" 1_000",
        b" 0x10",
        b" 1,5",
    ],
)
def test_a_line_that_breaks_the_format_is_no_sample(rest: bytes) -> None:
    assert read_sample(b"n", rest) is None


def test_a_page_is_read_the_same_wherever_it_is_cut() -> None:
    page = RUNNING + info(engine="0", block_size=16, num_gpu_blocks=100) + b"# EOF"
    whole = observed(page)
    assert whole.running == 2
    assert whole.kv_tokens == 1600
    assert all(observed(page, cut) == whole for cut in range(1, len(page)))


def test_only_whole_names_are_read() -> None:
    page = (
        b"# HELP vllm:num_requests_running 7\n"
        b"# TYPE vllm:num_requests_running gauge\n"
        b"vllm:num_requests_running 2\n"
        b"vllm:num_requests_running_bucket 7\n"
        b"vllm:num_requests_running_created 1.7e9\n"
        b"xvllm:num_requests_running 7\n"
        b"vllm:num_requests_waiting_by_reason 7\n"
        b'vllm:prompt_tokens_by_source_total{source="local_compute"} 7\n'
        b"vllm:request_prompt_tokens_sum 7\n"
    )
    seen = observed(page)
    assert (seen.running, seen.waiting, seen.prompt_tokens) == (2, 0, 0)


@pytest.mark.parametrize("value", [b"NaN", b"-1", b"+Inf", b"x", b""])
def test_a_number_that_cannot_be_is_no_number(value: bytes) -> None:
    seen = observed(RUNNING + b"vllm:num_requests_waiting " + value + b"\nvllm:kv_cache_usage_perc 55\n")
    assert (seen.waiting, seen.kv_usage) == (0, 0)
    with pytest.raises(PageUnusable, match="no metrics page"):
        observed(b"vllm:num_requests_running " + value + b"\n")


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"", "no metrics page"),
        (b"<!doctype html><title>Sign in</title>\n", "no metrics page"),
        (b"\x00\xff\n" * 1000, "no metrics page"),
        (b"python_info 1\n", "no metrics page"),
        (RUNNING[:-5], "middle of a line"),
        (RUNNING + b"vllm:num_requ", "middle of a line"),
        (b"x" * (MOST_LINE_BYTES + 4097), "a line of more than 16 KiB"),
        (b"x\n" * (4 << 20) + b"\n", "larger than 8 MiB"),
        (
            b"".join(b'vllm:num_requests_running{a="%d"} 1\n' % n for n in range(5000)),
            "more than 4096 series",
        ),
    ],
    ids=["empty", "HTML", "binary", "another program", "cut", "cut later", "line", "size", "series"],
)
def test_a_page_that_cannot_be_used_says_why(page: bytes, why: str) -> None:
    with pytest.raises(PageUnusable, match=why):
        observed(page)


_PIECES = st.sampled_from(
    [
        *(b"vllm:num_requests_running", b"vllm:cache_config_info", b"sglang:max_total_num_tokens"),
        *(b"vllm:kv_cache_usage_perc", b"sglang:num_running_reqs", b"process_start_time_seconds"),
        *(b'engine="1"', b'block_size="16"', b'num_gpu_blocks="9"', b'kv_cache_size_tokens="1e5"'),
        *(b"{", b"}", b",", b"=", b'"', b"\\", b" ", b"\n", b"1", b"-", b".5", b"e9", b"NaN", b"+Inf", b"#"),
    ]
)


@given(st.lists(_PIECES | st.binary(max_size=4), max_size=60), st.integers(1, 40))
def test_whatever_a_page_is_its_numbers_are_numbers(pieces: list[bytes], cut: int) -> None:
    try:
        seen = observed(b"".join(pieces) + b"\n" + RUNNING, cut)
    except PageUnusable as error:
        pytest.fail(str(error))
    assert all(
        0 <= n < math.inf for n in (seen.running, seen.waiting, seen.prompt_tokens, seen.cached_tokens)
    )
    assert 0 <= seen.kv_usage <= 1
    assert seen.block_size >= 1
    assert seen.kv_tokens is None or seen.kv_tokens > 0


# --- E2: no KV cache ---


@pytest.mark.parametrize("size", [{}, {"kv_cache_size_tokens": "None"}, {"kv_cache_size_tokens": 0}])
def test_e2_one_block_for_each_engine_is_no_cache(size: dict[str, object]) -> None:
    assert cache(info(block_size=16, num_gpu_blocks=1, **size)) == math.inf
    # vLLM's front-end sums the blocks of its engines.
    two = [info(engine=n, block_size=16, num_gpu_blocks=2, **size) for n in (0, 1)]
    assert cache(*two) == math.inf
    assert cache(*(info(engine=n, block_size=16, num_gpu_blocks=1, **size) for n in (0, 1, 2))) == math.inf


def test_e2_a_small_cache_is_still_one() -> None:
    assert cache(info(block_size=16, num_gpu_blocks=2)) == 32


def test_an_engine_that_does_not_say_has_an_unknown_cache() -> None:
    assert cache() is None
    assert cache(info(block_size=16, num_gpu_blocks="None")) is None
    assert cache(info(block_size=16)) is None


# --- E3: several engines ---


@pytest.mark.parametrize(
    ("series", "tokens"),
    [
        ([{"engine": 0, "kv_cache_size_tokens": 16000, "num_gpu_blocks": 1000}], 16_000),
        # vLLM 0.32: the size is one engine's, the blocks are the sum.
        ([{"engine": n, "kv_cache_size_tokens": 16000, "num_gpu_blocks": 4000} for n in range(4)], 64_000),
        ([{"engine": n, "kv_cache_size_tokens": 16000, "num_gpu_blocks": 1000} for n in range(4)], 64_000),
        ([{"engine": n, "kv_cache_size_tokens": 16000 + n} for n in range(2)], 32_001),
        # Only the first engine has said it.
        ([{"engine": n, "kv_cache_size_tokens": 16000 if n == 0 else "None"} for n in range(2)], 32_000),
        # Before kv_cache_size_tokens: equal numbers are the sum, others each engine's.
        ([{"engine": n, "num_gpu_blocks": 2000} for n in range(2)], 32_000),
        ([{"engine": n, "num_gpu_blocks": 1000 + n} for n in range(2)], 32_016),
        # One engine under several names, or with an old series beside the new one.
        ([{"engine": 0, "model_name": m, "kv_cache_size_tokens": 16000} for m in "ab"], 16_000),
        ([{"model_name": m, "num_gpu_blocks": 1000} for m in "ab"], 16_000),
        ([{"engine": 0, "kv_cache_size_tokens": n} for n in ("None", 16000)], 16_000),
    ],
)
def test_e3_capacity_is_the_sum_over_the_engines(series: list[dict[str, object]], tokens: float) -> None:
    assert cache(*(info(block_size=16, **labels) for labels in series)) == tokens


def test_e3_cache_use_is_the_mean_by_size_and_loads_add_up() -> None:
    loads = b"".join(
        b'vllm:num_requests_running{engine="%d",model_name="m"} %d\n'
        b'vllm:kv_cache_usage_perc{engine="%d",model_name="m"} %g\n' % (n, n + 1, n, use)
        for n, use in enumerate((0.9, 0.1))
    )
    sizes = [
        info(engine=n, block_size=16, kv_cache_size_tokens=tokens) for n, tokens in ((0, 1000), (1, 3000))
    ]
    seen = observed(loads + b"".join(sizes))
    assert (seen.running, seen.kv_usage) == (3, pytest.approx((900 + 300) / 4000))
    assert observed(loads).kv_usage == pytest.approx(0.5)
    assert observed(loads + sizes[0]).kv_usage == pytest.approx(0.5)


def test_e3_one_engine_under_two_names_fills_its_cache_once() -> None:
    page = RUNNING + b"".join(
        b'vllm:kv_cache_usage_perc{engine="%d",model_name="%s"} %g\n' % row
        for row in ((0, b"a", 0.8), (0, b"b", 0.8), (1, b"a", 0.2))
    )
    assert observed(page).kv_usage == pytest.approx(0.5)


# --- E4: labels by their whole names ---


def test_e4_the_block_size_is_not_another_label_that_ends_like_it() -> None:
    labels = {"block_size": 528, "mamba_block_size": 262144, "num_gpu_blocks": 1000}
    for order in (labels, dict(reversed(labels.items()))):
        seen = observed(RUNNING + info(**order))
        assert (seen.block_size, seen.kv_tokens) == (528, 528_000)


@pytest.mark.parametrize(
    ("labels", "block", "tokens"),
    [
        # DeepSeek-V4: block_size is the scheduler's unit; a request takes blocks of 256.
        (
            {
                "block_size": 4,
                "hash_block_size": 64,
                "user_specified_block_size": "True",
                "effective_attention_block_size": 256,
                "kv_cache_size_tokens": 178_880,
                "num_gpu_blocks": 9000,
            },
            256,
            178_880,
        ),
        # Decode context parallel: a block holds so many tokens on each of four ranks.
        ({"block_size": 16, "effective_attention_block_size": 64, "num_gpu_blocks": 100}, 64, 6400),
        ({"block_size": 16, "effective_attention_block_size": "None", "num_gpu_blocks": 100}, 16, 1600),
        # Overrides and CPU blocks are no GPU blocks.
        (
            {"num_gpu_blocks_override": 7, "num_cpu_blocks": 9, "block_size": 16, "num_gpu_blocks": 100},
            16,
            1600,
        ),
        # Nobody has a block of more than a million tokens: every request would cost as much.
        ({"block_size": 10**9, "kv_cache_size_tokens": 5000}, 16, 5000),
        ({"block_size": 0, "kv_cache_size_tokens": 5000}, 16, 5000),
        ({"block_size": "auto", "num_gpu_blocks": 100}, 16, 1600),
        ({"block_size": "-16", "num_gpu_blocks": "1e3"}, 16, None),
    ],
)
def test_e4_the_shape_of_hybrid_and_sharded_caches(
    labels: dict[str, object], block: int, tokens: float | None
) -> None:
    seen = observed(RUNNING + info(**labels))
    assert (seen.block_size, seen.kv_tokens) == (block, tokens)


def test_e4_a_value_that_looks_like_a_label_is_a_value() -> None:
    path = '/models/block_size=\\"1\\",num_gpu_blocks=\\"9\\"}'
    seen = observed(RUNNING + info(kv_offloading_backend=path, block_size=32, num_gpu_blocks=10))
    assert (seen.block_size, seen.kv_tokens) == (32, 320)


# --- E6: names of several releases and engines ---


@pytest.mark.parametrize(
    ("lines", "cached"),
    [
        (b"vllm:gpu_prefix_cache_hits_total 30\n", 30),
        (b"vllm:gpu_prefix_cache_hits 30\n", 30),
        (b"vllm:prefix_cache_hits_total 30\n", 30),
        (b"vllm:prefix_cache_hits 30\n", 30),
        # A release that renames a series has both for a while.
        (b"vllm:gpu_prefix_cache_hits_total 30\nvllm:prefix_cache_hits_total 30\n", 30),
        # Local and external hits together, where the page has them.
        (b"vllm:prefix_cache_hits_total 30\nvllm:prompt_tokens_cached_total 50\n", 50),
        (b"vllm:prefix_cache_queries_total 30\nvllm:mm_cache_hits_total 40\n", 0),
    ],
)
def test_e6_cached_tokens_under_every_name(lines: bytes, cached: float) -> None:
    assert observed(RUNNING + lines).cached_tokens == cached


def test_e6_cache_use_and_counters_under_old_and_openmetrics_names() -> None:
    page = b"vllm:gpu_cache_usage_perc 0.25\nvllm:prompt_tokens 10\nvllm:generation_tokens 20\n"
    seen = observed(RUNNING + page)
    assert (seen.kv_usage, seen.prompt_tokens, seen.generation_tokens) == (0.25, 10, 20)
    both = observed(RUNNING + page + b"vllm:kv_cache_usage_perc 0.5\nvllm:prompt_tokens_total 11\n")
    assert (both.kv_usage, both.prompt_tokens) == (0.5, 11)


def test_e6_an_sglang_page() -> None:
    """Ranks repeat each other, data-parallel ones add up; queues are repeated by priority."""
    common = b'engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0"'
    lines = [
        b'%s{%s,dp_rank="%d",tp_rank="%d",priority=""} %g' % (name, common, dp, tp, value)
        for dp in (0, 1)
        for tp in (0, 1)
        for name, value in (
            (b"sglang:num_running_reqs", 3),
            (b"sglang:num_queue_reqs", 1),
            (b"sglang:token_usage", 0.5 if dp else 0.1),
            (b"sglang:max_total_num_tokens", 20_000),
            (b"sglang:page_size", 64),
        )
    ]
    lines += [
        b'sglang:num_running_reqs{%s,dp_rank="0",tp_rank="0",priority="1"} 3' % common,
        b'sglang:prompt_tokens_total{model_name="m"} 100',
        b'sglang:generation_tokens_total{model_name="m"} 200',
        b'sglang:cached_tokens_total{cache_source="device",model_name="m"} 10',
        b'sglang:cached_tokens_total{cache_source="host",model_name="m"} 5',
    ]
    seen = observed(b"\n".join(lines) + b"\n")
    assert (seen.running, seen.waiting, seen.kv_tokens, seen.block_size) == (6, 2, 40_000, 64)
    assert seen.kv_usage == pytest.approx(0.3)
    assert (seen.prompt_tokens, seen.generation_tokens, seen.cached_tokens) == (100, 200, 15)
