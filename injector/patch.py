"""JSON patches (RFC 6902) as data: the difference between two documents, and its application.

Pure. Only the three operations that a difference needs are known: ``add``, ``remove`` and ``replace``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Operation = dict[str, Any]
"""``{"op": "add", "path": "/metadata/labels/a", "value": "b"}``."""


class PatchInvalid(ValueError):
    """An operation does not fit the document; the text names its path."""


def difference(before: Any, after: Any, path: str = "") -> list[Operation]:
    """The operations that change ``before`` into ``after``, in a deterministic order.

    A list that grew gets ``add`` operations. One of scalars, or one that shrank, is replaced, so that no
    index has to be counted while others move.
    """
    return list(_difference(before, after, path))


def _difference(before: Any, after: Any, path: str) -> Iterator[Operation]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            below = f"{path}/{_escape(key)}"
            if key not in after:
                yield {"op": "remove", "path": below}
            elif key not in before:
                yield {"op": "add", "path": below, "value": after[key]}
            else:
                yield from _difference(before[key], after[key], below)
    elif _grew(before, after):
        for index, value in enumerate(after):
            if index < len(before):
                yield from _difference(before[index], value, f"{path}/{index}")
            else:
                yield {"op": "add", "path": f"{path}/{index}", "value": value}
    else:
        yield {"op": "replace", "path": path, "value": after}


def _grew(before: Any, after: Any) -> bool:
    if not isinstance(before, list) or not isinstance(after, list) or len(after) < len(before):
        return False
    return all(isinstance(value, dict) for value in after)


def apply(document: Any, patch: Iterable[Operation]) -> Any:
    """A copy of the document with the patch applied. Raises ``PatchInvalid``."""
    root = {"": _copied(document)}
    for operation in patch:
        name, path = operation.get("op"), operation.get("path")
        if name not in ("add", "remove", "replace") or not isinstance(path, str):
            raise PatchInvalid(f"{operation!r} is not an add, remove or replace with a path")
        parent, key = _parent(root, path)
        if name == "remove":
            _existing(parent, key, path)
            del parent[key]
            continue
        value = _copied(operation.get("value"))
        if name == "replace":
            _existing(parent, key, path)
            parent[key] = value
        elif isinstance(parent, list):
            parent.insert(_index(key, len(parent), path), value)
        else:
            parent[key] = value
    return root[""]


def _copied(value: Any) -> Any:
    """A copy in which no part occurs twice, as it does in a document with YAML aliases."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _parent(root: dict[str, Any], path: str) -> tuple[Any, Any]:
    """The object that contains a path's target, and the target's key in it."""
    parent: Any = root
    key: Any = ""
    for text in path.split("/")[1:] if path else []:
        _existing(parent, key, path)
        parent, key = parent[key], text.replace("~1", "/").replace("~0", "~")
        if isinstance(parent, list):
            key = len(parent) if key == "-" else int(key) if key.isdigit() else key
        elif not isinstance(parent, dict):
            raise PatchInvalid(f"{path}: {parent!r} has no members")
    return parent, key


def _existing(parent: Any, key: Any, path: str) -> None:
    if isinstance(parent, list):
        _index(key, len(parent) - 1, path)
    elif key not in parent:
        raise PatchInvalid(f"{path}: there is no {key!r}")


def _index(key: Any, highest: int, path: str) -> int:
    if not isinstance(key, int) or key > highest:
        raise PatchInvalid(f"{path}: {key!r} is not an index of the list")
    return key


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
