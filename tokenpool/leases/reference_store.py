"""The rules of the lease store in Python, for the workers of one pod, the simulation and the tests.

The sidecars of several pods use the same rules as scripts in Redis (``tokenpool/store``). One contract suite
sends the same calls to both and requires the same answers. Pure: ``now`` is in seconds of the caller's clock.
A *holder* is a sidecar, or one worker of a sidecar.

- The store never grants leases of an entitlement that add up to more than its limit. The sum is larger only
  if requests already run: after a limit shrank, or after the store lost its content.
- A message names only changed entitlements. It states totals (current use, wanted leases, usage since the
  holder started), never changes, and has a number. Each row keeps the number of the message that wrote it.
  So several messages may be in flight, and a lost, duplicated or late message does no harm.
- A holder may use some capacity before it receives the answer (its *bound*). That amount counts as held
  until the next message, so a lost answer frees nothing that is in use.
- Every lease expires. A holder without a renewal for a lifetime loses its leases. It must begin a new
  lifetime with a complete message.
- Limits are published for active entitlements. For any other, the holder states the limit that follows from
  the pool's ``IdleTerms``, which every answer carries. So an idle entitlement costs nothing.
- Limits carry the epoch of the coordinator that wrote them. Limits of an older epoch are refused.
- A store that is new, or had no message for a lifetime, is closed for one lifetime. In that time all holders
  report their use, and the store grants nothing.

This is one file because it is the readable form of the rules: the scripts are compared with it line by line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from typing import NamedTuple

import msgspec

from tokenpool.leases.messages import (
    CONTENDED_S,
    FREED,
    KEEP_S,
    MOST_PEERS,
    MOST_PRICES,
    NO_LIMIT,
    POOL_BUCKET_S,
    RECLAIM,
    REMEMBER_S,
    REQUEST_SIZE_MEMORY_S,
    WAIT_S,
    Answer,
    EntitlementRecord,
    Lease,
    LeaseRequest,
    Limit,
    Message,
    PeerRoom,
    PoolSnapshot,
    Push,
    ReplicaRoom,
    StoredScaleHint,
    Vector,
)
from tokenpool.leases.records import StoredRecord, bucket_level
from tokenpool.leases.row_layout import NO_ROW, HolderRow
from tokenpool.planning.idle import IdleTerms

_EPSILON = 1e-6
"""Tolerance of sums of fractions before they are rounded down."""


class Exchange(NamedTuple):
    """The effects of one message."""

    answer: Answer
    pushes: list[Push]
    """The notifications to send to other sidecars."""


class _Row:
    """One sidecar's part of an entitlement."""

    __slots__ = ("borrowed", "number", "served", "values")

    def __init__(self, served: Vector, borrowed: float) -> None:
        self.number = -1
        """The number of the message that wrote it."""
        self.served = served
        """The holder's usage totals in its last message."""
        self.borrowed = borrowed
        """The part of its spent tokens that the pool's bucket pays, in its last message."""
        self.values = NO_ROW


class _Record(StoredRecord):
    """One entitlement: its limit, its bucket and its rows."""

    limit: Limit = NO_LIMIT
    """The published limit, or else the last one that a holder stated."""
    contended_until: float = -math.inf
    rows: dict[str, _Row] = msgspec.field(default_factory=dict)
    """The rows by holder."""
    waiters: dict[str, float] = msgspec.field(default_factory=dict)
    """Holders that lack capacity, with the time until which each one is notified."""

    def refill(self, now: float, is_open: bool) -> None:
        """Bring the bucket and the request sizes up to date. Without elapsed time nothing changes."""
        elapsed = max(now - self.at, 0.0)
        self.level = bucket_level(self.level, self.depth, self.limit, elapsed, is_open)
        self.depth = self.limit.depth
        if elapsed > 0:
            kept = math.exp(-elapsed / REQUEST_SIZE_MEMORY_S)
            tokens, kv_tokens, sequences = self.floor
            self.floor = (tokens * kept, kv_tokens * kept, sequences * kept)
            self.at = now

    def write(self, row: _Row, values: HolderRow) -> None:
        """Replace the values of a row, and update the sums."""
        self.sums = self.sums.replaced(row.values, values)
        row.values = values

    def charge(self, row: _Row, served: Vector, borrowed: float, is_open: bool) -> None:
        """Charge a holder's usage since its last message. The pool's bucket pays for ``borrowed``."""
        tokens, kv_seconds, sequence_seconds = (
            after - before for after, before in zip(served, row.served, strict=True)
        )
        self.level -= tokens - (borrowed - row.borrowed)
        row.borrowed = borrowed
        if is_open:
            self.level = min(self.level, self.limit.depth)
        own = self.served
        self.served = (own[0] + tokens, own[1] + kv_seconds, own[2] + sequence_seconds)
        row.served = served

    def drop(self, holder: str) -> None:
        """Remove a row. Without rows the sums are set to exactly zero, which ends rounding errors."""
        row = self.rows.pop(holder, None)
        if row is not None:
            self.write(row, NO_ROW)
            if not self.rows:
                self.sums = NO_ROW

    def lease(self, own: HolderRow, kv_tokens: float, concurrency: float, tokens: float, now: float) -> Lease:
        """The answer to a holder with the row ``own``."""
        limit, sums = self.limit, self.sums
        return Lease(
            kv_tokens,
            concurrency,
            tokens,
            limit,
            level=self.level - sums.tokens,
            kv_elsewhere=sums.kv_in_use - own.kv_in_use,
            concurrency_elsewhere=sums.concurrency_in_use - own.concurrency_in_use,
            is_contended=now < self.contended_until,
            kv_free=limit.kv_tokens - sums.kv_tokens,
            concurrency_free=limit.concurrency - sums.concurrency,
            tokens_elsewhere=sums.tokens - own.tokens,
        )


