"""The settings of the injector: of the service, and of the sidecars, which annotations of a pod may change.

The same fields and readers serve the command line, the environment and the annotations.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from runtime import options
from runtime.options import Addresses, SettingsError, option

EXAMPLE = "python -m injector --tls-cert tls.crt --tls-key tls.key"
PREFIX = "tokenpool.io/"
"""The prefix of every annotation that the injector reads or writes."""
STATUS = PREFIX + "status"
"""The annotation of an injected pod; its value is ``injected``."""
WARNINGS = PREFIX + "warnings"
"""The annotation with the injector's warnings. A controller that creates a pod shows them to no person."""
_ENGINE_CONTAINER = "container"
_SET_BY_US = frozenset(
    {"--config", "--upstream", "--listen", "--admin", "--pool", "--store", "--store-file", "--drain-timeout"}
    | {"--upstream-key-file", "--handover", "--peer", "--expose-engine-metrics", "--workers"}
)
_NOT_MOUNTED = frozenset({"--tls-cert", "--tls-key"})
"""Options that name files, which no injected sidecar has."""
MOST_WORKERS = 64
"""As the sidecar's own."""
_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_PORT_NAME = r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?"
_LABEL = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


def _maybe(read: Callable[[str, str], str]) -> Callable[[str, str], str | None]:
    """A reader that reads an empty text as ``None``."""
    return lambda text, source: read(text, source) if text else None


