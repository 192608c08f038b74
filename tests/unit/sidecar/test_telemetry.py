"""The metrics' page: valid, bounded, steady, and made in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sidecar.proxy.bounds import PER_PIECE as HOLDERS_PER_PIECE
from sidecar.proxy.bounds import Bounds
from sidecar.telemetry import FAMILIES, OTHER, PER_PIECE, UNIDENTIFIED, Changes, Telemetry
from tests.support.domain_builders import ASK, PLENTY, cost, entitlement
from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.entitlements import Entitlement, Pricing, Slo, Tier
from tokenpool.outcomes import Ending, Reason
from tokenpool.planning.active_accounts import ActiveAccounts
from tokenpool.pricing.cost import Usage

MOST_LINES = 3 + PER_PIECE * 2 * 18
"""Of one piece: a family's head, and both histograms of estimates of so many entitlements."""


class Pool:
    """Telemetry with accounts whose requests are settled by hand."""

    def __init__(self, *tenants: Entitlement, most_series: int = 3) -> None:
        self.ledger = Ledger()
        self.active = ActiveAccounts()
        self.telemetry = Telemetry(most_series)
        self.accounts: dict[str, Account] = {}
        self.follow(*tenants)

    def follow(self, *tenants: Entitlement) -> None:
        before = {name: (account, account.entitlement) for name, account in self.accounts.items()}
        self.accounts = {t.name: self.accounts.get(t.name) or Account(t, Pricing(), 0.0) for t in tenants}
        for tenant in tenants:
            account = self.accounts[tenant.name]
            account.entitlement = tenant
            account.set_limits(PLENTY, PLENTY, 0.0, 0.0)
        changed = [
            account
            for name, account in self.accounts.items()
            if name not in before or before[name][1] != account.entitlement
        ]
        removed = [account for name, (account, _) in before.items() if name not in self.accounts]
        self.telemetry.follow(self.accounts, self.ledger, self.active, "chat", changed, removed)

    def use(self, name: str, tokens: int = 10) -> None:
        account = self.accounts[name]
        self.active.touch(account, 0.0)
        ticket = self.ledger.reserve(account, ASK, cost(), 0.0)
        self.telemetry.first_token(account, 0.02, ticket)
        self.telemetry.stream_ended(ticket, tokens, 0.02, 0.02 + 0.03 * (tokens - 1))
        self.ledger.settle(ticket, Usage(tokens, tokens), Ending.FINISHED, 1.0)
        self.telemetry.settled(ticket, Ending.FINISHED, Usage(tokens, tokens), reported=True)

    def page(self) -> dict[str, float]:
        return samples("".join(self.pieces()))

    def pieces(self) -> Iterator[str]:
        return self.telemetry.pieces(self)

    def refresh(self, account: Account, now: float) -> None:
        """Limits are set by the test, so none is outdated."""


def samples(page: str) -> dict[str, float]:
    """Every series and its value; the parser of Prometheus' own client reads them."""
    found: dict[str, float] = {}
    families = list(text_string_to_metric_families(page))
    assert len({family.name for family in families}) == len(families)  # contiguous
    for family in families:
        for sample in family.samples:
            assert sample.labels.pop("pool") == "chat"
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}"
            assert name not in found, f"{name} is there twice"
            found[name] = sample.value
    return found


def shown(page: dict[str, float]) -> set[str]:
    return {part.removeprefix("entitlement=") for name in page for part in _labels(name) if "ent" in part}


def _labels(name: str) -> Iterator[str]:
    return (part for part in name[name.index("{") + 1 : -1].split(",") if part.startswith("entitlement="))


def test_only_used_entitlements_have_series() -> None:
    pool = Pool(entitlement("a"), entitlement("b"))
    assert shown(pool.page()) == set()

    pool.use("a")
    page = pool.page()

    assert shown(page) == {"a"}
    assert page["tokenpool_requests_total{entitlement=a,outcome=finished,tier=elastic}"] == 1
    assert page["tokenpool_tokens_total{entitlement=a,kind=output}"] == 10
    assert page["tokenpool_time_to_first_token_seconds_bucket{entitlement=a,le=0.025}"] == 1
    assert page["tokenpool_time_to_first_token_seconds_count{entitlement=a}"] == 1
    assert page["tokenpool_limit{dimension=concurrency,entitlement=a}"] == 1e6


