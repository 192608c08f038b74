"""compose.yaml as a whole: start, requests, overload, failures, removal. The tests depend on their order."""

from __future__ import annotations

import io
import socket
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadgen import records
from loadgen.records import Attempt, Outcome
from tests.e2e.containers.stack import IMAGE, PARTS, PROJECT, READY_S, Stack, until

LARGEST_ADDED_MB = 115
"""The most megabytes that this project's image adds to the base image. It adds 107 MB with all extras: the
drivers of PostgreSQL and the library for JWTs are 20 of them."""
LARGEST_RESIDENT_MB = 70
"""A sidecar has 64 MB in this image, which is built without optimizations. `make bench` has the goal."""
LOAD_S = 24
GUARANTEED_SEQUENCES = 12
"""The guarantee of checkout in docker/pool.yaml."""
LOOK_AROUND = """
import importlib.util, os, shutil
assert os.getuid() == 65532
for module in ("pip", "ensurepip"):
    assert importlib.util.find_spec(module) is None, module
for program in ("pip", "pip3", "cc", "gcc"):
    assert shutil.which(program) is None, program
from runtime.build import this_build
assert this_build().compiled
"""


def test_the_image_is_small_and_compiled_and_has_neither_pip_nor_a_compiler_nor_root(stack: Stack) -> None:
    images = stack.engine.client.images
    size, base = (images.get(name).attrs["Size"] / 1e6 for name in (IMAGE, stack.environment["PYTHON_IMAGE"]))
    stack.engine.notes["image"] = f"{size:.0f} MB, {size - base:.0f} MB more than its base"
    stack.engine.client.containers.run(
        IMAGE, ["-c", LOOK_AROUND], entrypoint="python3", remove=True, network_mode="none", read_only=True
    )

    assert size - base < LARGEST_ADDED_MB
    assert images.get(IMAGE).labels["org.opencontainers.image.title"] == "tokenpool"
    assert images.get(IMAGE).attrs["Config"]["StopSignal"] == "SIGTERM"


@pytest.mark.parametrize("service", PARTS)
def test_every_part_has_minimal_privileges(stack: Stack, service: str) -> None:
    container = stack.container(service).attrs
    host = container["HostConfig"]

    assert stack.health(service) == "healthy"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Memory"] > 0
    assert container["Config"]["User"] not in ("", "0", "root")
    published = {p["HostIp"] for bound in (host["PortBindings"] or {}).values() for p in bound}
    assert published == ({"127.0.0.1"} if service in ("front", "prometheus") else set())


def test_the_front_port_is_answered_by_a_real_engine(stack: Stack) -> None:
    answer = stack.ask()
    streamed = stack.ask(stream=True)

    assert answer.status == 200, answer.body
    assert answer.json()["usage"]["completion_tokens"] == 8
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.body.count(b"data: ") >= 2  # on a busy machine one event may have all tokens
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert (stack.ask(key=None).status, stack.ask(key="wrong").status) == (401, 401)


def test_the_engine_itself_cannot_be_reached(stack: Stack) -> None:
    with pytest.raises(OSError, match="refused"):
        stack.page("pod-1", 8000, "/health")


def test_sidecars_know_each_other_on_the_network_of_redis_only(stack: Stack) -> None:
    def shown() -> list[dict[str, Any]]:
        return [stack.page(pod, 9090, "/debug/state")["handover"] for pod in ("pod-1", "pod-2")]

    until(lambda: all(len(each["peers"]) == 1 for each in shown()), 10, lambda: str(shown()))
    first, second = shown()
    for own, other, pod in ((first, second, "pod-1"), (second, first, "pod-2")):
        host, _, port = own["address"].rpartition(":")
        assert host == stack.address(pod)
        assert other["peers"][0]["address"] == own["address"]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((stack.address(pod, "tenants"), int(port)), 2)


def test_prometheus_scrapes_every_part_and_evaluates_every_rule(stack: Stack) -> None:
    def targets() -> dict[tuple[str, str], str]:
        active = stack.prometheus("/api/v1/targets?state=active")["activeTargets"]
        return {(each["labels"]["job"], each["labels"]["instance"]): each["health"] for each in active}

    wanted = {
        (job, name): "up"
        for name in PARTS
        for part, job in (
            ("sidecar", "tokenpool-sidecar"),
            ("sidecar", "vllm"),  # the engine's own page, through the sidecar
            ("coordinator", "tokenpool-coordinator"),
        )
        if name.startswith(part)
    }
    until(lambda: targets() == wanted, 30, targets)
    until(lambda: all(rule["health"] == "ok" for rule in _rules(stack)), 60, lambda: _rules(stack))


