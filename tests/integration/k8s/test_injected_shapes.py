"""Injected pods of other projects are valid for the API, and so are pods with Istio or TLS."""

from __future__ import annotations

from typing import Any

import pytest

from injector.decisions import Injection
from injector.patch import apply
from tests.integration.k8s.api_schema import NEWEST, validate
from tests.support.pods import decided, engine, pod
from tests.support.stacks import SHAPES, Injects

Json = dict[str, Any]

SIZES = {"limits": {"cpu": "8", "memory": "64Gi"}}
MORE: dict[str, Json] = {
    "Guaranteed": pod(engine(resources=SIZES)),
    "in a mesh": {**pod(), "metadata": {"labels": {"tokenpool.io/inject": "true", "istio.io/rev": "a"}}},
    "with the processes of the node": pod(hostPID=True),
    "with one key of a Secret": pod(annotations={"upstream-key-secret": "engine/token"}),
}
PODS = {
    **{shape.name: shape.pod for shape in SHAPES if isinstance(shape.expected, Injects)},
    **MORE,
}


@pytest.mark.parametrize("release", NEWEST)
@pytest.mark.parametrize("name", PODS)
def test_an_injected_pod_is_valid_in_the_two_newest_releases(name: str, release: str) -> None:
    decision = decided(PODS[name])
    assert isinstance(decision, Injection), decision
    after = apply(PODS[name], decision.patch)
    validate(after, release)