class _Holder:
    """One sidecar."""

    __slots__ = ("entitlements", "expires_at", "heard_at", "is_alive", "number", "report", "room")

    def __init__(self) -> None:
        self.number = -1
        """The number of its last complete message."""
        self.heard_at = -math.inf
        self.expires_at = -math.inf
        self.is_alive = False
        """Whether it has a lifetime."""
        self.entitlements: set[str] = set()
        """The entitlements in which it has a row."""
        self.report = b""
        self.room: ReplicaRoom | None = None
        """The free room of its replica, as last stated."""


class ReferenceLeaseStore:
    """The lease store of one pool in the memory of one process."""

    def __init__(self, now: float, lifetime_s: float, *, is_first: bool = False) -> None:
        """``is_first`` states that no holder runs yet, so that the store is open until the first silence."""
        self._lifetime_s = lifetime_s
        self._opens_at = now if is_first else now + lifetime_s
        self._heard_at = math.inf if is_first else now
        self._published_at = -math.inf
        self._limits: dict[str, Limit] = {}
        self._terms = IdleTerms()
        self._records: dict[str, _Record] = {}
        self._holders: dict[str, _Holder] = {}
        self._alive = 0
        self._expire_at = math.inf
        """The earliest time at which a holder expires or is forgotten."""
        self._leader, self._leader_epoch, self._leads_until = "", 0, -math.inf
        self._scale_hint: tuple[bytes, float] | None = None
        self._prices: dict[str, tuple[float, bytes]] = {}
        self._secret = b""
        self._epoch = 0
        self._file: tuple[str, bytes] | None = None
        self._pool_level, self._pool_at = 0.0, math.inf
        """The pool's token bucket, and the time of its last update: it is empty at the first message."""
        self._with_room: list[str] = []
        """The holders that state their room, and the sums of KV tokens and sequences over all rooms. With
        these sums, a message takes the same time for any number of replicas."""
        self._kv_free = self._sequences_free = 0.0
        self._state = 1
        """The state of the small generator that chooses the holders to name."""

    # --- the coordinator's side ---

    def lead(self, candidate: str, leadership_s: float, now: float) -> int:
        """Take or keep the leadership. Returns the leader's epoch, or 0 if another coordinator leads.

        Epochs only rise. They start at the milliseconds of the clock, so they rise after a lost store too.
        """
        is_over = self._leads_until <= now
        if self._leader not in ("", candidate) and not is_over:
            return 0
        if self._leader != candidate or is_over or self._leader_epoch < self._epoch:
            self._epoch = self._leader_epoch = max(self._epoch + 1, int(now * 1000))
        self._leader, self._leads_until = candidate, now + leadership_s
        return self._leader_epoch

    def resign(self, candidate: str) -> None:
        """End the leadership of this candidate. Does nothing if another candidate leads."""
        if self._leader == candidate:
            self._leader = ""

    def publish(self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int, now: float) -> bool:
        """Replace all limits. Returns False, without a change, if a later coordinator has written.

        This updates no record: the next reader or writer of a record applies the new limit. The record of an
        entitlement without a limit and without rows is removed.
        """
        if epoch < self._epoch:
            return False
        self._epoch, self._published_at = epoch, now
        self._limits, self._terms = dict(limits), terms
        for name in [
            name for name, record in self._records.items() if not record.rows and name not in limits
        ]:
            del self._records[name]
        return True

    def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """Replace the pool file of all sidecars. Returns False if a later coordinator has written."""
        if epoch < self._epoch:
            return False
        self._epoch, self._file = epoch, (version, content)
        return True

    def publish_scale_hint(self, content: bytes, epoch: int, now: float) -> bool:
        """Replace the scale hint. Returns False if a later coordinator has written."""
        if epoch < self._epoch:
            return False
        self._epoch, self._scale_hint = epoch, (content, now)
        return True

    def scale_hint(self, now: float) -> StoredScaleHint | None:
        """The stored scale hint; ``None`` if there is none."""
        if self._scale_hint is None:
            return None
        content, at = self._scale_hint
        return StoredScaleHint(content, at, max(now - at, 0.0))

    def read(self, now: float) -> PoolSnapshot:
        """The whole content, for one tick of the coordinator."""
        self._expire(now)
        is_open = self._is_open(now) and now - self._heard_at <= self._lifetime_s
        return PoolSnapshot(
            {name: self._view(name, now, is_open) for name in {**self._limits, **self._records}},
            {name: holder.report for name, holder in self._holders.items() if holder.is_alive},
            self._epoch,
            is_open,
            now,
            self.file_version,
        )

    def record(self, entitlement: str, now: float) -> EntitlementRecord | None:
        """The record of one entitlement; ``None`` if it has neither a limit nor a lease."""
        if entitlement not in self._records and entitlement not in self._limits:
            return None
        return self._view(entitlement, now, self._is_open(now))

    def _view(self, name: str, now: float, is_open: bool) -> EntitlementRecord:
        record, limit = self._records.get(name), self._limits.get(name, NO_LIMIT)
        return EntitlementRecord(limit, limit.depth) if record is None else record.as_of(now, limit, is_open)

    # --- the sidecars' side ---

    def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """All published limits, and the terms for every other entitlement."""
        return dict(self._limits), self._terms

    def file(self) -> tuple[str, bytes] | None:
        """The version and the content of the published pool file; ``None`` before the first."""
        return self._file

    def publish_prices(self, holder: str, content: bytes, now: float) -> None:
        """Replace the learned prices of a sidecar. The sidecars that wrote longest ago are forgotten."""
        self._prices[holder] = now, content
        kept = sorted((at, each) for each, (at, _) in self._prices.items() if at > now - KEEP_S)
        self._prices = {each: self._prices[each] for _, each in kept[-MOST_PRICES:]}

    def prices(self, now: float) -> Mapping[str, bytes]:
        """The learned prices of all sidecars."""
        return {h: content for h, (at, content) in self._prices.items() if at > now - KEEP_S}

    def secret(self, new: bytes) -> bytes:
        """The secret of the pool; ``new`` if it has none."""
        self._secret = self._secret or new
        return self._secret

    @property
    def file_version(self) -> str:
        """The version of the published pool file; empty before the first."""
        return self._file[0] if self._file is not None else ""

    def exchange(self, message: Message, now: float) -> Exchange:
        """Apply a sidecar's message, and answer with its leases.

        A complete message begins a lifetime, and returns every lease that it does not name. Before a sidecar
        stops, it sends one more complete message with its usage totals and waits for the answer.

        A message changes nothing if its number is not above the number of the holder's last complete message.
        A lease request changes nothing if its row has a later number. Both are answered with the current
        leases.
        """
        self._expire(now)
        if now - self._heard_at > self._lifetime_s:
            self._opens_at = now + self._lifetime_s
        self._heard_at = now
        me = message.holder
        pushes: list[Push] = []
        holder = self._holders.get(me)
        if holder is None:
            holder = self._holders[me] = _Holder()
        is_late = message.number <= holder.number
        if not is_late:
            holder.heard_at = now
            self._expire_at = min(self._expire_at, now + REMEMBER_S)
        if message.is_complete and not is_late:
            pushes += self._begin_lifetime(holder, message, now)
        is_accepted = not is_late and holder.is_alive
        if is_accepted and (message.is_complete or message.renews):
            holder.expires_at = now + self._lifetime_s
            self._expire_at = min(self._expire_at, holder.expires_at)
            holder.report = message.report
        if is_accepted:
            self._state_room(holder, message.room, now)
        leases = {}
        for name, request in message.lease_requests.items():
            record = self._records.get(name)
            row = record.rows.get(me) if record is not None else None
            if not is_accepted or (row is not None and row.number >= message.number):
                leases[name] = self._current_lease(me, name, request, now)
            else:
                leases[name] = self._grant(holder, message, name, now, pushes)
        answer = Answer(
            leases,
            self._is_open(now),
            self._alive,
            self.file_version,
            now - self._published_at,
            self._terms,
            holder.is_alive,
            len(holder.entitlements),
            self._free(now),
            self._peers_of(me),
        )
        return Exchange(answer, pushes)

    def _begin_lifetime(self, holder: _Holder, message: Message, now: float) -> list[Push]:
        """Apply a complete message: its holder has a lifetime, and keeps only the leases that it names."""
        if not holder.is_alive:
            holder.is_alive = True
            self._alive += 1
        holder.number = message.number
        pushes: list[Push] = []
        for name in sorted(holder.entitlements.difference(message.lease_requests, message.kept)):
            record = self._records[name]
            if record.rows[message.holder].number < message.number:
                record.drop(message.holder)
                holder.entitlements.discard(name)
                if name in self._limits:
                    record.limit = self._limits[name]
                    record.refill(now, self._is_open(now))
                    pushes += _notify_waiters(name, record, message.holder, now)
        return pushes

    def _state_room(self, holder: _Holder, room: ReplicaRoom | None, now: float) -> None:
        """Remember a replica's free room, and charge its spending to the pool's bucket."""
        before, holder.room = holder.room, room
        if room is None or before is None:
            if room is not before:
                self._sum_rooms()
            return
        self._refill_pool(now)
        level = self._pool_level - (room.tokens_spent - before.tokens_spent)
        self._pool_level = min(level, self._terms.capacity[0] * POOL_BUCKET_S)  # a refund may have raised it
        self._kv_free += room.kv_tokens - before.kv_tokens
        self._sequences_free += room.sequences - before.sequences

    def _sum_rooms(self) -> None:
        """Recompute the sums over all rooms, because a replica came or left."""
        rooms = {name: holder.room for name, holder in self._holders.items() if holder.room is not None}
        self._with_room = list(rooms)
        self._kv_free = sum(room.kv_tokens for room in rooms.values())
        self._sequences_free = sum(room.sequences for room in rooms.values())

    def _refill_pool(self, now: float) -> None:
        rate = self._terms.capacity[0]
        level = self._pool_level + rate * max(now - self._pool_at, 0.0)
        self._pool_level, self._pool_at = min(level, rate * POOL_BUCKET_S), now

    def _free(self, now: float) -> Vector:
        """The free capacity of the pool."""
        self._refill_pool(now)
        return (self._pool_level, self._kv_free, self._sequences_free)

    def _peers_of(self, me: str) -> list[PeerRoom]:
        """At most ``MOST_PEERS`` replicas that accept handovers, beginning at a random one."""
        names, found = self._with_room, list[PeerRoom]()
        self._state = (self._state * 1103515245 + 12345) % 2147483648
        for number in range(min(MOST_PEERS + 1, len(names))):
            name = names[((self._state >> 8) + number) % len(names)]
            room = self._holders[name].room
            if name != me and room is not None and room.address and len(found) < MOST_PEERS:
                found.append(PeerRoom(name, room.address, room.kv_tokens, room.sequences, room.cached))
        return found

    def _is_open(self, now: float) -> bool:
        return now >= self._opens_at

    def _current_lease(self, holder: str, name: str, request: LeaseRequest, now: float) -> Lease:
        """The lease of a holder whose request is not applied."""
        record = copy(self._records.get(name)) or _Record(now)
        record.limit = self._limits.get(name, request.idle_limit)
        record.refill(now, self._is_open(now))
        row = record.rows.get(holder)
        own = row.values if row is not None else NO_ROW
        return record.lease(own, own.kv_tokens, own.concurrency, own.tokens, now)

    def _grant(self, holder: _Holder, message: Message, name: str, now: float, pushes: list[Push]) -> Lease:
        """Apply one lease request. This adds the notifications to ``pushes``."""
        me, request, is_open = message.holder, message.lease_requests[name], self._is_open(now)
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record(now)
        record.limit = self._limits.get(name, request.idle_limit)
        record.refill(now, is_open)
        row = record.rows.get(me)
        served = (request.tokens_spent, request.kv_seconds, request.concurrency_seconds)
        if row is None:
            row = record.rows[me] = _Row(served, request.tokens_borrowed)
            holder.entitlements.add(name)
        row.number = message.number
        record.charge(row, served, request.tokens_borrowed, is_open)
        old_floor, floor = record.floor, request.floor
        record.floor = (
            max(old_floor[0], floor[0]),
            max(old_floor[1], floor[1]),
            max(old_floor[2], floor[2]),
        )
        kv_tokens, concurrency, tokens = _granted(record, row.values, request) if is_open else (0.0, 0.0, 0.0)
        values = HolderRow(
            max(kv_tokens, request.kv_in_use, request.kv_bound),
            max(concurrency, request.concurrency_in_use, request.concurrency_bound),
            tokens,
            request.kv_in_use,
            request.concurrency_in_use,
            *request.demand,
            *request.fresh,
        )
        record.write(row, values)
        is_short = (
            kv_tokens < request.kv_wanted
            or concurrency < request.concurrency_wanted
            or tokens < request.tokens_wanted
        )
        if request.is_urgent and is_short:
            pushes += _reclaim(name, record, me, now)
        else:
            pushes += _notify_waiters(name, record, me, now)
        lease = record.lease(values, kv_tokens, concurrency, tokens, now)
        if request.is_last:
            record.drop(me)
            holder.entitlements.discard(name)
        return lease

    def _expire(self, now: float) -> None:
        """Take back the leases of sidecars without a renewal for a lifetime.

        Their usage totals are remembered for ``REMEMBER_S``. So a sidecar that lost its connection is charged
        for its usage of that time when it returns.
        """
        if now < self._expire_at:
            return
        had_room = len(self._with_room)
        for name, holder in list(self._holders.items()):
            if holder.is_alive and holder.expires_at <= now:
                had_room -= holder.room is not None
                holder.is_alive, holder.room = False, None
                self._alive -= 1
                for entitlement in sorted(holder.entitlements):
                    record = self._records[entitlement]
                    record.write(record.rows[name], NO_ROW)
            if not holder.is_alive and holder.heard_at + REMEMBER_S <= now:
                for entitlement in sorted(holder.entitlements):
                    self._records[entitlement].drop(name)
                del self._holders[name]
        if had_room < len(self._with_room):
            self._sum_rooms()
        ends = [h.expires_at if h.is_alive else h.heard_at + REMEMBER_S for h in self._holders.values()]
        self._expire_at = min(ends, default=math.inf)


