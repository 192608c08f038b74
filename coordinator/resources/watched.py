"""The Secrets that a coordinator watches: a bounded number, shared by the namespaces. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from coordinator.resources.reading import SecretName

MOST_SECRETS = 256
"""The most Secrets that are watched; each takes a connection. A Secret has room for thousands of keys."""


def chosen(followed: Collection[SecretName], named: Collection[SecretName]) -> list[SecretName]:
    """The further Secrets to watch, of those that are named, in the order of their names.

    A namespace may have half of what the others leave free. So one namespace alone has half of all, and the
    next one always finds room. ``followed`` are watched already, and stay.
    """
    count = Counter(each.namespace for each in followed)
    found = []
    for name in sorted(set(named) - set(followed)):
        own = count[name.namespace]
        if own < (MOST_SECRETS - (count.total() - own)) // 2:
            count[name.namespace] += 1
            found.append(name)
    return found
