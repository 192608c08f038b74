"""A sidecar's side of the books, with the books themselves at the other end."""

from __future__ import annotations

import math

import pytest

from tests.tokenpool.builders import ASK, ROOM, cost, entitlement
from tokenpool.admission import Admit, Shed, admit
from tokenpool.amounts import Amount
from tokenpool.books import Answer, Books, Limit, Message
from tokenpool.cost import Cost, Usage
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.grants import Grants, GrantSettings, Mode
from tokenpool.ledger import Account, Ledger, Ticket
from tokenpool.outcomes import Ending, Reason

SETTINGS = GrantSettings()
OPEN = SETTINGS.lifetime_s
LIMITS = {"a": Limit(1000, 10_000, 4, 1000, assured_kv_tokens=5000, assured_concurrency=2)}
ONE = cost(tokens=100, kv_tokens=112)


class Sidecar:
    """Grants with what a sidecar has besides."""

    def __init__(self, name: str, books: Books, tenant: Entitlement | None = None, count: int = 2) -> None:
        self.books = books
        self.grants = Grants(name, SETTINGS, count)
        self.ledger = Ledger()
        self.account = Account(tenant or entitlement(), Pricing(), 0.0)
        self.grants.follow({"a": self.account}, 0.0)
        self.grants.learn(LIMITS, 0.0)
        self.sent: Message | None = None

    def send(self, now: float, *, whole: bool = True) -> Message:
        message = self.grants.message(now, is_complete=whole)
        assert message is not None
        return message

    def speak(self, now: float, *, whole: bool = True) -> Answer:
        answer = self.books.exchange(self.send(now, whole=whole), now)
        self.grants.answered(answer, now)
        return answer

    def admit(self, now: float, price: Cost = ONE) -> Ticket | Shed:
        decision = admit(self.ledger, self.account, ASK, price, ROOM, now)
        return decision.ticket if isinstance(decision, Admit) else decision

    def settle(self, ticket: Ticket, now: float) -> None:
        self.ledger.settle(ticket, Usage(50, 50), Ending.FINISHED, now)


@pytest.fixture
def books() -> Books:
    made = Books(0.0, SETTINGS.lifetime_s)
    made.publish(LIMITS, 1, 0.0)
    return made


def joined(books: Books, name: str = "s1", tenant: Entitlement | None = None) -> Sidecar:
    made = Sidecar(name, books, tenant)
    made.speak(0.1)
    made.speak(OPEN)
    assert made.grants.mode is Mode.JOINED
    return made


def test_while_books_are_closed_a_sidecar_lives_on_its_share(books: Books) -> None:
    made = Sidecar("s1", books)
    made.speak(0.1)
    assert made.grants.mode is Mode.JOINING
    # The books have heard nobody else yet, but there may be two.
    assert made.account.limit.concurrency == 2
    made.grants.sidecars = 3
    made.grants.learn(LIMITS, 0.2)
    assert made.account.limit.concurrency == 2  # ceil(4 / 3)
    assert made.grants.covers(made.account, ONE, 0.2)


def test_a_newcomer_holds_nothing_until_the_books_answer_or_fail(books: Books) -> None:
    made = Sidecar("s1", books)
    assert not made.grants.covers(made.account, ONE, 0.0)
    decided: list[Ticket | Shed] = []
    assert made.grants.wait(made.account, ONE, 0.0, lambda: decided.append(made.admit(0.1)))
    made.send(0.0)
    made.grants.failed(0.1)
    assert made.grants.mode is Mode.CUT_OFF
    assert isinstance(decided[0], Ticket)


def test_books_that_are_back_empty_do_not_unteach_limits(books: Books) -> None:
    made = joined(books)
    made.grants.learn({}, OPEN)
    made.send(OPEN)
    made.grants.failed(OPEN + 2)
    assert made.grants.covers(made.account, ONE, OPEN + 2)
    assert made.account.limit.concurrency == 4  # one sidecar: its share is all of it


def test_while_books_are_closed_again_shares_stay_those_of_all_sidecars(books: Books) -> None:
    made = joined(books)
    made.grants.sidecars = 20
    empty = Books(OPEN, SETTINGS.lifetime_s)
    made.grants.answered(empty.exchange(made.send(OPEN), OPEN), OPEN)
    assert made.grants.mode is Mode.JOINING
    assert made.grants.sidecars == 20
    assert made.account.limit.concurrency == 1


def test_a_share_of_a_guarantee_leaves_room_for_uneven_spread_and_no_more(books: Books) -> None:
    guarantee = Amount(1000, 5000, 4)
    made = joined(books, tenant=entitlement(tier=Tier.GUARANTEED, guarantee=guarantee))
    made.grants.sidecars = 20
    made.send(OPEN)
    made.grants.failed(OPEN + 2)
    assert made.grants.covers(made.account, ONE, OPEN + 2)
    # 4 / 20 on average, and three standard deviations: not the whole guarantee twenty times.
    assert made.account.limit.concurrency == made.account.assured.concurrency == 2
    assert made.account.limit.tokens_per_second == 500
    assert made.account.limit.kv_tokens == 2500


