"""Measures an engine, so that the simulator can imitate it: ``python -m loadgen.engine.calibrate``.

It measures the time to first token of lone requests with several prompt lengths, and the time of a decoding
step with several numbers of streams. A least-squares fit gives the costs of a step. The engine must serve no
other client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import secrets
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from loadgen import outputs
from loadgen.engine.fitting import fit, predicted
from loadgen.engine.model import Costs

LENGTHS = (16, 128, 512, 1024)
STREAMS = (1, 4, 8, 16)
_LOWEST_ID, _HIGHEST_ID = 5, 200
"""Token ids that are ordinary tokens in every vocabulary."""
_CACHE_LABEL = re.compile(r'\b(block_size|num_gpu_blocks)="(\d+)"')


class CalibrationError(Exception):
    """The engine cannot be measured. The text gives the reason."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement, in seconds."""

    prompt_tokens: int
    """The prompt length for a time to first token; 0 for a decoding step."""
    streams: int
    """The streams of a decoding step; 0 for a time to first token."""
    seconds: float

    @property
    def row(self) -> tuple[float, float, float, float]:
        """The numbers of steps, sequences, prompt tokens and requests in the measurement."""
        return 1.0, float(self.streams), float(self.prompt_tokens), float(self.prompt_tokens > 0)

    def __str__(self) -> str:
        if self.prompt_tokens:
            return f"time to first token, prompt of {self.prompt_tokens} tokens"
        return f"decoding step, streams: {self.streams}"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that an engine publishes."""

    window: int | None = None
    block_size: int | None = None
    blocks: int | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """The extent of a calibration."""

    lengths: Sequence[int] = LENGTHS
    streams: Sequence[int] = STREAMS
    rounds: int = 3
    """Repetitions of all measurements; medians count."""
    repeats: int = 5
    """Requests for each prompt length in a round."""
    tokens: int = 64
    """Tokens of each stream."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """An engine's costs, with the errors of the fit."""

    costs: Costs
    points: Sequence[Point]
    shape: Shape = field(default_factory=Shape)

    def error(self, point: Point) -> float:
        """The relative error of the fit for a measurement."""
        return predicted(_in_order(self.costs), point.row) / point.seconds - 1

    @property
    def mean_error(self) -> float:
        """Mean of the absolute relative errors."""
        return statistics.fmean(abs(self.error(point)) for point in self.points)

    def to_json(self) -> dict[str, Any]:
        """The content of a file for ``--like``, with its measurements."""
        shape = {name: value for name, value in asdict(self.shape).items() if value is not None}
        points = [asdict(point) | {"error": round(self.error(point), 4)} for point in self.points]
        return asdict(self.costs) | shape | {"mean_error": round(self.mean_error, 4), "measured": points}

    def flags(self) -> str:
        """The costs as options of the simulator."""
        costs = self.costs
        return (
            f"--step {costs.step_s:.6g} --per-sequence {costs.per_sequence_s:.6g}"
            f" --per-prompt-token {costs.per_prompt_token_s:.6g} --per-request {costs.per_request_s:.6g}"
        )


def calibrated(points: Sequence[Point], shape: Shape) -> Calibration:
    """The costs that fit the measurements. Raises ``CalibrationError`` if these do not determine them."""
    try:
        step, sequence, token, request = fit([p.row for p in points], [p.seconds for p in points])
    except ValueError as error:
        raise CalibrationError(str(error)) from None
    return Calibration(Costs(step, sequence, token, request), points, shape)


def _in_order(costs: Costs) -> tuple[float, ...]:
    return costs.step_s, costs.per_sequence_s, costs.per_prompt_token_s, costs.per_request_s


def step_seconds(streams: Sequence[Sequence[tuple[float, int]]]) -> float | None:
    """Seconds of a step while all streams decode; ``None`` if they do not overlap long enough.

    Each stream is a list of times and token counts. Events may have several tokens, and streams begin and
    end one by one. So each stream counts from its first event in the common time to its last.
    """
    begin, end = max(seen[0][0] for seen in streams), min(seen[-1][0] for seen in streams)
    steps, seconds = 0, 0.0
    for seen in streams:
        within = [(at, tokens) for at, tokens in seen if begin <= at <= end]
        if len(within) < 2:
            return None
        steps += within[-1][1] - within[0][1]
        seconds += within[-1][0] - within[0][0]
    return seconds / steps if steps >= 8 * len(streams) else None


