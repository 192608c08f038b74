"""The injector's metrics: reviews by decision and reason, their duration, and the certificate.

The number of series is bounded: decisions and reasons are enumerations.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from injector.review import Answered
from runtime.exposition import bound_labels, rendered
from runtime.tls import Certificate

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Bounds in seconds. A review takes about 1 ms, and the API server waits for 5 s."""
_MALFORMED = "malformed"


class Telemetry:
    """The metrics of one injector."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._reviews = Counter({(decision, ""): 0 for decision in ("injected", "untouched", _MALFORMED)})
        self._warnings: Counter[str] = Counter()
        self._taken = [0] * (len(_BOUNDS) + 1)
        """Answers by the bucket of their duration."""
        self._seconds = 0.0

    def answered(self, answered: Answered, seconds: float) -> None:
        """Count one answer."""
        self._reviews[answered.result, answered.denied_for.value if answered.denied_for else ""] += 1
        self._warnings.update(note.reason.value for note in answered.notes)
        self._taken[bisect_left(_BOUNDS, seconds)] += 1
        self._seconds += seconds

    def malformed(self) -> None:
        """Count a request that is no review."""
        self._reviews[_MALFORMED, ""] += 1

    def metrics(self) -> Iterator[Metric]:
        """All metrics but those of the process."""
        reviews = CounterMetricFamily(
            "tokenpool_injector_reviews",
            "Reviews by decision (injected, untouched, denied, malformed), and by the reason of a denial.",
            labels=("decision", "reason"),
        )
        for labels, count in sorted(self._reviews.items()):
            reviews.add_metric(labels, count)
        warnings = CounterMetricFamily(
            "tokenpool_injector_warnings",
            "Warnings about pods that may be created, by reason.",
            labels=("reason",),
        )
        for reason, count in sorted(self._warnings.items()):
            warnings.add_metric((reason,), count)
        below = itertools.accumulate(self._taken)
        buckets = list(zip(bound_labels(_BOUNDS), map(float, below), strict=True))
        yield from (reviews, warnings)
        yield HistogramMetricFamily(
            "tokenpool_injector_review_seconds",
            "Time from a review's arrival to its answer, s.",
            buckets=buckets,
            sum_value=self._seconds,
        )
        yield from self._certificate.metrics()

    def page(self) -> Iterator[str]:
        """The metrics in the text format."""
        yield rendered(self.metrics())
