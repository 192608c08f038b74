"""The command line: ``loadgen engine``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from loadgen.engine.admin import Admin
from loadgen.engine.faults import Fault, Kind, parse_fault
from loadgen.engine.model import Costs, Model, Policy, read_like
from loadgen.engine.process import Process
from loadgen.engine.server import Access

MOST_PORT = 65535


@dataclass(frozen=True, slots=True)
class _Flag:
    """One option that sets a field of the model or its costs."""

    spelling: str
    field: str
    help: str


_FLAGS = (
    _Flag("--model", "name", "the served model name"),
    _Flag("--data-parallel-size", "cores", "engine cores, each with the slots and blocks below"),
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
    _Flag("--max-loras", "max_loras", "LoRA adapters of one batch; 0: no LoRA"),
    _Flag("--stream-interval", "stream_interval", "tokens of an event; the first has an event of its own"),
    _Flag("--embedding-size", "embedding_size", "dimensions of an embedding and of prompt_embeds"),
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
    """Simulate an engine until SIGTERM or SIGINT. Returns 1 if it cannot listen."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        model = model_of(arguments)
        faults = [parse_fault(text) for text in arguments.fault]
    except ValueError as error:
        parser.error(str(error))
    access = Access(frozenset(arguments.api_key), frozenset(arguments.allowed_origins))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(model, arguments, access, faults))
        except OSError as error:
            print(
                f"loadgen engine: cannot listen: {error.strerror or error}; "
                "give another --host, --port or --admin-port",
                file=sys.stderr,
            )
            return 1
    return 0


async def _serve(
    model: Model, arguments: argparse.Namespace, access: Access, faults: Sequence[Fault]
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    process = Process(model, host=arguments.host, port=arguments.port, seed=arguments.seed, access=access)
    async with process.running(), _admin(process, arguments.admin_port):
        for fault in faults:
            process.inject(fault)
        stopped = loop.create_task(stopping.wait())
        failed = loop.create_task(process.wait())
        await asyncio.wait([stopped, failed], return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            await failed
        failed.cancel()


@contextlib.asynccontextmanager
async def _admin(process: Process, port: int | None) -> AsyncIterator[None]:
    """The simulator's own routes, on loopback only, because they need no key."""
    if port is None:
        yield
        return
    site = web.AppRunner(Admin(process).application(), access_log=None, shutdown_timeout=0.1)
    await site.setup()
    try:
        await web.TCPSite(site, "127.0.0.1", port).start()
        yield
    finally:
        await site.cleanup()


def _port(text: str) -> int:
    # uvloop would listen on the remainder of a port above the largest.
    if not (text.isdecimal() and len(text) <= 5 and int(text) <= MOST_PORT):
        raise argparse.ArgumentTypeError(
            f"{text[:40]} is not a port: give a whole number from 0 to {MOST_PORT}"
        )
    return int(text)


def model_of(arguments: argparse.Namespace) -> Model:
    """The model that a command line describes: flags win over the calibration file. Raises ``ValueError``."""
    if arguments.lora_modules and arguments.max_loras is None:
        arguments.max_loras = 1
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
        caches_prefixes=arguments.prefix_caching and not arguments.encoder,
        refuses_priority=not arguments.ignore_priority,
        tells_cached_tokens=arguments.enable_prompt_tokens_details,
        # As in vLLM, a module is NAME=PATH. The simulator needs the name only.
        adapters=tuple(module.partition("=")[0] for module in arguments.lora_modules),
        is_encoder=arguments.encoder,
        takes_embeds=arguments.enable_prompt_embeds,
        has_old_names=arguments.old_metric_names,
        cache_labels=tuple(_label(text) for text in arguments.cache_label),
    )


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-zA-Z_]\w*", name):
        raise ValueError(f"--cache-label {text!r} is not NAME=VALUE")
    return name, value


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="loadgen engine",
        description="An engine simulator: behaves like one vLLM server, without a model.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=_port, default=8000, help="TCP port to listen on [8000]")
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
    _add_lists(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of lengths and noise [0]")
    parser.add_argument(
        "--like", type=Path, metavar="FILE", help="costs and sizes from python -m loadgen.engine.calibrate"
    )
    return parser


def _add_lists(parser: argparse.ArgumentParser) -> None:
    """Options of faults, access, adapters, and of other kinds and releases of engines."""
    parser.add_argument(
        "--lora-modules",
        nargs="+",
        default=[],
        metavar="NAME[=PATH]",
        help="LoRA adapters, accepted as models; --max-loras is then 1 by default",
    )
    parser.add_argument(
        "--api-key", action="append", default=[], help="a key that /v1 needs; repeat for several"
    )
    parser.add_argument(
        "--allowed-origins",
        nargs="*",
        default=["*"],
        metavar="ORIGIN",
        help="origins that get CORS headers; none without a value [*: all]",
    )
    parser.add_argument(
        "--encoder",
        action="store_true",
        help="an encoder-only model: embeddings, scores and reranking, and no KV cache",
    )
    parser.add_argument(
        "--enable-prompt-embeds",
        action="store_true",
        help="serve prompt_embeds, with rows of --embedding-size 32-bit numbers",
    )
    parser.add_argument(
        "--old-metric-names",
        action="store_true",
        help="metrics of older releases: vllm:gpu_cache_usage_perc, vllm:gpu_prefix_cache_*",
    )
    parser.add_argument(
        "--cache-label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a label of vllm:cache_config_info, such as mamba_block_size=262144; an empty value removes it;"
        " repeat for several",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="KIND[:NAME=VALUE,...]",
        help=f"a fault; repeat for several. Kinds: {', '.join(Kind)}",
    )
    parser.add_argument(
        "--admin-port",
        type=_port,
        metavar="X",
        help="port on 127.0.0.1 for /faults and /state, to add faults at run time [none]",
    )


if __name__ == "__main__":
    sys.exit(main())