class Prober:
    """Sends the requests of a calibration to one engine."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, chance: random.Random) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._model = model
        self._chance = chance

    async def shape(self) -> Shape:
        """The sizes that the engine publishes."""
        models = json.loads(await self._get("/v1/models"))
        names = [entry["id"] for entry in models["data"]]
        if self._model not in names:
            raise CalibrationError(f"{self._url} serves {', '.join(names)}, not {self._model}: give --model")
        window = next(entry.get("max_model_len") for entry in models["data"] if entry["id"] == self._model)
        lines = (await self._get("/metrics")).splitlines()
        told = next((line for line in lines if line.startswith("vllm:cache_config_info")), "")
        labels = {name: int(number) for name, number in _CACHE_LABEL.findall(told)}
        return Shape(window, labels.get("block_size"), labels.get("num_gpu_blocks"))

    async def measure(self, effort: Effort, window: int | None) -> list[Point]:
        """All measurements for the fit. Raises ``CalibrationError``."""
        room = (window or effort.lengths[-1] + effort.tokens) - effort.tokens
        lengths = sorted({min(length, room) for length in effort.lengths})
        for _ in range(3):  # an engine's first requests are slower
            await self._stream(lengths[0], 8)
        seen: dict[tuple[int, int], list[float]] = {}
        # In rounds, so that a slow moment of the machine does not affect one point only.
        for _ in range(effort.rounds):
            for length in lengths:
                seen.setdefault((length, 0), []).extend(await self._first_tokens(length, effort.repeats))
            for streams in effort.streams:
                seconds = await self._decode(streams, effort.tokens)
                if seconds is None:
                    break
                seen.setdefault((0, streams), []).append(seconds)
        return [Point(*key, statistics.median(values)) for key, values in seen.items()]

    async def _first_tokens(self, length: int, repeats: int) -> list[float]:
        """Times to first token without the time of HTTP, because the simulator has its own HTTP server."""
        seconds = []
        for _ in range(repeats):
            began = time.monotonic()
            await self._get("/health")
            http = time.monotonic() - began
            began, seen = await self._stream(length, 1)
            seconds.append(max(seen[0][0] - began - http, 0.0001))
        return seconds

    async def _decode(self, streams: int, tokens: int) -> float | None:
        """Seconds of a step; ``None`` if the engine does not run so many streams at once."""
        ran = await asyncio.gather(*(self._stream(16, tokens) for _ in range(streams)))
        return step_seconds([seen for _, seen in ran])

    async def _stream(self, length: int, tokens: int) -> tuple[float, list[tuple[float, int]]]:
        """Send one request. Returns its start, and the times and counts of its tokens."""
        body = {
            "model": self._model,
            # All prompts differ, so that none is in the engine's cache.
            "prompt": [self._chance.randrange(_LOWEST_ID, _HIGHEST_ID) for _ in range(length)],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        began, seen = time.monotonic(), []
        async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
            if response.status != 200:
                said = await response.text()
                raise CalibrationError(
                    f"{self._url}/v1/completions answers {response.status} ({said}); check --url and --model"
                )
            async for line in response.content:
                if line.startswith(b'data: {"'):
                    event = json.loads(line[6:])
                    if event.get("choices"):
                        seen.append((time.monotonic(), event["usage"]["completion_tokens"]))
        if not seen:
            raise CalibrationError(
                f"{self._url} streamed no token; give the URL of an engine that streams usage"
            )
        return began, seen

    async def _get(self, path: str) -> str:
        async with self._session.get(f"{self._url}{path}") as response:
            if response.status != 200:
                raise CalibrationError(
                    f"{self._url}{path} answers {response.status}; give the URL of an engine"
                )
            return await response.text()


async def calibrate(url: str, model: str, effort: Effort, chance: random.Random) -> Calibration:
    """Measure an engine. Raises ``CalibrationError``."""
    try:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
        ) as session:
            prober = Prober(session, url, model, chance)
            shape = await prober.shape()
            points = await prober.measure(effort, shape.window)
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
        raise CalibrationError(f"{url}: {error or 'no response within 120 s'}; check --url") from error
    return calibrated(points, shape)


def text_of(result: Calibration) -> str:
    """A table of the measurements and the fitted model."""
    lines = [f"{'measured':<46}{'ms':>9}{'fitted':>9}{'error':>8}"]
    for point in result.points:
        fitted = point.seconds * (1 + result.error(point))
        lines.append(
            f"{point!s:<46}{point.seconds * 1000:9.2f}{fitted * 1000:9.2f}{result.error(point):8.1%}"
        )
    lines.append(f"mean error of the fit: {result.mean_error:.1%}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure an engine, print the results, and write them to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.engine.calibrate",
        description="Measures an idle engine, for python -m loadgen.engine --like FILE.",
    )
    parser.add_argument("--url", required=True, help="the engine, e.g. http://127.0.0.1:8000")
    parser.add_argument("--model", default="tiny", help="the served model name [tiny]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON file for the costs")
    parser.add_argument("--force", action="store_true", help="overwrite the file of --out")
    parser.add_argument("--streams", type=_numbers, default=STREAMS, help="numbers of streams [1,4,8,16]")
    parser.add_argument("--lengths", type=_numbers, default=LENGTHS, help="prompt tokens [16,128,512,1024]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all measurements [3]")
    parser.add_argument("--repeats", type=int, default=5, help="requests for each length in a round [5]")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each stream [200]")
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of the prompts; a second run with one seed would find its prompts in the cache",
    )
    arguments = parser.parse_args(argv)
    effort = Effort(
        arguments.lengths, arguments.streams, arguments.rounds, arguments.repeats, arguments.tokens
    )
    chance = random.Random(secrets.randbits(64) if arguments.seed is None else arguments.seed)
    try:
        if arguments.out is not None:
            outputs.check_file(arguments.out, force=arguments.force)
        result = asyncio.run(calibrate(arguments.url, arguments.model, effort, chance))
    except CalibrationError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 1
    except outputs.OutputExists as error:
        parser.error(str(error))
    print(f"{text_of(result)}\n\n{result.flags()}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result.to_json(), indent=1) + "\n")
        print(f"written to {arguments.out}; give --slots as the engine's --max-num-seqs")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise ValueError(f"{text}: must be whole numbers above 0, such as 1,4,8")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
