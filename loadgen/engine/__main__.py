"""The command line: ``python -m loadgen.engine``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import uvloop

from loadgen.engine.model import Costs, Model, Policy, read_like
from loadgen.engine.server import serve


@dataclass(frozen=True, slots=True)
class _Flag:
    """One option that sets a field of the model or its costs."""

    spelling: str
    field: str
    help: str


_FLAGS = (
    _Flag("--model", "name", "the served model name"),
    _Flag("--slots", "slots", "sequences that run at once (vLLM's --max-num-seqs)"),
    _Flag("--blocks", "blocks", "KV blocks"),
    _Flag("--block-size", "block_size", "tokens of a KV block"),
    _Flag("--window", "window", "most tokens of one sequence (vLLM's --max-model-len)"),
    _Flag("--max-num-batched-tokens", "batched_tokens", "most tokens computed in one step"),
    _Flag(
        "--max-num-queued-reqs", "max_queued_requests", "most unfinished sequences; more are refused with 503"
    ),
    _Flag(
        "--max-num-queued-tokens",
        "max_queued_tokens",
        "most uncomputed prompt tokens; more are refused with 503",
    ),
    _Flag("--max-loras", "max_loras", "LoRA adapters that vllm:lora_requests_info has room for; 0: no LoRA"),
    _Flag("--tokens-per-byte", "tokens_per_byte", "tokens per byte of a prompt"),
    _Flag("--output-tokens", "output_tokens", "mean length of responses that end by themselves; 0: none"),
    _Flag("--step", "step_s", "seconds of one step"),
    _Flag("--per-sequence", "per_sequence_s", "... more for each sequence that decodes"),
    _Flag("--per-prompt-token", "per_prompt_token_s", "... more for each token of context computed"),
    _Flag("--per-request", "per_request_s", "... more for each admitted sequence"),
    _Flag("--noise", "noise", "relative deviation of a step's time"),
)
_DEFAULTS: dict[str, Any] = {
    each.name: getattr(record, each.name) for record in (Model(), Costs()) for each in fields(record)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate an engine until SIGTERM or SIGINT."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        model = model_of(arguments)
    except ValueError as error:
        parser.error(str(error))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(model, arguments.host, arguments.port, arguments.seed))
    return 0


def model_of(arguments: argparse.Namespace) -> Model:
    """The model that a command line describes: flags win over the calibration file. Raises ``ValueError``."""
    given: dict[str, Any] = dict(read_like(arguments.like)) if arguments.like is not None else {}
    for flag in _FLAGS:
        value = getattr(arguments, flag.field)
        if value is not None:
            given[flag.field] = value
    costs = {each.name: given.pop(each.name) for each in fields(Costs) if each.name in given}
    return Model(
        **given,
        costs=Costs(**costs),
        policy=Policy(arguments.scheduling_policy),
        caches_prefixes=arguments.prefix_caching,
        refuses_priority=not arguments.ignore_priority,
        tells_cached_tokens=arguments.enable_prompt_tokens_details,
    )


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.engine", description="An engine simulator: behaves like one vLLM server."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8000, help="TCP port to listen on [8000]")
    for flag in _FLAGS:
        default = _DEFAULTS[flag.field]
        shown = (
            "" if default is None else f" [{default:g}]" if isinstance(default, float) else f" [{default}]"
        )
        kind = int if default is None else type(default)
        parser.add_argument(
            flag.spelling, dest=flag.field, type=kind, metavar="X", help=f"{flag.help}{shown}"
        )
    parser.add_argument(
        "--scheduling-policy",
        choices=[str(policy) for policy in Policy],
        default=str(Policy.FCFS),
        help="first come, first served; or by the requests' priority, lower values sooner [fcfs]",
    )
    parser.add_argument(
        "--ignore-priority",
        action="store_true",
        help="under fcfs, ignore a request's priority instead of refusing it, as vLLM 0.32.0 does",
    )
    parser.add_argument(
        "--no-prefix-caching", dest="prefix_caching", action="store_false", help="no prefix cache"
    )
    parser.add_argument(
        "--enable-prompt-tokens-details",
        action="store_true",
        help="report cached prompt tokens in the usage",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of lengths and noise [0]")
    parser.add_argument(
        "--like", type=Path, metavar="FILE", help="costs and sizes from python -m loadgen.engine.calibrate"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