def test_once_joined_an_idle_entitlement_holds_nothing_and_borrows(books: Books) -> None:
    made = joined(books)
    assert made.account.limit.concurrency == 0
    assert not made.grants.covers(made.account, ONE, OPEN)
    decided: list[Ticket | Shed] = []
    assert made.grants.wait(made.account, ONE, OPEN, lambda: decided.append(made.admit(OPEN)))
    made.speak(OPEN + 0.001, whole=False)
    assert isinstance(decided[0], Ticket)
    assert made.grants.borrows == 1


def test_what_a_steady_demand_needs_is_held_ahead(books: Books) -> None:
    made = joined(books)
    made.grants.wait(made.account, ONE, OPEN, lambda: made.admit(OPEN))
    made.speak(OPEN, whole=False)
    made.speak(OPEN + 0.25)
    assert made.account.limit.concurrency >= 2
    assert made.grants.covers(made.account, ONE, OPEN + 0.25)


def test_a_load_that_has_just_begun_asks_for_more_each_time_but_for_no_more_than_there_is(
    books: Books,
) -> None:
    made = joined(books)
    small = cost(tokens=20, kv_tokens=16)
    asked = []
    for number in range(40):
        now = OPEN + 0.001 * number
        if not made.grants.covers(made.account, small, now):
            assert made.grants.wait(made.account, small, now, lambda: None)
            said = made.send(now, whole=False)
            asked.append(said.holdings["a"].tokens_wanted)
            answer = books.exchange(said, now)
            assert not answer.grants["a"].is_contended
            made.grants.answered(answer, now)
        ticket = made.admit(now, small)
        assert isinstance(ticket, Ticket)
        made.ledger.settle(ticket, Usage(10, 10), Ending.FINISHED, now)
    assert len(asked) < 12  # forty, one by one
    assert asked == sorted(asked)


def test_requests_that_wait_are_told_when_there_is_nothing_in_time(books: Books) -> None:
    other, made = joined(books, "s2"), joined(books)
    for _ in range(4):
        other.grants.wait(other.account, ONE, OPEN, lambda: other.admit(OPEN))
    other.speak(OPEN, whole=False)
    other.speak(OPEN)
    assert other.account.concurrency_in_use == 4
    decided: list[Ticket | Shed] = []
    made.grants.wait(made.account, ONE, OPEN, lambda: decided.append(made.admit(OPEN)))
    made.speak(OPEN + 0.001, whole=False)
    assert decided == []
    assert made.grants.looks_at() <= OPEN + 0.01
    made.grants.look(OPEN + 0.02)
    shed = decided[0]
    assert isinstance(shed, Shed)
    assert (shed.reason, shed.limit, shed.in_use) == (Reason.CONCURRENCY, 4, 4)  # of the whole pool


def test_a_recall_returns_what_is_not_in_use_and_frees_the_asker(books: Books) -> None:
    other, made = joined(books, "s2"), joined(books)
    for _ in range(3):
        other.grants.wait(other.account, ONE, OPEN, lambda: other.admit(OPEN))
    other.speak(OPEN, whole=False)
    other.speak(OPEN + 0.1)
    assert other.account.limit.concurrency == 4
    books.pushes.clear()
    decided: list[Ticket | Shed] = []
    made.grants.wait(made.account, ONE, OPEN, lambda: decided.append(made.admit(OPEN + 0.1)))
    made.speak(OPEN + 0.1, whole=False)
    (recall,) = books.pushes
    assert other.grants.recalled(recall.entitlement, OPEN + 0.1)
    other.speak(OPEN + 0.1, whole=False)
    assert other.account.limit.concurrency == 3
    assert made.grants.freed("a")
    made.speak(OPEN + 0.1, whole=False)
    assert isinstance(decided[0], Ticket)


def test_what_is_no_longer_asked_for_is_given_up_before_the_message_leaves(books: Books) -> None:
    made = joined(books)
    made.grants.wait(made.account, ONE, OPEN, lambda: made.admit(OPEN))
    made.speak(OPEN, whole=False)
    made.speak(OPEN + 0.1)
    held = made.account.limit.concurrency
    made.grants.recalled("a", OPEN + 0.2)
    made.send(OPEN + 0.2, whole=False)
    assert made.account.limit.concurrency == 1 < held
    made.grants.failed(OPEN + 0.3)  # whether it was heard or not


