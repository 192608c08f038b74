"""The commands of the pages in docs/tasks run as written, against real processes.

A block ``console run`` is a script for bash. A block ``text`` after it has lines of its output. In them,
spaces stand for any space, and an ellipsis for any text.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coordinator.usage.opened import open_usage_store
from tokenpool.usage.record import UsageRecord
from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess

ROOT = Path(__file__).parents[3]
PAGES = sorted(path for path in (ROOT / "docs" / "tasks").glob("*.md") if path.name != "README.md")
BLOCK = re.compile(r"^( *)```(console run|text)\n(.*?)^\1```$", re.M | re.S)

POOL = """\
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000, kv_tokens: 16384, concurrency: 8}
    usage_records: true
    prices: {currency: EUR, input: 0.40, cached_input: 0.10, output: 1.60}
entitlements:
  - {name: checkout, pool: chat, tier: guaranteed, guarantee: {concurrency: 2}, api_keys: [checkout-key]}
"""
SEARCH = """\
entitlements:
  - {name: search, pool: chat, tier: elastic}
"""
CRAWLER = """\
entitlements:
  - {name: crawler, pool: chat, tier: elastic, ceiling: {concurrency: 1}, api_keys: [crawler-key]}
"""


TENANTS = {
    "find-out-why-somebody-is-shed": {"crawler": CRAWLER},
    "rotate-a-key": {"search": SEARCH},
}
"""Further files of the folder ``pools``, by page."""
ATTEMPTS = 5
"""How often a script is tried that waits for a change to be in force: a busy machine takes longer."""
TOKEN = "token-of-alice-0123456789"


@dataclass
class Step:
    """A script, and lines of its output."""

    script: str
    expected: list[str] = field(default_factory=list)


def steps(page: Path) -> list[Step]:
    """The scripts of a page, in order."""
    found: list[Step] = []
    for _, kind, content in BLOCK.findall(page.read_text()):
        text = textwrap.dedent(content)
        if kind == "console run":
            found.append(Step(text))
        elif found:
            found[-1].expected += text.splitlines()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_is_in_the_index_and_has_commands(page: Path) -> None:
    assert f"]({page.name})" in (ROOT / "docs" / "tasks" / "README.md").read_text()
    assert steps(page)


def test_what_is_expected_may_have_gaps() -> None:
    assert matches("a  …  d", "x\n a b c d\n")
    assert not matches("a … d", "a b c\n")


def matches(expected: str, output: str) -> bool:
    """Whether a line of the output is as expected."""
    words = expected.split()
    pattern = r"\s*" + r"\s+".join(map(re.escape, words)) + r"\s*"
    pattern = pattern.replace(r"\s+…", ".*").replace(r"…\s+", ".*").replace("…", ".*")
    return any(re.fullmatch(pattern, line) for line in output.splitlines())


# --- the processes ---


def last_month() -> datetime:
    """Noon on the tenth day of the last month."""
    first = datetime.now(UTC).replace(day=1, hour=12, minute=0, second=0, microsecond=0)
    return (first - timedelta(days=1)).replace(day=10)


def record(number: int, entitlement: str, inputs: int, cached: int, outputs: int) -> UsageRecord:
    return UsageRecord(
        f"doc-{number}", last_month().timestamp() + number, "chat", entitlement, "tiny", "/v1/completions",
        inputs, outputs, cached, ttft_s=0.1, outcome="finished", replica="s0", credential_id="k1",
    )  # fmt: skip


async def seed(path: Path, records: Sequence[UsageRecord]) -> None:
    store = open_usage_store(str(path))
    await store.add(records)
    await store.close()


RECORDS = {
    "read-last-months-usage": [
        record(1, "checkout", 600_000, 200_000, 300_000),
        record(2, "checkout", 400_000, 0, 200_000),
    ],
    "find-out-why-somebody-is-shed": [record(n, "crawler", 200, 0, 50) for n in range(20)],
}


@contextlib.contextmanager
def world(page: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Redis, an engine, a coordinator and a sidecar in this folder; yields the variables of the commands."""
    (folder / "pools").mkdir()
    (folder / "pools" / "pool.yaml").write_text(POOL)
    for name, text in TENANTS.get(page.stem, {}).items():
        (folder / "pools" / f"{name}.yaml").write_text(text)
    (folder / "tokens").write_text(f"alice {TOKEN}\n")
    asyncio.run(seed(folder / "usage.db", RECORDS.get(page.stem, [])))
    engine, listen, admin, lead = (free_port() for _ in range(4))
    logs = folder / "logs"
    with contextlib.ExitStack() as stack:
        redis = RedisProcess(logs)
        logs.mkdir()
        store = ("--store", redis.url, "--log-level", "warning", "--config", str(folder / "pools"))
        processes = [
            redis,
            Process(
                "engine",
                [*module("loadgen.engine"), "--port", str(engine)],
                logs,
                probe=f"http://127.0.0.1:{engine}/health",
            ),
            Process(
                "coordinator",
                [*module("coordinator"), "run", *store, "--listen", f"127.0.0.1:{lead}",
                 "--usage-store", str(folder / "usage.db"),
                 "--administrator-tokens", str(folder / "tokens")],
                logs,
                probe=f"http://127.0.0.1:{lead}/readyz",
            ),
            Process(
                "sidecar",
                [*module("sidecar"), "run", *store, "--upstream", f"http://127.0.0.1:{engine}",
                 "--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"],
                logs,
                probe=f"http://127.0.0.1:{admin}/readyz",
            ),
        ]  # fmt: skip
        for each in processes:
            stack.enter_context(each)
        if page.stem == "find-out-why-somebody-is-shed":
            stack.enter_context(busy(f"http://127.0.0.1:{listen}"))
        yield {
            "TOKENPOOL_URL": f"http://127.0.0.1:{lead}",
            "SIDECAR": f"http://127.0.0.1:{listen}",
            "SIDECAR_ADMIN": f"http://127.0.0.1:{admin}",
            "TOKENPOOL_TOKEN": TOKEN,
        }


@contextlib.contextmanager
def busy(sidecar: str) -> Iterator[None]:
    """A long answer holds the only sequence of the crawler. It takes 20 s; its client leaves before."""
    body = b'{"model": "tiny", "prompt": "long", "max_tokens": 2000, "stream": true}'
    headers = {"authorization": "Bearer crawler-key", "content-type": "application/json"}
    request = urllib.request.Request(f"{sidecar}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.readline()
        yield


def programs(folder: Path) -> Path:
    """A folder with the programs, which run this checkout."""
    path = folder / "bin"
    path.mkdir()
    for name, package in (("tokenpool", "cli"), ("tokenpool-sidecar", "sidecar")):
        (path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {package} "$@"\n')
        (path / name).chmod(0o755)
    return path


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_commands_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    path = f"{programs(tmp_path)}:{os.environ['PATH']}"
    with world(page, tmp_path) as variables:
        environment = {
            **os.environ,
            **variables,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "PYTHONSAFEPATH": "1",
        }
        for step in steps(page):
            attempts = ATTEMPTS if "sleep" in step.script else 1
            for attempt in range(attempts):
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", step.script],
                    cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
                missing = [line for line in step.expected if not matches(line, done.stdout)]
                if done.returncode == 0 and not missing:
                    break
                said = f"{step.script}\n{done.stdout}\n{done.stderr}"
                assert attempt < attempts - 1, f"status {done.returncode}, without {missing}:\n{said}"
