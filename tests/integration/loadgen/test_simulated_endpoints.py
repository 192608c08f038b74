"""Each endpoint of the engine simulator, whose formats are vLLM's, directly and through a real sidecar."""

from __future__ import annotations

import io
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from loadgen.progress import Progress
from loadgen.records import Outcome, Run, load
from loadgen.run import Order, Runner
from loadgen.scenario import Constant, Endpoint, Fixed, Tenant
from tests.integration.loadgen.engine.simulated import simulated
from tests.support.harness import is_whole, sidecar_for, until
from tests.support.loadgen_builders import scenario, tenant

GENERATING = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES)
POOLING = (Endpoint.EMBEDDINGS, Endpoint.RERANK)
COUNT, INPUT, OUTPUT = 4, 40, 5


def asking(endpoint: Endpoint, **fields: object) -> Tenant:
    output = Fixed(OUTPUT if endpoint in GENERATING else 0)
    return tenant(
        process=Constant(20.0), endpoint=endpoint, name=endpoint.value, key="g-key", input=Fixed(INPUT),
        output=output, **fields,
    )  # fmt: skip


async def measured(out: Path, url: str, *tenants: Tenant, stream: bool = True) -> Run:
    made = scenario(*tenants, duration_s=COUNT / 20, drain_s=5.0, timeout_s=5.0, stream=stream)
    await Runner(Order(made, [url], out, "test"), Progress(io.StringIO()), time.monotonic).run()
    return load(out)


@pytest.mark.parametrize("stream", [True, False])
async def test_all_endpoints_are_measured_by_the_engines_counts(tmp_path: Path, stream: bool) -> None:
    async with simulated() as client:
        run = await measured(tmp_path, client.url, *map(asking, Endpoint), stream=stream)
    assert Counter((a.tenant, a.outcome, a.reason) for a in run.attempts) == {
        (endpoint.value, Outcome.SERVED, ""): COUNT for endpoint in Endpoint
    }
    for attempt in run.attempts:
        assert attempt.tokens == attempt.output_tokens
        assert (attempt.first_s is not None) is (stream and attempt.tenant in GENERATING)
        # The templates of chats and of pairs add a few tokens.
        assert INPUT <= attempt.prompt_tokens <= INPUT * 2


async def test_all_endpoints_pass_a_sidecar(tmp_path: Path) -> None:
    async with simulated() as client, sidecar_for(urlsplit(client.url).port or 0, tmp_path) as sidecar:
        url = f"http://127.0.0.1:{sidecar.listens_on.port}"
        run = await measured(tmp_path, url, *map(asking, Endpoint))
        await until(lambda: is_whole(sidecar))
    ended = Counter((a.tenant, a.outcome) for a in run.attempts if a.is_last)
    assert {outcome for _, outcome in ended} <= {Outcome.SERVED, Outcome.SHED}
    assert {name for name, outcome in ended if outcome is Outcome.SERVED} == set(Endpoint)
