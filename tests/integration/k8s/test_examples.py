"""The examples for other projects: valid for the API, and injected without a warning, as their pages say.

KServe and the production stack make the pods themselves. Their part is played by the shapes of
``tests/support/stacks.py``, with the labels, annotations and fields of the example.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from injector import dry_run
from injector.decisions import Injection, Reason
from injector.inject import inject
from injector.patch import apply
from injector.settings import PREFIX, Template, wish
from injector.sidecar_container import NAME
from tests.integration.k8s.api_schema import NEWEST, validate
from tests.integration.k8s.rendering import Json
from tests.support import stacks
from tests.support.pods import container, resolve, sidecar

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs" / "examples" / "kubernetes"
PAGES = sorted((ROOT / "docs" / "kubernetes").glob("*.md"))


def documents(name: str) -> list[Json]:
    return [each for each in yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()) if each is not None]


def of_kind(name: str, kind: str) -> Json:
    (found,) = [each for each in documents(name) if each["kind"] == kind]
    return found


def injected(pod: Json, *reasons: Reason) -> Json:
    """A pod after its injection, which gives warnings for these reasons only."""
    decision = inject(pod, Template())
    assert isinstance(decision, Injection), decision
    assert {note.reason for note in decision.notes} == set(reasons), decision.warnings
    made: Json = apply(pod, decision.patch)
    return made


def template(name: str, kind: str = "Deployment") -> Json:
    """The pod template of an example, injected by the dry run, without a warning."""
    result = dry_run.injected(of_kind(name, kind), Template(), every=False)
    assert (result.warnings, result.denials) == ((), ())
    made: Json = result.document["spec"]["template"]
    return made


def deployments() -> Iterator[tuple[str, Json]]:
    for name in ("llm-d", "inference-extension", "istio"):
        yield name, of_kind(name, "Deployment")


# --- every example ---
@pytest.mark.parametrize(
    ("named", "release"), list(itertools.product(deployments(), NEWEST)), ids=lambda value: str(value)[:20]
)
def test_a_deployment_is_valid_before_and_after_its_injection(named: tuple[str, Json], release: str) -> None:
    name, before = named
    after = dry_run.injected(before, Template(), every=False).document
    validate(before, release)
    validate(after, release)
    assert after["spec"]["selector"] == before["spec"]["selector"]
    assert template(name)["metadata"]["annotations"][PREFIX + "status"] == "injected"


def test_every_example_has_a_page_that_links_to_it() -> None:
    for path in EXAMPLES.iterdir():
        page = ROOT / "docs" / "kubernetes" / f"{path.stem.removesuffix('-values')}.md"
        assert f"](../examples/kubernetes/{path.name})" in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_annotations_of_a_page_are_known_and_their_values_are_accepted(page: Path) -> None:
    text = page.read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert list(yaml.safe_load_all(block))
    given = re.findall(r'tokenpool\.io/([a-z-]+): ("[^"]*"|[^\s`",]+)', text)
    for name, value in given:
        if name != "inject" and not value.isupper() and value != "SECRET/KEY":
            assert wish(Template(), {PREFIX + name: yaml.safe_load(value)})
    known = {*re.findall(rf"`{PREFIX}([a-z-]+)`", (ROOT / "docs/reference/annotations.md").read_text())}
    assert {*re.findall(r"tokenpool\.io/([a-z-]+)", text)} <= known | {"inject", "status", "warnings"}


# --- llm-d and the inference extension ---
@pytest.mark.parametrize("name", ["llm-d", "inference-extension"])
def test_an_endpoint_picker_reads_the_port_to_which_it_sends(name: str) -> None:
    after = template(name)
    assert resolve(after, 8000) == (NAME, 8000)
    arguments = sidecar(after)["args"]
    assert "--expose-engine-metrics" in arguments
    assert arguments[arguments.index("--handover") + 1] == "off"
    assert "--peer" not in arguments


def test_the_inference_pool_selects_the_injected_pods_and_their_port() -> None:
    pool = of_kind("inference-extension", "InferencePool")
    after = template("inference-extension")
    assert pool["spec"]["selector"]["matchLabels"].items() <= after["metadata"]["labels"].items()
    (port,) = pool["spec"]["targetPorts"]
    assert resolve(after, port["number"])[0] == NAME
    (rule,) = of_kind("inference-extension", "HTTPRoute")["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert (backend["kind"], backend["name"]) == (pool["kind"], pool["metadata"]["name"])
    assert backend["group"] == pool["apiVersion"].partition("/")[0]


# --- KServe ---
@pytest.mark.parametrize("tls", ["", stacks.TLS])
def test_a_pod_that_kserve_makes_of_the_example_has_its_sidecar(tls: str) -> None:
    spec = of_kind("kserve", "LLMInferenceService")["spec"]
    (own,) = spec["template"]["containers"]
    # KServe merges the example into its preset by the containers' names.
    main = {**stacks.kserve(8000, tls), **own}
    if tls:
        main["volumeMounts"] = [stacks.HOLDS_CERTIFICATE]
    before = stacks.shaped(
        main,
        labels={**stacks.KSERVE, "llm-d.ai/role": "both", **spec["labels"]},
        annotations=spec["annotations"],
        volumes=[stacks.CERTIFICATE],
    )
    after = injected(before, Reason.UNCHECKED)
    assert resolve(after, 8000) == (NAME, 8000)
    assert "--expose-engine-metrics" in sidecar(after)["args"]
    assert ("--tls-cert" in sidecar(after)["args"]) == bool(tls)
    assert container(after, "main")["lifecycle"] == own["lifecycle"]
    assert after["spec"]["terminationGracePeriodSeconds"] <= 60  # of KServe's preset


def test_a_predictor_with_vllm_has_its_sidecar() -> None:
    predictor = of_kind("kserve", "InferenceService")["spec"]["predictor"]
    before = stacks.shaped(
        stacks.VLLM_SERVER, labels=predictor["labels"], annotations=predictor["annotations"]
    )
    assert resolve(injected(before), 8080) == (NAME, 8080)


# --- the production stack ---
def test_an_engine_of_the_production_stack_has_its_sidecar() -> None:
    (values,) = documents("production-stack-values")
    (model,) = values["servingEngineSpec"]["modelSpec"]
    before = stacks.shaped(
        stacks.STACK_ENGINE,
        labels={**stacks.STACK, **model["podLabels"]},
        annotations=model["podAnnotations"],
    )
    after = injected(before)
    assert resolve(after, "container-port") == (NAME, 8000)
    assert "--expose-engine-metrics" in sidecar(after)["args"]


# --- Istio ---
def test_in_the_mesh_no_probe_of_the_pod_needs_mutual_tls() -> None:
    after = template("istio")
    for each in (sidecar(after), container(after, "vllm")):
        for name in ("startupProbe", "livenessProbe"):
            assert "exec" in each[name], (each["name"], name)
    before = of_kind("istio", "Deployment")["spec"]["template"]
    for name in ("excludeInboundPorts", "excludeOutboundPorts"):
        key = f"traffic.sidecar.istio.io/{name}"
        assert after["metadata"]["annotations"][key] == before["metadata"]["annotations"][key]
