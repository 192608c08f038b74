"""Reports of usage: sums of the usage store, with costs, as rows for people, spreadsheets and FOCUS. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import date, datetime, time, timedelta
from typing import Any

from coordinator.usage.periods import Span, utc
from coordinator.usage.store import By, UsageSum
from tokenpool.entitlements import MILLION, Prices

Cell = str | int | float | None
Record = dict[str, Cell]
"""One row, by column."""

FOCUS_BY = (By.DAY, By.POOL, By.ENTITLEMENT, By.GROUP, By.CREDENTIAL, By.MODEL)
"""What a FOCUS report is added up by: a charge has one day, one account and one price."""
NO_CURRENCY = "XXX"
"""The code of ISO 4217 for a charge without a currency: the pool has no prices."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a report."""

    usage: UsageSum
    """Its key has the values of the report's columns."""
    cost: float | None = None
    """``None`` without prices."""
    currency: str = ""


def queried(by: Sequence[By]) -> tuple[By, ...]:
    """The columns to ask the usage store for: those of the report, and the pool, which has the prices."""
    return (*by, *(() if By.POOL in by else (By.POOL,)))


def lines(sums: Iterable[UsageSum], by: Sequence[By], prices: Mapping[str, Prices | None]) -> list[Line]:
    """The rows of a report. ``sums`` are added up by ``queried(by)``, and ``prices`` are those by pool.

    Usage at prices of different currencies does not add up: it has a row for each.
    """
    pool_at = queried(by).index(By.POOL)
    found: dict[tuple[tuple[str, ...], str], Line] = {}
    for each in sums:
        its_prices = prices.get(each.key[pool_at])
        key = each.key[: len(by)]
        currency = its_prices.currency if its_prices is not None else ""
        cost = (
            its_prices.cost(each.input_tokens, each.cached_tokens, each.output_tokens)
            if its_prices is not None
            else None
        )
        before = found.get((key, currency))
        found[key, currency] = (
            Line(_with_key(each, key), cost, currency)
            if before is None
            else Line(_added(before.usage, each), (before.cost or 0.0) + (cost or 0.0), currency)
            if currency
            else Line(_added(before.usage, each))
        )
    return [found[each] for each in sorted(found)]


def _with_key(one: UsageSum, key: tuple[str, ...]) -> UsageSum:
    return UsageSum(key, *astuple(one)[1:])


def _added(one: UsageSum, other: UsageSum) -> UsageSum:
    numbers = (getattr(one, name) + getattr(other, name) for name in _NUMBERS)
    return UsageSum(one.key, *numbers)


_NUMBERS = tuple(each.name for each in fields(UsageSum))[1:]


def total(rows: Iterable[Line]) -> UsageSum:
    """The sum of all rows."""
    whole = UsageSum()
    for each in rows:
        whole = _added(whole, each.usage)
    return whole


# --- plain rows ---


def records(rows: Iterable[Line], by: Sequence[By]) -> Iterator[Record]:
    """The rows with their columns: what they are added up by, the numbers, the means, and the cost."""
    for each in rows:
        usage = each.usage
        yield {
            **dict(zip((column.value for column in by), usage.key, strict=True)),
            "requests": usage.requests,
            "estimated_requests": usage.estimated_requests,
            "input_tokens": usage.input_tokens,
            "cached_tokens": usage.cached_tokens,
            "output_tokens": usage.output_tokens,
            "kv_token_seconds": round(usage.kv_token_seconds, 3),
            "sequence_seconds": round(usage.sequence_seconds, 3),
            "mean_queue_s": _mean(usage.queue_s, usage.requests),
            "mean_first_token_s": _mean(usage.ttft_s, usage.ttft_requests),
            "cost": round(each.cost, 6) if each.cost is not None else None,
            "currency": each.currency or None,
        }


def _mean(total: float, number: int) -> float | None:
    return round(total / number, 6) if number else None


# --- FOCUS ---


