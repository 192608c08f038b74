"""Shadow mode: requests run at once, and the decisions are those of an enforced entitlement."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.account import Account
from tokenpool.accounting.shadow import Shadow
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.amounts import NOTHING, Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.entitlements import Pricing, Quota, Slo, Tier, Window
from tokenpool.leases.leases import Leases
from tokenpool.leases.settings import LeaseSettings
from tokenpool.outcomes import Decision, Ending, Reason, Verdict
from tokenpool.pricing.cost import Usage
from tokenpool.quotas.messages import Scope
from tokenpool.quotas.quotas import Quotas

SPENT = Usage(50, 50)
NO_WAITS = QueueSettings(guaranteed_s=0.0, elastic_s=0.0, spot_s=0.0)
FOUR = Amount(1e6, 1e6, 4)
ADMIT = Verdict(Decision.ADMIT)


def control_of(slots: float, queue: QueueSettings = NO_WAITS) -> AdmissionControl:
    made = AdmissionControl(0.0, AdmissionQueue(queue))
    made.engine_changed(EngineRoom(slots, 1e6, proven_slots=slots), 0.0)
    return made


def shadow_of(tenant: Account) -> Shadow:
    assert tenant.shadow is not None
    return tenant.shadow


def sent(
    control: AdmissionControl, tenant: Account, now: float = 0.0, refusal: Reason | None = None
) -> Ticket:
    return control.offer_shadow(tenant, shadow_of(tenant), ASK, cost(), now, refusal=refusal)


def tenant_of(limit: Amount = FOUR, name: str = "a", **values: object) -> Account:
    return account(limit, name=name, enforce=False, **values)  # type: ignore[arg-type]


def test_a_request_beyond_the_limit_runs_and_is_surplus() -> None:
    control, tenant = control_of(64), tenant_of(ceiling=FOUR)

    tickets = [sent(control, tenant) for _ in range(6)]

    shed = Verdict(Decision.SHED, Reason.CONCURRENCY)
    assert [each.verdict for each in tickets] == [ADMIT] * 4 + [shed] * 2
    assert shadow_of(tenant).decisions == {ADMIT: 4, shed: 2}
    ledger = control.ledger
    assert (tenant.concurrency_in_use, shadow_of(tenant).concurrency_in_use) == (4, 2)
    assert (ledger.concurrency_in_use, ledger.surplus_concurrency) == (4, 2)
    assert (tenant.meter.spent, shadow_of(tenant).spent, ledger.spent) == (400.0, 200.0, 400.0)
    assert not control.has_effects


def test_all_requests_count_as_demand_and_teach_the_prices() -> None:
    control, tenant = control_of(64), tenant_of(ceiling=FOUR)
    tickets = [sent(control, tenant) for _ in range(40)]
    for each in tickets:
        control.settle(each, SPENT, Ending.FINISHED, 1.0)

    asked = tenant.report(1.0).demand

    enforced = account(FOUR, ceiling=FOUR)
    for _ in range(40):
        enforced.meter.offer(cost())
    for _ in range(40):
        enforced.meter.residence.observe(1.0)
    assert asked == enforced.report(1.0).demand
    assert tenant.pricer.overall.output.value != account(FOUR).pricer.overall.output.value


def test_the_surplus_of_a_shadow_entitlement_takes_no_room_from_an_enforced_one() -> None:
    control, tenant, other = control_of(8), tenant_of(ceiling=FOUR), account(Amount(1e6, 1e6, 8), name="b")
    for _ in range(20):
        sent(control, tenant)

    outcomes = [control.offer(other, ASK, cost(), 0.0) for _ in range(5)]

    assert [isinstance(each, Ticket) for each in outcomes] == [True] * 4 + [False]
    assert isinstance(outcomes[4], Shed)
    assert outcomes[4].reason is Reason.ENGINE_FULL


def test_the_stated_room_counts_surplus() -> None:
    control, tenant = control_of(8), tenant_of(ceiling=FOUR)
    control.is_serving = True
    for _ in range(6):
        sent(control, tenant)

    assert control.stated_room().sequences == 2


def test_a_request_that_would_wait_is_sent_at_once() -> None:
    control = control_of(4, QueueSettings())
    tenant = tenant_of(Amount(1e6, 1e6, 60))
    control.ledger.residence.observe(0.2)

    tickets = [sent(control, tenant) for _ in range(60)]

    decisions = Counter(each.verdict.decision for each in tickets if each.verdict is not None)
    assert tickets[4].verdict == Verdict(Decision.QUEUE, Reason.ENGINE_FULL)
    assert decisions[Decision.ADMIT] == 4
    assert 0 < decisions[Decision.QUEUE] < 56
    assert tickets[-1].verdict == Verdict(Decision.SHED, Reason.ENGINE_FULL)
    assert not control.has_waiting


@pytest.mark.parametrize("name", ["spot", "guaranteed"])
def test_nothing_ends_for_a_shadow_request_and_no_shadow_request_ends_for_another(name: str) -> None:
    gold = {"guarantee": Amount(100, 1e5, 8), "tier": Tier.GUARANTEED, "assured": FOUR}
    control = control_of(2)
    low = account(FOUR, name="s", tier=Tier.SPOT, enforce=name != "spot")
    high = account(FOUR, name="g", enforce=name != "guaranteed", **gold)  # type: ignore[arg-type]
    for tenant in (low, low, high):
        if tenant.shadow is not None:
            sent(control, tenant)
        else:
            assert isinstance(control.offer(tenant, ASK, cost(), 0.0), Ticket)

    assert control.take_effects().to_end == []


def test_late_first_tokens_of_shadow_streams_reserve_no_slots() -> None:
    control = control_of(16)
    tenant = tenant_of(
        Amount(1e6, 1e6, 8),
        tier=Tier.GUARANTEED,
        guarantee=Amount(100, 1e5, 8),
        assured=Amount(100, 1e5, 8),
        slo=Slo(ttft_ms=10),
    )
    for _ in range(200):
        ticket = sent(control, tenant)
        assert ticket.is_guaranteed
        control.first_token(ticket, 5.0)
        control.settle(ticket, SPENT, Ending.FINISHED, 1.0)

    assert control.slots_to_reserve(16, 1e3) == 0


def test_a_request_that_would_be_refused_for_another_reason_is_surplus() -> None:
    control, tenant = control_of(64), tenant_of()

    ticket = sent(control, tenant, refusal=Reason.MODEL_NOT_PERMITTED)
    never = control.offer_shadow(tenant, shadow_of(tenant), ASK, cost(sequences=65), 0.0)

    assert ticket.verdict == Verdict(Decision.REFUSE, Reason.MODEL_NOT_PERMITTED)
    assert never.verdict == Verdict(Decision.SHED, Reason.NEVER_FITS)
    assert (tenant.concurrency_in_use, control.ledger.surplus_concurrency) == (0, 66)


def test_a_limit_without_contention_does_not_bind_in_shadow_mode_either() -> None:
    control, tenant = control_of(64), tenant_of(Amount(1e6, 1e6, 1))

    tickets = [sent(control, tenant) for _ in range(8)]

    assert {each.verdict for each in tickets} == {ADMIT}
    assert tickets[-1].uses_free_capacity


def test_surplus_ends_on_the_record_on_which_it_began() -> None:
    """The entitlement is enforced while its surplus runs."""
    control, tenant = control_of(64), tenant_of(ceiling=Amount(1e6, 1e6, 0.5))
    ticket, shadow = sent(control, tenant), shadow_of(tenant)
    control.ledger.reconfigure(tenant, account(FOUR, name="a").entitlement, Pricing())
    assert tenant.shadow is None

    control.settle(ticket, SPENT, Ending.FINISHED, 1.0)

    assert (shadow.concurrency_in_use, shadow.kv_in_use, control.ledger.surplus_concurrency) == (0, 0, 0)
    assert (tenant.concurrency_in_use, tenant.meter.spent) == (0, 0.0)


def test_a_shadow_request_does_not_wait_for_a_lease() -> None:
    queue = AdmissionQueue(QueueSettings())
    leases = Leases(LeaseSettings(1.5, 0.25), 1, queue)
    control = AdmissionControl(0.0, queue, leases=leases)
    control.engine_changed(EngineRoom(8, 1e6, proven_slots=8), 0.0)
    tenant = Account(tenant_of().entitlement, Pricing(), 0.0)
    leases.follow({"a": tenant}, 0.0)
    assert isinstance(control.offer(account(name="b"), ASK, cost(), 0.0), Ticket | PendingRequest)

    tickets = [sent(control, tenant) for _ in range(3)]

    assert {each.verdict for each in tickets} == {ADMIT}  # nothing is known yet
    assert not queue.waiting_for_lease("a")


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_quota_refuses_no_shadow_request_and_counts_only_those_that_it_would_cover(
    *, is_alone: bool
) -> None:
    """With a lease store, the request does not wait for a portion."""
    control, tenant = control_of(64), tenant_of(ceiling=FOUR)
    quotas = Quotas("s1", 1.5, 0.0, is_alone=is_alone)
    (budget,) = budgets = quotas.of(Scope.ENTITLEMENT, "a", (Quota(250, Window.DAY),))
    control.follow_quotas(quotas)

    def offered(*, sequences: int = 1) -> Ticket:
        price = cost(sequences=sequences)
        return control.offer_shadow(tenant, shadow_of(tenant), ASK, price, 0.0, budgets=budgets)

    covered = [offered(), offered()]
    for each in covered:
        control.settle(each, SPENT, Ending.FINISHED, 1.0)
    beyond = offered()
    assert (budget.settled, budget.held) == (200.0, 0.0)
    control.settle(beyond, SPENT, Ending.FINISHED, 1.0)

    assert [each.verdict for each in covered] == [ADMIT, ADMIT]
    assert beyond.verdict == Verdict(Decision.SHED, Reason.INSUFFICIENT_QUOTA)
    assert (budget.settled, budget.held) == (200.0, 0.0)
    assert not control.has_waiting
    assert quotas.is_due is not is_alone


def test_a_request_beyond_its_limit_spends_no_quota() -> None:
    control, tenant = control_of(64), tenant_of(ceiling=FOUR)
    quotas = Quotas("s1", 1.5, 0.0, is_alone=True)
    (budget,) = budgets = quotas.of(Scope.ENTITLEMENT, "a", (Quota(1e6, Window.DAY),))
    control.follow_quotas(quotas)

    tickets = [
        control.offer_shadow(tenant, shadow_of(tenant), ASK, cost(), 0.0, budgets=budgets) for _ in range(6)
    ]

    assert budget.held == 400.0
    assert [each.hold is not None for each in tickets] == [True] * 4 + [False] * 2


# --- the decisions are those of an enforced entitlement ---


@dataclass
class Run:
    """One entitlement at a lone sidecar: requests arrive, and each one takes ``service_s`` seconds."""

    enforce: bool
    service_s: float = 1.0
    control: AdmissionControl = field(default_factory=lambda: control_of(64))
    running: list[tuple[float, Ticket]] = field(default_factory=list)
    admitted: int = 0

    def __post_init__(self) -> None:
        self.tenant = account(FOUR, enforce=self.enforce, ceiling=FOUR)

    def step(self, now: float) -> None:
        """The requests that are over end, and one arrives."""
        for end, ticket in [each for each in self.running if each[0] <= now]:
            self.running.remove((end, ticket))
            self.control.settle(ticket, SPENT, Ending.FINISHED, end)
        if self.enforce:
            made = self.control.offer(self.tenant, ASK, cost(), now)
        else:
            made = sent(self.control, self.tenant, now)
        if isinstance(made, Ticket):
            self.running.append((now + self.service_s, made))
            self.admitted += made.surplus is None


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=80))
def test_without_waits_the_same_requests_would_be_admitted(gaps: list[float]) -> None:
    real, shadow, now = Run(enforce=True), Run(enforce=False), 0.0
    for gap in gaps:
        now += gap
        real.step(now)
        shadow.step(now)
        assert shadow.admitted == real.admitted
        assert shadow.tenant.concurrency_in_use == real.tenant.concurrency_in_use
        assert shadow.tenant.meter.spent == real.tenant.meter.spent
        assert shadow.tenant.bucket.level == real.tenant.bucket.level
    demand = shadow.tenant.report(now).demand.values()
    assert real.tenant.report(now).demand.values() == pytest.approx(demand)


@given(
    st.lists(st.tuples(st.floats(0.0, 0.2), st.booleans(), st.integers(1, 3)), min_size=1, max_size=60),
    st.floats(0.0, 2.0),
)
def test_no_request_waits_and_no_state_remains(
    steps: list[tuple[float, bool, int]], longest_s: float
) -> None:
    control = control_of(4, QueueSettings(longest_s, longest_s, longest_s))
    tenant, now = tenant_of(Amount(1000, 1e4, 4)), 0.0
    running: list[Ticket] = []
    for gap, ends, sequences in steps:
        now += gap
        made = control.offer_shadow(tenant, shadow_of(tenant), ASK, cost(sequences=sequences), now)
        running.append(made)
        if ends:
            control.settle(running.pop(0), SPENT, Ending.FINISHED, now)
        assert not control.has_waiting
        assert not control.has_effects
    for ticket in running:
        control.settle(ticket, SPENT, Ending.CLIENT_GONE, now)
    ledger, shadow = control.ledger, shadow_of(tenant)
    assert (ledger.concurrency_in_use, ledger.kv_in_use) == (0, 0)
    assert (ledger.surplus_concurrency, ledger.surplus_kv) == (0, 0)
    assert (tenant.concurrency_in_use, shadow.concurrency_in_use, shadow.kv_in_use) == (0, 0, 0)
    assert tenant.free_used == NOTHING
    assert sum(shadow.decisions.values()) == len(steps)


def test_in_lasting_overload_the_rate_of_decisions_is_that_of_the_limit() -> None:
    """Six times the limit's rate arrives for a minute, with a queue of one second."""
    made = Run(enforce=False, control=control_of(64, QueueSettings()))
    for number in range(60 * 24):
        made.step(number / 24)

    assert made.admitted / 60 == pytest.approx(4.0, rel=0.15)


def test_requests_that_would_wait_get_room_one_after_the_other() -> None:
    shadow = Shadow()

    waits = [shadow.waits(Reason.CONCURRENCY, 0.3, 1.0, 0.0) for _ in range(5)]

    assert waits == [True, True, True, False, False]
    assert shadow.waits(Reason.CONCURRENCY, 0.3, 1.0, 0.5)
    assert not Shadow().waits(Reason.CONCURRENCY, 0.0, 0.0, 0.0)
    assert Shadow().waits(Reason.TOKENS_PER_SECOND, 0.9, 1.0, 0.0)
    assert not Shadow().waits(Reason.TOKENS_PER_SECOND, 1.1, 1.0, 0.0)
