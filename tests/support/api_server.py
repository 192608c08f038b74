"""A stand-in for the Kubernetes API server: custom resources and Secrets, with the failures of a real one.

It implements what a controller uses: lists in pages, watches with bookmarks, and merge patches of a status
with optimistic locking. It validates objects against the CustomResourceDefinitions (schema, CEL rules) and
prunes unknown fields. A test makes it end watches, forget its history (410), answer 429, and cause conflicts.
It also checks the rights of its client, as RBAC does.

Run as a program it serves for other processes: ``python -m tests.support.api_server PORT``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import datetime
import functools
import json
import random
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from aiohttp import web
from cel_expr_python import cel

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "k8s/entitlements/crds"
RBAC = ROOT / "k8s/entitlements/rbac.yaml"
HISTORY = 20_000
"""Events that a watch can resume from."""
GROUP = "tokenpool.io"


class Refused(Exception):
    """A request is answered with a Status."""

    def __init__(self, code: int, reason: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after = retry_after


# --- validation ---
class Definition:
    """One CustomResourceDefinition: schema, rules and pruning."""

    def __init__(self, document: Json) -> None:
        spec = document["spec"]
        [version] = spec["versions"]
        self.document = document
        self.kind: str = spec["names"]["kind"]
        self.plural: str = spec["names"]["plural"]
        self.schema: Json = version["schema"]["openAPIV3Schema"]
        # OpenAPI 3.0 has draft 4's boolean exclusiveMinimum.
        self._validator = jsonschema.Draft4Validator(self.schema)

    def check_status(self, object_: Json, status: Json) -> None:
        """Check a new status. Ratcheting, since Kubernetes 1.30: a ``spec`` that is not valid may stay."""
        schema = self.schema["properties"]["status"]
        errors = [each.message for each in jsonschema.Draft4Validator(schema).iter_errors(status)]
        if errors or _pruned(status, schema) != status:
            raise Refused(
                422, "Invalid", f"{object_['metadata']['name']}: status: {errors or 'unknown fields'}"
            )

    def check(self, object_: Json) -> Json:
        """The object without unknown fields. Raises ``Refused`` with 422, as the API server does."""
        pruned: Json = _pruned(object_, self.schema)
        pruned["metadata"] = object_["metadata"]
        errors = [
            f"{'.'.join(map(str, each.absolute_path))}: {each.message}"
            for each in self._validator.iter_errors(pruned)
        ]
        errors += _broken_rules(pruned, self.schema, "")
        if errors:
            name = object_["metadata"].get("name")
            raise Refused(422, "Invalid", f'{self.kind} "{name}" is invalid: {"; ".join(errors)}')
        return pruned


def _pruned(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        return {key: _pruned(each, known[key]) for key, each in value.items() if key in known}
    if isinstance(value, list) and "items" in schema:
        return [_pruned(each, schema["items"]) for each in value]
    return value


@functools.cache
def _compiled(rule: str) -> Any:
    return cel.NewEnv(variables={"self": cel.Type.DYN}).compile(rule)


def _typed(value: Any, schema: Mapping[str, Any]) -> Any:
    """A value with the types that the API server gives it in CEL: a number is a double."""
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return {key: _typed(each, known.get(key, {})) for key, each in value.items()}
    if isinstance(value, list):
        return [_typed(each, schema.get("items", {})) for each in value]
    is_number = schema.get("type") == "number" and isinstance(value, int | float)
    return float(value) if is_number and not isinstance(value, bool) else value


def _broken_rules(value: Any, schema: Mapping[str, Any], path: str) -> list[str]:
    broken = []
    for rule in schema.get("x-kubernetes-validations", ()):
        holds = _compiled(rule["rule"]).eval(data={"self": _typed(value, schema)}).value()
        if holds is not True:
            broken.append(f"{path or '<root>'}{rule.get('fieldPath', '')}: {rule['message']}")
    if isinstance(value, dict):
        for key, each in value.items():
            if key in schema.get("properties", {}):
                broken += _broken_rules(each, schema["properties"][key], f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            broken += _broken_rules(each, schema.get("items", {}), f"{path}[{number}]")
    return broken


def definitions() -> dict[str, Definition]:
    """The definitions of ``k8s/entitlements/crds``, by their plural."""
    made = [Definition(yaml.safe_load(path.read_text())) for path in sorted(CRDS.glob("*.yaml"))]
    return {each.plural: each for each in made}


# --- storage ---
@dataclass
class Event:
    """One change of a collection."""

    version: int
    kind: str
    object: Json


@dataclass
class Collection:
    """The objects of one resource, in all namespaces, with the history of their changes."""

    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    history: deque[Event] = field(default_factory=lambda: deque(maxlen=HISTORY))
    first: int = 0
    """A watch from an older version is answered with 410."""
    wakers: set[asyncio.Event] = field(default_factory=set)
    """One for each watch: set after a change."""


@dataclass
class Faults:
    """The failures that the next requests meet."""

    refuse: Counter[str] = field(default_factory=Counter)
    """Requests to answer with 429, by verb: list, watch, patch."""
    refuse_with: float = 0.0
    """The probability of a 429, never twice in a row for one verb and resource."""
    refuse_verbs: tuple[str, ...] = ("list", "watch", "patch")
    """The verbs that meet it."""
    conflict_with: float = 0.0
    """The probability of a conflict."""
    retry_after_s: int = 1
    conflicts: int = 0
    """Patches before which another writer changes the object."""
    end_watches_after_s: float | None = None
    """Watches end after a random time with this mean, half of them in the middle of a line."""
    forget_with: float = 0.0
    """The probability that the history is forgotten when a watch ends."""
    is_down: bool = False
    """Connections are closed without an answer."""
    forbidden: set[str] = field(default_factory=set)
    """Resources that the client may not read."""


class ApiServer:
    """The server. Its methods are what ``kubectl`` would do."""

    def __init__(self, seed: int = 1) -> None:
        self.definitions = definitions()
        self.collections = {name: Collection() for name in (*self.definitions, "secrets")}
        self.version = 100
        self.faults = Faults()
        self.requests: Counter[str] = Counter()
        """Requests by verb and resource, such as ``list entitlements``."""
        self.answers: Counter[int] = Counter()
        self.named_secrets = {"keys"}
        """Secrets that an operator added to the Role."""
        self._rules = next(each for each in yaml.safe_load_all(RBAC.read_text()) if each["kind"] == "Role")[
            "rules"
        ]
        self.secrets_read: set[tuple[str, str]] = set()
        self.watches = self.ended_watches = 0
        self._random = random.Random(seed)
        self._refused: set[str] = set()
        """Verbs and resources whose last request was refused."""
        self._endings: set[asyncio.Event] = set()
        self._number = 0

    # --- what kubectl does ---
    def apply(self, plural: str, namespace: str, name: str, spec: Json) -> Json:
        """Create or change a custom resource. Raises ``Refused``, like the admission of the API server."""
        definition, collection = self.definitions[plural], self.collections[plural]
        old = collection.objects.get((namespace, name))
        if old is not None:
            new = copy.deepcopy(old) | {"spec": spec}
        else:
            self._number += 1
            made = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(
                seconds=self._number
            )
            metadata = {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{self._number}",
                "creationTimestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "generation": 0,
            }
            new = {
                "apiVersion": f"{GROUP}/v1alpha1",
                "kind": definition.kind,
                "metadata": metadata,
                "spec": spec,
            }
        new = definition.check(new)
        if old is None or old["spec"] != new["spec"]:
            new["metadata"] = new["metadata"] | {"generation": new["metadata"]["generation"] + 1}
        return self._store(plural, namespace, name, new, "ADDED" if old is None else "MODIFIED")

    def force(self, plural: str, namespace: str, name: str, spec: Any) -> Json:
        """Store an object without validation: it is older than the schema."""
        checked, self.definitions[plural].check = self.definitions[plural].check, lambda new: new  # type: ignore[method-assign, assignment]
        try:
            return self.apply(plural, namespace, name, spec)
        finally:
            self.definitions[plural].check = checked  # type: ignore[method-assign]

    def apply_secret(self, namespace: str, name: str, **data: str) -> None:
        """Create or change a Secret."""
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        made = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "data": encoded,
        }
        is_new = (namespace, name) not in self.collections["secrets"].objects
        self._store("secrets", namespace, name, made, "ADDED" if is_new else "MODIFIED")

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object."""
        gone = self.collections[plural].objects.pop((namespace, name))
        self._log(plural, "DELETED", copy.deepcopy(gone))

    def get(self, plural: str, namespace: str, name: str) -> Json:
        """An object."""
        return self.collections[plural].objects[namespace, name]

    def condition(self, plural: str, namespace: str, name: str, kind: str) -> Json:
        """A condition of an object; empty if it is not there."""
        status = self.get(plural, namespace, name).get("status", {})
        return next((each for each in status.get("conditions", ()) if each["type"] == kind), {})

    def forget_history(self) -> None:
        """Answer 410 to every watch from an older version, as after etcd's compaction."""
        self.version += 1
        for collection in self.collections.values():
            collection.history.clear()
            collection.first = self.version

    def end_watches(self) -> None:
        """Break all watches now."""
        for each in self._endings:
            each.set()

    def _store(self, plural: str, namespace: str, name: str, new: Json, kind: str) -> Json:
        self.version += 1
        new = new | {"metadata": new["metadata"] | {"resourceVersion": str(self.version)}}
        self.collections[plural].objects[namespace, name] = new
        self._log(plural, kind, new)
        return new

    def _log(self, plural: str, kind: str, object_: Json) -> None:
        if kind == "DELETED":
            self.version += 1
            object_["metadata"] = object_["metadata"] | {"resourceVersion": str(self.version)}
        collection = self.collections[plural]
        if len(collection.history) == HISTORY:
            collection.first = collection.history[0].version
        collection.history.append(Event(self.version, kind, object_))
        for each in collection.wakers:
            each.set()

    # --- HTTP ---
    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(middlewares=[self._answered])
        path = f"/apis/{GROUP}/v1alpha1/namespaces/{{namespace}}/{{plural}}"
        application.add_routes(
            [
                web.get(path, self._read),
                web.patch(path + "/{name}/status", self._patch),
                web.get("/api/v1/namespaces/{namespace}/{plural:secrets}", self._read),
                web.post("/test/{what}", self._test),
                web.get("/test/object/{plural}/{namespace}/{name}", self._object),
            ]
        )
        return application

    @web.middleware
    async def _answered(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        if self.faults.is_down and not request.path.startswith("/test"):
            assert request.transport is not None
            request.transport.abort()
            raise web.HTTPServiceUnavailable
        try:
            response: web.StreamResponse = await handler(request)
        except Refused as refused:
            headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
            response = web.json_response(_status(refused), status=refused.code, headers=headers)
        except ConnectionResetError:
            raise web.HTTPBadRequest from None  # the client is gone
        self.answers[response.status] += 1
        return response

    def _refuse_some(self, verb: str, plural: str, *, name: str = "", part: str = "") -> None:
        self.requests[f"{verb} {plural}"] += 1
        group = "" if plural == "secrets" else GROUP
        if plural in self.faults.forbidden or not self._may(verb, group, plural + part, name):
            raise Refused(403, "Forbidden", f"{plural} is forbidden: no RBAC policy matched")
        was_refused = f"{verb} {plural}" in self._refused
        self._refused.discard(f"{verb} {plural}")
        if self.faults.refuse[verb] > 0 or (
            not was_refused
            and verb in self.faults.refuse_verbs
            and self._random.random() < self.faults.refuse_with
        ):
            self.faults.refuse[verb] -= self.faults.refuse[verb] > 0
            self._refused.add(f"{verb} {plural}")
            raise Refused(429, "TooManyRequests", "too many requests", self.faults.retry_after_s)

    def _may(self, verb: str, group: str, resource: str, name: str) -> bool:
        """Whether the Role of the coordinators admits a request. The name is that of a field selector."""
        return any(
            verb in rule["verbs"]
            and group in rule["apiGroups"]
            and resource in rule["resources"]
            and ("resourceNames" not in rule or name in {*rule["resourceNames"], *self.named_secrets})
            for rule in self._rules
        )

    def _selected(self, request: web.Request) -> tuple[str, Callable[[Json], bool]]:
        """The name that a request selects, and the filter."""
        namespace, plural = request.match_info["namespace"], request.match_info["plural"]
        selector = request.query.get("fieldSelector", "")
        name = selector.removeprefix("metadata.name=") if selector else ""
        if plural == "secrets":
            self.secrets_read.add((namespace, name))

        def wanted(object_: Json) -> bool:
            metadata = object_["metadata"]
            return metadata["namespace"] == namespace and (not name or metadata["name"] == name)

        return name, wanted

    async def _read(self, request: web.Request) -> web.StreamResponse:
        plural = request.match_info["plural"]
        if plural not in self.collections:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        name, wanted = self._selected(request)
        if request.query.get("watch") == "true":
            self._refuse_some("watch", plural, name=name)
            return await self._watch(request, self.collections[plural], wanted)
        self._refuse_some("list", plural, name=name)
        return self._list(request, self.collections[plural], wanted)

    def _list(
        self, request: web.Request, collection: Collection, wanted: Callable[[Json], bool]
    ) -> web.Response:
        limit = int(request.query.get("limit", 0))
        first, version = 0, self.version
        if token := request.query.get("continue"):
            version, first = map(int, token.split("-"))
            if version < collection.first:
                raise Refused(410, "Expired", "the provided continue parameter is too old")
        items = [each for _, each in sorted(collection.objects.items()) if wanted(each)]
        page = items[first : first + limit] if limit else items
        metadata = {"resourceVersion": str(version)}
        if limit and first + limit < len(items):
            metadata["continue"] = f"{version}-{first + limit}"
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": page})

    async def _watch(
        self, request: web.Request, collection: Collection, wanted: Callable[[Json], bool]
    ) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        if version < collection.first:
            raise Refused(410, "Expired", f"too old resource version: {version} ({collection.first})")
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        ending = asyncio.Event()
        self._endings.add(ending)
        self.watches += 1
        lasts = float(request.query.get("timeoutSeconds", 300))
        if self.faults.end_watches_after_s is not None:
            lasts = min(lasts, self._random.expovariate(1 / self.faults.end_watches_after_s))
        ends = asyncio.get_running_loop().time() + lasts
        try:
            async for event in self._events(collection, version, ends, ending, wanted):
                await response.write(json.dumps(event).encode() + b"\n")
            if self._random.random() < self.faults.forget_with:
                self.forget_history()
            if ending.is_set() or (self.faults.end_watches_after_s and self._random.random() < 0.5):
                await response.write(b'{"type":"MODI')  # in the middle of a line
                assert request.transport is not None
                request.transport.abort()
        except ConnectionResetError:
            pass  # the client is gone
        finally:
            self.watches -= 1
            self.ended_watches += 1
            self._endings.discard(ending)
        return response

    async def _events(
        self,
        collection: Collection,
        version: int,
        ends: float,
        ending: asyncio.Event,
        wanted: Callable[[Json], bool],
    ) -> AsyncIterator[Json]:
        loop, waker = asyncio.get_running_loop(), asyncio.Event()
        collection.wakers.add(waker)
        try:
            while not ending.is_set() and loop.time() < ends:
                waker.clear()
                if version < collection.first:
                    self.answers[410] += 1
                    gone = Refused(410, "Expired", "too old resource version")
                    yield {"type": "ERROR", "object": _status(gone)}
                    return
                found = _after(collection.history, version)
                for event in found:
                    version = event.version
                    if wanted(event.object):
                        yield {"type": event.kind, "object": event.object}
                if found:
                    continue
                if version < self.version:
                    version = self.version
                    yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(ends - loop.time(), 0.25)):
                        await waker.wait()
        finally:
            collection.wakers.discard(waker)

    async def _patch(self, request: web.Request) -> web.Response:
        plural, key = (
            request.match_info["plural"],
            (request.match_info["namespace"], request.match_info["name"]),
        )
        self._refuse_some("patch", plural, name=request.match_info["name"], part="/status")
        if request.content_type != "application/merge-patch+json":
            raise Refused(415, "UnsupportedMediaType", request.content_type)
        body = await request.json()
        old = self.collections[plural].objects.get(key)
        if old is None:
            raise Refused(404, "NotFound", f"{plural} {key[1]} not found")
        if self.faults.conflicts > 0 or self._random.random() < self.faults.conflict_with:
            self.faults.conflicts -= self.faults.conflicts > 0
            labels = {"changed": str(self.version)}
            old = self._store(
                plural, *key, old | {"metadata": old["metadata"] | {"labels": labels}}, "MODIFIED"
            )
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted is not None and wanted != old["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", "the object has been modified; please apply your changes")
        status = _merged(old.get("status", {}), body.get("status", {}))
        self.definitions[plural].check_status(old, status)
        new = old | {"status": status}
        if new == old:
            return web.json_response(old)
        return web.json_response(self._store(plural, *key, new, "MODIFIED"))

    # --- for other processes ---
    async def _object(self, request: web.Request) -> web.Response:
        plural, namespace, name = (request.match_info[each] for each in ("plural", "namespace", "name"))
        return web.json_response(self.collections[plural].objects.get((namespace, name)))

    async def _test(self, request: web.Request) -> web.Response:
        """``POST /test/METHOD`` calls a method with the arguments of the JSON body."""
        result = getattr(self, request.match_info["what"])(*await request.json())
        return web.json_response(result)

    def set_faults(self, faults: Json) -> None:
        """Set some of the faults."""
        for name, value in faults.items():
            setattr(self.faults, name, Counter(value) if name == "refuse" else value)

    def counts(self) -> Json:
        """What was asked and answered so far."""
        return {
            "requests": dict(self.requests),
            "answers": dict(self.answers),
            "ended_watches": self.ended_watches,
        }

    def fill(self, namespace: str, pool: str, number: int) -> None:
        """Create entitlements ``t0`` to ``tN``, with the key ``key-N`` each. The first is validated."""
        import hashlib  # noqa: PLC0415

        for each in range(number):
            digest = hashlib.sha256(f"key-{each}".encode()).hexdigest()
            spec = {
                "pool": pool,
                "tier": ("elastic", "spot", "guaranteed")[each % 3],
                "weight": 1 + each % 4,
                "ceiling": {"tokensPerSecond": 5000, "concurrency": 8},
                "slo": {"ttftMs": 300},
                "apiKeys": [{"sha256": digest}],
            }
            if spec["tier"] == "guaranteed":
                spec["guarantee"] = {"tokensPerSecond": 1, "kvTokens": 16, "concurrency": 0.001}
            (self.apply if each < 30 else self.force)("entitlements", namespace, f"t{each}", spec)


def _after(history: deque[Event], version: int) -> list[Event]:
    found: list[Event] = []
    for event in reversed(history):
        if event.version <= version:
            break
        found.append(event)
    return found[::-1]


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    made = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key), value)
    return made


def _status(refused: Refused) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": str(refused),
        "reason": refused.reason,
        "code": refused.code,
    }


def kubeconfig(folder: Path, url: str, namespace: str = "tenants") -> Path:
    """A kubeconfig for a server without TLS."""
    path = folder / "kubeconfig.yaml"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
        ],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "test-token"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


if __name__ == "__main__":
    web.run_app(ApiServer().application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