def _rules(stack: Stack) -> list[dict[str, Any]]:
    groups = stack.prometheus("/api/v1/rules")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_an_idle_sidecar_takes_little_memory(stack: Stack) -> None:
    pid = stack.container("sidecar-1").attrs["State"]["Pid"]
    with open(f"/proc/{pid}/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    stack.engine.notes["sidecar, resident when idle"] = f"{resident:.0f} MB"

    assert resident < LARGEST_RESIDENT_MB


def test_overload_sheds_no_request_inside_a_guarantee(stack: Stack, tmp_path: Path) -> None:
    name = f"{PROJECT}_overload"
    order = [
        *("run", "/etc/tokenpool/overload.yaml", "--url=http://front:8080", "--out=/out/run", "--seed=1"),
        f"--duration={LOAD_S}",
    ]
    print(stack.compose("run", "-T", "--name", name, "loadgen", *order, timeout=LOAD_S + 90))
    run = records.load(_copied(stack, name, tmp_path))
    checkout, batch = (
        [attempt for attempt in run.attempts if attempt.tenant == tenant] for tenant in ("checkout", "batch")
    )
    for tenant, attempts in (("checkout", checkout), ("batch", batch)):
        ended = Counter(attempt.outcome.value for attempt in attempts)
        stack.engine.notes[f"overload, {tenant}"] = ", ".join(f"{n} {how}" for how, n in ended.items())

    assert Counter(attempt.outcome for attempt in checkout)[Outcome.SERVED] > LOAD_S
    assert Counter(attempt.outcome for attempt in batch)[Outcome.SHED] > 0
    # On a slow machine more requests than the guarantee are in flight. Those beyond it may be shed.
    refused = [a for a in checkout if a.outcome in (Outcome.SHED, Outcome.PREEMPTED, Outcome.UNAVAILABLE)]
    assert [a for a in refused if _in_flight(checkout, a) < GUARANTEED_SEQUENCES] == []


def _copied(stack: Stack, container: str, folder: Path) -> Path:
    stream, _ = stack.engine.client.containers.get(container).get_archive("/out/run")
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        tar.extractall(folder, filter="data")
    return folder / "run"


def _in_flight(attempts: Sequence[Attempt], moment: Attempt) -> int:
    """The number of other requests in flight during one request."""
    return sum(a is not moment and a.sent_s < moment.end_s and a.end_s > moment.sent_s for a in attempts)


def test_requests_are_served_after_a_sidecar_is_killed(stack: Stack) -> None:
    stack.container("sidecar-1").kill()

    assert [stack.ask().status for _ in range(20)] == [200] * 20

    started = time.monotonic()
    stack.container("sidecar-1").start()
    until(lambda: stack.is_ready("pod-1", 9090), 30)
    took = time.monotonic() - started
    stack.engine.notes["sidecar, from docker start to ready"] = f"{took:.2f} s"
    stack.until_healthy("sidecar-1")


def test_requests_are_served_after_an_engine_is_killed_and_its_sidecar_reconnects(stack: Stack) -> None:
    stack.container("engine-2").kill()

    until(lambda: not stack.is_ready("pod-2", 9090), 10)
    answers = [stack.ask() for _ in range(20)]
    assert 200 in [answer.status for answer in answers]
    # A sidecar without its engine refuses, and the client's next attempt may reach the other sidecar.
    refused = [answer for answer in answers if answer.status != 200]
    assert {answer.headers.get("x-tokenpool-reason") for answer in refused} <= {"engine_down"}

    stack.container("engine-2").start()
    until(lambda: stack.is_ready("pod-2", 9090), READY_S, stack.state)
    stack.until_healthy("engine-2", "sidecar-2")


def test_another_coordinator_leads_after_one_is_killed(stack: Stack) -> None:
    coordinators = ["coordinator-1", "coordinator-2"]
    (leader,) = stack.leaders(*coordinators)
    coordinators.remove(leader)
    stack.container(leader).kill()

    assert [stack.ask().status for _ in range(20)] == [200] * 20
    until(lambda: stack.leaders(*coordinators) == coordinators, 10)

    stack.container(leader).start()
    stack.until_healthy(leader)


def test_down_leaves_no_container_network_or_volume(stack: Stack) -> None:
    client = stack.engine.client
    ours = {"label": f"com.docker.compose.project={PROJECT}"}

    stack.down()

    assert client.containers.list(all=True, filters=ours) == []
    assert client.networks.list(filters=ours) == []
    assert client.volumes.list(filters=ours) == []
