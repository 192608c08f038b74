"""Cases of alerts as files for ``promtool test rules``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from monitoring.model import RUNBOOK_URL, Alert, Severity
from tests.integration.observability.alert_cases import FAULTY, PLACES, Case, Quiet, Series

STEP_MIN = {True: 2, False: 1}
"""Minutes between two samples and evaluations: of cases that last for days, and of the others."""
_TEMPLATE = re.compile(r"\{\{ (.*?) \}\}")


def is_long(case: Case) -> bool:
    """Whether a case lasts for days."""
    return case.well_min + case.faulty_min + case.clears_min > 12 * 60


def firing_and_clearing(case: Case, alerts: Sequence[Alert]) -> dict[str, Any]:
    """The test of one case: silent, firing, silent again. ``alerts`` have its name."""
    step = STEP_MIN[is_long(case)]
    begins, ends = case.well_min, case.well_min + case.faulty_min
    last = ends + case.clears_min
    fired = [expected(each, case) for each in alerts if each.severity in case.severities]
    return {
        "name": f"{case.alert}: {case.about}" if case.about else case.alert,
        "interval": f"{step}m",
        "input_series": [
            {
                "series": named(each, place),
                "values": values(each, step, (begins, ends, last), place == FAULTY or case.is_everywhere),
            }
            for place in places(case)
            for each in case.series
        ],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts_then}
            for minute, alerts_then in ((begins - step, []), (ends - step, fired), (last - step, []))
        ],
    }


def staying_silent(quiet: Quiet) -> dict[str, Any]:
    """The test that alerts stay silent on what looks like a fault."""
    step = STEP_MIN[quiet.is_long]
    return {
        "name": quiet.about,
        "interval": f"{step}m",
        "input_series": [
            *(
                {
                    "series": named(each, FAULTY),
                    "values": values(each, step, (0, quiet.minutes, quiet.minutes), is_faulty=True),
                }
                for each in quiet.series
            ),
            *(
                {"series": name.replace("{", '{namespace="blue",pool="chat",'), "values": text}
                for name, text in quiet.samples.items()
            ),
        ],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}
            for name in quiet.alerts
            for minute in range(5, quiet.minutes, max(quiet.minutes // 12, 5))
        ],
    }


def one_of_several(name: str, series: Sequence[Series], warnings: int) -> dict[str, Any]:
    """The test that faults of one sidecar are never critical, and that so many alerts warn of them."""
    begins, ends, step = 30, 26 * 60, STEP_MIN[True]
    firing = 'ALERTS{severity="%s", alertstate="firing", namespace="blue", pool="chat"}'
    return {
        "name": name,
        "interval": f"{step}m",
        "input_series": [
            {
                "series": named(each, FAULTY),
                "values": values(each, step, (begins, ends, ends), is_faulty=True),
            }
            for each in series
        ],
        "promql_expr_test": [
            *(
                {"expr": firing % Severity.CRITICAL, "eval_time": f"{minute}m", "exp_samples": []}
                for minute in range(begins, ends, 46)
            ),
            {
                "expr": f"count(count by (alertname) ({firing % Severity.WARNING}))",
                "eval_time": f"{ends - 6}m",
                "exp_samples": [{"labels": "{}", "value": warnings}],
            },
        ],
    }


def places(case: Case) -> Sequence[tuple[str, str]]:
    """The places with the series of a case."""
    if case.well_min + case.faulty_min > 2 * 24 * 60:
        return PLACES[:1]  # three days of three places take three times as long, and show no more
    return PLACES[::2] if case.is_of_namespace else PLACES


def named(series: Series, place: tuple[str, str]) -> str:
    """A series with its labels in one place. Each target is in one place only."""
    labels = placed(series.labels, place) | {"namespace": place[0]}
    if series.has_pool:
        labels["pool"] = place[1]
    return series.name + "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


def placed(labels: Mapping[str, str], place: tuple[str, str]) -> dict[str, str]:
    """Labels with the instance of a place."""
    given = dict(labels)
    if "instance" in given:
        given["instance"] = f"{given['instance']}.{place[1]}.{place[0]}"
    return given


def values(series: Series, step: int, times: tuple[int, int, int], is_faulty: bool) -> str:
    """The samples of a series in promtool's notation. ``times``: a fault begins, it ends, all ends (min)."""
    begins, ends, last = times
    found = [
        series.faulty if is_faulty and begins <= minute < ends else series.well
        for minute in range(0, last, step)
    ]
    if series.is_counter:
        assert None not in found
        return " ".join(f"{total:g}" if total < 1e6 else str(round(total)) for total in accumulate(
            (value or 0) * step for value in found
        ))  # fmt: skip
    return " ".join(_samples(found))


def _samples(found: Sequence[float | None]) -> Iterator[str]:
    before: float | None = None
    for value in found:
        yield f"{value:g}" if value is not None else "stale" if before is not None else "_"
        before = value


def expected(alert: Alert, case: Case) -> dict[str, Any]:
    """The alert as it fires: with its labels, and its texts filled in."""
    labels = placed(case.labels, FAULTY)
    if not case.is_everywhere:
        labels |= {"namespace": FAULTY[0]} | ({} if case.is_of_namespace else {"pool": FAULTY[1]})
    content = alert.content(RUNBOOK_URL)
    annotations = content["annotations"]
    assert isinstance(annotations, dict)
    return {
        "exp_labels": labels | {"severity": alert.severity.value},
        "exp_annotations": {name: filled(text, labels, case.value) for name, text in annotations.items()},
    }


def filled(text: str, labels: Mapping[str, str], value: float) -> str:
    """A text with its templates filled in as Prometheus does."""

    def fill(match: re.Match[str]) -> str:
        asked = match[1]
        if asked.startswith("$labels."):
            return labels[asked.removeprefix("$labels.")]
        if asked == "$value":
            return f"{value:g}"
        if asked == "$value | humanizeDuration":
            minutes, seconds = divmod(round(value), 60)
            days, hours = divmod(minutes // 60, 24)
            return f"{days}d " * (days > 0) + f"{hours}h {minutes % 60}m {seconds}s"
        if asked == "$value | humanizePercentage":
            return f"{100 * value:.4g}%"
        form = re.fullmatch(r'printf "(%\.\df)" \$value', asked)
        assert form is not None, asked
        return form[1] % value

    return _TEMPLATE.sub(fill, text)
