"""An API server that only stores objects, so that Helm can install and upgrade a chart in a test.

It knows discovery, and create, read, list, apply, update and delete of objects. It validates nothing, and
runs nothing.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import yaml

Json = dict[str, Any]
Key = tuple[str, str, str, str]
"""Group and version, namespace or nothing, plural and name."""

RESOURCES: dict[str, dict[str, tuple[str, bool]]] = {
    "v1": {
        "ConfigMap": ("configmaps", True),
        "Namespace": ("namespaces", False),
        "Pod": ("pods", True),
        "Secret": ("secrets", True),
        "Service": ("services", True),
        "ServiceAccount": ("serviceaccounts", True),
    },
    "apps/v1": {"Deployment": ("deployments", True)},
    "autoscaling/v2": {"HorizontalPodAutoscaler": ("horizontalpodautoscalers", True)},
    "policy/v1": {"PodDisruptionBudget": ("poddisruptionbudgets", True)},
    "networking.k8s.io/v1": {"NetworkPolicy": ("networkpolicies", True)},
    "admissionregistration.k8s.io/v1": {
        "MutatingWebhookConfiguration": ("mutatingwebhookconfigurations", False)
    },
}
"""The kinds by their group and version: the plural, and whether they are namespaced."""


class ObjectStore:
    """The objects of one server, and how clients find it."""

    def __init__(self, url: str, minor: int) -> None:
        self._url = url
        self.minor = minor
        self.objects: dict[Key, Json] = {}

    @property
    def kubeconfig(self) -> str:
        """A kubeconfig for this server."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self._url}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
            "current-context": "test",
        }
        return yaml.safe_dump(config)

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """The decoded data of a Secret."""
        data = self.objects["v1", namespace, "secrets", name]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def put(self, key: Key, sent: Json) -> Json:
        """Store an object, as the API server shows it afterwards."""
        stored = json.loads(json.dumps(sent))
        for name, value in stored.pop("stringData", {}).items():
            stored.setdefault("data", {})[name] = base64.b64encode(value.encode()).decode()
        version = int(self.objects.get(key, {}).get("metadata", {}).get("resourceVersion", "0")) + 1
        stored["metadata"] |= {"resourceVersion": str(version), "uid": "/".join(key)}
        if key[1]:
            stored["metadata"]["namespace"] = key[1]
        self.objects[key] = stored
        return dict(stored)


@contextlib.contextmanager
def serving(minor: int = 37) -> Iterator[ObjectStore]:
    """Serve an empty store on a free port of the loopback, as Kubernetes 1.``minor``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.store = ObjectStore(f"http://127.0.0.1:{server.server_port}", minor)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.store  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Nothing is logged."""

    @property
    def _store(self) -> ObjectStore:
        store: ObjectStore = self.server.store  # type: ignore[attr-defined]
        return store

    def _answer(self, status: int, body: Json) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _missing(self) -> None:
        self._answer(404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})

    def _key(self) -> tuple[Key, str]:
        """What the path names, and its kind; the name is empty for a collection. Raises ``LookupError``."""
        parts = urlsplit(self.path).path.strip("/").split("/")
        version, rest = (parts[1], parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plurals = {plural: kind for kind, (plural, _) in RESOURCES[version].items()}
        name = rest[1] if len(rest) > 1 else ""
        return (version, namespace, rest[0], name), plurals[rest[0]]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.rstrip("/")
        found = _discovery(path, self._store.minor)
        if found is not None:
            self._answer(200, found)
            return
        try:
            key, kind = self._key()
        except LookupError:
            self._missing()
            return
        if not key[3]:
            items = [each for at, each in self._store.objects.items() if at[:3] == key[:3]]
            self._answer(200, {"apiVersion": key[0], "kind": f"{kind}List", "metadata": {}, "items": items})
        elif key in self._store.objects:
            self._answer(200, self._store.objects[key])
        else:
            self._missing()

    def _body(self) -> Json:
        read: Json = yaml.safe_load(self.rfile.read(int(self.headers["Content-Length"])))
        return read

    def do_POST(self) -> None:
        body = self._body()
        key, _ = self._key()
        key = (*key[:3], body["metadata"]["name"])
        if key in self._store.objects:
            self._answer(409, {"kind": "Status", "status": "Failure", "reason": "AlreadyExists", "code": 409})
            return
        self._answer(201, self._store.put(key, body))

    def do_PUT(self) -> None:
        body = self._body()
        self._answer(200, self._store.put(self._key()[0], body))

    def do_PATCH(self) -> None:
        """Helm applies whole objects on the server's side."""
        self.do_PUT()

    def do_DELETE(self) -> None:
        self._body()
        self._store.objects.pop(self._key()[0], None)
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})


def _discovery(path: str, minor: int) -> Json | None:
    """The pages that list versions, groups and kinds."""
    groups = [version for version in RESOURCES if "/" in version]
    if path == "/version":
        return {"major": "1", "minor": str(minor), "gitVersion": f"v1.{minor}.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        listed = [
            {
                "name": version.partition("/")[0],
                "versions": [{"groupVersion": version, "version": version.partition("/")[2]}],
                "preferredVersion": {"groupVersion": version, "version": version.partition("/")[2]},
            }
            for version in groups
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    if path == "/openapi/v3":
        paths = {
            _page(version): {"serverRelativeURL": f"/openapi/v3/{_page(version)}"} for version in RESOURCES
        }
        return {"paths": paths}
    if path.startswith("/openapi/v3/"):
        return _validated(path.removeprefix("/openapi/v3/"))
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version in RESOURCES and path.startswith("/api"):
        verbs = ["create", "delete", "get", "list", "patch", "update"]
        resources = [
            {"name": plural, "singularName": kind.lower(), "namespaced": inside, "kind": kind, "verbs": verbs}
            for kind, (plural, inside) in RESOURCES[version].items()
        ]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return None


def _page(version: str) -> str:
    return f"apis/{version}" if "/" in version else f"api/{version}"


def _validated(page: str) -> Json:
    """A description of the API that says: this server validates fields, so a client need not."""
    version = page.removeprefix("apis/").removeprefix("api/")
    group, _, short = version.rpartition("/")
    paths = {}
    for kind, (plural, inside) in RESOURCES[version].items():
        where = "namespaces/{namespace}/" if inside else ""
        paths[f"/{page}/{where}{plural}/{{name}}"] = {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {"group": group, "version": short, "kind": kind},
            }
        }
    return {"openapi": "3.0.0", "info": {"title": version, "version": "1"}, "paths": paths}
