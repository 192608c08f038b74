"""All budgets of one sidecar: they cover requests, and lease portions from the lease store. Pure.

A sidecar states what it has spent and asks for a *portion*. It spends at most its portion. Most requests are
covered without a message, because the portion also covers the expected requests of the next seconds. A
sidecar without a lease store has the whole quota as its portion.

While the store does not answer for a lifetime, or does not know all earlier spending, sidecars spend their
portions, and then a reserve. The reserve is the tokens that were free at the last answer, divided by twice
the number of sidecars. A budget that was not stated shortly before has no reserve: its number is out of date.

``now`` is in seconds of the sidecar's monotonic clock. Windows begin by the store's clock: each answer has
the store's time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from tokenpool.entitlements import Quota
from tokenpool.quotas.budget import Budget, Exhausted, QuotaHold
from tokenpool.quotas.messages import BudgetId, QuotaAnswer, QuotaMessage, QuotaRequest, Scope, budget_id

AHEAD_S: Final = 2.0
"""The portion covers the expected requests of this time, in seconds."""
AHEAD_REQUESTS: Final = 4
"""It covers at least this number of typical requests. With 1 of them, an eighth of the simulated requests
waited for a message. With 4, one in 60 waited, and nearly all of these at the start of the store."""
RATE_MEMORY_S: Final = 2.0
"""Time constant of the mean rate of spending, in seconds."""
SHORT_S: Final = 0.25
"""After a refusal, the time in seconds for which a budget refuses without asking the store again."""
FINAL_S: Final = 5.0
"""After an answer, the time in seconds for which the spending that it states refuses larger requests. Such a
request would take the rest of the quota as its portion for nothing, and smaller ones could not use it."""
LIFETIME_SHARE: Final = 0.9
"""Portions expire here after this part of their lifetime in the store."""
MOST_ROWS: Final = 250
"""The most budgets in one message: they take about 6 ms of Redis. The next message has the others."""
NO_RATE: Final = 0.01
"""A lower rate of spending, in tokens per second, is none."""


class Crossed(NamedTuple):
    """The spending of a budget has reached a level, in percent. One sidecar of the pool reports it."""

    budget: BudgetId
    level: int
    tokens: float
    """The quota."""
    spent: float
    resets_at: float
    """The end of the window, in epoch seconds."""


class Quotas:
    """The budgets of one sidecar."""

    __slots__ = (
        "_active",
        "_has_spent",
        "_heard_at",
        "_lifetime_s",
        "_number",
        "_offset",
        "_sent",
        "_since",
        "_since_at",
        "_ticked_at",
        "budgets",
        "failures",
        "holder",
        "is_alone",
        "is_due",
        "sent_at",
    )

    def __init__(
        self, holder: str, lifetime_s: float, epoch_offset: float, *, is_alone: bool = False
    ) -> None:
        """``epoch_offset`` is the epoch time less the monotonic time, by the clocks here.

        The answers of a lease store correct it. ``is_alone``: there is no lease store.
        """
        self.holder = holder
        self.is_alone = is_alone
        self.budgets: dict[str, Budget] = {}
        """The budgets in force, by key."""
        self.is_due = False
        """Whether a request waits for a message, or a portion runs out."""
        self.failures = 0
        """Messages that failed since the last answer."""
        self._lifetime_s = lifetime_s
        self._offset = epoch_offset
        self._active: dict[str, Budget] = {}
        """Budgets with something to state, to spend or to return."""
        self._number = 0
        self._since = 0.0
        self._since_at = -math.inf
        """When an answer of another store came first, by the sidecar's clock."""
        self._has_spent = False
        """Whether a request has held tokens since the start."""
        self._sent: QuotaMessage | None = None
        """The message in flight."""
        self.sent_at = 0.0
        """The time of that message, or of the last one."""
        self._heard_at = -math.inf
        """The time of sending of the last answered message."""
        self._ticked_at = -1.0

    def epoch(self, now: float) -> float:
        """The time in epoch seconds, by the clock of the lease store as last known."""
        return now + self._offset

    def is_cut_off(self, now: float) -> bool:
        """Whether the lease store has not answered for the lifetime of portions."""
        return self.failures > 0 and now - self._heard_at > self._lifetime_s * LIFETIME_SHARE

    # --- the pool file ---

    def of(self, scope: Scope, name: str, quotas: tuple[Quota, ...]) -> tuple[Budget, ...]:
        """The budgets of the quotas of one scope. A known budget keeps what it has spent."""
        found: list[Budget] = []
        for quota in quotas:
            identity = budget_id(scope, name, quota)
            budget = self.budgets.get(identity.key)
            if budget is None:
                budget = self.budgets[identity.key] = Budget(identity, quota)
            elif budget.quota != quota:
                budget.reconfigure(quota)
            found.append(budget)
        return tuple(found)

    def keep_only(self, budgets: Iterable[Budget]) -> None:
        """Forget all other budgets. Their running requests settle without effect."""
        self.budgets = {budget.key: budget for budget in budgets}
        for key, each in list(self._active.items()):
            if self.budgets.get(key) is not each:
                self._deactivate(each)

    def _activate(self, budget: Budget) -> None:
        """A budget has something to state, to spend or to return. One that is forgotten has nothing."""
        if not budget.is_active and self.budgets.get(budget.key) is budget:
            budget.is_active = True
            self._active[budget.key] = budget

    def _deactivate(self, budget: Budget) -> None:
        budget.is_active = False
        del self._active[budget.key]

    def forget_ended(self, budgets: Iterable[Budget]) -> bool:
        """Forget these budgets if no request uses one, and their windows ended before the last tick.

        Returns whether they are forgotten.
        """
        epoch = self.epoch(self._ticked_at)
        if any(each.key in self._active or not each.is_outside(epoch) for each in budgets):
            return False
        for each in budgets:
            self.budgets.pop(each.key, None)
        return True

    # --- requests ---

    def cover(self, budgets: tuple[Budget, ...], tokens: float, now: float) -> QuotaHold | Exhausted | None:
        """Hold the tokens of a request, or refuse it. ``None``: it must wait for a larger portion."""
        waits = False
        for budget in budgets:
            self._refresh(budget, now)
            if not budget.covers(tokens) or budget.waiting:
                is_final = now < budget.answered_at + FINAL_S and budget.never_covers(tokens)
                if self.is_alone or now < budget.short_until or is_final:
                    return self.exhausted(budget, tokens, now)
                waits = True
        if waits:
            self.is_due = True
            return None
        return self._hold(budgets, tokens)

    def cover_waiting(self, budgets: tuple[Budget, ...], tokens: float, now: float) -> QuotaHold | Budget:
        """Hold the tokens of a request that waited; otherwise the first budget that does not have them."""
        for budget in budgets:
            self._refresh(budget, now)
            if not budget.covers(tokens):
                return budget
        return self._hold(budgets, tokens)

    def cover_at_once(self, budgets: tuple[Budget, ...], tokens: float, now: float) -> QuotaHold | Exhausted:
        """Hold the tokens of a request that does not wait for a portion.

        Only what the whole pool has spent, as last known, refuses it. The next message states the hold.
        """
        for budget in budgets:
            self._refresh(budget, now)
            if budget.never_covers(tokens):
                return self.exhausted(budget, tokens, now)
            if not budget.covers(tokens):
                self.is_due = not self.is_alone
        return self._hold(budgets, tokens)

    def _hold(self, budgets: tuple[Budget, ...], tokens: float) -> QuotaHold:
        hold = QuotaHold(budgets, tokens)
        self._has_spent = True
        for budget in budgets:
            self._activate(budget)
            if budget.left < budget.typical and not self.is_alone:
                self.is_due = True
        return hold

    def exhausted(self, budget: Budget, tokens: float, now: float) -> Exhausted:
        """The refusal of a request that a budget does not cover."""
        return Exhausted(
            budget.id,
            budget.quota.tokens,
            budget.spent,
            tokens,
            budget.window.end,
            max(budget.window.end - self.epoch(now), 0.0),
            budget.never_covers(tokens),
        )

    def begin_wait(self, budgets: tuple[Budget, ...], tokens: float) -> None:
        """A request waits for portions that cover these tokens."""
        self.is_due = True
        for budget in budgets:
            budget.waiting += 1
            budget.needed += tokens
            budget.stated = False
            if not budget.typical:
                budget.typical = tokens
            self._activate(budget)

    def end_wait(self, budgets: tuple[Budget, ...], tokens: float) -> None:
        """Such a request waits no longer."""
        for budget in budgets:
            budget.waiting -= 1
            budget.needed = budget.needed - tokens if budget.waiting else 0.0

    def _refresh(self, budget: Budget, now: float) -> None:
        """Bring a budget up to date: its window, and the end of its portion."""
        epoch = now + self._offset
        if budget.is_outside(epoch):
            budget.roll(epoch)
            self._activate(budget)
        if self.is_alone:
            budget.portion, budget.is_open = budget.tokens, True
        elif self.is_cut_off(now):
            if budget.free_at >= self._heard_at - self._lifetime_s:
                budget.use_reserve()
        elif not budget.is_open:
            if budget.free_at >= self._since_at - self._lifetime_s:
                budget.use_reserve()
        elif self.failures:
            pass  # the portion is valid until the end of its lifetime
        elif budget.portion > budget.used and now - self._heard_at > self._lifetime_s * LIFETIME_SHARE:
            budget.portion = budget.used  # this process was paused, and the store has taken it back

    # --- messages ---

    def tick(self, now: float) -> list[Crossed]:
        """Update the rates of spending, once per interval. Returns the levels that a lone sidecar reached."""
        elapsed = now - self._ticked_at if self._ticked_at >= 0 else 0.0
        self._ticked_at = now
        kept = math.exp(-elapsed / RATE_MEMORY_S)
        crossed: list[Crossed] = []
        for budget in list(self._active.values()):
            self._refresh(budget, now)
            if elapsed > 0:
                charged, budget.charged = max(budget.charged, 0.0), 0.0
                budget.rate = budget.rate * kept + charged / elapsed * (1 - kept)
                if budget.rate < NO_RATE:
                    budget.rate = 0.0
            if self.is_alone and budget.level > budget.warned:
                crossed.append(_crossed(budget, budget.level))
            if self._is_idle(budget):
                self._deactivate(budget)
        return crossed

    def _is_idle(self, budget: Budget) -> bool:
        if budget.held or budget.waiting or budget.rate:
            return False
        return self.is_alone or (budget.stated and budget.portion <= budget.used)

    def message(self, now: float, *, is_regular: bool) -> QuotaMessage | None:
        """The message to send now; ``None`` while another is in flight, or if there is nothing to say.

        A regular message states all active budgets. It is sent without any, too, once something was spent: a
        store that lost its content hears of all spending within a lifetime. Another message states the
        budgets in which a portion runs out. A message has at most ``MOST_ROWS`` budgets.
        """
        if self._sent is not None or self.is_alone or not (is_regular or self.is_due):
            return None
        stated = [
            budget
            for budget in self._active.values()
            if is_regular or budget.waiting or budget.left < budget.typical
        ]
        self.is_due = False
        if len(stated) > MOST_ROWS:
            stated = self._in_turn(stated)
        requests: list[QuotaRequest] = []
        for budget in stated:
            self._refresh(budget, now)
            requests.append(self._request(budget))
        if not requests and not (is_regular and self._has_spent):
            return None
        self._number += 1
        self._sent, self.sent_at = QuotaMessage(self.holder, self._number, requests), now
        return self._sent

    def _in_turn(self, budgets: list[Budget]) -> list[Budget]:
        """``MOST_ROWS`` of these budgets. Those that requests wait for have at least a half of them."""
        waiting = sorted([budget for budget in budgets if budget.waiting], key=lambda each: each.stated)
        others = [budget for budget in budgets if not budget.waiting]
        kept = min(len(others), MOST_ROWS // 2)
        chosen = waiting[: MOST_ROWS - kept]
        self.is_due = any(not budget.stated for budget in waiting[len(chosen) :])
        chosen += others[: MOST_ROWS - len(chosen)]
        for budget in chosen:  # the next message begins with the others
            self._active[budget.key] = self._active.pop(budget.key)
        return chosen

    def _request(self, budget: Budget) -> QuotaRequest:
        used = budget.used
        needed = used + budget.needed
        ahead = budget.rate * AHEAD_S
        if ahead > 0 or budget.waiting:
            ahead = max(ahead, AHEAD_REQUESTS * budget.typical)
        if budget.is_open:
            ahead = min(ahead, max(budget.free + budget.left, 0.0) / (2 * budget.holders))
            if ahead < budget.typical:
                ahead = 0.0  # nothing is kept in advance at the end of a quota
        wanted = needed + ahead
        if budget.is_open:
            budget.portion = min(budget.portion, max(wanted, used))  # the rest is returned
        else:
            budget.claim_reserve()
            wanted = max(wanted, budget.portion)
        budget.stated = True
        return QuotaRequest(
            budget.key,
            budget.window.start,
            budget.window.end,
            budget.quota.tokens,
            budget.settled,
            budget.held,
            budget.portion,
            needed,
            wanted,
            budget.born,
            budget.counted,
        )

    def answered(self, message: QuotaMessage, answer: QuotaAnswer, now: float) -> list[Crossed]:
        """Use the answer to the message in flight. Returns the levels to report."""
        if message is not self._sent:
            return []
        self._sent, self.failures = None, 0
        self._heard_at = self.sent_at
        self._offset = answer.at - (self.sent_at + now) / 2
        crossed: list[Crossed] = []
        for request, portion in zip(message.requests, answer.portions, strict=True):
            budget = self.budgets.get(request.key)
            if budget is None or budget.window.start != request.start:
                continue
            budget.answered(portion, request.settled + request.held, self.sent_at, request.settled)
            if portion.crossed:
                crossed.append(_crossed(budget, portion.crossed))
        if answer.since != self._since:
            self._since, self._since_at = answer.since, now
            self._state_all()
        return crossed

    def _state_all(self) -> None:
        """The store is another one than before: it does not know what was spent here."""
        for budget in self.budgets.values():
            if budget.used or budget.portion:
                budget.stated = False
                self._activate(budget)

    def failed(self, message: QuotaMessage) -> None:
        """The message in flight was not answered in time."""
        if message is self._sent:
            self._sent = None
            self.failures += 1
            for request in message.requests:
                budget = self.budgets.get(request.key)
                if budget is not None:
                    budget.stated = False

    def last_message(self) -> QuotaMessage | None:
        """The last message of a sidecar that stops. It returns all unused portions, and states the rest."""
        if self.is_alone:
            return None
        requests = []
        for budget in self.budgets.values():
            is_stated = budget.stated and self._sent is None
            if budget.portion > budget.used or (budget.used and not is_stated):
                request = self._request(budget)
                requests.append(request._replace(needed=budget.used, wanted=budget.used))
        if not requests:
            return None
        self._number += 1
        return QuotaMessage(self.holder, self._number, requests)


def _crossed(budget: Budget, level: int) -> Crossed:
    budget.warned = level
    return Crossed(budget.id, level, budget.quota.tokens, budget.spent, budget.window.end)
