"""Mooncake's traces (``kvcache-ai/Mooncake``, Apache-2.0): lengths, times, and the shared parts of prompts.

JSON lines with ``timestamp`` (milliseconds), ``input_length``, ``output_length`` and ``hash_ids``. Each id
stands for 512 tokens of the prompt; the last block may be shorter. Equal ids mean equal prompts up to there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from loadgen.workloads.jsonlines import decoded
from loadgen.workloads.rows import Row, broken

BLOCK = 512
"""Tokens of each id."""
_FIX = 'write lines such as {"timestamp": 0, "input_length": 700, "output_length": 20, "hash_ids": [0, 1]}'


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read(path: Path) -> Iterator[Row]:
    """The requests, in the order of the file. Raises ``ScenarioError``."""
    for number, line in decoded(path, _Line, _FIX):
        if line.input_length < 0 or line.output_length < 0:
            broken(path, number, "a length is negative", _FIX)
        needed = -(-line.input_length // BLOCK)
        if len(line.hash_ids) > needed:
            problem = (
                f"{len(line.hash_ids)} hash_ids exceed the {needed} blocks of {line.input_length} tokens"
            )
            broken(path, number, problem, f"give at most one id for each {BLOCK} tokens")
        yield Row(number, line.timestamp / 1000, line.input_length, line.output_length, tuple(line.hash_ids))