def _granted(record: _Record, own: HolderRow, request: LeaseRequest) -> Vector:
    """The wanted lease, at most the capacity that no other holder has: KV tokens, sequences, tokens.

    The result may be less than the holder has in use. Then the holder admits nothing until enough requests
    end.
    """
    limit, sums = record.limit, record.sums
    kv_tokens = min(request.kv_wanted, limit.kv_tokens - (sums.kv_tokens - own.kv_tokens))
    free = limit.concurrency - (sums.concurrency - own.concurrency)
    # Whole sequences: no sidecar can use a part of a sequence.
    concurrency = float(math.floor(min(request.concurrency_wanted, free) + _EPSILON))
    tokens = min(request.tokens_wanted, record.level - (sums.tokens - own.tokens))
    return max(kv_tokens, 0.0), max(concurrency, 0.0), max(tokens, 0.0)


def _reclaim(name: str, record: _Record, asker: str, now: float) -> list[Push]:
    """Remember a holder that lacks capacity. The notifications ask all others to return unused leases."""
    record.waiters = {other: until for other, until in record.waiters.items() if until > now}
    record.waiters[asker] = now + WAIT_S
    if record.contended_until >= now + CONTENDED_S / 2:
        return []
    record.contended_until = now + CONTENDED_S
    return [
        Push(other, RECLAIM, name)
        for other, row in sorted(record.rows.items())
        if other != asker
        and (row.values.kv_tokens > 0 or row.values.concurrency > 0 or row.values.tokens > 0)
    ]


def _notify_waiters(name: str, record: _Record, sender: str, now: float) -> list[Push]:
    """If capacity is free in every dimension, notify the holders that lacked it."""
    limit, sums = record.limit, record.sums
    if not (
        record.waiters
        and limit.kv_tokens > sums.kv_tokens
        and limit.concurrency > sums.concurrency
        and record.level > sums.tokens
    ):
        return []
    waiters, record.waiters = record.waiters, {}
    return [
        Push(other, FREED, name)
        for other, until in sorted(waiters.items())
        if other != sender and until > now
    ]
