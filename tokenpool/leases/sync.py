"""The exchange with the lease store, as one sidecar has it: what it says, and what answers change. Pure.

Production and simulation move the messages: they call ``tick_steps`` once an interval, send each of
``messages``, and bring its answer back with ``answered`` or ``failed``. What that makes possible for waiting
requests is in ``Leases.due`` then.

- Messages name changed entitlements. Several are in flight, so no request waits behind a long message.
  Only one of them names a given entitlement. A complete message follows each failed one.
- Before a message leaves, this sidecar gives up what it no longer asks for. So the lease store may give it to
  another sidecar.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tokenpool.accounting.account import Account, PoolView
from tokenpool.leases.leases import HORIZON, Leases, tokens_are_short
from tokenpool.leases.line import Line
from tokenpool.leases.messages import RECLAIM, Answer, Lease, LeaseRequest, Message, Push
from tokenpool.leases.settings import MOST_UNDER_WAY, Mode

SPARE = 0.25
"""Held beyond the most that was in use at once, as a share of it."""
GROWTH = 2.0
"""Tokens held, at least, as a multiple of those spent since the last complete message."""
ROUND_TRIP_KEPT = 0.8
"""How slowly a long round trip is forgotten, per answer: one quick answer proves nothing."""
MOST_ROWS = 50
"""The most entitlements in one message: about 1 ms of Redis (24 us each). The next one names the others."""
PER_STEP = 20
"""Entitlements in one step of a tick: about 0.4 ms."""
CHANGED = 0.1
"""A smaller relative change of demand is not reported."""


class LeaseSync:
    """One sidecar's exchange of messages with the lease store."""

    def __init__(self, holder: str, leases: Leases) -> None:
        self.holder = holder
        self.leases = leases
        self.answered_at: float | None = None
        """The time of the last answer."""
        self.unled_s = 0.0
        """How long no coordinator has published limits, by the last answer."""
        self._number = 0
        self._changed: dict[str, None] = {}
        """Entitlements whose change is not urgent, oldest first."""
        self._is_renewal_due = False
        self._must_complete = True
        self._under_way: dict[int, tuple[Message, float]] = {}
        """Unanswered messages, with the time at which each was sent."""

    def follow(self, accounts: Mapping[str, Account], now: float) -> None:
        """Use these accounts from now on."""
        if self.leases.follow(accounts, now):
            self._must_complete = True

    def tick(self, now: float) -> None:
        """Once an interval: examine the active entitlements, and renew the leases."""
        for _ in self.tick_steps(now):
            pass

    def tick_steps(self, now: float) -> Iterator[None]:
        """The same in steps of ``PER_STEP`` entitlements, between which requests may be decided."""
        leases = self.leases
        if now >= leases.expires_at:
            leases.expire(now)
        leases.reserve_lines(now)
        self._is_renewal_due = True
        for number, name in enumerate(list(leases.lines), 1):
            line = leases.lines.get(name)
            if line is not None:
                self._take_report(name, line, now)
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
        """The names in the next message, urgent ones first."""
        leases = self.leases
        names: list[str] = []
        for group in (sorted(leases.urgent), sorted(leases.returns), list(self._changed)):
            for name in group:
                if len(names) == MOST_ROWS:
                    return names
                line = leases.lines.get(name)
                if line is None:
                    self._forget(name)
                elif not line.under_way:
                    self._forget(name)
                    names.append(name)
        return names

    def _forget(self, name: str) -> None:
        leases = self.leases
        leases.urgent.discard(name)
        leases.returns.discard(name)
        self._changed.pop(name, None)

    def _complete(self, now: float) -> Message | None:
        """Begin a lifetime: name all held entitlements, and state as many as fit."""
        leases = self.leases
        is_asked = self._is_renewal_due or leases.failures == 1 or bool(leases.urgent)
        if not is_asked or any(message.is_complete for message, _ in self._under_way.values()):
            return None
        self._is_renewal_due = self._must_complete = False
        for line in leases.lines.values():
            line.under_way = False
        # Sorted, so that a simulation gives the same figures in every process.
        first = [name for name in sorted(leases.urgent) if name in leases.lines]
        first += [name for name in leases.lines if name not in leases.urgent]
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
            line = leases.lines[name]
            line.number, line.under_way, line.said = message.number, True, lease_requests[name]
        return message

    def farewell(self) -> Message:
        """The last message: all that was spent is told, everything returned. Nothing may begin after it."""
        leases = self.leases
        self._number += 1
        lease_requests = {}
        for name, line in leases.lines.items():
            meter, said = leases.accounts[name].meter, line.said
            if said is not None and not said.concurrency_in_use and said.tokens_spent == meter.spent:
                continue  # nothing was spent since then: its row is returned without being named
            lease_requests[name] = LeaseRequest(
                tokens_spent=meter.spent,
                kv_seconds=meter.kv_seconds,
                concurrency_seconds=meter.concurrency_seconds,
            )
        return Message(self.holder, self._number, lease_requests)

    def answered(self, message: Message, answer: Answer, now: float) -> None:
        """A message was answered. Requests that waited for it are in ``Leases.due``."""
        leases = self.leases
        _, sent_at = self._under_way.pop(message.number, (message, None))
        if sent_at is None:
            return
        self._note(message, answer, sent_at, now)
        # A later message names some entitlements again: its answer counts for them, not this one.
        heard = {
            name: lease
            for name, lease in answer.leases.items()
            if name in leases.lines and leases.lines[name].number == message.number
        }
        for name, lease in heard.items():
            leases.lines[name].under_way = False
            self._see(leases.accounts[name], lease)
        self._change_mode(message, answer, now)
        if leases.mode is Mode.JOINED:
            for name, lease in heard.items():
                leases.take(name, message.lease_requests[name], lease, now)
        self._retire(heard, message)
        if leases.mode is not Mode.JOINED:
            leases.serve_all()
            return
        for name in heard:
            if name in leases.lines:
                leases.serve_answered(name, sent_at, now)

    def failed(self, message: Message, now: float) -> None:
        """A message was not answered in time. No request waits for a store that does not answer."""
        leases = self.leases
        if self._under_way.pop(message.number, None) is None:
            return
        for name in message.lease_requests:
            line = leases.lines.get(name)
            if line is not None and line.number == message.number:
                line.under_way, line.said = False, None
        leases.failures += 1
        self._must_complete = True
        if now >= leases.expires_at:
            leases.expire(now)
        leases.release_all(now)

    def pushed(self, push: Push, now: float) -> None:
        """The lease store said something between messages. A message may be due then."""
        if push.kind == RECLAIM:
            self.leases.reclaimed(push.entitlement, now)
        else:
            self.leases.freed(push.entitlement)

    def _note(self, message: Message, answer: Answer, sent_at: float, now: float) -> None:
        """Take over the fields of an answer other than leases."""
        leases = self.leases
        was_failing, leases.failures = leases.failures > 0, 0
        if was_failing:
            for line in leases.lines.values():
                line.share_tokens = None
        leases.round_trip_s = max(now - sent_at, leases.round_trip_s * ROUND_TRIP_KEPT)
        self.answered_at, self.unled_s = now, answer.limits_age_s
        if answer.terms.capacity != (0.0, 0.0, 0.0):
            leases.terms, leases.is_led = answer.terms, True
        if answer.is_known and (message.is_complete or message.renews):
            # A closed store has not heard every sidecar yet: shares of too few would be too large.
            sidecars = max(answer.sidecars, 1 if answer.is_open else leases.sidecars)
            leases.renewed(sent_at, sidecars)
        if not message.is_complete and (
            was_failing or not answer.is_known or self._has_strayed(message, answer)
        ):
            self._must_complete = self._is_renewal_due = True

    def _change_mode(self, message: Message, answer: Answer, now: float) -> None:
        leases = self.leases
        if now >= leases.expires_at:
            leases.round_trip_s = 0.0  # this process was late, not the answer
            leases.expire(now)
        elif message.is_complete and answer.is_open and leases.is_led:
            self._join(message)
        elif message.is_complete:
            leases.mode = Mode.JOINING
            leases.live_on_shares(now)

    def _join(self, message: Message) -> None:
        leases = self.leases
        if leases.mode is not Mode.JOINED:
            leases.mode = Mode.JOINED
            for name in leases.lines:
                if name not in message.lease_requests:
                    leases.accounts[name].hold_nothing()

    def _has_strayed(self, message: Message, answer: Answer) -> bool:
        """Whether the lease store has another number of rows than this sidecar has lines."""
        leases = self.leases
        if self._under_way or not message.renews or not answer.is_known:
            return False
        stated = sum(1 for line in leases.lines.values() if line.said is not None and not line.said.is_last)
        return answer.rows != stated

    def _take_report(self, name: str, line: Line, now: float) -> None:
        """Close an interval of one entitlement; queue a message if its report changed."""
        leases = self.leases
        account = leases.accounts[name]
        meter = account.meter
        line.peaks.append(account.take_peaks())
        line.report = account.report(now)
        line.fresh = meter.fresh
        line.is_idle = (
            meter.is_idle and not account.concurrency_in_use and not leases.queue.waiting_for_lease(name)
        )
        if self._is_news(account, line):
            self._changed[name] = None

    def _is_news(self, account: Account, line: Line) -> bool:
        """Whether a message should name an entitlement again."""
        said = line.said
        if said is None or said.is_last:
            return True
        kv_tokens, sequences, _ = self._ahead(account, line)
        return (
            said.concurrency_in_use > 0
            or account.concurrency_in_use > 0  # the service of running requests grows with time
            or said.tokens_spent != account.meter.spent
            or said.kv_wanted != kv_tokens
            or said.concurrency_wanted != sequences
            or (line.is_idle and not sequences)
            or _differ(said.demand[2], line.report.demand.concurrency)
            or _differ(said.demand[0], line.report.demand.tokens_per_second)
        )

    def _lease_request(self, name: str, now: float) -> LeaseRequest:
        """What to say of one entitlement; gives up here what is no longer asked for."""
        leases = self.leases
        account, line = leases.accounts[name], leases.lines[name]
        meter, kv_in_use, in_use = account.meter, account.kv_in_use, account.concurrency_in_use
        kv_wanted, wanted, tokens_wanted = self._ahead(account, line)
        if now < line.contended_until:
            kv_wanted, wanted = float(kv_in_use), float(in_use)
            if tokens_are_short(account, line):
                tokens_wanted = 0.0
        needed = [pending.cost for pending in leases.queue.waiting_for_lease(name)]
        kv_wanted = max(kv_wanted, kv_in_use + sum(cost.kv_tokens for cost in needed))
        wanted = max(wanted, in_use + sum(cost.sequences for cost in needed))
        tokens_wanted = max(tokens_wanted, math.fsum(cost.throughput for cost in needed))
        kv_bound, bound = float(kv_in_use), float(in_use)
        if leases.mode is Mode.JOINED:
            account.give_up_beyond(kv_wanted, wanted, tokens_wanted)
            kv_bound = max(kv_bound, account.limit.kv_tokens)
            bound = max(bound, account.limit.concurrency)
        said, floor = line.report, line.report.floor
        is_last = line.is_idle and not (in_use or kv_wanted or wanted or needed)
        return LeaseRequest(
            float(kv_in_use),
            float(in_use),
            kv_bound,
            bound,
            kv_wanted,
            wanted,
            meter.spent,
            tokens_wanted,
            bool(needed),
            said.demand.values(),
            meter.kv_seconds,
            meter.concurrency_seconds,
            line.fresh.values(),
            (meter.typical_tokens.value, floor.kv_tokens, floor.concurrency),
            is_last,
            leases.idle_limit(account),
        )

    def _ahead(self, account: Account, line: Line) -> tuple[float, float, float]:
        """What to hold for the requests of the next interval: KV tokens, sequences, tokens."""
        leases = self.leases
        kv_peak = max((kv for kv, _ in line.peaks), default=0)
        peak = max((sequences for _, sequences in line.peaks), default=0)
        kv_ahead, ahead, tokens = float(kv_peak), float(peak), 0.0
        floor = line.report.floor
        if not line.is_idle:
            is_scarce = account.pool_limit.concurrency < 2 * leases.sidecars
            spare = 0.0 if is_scarce else max(math.ceil(SPARE * peak), floor.concurrency)
            ahead += spare
            kv_ahead += spare * max(floor.kv_tokens, kv_peak / max(peak, 1))
            demand = line.report.demand.tokens_per_second
            tokens = demand * leases.settings.interval_s * HORIZON + account.meter.typical_tokens.value
            # Demand is an average. Where it has just begun, each part message asks for more than the last;
            # for no more than there is, which would count as a shortage and have everybody return theirs.
            tokens = max(tokens, min(GROWTH * account.meter.unreported, account.level))
        reserve = leases.reserve(account)
        if reserve:
            guarantee = account.entitlement.guarantee
            ahead = max(ahead, float(reserve))
            kv_ahead = max(kv_ahead, guarantee.kv_tokens / leases.sidecars)
            tokens = max(tokens, guarantee.tokens_per_second / leases.sidecars)
        return kv_ahead, ahead, tokens

    def _retire(self, heard: Mapping[str, Lease], message: Message) -> None:
        """Close the lines of entitlements whose last holding the lease store has booked."""
        leases = self.leases
        for name in heard:
            line, said = leases.lines[name], message.lease_requests[name]
            account = leases.accounts[name]
            if not said.is_last:
                continue
            if (
                line.is_idle
                and account.meter.is_idle
                and said.tokens_spent == account.meter.spent
                and not (leases.queue.waiting_for_lease(name) or account.concurrency_in_use)
            ):
                del leases.lines[name]
                account.hold_nothing()
                account.forget_bucket()
            else:
                line.said = None

    def _see(self, account: Account, lease: Lease) -> None:
        """Where the pool stands, whatever this sidecar holds of it."""
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
