"""The other containers of the pod: engines that stay open to all clients, and callers of the engine. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from injector import command_line, start
from injector.decisions import Denial, Note, Reason
from injector.engine_container import is_engine
from injector.settings import Allow
from injector.shape import Json


def serving(pod: Json) -> Iterator[Json]:
    """The containers that run as long as the pod: its containers, and native sidecars."""
    yield from pod["spec"]["containers"]
    for each in pod["spec"].get("initContainers") or []:
        if each.get("restartPolicy") == "Always":
            yield each


def second_engine(pod: Json, engine: str, allowed: frozenset[Allow]) -> Denial | None:
    """The denial if another container serves every client of its port, without keys and limits."""
    if Allow.SECOND_ENGINE in allowed:
        return None
    for each in serving(pod):
        words = start.read(each).words
        if each["name"] == engine or not (is_engine(each) or _mentions_an_engine(words)):
            continue
        if not command_line.is_headless(words) and not command_line.is_on_the_loopback(words):
            return Denial(
                Reason.SECOND_ENGINE,
                f"container {each['name']}",
                "it is a second engine that serves every client of its port, without keys and limits",
                f"let it listen on {command_line.LOOPBACK} (--host), or move it into a pod of its own",
                opt_out=Allow.SECOND_ENGINE,
            )
    return None


def _mentions_an_engine(words: tuple[str, ...]) -> bool:
    """Whether a shell that cannot be read starts an engine."""
    return any(command_line.starts_an_engine(re.split(r"[\s;&|\"']+", word)) for word in words if " " in word)


def callers(pod: Json, engine: str, port: int, engine_port: int) -> Iterator[Note]:
    """Notes about containers that call the engine on its old port, where the sidecar is now."""
    address = re.compile(rf"(?:localhost|127\.0\.0\.1|\[::1\]):{port}(?!\d)")
    for each in serving(pod):
        texts = [*(each.get("command") or ()), *(each.get("args") or ())]
        texts += [str(variable.get("value") or "") for variable in each.get("env") or []]
        if each["name"] != engine and any(map(address.search, texts)):
            yield Note(
                Reason.ENGINE_CALLED,
                f"container {each['name']} calls localhost:{port}, where the sidecar is now: give it an API"
                " key, which all paths but /health need, or the engine's own address"
                f" {command_line.LOOPBACK}:{engine_port}",
            )
