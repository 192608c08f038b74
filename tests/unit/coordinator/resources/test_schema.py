"""The CustomResourceDefinitions: from the pool file's fields, structural, and as strict as the reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.resources import schema
from coordinator.resources.fields import ENTITLEMENT, POOL, camel, fields_of, spelled
from coordinator.resources.reading import Kind
from tests.support.api_server import ApiServer, Refused, definitions
from tests.support.resources import resource
from tokenpool.poolfile.described import FIELDS

ROOT = Path(__file__).parents[4]
DEFINITIONS = schema.definitions()
NOT_IN_RESOURCES = (
    {
        "pools": "each pool is a TokenPool",
        "entitlements": "each entitlement is an Entitlement",
        "pools[].name": "metadata.name",
        "entitlements[].name": "metadata.name",
        "entitlements[].api_keys[].env": "a resource names no variable of a sidecar",
        "entitlements[].api_keys[].file": "a resource names no file of a sidecar",
        "entitlements[].api_keys[].id": "a key of a resource has the id of its digest",
        "entitlements[].api_keys[].expires": "remove the key from the resource",
        "entitlements[].api_keys[].concurrency": "a resource bounds its entitlement",
        "entitlements[].api_keys[].quotas": "a resource has the quotas of its entitlement",
        "entitlements[].api_keys[].quotas[].tokens": "a resource has the quotas of its entitlement",
        "entitlements[].api_keys[].quotas[].per": "a resource has the quotas of its entitlement",
        "entitlements[].api_keys[].quotas[].timezone": "a resource has the quotas of its entitlement",
        "anonymous": "a setting of the whole pool file",
        "administrator_keys": "a setting of the whole pool file",
    }
    | {
        each.path: "issuers are settings of the whole pool file"
        for each in FIELDS
        if each.path.partition("[]")[0] == "issuers"
    }
    | {
        each.path: "groups are in the pool file; entitlements name them"
        for each in FIELDS
        if each.path.partition("[]")[0] == "groups"
    }
)


def spec_of(name: str) -> dict[str, Any]:
    [version] = DEFINITIONS[name]["spec"]["versions"]
    spec: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def test_the_files_follow_from_the_fields_of_the_pool_file() -> None:
    folder = ROOT / schema.FOLDER
    assert {path.name for path in folder.iterdir()} == schema.pages().keys()
    for name, text in schema.pages().items():
        assert (folder / name).read_text() == text, "run python -m coordinator.resources.schema"


@pytest.mark.parametrize("path", [each.path for each in FIELDS if each.path not in NOT_IN_RESOURCES])
def test_every_field_of_the_pool_file_is_in_a_schema(path: str) -> None:
    section, _, rest = path.partition("[].")
    found: Any = spec_of({POOL: "tokenpools.yaml", ENTITLEMENT: "entitlements.yaml"}[section])
    for name in rest.split("."):
        found = found.get("items", found)["properties"][camel(name.removesuffix("[]"))]
    assert found["type"]
    assert found["description"]


def test_a_new_kind_of_field_needs_a_schema() -> None:
    field = fields_of(ENTITLEMENT)["weight"]
    other = type(field)("weight", field.described._replace(kind="a colour"))
    with pytest.raises(
        schema.UnknownKind, match=re.escape("entitlements[].weight: no schema for 'a colour'")
    ):
        schema.schema_of(other)


def nodes(found: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, found
    for name, each in found.get("properties", {}).items():
        yield from nodes(each, f"{path}.{name}")
    if "items" in found:
        yield from nodes(found["items"], f"{path}[]")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_schema_is_structural_and_bounded(name: str) -> None:
    """https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/"""
    [version] = DEFINITIONS[name]["spec"]["versions"]
    for path, node in nodes(version["schema"]["openAPIV3Schema"]):
        assert isinstance(node["type"], str), path
        assert not node.keys() & {"$ref", "oneOf", "anyOf", "allOf", "not", "additionalProperties", "default"}
        if path.startswith(".spec") and node["type"] == "array":
            assert node["maxItems"], f"{path}: the cost of rules inside has no bound"
        if path.startswith(".spec") and node["type"] == "string" and "enum" not in node:
            assert node["maxLength"], path
        for rule in node.get("x-kubernetes-validations", ()):
            assert rule["message"].count(";") == 1, f"{path}: the message gives the problem; the fix"


def test_each_column_shows_a_field_of_the_schema() -> None:
    for name, document in DEFINITIONS.items():
        [version] = document["spec"]["versions"]
        paths = {re.sub(r"\[\]", "", path) for path, _ in nodes(version["schema"]["openAPIV3Schema"])}
        for column in version["additionalPrinterColumns"]:
            plain = re.sub(r"\[\?\(.*?\)\]", "", column["jsonPath"])
            assert plain in paths | {".metadata.creationTimestamp"}, (name, column)


# --- what the API server admits ---
POOL_SPEC = {"models": ["*"]}
SPEC = {"pool": "chat", "tier": "elastic"}
ADMITTED = [
    ("entitlements", SPEC),
    ("entitlements", SPEC | {"weight": 0.5, "outputEstimate": "max", "slo": {"ttftMs": 300}}),
    ("entitlements", SPEC | {"tier": "guaranteed", "guarantee": {"kvTokens": 1}, "ceiling": {"kvTokens": 1}}),
    ("entitlements", SPEC | {"tier": "spot", "preemptible": True, "outputEstimate": "0.95"}),
    ("entitlements", SPEC | {"apiKeys": [{"sha256": "Ab" * 32}, {"secretRef": {"name": "s", "key": "k"}}]}),
    ("tokenpools", POOL_SPEC),
    ("tokenpools", POOL_SPEC | {"replica": {"tokensPerSecond": {"fixed": 1}, "kvTokens": {"auto": 2}}}),
    ("tokenpools", POOL_SPEC | {"replica": {"concurrency": {}}, "replicas": {"min": 2, "max": 2}}),
    ("tokenpools", POOL_SPEC | {"replicas": {"min": 3}, "pricing": {"inputWeight": 0, "imageTokens": 7}}),
]
REFUSED = [
    ("entitlements", {"tier": "spot"}, "'pool' is a required property"),
    ("entitlements", SPEC | {"tier": "gold"}, "'gold' is not one of"),
    ("entitlements", SPEC | {"weight": 0}, "spec.weight: 0 is less than or equal to the minimum"),
    ("entitlements", SPEC | {"tier": "guaranteed"}, "spec.guarantee: a guaranteed entitlement needs"),
    ("entitlements", SPEC | {"tier": "spot", "guarantee": {"kvTokens": 1}}, "a spot entitlement has no"),
    ("entitlements", SPEC | {"guarantee": {}}, "spec.guarantee: {} "),
    ("entitlements", SPEC | {"guarantee": {"kvTokens": 2}, "ceiling": {"kvTokens": 1}}, "spec.ceiling.kv"),
    ("entitlements", SPEC | {"preemptible": True}, "spec.preemptible: only spot requests are preempted"),
    ("entitlements", SPEC | {"outputEstimate": "1.5"}, "spec.outputEstimate: '1.5' does not match"),
    ("entitlements", SPEC | {"apiKeys": [{"sha256": "ab"}]}, "spec.apiKeys.0.sha256: 'ab' does not match"),
    ("entitlements", SPEC | {"apiKeys": [{}]}, "spec.apiKeys[0]: a key has one of sha256 and secretRef"),
    ("entitlements", SPEC | {"apiKeys": ["plain text"]}, "is not of type 'object'"),
    ("tokenpools", {"models": []}, "spec.models"),
    ("tokenpools", POOL_SPEC | {"replicas": {"min": 3, "max": 2}}, "spec.replicas: min is above max"),
    ("tokenpools", POOL_SPEC | {"replica": {"kvTokens": {"fixed": 1, "auto": 1}}}, "a capacity has one"),
    ("tokenpools", POOL_SPEC | {"replica": {"kvTokens": "auto"}}, "is not of type 'object'"),
]  # fmt: skip


@pytest.mark.parametrize(("plural", "spec"), ADMITTED)
def test_the_api_server_admits_what_is_valid(plural: str, spec: dict[str, Any]) -> None:
    stored = ApiServer().apply(plural, "tenants", "one", spec)
    assert stored["spec"] == spec
    assert resource(Kind(stored["kind"]), "one", spec).problem == ""


@pytest.mark.parametrize(("plural", "spec", "reason"), REFUSED)
def test_the_api_server_refuses_what_is_not_valid(plural: str, spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=re.escape(reason)) as raised:
        ApiServer().apply(plural, "tenants", "one", spec)
    assert raised.value.code == 422


def test_a_name_is_no_longer_than_the_pool_files() -> None:
    ApiServer().apply("entitlements", "tenants", "x" * 63, SPEC)
    with pytest.raises(Refused, match="the name has more than 63 characters"):
        ApiServer().apply("entitlements", "tenants", "x" * 64, SPEC)


numbers = st.one_of(st.integers(-1, 5), st.floats(-1, 5).map(lambda x: round(x, 2)))
amounts = st.dictionaries(st.sampled_from(["tokensPerSecond", "kvTokens", "concurrency", "other"]), numbers)
capacities = st.dictionaries(st.sampled_from(["fixed", "auto"]), numbers)
words = st.sampled_from(["chat", "", "max", "0.9", "1.0", "0.0", "guaranteed", "elastic", "spot", "a b"])
keys = st.lists(
    st.one_of(
        st.just({"sha256": "ab" * 32}),
        st.just({"sha256": "AB" * 32}),
        st.just({"secretRef": {"name": "s", "key": "k"}}),
        st.just({}),
    ),
    max_size=3,
)
entitlement_specs = st.fixed_dictionaries(
    {"pool": st.just("chat"), "tier": st.sampled_from(["guaranteed", "elastic", "spot"])},
    optional={
        "weight": numbers,
        "guarantee": amounts,
        "ceiling": amounts,
        "slo": st.dictionaries(st.sampled_from(["ttftMs", "tpotMs"]), numbers),
        "outputEstimate": words,
        "preemptible": st.booleans(),
        "apiKeys": keys,
    },
)
pool_specs = st.fixed_dictionaries(
    {"models": st.lists(words, max_size=2)},
    optional={
        "replica": st.dictionaries(
            st.sampled_from(["tokensPerSecond", "kvTokens", "concurrency"]), capacities
        ),
        "replicas": st.dictionaries(st.sampled_from(["min", "max"]), st.integers(0, 3)),
        "pricing": st.dictionaries(st.sampled_from(["inputWeight", "imageTokens"]), st.integers(-1, 3)),
    },
)
specs = st.one_of(
    st.tuples(st.just("entitlements"), entitlement_specs), st.tuples(st.just("tokenpools"), pool_specs)
)
CHECKS = definitions()


@given(specs)
def test_what_the_api_server_admits_can_be_read(example: tuple[str, dict[str, Any]]) -> None:
    plural, spec = example
    kind = CHECKS[plural].kind
    try:
        admitted = CHECKS[plural].check({"kind": kind, "metadata": {"name": "one"}, "spec": spec})
    except Refused:
        return
    problem = resource(Kind(kind), "one", admitted["spec"]).problem
    # The rules of the API server cannot count a list's equal items, nor see that all numbers are 0.
    assert "twice" in problem or "has no guarantee" in problem or problem == "", problem


def test_names_of_fields_in_messages_are_the_resources() -> None:
    said = "spec.ceiling.tokens_per_second is -1; write at least 0 tokens per second"
    assert spelled(said) == "spec.ceiling.tokensPerSecond is -1; write at least 0 tokens per second"
