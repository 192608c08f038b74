"""Every message of a denial and a warning: it names the place, and what it tells to write can be pasted."""

from __future__ import annotations

import re

import pytest
import yaml

from injector.decisions import Denial, Injection
from injector.inject import inject
from injector.settings import Allow, Template
from tests.support.pods import EXPORTER, VLLM, Json, engine, pod
from tests.support.stacks import SHAPES

_SLEEP = {"preStop": {"exec": {"command": ["sleep", "1"]}}}
_SERVER = engine(image="server:1", command=["serve", "--host", "::", "--port", "8000"], args=None)
_CERTIFICATE = ["m", "--ssl-certfile", "/tls/crt", "--ssl-keyfile", "/tls/key"]
_LIMITS = {"limits": {"cpu": "4", "memory": "8Gi"}}

PODS: tuple[Json, ...] = (
    *(shape.pod for shape in SHAPES),
    pod(hostNetwork=True),
    pod(hostNetwork=True, annotations={"allow-host-network": "true"}),
    pod(VLLM, {"name": "tokenpool-sidecar", "image": "x"}),
    pod(restartPolicy="Never", annotations={"native": "false"}),
    pod(VLLM, engine(name="b", ports=None, args=["m", "--port", "9000"])),
    pod(engine(image="server:1", command=["serve", "--port", "8000"], args=None)),
    pod(engine(image="server:1", command=["serve"], args=None)),
    pod(engine(command=["sh", "-c", "if x; then vllm serve m; fi"], args=None)),
    pod({"name": "a", "image": "x"}, {"name": "b", "image": "x"}),
    pod(engine(args=["m", "--port", "$(PORT)"])),
    pod(engine(args=["m", "--config", "f"], ports=None)),
    pod(engine(args=["m", "--config", "f"])),
    pod(engine(args=["m", "$OPTIONS"])),
    pod(engine(image="server:1", command=["serve", "--port", "8000", "--host", "::"], args=["$OPTIONS"])),
    pod(engine(args=["m", "--uds", "/run/x"])),
    pod(engine(args=["m", "--api-key", "k"])),
    pod(engine(env=[{"name": "VLLM_API_KEY", "value": "k"}])),
    pod(engine(envFrom=[{"secretRef": {"name": "env"}}])),
    pod(engine(args=_CERTIFICATE)),
    pod(engine(args=_CERTIFICATE[:3])),
    pod(engine(livenessProbe={"exec": {"command": ["probe", "--port=8000"]}})),
    pod(engine(livenessProbe={"grpc": {"port": 8000}})),
    pod(engine(lifecycle=_SLEEP)),
    pod({**_SERVER, "lifecycle": {"postStart": {"httpGet": {"port": 8000}}}}),
    pod(engine(resources=_LIMITS)),
    pod(resources=_LIMITS),
    pod(VLLM, {**EXPORTER, "args": ["http://localhost:8000/metrics"]}),
    pod(VLLM, {**EXPORTER, "ports": [{"containerPort": 9095}]}),
    pod(volumes=[{"name": "tokenpool-pool", "emptyDir": {}}]),
    *(
        pod(annotations={name: value})
        for name, value in {
            "listen-port": "x",
            "engine-port": "8000",
            "upstream-port": "9000",
            "handovr": "off",
            "zzz": "1",
            "container": "x",
            "allow-env-from": "maybe",
        }.items()
    ),
)
"""A pod for each message, or nearly so."""


def messages() -> dict[str, Denial | None]:
    """Every message, with its denial if it is one."""
    made: dict[str, Denial | None] = {}
    for before in PODS:
        decision = inject(before, Template())
        if isinstance(decision, Denial):
            made[decision.message] = decision
        else:
            made |= dict.fromkeys(decision.warnings)
    return made


DENIALS = [each for each in messages().values() if each is not None]


@pytest.mark.parametrize("message", messages())
def test_an_annotation_that_a_message_tells_to_set_can_be_pasted(message: str) -> None:
    for name, value in re.findall(r"set annotation (\S+): ([^\s,;]+)", message):
        assert isinstance(yaml.safe_load(f"{name}: {value}")[name], str), message
    assert not re.search(r"\S+/\S+: (on|off|true|false|\d+)\b", message), message


@pytest.mark.parametrize("message", messages())
def test_a_message_names_what_it_is_about(message: str) -> None:
    assert re.search(
        r"container [a-z-]+|annotation [a-z.]+/|label [a-z.-]+/|spec\.\w+|volume |the pod is|--|not injected"
        r"|the peer port is \d+",
        message,
    ), message


@pytest.mark.parametrize("denial", DENIALS, ids=lambda denial: denial.message)
def test_a_denial_says_what_to_do(denial: Denial) -> None:
    verbs = "remove|set|give|let|add|write|mount|rename|name|change|correct|did you mean|if it has|put"
    assert re.match(rf"({verbs})\b", denial.fix), denial.fix
    assert len(denial.message) < 1024  # of an Event


def test_a_denial_that_a_pod_may_accept_says_when() -> None:
    assert {each.opt_out for each in DENIALS} == {None, *Allow}
    assert all(re.search(r': "true" (to|if) ', each.offer) for each in Allow)


def test_every_pod_here_has_a_message() -> None:
    silent = [each for each in PODS if inject(each, Template()) == Injection()]
    assert silent == []
