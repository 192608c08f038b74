"""Prometheus' text format, made in pieces, so that a page of many series does not block the event loop.

``prometheus_client`` makes an object for each series, in 11 µs. Direct formatting takes 0.5 µs, and
a page may be cut between any two entitlements. Small groups of metrics still come from ``prometheus_client``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Family(NamedTuple):
    """One metric. Its name is without a counter's ``_total``; ``kind`` is counter, gauge or histogram."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> str:
        """The name of its series; a histogram's have suffixes."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    def head(self) -> str:
        """The first two lines of a family."""
        series = self.series
        return f"# HELP {series} {self.text}\n# TYPE {series} {self.kind}\n"


def number(value: float) -> str:
    """A value in the text format."""
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def escaped(value: str) -> str:
    """The value of a label. Names that the pool file's rules allow need no escape."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def bound_labels(bounds: Sequence[float]) -> tuple[str, ...]:
    """The ``le`` label of each bucket of a histogram, with the infinite one."""
    return (*(repr(float(bound)) for bound in bounds), "+Inf")


class _Some:
    """Metrics in the form that ``generate_latest`` takes."""

    def __init__(self, metrics: Iterable[Metric], labels: Mapping[str, str]) -> None:
        self._metrics = metrics
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics:
            metric.samples = [
                each._replace(labels={**each.labels, **self._labels}) for each in metric.samples
            ]
            yield metric


def rendered(metrics: Iterable[Metric], labels: Mapping[str, str] = MappingProxyType({})) -> str:
    """A few metrics of ``prometheus_client``: those without a series for each entitlement.

    Every series gets ``labels`` in addition to its own. The metrics are changed.
    """
    return generate_latest(_Some(metrics, labels)).decode()
