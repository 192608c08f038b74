"""The load that every instrument sends, and the files that the instruments need for it.

The simulator counts one token for four bytes. The tokenizer for it has words of four letters and the words of
the simulator's responses, so an instrument counts the tokens that the engine counts.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadgen.engine.tokens import WORDS

LEAST_REQUESTS = 60
_SPECIAL = ("<unk>", "<s>", "</s>")
_VOCABULARY = 2000
_LETTERS = 4
"""The simulator's bytes per token."""


@dataclass(frozen=True)
class Workload:
    """Requests at a constant rate, each with so many tokens."""

    rate: float
    """Requests per second."""
    requests: int
    input_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, rate: float, seconds: float, input_tokens: int, output_tokens: int) -> Workload:
        """The load of a rate for about so many seconds, and for 60 requests at least."""
        return cls(rate, max(round(rate * seconds), LEAST_REQUESTS), input_tokens, output_tokens)

    @property
    def seconds(self) -> float:
        """The time from the first request to the last."""
        return self.requests / self.rate


@dataclass(frozen=True)
class Files:
    """What an instrument reads."""

    tokenizer: Path
    """A folder with a Hugging Face tokenizer."""
    prompts: Path
    """JSON lines, each with one prompt."""


def words(seed: int) -> list[str]:
    """Different words, each one token of the simulator."""
    source = random.Random(seed)
    return sorted({"".join(source.choices(string.ascii_lowercase, k=_LETTERS)) for _ in range(_VOCABULARY)})


def simulator_prompts(tokens: int, count: int, seed: int) -> Iterator[str]:
    """Prompts of exactly so many tokens of the simulator."""
    source, known = random.Random(seed), words(seed)
    for _ in range(count):
        yield "".join(source.choices(known, k=tokens))


def fitted_prompts(tokens: int, count: int, seed: int, count_tokens: Callable[[str], int]) -> Iterator[str]:
    """Prompts of about so many tokens of any engine, which ``count_tokens`` asks."""
    source, known = random.Random(seed), words(seed)
    for _ in range(count):
        text = " ".join(source.choices(known, k=tokens))
        low, high = 1, len(text)
        while low < high:
            middle = (low + high) // 2
            if count_tokens(text[:middle]) < tokens:
                low = middle + 1
            else:
                high = middle
        yield text[:low]


def prompt_lines(prompts: Iterator[str], output_tokens: int) -> str:
    """The prompts as JSON lines, with the names of fields that aiperf and GuideLLM read."""
    lines = ({"text": text, "prompt": text, "output_tokens_count": output_tokens} for text in prompts)
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_simulator_tokenizer(folder: Path, seed: int) -> None:
    """Write the tokenizer of the simulator, in the format of Hugging Face."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(words(seed))))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | names))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def _tokenizer(known: list[str]) -> dict[str, Any]:
    ids = {word: number for number, word in enumerate((*_SPECIAL, *WORDS, *known))}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    pattern = "|".join((*WORDS, f"[a-z]{{{_LETTERS}}}"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[word], "content": word, "special": True, **flags} for word in _SPECIAL],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
    }
