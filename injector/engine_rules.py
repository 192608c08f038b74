"""The engines that cannot work behind a sidecar, and those that can only be checked in part. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from injector.decisions import Denial, Note, Reason
from injector.engine_container import EngineContainer
from injector.settings import Allow, Wish, annotation
from injector.shape import Json, is_tcp, ports

_KEY = "VLLM_API_KEY"
_NO_TCP = ("--uds", "--grpc")
"""Options after which vLLM does not speak HTTP on its TCP port."""
_RANKS = "--data-parallel-multi-port-external-lb"


def refusal(found: EngineContainer, wish: Wish) -> Denial | None:
    """The reason why this engine cannot be injected."""
    return _on_a_socket(found) or _one_port_per_rank(found) or _own_key(found, wish)


def notes(found: EngineContainer) -> Iterator[Note]:
    """Warnings about options that are not known before the container runs."""
    if (file := found.option("--config")) and found.start.is_vllm:
        yield Note(
            Reason.UNCHECKED,
            f"container {found.name}: --config {file} cannot be checked; api-key, uds, ssl-keyfile, headless"
            " and data-parallel-multi-port-external-lb must not be in it",
        )
    if words := found.start.unknown if found.start.is_read else ():
        yield Note(
            Reason.UNCHECKED,
            f"container {found.name}: options in {', '.join(words[:3])} cannot be checked; --api-key, --uds,"
            " --ssl-keyfile and --headless must not be in them",
        )


def _on_a_socket(found: EngineContainer) -> Denial | None:
    for name in _NO_TCP:
        if found.option(name) is not None:
            return Denial(
                Reason.SOCKET,
                found.field,
                f"with {name} it does not serve HTTP on a TCP port",
                f"remove {name}, because only the sidecar connects to the engine",
            )
    return None


def _one_port_per_rank(found: EngineContainer) -> Denial | None:
    """A sidecar serves one port. The ports of the other ranks would have no listener."""
    if found.option(_RANKS) is not None:
        problem = f"{_RANKS} opens one port per rank, and the sidecar serves one port"
    elif followers := _consecutive(found):
        problem = f"it declares one port per rank ({found.port} to {followers[-1]}); the sidecar serves one"
    else:
        return None
    fix = (
        f"let one API server balance the ranks (--data-parallel-size without {_RANKS}), or run one pod per"
        " rank (--data-parallel-rank); declare one port"
    )
    return Denial(Reason.RANK_PORTS, found.field, problem, fix)


def _consecutive(found: EngineContainer) -> list[int]:
    """The declared ports directly after the engine's, if it has several ranks."""
    declared = {int(each["containerPort"]): str(each.get("name")) for each in _tcp(found.container)}
    followers: list[int] = []
    while (port := found.port + len(followers) + 1) in declared:
        followers.append(port)
    ranks = found.option("--data-parallel-size") not in (None, "1") or any(
        "rank" in declared[port] for port in followers
    )
    return followers if ranks else []


def _tcp(container: Json) -> list[Json]:
    return [each for each in ports(container) if is_tcp(each)]


def _own_key(found: EngineContainer, wish: Wish) -> Denial | None:
    """An engine with an API key of its own answers 401 to a sidecar that does not know the key."""
    if wish.template.upstream_key_secret is not None:
        return None
    name = annotation("upstream_key_secret")
    if found.option("--api-key") is not None:
        return Denial(
            Reason.ENGINE_KEY,
            f"{found.field}: --api-key",
            "the engine requires a key that the sidecar does not have, so every request would be 401",
            f"remove it, or put the key into a Secret and set annotation {name}: SECRET/KEY",
        )
    env = {each["name"]: each for each in found.container.get("env") or []}
    if _KEY in env:
        return _key_in_env(found, env[_KEY], name)
    return _key_in_secret(found, wish, name)


def _key_in_env(found: EngineContainer, variable: Json, name: str) -> Denial | None:
    # vLLM ignores an empty key.
    if not variable.get("value") and not variable.get("valueFrom"):
        return None
    source = (variable.get("valueFrom") or {}).get("secretKeyRef") or {}
    secret = f"{source.get('name')}/{source.get('key')}" if source else "SECRET/KEY"
    first = "" if source else "put the key into a Secret and "
    return Denial(
        Reason.ENGINE_KEY,
        f"{found.field}: env {_KEY}",
        "the engine requires a key that the sidecar does not have, so every request would be 401",
        f"{first}set annotation {name}: {secret}, or remove the variable",
    )


def _key_in_secret(found: EngineContainer, wish: Wish, name: str) -> Denial | None:
    """A Secret whose keys become variables may have the key. The injector cannot read Secrets."""
    if Allow.ENV_FROM in wish.allowed or not (found.start.is_vllm or not found.start.is_read):
        return None
    for each in found.container.get("envFrom") or []:
        secret = (each.get("secretRef") or {}).get("name")
        prefix = each.get("prefix") or ""
        if secret and _KEY.startswith(prefix):
            key = _KEY.removeprefix(prefix)
            return Denial(
                Reason.ENGINE_KEY,
                f"{found.field}: envFrom {secret}",
                f"the Secret {secret} may have {key}, with which every request would be 401",
                f"if it has, set annotation {name}: {secret}/{key}; if not, set env {_KEY} to an empty text",
                opt_out=Allow.ENV_FROM,
            )
    return None