def test_grants_expire_earlier_here_than_in_the_books(books: Books) -> None:
    made = joined(books)
    made.grants.wait(made.account, ONE, OPEN, lambda: made.admit(OPEN))
    made.speak(OPEN, whole=False)
    late = OPEN + SETTINGS.lifetime_s * 0.85
    assert not made.grants.covers(made.account, ONE, late)
    assert made.grants.mode is Mode.EXPIRED
    assert made.account.limit.concurrency == 0
    page = books.page("a", late)
    assert page is not None
    assert page.held.concurrency >= 1


def test_without_answers_a_sidecar_goes_on_with_what_it_holds_then_with_its_share(books: Books) -> None:
    made, _ = joined(books), joined(books, "s2")
    made.speak(OPEN)
    made.send(OPEN + 0.1)
    made.grants.failed(OPEN + 0.6)
    assert made.grants.mode is Mode.JOINED
    assert made.grants.wait(made.account, ONE, OPEN + 0.6, lambda: None) is None  # the circuit is open
    assert made.grants.covers(made.account, ONE, OPEN + 5)
    assert made.grants.mode is Mode.CUT_OFF
    assert made.account.limit.concurrency == 2  # 4 / 2 sidecars
    made.speak(OPEN + 5)
    assert made.grants.mode is Mode.JOINING  # nobody had written for a lifetime
    made.speak(OPEN + 5.8)
    made.speak(OPEN + 5 + SETTINGS.lifetime_s)
    assert made.grants.mode is Mode.JOINED


def test_those_who_wait_are_decided_when_the_books_fail(books: Books) -> None:
    made = joined(books)
    decided: list[Ticket | Shed] = []
    made.grants.wait(made.account, ONE, OPEN, lambda: decided.append(made.admit(OPEN)))
    made.send(OPEN, whole=False)
    made.grants.failed(OPEN + 0.5)
    assert len(decided) == 1


def test_a_request_inside_a_guarantee_is_let_in_when_the_books_have_just_failed(books: Books) -> None:
    tenant = entitlement(
        tier=Tier.GUARANTEED, guarantee=Amount(1000, 5000, 3), ceiling=Amount(math.inf, math.inf, 4)
    )
    made = joined(books, tenant=tenant)
    made.send(OPEN)
    made.grants.failed(OPEN + 0.1)
    for _ in range(3):
        if not made.grants.covers(made.account, ONE, OPEN + 0.1):
            assert made.grants.wait(made.account, ONE, OPEN + 0.1, lambda: None) is None
        assert isinstance(made.admit(OPEN + 0.1), Ticket)
    made.grants.wait(made.account, ONE, OPEN + 0.1, lambda: None)
    assert isinstance(made.admit(OPEN + 0.1), Shed)  # beyond it


def test_spending_is_stated_in_total_and_a_refund_can_be_spent_again(books: Books) -> None:
    made = joined(books)
    tickets: list[Ticket | Shed] = []
    made.grants.wait(made.account, ONE, OPEN, lambda: tickets.append(made.admit(OPEN)))
    made.speak(OPEN, whole=False)
    assert made.account.bucket.level == pytest.approx(0)
    ticket = tickets[0]
    assert isinstance(ticket, Ticket)
    made.ledger.settle(ticket, Usage(10, 10), Ending.FINISHED, OPEN)
    assert made.account.bucket.level == pytest.approx(80)
    made.speak(OPEN)
    page = books.page("a", OPEN)
    assert page is not None
    assert page.level == pytest.approx(980)


def test_a_gone_client_waits_no_longer(books: Books) -> None:
    made = joined(books)
    waiter = made.grants.wait(made.account, ONE, OPEN, lambda: pytest.fail("nobody is there"))
    assert waiter is not None
    made.grants.give_up(waiter)
    made.speak(OPEN)
    made.grants.look(OPEN + 1)


def test_after_refusals_in_a_row_requests_stop_waiting_for_a_while(books: Books) -> None:
    other, made = joined(books, "s2"), joined(books)
    for _ in range(4):
        other.grants.wait(other.account, ONE, OPEN, lambda: other.admit(OPEN))
    other.speak(OPEN, whole=False)
    now = OPEN
    for _ in range(3):
        assert made.grants.wait(made.account, ONE, now, lambda: None)
        now += 0.02
        made.grants.look(now)
    assert made.grants.wait(made.account, ONE, now, lambda: None) is None
    assert not made.grants.freed("a")
    assert made.grants.wait(made.account, ONE, now, lambda: None)


def test_an_entitlement_that_has_said_its_last_is_not_named_again(books: Books) -> None:
    made = joined(books)
    tickets: list[Ticket | Shed] = []
    made.grants.wait(made.account, ONE, OPEN, lambda: tickets.append(made.admit(OPEN)))
    made.speak(OPEN, whole=False)
    ticket = tickets[0]
    assert isinstance(ticket, Ticket)
    made.settle(ticket, OPEN + 0.1)
    now = OPEN + 0.2
    for _ in range(40):
        made.speak(now)
        now += 0.25
    assert made.send(now).holdings == {}