def focus(rows: Iterable[Line], span: Span, prices: Mapping[str, Prices | None]) -> Iterator[Record]:
    """The rows of a report by ``FOCUS_BY`` as charges of FOCUS 1.2: one for each kind of token.

    FOCUS is the open specification of billing data (focus.finops.org). The billing account is the pool, the
    sub-account is the entitlement, and the resource is the model.
    """
    for each in rows:
        day, pool, entitlement, group, credential, model = each.usage.key
        its_prices = prices.get(pool)
        for meter, tokens, price in _meters(each.usage, its_prices):
            if not tokens:
                continue
            cost = round(tokens * price / MILLION, 9)
            start, end = _bounds(date.fromisoformat(day), span)
            month, following = _month_bounds(date.fromisoformat(day), span)
            yield {
                "BilledCost": cost,
                "BillingAccountId": pool,
                "BillingAccountName": pool,
                "BillingAccountType": "Pool",
                "BillingCurrency": its_prices.currency if its_prices is not None else NO_CURRENCY,
                "BillingPeriodEnd": following,
                "BillingPeriodStart": month,
                "ChargeCategory": "Usage",
                "ChargeClass": None,
                "ChargeDescription": f"{meter} of {model or 'an unnamed model'} in pool {pool}",
                "ChargeFrequency": "Usage-Based",
                "ChargePeriodEnd": end,
                "ChargePeriodStart": start,
                "ConsumedQuantity": tokens,
                "ConsumedUnit": "Tokens",
                "ContractedCost": cost,
                "ContractedUnitPrice": price,
                "EffectiveCost": cost,
                "InvoiceIssuerName": _PROVIDER,
                "ListCost": cost,
                "ListUnitPrice": price,
                "PricingCategory": "Standard",
                "PricingQuantity": tokens / MILLION,
                "PricingUnit": "1000000 Tokens",
                "ProviderName": _PROVIDER,
                "PublisherName": _PROVIDER,
                "ResourceId": model or None,
                "ResourceName": model or None,
                "ResourceType": "Model" if model else None,
                "ServiceCategory": "AI and Machine Learning",
                "ServiceName": "LLM inference",
                "ServiceSubcategory": "Generative AI",
                "SkuId": f"{pool}/{meter}",
                "SkuMeter": meter,
                "SkuPriceId": f"{pool}/{meter}",
                "SubAccountId": entitlement,
                "SubAccountName": entitlement,
                "SubAccountType": "Entitlement",
                "Tags": json.dumps({"credential_id": credential, "group": group}),
            }


_PROVIDER = "tokenpool"


def _meters(usage: UsageSum, prices: Prices | None) -> Iterator[tuple[str, int, float]]:
    """The kinds of tokens: the name, the number, and the price per million."""
    known = prices or Prices(NO_CURRENCY)
    yield "Input tokens", usage.input_tokens - usage.cached_tokens, known.input
    yield "Cached input tokens", usage.cached_tokens, known.cached_input
    yield "Output tokens", usage.output_tokens, known.output


def _bounds(day: date, span: Span) -> tuple[str, str]:
    """The start and the end of a day, as far as it is within the span."""
    first, after = (_midnight(each, span) for each in (day, day + timedelta(days=1)))
    return utc(max(first, span.since)), utc(min(after, span.until))


def _month_bounds(day: date, span: Span) -> tuple[str, str]:
    first = day.replace(day=1)
    return utc(_midnight(first, span)), utc(_midnight((first + timedelta(days=32)).replace(day=1), span))


def _midnight(day: date, span: Span) -> float:
    return datetime.combine(day, time(), span.zone).timestamp()


# --- CSV ---

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""The beginnings of a text that a spreadsheet runs. A tenant may choose the name of a model."""


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV, with a line of heads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for each in rows:
        writer.writerow([_safe(each[column]) for column in columns])
    return text.getvalue()


def _safe(cell: Cell) -> Cell:
    if cell is None:
        return ""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def columns(by: Sequence[By]) -> list[str]:
    """The columns of ``records``."""
    return list(next(records([Line(UsageSum(("",) * len(by)))], by)))


def focus_columns() -> list[str]:
    """The columns of ``focus``."""
    span = Span(0.0, 86400.0)
    one = Line(UsageSum(("1970-01-01", *("",) * 5), output_tokens=1))
    return list(next(focus([one], span, {})))
