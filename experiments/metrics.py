"""Reads counters from the metrics pages of sidecars and engines."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def total(pages: Iterable[str], name: str, **labels: str) -> float:
    """The sum of a sample over all pages, and over all its labels except for those given."""
    return sum(sample.value for sample in _samples(pages, name) if labels.items() <= sample.labels.items())


def by_label(pages: Iterable[str], name: str, label: str) -> Counter[str]:
    """The whole numbers of a sample over all pages, by the value of a label; empty without such a sample."""
    found: Counter[str] = Counter()
    for sample in _samples(pages, name):
        found[sample.labels.get(label, "")] += round(sample.value)
    return found


def _samples(pages: Iterable[str], name: str) -> Iterator[Sample]:
    for page in pages:
        with urllib.request.urlopen(page, timeout=10) as response:
            for family in text_string_to_metric_families(response.read().decode()):
                yield from (sample for sample in family.samples if sample.name == name)