def test_spot_lives_on_free_room_when_it_is_cut_off(books: Books) -> None:
    made = joined(books, tenant=entitlement(tier=Tier.SPOT))
    made.send(OPEN)
    made.grants.failed(OPEN + 2)
    assert made.grants.covers(made.account, ONE, OPEN + 2)
    assert made.account.assured == Amount()
    for _ in range(8):
        assert isinstance(made.admit(OPEN + 2.01), Ticket)
    shed = made.admit(OPEN + 2.01)
    assert isinstance(shed, Shed)
    assert shed.reason is Reason.ENGINE_FULL


def test_a_farewell_tells_what_was_spent_and_returns_everything(books: Books) -> None:
    made = joined(books)
    tickets: list[Ticket | Shed] = []
    made.grants.wait(made.account, ONE, OPEN, lambda: tickets.append(made.admit(OPEN)))
    made.speak(OPEN, whole=False)
    assert isinstance(tickets[0], Ticket)
    made.settle(tickets[0], OPEN)
    books.exchange(made.grants.farewell(), OPEN)
    page = books.page("a", OPEN)
    assert page is not None
    assert page.held == Amount()
    assert page.level == pytest.approx(900)


def test_who_slept_while_a_request_waited_asks_again_before_it_decides(books: Books) -> None:
    made = joined(books)
    running: list[Ticket | Shed] = []
    for _ in range(4):
        made.grants.wait(made.account, ONE, OPEN, lambda: running.append(made.admit(OPEN)))
    made.speak(OPEN, whole=False)
    decided: list[Ticket | Shed] = []
    made.grants.wait(made.account, ONE, OPEN, lambda: decided.append(made.admit(OPEN + 2)))
    first = running[0]
    assert isinstance(first, Ticket)
    made.settle(first, OPEN + 2)
    made.grants.look(OPEN + 2)
    assert made.grants.mode is Mode.EXPIRED
    assert decided == []
    assert made.grants.looks_at() == pytest.approx(OPEN + 2 + SETTINGS.borrow_s)
    made.grants.look(OPEN + 2.5)
    assert isinstance(decided[0], Shed)


def test_a_short_wait_behind_a_long_one_is_short(books: Books) -> None:
    guaranteed = entitlement(tier=Tier.GUARANTEED, guarantee=Amount(1000, 5000, 1))
    other, made = joined(books, "s2"), joined(books, tenant=guaranteed)
    for _ in range(4):
        other.grants.wait(other.account, ONE, OPEN, lambda: other.admit(OPEN))
    other.speak(OPEN, whole=False)
    decided: list[str] = []
    made.grants.wait(made.account, ONE, OPEN, lambda: decided.append("inside"))
    made.grants.wait(made.account, cost(kv_tokens=6000), OPEN, lambda: decided.append("beyond"))
    assert made.grants.looks_at() == pytest.approx(OPEN + SETTINGS.borrow_s)
    made.grants.look(OPEN + 0.02)
    assert decided == ["beyond"]


def test_a_request_inside_a_guarantee_waits_though_bursts_were_refused(books: Books) -> None:
    guaranteed = entitlement(tier=Tier.GUARANTEED, guarantee=Amount(1000, 5000, 1))
    made = joined(books, tenant=guaranteed)
    now = OPEN
    for _ in range(3):
        made.grants.wait(made.account, cost(kv_tokens=6000), now, lambda: None)
        now += 0.02
        made.grants.look(now)
    assert made.grants.wait(made.account, cost(kv_tokens=6000), now, lambda: None) is None
    assert made.grants.wait(made.account, ONE, now, lambda: None) is not None


def test_who_is_decided_may_bring_the_next_request_at_once(books: Books) -> None:
    made = joined(books)
    second = Account(entitlement("b"), Pricing(), 0.0)
    made.grants.follow({"a": made.account, "b": second}, OPEN)
    waits: list[object] = []
    made.grants.wait(
        made.account,
        ONE,
        OPEN,
        lambda: waits.append(made.grants.wait(second, ONE, OPEN + 0.02, lambda: None)),
    )
    made.grants.look(OPEN + 0.02)
    assert waits[0] is not None


def test_a_sidecar_that_slept_does_not_take_the_books_for_slow(books: Books) -> None:
    made = joined(books)
    message = made.send(OPEN)
    late = OPEN + 4
    made.grants.answered(books.exchange(message, OPEN), late)
    assert made.grants.mode is Mode.EXPIRED
    assert made.grants.wait(made.account, ONE, late, lambda: None) is not None
