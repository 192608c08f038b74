"""Prefix affinity: which engines of the pool have the beginning of a prompt in their prefix caches. Pure.

A prompt has up to three beginnings (``Ask.prefixes``). An engine that computed a prompt has its beginnings in
its cache, until it has computed as many other tokens as the cache holds. Each sidecar keeps the beginnings
that its own engine computed, and states the newest ones with its messages to the lease store. From the
statements of other sidecars it knows the other engines that have a beginning in their caches.

The number of cached tokens is learned from the engine's reports. A beginning is expected to have its part of
the prompt, and a share of the rest. The share is 1 in a conversation, and smaller with a template. It is
learned for each beginning, and starts with the mean. ``trust`` is the reported share of the beginning itself.
So a sidecar states fewer tokens if its engine evicts early, and none if its engine reports no cached tokens.

All tables are bounded. ``now`` is in seconds of the sidecar's monotonic clock.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

from tokenpool.pricing.cost import Ask
from tokenpool.pricing.learned_costs import PREFIX_BYTES

LEAST_GAIN: Final = 64
"""The least number of additional cached tokens for which a request is handed over. An engine that computes
50,000 prompt tokens per second needs 1.3 ms for them, and an ask takes about 0.5 ms."""
MOST_OWN: Final = 4096
"""The most beginnings of the own engine: about 0.7 MB."""
MOST_ELSEWHERE: Final = 8192
"""The most beginnings at other engines: about 3 MB with one place each."""
MOST_PLACES: Final = 4
"""The most engines to remember for one beginning: the ones that stated it last."""
MOST_STATED: Final = 32
"""The most beginnings in a statement: the ones that were computed last. A statement has at most 400 bytes."""
STATE_EVERY_S: Final = 0.1
"""Seconds between two statements. It takes 40 µs to make one, and 160 µs to read one (from source). Under
contention a sidecar sends 200 messages per second."""
BLOCK: Final = 16
"""Tokens in a block of the cache. Engines keep whole blocks."""
BYTES_PER_ID: Final = 7
"""The most bytes of one token id in a prompt of ids: six digits and a comma."""
LEAST_BYTES_PER_TOKEN: Final = 2
"""The least number of bytes per token of text. If there are fewer, images have a part of the tokens."""
RATE_S: Final = 30.0
"""Time constant in seconds of the rate at which the engine computes tokens."""
LONGEST_S: Final = 65535
"""The longest time in seconds for which a statement can say that a beginning stays in a cache."""
TRUST_SHARE: Final = 0.1
"""The weight of a new report in ``trust`` and ``rest``."""
REST_SHARE: Final = 0.5
"""The weight of a new report in the estimate of its beginning."""
_RECORD = 9
"""Bytes of a beginning in a statement: seven of its hash, and two of its blocks."""
_MOST_BLOCKS: Final = 65535


class Cached(NamedTuple):
    """The beginning of a prompt, and its tokens in a cache."""

    prefix: int
    """The keyed hash of the beginning, of the route and of the model."""
    tokens: int
    """The tokens of the beginning."""
    longest: int = 0
    """The tokens up to the next beginning, or to the end of the answer. A later prompt may share them."""


class _Own:
    """A beginning that the own engine has computed."""

    __slots__ = ("computed", "longest", "rest", "tokens")

    def __init__(self, rest: float) -> None:
        self.tokens = self.longest = 0
        self.rest = rest
        """The share of the tokens beyond the beginning that the next prompt is expected to repeat: 1 for a
        conversation, and less for a template."""
        self.computed = 0.0
        """The tokens that the engine had computed by its last use."""

    def expected(self, trust: float) -> int:
        """The cached tokens that the next prompt is expected to have."""
        return int(trust * (self.tokens + self.rest * max(self.longest - self.tokens, 0)))


class _There:
    """A beginning in the cache of another engine."""

    __slots__ = ("name", "tokens", "until")

    def __init__(self, name: str, tokens: int, until: float) -> None:
        self.name = name
        self.tokens = tokens
        self.until = until


class Preference(NamedTuple):
    """Another replica that has more of a prompt in its cache than the own engine."""

    name: str
    """The id of its sidecar."""
    tokens: int
    """The tokens that its engine is expected to have."""
    gain: int
    """The part of these tokens that the own engine is not expected to have."""


class Gains:
    """The effect of affinity: counts of requests and of prompt tokens."""

    __slots__ = ("error", "expected", "reported", "requests")

    def __init__(self) -> None:
        self.requests = 0
        """Finished requests that ran at a preferred replica."""
        self.expected = 0
        """Cached tokens that were expected there beyond those here."""
        self.reported = 0
        """Cached tokens that engines reported beyond those expected here; 0 for a request with fewer."""
        self.error = 0
        """The sum of the absolute differences between expected and reported tokens."""


def beginnings(ask: Ask, input_tokens: int, output_tokens: int) -> tuple[Cached, ...]:
    """The beginnings of a prompt of ``input_tokens``, shortest first, each with its part of the tokens."""
    prefixes = ask.prefixes
    if not prefixes:
        return ()
    route, model = ask.target
    # Other routes have other templates, and other models have other caches.
    target = zlib.crc32(f"{route} {model}".encode()) << 24
    sizes: list[int] = []
    for size in PREFIX_BYTES[: len(prefixes)]:
        if ask.text_bytes > 0:
            tokens = min(input_tokens * size // ask.text_bytes, size // LEAST_BYTES_PER_TOKEN)
        else:
            # The prompt is shorter than the next size.
            longest = PREFIX_BYTES[len(prefixes)] if len(prefixes) < len(PREFIX_BYTES) else math.inf
            tokens = max(size // BYTES_PER_ID, int(input_tokens * size / longest))
        sizes.append(min(tokens, input_tokens) // BLOCK * BLOCK)
    sizes.append(input_tokens + output_tokens)
    return tuple([Cached(prefix ^ target, sizes[at], sizes[at + 1]) for at, prefix in enumerate(prefixes)])


class PrefixCaches:
    """The beginnings of prompts in the caches of all engines, as this sidecar knows them."""

    __slots__ = (
        "_capacity",
        "_computed",
        "_elsewhere",
        "_has_news",
        "_is_proven",
        "_own",
        "_rate",
        "_rate_at",
        "_reports",
        "_stated_at",
        "_statement",
        "gains",
        "rest",
        "trust",
    )

    def __init__(self) -> None:
        self._own: dict[int, _Own] = {}
        """By prefix. The least recently used prefix comes first."""
        self._elsewhere: dict[int, list[_There]] = {}
        """By prefix. The prefix that was stated longest ago comes first."""
        self._computed = 0.0
        """The tokens that the own engine has computed."""
        self._rate = 0.0
        """The decayed sum of computed tokens."""
        self._rate_at = 0.0
        self._capacity = math.inf
        self._is_proven = False
        """Whether the own engine has reported cached tokens."""
        self._statement = ""
        self._stated_at = -math.inf
        self._has_news = False
        """Whether something was computed since the statement was made."""
        self.trust = 1.0
        """The reported share of the tokens of known beginnings; at most 1."""
        self.rest = 0.0
        """The mean share of the tokens beyond a beginning that the next prompt repeats."""
        self._reports = 0
        self.gains = Gains()

    # --- the own engine ---

    @property
    def own(self) -> int:
        """The number of known beginnings in the own engine's cache."""
        return len(self._own)

    @property
    def elsewhere(self) -> int:
        """The number of known beginnings in other engines' caches."""
        return len(self._elsewhere)

    def resize(self, capacity: float) -> None:
        """Set the tokens for which the own engine's cache has room, besides those of running requests."""
        self._capacity = max(capacity, 0.0)

    def here(self, prompt: Sequence[Cached]) -> int:
        """The tokens of a prompt that the own engine is expected to have in its cache."""
        for prefix, _, _ in reversed(prompt):
            own = self._own.get(prefix)
            if own is not None and self._computed - own.computed <= self._capacity:
                return own.expected(self.trust)
        return 0

    def computed(self, prompt: Sequence[Cached], tokens: int, now: float) -> None:
        """The own engine has computed ``tokens`` for a prompt. Its beginnings are in the cache now."""
        self._computed += tokens
        self._rate = self._rate * math.exp((self._rate_at - now) / RATE_S) + tokens
        self._rate_at = now
        for prefix, part, longest in prompt:
            own = self._own.pop(prefix, None)
            if own is None:
                own = _Own(self.rest)
            own.tokens, own.longest, own.computed = part, longest, self._computed
            self._own[prefix] = own
        while len(self._own) > MOST_OWN:
            del self._own[next(iter(self._own))]
        self._has_news = True

    def reported(self, prompt: Sequence[Cached], cached_tokens: int) -> None:
        """The own engine reports the cached tokens of a prompt. Call it before ``computed``.

        The longest known beginning learns which share of its rest the prompt repeats. If the engine reports
        fewer tokens than the beginning itself has, the cache has lost it, so ``trust`` falls.
        """
        if cached_tokens > 0:
            self._is_proven = True
        for prefix, part, longest in reversed(prompt):
            own = self._own.get(prefix)
            if own is None or self._computed - own.computed > self._capacity or part <= 0:
                continue
            self.trust += TRUST_SHARE * (min(cached_tokens / part, 1.0) - self.trust)
            rest = min(own.longest, longest) - part
            if cached_tokens >= part and rest > 0:
                share = min((cached_tokens - part) / rest, 1.0)
                own.rest += REST_SHARE * (share - own.rest)
                self._reports += 1
                self.rest += max(TRUST_SHARE, 1 / self._reports) * (share - self.rest)
            return

    def forget(self) -> None:
        """The own engine has restarted: its cache is empty."""
        self._own.clear()
        self._statement, self._has_news = "", False
        self._is_proven, self.trust, self.rest, self._reports = False, 1.0, 0.0, 0

    # --- statements ---

    def statement(self, now: float) -> str:
        """The beginnings that the own engine computed last, as text for other sidecars.

        The statement also has the time for which such a beginning stays in the cache. A new one is made at
        most once per ``STATE_EVERY_S``.
        """
        if not self._is_proven:
            return ""
        if self._has_news and now >= self._stated_at + STATE_EVERY_S:
            self._has_news, self._stated_at = False, now
            rate = self._rate / RATE_S
            stays_s = min(self._capacity / rate, LONGEST_S) if rate > 0 else LONGEST_S
            parts = [int(stays_s).to_bytes(2, "big")]
            for prefix, own in islice(reversed(self._own.items()), MOST_STATED):
                tokens = own.expected(self.trust)
                if tokens >= LEAST_GAIN:
                    blocks = min(tokens // BLOCK, _MOST_BLOCKS)
                    parts.append(prefix.to_bytes(7, "big") + blocks.to_bytes(2, "big"))
            self._statement = base64.b64encode(b"".join(parts)).decode()
        return self._statement

    def learn(self, name: str, statement: str, now: float) -> None:
        """Another sidecar states the beginnings in its engine's cache. An unreadable statement is ignored."""
        try:
            content = base64.b64decode(statement, validate=True)
        except (binascii.Error, ValueError):
            return
        if len(content) < 2:
            return
        until = now + int.from_bytes(content[:2], "big")
        end = min(len(content), 2 + MOST_STATED * _RECORD)
        # The newest beginning is first in the statement. It must be kept longest, so it is stored last.
        for at in range(2 + (end - 2) // _RECORD * _RECORD - _RECORD, 1, -_RECORD):
            prefix = int.from_bytes(content[at : at + 7], "big")
            tokens = int.from_bytes(content[at + 7 : at + _RECORD], "big") * BLOCK
            places = [each for each in self._elsewhere.pop(prefix, []) if each.name != name]
            places.append(_There(name, tokens, until))
            self._elsewhere[prefix] = places[-MOST_PLACES:]
        while len(self._elsewhere) > MOST_ELSEWHERE:
            del self._elsewhere[next(iter(self._elsewhere))]

    # --- choices ---

    def preferences(self, prompt: Sequence[Cached], input_tokens: int, now: float) -> list[Preference]:
        """The replicas whose engines have at least ``LEAST_GAIN`` more tokens of a prompt than the own one.

        The replica with the most tokens is first. Of equal replicas, the one with the last statement is.
        """
        most: dict[str, int] = {}
        for prefix, _, _ in reversed(prompt):
            for place in reversed(self._elsewhere.get(prefix, ())):
                if place.until > now and place.name not in most:
                    # The engine always computes the last token.
                    most[place.name] = min(place.tokens, input_tokens - 1)
        if not most:
            return []
        here = self.here(prompt)
        found = [
            Preference(name, tokens, tokens - here)
            for name, tokens in most.items()
            if tokens - here >= LEAST_GAIN
        ]
        found.sort(key=lambda each: -each.gain)
        return found

    def gained(self, preference: Preference, cached_tokens: int) -> None:
        """A request ran at a preferred replica, whose engine reports ``cached_tokens``."""
        gains, here = self.gains, preference.tokens - preference.gain
        gains.requests += 1
        gains.expected += preference.gain
        gains.reported += max(cached_tokens - here, 0)
        gains.error += abs(preference.tokens - cached_tokens)
