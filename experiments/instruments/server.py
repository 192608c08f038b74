"""The engine under load, alone on the first core."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from demo.install_engine import ROOT
from experiments.instruments.tools import Target
from experiments.instruments.workload import (
    Files,
    fitted_prompts,
    prompt_lines,
    simulator_prompts,
    write_simulator_tokenizer,
)
from experiments.processes import MODEL, backends, pin

STEP_S = 0.021
"""The simulator's step. Arrivals at all the usual rates then drift through its phases."""
_SIMULATOR = (
    *("--step", f"{STEP_S:g}", "--per-sequence", "0", "--per-prompt-token", "0", "--blocks", "20000"),
)
_SLOTS = {"simulator": 1024, "vllm": 64}
KINDS = tuple(_SLOTS)


class OneCore(RuntimeError):
    """The machine has one core, and two are needed."""


def cores() -> tuple[int, int]:
    """The core of the server and the core of the instruments. Raises ``OneCore``."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise OneCore(
            "this process may use one core; give it two, one for the server and one for the instruments"
        )
    return usable[0], usable[-1]


@contextlib.contextmanager
def serving(kind: str, core: int, folder: Path) -> Iterator[Target]:
    """Start an engine, ``simulator`` or ``vllm``, on a core of its own."""
    flags = _SIMULATOR if kind == "simulator" else ()
    with backends(kind, folder, 1, flags, _SLOTS[kind]) as engines:
        pin(engines[0].process.pid, [core])
        yield Target(engines[0].url, MODEL)


def page(target: Target) -> str:
    """The metrics page."""
    with urllib.request.urlopen(f"{target.url}/metrics", timeout=30) as response:
        return str(response.read().decode())


def made_files(
    kind: str, target: Target, folder: Path, tokens: tuple[int, int], count: int, seed: int
) -> Files:
    """Write the tokenizer and ``count`` prompts; ``tokens`` are those of a prompt and of a response."""
    prompts = folder / "prompts.jsonl"
    if kind == "simulator":
        tokenizer = folder / "tokenizer"
        write_simulator_tokenizer(tokenizer, seed)
        made = simulator_prompts(tokens[0], count, seed)
    else:
        tokenizer = ROOT / ".cache" / f"{MODEL}-model"
        made = fitted_prompts(tokens[0], count, seed, lambda text: _count(target, text))
    prompts.write_text(prompt_lines(made, tokens[1]))
    return Files(tokenizer, prompts)


def _count(target: Target, text: str) -> int:
    body = json.dumps({"model": target.model, "prompt": text}).encode()
    request = urllib.request.Request(f"{target.url}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return int(json.load(response)["count"])
