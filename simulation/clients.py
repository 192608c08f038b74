"""The simulated clients: arrivals in open loop, workers in closed loop, or the requests of a record."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate

from simulation.clock import VirtualClock
from simulation.engine import Prompt
from simulation.judge import Judge
from simulation.setup import Recorded, Setup, Tenant
from simulation.sidecar import Request, Sidecar

TURNS = 4
"""The mean number of requests of a conversation, as in Mooncake's trace."""
LONGEST_PROMPT = 1500


class Clients:
    """The clients of all tenants."""

    def __init__(
        self,
        setup: Setup,
        clock: VirtualClock,
        chance: random.Random,
        judge: Judge,
        sidecars: Sequence[Sidecar],
    ) -> None:
        self._setup, self._clock, self._chance = setup, clock, chance
        self._judge, self._sidecars = judge, sidecars
        self._talks: dict[int, Prompt] = {}
        """The conversations by place, with their tokens so far."""
        self._begun = 0
        self._arrival_chance = random.Random(f"arrivals {setup.seed}")
        self._arrivals = list(accumulate(t.arrivals for t in setup.tenants))
        self._tenants = {t.entitlement.name: (place, t) for place, t in enumerate(setup.tenants)}

    def start(self) -> None:
        """Schedule the first requests."""
        setup = self._setup
        if setup.replay:
            self._replay(iter(enumerate(setup.replay)))
            return
        if setup.open_loop:
            self._clock.after(setup.warm_up_s / 2, self._arrive_at_random)
            return
        for tenant in setup.tenants:
            for _ in range(tenant.workers):
                wait = tenant.starts_at + 0.5 + self._chance.random() * max(tenant.think_s, 0.2)
                self._clock.after(wait, lambda tenant=tenant: self._arrive(tenant, self._chance))  # type: ignore[misc]

    def send_again(self, tenant: Tenant, wait: float) -> None:
        """Schedule the next request of a worker after about ``wait`` seconds. Open loop has no workers.

        A record has none either: the requests that its clients sent again are in it.
        """
        if not self._setup.open_loop and not self._setup.replay:
            chance = self._chance
            self._clock.after(wait * chance.uniform(0.5, 1.5), lambda: self._arrive(tenant, chance))

    def try_elsewhere(self, sidecar: Sidecar, request: Request) -> bool:
        """Send a refused request to a replica that has not refused it. Returns false after the last try."""
        request.tried.append(sidecar)
        if len(request.tried) >= min(self._setup.tries, len(self._sidecars)):
            return False
        other = self._chance.choice([each for each in self._sidecars if each not in request.tried])
        # The refusal goes to the client, and the request to the other replica.
        self._clock.after(2 * self._setup.distance_s, lambda: other.when_awake(lambda: other.offer(request)))
        return True

    def sidecar_lost(self, sidecar: Sidecar) -> None:
        """Let the workers send again whose requests are lost with a sidecar."""
        for tenant in self._setup.tenants:
            for _ in range(sidecar.accounts[tenant.entitlement.name].concurrency_in_use):
                self.send_again(tenant, 0.5)
        for request in sidecar.waiting:
            self.send_again(request.tenant, 0.5)

    def _replay(self, following: Iterator[tuple[int, Recorded]]) -> None:
        """Schedule the next request of the record. Times count from the end of the warm-up."""
        number, recorded = next(following, (0, None))
        if recorded is None:
            return

        def arrive() -> None:
            self._offer(self._repeated(number, recorded), self._chance.choice(self._sidecars))
            self._replay(following)

        self._clock.after(max(recorded.at_s + self._setup.warm_up_s - self._clock.now, 0.0), arrive)

    def _repeated(self, number: int, recorded: Recorded) -> Request:
        """A request of the record, with a prompt of its own after the part that was cached."""
        place, tenant = self._tenants[recorded.entitlement]
        prompt = Prompt(number, recorded.input_tokens, recorded.cached_tokens, place)
        request = Request(tenant, recorded.output_tokens, prompt)
        request.recorded = recorded
        return request

    def _arrive_at_random(self) -> None:
        """Poisson arrivals, each of a random tenant. They are the same for every pool that serves them."""
        chance = self._arrival_chance
        chosen = chance.choices(self._setup.tenants, cum_weights=self._arrivals)
        self._arrive(chosen[0], chance)
        self._clock.after(chance.expovariate(self._setup.open_loop), self._arrive_at_random)

    def _next_turn(self, output_tokens: int, chance: random.Random) -> Prompt:
        """The next prompt of a random conversation: everything before it, and a new question."""
        talks = self._talks
        place = chance.randrange(self._setup.conversations)
        talk = talks.get(place)
        if talk is None or talk.tokens > LONGEST_PROMPT or chance.random() < 1 / TURNS:
            self._begun += 1
            talk = Prompt(self._begun, 0)
        prompt = Prompt(talk.conversation, talk.tokens + chance.randint(100, 500))
        talks[place] = prompt._replace(tokens=prompt.tokens + output_tokens)
        return prompt

    def _arrive(self, tenant: Tenant, chance: random.Random) -> None:
        sidecars = self._sidecars
        request = Request(tenant, max(round(tenant.tokens * chance.uniform(0.5, 1.5)), 8))
        if self._setup.conversations:
            request.prompt = self._next_turn(request.size, chance)
        is_skewed, place = chance.random() < tenant.skew, chance.random()
        sidecar = sidecars[0 if is_skewed else int(place * (len(sidecars) - self._setup.unaddressed))]
        self._offer(request, sidecar)

    def _offer(self, request: Request, sidecar: Sidecar) -> None:
        self._judge.offered(request)
        request.arrived_at = self._clock.now
        sidecar.when_awake(lambda: sidecar.offer(request))
