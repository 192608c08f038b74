"""Reads quotas. Entitlements, groups and credentials write them in the same way."""

from __future__ import annotations

import re

from tokenpool.entitlements import Quota, Window
from tokenpool.quotas.windows import UnknownZone, zone
from tokenpool.yaml_nodes import Node

_FIELDS = ("tokens", "per", "timezone")
_DEFAULT_ZONE = Quota(1.0, Window.DAY).timezone
_MULTIPLES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_TOKENS = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kMG]?)")
MOST_QUOTAS = 8
"""The most quotas of one record: two time zones of each window."""


def quotas_of(node: Node) -> tuple[Quota, ...]:
    """Read a list of quotas. Two quotas over the same windows are an error."""
    found: dict[tuple[Window, str], Quota] = {}
    items = list(node.items())
    if len(items) > MOST_QUOTAS:
        node.error(f"has {len(items)} quotas", f"write at most {MOST_QUOTAS}")
    for item in items:
        quota = _quota(item)
        if quota is None:
            continue
        if (quota.per, quota.timezone) in found:
            item.error(f"is the second quota per {quota.per} in {quota.timezone}", "keep the smaller one")
        found[quota.per, quota.timezone] = quota
    return tuple(found.values())


def _quota(node: Node) -> Quota | None:
    fields = node.fields(_FIELDS, required=("tokens", "per"))
    tokens = _tokens(fields["tokens"]) if "tokens" in fields else None
    per = fields["per"].word([window.value for window in Window]) if "per" in fields else None
    name = fields["timezone"].text() if "timezone" in fields else _DEFAULT_ZONE
    if name is not None and not _is_zone(name):
        fields["timezone"].error(
            f"is {name!r}, which is no time zone", "use a name of the IANA database, such as Europe/Berlin"
        )
        return None
    if tokens is None or per is None or name is None:
        return None
    return Quota(tokens, Window(per), name)


def _is_zone(name: str) -> bool:
    try:
        zone(name)
    except UnknownZone:
        return False
    return True


def _tokens(node: Node) -> float | None:
    """A number of tokens: a plain number, or a text such as ``50M``."""
    if node.is_number:
        return node.number("tokens", above=True)
    text = node.text()
    if text is None:
        return None
    found = _TOKENS.fullmatch(text.strip())
    if found is None:
        node.error(f"is {text!r}", "write a number of tokens, or one with k, M or G, such as 50M")
        return None
    tokens = float(found[1]) * _MULTIPLES[found[2]]
    if not tokens:
        node.error(f"is {text!r}", "write more than 0 tokens")
        return None
    return tokens
