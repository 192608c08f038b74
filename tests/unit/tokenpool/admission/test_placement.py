"""Placement: the known room of other replicas, and the choice of those to ask for a request."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, account, cost
from tokenpool.admission.pending import PendingRequest, Standing, WaitsFor
from tokenpool.admission.placement import (
    AVOID_S,
    FORGET_S,
    MOST_ASKED,
    MOST_ASKED_GUARANTEED,
    MOST_KNOWN,
    MOST_PROBED,
    MOST_UNANSWERED,
    TRUST_S,
    KnownPeer,
    Placement,
)
from tokenpool.amounts import Amount
from tokenpool.entitlements import Tier

LONG_S = 1.0


def pending(sequences: int = 1, kv_tokens: int = 100, tier: Tier = Tier.ELASTIC) -> PendingRequest:
    priced = cost(sequences=sequences, kv_tokens=kv_tokens)
    return PendingRequest(account(tier=tier), ASK, priced, 0.0, longest_wait_s=LONG_S)


def peer(name: str, sequences: float = 4, kv_tokens: float = 1000) -> KnownPeer:
    return KnownPeer(name, f"{name}:1", kv_tokens, sequences)


def placement(*peers: KnownPeer, seed: str = "me", now: float = 0.0) -> Placement:
    made = Placement(seed)
    made.learn(peers, now)
    return made


def test_an_ask_states_the_size_the_tier_and_the_longest_wait_of_its_request() -> None:
    request = pending(2, 300, Tier.GUARANTEED)
    (ask,) = placement(peer("a")).ask(request, 0.75, 0.0)
    assert (ask.peer, ask.pending, ask.place) == ("a", request, ("a", "a:1", ask.number, 0.0, None))
    assert (ask.sequences, ask.kv_tokens, ask.tier, ask.longest_wait_s) == (2, 300, Tier.GUARANTEED, 0.75)


def test_replicas_with_room_are_asked_before_full_ones() -> None:
    peers = [peer("free"), *(peer(f"full{number}", sequences=0) for number in range(20))]
    for seed in "abcdefgh":
        asks = placement(*peers, seed=seed).ask(pending(), LONG_S, 0.0)
        assert len(asks) == MOST_ASKED
        assert asks[0].peer == "free"


def test_a_request_that_may_not_wait_asks_only_where_there_was_room() -> None:
    made = placement(peer("free"), peer("full", sequences=0), peer("small", kv_tokens=99))
    assert [ask.peer for ask in made.ask(pending(), 0.0, 0.0)] == ["free"]
    assert made.ask(pending(sequences=5), 0.0, 0.0) == []


def test_asks_take_the_known_room_until_it_is_stated_anew() -> None:
    made = placement(peer("a", sequences=2))
    for _ in range(2):
        assert made.has_room(1, 100, 0.0)
        assert len(made.ask(pending(), 0.0, 0.0)) == 1
    assert not made.has_room(1, 100, 0.0)
    assert made.ask(pending(), 0.0, 0.0) == []
    made.learn([peer("a", sequences=1)], 0.1)
    assert made.has_room(1, 100, 0.1)


def test_room_counts_only_while_it_is_new() -> None:
    made = placement(peer("a"))
    assert made.has_room(1, 100, TRUST_S)
    assert not made.has_room(1, 100, TRUST_S + 0.01)
    assert made.ask(pending(), 0.0, TRUST_S + 0.01) == []
    # A request that may wait asks there nevertheless: the replica answers once it has room.
    assert [ask.peer for ask in made.ask(pending(), LONG_S, TRUST_S + 0.01)] == ["a"]


def test_a_replica_that_failed_is_avoided_for_a_while() -> None:
    made = placement(peer("a"), peer("b"))
    made.failed("a", 0.0)
    made.failed("unknown", 0.0)
    assert [ask.peer for ask in made.ask(pending(), LONG_S, 0.1)] == ["b"]
    made.learn([peer("a")], AVOID_S - 0.01)  # the lease store has not noticed the failure
    assert not made.has_room(1, 100, AVOID_S - 0.01)
    assert made.has_room(1, 100, AVOID_S)


def test_a_replica_that_is_named_no_more_is_forgotten() -> None:
    made = placement(peer("a"), peer("b"))
    made.learn([peer("b", sequences=1)], FORGET_S)
    assert made.replicas == 3
    made.learn([], FORGET_S + 0.1)
    assert made.known == [peer("b", sequences=1)]
    assert made.replicas == 2


def test_the_number_of_known_replicas_is_bounded() -> None:
    made = placement(peer("old"))
    made.learn([peer(f"p{number}") for number in range(MOST_KNOWN)], 0.1)
    assert len(made.known) == MOST_KNOWN
    assert "old" not in {each.name for each in made.known}


def test_a_replica_at_another_address_is_asked_there() -> None:
    made = placement(peer("a"))
    made.learn([KnownPeer("a", "a:2", 1000, 4)], 0.1)
    (ask,) = made.ask(pending(), LONG_S, 0.1)
    assert ask.place.address == "a:2"


def test_each_ask_ends_once() -> None:
    made, request = placement(peer("a"), peer("b")), pending()
    first, second = made.ask(request, LONG_S, 0.0)
    assert made.ended(first)
    assert not made.ended(first)
    assert made.asks == {request: [second]}
    assert made.withdraw(request) == [second]
    assert not made.ended(second)
    assert made.withdraw(request) == []
    assert made.asks == {}


def test_further_replicas_are_asked_as_they_have_room() -> None:
    made, request = placement(*(peer(name, sequences=0) for name in "abc")), pending()
    asked = {ask.peer for ask in made.ask(request, LONG_S, 0.0)}
    assert len(asked) == MOST_ASKED
    assert made.ask(request, LONG_S, 0.0) == []
    (third,) = {"a", "b", "c"} - asked
    assert made.ask(request, LONG_S, 0.0, more=1) == []  # none has room
    made.learn([peer(name) for name in "abc"], 0.1)
    assert [ask.peer for ask in made.ask(request, LONG_S, 0.1, more=1)] == [third]
    assert made.ask(request, LONG_S, 0.1, more=1) == []


# --- probes ---


def guaranteed() -> PendingRequest:
    """A request inside its guarantee, which waits for the engine."""
    gold = account(tier=Tier.GUARANTEED, guarantee=Amount(1e6, 1e6, 1))
    made = PendingRequest(gold, ASK, cost(), 0.0, longest_wait_s=LONG_S)
    made.waits_for = WaitsFor.ENGINE
    return made


def test_a_request_inside_its_guarantee_probes_one_replica_after_the_other() -> None:
    names = "abcd"
    made, request = placement(*(peer(name, sequences=0) for name in names)), guaranteed()
    probe, waits = made.ask(request, LONG_S, 0.0)
    assert (probe.is_probe, probe.standing, probe.longest_wait_s) == (True, Standing.ASSURED, 0.0)
    assert (waits.is_probe, waits.standing, waits.longest_wait_s) == (False, Standing.WITHIN, LONG_S)
    probed = [probe.peer]
    while True:
        made.probe_refused(probe.peer, 0.0)
        assert made.ended(probe)
        again = made.probe_again(request, LONG_S, 0.0)
        if not again[0].is_probe:
            break
        (probe,) = again
        probed.append(probe.peer)
        assert [ask for ask in made.asks[request] if ask.standing is Standing.ASSURED] == [probe]
    # None has spot: asks wait at all of them, and only one may end spot that comes.
    assert sorted(probed) == list(names)
    asks = made.asks[request]
    assert sorted(ask.peer for ask in asks) == list(names)
    assert [ask.standing for ask in asks].count(Standing.ASSURED) == 1
    assert {ask.longest_wait_s for ask in asks} == {LONG_S}


def test_a_replica_that_has_just_refused_a_probe_is_probed_last() -> None:
    made = placement(*(peer(name, sequences=0) for name in "abc"))
    made.probe_refused("a", 0.0)
    made.probe_refused("gone", 0.0)
    for _ in range(20):
        request = guaranteed()
        assert made.ask(request, LONG_S, 0.1)[0].peer != "a"
        made.withdraw(request)
    free = placement(peer("a"), peer("b", sequences=0))
    free.probe_refused("a", 0.0)
    assert free.ask(guaranteed(), LONG_S, 0.1)[0].peer == "a"  # it states room since then


def test_only_one_ask_at_a_time_may_end_spot() -> None:
    made, request = placement(*(peer(name, sequences=0) for name in "abc")), guaranteed()
    probe, _ = made.ask(request, LONG_S, 0.0)
    assert made.probe_again(request, LONG_S, 0.0) == []
    made.ended(probe)
    (second,) = made.probe_again(request, LONG_S, 0.0)
    assert made.probe_again(request, LONG_S, 0.0) == []
    made.ended(second)
    assert len(made.probe_again(request, LONG_S, 0.0)) == 1


def test_the_number_of_probes_is_bounded() -> None:
    made = placement(*(peer(f"p{number}", sequences=0) for number in range(2 * MOST_PROBED)))
    request = guaranteed()
    asks = made.ask(request, LONG_S, 0.0)
    count = 0
    while asks[0].is_probe:
        count += 1
        made.ended(asks[0])
        asks = made.probe_again(request, LONG_S, 0.0)
    assert count == MOST_PROBED
    assert len(made.asks[request]) == MOST_ASKED_GUARANTEED


def test_a_request_beyond_its_lease_ends_no_spot_elsewhere() -> None:
    request = guaranteed()
    request.waits_for = WaitsFor.LEASE
    asks = placement(peer("a"), peer("b")).ask(request, LONG_S, 0.0)
    assert {ask.standing for ask in asks} == {Standing.BEYOND}


# --- requests that are sent together with their asks ---


def trusted(*peers: KnownPeer) -> Placement:
    """A placement to which every replica has made an offer."""
    made = placement(*peers)
    for each in peers:
        made.offered(each.name)
    return made


def test_a_request_is_sent_with_its_ask_to_a_replica_that_has_room_and_has_offered_some() -> None:
    made, request = placement(peer("a"), peer("full", sequences=0)), pending(2, 300)
    made.offered("full")
    assert made.send(request, 0.0) is None  # the last answer of the other one was no offer
    made.offered("a")
    ask = made.send(request, 0.0)
    assert ask is not None
    assert (ask.peer, ask.pending, ask.longest_wait_s) == ("a", request, 0.0)
    assert ask.place.sent == ("within", ())
    assert made.asks == {}
    assert made.known[0].sequences == 2
    assert made.send(pending(), TRUST_S + 0.01) is None  # its room is not known any more


def test_a_request_inside_its_guarantee_is_sent_as_an_assured_one() -> None:
    made = trusted(peer("a"))
    gold = account(tier=Tier.GUARANTEED, guarantee=Amount(1e6, 1e6, 1))
    ask = made.send(PendingRequest(gold, ASK, cost(), 0.0, longest_wait_s=LONG_S), 0.0)
    assert ask is not None
    assert ask.place.sent is not None
    assert ask.place.sent.standing == "assured"


def test_a_replica_gets_a_bounded_number_of_requests_before_it_answers() -> None:
    made = trusted(peer("a", sequences=100))
    sent = [made.send(pending(), 0.0) for _ in range(MOST_UNANSWERED)]
    assert made.send(pending(), 0.0) is None
    assert made.sent == MOST_UNANSWERED
    assert sent[0] is not None
    made.answered(sent[0].place, has_room=True)
    made.answered(sent[0].place, has_room=True)  # nothing more
    assert made.send(pending(), 0.0) is not None
    assert made.send(pending(), 0.0) is None


def test_a_refusal_silence_and_a_failure_each_end_it_until_the_next_offer() -> None:
    for end in ("refused", "silent", "failed", "asked in vain"):
        made = trusted(peer("a"))
        ask = made.send(pending(), 0.0)
        assert ask is not None
        if end == "refused":
            made.answered(ask.place, has_room=False)
        elif end == "silent":
            made.unanswered(ask.place)
        elif end == "failed":
            made.failed("a", 0.0)
        else:
            made.refused("a")
        made.learn([peer("a")], AVOID_S)
        assert made.send(pending(), AVOID_S) is None, end
        made.offered("a")
        assert made.send(pending(), AVOID_S) is not None, end


def test_a_request_that_is_not_sent_leaves_everything_as_it_was() -> None:
    made = trusted(peer("a"))
    ask = made.send(pending(), 0.0)
    assert ask is not None
    made.unsend(ask)
    assert (made.sent, made.known) == (0, [peer("a")])
    assert made.send(pending(), 0.0) is not None


def test_the_answer_of_a_replica_that_was_forgotten_meanwhile_is_no_defect() -> None:
    made = trusted(peer("a"))
    ask = made.send(pending(), 0.0)
    assert ask is not None
    made.learn([], FORGET_S + 0.1)
    made.learn([peer("a")], FORGET_S + 0.2)
    made.answered(ask.place, has_room=True)
    assert made.sent == 0
    made.offered("gone")


def test_sidecars_that_know_the_same_replicas_do_not_choose_the_same_ones() -> None:
    peers = [peer(f"p{number}", sequences=100) for number in range(8)]
    chosen: Counter[str] = Counter()
    for seed in range(400):
        chosen.update(ask.peer for ask in placement(*peers, seed=f"s{seed}").ask(pending(), LONG_S, 0.0))
    fair = 400 * MOST_ASKED / len(peers)
    assert all(0.6 * fair <= chosen[each.name] <= 1.4 * fair for each in peers)


def test_one_sidecar_chooses_every_replica_equally_often() -> None:
    peers = [peer(f"p{number}", sequences=1e6) for number in range(8)]
    made, chosen = placement(*peers), Counter[str]()
    for _ in range(400):
        chosen.update(ask.peer for ask in made.ask(pending(), LONG_S, 0.0))
    fair = 400 * MOST_ASKED / len(peers)
    assert all(0.7 * fair <= chosen[each.name] <= 1.3 * fair for each in peers)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["learn", "ask", "more", "end", "fail", "withdraw"]),
        st.integers(0, 5),
        st.integers(-1, 3),
        st.sampled_from([0.0, 0.0, 0.1, 0.6, 4.0]),
    ),
    max_size=60,
)


@given(STEPS)
def test_a_request_asks_different_replicas_that_are_not_avoided(
    steps: list[tuple[str, int, int, float]],
) -> None:
    made, requests, now = Placement("me"), [pending() for _ in range(3)], 0.0
    avoided: dict[str, float] = {}
    numbers: set[int] = set()
    for what, which, room, wait_s in steps:
        now += wait_s
        name, request = f"p{which}", requests[which % 3]
        under_way = made.asks.get(request, [])
        if what == "learn":
            made.learn([peer(name, sequences=room)], now)
        elif what in ("ask", "more"):
            before = {ask.peer for ask in under_way}
            new = made.ask(request, float(which % 2), now, more=1 if what == "more" else 0)
            for ask in new:
                assert avoided.get(ask.peer, 0.0) <= now
                assert ask.peer not in before
                assert ask.number not in numbers
                before.add(ask.peer)
                numbers.add(ask.number)
            assert len(new) <= (1 if what == "more" else MOST_ASKED)
        elif what == "end" and under_way:
            made.ended(under_way[room % len(under_way)])
        elif what == "fail":
            if name in {each.name for each in made.known}:
                avoided[name] = now + AVOID_S
            made.failed(name, now)
        elif what == "withdraw":
            assert made.withdraw(request) == under_way
        if what == "learn":
            avoided = {n: at for n, at in avoided.items() if n in {each.name for each in made.known}}
        for asks in made.asks.values():
            assert asks
            assert len({ask.peer for ask in asks}) == len(asks)


def test_the_workers_of_one_sidecar_are_no_replicas_for_each_other() -> None:
    made = Placement("me", own_workers="pod/")
    made.learn([peer("pod/1-77"), peer("other")], 0.0)

    assert [each.name for each in made.known] == ["other"]
    made.learn_mates([("worker 1", "unix:/run/peer-1")], 0.0)
    assert made.replicas == 2
    asked = made.ask(pending(), LONG_S, 0.0)
    assert [ask.peer for ask in asked] == ["other"]


def test_all_workers_of_another_sidecar_are_one_replica() -> None:
    made = Placement("pod/0-0", own_workers="pod/")
    two = [peer(f"two-1-ab/{index}-0") for index in range(4)]

    made.learn([*two, peer("three-1-ab/0-0"), peer("alone-1-ab")], 0.0)
    assert made.replicas == 4
    assert len(made.known) == 6  # each worker of it may be asked

    made.learn([peer("two-1-ab/3-1")], FORGET_S)  # it was started again
    assert made.replicas == 4
    made.learn([peer("alone-1-ab")], 2 * FORGET_S)
    assert made.replicas == 3
    made.learn([], 4 * FORGET_S)
    assert made.replicas == 1


def test_without_handover_only_the_other_workers_are_known() -> None:
    made = Placement("me", has_others=False)
    made.learn([peer("other")], 0.0)

    assert made.known == []
    made.learn_mates([("worker 1", "unix:/run/peer-1")], 0.0)
    assert [each.name for each in made.known] == ["worker 1"]
