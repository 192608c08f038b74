"""Commands of probes and hooks that call the engine's port: they follow the engine to its new port. Pure.

A command that names the port on the loopback is rewritten. A command that names the port in another way is
denied: the sidecar would answer it with 401 or 404, and the kubelet would kill the container in a loop.
"""

from __future__ import annotations

import re
from typing import Any

from injector.command_line import LOOPBACK
from injector.decisions import Denial, Reason
from injector.settings import Allow
from injector.shape import Json

_LOCAL = r"localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\]"
_HOST = re.compile(_LOCAL)
HANDLERS = ("startupProbe", "livenessProbe", "readinessProbe", "postStart", "preStop")


def followed(
    container: Json, port: int, new_port: int, allowed: frozenset[Allow], *, was_tls: bool
) -> dict[str, Any] | Denial:
    """The container's probes and hooks with other commands; the denial if one cannot be rewritten."""
    fields: dict[str, Any] = {}
    hooks: Json = container.get("lifecycle") or {}
    for name in HANDLERS:
        handler = hooks.get(name) if name in ("postStart", "preStop") else container.get(name)
        words = ((handler or {}).get("exec") or {}).get("command")
        if not handler or not words:
            continue
        made = _rewritten(words, port, new_port, was_tls=was_tls)
        if port != new_port and Allow.EXEC_PROBES not in allowed and _names(container, made, port):
            return _denial(container, name, port)
        if made == words:
            continue
        changed = {**handler, "exec": {"command": made}}
        if name in ("postStart", "preStop"):
            hooks = {**hooks, name: changed}
            fields["lifecycle"] = hooks
        else:
            fields[name] = changed
    return fields


def _rewritten(words: list[str], port: int, new_port: int, *, was_tls: bool) -> list[str]:
    """The words with the new address instead of the old one on the loopback."""
    address = re.compile(rf"(https?://)?(?<![\w.-])(?:{_LOCAL})([:/ ]|['\"]\s*,\s*){port}(?!\d)")

    def new(found: re.Match[str]) -> str:
        scheme = "http://" if was_tls and found[1] else found[1] or ""
        return f"{scheme}{LOOPBACK}{found[2]}{new_port}"

    made = [address.sub(new, word) for word in words]
    for index in range(1, len(made)):
        # A program that takes host and port as two words, such as nc.
        if made[index] == str(port) and _HOST.fullmatch(made[index - 1]):
            made[index - 1 : index + 1] = [LOOPBACK, str(new_port)]
    return made


def _names(container: Json, words: list[str], port: int) -> bool:
    """Whether a command still names the port, by its number or by a variable."""
    variables = [
        re.escape(each["name"])
        for each in container.get("env") or []
        if each.get("value") and re.search(rf"(?<!\d){port}(?!\d)", str(each["value"]))
    ]
    named = rf"|\$[({{]?(?:{'|'.join(variables)})\b" if variables else ""
    return re.search(rf"(?<![\d.]){port}(?!\d){named}", "\n".join(words)) is not None


def _denial(container: Json, name: str, port: int) -> Denial:
    return Denial(
        Reason.EXEC_PROBE,
        f"container {container['name']}: {name}.exec",
        f"its command names port {port}, where the sidecar will answer instead of the engine, in a way that"
        " cannot be rewritten",
        f"write the address as http://{LOOPBACK}:{port}/health, or use httpGet",
        opt_out=Allow.EXEC_PROBES,
    )