def test_an_entitlement_with_running_requests_is_shown_before_one_ends() -> None:
    pool = Pool(entitlement("a"))
    account = pool.accounts["a"]
    pool.active.touch(account, 0.0)
    pool.ledger.reserve(account, ASK, cost(kv_tokens=112), 0.0)

    assert pool.page()["tokenpool_reserved{dimension=kv_tokens,entitlement=a}"] == 112


def test_the_certificates_of_prices_are_shown() -> None:
    pool = Pool(entitlement("a"))
    pool.use("a", tokens=10)
    pool.use("a", tokens=1000)
    page = pool.page()
    assert page["tokenpool_price_coverage{entitlement=a}"] == 0.5
    assert page["tokenpool_price_experts{entitlement=a,state=certified}"] == 0
    assert page["tokenpool_price_experts{entitlement=a,state=learning}"] == 0
    reserved = cost().output_tokens * 1.99
    assert page["tokenpool_reserved_output_ratio{entitlement=a}"] == pytest.approx(reserved / 1009.9)


def test_every_family_has_its_head_though_nothing_was_used() -> None:
    page = "".join(Pool(entitlement("a")).pieces())

    heads = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert set(heads) == {family.series for family in FAMILIES if family.name != "tokenpool_lease"}


def test_beyond_the_bound_entitlements_are_added_up_by_tier() -> None:
    pool = Pool(
        entitlement("a"),
        entitlement("b"),
        entitlement("c"),
        entitlement("d", Tier.SPOT),
        most_series=2,
    )
    for name in ("a", "b", "c", "d", "d"):
        pool.use(name)
    pool.telemetry.refused(pool.accounts["c"], Reason.CONCURRENCY)

    page = pool.page()

    assert shown(page) == {"a", "b", OTHER}
    assert page[f"tokenpool_requests_total{{entitlement={OTHER},outcome=finished,tier=elastic}}"] == 1
    assert page[f"tokenpool_requests_total{{entitlement={OTHER},outcome=concurrency,tier=elastic}}"] == 1
    assert page[f"tokenpool_requests_total{{entitlement={OTHER},outcome=finished,tier=spot}}"] == 2
    assert page[f"tokenpool_tokens_total{{entitlement={OTHER},kind=input}}"] == 30
    assert pool.telemetry.outcomes("d") == {"finished": 2}  # each one's own are still known


def test_the_reserved_amount_of_others_is_the_total_less_the_shown_ones() -> None:
    pool = Pool(entitlement("a"), entitlement("b"), entitlement("c"), most_series=1)
    for name in ("a", "b", "c"):
        pool.use(name)
        pool.ledger.reserve(pool.accounts[name], ASK, cost(kv_tokens=112), 0.0)

    page = pool.page()

    assert page["tokenpool_reserved{dimension=concurrency,entitlement=a}"] == 1
    assert page[f"tokenpool_reserved{{dimension=concurrency,entitlement={OTHER}}}"] == 2
    assert page[f"tokenpool_reserved{{dimension=kv_tokens,entitlement={OTHER}}}"] == 224


def test_a_guaranteed_entitlement_finds_a_place_though_others_came_first() -> None:
    late = entitlement("g", Tier.GUARANTEED)
    pool = Pool(late, *(entitlement(name) for name in "abcd"), most_series=3)

    for name in "abcd":
        pool.use(name)
    pool.use("g")

    assert shown(pool.page()) == {"a", "b", "g", OTHER}


def test_an_entitlement_named_other_is_part_of_other() -> None:
    pool = Pool(entitlement(OTHER), entitlement("a"), most_series=1)
    for name in (OTHER, "a"):
        pool.use(name)
    pool.telemetry.ended(None, Ending.FINISHED)

    page = pool.page()

    assert shown(page) == {"a", OTHER, UNIDENTIFIED}


