"""Settings of the injector: how it serves, and what it injects unless a pod's annotations say otherwise.

The same fields, readers and words serve the command line, the environment and the annotations.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime import options
from runtime.options import Addresses, Form, SettingsError

PREFIX = "tokenpool.io/"
"""Of every annotation that the injector reads or writes."""
STATUS = PREFIX + "status"
"""Written on what was injected; its value is ``injected``."""
_ENGINE_CONTAINER = "container"
_SET_BY_US = frozenset(
    {"--config", "--upstream", "--listen", "--admin", "--pool", "--store", "--drain-timeout"}
    | {"--upstream-key-file"}
)
_NOT_MOUNTED = frozenset({"--tls-cert", "--tls-key"})
"""Options that name files which no injected sidecar has."""
_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_PORT_NAME = r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?"
_LABEL = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one injector serves."""

    tls_cert: Path
    tls_key: Path
    listen: Addresses = Addresses.of("127.0.0.1", 8443)
    log_level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What is injected. Times are in seconds."""

    label: str = "tokenpool.io/inject"
    image: str = "tokenpool:latest"
    pull_policy: str = "IfNotPresent"
    native: bool = True
    pool: str | None = None
    upstream_port: int | str = 8000
    listen_port: int | None = None
    engine_port: int | None = None
    admin_port: int = 9090
    bind: str = "0.0.0.0"
    pool_config: str = "tokenpool-pool"
    store_secret: str | None = "tokenpool-store"
    keys_secret: str | None = None
    upstream_key_secret: str | None = None
    sidecar_args: tuple[str, ...] | None = None
    engine_probes: str = "auto"
    drain_delay: float = 5.0
    drain_timeout: float = 30.0
    cpu_request: str | None = "250m"
    cpu_limit: str | None = None
    memory_request: str | None = "128Mi"
    memory_limit: str | None = "512Mi"
    run_as_user: int = 65532


def _maybe(read: Callable[[str, str], str]) -> Callable[[str, str], str | None]:
    """A reader that also takes an empty text: there is none."""
    return lambda text, source: read(text, source) if text else None


def _port(text: str, source: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise SettingsError(f"{source}: {text!r} is not a port, a number from 1 to 65535")
    return int(text)


def _port_or_name(text: str, source: str) -> int | str:
    if re.fullmatch(_PORT_NAME, text) and re.search("[a-z]", text):
        return text
    return _port(text, source)


def _sidecar_args(text: str, source: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise SettingsError(f"{source}: {text!r} is not a list of options: {error}") from error
    if words and not words[0].startswith("--"):
        raise SettingsError(f"{source}: {words[0]!r} is not an option of tokenpool-sidecar run")
    for word in words:
        option = word.partition("=")[0]
        if option in _NOT_MOUNTED:
            raise SettingsError(
                f"{source}: {option} names a file that the injector does not mount, and probes would not"
                " speak TLS; end TLS in front of the pod, or write the sidecar into its manifest"
            )
        if option in _SET_BY_US:
            raise SettingsError(f"{source}: {option} is the injector's to give; leave it out")
    return words


_quantity = options.matching(
    r"[0-9]+(\.[0-9]+)?(m|k|M|G|Ki|Mi|Gi)?", "an amount of a resource, such as 250m or 128Mi"
)
_object_name = options.matching(_NAME, "the name of an object in the cluster")
_READERS: dict[str, Callable[[str, str], Any]] = {
    "label": options.matching(_LABEL, "a label's name, such as tokenpool.io/inject"),
    "image": options.matching(r"[^\s]{1,512}", "the name of an image"),
    "pull_policy": options.one_of("Always", "IfNotPresent", "Never"),
    "native": options.boolean,
    "pool": _maybe(options.matching(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", "the name of a pool")),
    "upstream_port": _port_or_name,
    "listen_port": _port,
    "engine_port": _port,
    "admin_port": _port,
    "bind": options.one_of("0.0.0.0", "[::]"),
    "pool_config": _object_name,
    "store_secret": _maybe(_object_name),
    "keys_secret": _maybe(_object_name),
    "upstream_key_secret": _maybe(_object_name),
    "sidecar_args": _sidecar_args,
    "engine_probes": options.one_of("auto", "exec", "sidecar"),
    "drain_delay": options.not_negative,
    "drain_timeout": options.positive,
    "cpu_request": _maybe(_quantity),
    "cpu_limit": _maybe(_quantity),
    "memory_request": _maybe(_quantity),
    "memory_limit": _maybe(_quantity),
    "run_as_user": lambda text, source: int(options.positive(text, source, whole=True)),
}
_CLUSTER_ONLY = frozenset({"label", "run_as_user"})
"""What whoever runs the injector decides, and no pod."""

_SERVING = Form(
    Settings,
    {
        "tls_cert": "the certificate and its chain, PEM; read again when it changes",
        "tls_key": "its private key, PEM",
        "listen": "where the API server connects, HOST:PORT; several with commas",
        "log_level": "debug, info, warning or error",
    },
    example="python -m injector --tls-cert tls.crt --tls-key tls.key",
    readers={
        "tls_cert": options.path,
        "tls_key": options.path,
        "listen": options.addresses,
        "log_level": options.one_of("debug", "info", "warning", "error"),
    },
)
_INJECTED = Form(
    Template,
    {
        "label": 'pods with this label and the value "true" get a sidecar',
        "image": "the sidecar's image",
        "pull_policy": "when the image is pulled: Always, IfNotPresent or Never",
        "native": "an init container that restarts (Kubernetes 1.32 or later); false: a plain container",
        "pool": "the pool that the engine belongs to; needed where the pool file has several",
        "upstream_port": "the engine's port in the manifest, a number or a name",
        "listen_port": "where tenants connect; the engine's port otherwise, and the engine moves",
        "engine_port": "where the engine listens for the pod alone; a free port from 18000 otherwise",
        "admin_port": "the sidecar's metrics, health and state",
        "bind": "the address of the sidecar's two ports: 0.0.0.0, or [::] on IPv6 clusters",
        "pool_config": "the ConfigMap with the pool file, under pool.yaml",
        "store_secret": "the Secret with the store's URL, under url; empty: a lone sidecar",
        "keys_secret": "a Secret with API keys, mounted on /etc/tokenpool/keys; empty: none",
        "upstream_key_secret": "the Secret with the engine's own API key, under api-key; empty: none",
        "sidecar_args": "more options of tokenpool-sidecar run, such as --log-requests",
        "engine_probes": "how the kubelet asks the engine: exec in it, sidecar (its /health), or auto",
        "drain_delay": "how long new requests are still taken after a pod's deletion, s",
        "drain_timeout": "how long running requests may go on after that, s",
        "cpu_request": "what the sidecar asks for; empty: nothing",
        "cpu_limit": "what it may use at most; empty: no limit, and no throttling",
        "memory_request": "what the sidecar asks for; empty: nothing",
        "memory_limit": "what it may use at most; empty: no limit",
        "run_as_user": "the sidecar's user",
    },
    example="tokenpool-inject < pod.yaml",
    readers=_READERS,
)


def add_serving_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a serving injector on a parser."""
    _SERVING.add_arguments(parser)


