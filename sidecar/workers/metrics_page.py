"""Merges the metrics pages of several workers into one, in Prometheus' text format. Pure.

Counters and histograms add up. The last ones of a worker that has ended are kept in ``Totals``, so no sum
falls when a worker is started again. Only its increments since its page was last read are lost. Gauges add up
where each worker has a part. Of all others, the page has the smallest or the largest value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from runtime.exposition import number

ADDED = frozenset(
    {
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "tokenpool_affinity_prefixes",
        "tokenpool_buffered_bytes",
        "tokenpool_connections",
        "tokenpool_guests",
        "tokenpool_guests_waiting",
        "tokenpool_handovers_running",
        "tokenpool_jwt_known",
        "tokenpool_lease",
        "tokenpool_price_experts",
        "tokenpool_queue_length",
        "tokenpool_quota_waiting",
        "tokenpool_reserved",
        "tokenpool_shadow_surplus",
        "tokenpool_usage_spool_bytes",
    }
)
"""Gauges of which each worker has a part."""
LEAST = frozenset(
    {
        "process_start_time_seconds",
        "tokenpool_affinity_trust",
        "tokenpool_bucket_level_tokens",
        "tokenpool_certificate_current",
        "tokenpool_certificate_not_after_seconds",
        "tokenpool_config_current",
        "tokenpool_credentials_current",
        "tokenpool_issued_credentials_current",
        "tokenpool_jwks_keys",
        "tokenpool_price_coverage",
        "tokenpool_store_up",
    }
)
"""Gauges of which the page has the smallest value, so that a problem of one worker is visible. Of the gauges
that are not listed here it has the largest value."""
_TOTALS = ("counter", "histogram", "summary")


@dataclass(slots=True)
class Family:
    """One metric of a page."""

    name: str
    head: list[str] = field(default_factory=list)
    """Its lines of help and type."""
    kind: str = "gauge"
    series: dict[str, float] = field(default_factory=dict)
    """The values by the name of a series with its labels."""

    @property
    def is_total(self) -> bool:
        """Whether its values only rise while a process runs."""
        return self.kind in _TOTALS


Page = dict[str, Family]
"""The metrics of a page by name, in their order."""


def parsed(text: str) -> Page:
    """The metrics of a page that this project has written. Lines of another form are left out."""
    page: Page = {}
    family: Family | None = None
    for line in text.split("\n"):
        if line.startswith("# "):
            _, what, name, rest, *_ = *line.split(" ", 3), "", ""
            if not name:
                continue
            family = page.get(name)
            if family is None:
                family = page[name] = Family(name)
            family.head.append(line)
            if what == "TYPE":
                family.kind = rest
            continue
        series, separator, value = line.rpartition(" ")
        if family is None or not separator:
            continue
        try:
            family.series[series] = float(value)
        except ValueError:
            continue
    return page


class Totals:
    """The counts of workers that have ended."""

    def __init__(self) -> None:
        self._kept: Page = {}

    @property
    def page(self) -> Page:
        """The counts so far. A later ``add`` does not change this page, so a thread may read it."""
        return self._kept

    def add(self, last: Page) -> None:
        """A worker has ended, whose last page this was."""
        made: Page = {}
        _add([self._kept, last], made, totals_only=True)
        self._kept = made


def merged(pages: Iterable[Page]) -> str:
    """One page of those of the workers that run, and of ``Totals``."""
    made: Page = {}
    _add(pages, made)
    return "".join(_lines(made.values()))


def _add(pages: Iterable[Page], into: Page, *, totals_only: bool = False) -> None:
    for page in pages:
        for name, family in page.items():
            if totals_only and not family.is_total:
                continue
            target = into.get(name)
            if target is None:
                into[name] = Family(name, list(family.head), family.kind, dict(family.series))
            else:
                _combine(target, family.series)


def _combine(target: Family, series: Mapping[str, float]) -> None:
    mine = target.series
    if target.is_total or target.name in ADDED:
        for key, value in series.items():
            mine[key] = mine.get(key, 0.0) + value
    elif target.name in LEAST:
        for key, value in series.items():
            mine[key] = min(mine.get(key, math.inf), value)
    else:
        for key, value in series.items():
            mine[key] = max(mine.get(key, -math.inf), value)


def _lines(families: Iterable[Family]) -> Iterable[str]:
    for family in families:
        for line in family.head:
            yield f"{line}\n"
        for key, value in family.series.items():
            yield f"{key} {number(value)}\n"
