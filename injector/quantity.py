"""Kubernetes' quantities, such as 250m or 1Gi, as exact numbers. Pure."""

from __future__ import annotations

import re
from decimal import Decimal

_FORM = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:([eE][+-]?[0-9]+)|([A-Za-z]*))")
_UNITS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(1000),
    **{name: Decimal(1000) ** power for power, name in enumerate("MGTPE", start=2)},
    **{f"{name}i": Decimal(1024) ** power for power, name in enumerate("KMGTPE", start=1)},
}


def amount(quantity: object) -> Decimal | None:
    """The number that a quantity means; ``None`` if it is not a quantity."""
    matched = _FORM.fullmatch(str(quantity).strip())
    if matched is None or (matched[3] or "") not in _UNITS:
        return None
    return Decimal(matched[1] + (matched[2] or "")) * _UNITS[matched[3] or ""]