def stream(
    pool: Pool, name: str, first_token_s: float, whole_s: float, tokens: int = 11, *, inside: bool = True
) -> None:
    """A stream of an entitlement, with its latencies; a first token below 0 never came."""
    account = pool.accounts[name]
    ticket = pool.ledger.reserve(account, ASK, cost(), 0.0)
    ticket.is_guaranteed = inside
    if first_token_s >= 0:
        pool.telemetry.first_token(account, first_token_s, ticket)
    pool.telemetry.stream_ended(ticket, tokens, first_token_s, whole_s)
    pool.ledger.settle(ticket, Usage(1, tokens), Ending.FINISHED, whole_s)


def promised(name: str, tier: Tier = Tier.GUARANTEED) -> Entitlement:
    return replace(entitlement(name, tier), slo=Slo(ttft_ms=300, tpot_ms=40))


def kept(pool: Pool, name: str, tier: Tier, slo: str) -> tuple[float, float]:
    """The streams with this promise, and those that kept it."""
    page, labels = pool.page(), f"entitlement={name},slo={slo},tier={tier.value}"
    return page[f"tokenpool_slo_requests_total{{{labels}}}"], page[f"tokenpool_slo_met_total{{{labels}}}"]


def test_kept_promises_are_counted_at_the_promised_value() -> None:
    pool = Pool(promised("g"))

    stream(pool, "g", 0.3, 0.3 + 10 * 0.04)
    stream(pool, "g", 0.301, 0.301 + 10 * 0.041)

    assert kept(pool, "g", Tier.GUARANTEED, "ttft") == (2, 1)
    assert kept(pool, "g", Tier.GUARANTEED, "tpot") == (2, 1)
    page = pool.page()
    assert page["tokenpool_time_to_first_token_seconds_bucket{entitlement=g,le=0.3}"] == 1
    assert page["tokenpool_time_per_output_token_seconds_bucket{entitlement=g,le=0.04}"] == 1
    assert page["tokenpool_time_per_output_token_seconds_bucket{entitlement=g,le=0.05}"] == 2


def test_the_promises_of_a_changed_pool_file_split_the_buckets_and_keep_the_counts() -> None:
    pool = Pool(entitlement("e"))
    pool.use("e")
    stream(pool, "e", 0.02, 0.12)

    pool.follow(replace(entitlement("e"), slo=Slo(ttft_ms=22)))
    first = "tokenpool_time_to_first_token_seconds_bucket{entitlement=e,le=%s}"
    before = pool.page()
    stream(pool, "e", 0.021, 0.12)
    page = pool.page()

    assert (before[first % 0.022], before[first % 0.025]) == (0, 2)
    assert (page[first % 0.022], page[first % 0.025]) == (1, 3)
    assert pool.telemetry.first_tokens("e")[1][:4] == (0, 0, 3, 0)  # as reported to the coordinators


def test_a_client_that_left_later_than_promised_without_a_token_has_a_broken_promise() -> None:
    pool = Pool(promised("e", Tier.ELASTIC))

    stream(pool, "e", -1.0, 0.2, tokens=0)
    assert not [name for name in pool.page() if name.startswith("tokenpool_slo")]
    stream(pool, "e", -1.0, 0.4, tokens=0)

    assert kept(pool, "e", Tier.ELASTIC, "ttft") == (1, 0)


def test_bursts_beyond_a_guarantee_answers_in_one_piece_and_single_tokens_have_no_promise() -> None:
    pool = Pool(promised("g"), entitlement("e"))
    stream(pool, "g", 9.0, 99.0, inside=False)
    stream(pool, "g", 0.1, 99.0, tokens=1)
    stream(pool, "e", 9.0, 99.0)

    assert kept(pool, "g", Tier.GUARANTEED, "ttft") == (1, 1)
    assert {
        name for name in pool.page() if "slo=tpot" in name or "slo_requests_total{entitlement=e" in name
    } == set()


def test_promises_of_entitlements_without_series_are_added_up_by_tier() -> None:
    pool = Pool(entitlement("a"), promised("e", Tier.ELASTIC), promised("s", Tier.SPOT), most_series=1)
    pool.use("a")
    for name in ("e", "e", "s"):
        stream(pool, name, 0.1, 0.2)

    assert kept(pool, OTHER, Tier.ELASTIC, "ttft") == (2, 2)
    assert kept(pool, OTHER, Tier.SPOT, "tpot") == (1, 1)


