"""Words that are one token each, so that a text of ``n`` words has exactly ``n`` tokens.

They are found by counting before the run. During it, no tokenizer is needed. A tokenizer without such words
(of single bytes, for example) has its tokens per byte measured instead.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

from loadgen import prompts
from loadgen.fields import LEAST_TOKENS_PER_BYTE, ScenarioError
from loadgen.scenario import Wording

Count = Callable[[str], Awaitable[int]]
"""The tokens of a prompt with this text, as the engine counts them. Several calls may run at once."""

FEWEST_WORDS = 32
"""Prompts of fewer different words are too similar."""
_REPEATS = 4
_CHECKS, _CHECK_WORDS = 4, 200
_SHORT_BYTES, _LONG_BYTES = 2_000, 10_000
_MOST_PER_BYTE = 4.0
"""More tokens than bytes are an error of the tokenizer; a margin is left for what templates add."""
_FREQUENT = """
act add age ago aid air all and any are arm art ask bad bag bar bed big bit box boy bus but buy can car cat
cup cut day did dog dry due eat egg end eye far few fit fix fly for fun get god got gun had has her him his
hit hot how ice its job key kid law lay led leg let lie lot low man map may men met mix new nor not now off
oil old one our out own pay per put ran red rest run saw say sea see set she sir sit six son sun tax ten the
too top try two use via war was way web who why win won yes yet you able also area army away back ball bank
base been best body book both call came care case city come cost data date deal door down each east easy
even ever face fact fall farm fast feel felt film find fine fire five food foot form four free from full
game gave girl give goal gold good great green group grow half hall hand hard have head hear held help here
high hold home hope hour house idea into just keep kind king knew know land large last late lead left less
life like line list live long look lost love made main make many mark mean more most move much must name
near need next night north note only open over part party past path people place plan play point poor power
quite rate read real right road role room rule said sale same save seen self sell send sent ship short show
side sign site size small some song soon sort south space star state stay step still stop story street
strong such sure take talk team tell term test than that them then there they thing this those time told
took town tree true turn type under unit until upon used very view vote wait walk wall want water week well
went were west what when which while white whole wide wife will wind wish with wood word work world year
young your
"""
CANDIDATES = tuple(_FREQUENT.split())
"""Short and frequent, so most vocabularies have them as one token."""


async def learn(count: Count, seed: int) -> Wording:
    """How to make texts of exact lengths for one tokenizer and one kind of prompt.

    The texts are the same for the same seed and tokenizer. Without such words, lengths are approximate.
    Raises ``ScenarioError`` for counts that are none of a text.
    """
    words, base = await _single_tokens(count)
    if len(words) >= FEWEST_WORDS and await _are_exact(count, words, base, seed):
        return Wording(1.0, tuple(words), base - 1)
    short, long = await asyncio.gather(
        *(count(prompts.text(size, "wording", seed=seed)) for size in (_SHORT_BYTES, _LONG_BYTES))
    )
    per_byte = (long - short) / (_LONG_BYTES - _SHORT_BYTES)
    if not LEAST_TOKENS_PER_BYTE <= per_byte <= _MOST_PER_BYTE:
        raise ScenarioError(
            f"the tokenizer counted {short} tokens in {_SHORT_BYTES} bytes of text, and {long} in "
            f"{_LONG_BYTES}; "
            "name a tokenizer that counts the tokens of texts, or remove 'tokenizer:'"
        )
    return Wording(per_byte, overhead=max(round(short - per_byte * _SHORT_BYTES), 0))


async def _single_tokens(count: Count) -> tuple[list[str], int]:
    """The candidates that are one token, alone and repeated; and the tokens of a prompt of one word."""
    alone = await _counts(count, CANDIDATES)
    repeated = await _counts(count, [" ".join([word] * (1 + _REPEATS)) for word in CANDIDATES])
    base = min(alone)
    found = [
        word
        for word, one, more in zip(CANDIDATES, alone, repeated, strict=True)
        if one == base and more == base + _REPEATS
    ]
    return found, base


async def _are_exact(count: Count, words: list[str], base: int, seed: int) -> bool:
    """Whether the words stay single tokens beside each other."""
    chance = random.Random(f"{seed} wording")
    texts = [" ".join(chance.choices(words, k=_CHECK_WORDS)) for _ in range(_CHECKS)]
    return set(await _counts(count, texts)) == {base - 1 + _CHECK_WORDS}


async def _counts(count: Count, texts: Iterable[str]) -> list[int]:
    return await asyncio.gather(*(count(text) for text in texts))
