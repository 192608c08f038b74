"""Checks of compose.yaml and its files without a container engine.

``docker-compose`` of the ``dev`` extra is Compose v2. It reads the files, and needs no daemon for that.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadgen import reading
from loadgen.options import make_parser
from tests.support.programs import program
from tokenpool.poolfile.reading import parse

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
IMAGES = ("VLLM_IMAGE", "TOKENPOOL_IMAGE", "REDIS_IMAGE", "FRONT_IMAGE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE")
DOCKERFILES = [ROOT / "docker" / "Dockerfile", ROOT / "docker" / "engine.Dockerfile"]


def seconds(span: str) -> float:
    return float(span.removesuffix("s"))


def test_old_and_new_compose_accept_the_file() -> None:
    text = (ROOT / "compose.yaml").read_text()

    assert "version" not in COMPOSE
    # Compose 1 does not support nested defaults.
    assert not re.search(r"\$\{[^}]*\$\{", text)


@functools.cache
def read_by_compose(*files: str, **variables: str) -> dict[str, Any]:
    """What Compose v2 makes of files, with these variables and no others."""
    named = [word for file in ("compose.yaml", *files) for word in ("--file", file)]
    done = subprocess.run(
        [
            program("docker-compose"),
            *(*named, "--profile", "*", "config", "--format", "json"),
        ],
        cwd=ROOT, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | variables,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    read: dict[str, Any] = json.loads(done.stdout)
    return read


OVERLAYS = ("docker/gpu.yaml", "docker/simulated.yaml")


@pytest.mark.parametrize("overlay", [(), *((file,) for file in OVERLAYS)], ids=str)
def test_every_image_is_built_once_by_the_service_that_gets_it(overlay: tuple[str, ...]) -> None:
    services = read_by_compose(*overlay)["services"]
    assert services.keys() == SERVICES.keys()
    builders: dict[str, list[str]] = {}
    for name, service in services.items():
        if "build" in service:
            builders.setdefault(service["image"], []).append(name)
    engine = {} if overlay else {"tokenpool-engine:local": ["engine-1"]}
    assert builders == {"tokenpool:local": ["pod-1"]} | engine
    # The others wait for that image. They do not look for it in a registry.
    for name, service in services.items():
        if service["image"] in builders and name not in builders[service["image"]]:
            assert service["pull_policy"] == "never"


def test_an_image_of_a_registry_is_pulled_and_not_built() -> None:
    services = read_by_compose(TOKENPOOL_IMAGE="registry.example.com/tokenpool:0.2.0")["services"]
    assert services["pod-1"]["image"] == services["sidecar-1"]["image"]
    assert services["pod-1"]["pull_policy"] in ("missing", "if_not_present")


def test_engines_on_gpus_are_vllms_own_with_a_real_model_and_its_weights() -> None:
    default = read_by_compose("docker/gpu.yaml")["services"]
    chosen = read_by_compose("docker/gpu.yaml", MODEL="org/model", VLLM_ARGS="--max-model-len 8192")[
        "services"
    ]
    for number, name in enumerate(("engine-1", "engine-2")):
        assert "build" not in default[name]
        assert default[name]["image"].startswith("vllm/vllm-openai:v")
        words = [*default[name]["entrypoint"], *default[name]["command"]]
        assert "--host=127.0.0.1" in words
        assert not {"--load-format", "dummy", "--enforce-eager"} & set(words)
        assert not any("/opt/models" in word for word in words)
        assert "--model=org/model" in chosen[name]["entrypoint"]
        assert "--served-model-name=org/model" in chosen[name]["entrypoint"]
        assert chosen[name]["command"] == ["--max-model-len", "8192"]
        (device,) = default[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["device_ids"] == [str(number)]


def test_simulated_engines_need_no_image_but_ours() -> None:
    services = read_by_compose("docker/simulated.yaml")["services"]
    for name in ("engine-1", "engine-2"):
        assert services[name]["image"] == services["sidecar-1"]["image"]
        assert services[name]["entrypoint"][:3] == ["loadgen", "engine", "--host=127.0.0.1"]
        assert services[name]["network_mode"] == SERVICES[name]["network_mode"]
        assert not services[name]["command"]


def test_usage_records_go_from_both_coordinators_to_one_postgresql() -> None:
    services = read_by_compose("docker/usage.yaml")["services"]
    assert services.keys() == {*SERVICES, "postgres"}
    for name in ("coordinator-1", "coordinator-2"):
        url = services[name]["environment"]["TOKENPOOL_USAGE_STORE"]
        assert url == "postgresql://tokenpool:fortryingout@postgres/usage"
        assert services[name]["environment"]["TOKENPOOL_STORE"].startswith("redis://")
        assert services[name]["networks"].keys() == services["postgres"]["networks"].keys()
    for name in ("sidecar-1", "sidecar-2"):
        assert "/var/spool/tokenpool" in services[name]["tmpfs"]
    assert services["postgres"]["read_only"] is True
    assert services["postgres"]["cap_drop"] == ["ALL"]


def test_every_image_is_a_variable_with_a_default() -> None:
    named = [re.fullmatch(r"\$\{(\w+):-([\w./:-]+)\}", service["image"]) for service in SERVICES.values()]

    assert {match[1] for match in named if match} == set(IMAGES)
    assert all(named)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_minimal_privileges_and_resource_limits(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["cpus"]
    assert service["pids_limit"]


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "loadgen"])
def test_every_permanent_service_has_a_health_check_and_restarts(name: str) -> None:
    service = SERVICES[name]

    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert seconds(service["stop_grace_period"]) >= 10


def test_a_sidecar_has_time_to_drain() -> None:
    for name in ("sidecar-1", "sidecar-2"):
        drain = float(SERVICES[name]["environment"]["TOKENPOOL_DRAIN_TIMEOUT"])
        assert seconds(SERVICES[name]["stop_grace_period"]) > drain
        assert seconds(SERVICES["front"]["stop_grace_period"]) > drain


def test_a_sidecar_and_its_engine_share_a_network_with_the_engine_on_loopback() -> None:
    for number in (1, 2):
        assert SERVICES[f"sidecar-{number}"]["network_mode"] == f"service:pod-{number}"
        assert SERVICES[f"engine-{number}"]["network_mode"] == f"service:pod-{number}"
        assert "--host=127.0.0.1" in SERVICES[f"engine-{number}"]["entrypoint"]


def test_sidecars_reach_each_other_where_no_tenant_is() -> None:
    """The peer port is on the address that faces Redis, unless an option moves it."""
    (networks,) = {tuple(SERVICES[f"pod-{number}"]["networks"]) for number in (1, 2)}
    assert set(networks) == {"tenants", "store"}
    assert SERVICES["redis"]["networks"] == ["store"]
    assert SERVICES["front"]["networks"] == ["tenants"]
    for name in ("sidecar-1", "sidecar-2"):
        assert not {"TOKENPOOL_PEER", "TOKENPOOL_HANDOVER"} & SERVICES[name]["environment"].keys()


def test_only_the_front_and_the_pages_for_operators_are_published_and_on_loopback() -> None:
    published = {name: port for name, service in SERVICES.items() for port in service.get("ports", [])}

    assert published == {
        "front": "${FRONT_ADDRESS:-127.0.0.1}:${FRONT_PORT:-8080}:8080",
        "prometheus": "127.0.0.1:${PROMETHEUS_PORT:-9092}:9090",
        "grafana": "127.0.0.1:${GRAFANA_PORT:-3000}:3000",
    }


def mounted() -> Iterator[Path]:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, _, _ = volume.partition(":")
            if source.startswith("."):
                assert volume.endswith(":ro"), volume
                yield ROOT / source


def test_every_mounted_file_exists_and_is_read_only() -> None:
    assert [path for path in mounted() if not path.exists()] == []


def test_the_load_test_is_a_valid_command_outside_the_default_profile() -> None:
    assert SERVICES["loadgen"]["profiles"] == ["loadgen"]
    made = loadgen_command(LOADGEN_SCENARIO="mine.yaml", LOADGEN_PROCESSES="4")
    assert (made.scenario, made.processes) == (Path("/etc/tokenpool/mine.yaml"), 4)
    made = loadgen_command()
    assert (made.scenario, made.processes) == (Path("/etc/tokenpool/overload.yaml"), 1)
    assert (ROOT / "docker" / "loadgen" / made.scenario.name).exists()
    assert made.url == ["http://front:8080"]
    assert made.out == Path("/out/run")


def loadgen_command(**environment: str) -> Any:
    service = read_by_compose(**environment)["services"]["loadgen"]
    assert service["entrypoint"] == ["loadgen"]
    return make_parser().parse_args(service["command"])


def test_the_pool_file_has_the_keys_of_the_overload_scenario() -> None:
    file = parse((ROOT / "docker" / "pool.yaml").read_text(), name="pool.yaml").file
    scenario = reading.read(ROOT / "docker" / "loadgen" / "overload.yaml", {})
    tiers = {entitlement.name: entitlement.tier.value for entitlement in file.entitlements_of("chat")}

    assert {tenant.name: tenant.tier for tenant in scenario.tenants} == tiers
    text = (ROOT / "docker" / "pool.yaml").read_text()
    for tenant in scenario.tenants:
        assert hashlib.sha256(str(tenant.key).encode()).hexdigest() in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_needs_no_buildkit_and_has_an_unprivileged_user_and_a_health_check(path: Path) -> None:
    text = path.read_text()
    final = text.rpartition("\nFROM ")[2]

    assert "RUN --" not in text
    assert "<<" not in text
    assert re.search(r"^USER 65532:65532$", final, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", final, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", final, re.MULTILINE)
    assert re.search(r"^ENTRYPOINT \[", final, re.MULTILINE)
    assert "org.opencontainers.image.title" in final


def test_the_image_is_compiled_by_default() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    build, _, final = text.rpartition("\nFROM ")

    assert SERVICES["pod-1"]["build"]["args"]["COMPILE"] == "${COMPILE:-1}"
    assert re.search(r"^ARG COMPILE=1$", build, re.MULTILINE)
    assert re.search(r"^ARG OPTIMIZE=1$", build, re.MULTILINE)
    assert "apt-get" not in final


def test_all_packages_of_the_project_are_in_the_build_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {package.partition(".")[0] for package in settings["packages"]}

    assert ignored[1] == "*"
    assert {f"!{package}" for package in packages} | {"!setup.py"} <= set(ignored)


def test_nginx_retries_only_unsent_requests_and_does_not_buffer() -> None:
    text = (ROOT / "docker" / "front" / "nginx.conf").read_text()

    assert "proxy_buffering off;" in text
    assert "proxy_request_buffering off;" in text
    assert "proxy_next_upstream error timeout;" in text
    assert "non_idempotent" not in text