def _port(text: str, source: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise SettingsError(f"{source}: {text!r} is not a port, a number from 1 to 65535")
    return int(text)


def _workers(text: str, source: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= MOST_WORKERS:
        raise SettingsError(f"{source}: {text!r} is not a number of processes from 1 to {MOST_WORKERS}")
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
                f"{source}: {option} names a file that the injector does not mount, and probes do not"
                " use TLS; terminate TLS in front of the pod, or write the sidecar into its manifest"
            )
        if option in _SET_BY_US:
            raise SettingsError(f"{source}: {option} is set by the injector; remove it")
    return words


_quantity = options.matching(
    r"[0-9]+(\.[0-9]+)?(m|k|M|G|Ki|Mi|Gi)?", "an amount of a resource, such as 250m or 128Mi"
)
_object_name = options.matching(_NAME, "the name of an object in the cluster")
_secret_key = options.matching(rf"{_NAME}(/[-._a-zA-Z0-9]{{1,253}})?", "the name of a Secret, or NAME/KEY")
_label = options.matching(_LABEL, "a label's name, such as tokenpool.io/inject")
_image = options.matching(r"[^\s]{1,512}", "the name of an image")
_pull_policy = options.one_of("Always", "IfNotPresent", "Never")
_pool_name = options.matching(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", "the name of a pool")
_bind = options.one_of("0.0.0.0", "[::]")
_switch = options.one_of("on", "off")
_probes = options.one_of("auto", "exec", "sidecar")
_automatic = options.one_of("auto", "on", "off")


class Allow(Enum):
    """What a pod may accept explicitly, with an annotation of this name and the value "true".

    Only a pod can: there is no option for a whole cluster.
    """

    HOST_NETWORK = (
        "allow-host-network",
        "Create a pod with hostNetwork without a sidecar; its engine serves every client.",
        "to create the pod without a sidecar",
    )
    OWN_SIDECAR = (
        "allow-own-sidecar",
        "Leave a pod unchanged that has a container `tokenpool-sidecar` of its own.",
        "to create the pod unchanged",
    )
    OPEN_ENGINE = (
        "allow-open-engine",
        "The engine may listen on other addresses than the loopback, where clients can bypass the sidecar.",
        "if clients may bypass the sidecar",
    )
    SECOND_ENGINE = (
        "allow-second-engine",
        "Leave another engine in the pod open; it serves every client of its port, without keys and limits.",
        "if clients may use this engine without keys and limits",
    )
    EXEC_PROBES = (
        "allow-exec-probes",
        "Keep commands of probes and hooks that name the engine's port; the sidecar answers them.",
        "if the command works when the sidecar answers it",
    )
    ENV_FROM = (
        "allow-env-from",
        "The Secrets in the engine's envFrom have no `VLLM_API_KEY`.",
        "if the Secret has no VLLM_API_KEY",
    )
    PLAIN_JOB = (
        "allow-plain-job",
        "Inject a plain sidecar into a pod of a Job, which then never completes by itself.",
        "if something else ends the pod",
    )

    @property
    def annotation(self) -> str:
        """The name of the annotation."""
        return PREFIX + str(self.value[0])

    @property
    def help(self) -> str:
        """The consequence, for the reference."""
        return str(self.value[1])

    @property
    def offer(self) -> str:
        """The annotation and its purpose, as the end of a denial."""
        return f'set annotation {self.annotation}: "true" {self.value[2]}'


@options.record
class Settings:
    """The service of one injector."""

    tls_cert: Path = option("PEM file with the certificate and its chain; read again when it changes")
    tls_key: Path = option("PEM file with the certificate's private key")
    listen: Addresses = option(
        "addresses for the API server, HOST:PORT; several with commas",
        default=Addresses.of("127.0.0.1", 8443),
    )
    log_level: str = option("debug, info, warning or error", default="info", read=options.log_level)


@options.record
class Template:
    """The injected sidecar. Times are in seconds."""

    label: str = option(
        'pods with this label and the value "true" get a sidecar', default="tokenpool.io/inject", read=_label
    )
    image: str = option("image of the sidecar", default="tokenpool:latest", read=_image)
    pull_policy: str = option(
        "when the kubelet pulls the image: Always, IfNotPresent or Never",
        default="IfNotPresent",
        read=_pull_policy,
    )
    native: bool = option(
        "an init container that restarts (Kubernetes 1.32 or later); false: a plain container", default=True
    )
    pool: str | None = option(
        "the engine's pool; required if the pool file has several", default=None, read=_maybe(_pool_name)
    )
    upstream_port: int | str = option(
        "port of the engine in the manifest, a number or a name", default=8000, read=_port_or_name
    )
    listen_port: int | None = option(
        "port for tenants; by default the engine's port, and the engine moves to another",
        default=None,
        read=_port,
    )
    engine_port: int | None = option(
        "port of the engine inside the pod; by default a free port from 18000", default=None, read=_port
    )
    admin_port: int = option("port of the sidecar's metrics, health and state", default=9090, read=_port)
    handover: str = option(
        "hand requests over to replicas with room: on, or off where a router in front places requests",
        default="on",
        read=_switch,
    )
    peer_port: int = option(
        "port for the other sidecars of the pool; network policies must open it between them",
        default=9095,
        read=_port,
    )
    bind: str = option(
        "address of the sidecar's ports: 0.0.0.0, or [::] on IPv6 clusters", default="0.0.0.0", read=_bind
    )
    pool_config: str = option(
        "ConfigMap with the pool file, under pool.yaml", default="tokenpool-pool", read=_object_name
    )
    store_secret: str | None = option(
        "Secret with the store's URL, under url; empty: a lone sidecar",
        default="tokenpool-store",
        read=_maybe(_object_name),
    )
    keys_secret: str | None = option(
        "Secret with API keys, mounted on /etc/tokenpool/keys; empty: none",
        default=None,
        read=_maybe(_object_name),
    )
    usage_spool: str | None = option(
        "size of a volume of the pod for usage records that the usage store does not have yet, such as 128Mi;"
        " empty: none, for pools without usage_records",
        default=None,
        read=_maybe(_quantity),
    )
    upstream_key_secret: str | None = option(
        "Secret with the engine's own API key, under api-key, or NAME/KEY; empty: none",
        default=None,
        read=_maybe(_secret_key),
    )
    sidecar_args: tuple[str, ...] | None = option(
        "more options of tokenpool-sidecar run, such as --log-requests", default=None, read=_sidecar_args
    )
    expose_engine_metrics: str = option(
        "serve the engine's metrics and model list on the proxied port without a key: on, off, or auto (if"
        " labels or annotations of the pod name an endpoint picker or a scraper)",
        default="auto",
        read=_automatic,
    )
    workers: int = option(
        "processes of the sidecar, for engines that stream more than 30,000 events/s; its CPU and memory are"
        " multiplied by them",
        default=1,
        read=_workers,
    )
    keep_guaranteed: bool = option(
        "in a pod of the class Guaranteed, the sidecar requests its limits, so that the class stays",
        default=True,
    )
    engine_probes: str = option(
        "how the kubelet probes the engine: exec in it, sidecar (its /health), or auto",
        default="auto",
        read=_probes,
    )
    drain_delay: float = option(
        "time after a pod's deletion in which new requests are still accepted, s",
        default=5.0,
        read=options.not_negative,
    )
    drain_timeout: float = option("time limit for running requests after that, s", default=30.0)
    cpu_request: str | None = option(
        "CPU request of the sidecar; empty: none", default="250m", read=_maybe(_quantity)
    )
    cpu_limit: str | None = option(
        "CPU limit of the sidecar; empty: none, and no throttling", default=None, read=_maybe(_quantity)
    )
    memory_request: str | None = option(
        "memory request of the sidecar; empty: none", default="128Mi", read=_maybe(_quantity)
    )
    memory_limit: str | None = option(
        "memory limit of the sidecar; empty: none", default="512Mi", read=_maybe(_quantity)
    )
    run_as_user: int = option("user id of the sidecar", default=65532)


_CLUSTER_ONLY = frozenset({"label", "run_as_user"})
"""Fields that only the operator of the injector sets."""


def add_serving_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a serving injector on a parser."""
    options.add_arguments(parser, Settings)


def add_template_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the injected sidecar on a parser."""
    options.add_arguments(parser, Template)


def read_serving(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """The settings of the service. Raises ``SettingsError``."""
    return options.read(Settings, arguments, environment, example=EXAMPLE)


def read_template(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Template:
    """The settings of the injected sidecar. Raises ``SettingsError``."""
    return options.read(Template, arguments, environment, example="tokenpool-inject < pod.yaml")


def annotation(field: str) -> str:
    """The annotation's spelling of a field."""
    return PREFIX + field.replace("_", "-")


_BY_ANNOTATION = {
    annotation(each.name): each for each in options.describe(Template) if each.name not in _CLUSTER_ONLY
}


@dataclass(frozen=True, slots=True)
class Wish:
    """The sidecar that one pod asks for."""

    template: Template
    container: str | None
    """The name of the engine's container, if the pod has the annotation."""
    said: frozenset[str]
    """The fields that the pod itself sets. The injector does not change them."""
    allowed: frozenset[Allow]
    """What the pod accepts explicitly."""


_BY_ALLOWANCE = {each.annotation: each for each in Allow}
_WRITTEN = frozenset({STATUS, WARNINGS})


def wish(template: Template, annotations: Mapping[str, str]) -> Wish:
    """The template as a pod's annotations change it. Raises ``SettingsError``, which names the annotation."""
    given: dict[str, Any] = {}
    allowed: set[Allow] = set()
    for key, text in annotations.items():
        if not key.startswith(PREFIX) or key == PREFIX + _ENGINE_CONTAINER or key in _WRITTEN:
            continue
        if key in _BY_ALLOWANCE:
            if options.boolean(text, f"annotation {key}"):
                allowed.add(_BY_ALLOWANCE[key])
            continue
        if key not in _BY_ANNOTATION:
            raise SettingsError(f"annotation {key}: there is no such annotation; {_meant(key)}")
        field = _BY_ANNOTATION[key]
        given[field.name] = field.read(text, f"annotation {key}")
    container = annotations.get(PREFIX + _ENGINE_CONTAINER)
    return Wish(replace(template, **given), container, frozenset(given), frozenset(allowed))


def _meant(key: str) -> str:
    names = [
        each.removeprefix(PREFIX) for each in (*_BY_ANNOTATION, *_BY_ALLOWANCE, PREFIX + _ENGINE_CONTAINER)
    ]
    near = difflib.get_close_matches(key.removeprefix(PREFIX), names, n=1)
    return (
        f"did you mean {PREFIX}{near[0]}?" if near else f"remove it, or use one of {', '.join(sorted(names))}"
    )
