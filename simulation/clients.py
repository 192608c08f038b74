"""The simulated clients: arrivals in open loop, or workers in closed loop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

from simulation.clock import VirtualClock
from simulation.engine import Prompt
from simulation.judge import Judge
from simulation.setup import Setup, Tenant
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

    def start(self) -> None:
        """Schedule the first requests."""
        setup = self._setup
        if setup.open_loop:
            self._clock.after(setup.warm_up_s / 2, self._arrive_at_random)
            return
        for tenant in setup.tenants:
            for _ in range(tenant.workers):
                wait = tenant.starts_at + 0.5 + self._chance.random() * max(tenant.think_s, 0.2)
                self._clock.after(wait, lambda tenant=tenant: self._arrive(tenant, self._chance))  # type: ignore[misc]

    def send_again(self, tenant: Tenant, wait: float) -> None:
        """Schedule the next request of a worker after about ``wait`` seconds. Open loop has no workers."""
        if not self._setup.open_loop:
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
        self._judge.offered(request)
        request.arrived_at = self._clock.now
        sidecar.when_awake(lambda: sidecar.offer(request))
