"""The fields of a resource's ``spec``, from the pool file's own descriptions.

Each field of the pool file is a field of the resource, in camel case: ``tokens_per_second`` is
``tokensPerSecond``. Three things differ, because a CustomResourceDefinition cannot say them, or because a
resource has another place for them:

- The name is ``metadata.name``.
- A capacity is ``{fixed: NUMBER}`` or ``{auto: NUMBER}``; without it, ``auto``. In a schema, a field has one
  type.
- ``output_estimate`` is a text (``"0.9"`` or ``max``), and ``tokens`` of a quota (``"50M"``), for the same
  reason.
- ``api_keys`` are digests or references to Secrets. A resource never has the text of a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenpool.poolfile.described import FIELDS, Described

Json = dict[str, Any]

POOL, ENTITLEMENT = "pools", "entitlements"
"""The lists of the pool file that have a resource of their own for each item."""
KEYS = "api_keys"
IN_METADATA = frozenset({"name"})
"""Fields of an item that the resource's metadata has."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the pool file with the fields inside it."""

    name: str
    """The pool file's spelling."""
    described: Described
    is_list: bool = False
    """Whether the value is a list of mappings; ``fields`` are then the fields of each item."""
    fields: dict[str, Field] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The type in the words of the pool file's reference, without the unit."""
        return self.described.kind.split(";")[0].strip()

    @property
    def unit(self) -> str:
        """The unit of a number; empty without one."""
        return self.described.kind.partition(";")[2].strip()

    @property
    def is_capacity(self) -> bool:
        """Whether the value is a number, ``auto``, or a start for learning."""
        return "{auto: NUMBER}" in self.kind

    @property
    def is_estimate(self) -> bool:
        """Whether the value is a quantile or ``max``."""
        return self.kind == "number between 0 and 1, or `max`"


@cache
def fields_of(section: str) -> dict[str, Field]:
    """The fields of one item of a list of the pool file, by the pool file's spelling."""
    return _fields(f"{section}[].")


def _fields(prefix: str) -> dict[str, Field]:
    found = {}
    for each in FIELDS:
        rest = each.path.removeprefix(prefix)
        if rest == each.path or set(rest) & set(".["):
            continue
        items = _fields(f"{each.path}[].")
        found[rest] = Field(rest, each, bool(items), items or _fields(f"{each.path}."))
    return found


def camel(name: str) -> str:
    """The resource's spelling of a name."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


@cache
def _spellings() -> tuple[re.Pattern[str], dict[str, str]]:
    names = {part for each in FIELDS for part in re.split(r"[.\[\]]+", each.path) if "_" in part}
    return re.compile(rf"\b({'|'.join(sorted(names))})\b"), {name: camel(name) for name in names}


def spelled(text: str) -> str:
    """A text about fields of the pool file, with the resource's spelling of their names."""
    pattern, names = _spellings()
    return pattern.sub(lambda found: names[found[0]], text)


def to_file(spec: Mapping[str, Any], section: str) -> Json:
    """The ``spec`` of a resource as the pool file writes it, without name and keys.

    Values of a wrong type stay as they are: the pool file's reader reports them.
    """
    kept = {name: each for name, each in fields_of(section).items() if name != KEYS}
    return _to_file({key: value for key, value in spec.items() if key != camel(KEYS)}, kept)


def _to_file(values: Mapping[str, Any], fields: Mapping[str, Field]) -> Json:
    by_spelling = {camel(name): each for name, each in fields.items()}
    made: Json = {}
    for key, value in values.items():
        found = by_spelling.get(key)
        made[key if found is None else found.name] = value if found is None else _value(value, found)
    return made


def _value(value: Any, found: Field) -> Any:
    if found.is_capacity and isinstance(value, Mapping):
        if not value:
            return "auto"
        return value["fixed"] if value.keys() == {"fixed"} else dict(value)
    if found.is_estimate and isinstance(value, str) and re.fullmatch(r"[0-9]*\.?[0-9]+", value):
        return float(value)
    if found.is_list and isinstance(value, list):
        return [_to_file(each, found.fields) if isinstance(each, Mapping) else each for each in value]
    if found.fields and isinstance(value, Mapping):
        return _to_file(value, found.fields)
    return value
