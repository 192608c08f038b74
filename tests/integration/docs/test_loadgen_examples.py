"""The scenarios in docs/examples run: with the commands in their comments, in a short form.

Engines are simulated. The sidecar and its pool are real. Addresses and durations are other than in the files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from loadgen import examples
from loadgen.__main__ import main
from loadgen.records import Attempt, Outcome, load
from toolbox.ports import free_port
from toolbox.processes import Process, module

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "loadgen.md").read_text()
SHORT = {
    "run": "--duration 2.4",
    "sweep": "--duration 1 --rates 4",
    "capacity": "--duration 1 --most-runs 1 --most-time 3",
}
"""Further options of each command. The last of two wins."""


def commands(text: str) -> list[str]:
    """The commands of loadgen in a text, with their continued lines."""
    return re.findall(r"^(loadgen .+)$", re.sub(r"\s*\\\n\s*", " ", text), re.MULTILINE)


def commented(name: str) -> list[str]:
    """The commands in the comments of an example."""
    lines = [line for line in examples.find(name).text.splitlines() if line.startswith("#")]
    return commands("\n".join(line.lstrip("# ") for line in lines))


def ran(
    folder: Path, command: str, urls: Mapping[str, str], options: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command in its short form, or with other ``options`` than those of ``SHORT``."""
    for written, actual in urls.items():
        command = command.replace(written, actual)
    words = shlex.split(command)[1:]
    return subprocess.run(
        [*module("loadgen"), *words, *shlex.split(options or SHORT.get(words[0], ""))],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def engine(port: int, folder: Path) -> Process:
    command = [*module("loadgen.engine"), "--port", str(port), "--slots", "8"]
    return Process(f"engine-{port}", command, folder / "logs", probe=f"http://127.0.0.1:{port}/health")


@contextlib.contextmanager
def pool(folder: Path) -> Iterator[dict[str, str]]:
    """An engine and its sidecar with the pool of the page, and their addresses by those of the page."""
    port, listen, admin = (free_port() for _ in range(3))
    sidecar = Process(
        "sidecar",
        [*module("sidecar"), "run", "--config", str(EXAMPLES / "trial-pool.yaml"), "--log-level", "error",
         "--upstream", f"http://127.0.0.1:{port}", "--listen", f"127.0.0.1:{listen}",
         "--admin", f"127.0.0.1:{admin}"],
        folder / "logs",
        probe=f"http://127.0.0.1:{admin}/readyz",
    )  # fmt: skip
    with engine(port, folder), sidecar:
        yield {
            "http://127.0.0.1:8080": f"http://127.0.0.1:{listen}",
            "http://127.0.0.1:9090": f"http://127.0.0.1:{admin}",
        }


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with pool(tmp_path_factory.mktemp("pool")) as found:
        yield found


def written(folder: Path, name: str) -> None:
    done = subprocess.run(
        [*module("loadgen"), "init", name],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def attempts(folder: Path, tenant: str) -> list[Attempt]:
    return [attempt for attempt in load(folder).attempts if attempt.tenant == tenant]


def last_outcomes(folder: Path, tenant: str) -> list[Outcome]:
    return [attempt.outcome for attempt in attempts(folder, tenant) if attempt.is_last]


def test_each_example_is_one_file() -> None:
    packaged = ROOT / "loadgen" / "examples"
    for path in packaged.iterdir():
        if path.suffix in {".yaml", ".jsonl"}:
            assert (EXAMPLES / path.name).is_symlink()
            assert (EXAMPLES / path.name).resolve() == path
    assert {f"{name}.yaml" for name in examples.ORDER} == {path.name for path in packaged.glob("*.yaml")}


@pytest.mark.parametrize("name", examples.ORDER)
def test_an_example_is_valid_and_asks_a_question(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(EXAMPLES / f"{name}.yaml")]) == 0
    assert examples.find(name).question.endswith("?")
    assert commented(name)
    assert f"loadgen init {name}" in PAGE or f"(examples/{name}.yaml)" in PAGE


def test_the_guarantee_is_kept_while_others_ask_for_more(tmp_path: Path, urls: dict[str, str]) -> None:
    written(tmp_path, "guarantee")
    (command,) = commented("guarantee")
    done = ran(tmp_path, command, urls)
    out = tmp_path / "out" / "guarantee"
    assert done.returncode in (0, 1), done.stderr  # 1: a busy machine misses the goal for the latency
    goals = msgspec.json.decode((out / "goals.json").read_bytes())
    assert [goal["goal"] for goal in goals] == ["checkout.served.share>=99%", "checkout.ttft.p95<=300ms"]
    assert set(last_outcomes(out, "checkout")) == {Outcome.SERVED}
    assert Outcome.SHED in last_outcomes(out, "batch")
    assert "attempts that were not served" in done.stdout


def test_the_knee_and_the_capacity_are_searched(tmp_path: Path, urls: dict[str, str]) -> None:
    written(tmp_path, "knee")
    sweep, capacity = commented("knee")
    done = ran(tmp_path, sweep, urls)
    assert done.returncode == 0, done.stderr
    rates = msgspec.json.decode((tmp_path / "out/knee/rates.json").read_bytes())
    assert [point["rate"] for point in rates["points"]] == [4]
    done = ran(tmp_path, capacity, urls)
    assert done.returncode in (0, 1), done.stderr  # 1: so short a run has no certainty
    assert "Capacity:" in done.stdout


def test_tenants_of_equal_weight_get_equal_shares(tmp_path: Path, urls: dict[str, str]) -> None:
    written(tmp_path, "fair")
    (command,) = commented("fair")
    done = ran(tmp_path, command, urls)
    assert done.returncode == 0, done.stderr
    served = {
        tenant: sum(each.tokens for each in attempts(tmp_path / "out/fair", tenant) if each.sent_s >= 0.9)
        for tenant in ("search", "reports")
    }
    # Two seconds of a busy machine: without a sidecar, it is four times as much.
    assert served["reports"] < 2.5 * served["search"]


def test_a_replica_dies_and_clients_go_to_the_other(tmp_path: Path) -> None:
    written(tmp_path, "replica-dies")
    (command,) = commented("replica-dies")
    first, second = free_port(), free_port()
    with engine(first, tmp_path), engine(second, tmp_path) as dies:
        (tmp_path / "replica-2.pid").write_text(f"{dies.pid}\n")
        addresses = {"127.0.0.1:8001": f"127.0.0.1:{first}", "127.0.0.1:8002": f"127.0.0.1:{second}"}
        done = ran(tmp_path, command, addresses, "--duration 4")
        assert done.returncode == 0, done.stderr
        assert dies.has_ended
    run = load(tmp_path / "out/dies")
    assert [(fault.what, fault.result) for fault in run.meta.faults] == [("SIGKILL to replica-2.pid", "done")]
    # Requests that were due after the death, with time for another attempt before the end.
    late = [each for each in run.attempts if each.is_last and 1.4 < each.intended_s < 2.5]
    assert late
    assert {each.outcome for each in late} == {Outcome.SERVED}
    assert any(each.attempt > 1 for each in run.attempts)
    assert "connection refused" in done.stdout


def test_a_trace_is_sent_at_its_times(tmp_path: Path, urls: dict[str, str]) -> None:
    written(tmp_path, "trace")
    (command,) = commented("trace")
    done = ran(tmp_path, command, urls)
    assert done.returncode == 0, done.stderr
    rows = map(msgspec.json.decode, (tmp_path / "trace.jsonl").read_text().splitlines())
    expected = [(row["at"], row["input"], row["output"]) for row in rows if row["at"] < 2.4]
    sent = [each for each in attempts(tmp_path / "out/trace", "search") if each.attempt == 1]
    found = [(each.intended_s, each.input_tokens, each.output_tokens) for each in sent]
    assert sorted(found) == [(pytest.approx(at), *lengths) for at, *lengths in expected]


def test_conversations_have_several_turns(tmp_path: Path, urls: dict[str, str]) -> None:
    written(tmp_path, "conversations")
    text = (tmp_path / "conversations.yaml").read_text()
    (tmp_path / "conversations.yaml").write_text(
        text.replace("rate: 0.5", "rate: 4").replace("mean: 3", "mean: 0.1")
    )
    (command,) = commented("conversations")
    done = ran(tmp_path, command, urls)
    assert done.returncode == 0, done.stderr
    turns = {each.turn for each in attempts(tmp_path / "out/conversations", "search")}
    assert {1, 2} <= turns


def test_a_gate_has_an_exit_status(tmp_path: Path, urls: dict[str, str]) -> None:
    written(tmp_path, "gate")
    run, compare = commented("gate")
    done = ran(tmp_path, run, urls)
    assert done.returncode in (0, 1), done.stderr
    assert (tmp_path / "out/new/goals.json").exists()
    ran(tmp_path, run.replace("out/new", "out/old"), urls)
    done = ran(tmp_path, compare, urls)
    assert done.returncode in (0, 1), done.stderr
    assert "checkout.ttft.p50>+20%" in done.stdout


def test_the_commands_of_the_page_are_those_of_the_examples() -> None:
    """A command of the page differs from that of the example in the folder and in goals at most."""
    for command in commands(PAGE):
        words = shlex.split(command)[1:]
        if words[0] in SHORT:
            name = words[1].removesuffix(".yaml")
            known = [shlex.split(each)[1:] for each in commented(name)]
            assert any(each[:2] == words[:2] for each in known), command
        elif words[0] == "init" and len(words) > 1:
            assert words[1] in examples.ORDER
