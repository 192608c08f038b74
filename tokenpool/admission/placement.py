"""Placement: the other replicas of the pool, their room as last known, and the choice of those to ask. Pure.

If the engine here has no room for a request, the sidecar asks a few other replicas (``PeerAsk``). Each of
them answers with an offer as soon as it has room, and keeps that room. The replica with the first offer gets
the request (*handover*), and the other asks are cancelled. This is the power of two choices with late
binding. The choice depends on which replica has room first, and not on the room that it stated before
(Ousterhout et al., "Sparrow", SOSP 2013).

A request inside its guarantee needs a replica on which it may end a spot request. So one of its asks is a
*probe*: it is answered at once, and the next replica is probed after a refusal.

If a replica stated room a moment ago, and its last answer was an offer, the request is sent to it together
with the ask, which saves a round trip. Without room that replica refuses both. Then the request asks as
above.

The room of other replicas comes with the answers of the lease store, which names a few at random. ``now`` is
in seconds of the sidecar's monotonic clock.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from tokenpool.accounting.ticket import Place, SentAsk
from tokenpool.admission.affinity import STATE_EVERY_S, Cached, Preference, PrefixCaches, beginnings
from tokenpool.admission.pending import PendingRequest, Standing, WaitsFor
from tokenpool.entitlements import Tier
from tokenpool.holders import engine_of

MOST_ASKED = 2
"""The most replicas that are asked for one request at a time."""
FORGET_S = 3.0
"""Seconds after which a replica is forgotten if no answer of the lease store has named it."""
AVOID_S = 1.0
"""Seconds for which a replica is not asked after its peer port failed."""
TRUST_S = 0.5
"""Seconds for which the stated room of a replica counts: two intervals of its messages."""
REPEAT_S = 5.0
"""Seconds after which an unchanged statement about a cache counts again: an idle engine keeps its cache."""
LEAST_FREE_SHARE = 0.25
"""A replica that is preferred for its cache must have free slots: at least this share of those here. With
0.5, 0.25 and 0, 35.1, 39.0 and 42.1 % of the tokens were cached (``simulation.affinity``, 12 requests/s).
With 0, one beginning that all requests share can fill one replica while others are idle."""
MOST_ASKED_GUARANTEED = 4
"""The same for a request inside its guarantee, once no replica has a spot request to end for it."""
MOST_PROBED = 8
"""The most replicas that are probed for one request, one after the other. Before there were probes, an ask
that could end spot waited at a replica without any, while other replicas had some. In the simulation of
``pool_guarantee``, 3 to 7 % of the guaranteed requests waited for 10 to 105 ms because of that."""
PROBE_REFUSED_S = 0.25
"""Seconds for which a replica that has refused a probe is probed after the others."""
MOST_UNANSWERED = 2
"""The most requests that one replica has got together with their asks, and has not answered. So a replica
that is paused after it stated room keeps at most this number of requests of one sidecar, besides those that
it has begun."""
MOST_KNOWN = 128
"""The most replicas to remember. A sidecar hands requests over only while these have room. In the simulation,
nine of ten requests arrived at one of 100 replicas at 80 % load. With 32 known replicas, 16 % of the elastic
requests were refused. With 128 known replicas, 0.3 % were."""


class KnownPeer(NamedTuple):
    """Another replica, as the lease store last named it."""

    name: str
    address: str
    kv_tokens: float
    sequences: float
    cached: str = ""
    """The beginnings of prompts in its engine's cache (``PrefixCaches.statement``)."""


