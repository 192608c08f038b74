"""Objects of the API, as a controller receives them."""

from __future__ import annotations

import hashlib
from typing import Any

from coordinator.resources.merge import Merge, SecretState
from coordinator.resources.reading import Key, Kind, Resource, SecretName, read

Json = dict[str, Any]
NAMESPACE = "tenants"


def entitlement(name: str, generation: int = 1, created: int = 0, **spec: Any) -> Resource:
    """An elastic entitlement of the pool ``chat``, if nothing else is said."""
    return resource(Kind.ENTITLEMENT, name, {"pool": "chat", "tier": "elastic"} | spec, generation, created)


def guaranteed(name: str, sequences: float, generation: int = 1, created: int = 0, **spec: Any) -> Resource:
    """A guaranteed entitlement."""
    said = {"tier": "guaranteed", "guarantee": {"concurrency": sequences}} | spec
    return entitlement(name, generation, created, **said)


def token_pool(name: str = "chat", sequences: float = 8, most: int = 1, generation: int = 1) -> Resource:
    """A pool whose replicas run so many sequences."""
    spec = {"models": ["*"], "replica": {"concurrency": {"fixed": sequences}}, "replicas": {"max": most}}
    return resource(Kind.POOL, name, spec, generation, 0)


def resource(kind: Kind, name: str, spec: Any, generation: int = 1, created: int = 0) -> Resource:
    """A resource, as it is read from the API."""
    metadata = {
        "name": name,
        "namespace": NAMESPACE,
        "uid": f"uid-{name}",
        "generation": generation,
        "resourceVersion": "1",
        "creationTimestamp": f"2026-01-01T00:00:{created:02}Z",
    }
    return read({"kind": kind.value, "metadata": metadata, "spec": spec})


def key(name: str, kind: Kind = Kind.ENTITLEMENT) -> Key:
    """The identity of an object in the namespace of the tests."""
    return Key(kind, NAMESPACE, name)


def secret(name: str = "keys") -> SecretName:
    """A Secret in the namespace of the tests."""
    return SecretName(NAMESPACE, name)


def digest(text: str) -> str:
    """The SHA-256 of an API key in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def update(
    merge: Merge,
    *changed: Resource | Key,
    secrets: dict[SecretName, SecretState | None] | None = None,
) -> None:
    """Use changed resources; a key deletes."""
    merge_input = {
        (each if isinstance(each, Key) else each.key): (None if isinstance(each, Key) else each)
        for each in changed
    }
    for _ in merge.update(merge_input, secrets):
        pass