def add_template_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say what is injected."""
    _INJECTED.add_arguments(parser)


def read_serving(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """How to serve. Raises ``SettingsError``."""
    return _SERVING.read(arguments, environment)


def read_template(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Template:
    """What to inject. Raises ``SettingsError``."""
    return _INJECTED.read(arguments, environment)


def annotation(field: str) -> str:
    """The annotation's spelling of a field."""
    return PREFIX + field.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Wish:
    """What one pod is to get."""

    template: Template
    container: str | None
    """The engine's, where the pod names it."""
    said: frozenset[str]
    """The fields that the pod itself gave, which are not to be settled otherwise."""


def wish(template: Template, annotations: Mapping[str, str]) -> Wish:
    """The template as a pod's annotations change it. Raises ``SettingsError``, which names the annotation."""
    fields = {annotation(field): field for field in _READERS.keys() - _CLUSTER_ONLY}
    given: dict[str, Any] = {}
    for key, text in annotations.items():
        if not key.startswith(PREFIX) or key in (STATUS, PREFIX + _ENGINE_CONTAINER):
            continue
        if key not in fields:
            raise SettingsError(f"annotation {key} is not known{_meant(key, fields)}")
        given[fields[key]] = _READERS[fields[key]](text, f"annotation {key}")
    container = annotations.get(PREFIX + _ENGINE_CONTAINER)
    return Wish(replace(template, **given), container, frozenset(given))


def _meant(key: str, known: Mapping[str, str]) -> str:
    names = [each.removeprefix(PREFIX) for each in (*known, PREFIX + _ENGINE_CONTAINER)]
    near = difflib.get_close_matches(key.removeprefix(PREFIX), names, n=1)
    return f"; did you mean {PREFIX}{near[0]}?" if near else f"; there are {', '.join(sorted(names))}"