class _Peer:
    """The known state of one replica."""

    __slots__ = (
        "address",
        "avoid_until",
        "cached",
        "engine",
        "has_offered",
        "is_mate",
        "kv_tokens",
        "learned_at",
        "name",
        "named_at",
        "probe_refused_at",
        "sequences",
        "unanswered",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.engine = engine_of(name)
        """The replica: all workers of a sidecar have the same one."""
        self.is_mate = False
        """Whether it is another worker of this sidecar, at the same engine. It is only asked to end spot."""
        self.unanswered = 0
        self.has_offered = False
        """Whether its last answer was an offer. A replica that is silent, or that states room which it does
        not have, gets no request together with an ask."""
        self.address = self.cached = ""
        self.kv_tokens = self.sequences = 0.0
        self.named_at = self.avoid_until = 0.0
        self.learned_at = self.probe_refused_at = -math.inf


class PeerAsk:
    """A question to one replica: does it have room for this request? There is at most one answer."""

    __slots__ = (
        "is_probe",
        "known_at",
        "kv_tokens",
        "longest_wait_s",
        "number",
        "peer",
        "pending",
        "place",
        "preference",
        "prompt",
        "sequences",
        "standing",
        "tier",
    )

    def __init__(
        self, number: int, peer: str, address: str, pending: PendingRequest, wait_s: float, now: float
    ) -> None:
        self.number = number
        self.peer = peer
        """The id of the other replica's sidecar."""
        self.pending = pending
        self.place = Place(peer, address, number, now)
        self.sequences = pending.cost.sequences
        self.kv_tokens = pending.cost.kv_tokens
        self.tier: Tier = pending.account.entitlement.tier
        self.standing = Standing.BEYOND if pending.waits_for is WaitsFor.LEASE else Standing.WITHIN
        """Without a lease that covers it, the request may only use room that other requests do not need."""
        self.preference: Preference | None = None
        """Set if this replica is asked alone, because it has the prompt in its cache."""
        self.longest_wait_s = wait_s
        """The longest time that the request may wait there, in seconds."""
        self.prompt = _prompt(pending)
        """The beginnings of its prompt. The other engine has them in its cache after it ran the request."""
        self.is_probe = False
        """Whether it asks for a slot of a spot request, and is answered at once."""
        self.known_at = -math.inf
        """The time of the last answer that had named the replica when it was asked."""


class Placement:
    """The other replicas, and the asks that are under way. ``seed`` names this sidecar.

    ``caches`` is ``None`` without prefix affinity.
    """

    def __init__(
        self, seed: str, caches: PrefixCaches | None = None, *, own_workers: str = "", has_others: bool = True
    ) -> None:
        """``own_workers`` is the start of the holder names of the other workers of this sidecar.

        ``has_others`` is false if requests are not handed over to other replicas.
        """
        self.caches = caches
        self._own_workers = own_workers
        self._has_others = has_others
        self._peers: dict[str, _Peer] = {}
        self.replicas = 1
        """The replicas that are known, with this one. All workers of a sidecar are one replica."""
        self._state = zlib.crc32(seed.encode()) | 1
        """The state of a small generator: other sidecars choose in another order."""
        self._number = 0
        self.asks: dict[PendingRequest, list[PeerAsk]] = {}
        """The asks that are under way, by request."""
        self._unanswered: dict[int, _Peer] = {}
        """The replicas of the requests that were sent together with their asks, by number of the ask."""

    # --- the known replicas ---

    def learn(self, named: Iterable[KnownPeer], now: float) -> None:
        """An answer of the lease store names these replicas."""
        for name, address, kv_tokens, sequences, cached in named:
            if not self._has_others or (self._own_workers and name.startswith(self._own_workers)):
                continue
            peer = self._peers.get(name)
            if peer is None:
                peer = self._peers[name] = _Peer(name)
            peer.address, peer.kv_tokens, peer.sequences = address, kv_tokens, sequences
            peer.named_at = now
            age_s = now - peer.learned_at
            if self.caches is not None and age_s >= (STATE_EVERY_S if cached != peer.cached else REPEAT_S):
                peer.cached, peer.learned_at = cached, now
                self.caches.learn(name, cached, now)
        for name in [n for n, p in self._peers.items() if now - p.named_at > FORGET_S]:
            del self._peers[name]
        while len(self._peers) > MOST_KNOWN:
            del self._peers[min(self._peers, key=lambda name: self._peers[name].named_at)]
        self._count()

    def learn_mates(self, named: Iterable[tuple[str, str]], now: float) -> None:
        """The other workers of this sidecar, with their addresses. They have no room of their own."""
        for name, address in named:
            peer = self._peers.get(name)
            if peer is None:
                peer = self._peers[name] = _Peer(name)
                peer.is_mate = True
            peer.address, peer.named_at = address, now
        self._count()

    def _count(self) -> None:
        self.replicas = 1 + len({peer.engine for peer in self._peers.values() if not peer.is_mate})

    @property
    def known(self) -> list[KnownPeer]:
        """The other replicas, as last known."""
        return [
            KnownPeer(p.name, p.address, p.kv_tokens, p.sequences, p.cached) for p in self._peers.values()
        ]

    def has_room(self, sequences: int, kv_tokens: int, now: float) -> bool:
        """Whether another replica had room for a request of this size, as last known."""
        return any(_fits(peer, sequences, kv_tokens, now) for peer in self._peers.values())

    def failed(self, name: str, now: float) -> None:
        """The peer port of a replica failed: do not ask it for a while."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.avoid_until, peer.has_offered = now + AVOID_S, False

    # --- asks ---

    def ask(self, pending: PendingRequest, wait_s: float, now: float, more: int = 0) -> list[PeerAsk]:
        """Ask up to ``MOST_ASKED`` replicas for room. Replicas with room, as last known, come first.

        If a replica with room has the prompt in its cache, ask only that replica, for room at once. The
        others are asked when it refuses. With two asks at a time, the other replica would often get the
        request. ``more`` is the number of further replicas with room to ask.

        The first ask of a request inside its guarantee is a probe.
        """
        if not more and pending not in self.asks and pending.may_prefer:
            alone = self._ask_preferred(pending, 0.0, now)
            if alone is not None:
                self.asks[pending] = [alone]
                return [alone]
        under_way = self.asks.get(pending, [])
        made: list[PeerAsk] = []
        is_first = not under_way and not more and wait_s > 0
        probe = self._probe(pending, now) if is_first and _may_end_spot(pending) else None
        if probe is not None:
            made.append(probe)
        made += self._ask_others(pending, [*under_way, *made], wait_s, now, more)
        if made:
            self.asks.setdefault(pending, []).extend(made)
        return made

    def probe_again(self, pending: PendingRequest, wait_s: float, now: float) -> list[PeerAsk]:
        """A replica has refused the probe of a request, or failed: probe the next one.

        After the last one, asks wait at several replicas for a slot. One of them may end spot that comes.
        Does nothing while another ask may end spot.
        """
        if any(ask.standing is Standing.ASSURED for ask in self.asks.get(pending, ())):
            return []
        probe = self._probe(pending, now) if _may_end_spot(pending) else None
        made = [probe] if probe is not None else []
        if not made:
            under_way = self.asks.get(pending, [])
            made = self._ask_others(pending, under_way, wait_s, now, 0, MOST_ASKED_GUARANTEED)
            if made and _may_end_spot(pending):
                made[0].standing = Standing.ASSURED
        if made:
            self.asks.setdefault(pending, []).extend(made)
        return made

    def _probe(self, pending: PendingRequest, now: float) -> PeerAsk | None:
        """Ask one replica that was not probed for this request yet. It answers at once.

        Only one replica at a time may end a spot request for it: two offers would end two.
        """
        cost = pending.cost
        usable = [p for p in self._peers.values() if p.avoid_until <= now and p.name not in pending.probed]
        if not usable or len(pending.probed) >= MOST_PROBED:
            return None
        likely = [p for p in usable if _fits(p, cost.sequences, cost.kv_tokens, now)]
        likely = likely or [p for p in usable if now - p.probe_refused_at > PROBE_REFUSED_S]
        (peer,) = self._choose(likely or usable, 1)
        pending.probed = (*pending.probed, peer.name)
        ask = self._ask(peer, pending, 0.0, now)
        ask.is_probe, ask.standing = True, Standing.ASSURED
        return ask

    def _ask_others(
        self,
        pending: PendingRequest,
        under_way: list[PeerAsk],
        wait_s: float,
        now: float,
        more: int,
        most: int = MOST_ASKED,
    ) -> list[PeerAsk]:
        """Ask until ``most`` replicas are asked, or ask ``more`` of those with room."""
        sequences, kv_tokens = pending.cost.sequences, pending.cost.kv_tokens
        asked = {ask.peer for ask in under_way}
        usable = [
            p for p in self._peers.values() if p.avoid_until <= now and p.name not in asked and not p.is_mate
        ]
        with_room = [p for p in usable if _fits(p, sequences, kv_tokens, now)]
        chosen = self._choose(with_room, more or most - len(asked))
        if wait_s > 0 and not more and len(chosen) + len(asked) < most:
            others = [p for p in usable if p not in chosen]
            chosen += self._choose(others, most - len(asked) - len(chosen))
        return [self._ask(peer, pending, wait_s, now) for peer in chosen]

    def send(self, pending: PendingRequest, now: float) -> PeerAsk | None:
        """Choose a replica with room, as last known, that gets the request together with the ask.

        A replica with the prompt in its cache comes first. The place of the ask has ``sent``. ``answered`` or
        ``unanswered`` must follow.
        """
        cost = pending.cost
        ask = self._ask_preferred(pending, 0.0, now, is_sent=True) if pending.may_prefer else None
        if ask is None:
            usable = [
                peer
                for peer in self._peers.values()
                if _may_send(peer) and _fits(peer, cost.sequences, cost.kv_tokens, now)
            ]
            for peer in self._choose(usable, 1):
                ask = self._ask(peer, pending, 0.0, now)
        if ask is None:
            return None
        if pending.account.is_inside_guarantee(cost.sequences, cost.kv_tokens):
            ask.standing = Standing.ASSURED
        sent = SentAsk(ask.standing.value, ask.prompt)
        ask.place = Place(ask.peer, ask.place.address, ask.number, now, sent)
        peer = self._unanswered[ask.number] = self._peers[ask.peer]
        peer.unanswered += 1
        return ask

    def answered(self, place: Place, *, has_room: bool) -> None:
        """A replica has answered a request that it got with its ask: it has begun, or has no room."""
        self._end_send(place, has_offered=has_room)
        if not has_room:
            self.refused(place.peer)

    def unanswered(self, place: Place) -> None:
        """A request at this place has ended. Does nothing if the replica has answered before."""
        if place.sent is not None:
            self._end_send(place, has_offered=False)

    def _end_send(self, place: Place, *, has_offered: bool) -> None:
        peer = self._unanswered.pop(place.number, None)
        if peer is not None:
            peer.unanswered -= 1
            peer.has_offered = has_offered

    @property
    def sent(self) -> int:
        """The number of requests that were sent together with their asks, and have no answer."""
        return len(self._unanswered)

    def offered(self, name: str) -> None:
        """A replica keeps room for an ask."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.has_offered = True

    def prefer(self, pending: PendingRequest, free: float, now: float) -> PeerAsk | None:
        """Ask the replica that has more of a prompt in its cache, for a request that has room here.

        ``free`` is the number of free slots here if the request runs elsewhere. The other replica must have
        at least ``LEAST_FREE_SHARE`` of this number free. So a beginning that many requests share spreads
        over the replicas, and each of them computes it once. The ask is not in ``asks``: the caller keeps it.
        """
        return self._ask_preferred(pending, LEAST_FREE_SHARE * free, now)

    def _ask_preferred(
        self, pending: PendingRequest, least_free: float, now: float, *, is_sent: bool = False
    ) -> PeerAsk | None:
        """Ask the replica with the most of a prompt in its cache, for room at once; ``None`` without one.

        It must have more of the prompt than the engine here, and room for the request. Then ``least_free`` of
        its slots must be left.
        """
        caches, cost = self.caches, pending.cost
        if caches is None or not pending.ask.prefixes:
            return None
        for preference in caches.preferences(_prompt(pending), cost.input_tokens, now):
            peer = self._peers.get(preference.name)
            if (
                peer is not None
                and _fits(peer, cost.sequences, cost.kv_tokens, now)
                and peer.sequences - cost.sequences >= least_free
                and (not is_sent or _may_send(peer))
            ):
                ask = self._ask(peer, pending, 0.0, now)
                ask.preference = preference
                return ask
        return None

    def _ask(self, peer: _Peer, pending: PendingRequest, wait_s: float, now: float) -> PeerAsk:
        # The next requests find the rest of the room, until an answer states the room again.
        peer.sequences -= pending.cost.sequences
        self._number += 1
        ask = PeerAsk(self._number, peer.name, peer.address, pending, wait_s, now)
        ask.known_at = peer.named_at
        return ask

    def ended(self, ask: PeerAsk) -> bool:
        """An ask has its answer, or failed. Returns whether it was under way."""
        asks = self.asks.get(ask.pending)
        if asks is None or ask not in asks:
            return False
        asks.remove(ask)
        if not asks:
            del self.asks[ask.pending]
        return True

    def withdraw(self, pending: PendingRequest) -> list[PeerAsk]:
        """The request needs no room any more. Returns the asks to cancel.

        The room that was counted for these asks is added to the known room of their replicas again. Without
        that, each request used up the known room of two replicas. In the simulation with nine of ten requests
        at one of four replicas, 0.5 % were refused while another replica had room. With it none were.
        """
        cancelled = self.asks.pop(pending, [])
        for ask in cancelled:
            self._return_room(ask)
        return cancelled

    def unsend(self, ask: PeerAsk) -> None:
        """The request of this ask is not sent."""
        self._end_send(ask.place, has_offered=True)
        self._return_room(ask)

    def _return_room(self, ask: PeerAsk) -> None:
        peer = self._peers.get(ask.peer)
        if peer is not None and peer.named_at == ask.known_at:
            peer.sequences += ask.sequences

    def probe_refused(self, name: str, now: float) -> None:
        """A replica has no room, and no spot request that can be ended."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.probe_refused_at = now

    def refused(self, name: str) -> None:
        """A replica has no room, although it may have stated some."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.sequences, peer.has_offered = min(peer.sequences, 0.0), False

    def _choose(self, peers: list[_Peer], count: int) -> list[_Peer]:
        """Choose ``count`` replicas at random."""
        chosen: list[_Peer] = []
        rest = list(peers)
        while rest and len(chosen) < count:
            self._state = (self._state * 1103515245 + 12345) % 2147483648
            chosen.append(rest.pop((self._state >> 8) % len(rest)))
        return chosen


def _prompt(pending: PendingRequest) -> tuple[Cached, ...]:
    cost = pending.cost
    return beginnings(pending.ask, cost.input_tokens, cost.output_tokens)


def _may_end_spot(pending: PendingRequest) -> bool:
    """Whether a spot request may be ended for this request on another replica."""
    return pending.waits_for is not WaitsFor.LEASE and pending.account.is_inside_guarantee(
        pending.cost.sequences, pending.cost.kv_tokens
    )


def _may_send(peer: _Peer) -> bool:
    """Whether a replica may get a request together with the ask."""
    return peer.has_offered and peer.unanswered < MOST_UNANSWERED


def _fits(peer: _Peer, sequences: int, kv_tokens: int, now: float) -> bool:
    return (
        peer.avoid_until <= now
        and now - peer.named_at <= TRUST_S
        and peer.sequences >= sequences
        and peer.kv_tokens >= kv_tokens
    )
