"""One sidecar's exchange with the lease store: it writes the messages and applies the answers. Pure.

Production and simulation move the messages. They call ``tick_steps`` once per interval, send all
``messages``, and pass each result to ``answered`` or ``failed``. ``Leases.due`` then has the requests that
can be decided.

- Messages name changed entitlements. Several are in flight, so no request waits for a long message to finish.
  Only one message in flight names a given entitlement. A complete message follows each failed one.
- Before a message is sent, this sidecar gives up the capacity that it no longer asks for. So the lease store
  may grant that capacity to another sidecar.

This is one file because message numbers, messages in flight and their answers are one state machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tokenpool.accounting.account import Account, PoolView
from tokenpool.admission.pending import WaitsFor
from tokenpool.leases.lease_state import LeaseState
from tokenpool.leases.leases import HORIZON, Leases, tokens_are_short
from tokenpool.leases.messages import RECLAIM, Answer, Lease, LeaseRequest, Message, Push
from tokenpool.leases.settings import MOST_UNDER_WAY, Mode

SPARE = 0.25
"""The part of the highest recent use that is held in addition to it."""
GROWTH = 2.0
"""The least tokens to hold, as a multiple of the tokens spent since the last report."""
MOST_ROWS = 50
"""The most entitlements in one message: about 1 ms of Redis (24 us each). The next message names the rest."""
PER_STEP = 6
"""Entitlements in one step of a tick: about 0.2 ms."""
CHANGED = 0.1
"""A smaller relative change of demand is not reported."""


class LeaseSync:
    """One sidecar's exchange of messages with the lease store."""

    def __init__(self, holder: str, leases: Leases) -> None:
        self.holder = holder
        self.leases = leases
        self.answered_at: float | None = None
        """The time of the last answer."""
        self.limits_age_s = 0.0
        """Seconds since a coordinator last published limits, by the last answer."""
        self._number = 0
        self._changed: dict[str, None] = {}
        """Entitlements whose change is not urgent, oldest first."""
        self._postponed: dict[str, bool] = {}
        """Urgent and returned entitlements whose last message is unanswered, and whether they are urgent."""
        self._is_renewal_due = False
        self._must_complete = True
        self._under_way: dict[int, tuple[Message, float]] = {}
        """Unanswered messages, with the time at which each was sent."""

    def follow(self, accounts: Mapping[str, Account], now: float) -> None:
        """Use these accounts from now on."""
        if self.leases.follow(accounts, now):
            self._must_complete = True

    def tick_steps(self, now: float) -> Iterator[None]:
        """Do the same in steps of ``PER_STEP`` entitlements. Requests may be decided between two steps."""
        leases = self.leases
        if now >= leases.expires_at:
            leases.expire(now)
        leases.activate_guarantees(now)
        self._is_renewal_due = True
        for number, name in enumerate(list(leases.states), 1):
            state = leases.states.get(name)
            if state is not None:
                self._close_interval(name, state, now)
            if number % PER_STEP == 0:
                yield

    @property
    def is_message_due(self) -> bool:
        """Whether a message should be sent before the next interval."""
        return bool(self.leases.urgent or self.leases.returns)

    def messages(self, now: float) -> Iterator[Message]:
        """The messages to send now. The sender adds the report to each one that ``carries_report``."""
        while (message := self.next_message(now)) is not None:
            yield message

    def next_message(self, now: float) -> Message | None:
        """The next message to send, or ``None``."""
        leases = self.leases
        if now >= leases.expires_at:
            leases.expire(now)
        if self._must_complete or leases.mode is not Mode.JOINED:
            begins = self._complete(now)
            if begins is not None or self._must_complete or leases.mode is not Mode.JOINING:
                return begins
        is_renewal = self._is_renewal_due and not any(m.renews for m, _ in self._under_way.values())
        if not is_renewal and len(self._under_way) >= MOST_UNDER_WAY:
            return None
        names = self._names_due()
        if not (names or is_renewal):
            return None
        self._is_renewal_due = self._is_renewal_due and not is_renewal
        lease_requests = {name: self._lease_request(name, now) for name in names}
        return self._send(lease_requests, now, renews=is_renewal)

    def _names_due(self) -> list[str]:
        """The entitlements for the next message, urgent ones first."""
        leases = self.leases
        names: list[str] = []
        for group in (sorted(leases.urgent), sorted(leases.returns), list(self._changed)):
            for name in group:
                if len(names) == MOST_ROWS:
                    return names
                state = leases.states.get(name)
                if state is None:
                    self._forget(name)
                elif not state.under_way:
                    self._forget(name)
                    names.append(name)
                elif name in leases.urgent or name in leases.returns:
                    self._postpone(name)
        return names

    def _postpone(self, name: str) -> None:
        """Do not examine an entitlement at each request while its last message is unanswered."""
        leases = self.leases
        self._postponed[name] = self._postponed.get(name, False) or name in leases.urgent
        leases.urgent.discard(name)
        leases.returns.discard(name)

    def _resume(self, name: str) -> None:
        """The last message that names an entitlement has ended: it may be named again."""
        is_urgent = self._postponed.pop(name, None)
        if is_urgent is not None:
            (self.leases.urgent if is_urgent else self.leases.returns).add(name)

    def _forget(self, name: str) -> None:
        leases = self.leases
        leases.urgent.discard(name)
        leases.returns.discard(name)
        self._changed.pop(name, None)

    def _complete(self, now: float) -> Message | None:
        """Begin a lifetime: name all active entitlements, and state as many as one message holds."""
        leases = self.leases
        for name in list(self._postponed):
            self._resume(name)
        is_asked = self._is_renewal_due or leases.failures == 1 or bool(leases.urgent)
        if not is_asked or any(message.is_complete for message, _ in self._under_way.values()):
            return None
        self._is_renewal_due = self._must_complete = False
        for state in leases.states.values():
            state.under_way = False
        # Sorted, so that a simulation gives the same figures in every process.
        first = [name for name in sorted(leases.urgent) if name in leases.states]
        first += [name for name in leases.states if name not in leases.urgent]
        leases.urgent.clear()
        leases.returns.clear()
        self._changed = dict.fromkeys(first[MOST_ROWS:])
        lease_requests = {name: self._lease_request(name, now) for name in first[:MOST_ROWS]}
        kept = tuple(first[MOST_ROWS:])
        return self._send(lease_requests, now, is_complete=True, kept=kept)

    def _send(
        self,
        lease_requests: Mapping[str, LeaseRequest],
        now: float,
        *,
        is_complete: bool = False,
        renews: bool = False,
        kept: tuple[str, ...] = (),
    ) -> Message:
        leases = self.leases
        self._number += 1
        message = Message(self.holder, self._number, lease_requests, is_complete, kept=kept, renews=renews)
        self._under_way[message.number] = (message, now)
        for name in lease_requests:
            state = leases.states[name]
            state.number, state.under_way, state.sent = message.number, True, lease_requests[name]
        return message

    def last_message(self) -> Message:
        """The last message: it states all usage and returns all leases. No request may begin after it."""
        leases = self.leases
        self._number += 1
        lease_requests = {}
        for name, state in leases.states.items():
            meter, sent = leases.accounts[name].meter, state.sent
            if sent is not None and not sent.concurrency_in_use and sent.tokens_spent == meter.spent:
                continue  # nothing was spent since then: the lease is returned without being named
            lease_requests[name] = LeaseRequest(
                tokens_spent=meter.spent,
                kv_seconds=meter.kv_seconds,
                concurrency_seconds=meter.concurrency_seconds,
                tokens_borrowed=meter.free_tokens,
            )
        return Message(self.holder, self._number, lease_requests)

    def answered(self, message: Message, answer: Answer, now: float) -> None:
        """A message was answered. ``Leases.due`` then has the requests that can be decided."""
        leases = self.leases
        _, sent_at = self._under_way.pop(message.number, (message, None))
        if sent_at is None:
            return
        self._apply_pool_state(message, answer, sent_at, now)
        # If a later message names an entitlement again, the later answer counts for it.
        heard = {
            name: lease
            for name, lease in answer.leases.items()
            if name in leases.states and leases.states[name].number == message.number
        }
        for name, lease in heard.items():
            leases.states[name].under_way = False
            self._resume(name)
            self._set_pool_view(leases.accounts[name], lease)
        self._change_mode(message, answer, now)
        if leases.mode is Mode.JOINED:
            for name, lease in heard.items():
                leases.take(name, message.lease_requests[name], lease, now)
        self._retire(heard, message)
        if leases.mode is not Mode.JOINED:
            leases.waits.all_may_fit()
            return
        for name in heard:
            state = leases.states.get(name)
            if state is None:
                continue
            if leases.accounts[name].is_group:
                leases.group_may_fit(leases.accounts[name])
                leases.return_surplus(name, state, now)
            else:
                leases.waits.answered(name, sent_at, now)

    def failed(self, message: Message, now: float) -> None:
        """A message was not answered in time. No request waits for a store that does not answer.

        A message from before a pause of this process says nothing about the lease store. The requests wait
        for the next message. If that one fails too, the lease store has failed.
        """
        leases = self.leases
        _, sent_at = self._under_way.pop(message.number, (message, None))
        if sent_at is None:
            return
        for name in message.lease_requests:
            state = leases.states.get(name)
            if state is not None and state.number == message.number:
                state.under_way, state.sent = False, None
                self._resume(name)
        self._must_complete = True
        if now - sent_at > leases.settings.lifetime_s:
            if now >= leases.expires_at:
                leases.expire(now)
            if sent_at < leases.paused_until:
                return
        leases.store_failed(now)

    def pushed(self, push: Push, now: float) -> None:
        """The lease store sent a notification. A message may be due then."""
        if push.kind == RECLAIM:
            self.leases.reclaimed(push.entitlement, now)
        else:
            self.leases.freed(push.entitlement)

    def _apply_pool_state(self, message: Message, answer: Answer, sent_at: float, now: float) -> None:
        """Apply the fields of an answer other than leases."""
        leases = self.leases
        was_failing = leases.failures > 0
        leases.store_answered(now - sent_at, answer.terms, answer.free, now)
        self.answered_at, self.limits_age_s = now, answer.limits_age_s
        if answer.is_known and (message.is_complete or message.renews):
            # A closed store does not know every sidecar yet. With too few sidecars, shares would be too
            # large.
            sidecars = max(answer.sidecars, 1 if answer.is_open else leases.sidecars)
            leases.renewed(sent_at, sidecars)
        if not message.is_complete and (
            was_failing or not answer.is_known or self._rows_differ(message, answer)
        ):
            self._must_complete = self._is_renewal_due = True

    def _change_mode(self, message: Message, answer: Answer, now: float) -> None:
        leases = self.leases
        if now >= leases.expires_at:
            leases.answered_late(now)
        elif message.is_complete and answer.is_open and leases.has_limits:
            leases.join(message.lease_requests)
        elif message.is_complete:
            leases.wait_to_join(now)

    def _rows_differ(self, message: Message, answer: Answer) -> bool:
        """Whether the lease store has another number of rows than this sidecar has stated."""
        leases = self.leases
        if self._under_way or not message.renews or not answer.is_known:
            return False
        stated = sum(
            1 for state in leases.states.values() if state.sent is not None and not state.sent.is_last
        )
        return answer.rows != stated

    def _close_interval(self, name: str, state: LeaseState, now: float) -> None:
        """Close an interval of one entitlement, and note whether the next message must name it."""
        leases = self.leases
        account = leases.accounts[name]
        meter = account.meter
        state.peaks.append(account.take_peaks())
        state.report = account.report(now, leases.queue.waiting_amount(name))
        state.fresh = meter.fresh
        state.is_idle = meter.is_idle and not account.concurrency_in_use and not leases.waiting(account)
        if self._has_changed(account, state):
            self._changed[name] = None

    def _has_changed(self, account: Account, state: LeaseState) -> bool:
        """Whether a message should name an entitlement again."""
        sent = state.sent
        if sent is None or sent.is_last:
            return True
        kv_tokens, sequences, _ = self._wanted(account, state)
        return (
            sent.concurrency_in_use > 0
            or account.concurrency_in_use > 0  # the service of running requests grows with time
            or sent.tokens_spent != account.meter.spent
            or sent.kv_wanted != kv_tokens
            or sent.concurrency_wanted != sequences
            or (state.is_idle and not sequences)
            or _differ(sent.demand[2], state.report.demand.concurrency)
            or _differ(sent.demand[0], state.report.demand.tokens_per_second)
        )

    def _lease_request(self, name: str, now: float) -> LeaseRequest:
        """Make one entitlement's lease request; gives up the part of the lease that it does not ask for."""
        leases = self.leases
        account, state = leases.accounts[name], leases.states[name]
        meter, kv_in_use, in_use = account.meter, account.kv_in_use, account.concurrency_in_use
        kv_wanted, wanted, tokens_wanted = self._wanted(account, state)
        if now < state.contended_until:
            kv_wanted, wanted = float(kv_in_use), float(in_use)
            if tokens_are_short(account, state):
                tokens_wanted = 0.0
        needed = [pending.cost for pending in leases.waiting(account)]
        is_urgent = bool(needed)
        first = leases.queue.first(account)
        if first is not None and first.waits_for is WaitsFor.ENGINE:
            needed.append(first.cost)  # another replica may offer room for it at any time
        kv_wanted = max(kv_wanted, kv_in_use + sum(cost.kv_tokens for cost in needed))
        wanted = max(wanted, in_use + sum(cost.sequences for cost in needed))
        tokens_wanted = max(tokens_wanted, math.fsum(cost.throughput for cost in needed))
        kv_bound, bound = float(kv_in_use), float(in_use)
        if leases.mode is Mode.JOINED:
            account.give_up_beyond(kv_wanted, wanted, tokens_wanted)
            kv_bound = max(kv_bound, account.limit.kv_tokens)
            bound = max(bound, account.limit.concurrency)
        report, floor = state.report, state.report.floor
        is_last = state.is_idle and not (in_use or kv_wanted or wanted or needed)
        return LeaseRequest(
            float(kv_in_use),
            float(in_use),
            kv_bound,
            bound,
            kv_wanted,
            wanted,
            meter.spent,
            tokens_wanted,
            is_urgent,
            report.demand.values(),
            meter.kv_seconds,
            meter.concurrency_seconds,
            state.fresh.values(),
            (meter.typical_tokens.value, floor.kv_tokens, floor.concurrency),
            is_last,
            leases.idle_limit(account),
            meter.free_tokens,
        )

    def _wanted(self, account: Account, state: LeaseState) -> tuple[float, float, float]:
        """The lease to hold for the requests of the next interval: KV tokens, sequences, tokens."""
        leases = self.leases
        kv_peak = max((kv for kv, _ in state.peaks), default=0)
        peak = max((sequences for _, sequences in state.peaks), default=0)
        kv_wanted, wanted, tokens = float(kv_peak), float(peak), 0.0
        floor = state.report.floor
        if not state.is_idle:
            is_scarce = account.pool_limit.concurrency < 2 * leases.sidecars
            spare = 0.0 if is_scarce else max(math.ceil(SPARE * peak), floor.concurrency)
            wanted += spare
            kv_wanted += spare * max(floor.kv_tokens, kv_peak / max(peak, 1))
            demand = state.report.demand.tokens_per_second
            tokens = demand * leases.settings.interval_s * HORIZON + account.meter.typical_tokens.value
            # Demand is an average. If load has just begun, each message asks for more than the one before. It
            # asks for no more than is free: that would count as a shortage and reclaim other leases.
            tokens = max(tokens, min(GROWTH * account.meter.unreported, account.level))
        reserve = leases.reserve(account)
        if reserve:
            guarantee = account.entitlement.guarantee
            wanted = max(wanted, float(reserve))
            kv_wanted = max(kv_wanted, guarantee.kv_tokens / leases.sidecars)
            tokens = max(tokens, guarantee.tokens_per_second / leases.sidecars)
        return kv_wanted, wanted, tokens

    def _retire(self, heard: Mapping[str, Lease], message: Message) -> None:
        """Make entitlements idle whose last lease request the lease store has applied."""
        leases = self.leases
        for name in heard:
            state, request = leases.states[name], message.lease_requests[name]
            account = leases.accounts[name]
            if not request.is_last:
                continue
            if (
                state.is_idle
                and account.meter.is_idle
                and request.tokens_spent == account.meter.spent
                and not (leases.waiting(account) or account.concurrency_in_use)
            ):
                del leases.states[name]
                account.hold_nothing()
                account.forget_bucket()
            else:
                state.sent = None

    def _set_pool_view(self, account: Account, lease: Lease) -> None:
        """Set the pool-wide state of an entitlement from an answer."""
        leases = self.leases
        limit = lease.limit
        account.set_pool(
            PoolView(
                limit.amount,
                limit.depth,
                limit.debt,
                lease.level,
                lease.kv_elsewhere,
                lease.concurrency_elsewhere,
                leases.sidecars > 1,
            )
        )


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > CHANGED * max(one, other)
