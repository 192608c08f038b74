"""The budget: one quota of one scope on one sidecar, with what its requests spend. Pure.

Tokens are weighted tokens. A request *holds* its expected cost from its admission, or from its wait before
it. The settlement replaces that by the actual cost. A request counts in the window in which it ends. So at
the begin of a window nothing is settled, and running requests are still held.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from tokenpool.entitlements import Quota
from tokenpool.quotas.messages import LEVELS, BudgetId, QuotaPortion
from tokenpool.quotas.windows import Span, span, text_of

LATEST_CORRECTION_S: Final = 5.0
"""A correction of the clock by fewer seconds than this does not return to the window before."""

ROUNDING: Final = 1e-6
"""Tokens. Sums of many floats differ by less than this. Without it, a request of exactly the rest of a quota
was never covered."""


class Exhausted(NamedTuple):
    """The reason why a budget does not cover a request."""

    budget: BudgetId
    tokens: float
    """The quota."""
    spent: float
    """Tokens of ended requests in the whole pool, as last known."""
    cost: float
    resets_at: float
    """The end of the window, in epoch seconds."""
    resets_in_s: float
    is_final: bool
    """Whether the spending alone leaves no room for the request. If not, running requests or other sidecars
    hold the rest of the quota, and may return a part of it."""


class Budget:
    """One quota of one scope on one sidecar. ``Quotas`` changes it; the ledger settles holds."""

    __slots__ = (
        "answered_at",
        "born",
        "charged",
        "counted",
        "free",
        "free_at",
        "held",
        "holders",
        "id",
        "is_active",
        "is_open",
        "key",
        "level",
        "needed",
        "next_level",
        "portion",
        "quota",
        "rate",
        "reserve",
        "settled",
        "short_until",
        "spent_elsewhere",
        "stated",
        "text_after",
        "text_before",
        "tokens",
        "typical",
        "waiting",
        "warned",
        "window",
    )

    def __init__(self, identity: BudgetId, quota: Quota) -> None:
        self.id = identity
        self.key = identity.key
        self.quota = quota
        self.window = Span(0.0, 0.0)
        self.is_active = False
        """Whether ``Quotas`` has something to state, to spend or to return for it."""
        self.settled = 0.0
        """Tokens of the requests here that ended in this window."""
        self.held = 0.0
        """Tokens that requests here hold now."""
        self.charged = 0.0
        """Tokens charged since the last tick, for the rate."""
        self.rate = 0.0
        """Tokens per second, as a mean of the last seconds."""
        self.typical = 0.0
        """Tokens of a typical request, as a mean of the last ones."""
        self.needed = 0.0
        """Tokens of the requests that wait for a portion."""
        self.waiting = 0
        """The number of these requests."""
        self.portion = 0.0
        """The tokens that the requests here may spend in this window."""
        self.reserve = 0.0
        """Tokens beyond the portion, while the lease store does not answer or grants nothing."""
        self.free = 0.0
        """Tokens that no sidecar had spent or held at the last answer of an open record."""
        self.free_at = -math.inf
        """The time of sending of the message with that answer."""
        self.holders = 1
        self.spent_elsewhere = 0.0
        """Tokens of requests that ended at other sidecars, at the last answer."""
        self.level = 0
        """The highest level of ``LEVELS`` that the spending has reached, as known here."""
        self.next_level = 0.0
        """The spending at which it reaches the next one, in hundredths of a token."""
        self.warned = 0
        """The highest level that was reported from here."""
        self.is_open = False
        self.born = 0.0
        self.counted = 0.0
        self.answered_at = -1.0
        """The time of sending of the last answered message that stated it; negative without one."""
        self.short_until = -1.0
        """Until this time the sidecar does not ask for each request: the budget had no room."""
        self.stated = False
        """Whether the last message had all that was settled and held."""
        self.text_before = self.text_after = ""
        """The texts before and after the rest in its member of the header. Each answer has the header."""
        self._describe()

    def _describe(self) -> None:
        """Make what depends on the quota, the window and the level only."""
        identity, tokens = self.id, self.quota.tokens
        self.tokens = tokens
        """The tokens of the quota."""
        self.text_before = f'"{identity.scope.value}/{identity.per}";q={int(tokens)};r='
        self.text_after = f';reset="{text_of(self.window.end)}"'
        self.next_level = math.inf
        for level in reversed(LEVELS):
            if level > self.level:
                self.next_level = tokens * level

    @property
    def used(self) -> float:
        """Tokens settled and held here in this window."""
        return self.settled + self.held

    @property
    def spent(self) -> float:
        """Tokens of ended requests in the whole pool in this window, as known here."""
        return self.settled + self.spent_elsewhere

    @property
    def left(self) -> float:
        """Tokens that requests here may still take."""
        return self.portion + self.reserve - self.settled - self.held

    def covers(self, tokens: float) -> bool:
        """Whether the portion here has these tokens left."""
        return tokens <= self.left + ROUNDING

    def never_covers(self, tokens: float) -> bool:
        """Whether the spending of ended requests alone leaves fewer tokens in this window."""
        return self.settled + self.spent_elsewhere + tokens > self.tokens + ROUNDING

    def roll(self, at: float) -> None:
        """Begin the window of this instant, in epoch seconds."""
        self.window = span(self.quota, at)
        self.settled = self.spent_elsewhere = self.portion = self.reserve = self.free = 0.0
        self.born = self.counted = 0.0
        self.answered_at = self.short_until = -1.0
        self.free_at = -math.inf
        self.level = self.warned = 0
        self.is_open = self.stated = False
        self._describe()

    def is_outside(self, at: float) -> bool:
        """Whether an instant lies outside of the window. The clock may be corrected by some seconds."""
        start, end = self.window
        return at >= end or at < start - LATEST_CORRECTION_S

    def reconfigure(self, quota: Quota) -> None:
        """Use a changed number of tokens."""
        self.quota = quota
        self.short_until, self.stated = -1.0, False
        self._describe()

    def answered(self, portion: QuotaPortion, counted: float, sent_at: float, settled: float) -> None:
        """Use the store's answer to a message that stated ``counted`` tokens, ``settled`` of them settled."""
        self.portion = portion.portion
        self.is_open = portion.is_open
        self.born, self.counted = portion.born, counted
        self.holders = max(portion.holders, 1)
        self.spent_elsewhere = max(portion.spent - settled, 0.0)
        self.answered_at = sent_at
        if portion.is_open:
            self.free, self.free_at, self.reserve = portion.free, sent_at, 0.0
        self.note_level()

    def note_level(self) -> None:
        """Note the level that the spending has reached."""
        while (self.settled + self.spent_elsewhere) * 100 >= self.next_level:
            self.level = next(level for level in LEVELS if level > self.level)
            self._describe()

    def use_reserve(self) -> None:
        """The store does not answer or grants nothing: allow a part of what was free at the last answer."""
        if not self.reserve:
            self.reserve = max(self.free, 0.0) / (2 * self.holders)

    def claim_reserve(self) -> None:
        """The reserve becomes a part of the portion, which the next message claims from a store that is not
        open. So the store grants it to no other sidecar when it opens."""
        self.portion += self.reserve
        self.free = self.reserve = 0.0


class QuotaHold:
    """The tokens that one request holds of its budgets, until its settlement or its refusal. It ends once."""

    __slots__ = ("budgets", "tokens")

    def __init__(self, budgets: tuple[Budget, ...], tokens: float) -> None:
        self.budgets = budgets
        self.tokens = tokens
        for budget in budgets:
            budget.held += tokens
            budget.charged += tokens
            budget.typical += (tokens - budget.typical) * (0.1 if budget.typical else 1.0)
            budget.stated = False

    def grow(self, tokens: float) -> None:
        """A running request has outgrown its reservation by these tokens. This is never refused."""
        self.tokens += tokens
        for budget in self.budgets:
            budget.held += tokens
            budget.charged += tokens
            budget.stated = False

    def settle(self, tokens: float) -> None:
        """Replace the held tokens by the actual cost; 0 for a request that does not run."""
        held, self.tokens = self.tokens, 0.0
        for budget in self.budgets:
            budget.held -= held
            if budget.held < 1e-6:
                budget.held = 0.0
            budget.settled += tokens
            budget.charged += tokens - held
            budget.stated = False
            budget.note_level()
        self.budgets = ()
