"""Reading: one object of the API becomes a resource with a record of the pool file, or with its problem.

The rules are those of the pool file's reader, so an entitlement means the same in a file and as an object.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from coordinator.resources.fields import ENTITLEMENT, KEYS, POOL, camel, spelled, to_file
from coordinator.resources.schema import MOST_KEYS
from tokenpool.entitlements import Entitlement, Pool
from tokenpool.poolfile.reading import entitlement_of, pool_of
from tokenpool.yaml_nodes import Problems, of_values

MOST_PROBLEMS = 3
"""The most problems in a message: a condition is for people, and 10,000 of them are stored."""
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_NO_STATUS = b"{}"


class Kind(StrEnum):
    """The kinds of resources."""

    POOL = "TokenPool"
    ENTITLEMENT = "Entitlement"


class Key(NamedTuple):
    """The identity of an object: kind, namespace and name."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class SecretName(NamedTuple):
    """A Secret that an entitlement names."""

    namespace: str
    name: str


class SecretKey(NamedTuple):
    """One key of a Secret that an entitlement names."""

    secret: SecretName
    key: str


@dataclass(frozen=True, slots=True)
class Resource:
    """One object as far as a coordinator uses it."""

    key: Key
    uid: str
    version: str
    """The object's ``resourceVersion``."""
    generation: int
    created: str
    record: Pool | Entitlement | None
    """The record without keys; ``None`` if the object is not valid."""
    problem: str = ""
    """The fields that are not valid, with their fixes."""
    keys: tuple[str | SecretKey, ...] = ()
    """The keys of an entitlement: hex digests, and references to Secrets."""
    status: bytes = _NO_STATUS
    """The object's status as JSON. Ten thousand of them take 9 MB so, and 40 MB as dicts."""

    @property
    def order(self) -> tuple[str, Key]:
        """The order in which resources are accepted: the older one first."""
        return self.created, self.key

    @property
    def was_in_force(self) -> bool:
        """Whether a version of it was in force when its status was written last."""
        return msgspec.json.decode(self.status).get("acceptedGeneration") is not None


def read(object_: Mapping[str, Any], known: Resource | None = None) -> Resource:
    """Read one object of the API. ``known`` is its former state: an unchanged ``spec`` is not read again.

    Raises ``ValueError`` for an object without a name, which no API server sends.
    """
    metadata = _mapping(object_.get("metadata"))
    kind = Kind(str(object_.get("kind")))
    key = Key(kind, str(metadata.get("namespace", "")), str(metadata.get("name", "")))
    if not key.name:
        raise ValueError(f"a {kind} has no name")
    uid, generation = str(metadata.get("uid", "")), int(metadata.get("generation") or 0)
    version = str(metadata.get("resourceVersion", ""))
    if known is not None and (known.uid, known.version) == (uid, version) and version:
        return known
    status = msgspec.json.encode(_mapping(object_.get("status")))
    if known is not None and (known.uid, known.generation) == (uid, generation) and generation:
        return replace(known, version=version, status=status)
    problems = Problems()
    spec = object_.get("spec")
    record, keys = _record(key, spec, problems)
    problem = _said(problems)
    created = str(metadata.get("creationTimestamp", ""))
    return Resource(
        key, uid, version, generation, created, None if problem else record, problem, keys, status
    )


def _said(problems: Problems) -> str:
    """All problems as one text, with the resource's spelling of fields."""
    errors = [
        spelled(f"{each.message}; {each.fix}").replace("spec.name ", "metadata.name ")
        for each in problems.errors
    ]
    more = len(errors) - MOST_PROBLEMS
    shown = [*errors[:MOST_PROBLEMS], *([f"{more} more problems"] if more > 0 else [])]
    if len(shown) < 2:
        return "".join(shown)
    return " ".join(f"({number}) {each}" for number, each in enumerate(shown, 1))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _record(
    key: Key, spec: object, problems: Problems
) -> tuple[Pool | Entitlement | None, tuple[str | SecretKey, ...]]:
    if not isinstance(spec, Mapping):
        problems.error(0, "spec is missing", "add 'spec:'")
        return None, ()
    kind, namespace, name = key
    section = POOL if kind is Kind.POOL else ENTITLEMENT
    node = of_values(to_file(spec, section) | {"name": name}, problems, name="spec")
    if kind is Kind.POOL:
        return pool_of(node, problems), ()
    return entitlement_of(node, problems), _keys(namespace, spec.get(camel(KEYS)), problems)


def _keys(namespace: str, values: object, problems: Problems) -> tuple[str | SecretKey, ...]:
    """The keys of an entitlement. A problem is reported without any part of the value."""
    field = f"spec.{camel(KEYS)}"
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) > MOST_KEYS:
        problems.error(0, f"{field} is not a list of at most {MOST_KEYS} keys", "write '- sha256: HEX' lines")
        return ()
    made: dict[str | SecretKey, None] = {}
    for index, value in enumerate(values):
        found = _key(namespace, value)
        if found is None:
            fix = "write {sha256: HEX} with 64 hex digits, or {secretRef: {name: SECRET, key: KEY}}"
            problems.error(0, f"{field}[{index}] is no key", fix)
        elif found in made:
            problems.error(0, f"{field}[{index}] is given twice", "remove one")
        else:
            made[found] = None
    return tuple(made)


def _key(namespace: str, value: object) -> str | SecretKey | None:
    match value:
        case {"sha256": str(digest), **others} if not others:
            return digest.lower() if _DIGEST.fullmatch(digest) else None
        case {"secretRef": {"name": str(name), "key": str(key), **others}, **more} if not (others or more):
            return SecretKey(SecretName(namespace, name), key) if name and key else None
    return None


def secret_digests(data: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each value of a Secret in hex, by its key. A value without text has no digest.

    Space around a key is removed, as from a key file: an editor's newline is no part of it.
    """
    return {name: hashlib.sha256(text).hexdigest() for name, value in data.items() if (text := value.strip())}
