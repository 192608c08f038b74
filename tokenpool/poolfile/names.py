"""The names of pools, entitlements and issuers in a pool file."""

from __future__ import annotations

import re

from tokenpool.yaml_nodes import Node

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def name_of(node: Node | None) -> str | None:
    """Read a name. An invalid one is an error of the node, and ``None``."""
    text = node.text() if node is not None else None
    if text is not None and node is not None and not _NAME.fullmatch(text):
        node.error(
            f"is {text!r}",
            "use up to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit",
        )
        return None
    return text