USES = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"),
        st.sampled_from(["use", "refuse", "guarantee", "elastic", "gone", "back"]),
    ),
    max_size=40,
)


@given(USES, st.integers(0, 5))
def test_no_counter_ever_goes_backwards(steps: list[tuple[str, str]], most: int) -> None:
    """Except for the label of the tier: a request counts for the current tier of its entitlement."""
    tenants = {name: entitlement(name) for name in "abcdefgh"}
    pool = Pool(*tenants.values(), most_series=most)
    before = pool.page()
    for name, what in steps:
        if what in ("guarantee", "elastic"):
            tenants[name] = entitlement(name, Tier.GUARANTEED if what == "guarantee" else Tier.ELASTIC)
            pool.follow(*(t for t in tenants.values() if t.name in pool.accounts))
        elif what == "gone" and len(pool.accounts) > 1:
            pool.follow(*(t for t in tenants.values() if t.name in pool.accounts and t.name != name))
        elif what == "back":
            pool.follow(*(t for t in tenants.values() if t.name in pool.accounts or t.name == name))
        elif name in pool.accounts and what == "use":
            pool.use(name)
        elif name in pool.accounts:
            pool.telemetry.refused(pool.accounts[name], Reason.CONCURRENCY)
        after = pool.page()
        for series, value in before.items():
            is_counter = series.partition("{")[0].endswith(("_total", "_count", "_bucket"))
            if is_counter and "tier=" not in series:
                assert after.get(series, -1.0) >= value, series
        before = after
    requests = sum(value for series, value in before.items() if series.startswith("tokenpool_requests"))
    assert requests == sum(what in ("use", "refuse") for _, what in steps) - _missed(steps)


def _missed(steps: list[tuple[str, str]]) -> int:
    """Requests of entitlements that were gone, which were not made."""
    there, missed = set("abcdefgh"), 0
    for name, what in steps:
        if what == "gone" and len(there) > 1:
            there.discard(name)
        elif what == "back":
            there.add(name)
        elif what in ("use", "refuse") and name not in there:
            missed += 1
    return missed


def test_no_piece_of_the_page_covers_more_than_a_few_entitlements() -> None:
    tenants = [entitlement(f"t{number}") for number in range(300)]
    pool = Pool(*tenants, most_series=250)
    for tenant in tenants:
        pool.use(tenant.name)

    pieces = list(pool.pieces())

    gauges = 4  # written in slices, and joined once
    long = sorted(piece.count("\n") for piece in pieces)[-gauges - 1]
    assert long <= MOST_LINES
    samples("".join(pieces))


def test_a_page_of_ten_thousand_that_were_used_is_within_four_megabytes() -> None:
    tenants = [entitlement(f"tenant-{number:05}") for number in range(10_000)]
    pool = Pool(*tenants, most_series=400)
    for tenant in tenants:
        pool.use(tenant.name, 12_345)

    size = sum(map(len, pool.pieces()))

    assert 1e6 < size < 4e6


def test_connections_and_bytes_are_shown_under_the_same_names() -> None:
    pool = Pool(*(entitlement(f"t{number}") for number in range(250)), most_series=1)
    bounds = Bounds(1000, 1 << 20, 0.5, 0.25)
    for account in pool.accounts.values():
        bounds.of(account).add_connection(10)

    pieces = list(bounds.pieces(pool.telemetry.label, "chat"))

    page = samples("".join(pieces))
    assert page["tokenpool_connections{entitlement=t0}"] == 1
    assert page[f"tokenpool_connections{{entitlement={OTHER}}}"] == 249
    assert page[f"tokenpool_buffered_bytes{{entitlement={OTHER}}}"] == 2490
    assert page[f"tokenpool_connections{{entitlement={UNIDENTIFIED}}}"] == 0
    assert len(pieces) >= 250 / HOLDERS_PER_PIECE


def test_changes_are_taken_in_the_order_of_the_last_change() -> None:
    changes = Changes(["a", "b"])
    changes.add("c")
    changes.add("a")
    assert list(changes.take()) == ["b", "c", "a"]
    assert list(changes.take()) == []
