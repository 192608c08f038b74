"""The injected pod: ports, engine, probes and end; and the refused pods."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.decisions import Injection
from injector.inject import inject
from injector.patch import apply
from injector.settings import Template
from injector.shape import PodMalformed
from injector.sidecar_container import NAME
from tests.support.pods import (
    EXPORTER,
    LOADER,
    VLLM,
    Json,
    container,
    decided,
    denial,
    engine,
    injected,
    option,
    pod,
    resolve,
    sidecar,
    warnings,
)


# The pods that get a sidecar.
def test_a_pod_with_the_label_gets_a_native_sidecar() -> None:
    after = injected(pod(initContainers=[LOADER]))
    assert [each["name"] for each in after["spec"]["initContainers"]] == ["load-model", NAME]
    assert sidecar(after)["restartPolicy"] == "Always"
    assert sidecar(after)["command"] == ["tokenpool-sidecar", "run"]
    assert after["metadata"]["annotations"]["tokenpool.io/status"] == "injected"


@pytest.mark.parametrize("labels", [None, {}, {"app": "vllm"}, {"tokenpool.io/inject": "false"}])
def test_a_pod_without_the_label_is_left_as_it_is(labels: dict[str, str] | None) -> None:
    plain = pod()
    plain["metadata"]["labels"] = labels
    assert decided(plain) == Injection()


def test_a_pod_without_metadata_can_be_injected_by_hand() -> None:
    plain = pod()
    del plain["metadata"]
    decision = inject(plain, Template(), every=True)
    assert isinstance(decision, Injection)
    after = apply(plain, decision.patch)
    assert after["metadata"] == {"annotations": {"tokenpool.io/status": "injected"}}
    assert inject(plain, Template()) == Injection()


def test_the_label_is_a_setting() -> None:
    assert inject(pod(), Template(label="example.com/share")) == Injection()


def test_a_volume_for_usage_records_outlives_the_container() -> None:
    decision = inject(pod(), Template(usage_spool="128Mi"))
    assert isinstance(decision, Injection)
    after = apply(pod(), decision.patch)
    assert {"name": "tokenpool-spool", "mountPath": "/var/spool/tokenpool"} in sidecar(after)["volumeMounts"]
    assert {"name": "tokenpool-spool", "emptyDir": {"sizeLimit": "128Mi"}} in after["spec"]["volumes"]


def test_a_lone_sidecar_needs_no_volume_for_usage_records() -> None:
    decision = inject(pod(), Template(usage_spool="128Mi", store_secret=None))
    assert isinstance(decision, Injection)
    assert "tokenpool-spool" not in str(decision.patch)


def test_a_pod_that_has_its_sidecar_is_not_patched_again() -> None:
    assert decided(injected(pod())) == Injection()


def test_a_sidecar_in_the_manifest_is_refused_unless_the_pod_says_that_it_is_its_own() -> None:
    by_hand = [VLLM, {"name": NAME, "image": "tokenpool:1"}]
    assert "which the injector did not add; remove the container" in denial(pod(*by_hand))
    accepted = pod(*by_hand, annotations={"allow-own-sidecar": "true"})
    decision = decided(accepted)
    assert isinstance(decision, Injection)
    assert decision.patch == ()
    assert "there is a container tokenpool-sidecar already" in warnings(accepted)


def test_a_copied_annotation_does_not_keep_the_sidecar_away() -> None:
    assert sidecar(injected(pod(annotations={"status": "injected"})))


def test_a_pod_with_host_network_is_refused_unless_it_accepts_that() -> None:
    assert "spec.hostNetwork: the pod shares its ports" in denial(pod(hostNetwork=True))
    accepted = pod(hostNetwork=True, annotations={"allow-host-network": "true"})
    assert decided(accepted).patch == ()  # type: ignore[union-attr]
    assert "not injected: a pod with hostNetwork" in warnings(accepted)


def test_a_static_pod_is_left_unchanged_with_a_warning() -> None:
    static = pod()
    static["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "abc"
    assert decided(static).patch == ()  # type: ignore[union-attr]
    assert "only the file on its node changes a static pod" in warnings(static)


# Ports.
def test_the_sidecar_answers_where_the_service_looks_and_the_engine_moves() -> None:
    after = injected(pod())
    assert resolve(after, "http") == resolve(after, 8000) == (NAME, 8000)
    assert option(sidecar(after)["args"], "--listen") == "0.0.0.0:8000"
    assert option(sidecar(after)["args"], "--upstream") == "http://127.0.0.1:18000"
    assert container(after, "vllm")["args"] == [
        "Qwen/Qwen3-0.6B",
        "--max-num-seqs=64",
        "--host",
        "127.0.0.1",
        "--port",
        "18000",
    ]
    assert "ports" not in container(after, "vllm")


def test_an_undeclared_port_is_taken_over_as_well() -> None:
    after = injected(pod(engine(ports=None, args=["m"])))
    assert resolve(after, 8000) == (NAME, 8000)
    assert option(container(after, "vllm")["args"], "--port") == "18000"


def test_other_ports_of_the_engine_stay_its_own() -> None:
    many = [{"containerPort": 8000}, {"name": "udp", "containerPort": 8000, "protocol": "UDP"}]
    after = injected(pod(engine(ports=[*many, {"name": "nixl", "containerPort": 5600}])))
    assert [port["containerPort"] for port in container(after, "vllm")["ports"]] == [8000, 5600]
    assert container(after, "vllm")["ports"][0]["protocol"] == "UDP"
    assert resolve(after, "nixl") == ("vllm", 5600)


def test_a_port_of_the_node_moves_with_the_name() -> None:
    after = injected(pod(engine(ports=[{"name": "http", "containerPort": 8000, "hostPort": 80}])))
    assert sidecar(after)["ports"][0] == {"name": "http", "containerPort": 8000, "hostPort": 80}


def test_the_sidecar_may_listen_elsewhere_and_the_engine_stays() -> None:
    after = injected(pod(annotations={"listen-port": "8080"}))
    assert resolve(after, "http") == (NAME, 8080)
    assert option(sidecar(after)["args"], "--upstream") == "http://127.0.0.1:8000"
    assert option(container(after, "vllm")["args"], "--host") == "127.0.0.1"
    assert option(container(after, "vllm")["args"], "--port") == "8000"


def test_the_engine_moves_to_the_port_that_the_pod_names() -> None:
    after = injected(pod(annotations={"engine-port": "8001"}))
    assert option(container(after, "vllm")["args"], "--port") == "8001"


def test_ports_that_others_have_are_avoided() -> None:
    busy = {"name": "busy", "ports": [{"containerPort": 18000}, {"containerPort": 9090}]}
    after = injected(pod(VLLM, busy))
    assert option(sidecar(after)["args"], "--upstream") == "http://127.0.0.1:18001"
    assert option(sidecar(after)["args"], "--admin") == "0.0.0.0:9091"
    assert resolve(after, "tokenpool-admin") == (NAME, 9091)


def test_the_peer_port_is_for_the_other_sidecars() -> None:
    after = injected(pod())
    assert option(sidecar(after)["args"], "--peer") == "0.0.0.0:9095"
    assert resolve(after, "tokenpool-peer") == (NAME, 9095)
    assert "--handover" not in sidecar(after)["args"]
    assert warnings(pod()) == ""


def test_on_ipv6_clusters_every_port_is_bound_to_the_ipv6_address() -> None:
    args = sidecar(injected(pod(annotations={"bind": "[::]"})))["args"]
    assert [option(args, name) for name in ("--listen", "--admin", "--peer")] == [
        "[::]:8000",
        "[::]:9090",
        "[::]:9095",
    ]


def test_a_peer_port_that_another_container_has_is_avoided_with_a_warning() -> None:
    busy = {"name": "busy", "ports": [{"containerPort": 9095}, {"containerPort": 9090}]}
    after = injected(pod(VLLM, busy))
    assert option(sidecar(after)["args"], "--peer") == "0.0.0.0:9096"
    assert "the peer port is 9096, because another part of the pod has 9095" in warnings(pod(VLLM, busy))


@pytest.mark.parametrize(
    ("annotations", "peer"),
    [
        ({"admin-port": "9095"}, 9096),
        ({"listen-port": "9095"}, 9096),
        ({"engine-port": "9095"}, 9096),
        ({"peer-port": "7000"}, 7000),
        ({"peer-port": "18000"}, 18000),
    ],
)
def test_the_ports_of_a_pod_differ(annotations: dict[str, str], peer: int) -> None:
    args = sidecar(injected(pod(annotations=annotations)))["args"]
    assert option(args, "--peer") == f"0.0.0.0:{peer}"
    named = [
        option(args, name).rpartition(":")[2] for name in ("--listen", "--admin", "--peer", "--upstream")
    ]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize("port", ["8000", "9090", "9400"])
def test_a_named_peer_port_that_is_used_is_refused(port: str) -> None:
    busy = {"name": "busy", "ports": [{"containerPort": 9400}]}
    why = denial(pod(VLLM, busy, annotations={"peer-port": port}))
    assert f"has port {port}; give a port that is free" in why
    assert "annotation tokenpool.io/peer-port" in why


def test_without_handover_there_is_no_peer_port() -> None:
    after = injected(pod(annotations={"handover": "off"}))
    args = sidecar(after)["args"]
    assert option(args, "--handover") == "off"
    assert "--peer" not in args
    assert [port["name"] for port in sidecar(after)["ports"]] == ["http", "tokenpool-admin"]
    assert warnings(pod(annotations={"handover": "off", "peer-port": "8000"})) == ""


def test_a_lone_sidecar_has_no_peer_port() -> None:
    args = sidecar(injected(pod(annotations={"store-secret": ""})))["args"]
    assert not {"--peer", "--handover"} & set(args)


def test_the_engine_is_found_by_the_name_of_its_port() -> None:
    engines = [engine(ports=[{"name": "api", "containerPort": 9000}], args=["m", "--port=9000"]), EXPORTER]
    after = injected(pod(*engines, annotations={"upstream-port": "api"}))
    assert resolve(after, "api") == (NAME, 9000)
    assert container(after, "gpu-exporter") == EXPORTER


def test_the_engine_is_found_by_its_command_where_no_port_tells() -> None:
    after = injected(pod(EXPORTER, engine(ports=None, args=["m", "--port", "9000"])))
    assert resolve(after, 9000) == (NAME, 9000)


def test_the_engine_is_found_by_its_name_among_several() -> None:
    twins = [
        engine(name="a", args=["m", "--host", "127.0.0.1"]),
        engine(name="b", ports=[{"containerPort": 8001}], args=["m", "--port=8001"]),
    ]
    after = injected(pod(*twins, annotations={"container": "b"}))
    assert resolve(after, 8001) == (NAME, 8001)
    assert container(after, "a") == twins[0]


# The engine's command line.
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"command": ["vllm", "serve", "m", "--host=0.0.0.0"], "args": None},
            {"command": ["vllm", "serve", "m", "--host", "127.0.0.1", "--port", "18000"]},
        ),
        (
            {
                "command": ["/opt/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"],
                "args": ["--model", "m"],
            },
            {"args": ["--model", "m", "--host", "127.0.0.1", "--port", "18000"]},
        ),
        (
            {"command": ["vllm", "serve", "--port", "8000"], "args": ["m", "--host", "::"]},
            {"command": ["vllm", "serve"], "args": ["m", "--host", "127.0.0.1", "--port", "18000"]},
        ),
        (
            {
                "command": ["loadgen", "engine", "--host", "0.0.0.0", "--port=8000", "--slots", "8"],
                "args": None,
            },
            {"command": ["loadgen", "engine", "--host", "127.0.0.1", "--port=18000", "--slots", "8"]},
        ),
        (
            {"image": "registry:5000/vllm", "args": ["m"]},
            {"args": ["m", "--host", "127.0.0.1", "--port", "18000"]},
        ),
    ],
)
def test_the_engine_is_started_on_the_loopback(fields: Json, expected: Json) -> None:
    after = container(injected(pod(engine(**fields))), "vllm")
    assert {name: after[name] for name in expected} == expected


def test_an_engine_without_a_host_option_is_refused_unless_the_pod_accepts_that() -> None:
    other = engine(image="server:1", command=["serve", "--port", "8000"], args=None)
    assert "container vllm: it may listen on other addresses" in denial(pod(other))
    accepted = pod(other, annotations={"allow-open-engine": "true"})
    assert "may listen on other addresses" in warnings(accepted)
    assert container(injected(accepted), "vllm")["command"] == ["serve", "--port", "18000"]


@pytest.mark.parametrize("start", [["python3", "-m", "sglang.launch_server"], ["sglang", "serve"]])
def test_sglang_has_the_same_options(start: list[str]) -> None:
    other = engine(image="lmsysorg/sglang:1", command=[*start, "--port", "30000"], args=None, ports=None)
    after = injected(pod(other))
    assert container(after, "vllm")["command"] == [*start, "--host", "127.0.0.1", "--port", "18000"]
    assert resolve(after, 30000) == (NAME, 30000)


def test_a_shell_that_cannot_be_read_is_not_rewritten_and_the_fix_is_named() -> None:
    shell = engine(command=["/bin/bash", "-c"], args=["while true; do vllm serve m --port 8000; done"])
    why = denial(pod(shell))
    assert "container vllm: it cannot be moved from port 8000" in why
    assert "annotation tokenpool.io/engine-port" in why


def test_a_shell_command_with_the_annotation_is_trusted() -> None:
    shell = engine(command=["sh", "-c"], args=["for m in *; do vllm serve $m --port 18000; done"])
    after = injected(pod(shell, annotations={"engine-port": "18000"}))
    assert option(sidecar(after)["args"], "--upstream") == "http://127.0.0.1:18000"
    assert resolve(after, "http") == (NAME, 8000)
    assert "must listen on 127.0.0.1:18000" in warnings(pod(shell, annotations={"engine-port": "18000"}))


def test_an_engine_that_listens_where_it_is_to_be_is_not_taken_for_the_services_port() -> None:
    settled = engine(args=["m", "--port", "18000"])
    assert resolve(injected(pod(settled, annotations={"engine-port": "18000"})), 8000) == (NAME, 8000)


def test_a_shell_may_stay_where_it_is_if_the_pod_accepts_that() -> None:
    shell = engine(command=["sh", "-c"], args=["/start.sh"])
    assert "may listen on other addresses" in denial(pod(shell, annotations={"listen-port": "8080"}))
    said = pod(shell, annotations={"listen-port": "8080", "allow-open-engine": "true"})
    assert "may listen on other addresses" in warnings(said)
    assert container(injected(said), "vllm")["args"] == ["/start.sh"]


def test_an_engine_with_a_key_of_its_own_is_refused_until_the_sidecar_has_it() -> None:
    keyed = engine(env=[{"name": "VLLM_API_KEY", "value": "k"}])
    assert "the engine requires a key that the sidecar does not have" in denial(pod(keyed))
    told = pod(keyed, annotations={"upstream-key-secret": "engine-key"})
    assert warnings(told) == ""
    assert option(sidecar(injected(told))["args"], "--upstream-key-file") == "/etc/tokenpool/upstream/api-key"


# Probes and hooks.
def asked(after: Json, probe: str) -> Any:
    return container(after, "vllm")[probe]


def test_the_sidecar_answers_the_readiness_probe() -> None:
    probe = asked(injected(pod()), "readinessProbe")
    assert probe == {"httpGet": {"path": "/readyz", "port": 9090}, "failureThreshold": 3}


def test_liveness_and_startup_are_asked_inside_the_engines_container() -> None:
    after = injected(pod())
    command = asked(after, "livenessProbe")["exec"]["command"]
    assert command[:2] == ["python3", "-c"]
    assert "HTTPConnection('127.0.0.1', 18000, timeout=1)" in command[2]
    assert asked(after, "livenessProbe")["timeoutSeconds"] == 5
    assert "create_connection(('127.0.0.1', 18000), 1)" in asked(after, "startupProbe")["exec"]["command"][2]
    assert asked(after, "startupProbe")["failureThreshold"] == 120


def test_the_interpreter_is_the_engines_own() -> None:
    own = engine(command=["/opt/venv/bin/python3.12", "-m", "vllm.entrypoints.openai.api_server"], args=[])
    after = injected(pod(own))
    assert asked(after, "livenessProbe")["exec"]["command"][0] == "/opt/venv/bin/python3.12"


@pytest.mark.parametrize(
    ("fields", "annotations"),
    [({}, {"engine-probes": "sidecar"}), ({"image": "sim:1", "args": ["--port", "8000", "--host", ""]}, {})],
)
def test_an_engine_that_may_have_no_python_is_asked_through_the_sidecar(
    fields: Json, annotations: dict[str, str]
) -> None:
    after = injected(pod(engine(**fields), annotations=annotations))
    assert asked(after, "livenessProbe")["httpGet"] == {"path": "/health", "port": 8000}
    assert asked(after, "startupProbe")["httpGet"] == {"path": "/health", "port": 8000}
    assert container(after, "vllm")["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "37"]}}


def test_python_may_be_asked_for_by_the_pod() -> None:
    after = injected(
        pod(engine(image="sim:1", args=["--port=8000", "--host="]), annotations={"engine-probes": "exec"})
    )
    assert asked(after, "livenessProbe")["exec"]["command"][0] == "python3"


def test_probes_of_other_ports_and_containers_stay() -> None:
    other = {"httpGet": {"path": "/", "port": 9400}}
    command = {"exec": {"command": ["true"]}}
    after = injected(
        pod(engine(livenessProbe=other, startupProbe=command), {**EXPORTER, "livenessProbe": other})
    )
    assert asked(after, "livenessProbe") == other
    assert asked(after, "startupProbe") == command
    assert container(after, "gpu-exporter")["livenessProbe"] == other


def test_a_probe_by_grpc_is_warned_of() -> None:
    assert "startupProbe of container vllm uses gRPC" in warnings(
        pod(engine(startupProbe={"grpc": {"port": 8000}}))
    )


def test_a_hook_that_asks_the_moved_port_is_asked_inside() -> None:
    hooks = {"postStart": {"httpGet": {"path": "/health", "port": "http"}}}
    after = injected(pod(engine(lifecycle=hooks)))
    assert "18000" in container(after, "vllm")["lifecycle"]["postStart"]["exec"]["command"][2]
    assert "preStop" in container(after, "vllm")["lifecycle"]
    without = engine(lifecycle=hooks, image="sim:1", args=["--port=8000", "--host="])
    assert "postStart of container vllm asks its old port" in warnings(pod(without))


# The end of a pod.
def test_the_engine_is_told_to_end_after_the_sidecar_has_drained() -> None:
    code = container(injected(pod()), "vllm")["lifecycle"]["preStop"]["exec"]["command"][2]
    assert "('127.0.0.1', 9090" in code
    assert "(37 if drains else 10)" in code


def test_a_native_sidecar_is_told_to_drain_and_a_plain_one_waits_to_be_told() -> None:
    def hook(native: bool) -> str:
        made = sidecar(injected(pod(), Template(native=native)))
        return str(made["lifecycle"]["preStop"]["exec"]["command"][2])

    assert hook(True) == "import os, signal, time; time.sleep(5); os.kill(1, signal.SIGTERM)"
    assert hook(False) == "import os, signal, time; time.sleep(5)"


@pytest.mark.parametrize(
    ("given", "expected"), [(30, 52), (51, 52), (52, 52), (600, 600), (None, 52), (0, 52)]
)
def test_the_pod_has_time_enough_to_end(given: int | None, expected: int) -> None:
    assert (
        injected(pod(terminationGracePeriodSeconds=given))["spec"]["terminationGracePeriodSeconds"]
        == expected
    )


def test_longer_drains_take_longer() -> None:
    after = injected(pod(annotations={"drain-timeout": "120", "drain-delay": "0"}))
    assert after["spec"]["terminationGracePeriodSeconds"] == 137
    assert option(sidecar(after)["args"], "--drain-timeout") == "120"


def test_a_hook_of_the_engine_stays_and_is_warned_of() -> None:
    own = {"preStop": {"exec": {"command": ["sleep", "15"]}}}
    after = injected(pod(engine(lifecycle=own)))
    assert container(after, "vllm")["lifecycle"] == own
    assert "remove the hook, or let it last 37 s" in warnings(pod(engine(lifecycle=own)))


@pytest.mark.parametrize(
    ("hook", "is_long"),
    [
        ({"sleep": {"seconds": 37}}, True),
        ({"sleep": {"seconds": 36}}, False),
        ({"sleep": {}}, False),
        ({"exec": {"command": ["/bin/sleep", "40s"]}}, True),
        ({"exec": {"command": ["sleep", "15"]}}, False),
        ({"exec": {"command": ["sh", "-c", "sleep 60"]}}, True),
        ({"exec": {"command": ["sh", "-c", "sleep 60 &"]}}, False),
        ({"exec": {"command": ["sleep", "$N"]}}, False),
        ({"exec": {"command": ["sleep", "nan"]}}, False),
    ],
)
def test_a_hook_that_only_sleeps_is_accepted_if_it_lasts_as_long_as_the_drain(
    hook: Json, is_long: bool
) -> None:
    assert (warnings(pod(engine(lifecycle={"preStop": hook}))) == "") == is_long


@pytest.mark.parametrize("shared", ["shareProcessNamespace", "hostPID"])
def test_a_native_sidecar_is_not_told_by_the_number_of_a_process_that_others_share(shared: str) -> None:
    made = sidecar(injected(pod(**{shared: True})))
    hook = made["lifecycle"]["preStop"]["exec"]["command"][2]
    assert made["restartPolicy"] == "Always"
    assert "os.kill(1" not in hook
    assert "/proc/self/ns/mnt" in hook
    compile(hook, "hook", "exec")
    assert warnings(pod(**{shared: True})) == ""


# The sidecar's container.
def test_older_clusters_get_a_plain_container() -> None:
    after = injected(pod(annotations={"native": "false"}))
    assert [each["name"] for each in after["spec"]["containers"]] == ["vllm", NAME]
    assert "restartPolicy" not in sidecar(after)
    assert "initContainers" not in after["spec"]


def test_the_sidecar_has_no_unneeded_privileges() -> None:
    made = sidecar(injected(pod()))
    assert made["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsGroup": 65532,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert all(mount["readOnly"] for mount in made["volumeMounts"])
    assert made["resources"] == {
        "requests": {"cpu": "250m", "memory": "128Mi"},
        "limits": {"memory": "512Mi"},
    }


def test_the_main_containers_do_not_wait_for_an_engine_that_waits_for_them() -> None:
    made = sidecar(injected(pod()))
    assert made["startupProbe"]["httpGet"] == {"path": "/healthz", "port": 9090}
    assert made["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 9090}


def test_the_pool_file_and_secrets_are_mounted() -> None:
    names = {"pool-config": "pools", "store-secret": "books", "keys-secret": "keys", "pool": "chat"}
    after = injected(pod(annotations=names))
    made = sidecar(after)
    assert "env" not in made
    assert made["args"][made["args"].index("--store-file") + 1] == "/etc/tokenpool/store/url"
    assert after["spec"]["volumes"][1:] == [
        {"name": "tokenpool-pool", "configMap": {"name": "pools"}},
        {"name": "tokenpool-store", "secret": {"secretName": "books"}},
        {"name": "tokenpool-keys", "secret": {"secretName": "keys"}},
    ]
    assert {mount["name"]: mount["mountPath"] for mount in made["volumeMounts"]} == {
        "tokenpool-pool": "/etc/tokenpool/pool",
        "tokenpool-store": "/etc/tokenpool/store",
        "tokenpool-keys": "/etc/tokenpool/keys",
    }
    assert option(made["args"], "--config") == "/etc/tokenpool/pool/pool.yaml"
    assert option(made["args"], "--pool") == "chat"


def test_a_lone_sidecar_needs_no_store() -> None:
    after = injected(pod(annotations={"store-secret": ""}))
    assert "--store-file" not in sidecar(after)["args"]
    assert "tokenpool-store" not in {volume["name"] for volume in after["spec"]["volumes"]}


def test_more_options_and_other_sizes_come_from_annotations() -> None:
    wanted = {
        "sidecar-args": "--log-requests --log-level debug",
        "image": "registry.example.com/tokenpool@sha256:12",
        "pull-policy": "Always",
        "cpu-request": "",
        "memory-request": "",
        "cpu-limit": "1.5",
        "bind": "[::]",
        "admin-port": "9099",
    }
    made = sidecar(injected(pod(annotations=wanted)))
    assert made["args"][-3:] == ["--log-requests", "--log-level", "debug"]
    assert made["image"] == "registry.example.com/tokenpool@sha256:12"
    assert made["imagePullPolicy"] == "Always"
    assert made["resources"] == {"limits": {"cpu": "1.5", "memory": "512Mi"}}
    assert option(made["args"], "--listen") == "[::]:8000"
    assert option(made["args"], "--admin") == "[::]:9099"


# Refusals.
@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"listen-port": "http"}, "annotation tokenpool.io/listen-port: 'http' is not a port"),
        ({"listen-port": "70000"}, "annotation tokenpool.io/listen-port: '70000' is not a port"),
        ({"upstream-port": "-"}, "annotation tokenpool.io/upstream-port: '-' is not a port"),
        ({"upstream-port": "grpc"}, "container vllm declares no port named 'grpc'"),
        ({"upstream-port": "9000"}, "container vllm does not listen on 9000: its --port says 8000"),
        ({"engine-port": "8000"}, "container tokenpool-sidecar has port 8000; give a port that is free"),
        ({"admin-port": "8000"}, "annotation tokenpool.io/admin-port: container vllm has port 8000"),
        ({"listen-port": "9400"}, "container gpu-exporter has port 9400; give a port that is free"),
        ({"engine-port": "9400"}, "annotation tokenpool.io/engine-port: container gpu-exporter has port"),
        ({"native": "maybe"}, "annotation tokenpool.io/native: 'maybe' is neither true nor false"),
        ({"image": "a b"}, "annotation tokenpool.io/image: 'a b' is not the name of an image"),
        ({"pool": "Chat!"}, "annotation tokenpool.io/pool: 'Chat!' is not the name of a pool"),
        ({"store-secret": "A_B"}, "annotation tokenpool.io/store-secret: 'A_B' is not the name of an object"),
        ({"pool-config": ""}, "annotation tokenpool.io/pool-config: '' is not the name of an object"),
        ({"memory-limit": "much"}, "annotation tokenpool.io/memory-limit: 'much' is not an amount"),
        ({"drain-timeout": "0"}, "annotation tokenpool.io/drain-timeout: '0' is not a number above 0"),
        ({"engine-probes": "http"}, "'http' is not one of auto, exec, sidecar"),
        ({"bind": "127.0.0.1"}, "annotation tokenpool.io/bind: '127.0.0.1' is not one of"),
        ({"sidecar-args": "--listen :1"}, "--listen is set by the injector; remove it"),
        ({"sidecar-args": "--tls-cert /x"}, "--tls-cert names a file that the injector does not mount"),
        ({"sidecar-args": "--store=redis://x"}, "--store is set by the injector; remove it"),
        ({"sidecar-args": "--peer :1"}, "--peer is set by the injector; remove it"),
        ({"sidecar-args": "--handover=off"}, "--handover is set by the injector; remove it"),
        ({"sidecar-args": "run"}, "'run' is not an option of tokenpool-sidecar run"),
        ({"sidecar-args": "'"}, "is not a list of options"),
        ({"container": "engine"}, "'engine' is no container here; name one of vllm, gpu-exporter"),
        (
            {"listen-prot": "1"},
            "tokenpool.io/listen-prot: there is no such annotation; did you mean tokenpool.io/listen-port?",
        ),
        ({"run-as-user": "0"}, "annotation tokenpool.io/run-as-user: there is no such annotation"),
        (
            {"zzz": "0"},
            "annotation tokenpool.io/zzz: there is no such annotation; remove it, or use one of admin-port,",
        ),
    ],
)
def test_an_invalid_annotation_is_named(annotations: dict[str, str], words: str) -> None:
    assert words in denial(pod(VLLM, EXPORTER, annotations=annotations))


@pytest.mark.parametrize(
    ("containers", "words"),
    [
        ([engine(name="a"), engine(name="b")], "which container is the engine? a, b could be it"),
        ([engine(args=["m", "--uds=/s"])], "container vllm: with --uds it does not serve HTTP on a TCP port"),
        (
            [engine(args=["m", "--ssl_keyfile", "k"])],
            "certificate and key are not both known",
        ),
        ([engine(args=["m", "--port", "$(PORT)"])], "container vllm: --port $(PORT) is not a number"),
        ([engine(image="x:1", command=None, args=None)], "container vllm: it cannot be moved from port 8000"),
    ],
)
def test_an_engine_that_cannot_be_rewired_is_refused(containers: list[Json], words: str) -> None:
    assert words in denial(pod(*containers))


def test_a_volume_of_the_sidecars_name_is_refused() -> None:
    assert "volume tokenpool-pool: the sidecar's own volume has this name" in denial(
        pod(volumes=[{"name": "tokenpool-pool"}])
    )


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "missing required field `spec`"),
        ({"spec": {"containers": []}}, "spec.containers is empty"),
        ({"spec": {"containers": [{}]}}, "missing required field `name`"),
        ({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": "x"}]}]}}, "containerPort"),
        ({"spec": {"containers": [{"name": "a"}]}, "metadata": {"labels": {"a": 1}}}, "metadata.labels"),
    ],
)
def test_a_document_that_is_not_a_pod_is_named(document: Json, words: str) -> None:
    with pytest.raises(PodMalformed, match=words):
        inject(document, Template(), every=True)


# Properties of all pods.
PORTS = st.lists(
    st.builds(
        lambda number, name: {"containerPort": number, **({"name": name} if name else {})},
        st.sampled_from([8000, 8001, 9090, 9400, 18000, 18001]),
        st.sampled_from([None, "http", "admin", "metrics"]),
    ),
    max_size=3,
    unique_by=(lambda port: port["containerPort"], lambda port: port.get("name") or port["containerPort"]),
)


@st.composite
def pods(draw: st.DrawFn) -> Json:
    """Pods of one engine and up to two others, which declare ports as they please."""
    own = draw(PORTS)
    args = draw(
        st.sampled_from([["m"], ["m", "--port", "8000"], ["m", "--port=8001"], ["--host", "::", "m"]])
    )
    used = {8000, 8001} | {port["containerPort"] for port in own}
    others = []
    for name in draw(st.sampled_from([[], ["helper"], ["helper", "logger"]])):
        free = [port for port in draw(PORTS) if port["containerPort"] not in used]
        used |= {port["containerPort"] for port in free}
        others.append({"name": name, "image": "other:1", "ports": free})
    options = st.fixed_dictionaries(
        {},
        optional={
            "native": st.sampled_from(["true", "false"]),
            "listen-port": st.sampled_from(["8000", "8080"]),
            "engine-probes": st.sampled_from(["auto", "exec", "sidecar"]),
        },
    )
    annotations = {"container": "vllm", **draw(options)}
    containers = draw(st.permutations([engine(args=args, ports=own), *others]))
    return pod(
        *containers, annotations=annotations, **draw(st.sampled_from([{}, {"initContainers": [LOADER]}]))
    )


@given(before=pods())
def test_injecting_twice_is_injecting_once(before: Json) -> None:
    original = copy.deepcopy(before)
    decision = decided(before)
    if not isinstance(decision, Injection):
        assert "tokenpool.io/listen-port" in decision.message  # another container has that port
        return
    after = apply(before, decision.patch)
    assert before == original
    assert decided(before) == decision
    assert decided(after) == Injection()
    assert [each["name"] for each in after["spec"]["containers"]].count(NAME) + [
        each["name"] for each in after["spec"].get("initContainers", [])
    ].count(NAME) == 1


@given(before=pods())
def test_every_port_is_declared_once_and_the_services_is_the_sidecars(before: Json) -> None:
    decision = decided(before)
    if not isinstance(decision, Injection):
        return
    after = apply(before, decision.patch)
    spec = after["spec"]
    every = [*spec.get("initContainers", []), *spec["containers"]]
    declared = [port["containerPort"] for each in every for port in each.get("ports", [])]
    assert len(declared) == len(set(declared))
    words = sidecar(after)["args"]
    listens = int(option(words, "--listen").rpartition(":")[2])
    local = int(option(words, "--upstream").rpartition(":")[2])
    assert resolve(after, listens) == (NAME, listens)
    own_ports = [int(option(words, name).rpartition(":")[2]) for name in ("--admin", "--peer")]
    assert len({listens, local, *own_ports}) == 4
    own = container(after, "vllm")["args"]
    assert (option(own, "--host"), option(own, "--port")) == ("127.0.0.1", str(local))
    # Names lead where they led, but for the engine's port, which is the sidecar's now.
    for each in before["spec"]["containers"]:
        for port in each.get("ports", []):
            if "name" in port and each["name"] != "vllm":
                assert resolve(after, port["containerPort"]) == (each["name"], port["containerPort"])


def test_workers_get_their_option_and_as_much_cpu_and_memory_each() -> None:
    annotated = pod()
    annotated["metadata"].setdefault("annotations", {})["tokenpool.io/workers"] = "4"

    made = sidecar(injected(annotated))

    assert option(made["args"], "--workers") == "4"
    assert made["resources"] == {
        "requests": {"cpu": "1000m", "memory": "512Mi"},
        "limits": {"memory": "2048Mi"},
    }
    assert "--workers" not in sidecar(injected(pod()))["args"]


@pytest.mark.parametrize("text", ["0", "65", "two", ""])
def test_a_number_of_workers_that_cannot_be_is_refused(text: str) -> None:
    annotated = pod()
    annotated["metadata"].setdefault("annotations", {})["tokenpool.io/workers"] = text

    assert "tokenpool.io/workers" in denial(annotated)
    assert "is not a number of processes from 1 to 64" in denial(annotated)
