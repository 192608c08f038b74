"""Reports: sums with costs become rows, CSV and FOCUS charges."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.usage import reports
from coordinator.usage.periods import Span
from coordinator.usage.reports import FOCUS_BY, Line
from coordinator.usage.store import By, UsageSum
from tokenpool.entitlements import Prices

EURO = Prices("EUR", input=2.0, cached_input=0.5, output=8.0)
DOLLAR = Prices("USD", input=1.0)
NOVEMBER = Span(1793491200.0, 1796083200.0)
"""November 2026 in UTC."""

MANDATORY = {
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription",
    "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName",
    "ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory",
    "ServiceName",
}  # fmt: skip
"""The mandatory columns of FOCUS 1.2."""


def usage(*key: str, **numbers: float) -> UsageSum:
    return UsageSum(key, **{"requests": 1, **numbers})  # type: ignore[arg-type]


def test_the_pool_is_asked_for_because_it_has_the_prices() -> None:
    assert reports.queried([By.DAY]) == (By.DAY, By.POOL)
    assert reports.queried([By.POOL, By.DAY]) == (By.POOL, By.DAY)


def test_costs_follow_the_prices_per_million() -> None:
    sums = [usage("acme", "chat", input_tokens=3_000_000, cached_tokens=1_000_000, output_tokens=500_000)]

    [line] = reports.lines(sums, [By.ENTITLEMENT], {"chat": EURO})

    assert line.cost == 2 * 2.0 + 0.5 + 4.0
    assert line.currency == "EUR"
    assert line.usage.key == ("acme",)


def test_pools_add_up_in_one_row() -> None:
    sums = [usage("acme", "a", output_tokens=1_000_000), usage("acme", "b", output_tokens=2_000_000)]

    [line] = reports.lines(sums, [By.ENTITLEMENT], {"a": EURO, "b": EURO})

    assert (line.usage.requests, line.usage.output_tokens, line.cost) == (2, 3_000_000, 24.0)


def test_currencies_do_not_add_up() -> None:
    sums = [usage("acme", "a", input_tokens=1), usage("acme", "b", input_tokens=1), usage("acme", "c")]

    rows = reports.lines(sums, [By.ENTITLEMENT], {"a": EURO, "b": DOLLAR, "c": None})

    assert [each.currency for each in rows] == ["", "EUR", "USD"]
    assert rows[0].cost is None


def test_a_pool_that_is_no_longer_in_the_file_has_no_cost() -> None:
    [line] = reports.lines([usage("acme", "gone")], [By.ENTITLEMENT], {})

    assert line.cost is None


def test_rows_have_means() -> None:
    line = Line(usage("acme", requests=4, queue_s=2.0, ttft_s=3.0, ttft_requests=2))

    [row] = reports.records([line], [By.ENTITLEMENT])

    assert (row["entitlement"], row["mean_queue_s"], row["mean_first_token_s"]) == ("acme", 0.5, 1.5)


def test_a_mean_of_nothing_is_unknown() -> None:
    [row] = reports.records([Line(usage("acme"))], [By.ENTITLEMENT])

    assert row["mean_first_token_s"] is None


def test_csv_has_the_columns_of_json() -> None:
    rows = list(reports.records([Line(usage("2026-11-01", "acme"), 1.5, "EUR")], [By.DAY, By.ENTITLEMENT]))

    [read] = csv.DictReader(io.StringIO(reports.as_csv(rows, reports.columns([By.DAY, By.ENTITLEMENT]))))

    assert list(read) == list(rows[0])
    assert (read["day"], read["cost"], read["mean_first_token_s"]) == ("2026-11-01", "1.5", "")


@pytest.mark.parametrize("model", ["=HYPERLINK(1)", "+1", "-1", "@a"])
def test_a_name_cannot_be_a_formula(model: str) -> None:
    text = reports.as_csv(reports.records([Line(usage(model))], [By.MODEL]), reports.columns([By.MODEL]))

    assert next(csv.DictReader(io.StringIO(text)))["model"] == f"'{model}"


def focus(each: UsageSum, prices: Prices | None = EURO, span: Span = NOVEMBER) -> list[reports.Record]:
    return list(reports.focus(reports.lines([each], FOCUS_BY, {"chat": prices}), span, {"chat": prices}))


CHARGED = usage(
    "2026-11-05", "chat", "acme", "org", "key-1", "llama",
    input_tokens=3_000_000, cached_tokens=1_000_000, output_tokens=500_000,
)  # fmt: skip


def test_a_charge_has_the_mandatory_columns_of_focus() -> None:
    for row in focus(CHARGED):
        assert set(row) >= MANDATORY
        assert {name for name in MANDATORY if row[name] is None} <= {"ChargeClass"}


def test_each_kind_of_token_is_a_charge() -> None:
    rows = focus(CHARGED)

    assert [(row["SkuMeter"], row["ConsumedQuantity"], row["BilledCost"]) for row in rows] == [
        ("Input tokens", 2_000_000, 4.0),
        ("Cached input tokens", 1_000_000, 0.5),
        ("Output tokens", 500_000, 4.0),
    ]
    assert (rows[0]["SubAccountId"], rows[0]["ResourceId"]) == ("acme", "llama")
    assert json.loads(str(rows[0]["Tags"])) == {"credential_id": "key-1", "group": "org"}


def test_the_charge_period_is_the_day_and_the_billing_period_the_month() -> None:
    [row, *_] = focus(CHARGED)

    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == (
        "2026-11-05T00:00:00Z",
        "2026-11-06T00:00:00Z",
    )
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == (
        "2026-11-01T00:00:00Z",
        "2026-12-01T00:00:00Z",
    )


def test_a_charge_period_ends_with_the_span() -> None:
    span = Span(NOVEMBER.since, NOVEMBER.since + 4.5 * 86400)

    assert focus(CHARGED, span=span)[0]["ChargePeriodEnd"] == "2026-11-05T12:00:00Z"


def test_without_prices_a_charge_costs_nothing() -> None:
    [row, *_] = focus(CHARGED, None)

    assert (row["BilledCost"], row["BillingCurrency"]) == (0.0, "XXX")


TOKENS = st.integers(0, 10**9)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pq"), TOKENS, TOKENS, TOKENS), max_size=20))
def test_no_token_is_lost_between_formats(drawn: list[tuple[str, str, int, int, int]]) -> None:
    sums = [
        usage(
            "2026-11-05",
            pool,
            name,
            "",
            "",
            "",
            input_tokens=own + cached,
            cached_tokens=cached,
            output_tokens=out,
        )
        for name, pool, own, cached, out in drawn
    ]

    plain = reports.lines(sums, FOCUS_BY, {})
    charges = reports.focus(plain, NOVEMBER, {})

    whole = sum(each.input_tokens + each.output_tokens for each in sums)
    assert sum(int(str(row["ConsumedQuantity"])) for row in charges) == whole
    assert reports.total(plain).input_tokens == sum(each.input_tokens for each in sums)
