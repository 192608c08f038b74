"""The demo with the engine simulator: its first and last lines, and the sentence of the result."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from demo.__main__ import sentence
from demo.load import Tenant, p95
from toolbox.ports import free_port
from toolbox.processes import Process, module

ROOT = Path(__file__).parents[3]


def tenants() -> list[Tenant]:
    made = [
        Tenant(name, tier, "key", 1, 0.0, 1.0)
        for name, tier in (("checkout", "guaranteed"), ("search", "elastic"), ("batch", "spot"))
    ]
    for tenant, served, shed in zip(made, (30, 20, 10), (0, 2, 90), strict=True):
        tenant.answers.update({200: served, 429: shed})
    made[0].first_token_ms, made[0].alone_count = [50.0] * 10 + [60.0] * 20, 10
    return made


def test_the_sentence_has_the_numbers_of_the_run() -> None:
    assert sentence(tenants(), 30.2, 1).strip() == (
        "Shown in 30 s on one engine: 95 % of the answers to checkout (guaranteed) began within 50 ms while"
        " it was alone, and within 60 ms in the overload; 0 of 30 guaranteed, 2 of 22 elastic and"
        " 90 of 100 spot requests were shed."
    )


def test_too_few_responses_are_not_compared() -> None:
    made = tenants()
    made[0].alone_count = None
    assert "checkout (guaranteed) received too few responses for a comparison" in sentence(made, 3, 2)
    assert "on 2 engines" in sentence(made, 3, 2)


def test_a_percentile_is_an_observed_value() -> None:
    assert p95([float(n) for n in range(1, 101)]) == 95
    assert p95([1.0] * 4) is None


@contextlib.contextmanager
def simulated(folder: Path) -> Iterator[str]:
    """An engine simulator of eight slots."""
    port = free_port()
    command = [*module("loadgen"), "engine", "--port", str(port), "--slots", "8"]
    with Process("engine", command, folder, probe=f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


def test_the_demo_begins_with_the_live_page_and_ends_with_the_result(tmp_path: Path) -> None:
    with simulated(tmp_path) as engine:
        environment = os.environ | {"DEMO_UPSTREAM": engine, "DEMO_MODEL": "tiny", "DEMO_SECONDS": "8"}
        done = subprocess.run(
            [sys.executable, "-m", "demo"],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    page = re.fullmatch(r"demo: the live page will be at (http://127\.0\.0\.1:\d+/)", lines[0])
    assert page is not None
    assert f"The live page: {page[1]}" in lines
    assert re.fullmatch(r"Shown in \d+ s on one engine: .* requests were shed\.", lines[-1])


def test_a_wrong_number_is_reported_before_the_start() -> None:
    environment = os.environ | {"SIDECARS": "nine"}
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "demo: SIDECARS='nine' is not a number from 1 to 8\n"
