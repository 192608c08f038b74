"""An engine simulator: behaves like one vLLM server, without a model. ``python -m loadgen.engine --help``.

Continuous batching: in each step every running sequence gets one token, and waiting ones are taken in while
there are slots and KV blocks; a step costs a fixed time, a time for each sequence and one for each prompt
token that it computes. When blocks run out, the sequence that came last is preempted and computed anew. It
speaks vLLM's routes, streams, errors and metrics as far as a proxy and its tenants see them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WORDS = ("the ", "pool ", "is ", "shared ", "and ", "fair ")


@dataclass(frozen=True, slots=True)
class Model:
    """What is simulated. Times in seconds."""

    name: str = "tiny"
    slots: int = 8
    blocks: int = 4096
    block_size: int = 16
    window: int = 2048
    step_s: float = 0.01
    per_sequence_s: float = 0.0005
    per_prompt_token_s: float = 0.00002
    prefill_tokens: int = 2048
    """Prompt tokens computed in one step at most."""
    tokens_per_byte: float = 0.25


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence that an engine runs."""

    prompt: int
    bound: int
    arrived: float
    produced: int = 0
    computed: int = 0
    tokens: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)
    """One item for each token; ``True`` with the last."""
    is_gone: bool = False

    def blocks(self, size: int) -> int:
        """KV blocks that it needs for its next token."""
        return -(-(self.prompt + self.produced + 1) // size)


class Engine:
    """The scheduler: one step after the other."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.prompt_tokens = self.generation_tokens = self.preemptions = 0
        self.started_at = time.time()
        self._wake = asyncio.Event()

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in."""
        self.waiting.append(sequence)
        self._wake.set()

    def abort(self, sequence: Sequence) -> None:
        """Its client is gone: nothing more is computed for it."""
        sequence.is_gone = True

    @property
    def blocks_used(self) -> int:
        """KV blocks in use."""
        return sum(s.blocks(self.model.block_size) for s in self.running)

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            if not self.running and not self.waiting:
                self._wake.clear()
                await self._wake.wait()
            seconds = self._step()
            await asyncio.sleep(seconds)
            self._give()

    def _step(self) -> float:
        """Decide what the next step computes; how long it takes."""
        model = self.model
        self.running = [s for s in self.running if not s.is_gone]
        while self.running and self.blocks_used > model.blocks:
            preempted = self.running.pop()
            preempted.computed = 0
            self.preemptions += 1
            self.waiting.appendleft(preempted)
        while self.waiting and len(self.running) < model.slots:
            head = self.waiting[0]
            if head.is_gone:
                self.waiting.popleft()
                continue
            if self.blocks_used + head.blocks(model.block_size) > model.blocks:
                break
            self.running.append(self.waiting.popleft())
        budget, prefilled = model.prefill_tokens, 0
        for sequence in self.running:
            part = min(sequence.prompt + sequence.produced - sequence.computed, budget)
            if part > 0:
                sequence.computed += part
                budget -= part
                prefilled += part
        return model.step_s + model.per_sequence_s * len(self.running) + model.per_prompt_token_s * prefilled

    def _give(self) -> None:
        """One token for each sequence whose context is computed."""
        for sequence in list(self.running):
            if sequence.is_gone or sequence.computed < sequence.prompt + sequence.produced:
                continue
            if sequence.produced == 0:
                self.prompt_tokens += sequence.prompt
            sequence.produced += 1
            sequence.computed += 1
            self.generation_tokens += 1
            is_last = sequence.produced >= sequence.bound
            sequence.tokens.put_nowait(is_last)
            if is_last:
                self.running.remove(sequence)

    def metrics(self) -> str:
        """vLLM's metrics page, as far as anyone here reads it."""
        model, labels = self.model, f'engine="0",model_name="{self.model.name}"'
        waiting = sum(not s.is_gone for s in self.waiting)
        return "".join(
            f"{line}\n"
            for line in (
                f"process_start_time_seconds {self.started_at}",
                f"vllm:num_requests_running{{{labels}}} {len(self.running)}",
                f"vllm:num_requests_waiting{{{labels}}} {waiting}",
                f"vllm:kv_cache_usage_perc{{{labels}}} {self.blocks_used / model.blocks}",
                f"vllm:num_preemptions_total{{{labels}}} {self.preemptions}",
                f"vllm:prompt_tokens_total{{{labels}}} {self.prompt_tokens}",
                f"vllm:generation_tokens_total{{{labels}}} {self.generation_tokens}",
                f'vllm:cache_config_info{{block_size="{model.block_size}",num_gpu_blocks="{model.blocks}",'
                f"{labels}}} 1.0",
            )
        )


class BadRequest(ValueError):
    """A request that vLLM refuses with 400."""


class Server:
    """vLLM's HTTP server around an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = itertools.count()

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=64 << 20)
        application.add_routes(
            [
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/completions", self.completions),
                web.get("/v1/models", self.models),
                web.get("/health", self.health),
                web.get("/metrics", self.metrics),
                web.get("/version", self.version),
            ]
        )
        return application

    async def health(self, request: web.Request) -> web.Response:
        """Alive."""
        return web.Response()

    async def version(self, request: web.Request) -> web.Response:
        """Which engine this is."""
        return web.json_response({"version": "simulated"})

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus metrics."""
        return web.Response(text=self._engine.metrics(), content_type="text/plain")

    async def models(self, request: web.Request) -> web.Response:
        """The one model."""
        model = self._engine.model
        entry = {"id": model.name, "object": "model", "owned_by": "vllm", "max_model_len": model.window}
        return web.json_response({"object": "list", "data": [entry]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Chat completions."""
        return await self._serve(request, is_chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Completions."""
        return await self._serve(request, is_chat=False)

    async def _serve(self, request: web.Request, *, is_chat: bool) -> web.StreamResponse:
        try:
            body = await request.json()
            sequence = self._sequence(body, is_chat=is_chat)
        except (BadRequest, ValueError, TypeError, AttributeError) as error:
            return _error(400, str(error), "BadRequestError")
        if body.get("model", self._engine.model.name) != self._engine.model.name:
            return _error(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        self._engine.add(sequence)
        try:
            if body.get("stream"):
                return await self._stream(request, sequence, body, is_chat=is_chat)
            while not await sequence.tokens.get():
                pass
        except (asyncio.CancelledError, ConnectionError):
            self._engine.abort(sequence)
            raise
        text = "".join(WORDS[i % len(WORDS)] for i in range(sequence.produced))
        choice = _choice(text, is_chat=is_chat, key="message", finish="length")
        return web.json_response(self._envelope(is_chat, [choice], "") | {"usage": _usage(sequence)})

    async def _stream(
        self, request: web.Request, sequence: Sequence, body: dict[str, Any], *, is_chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        envelope = self._envelope(is_chat, [], ".chunk")
        is_last = False
        while not is_last:
            is_last = await sequence.tokens.get()
            word = WORDS[sequence.produced % len(WORDS)]
            finish = "length" if is_last else None
            choice = _choice(word, is_chat=is_chat, key="delta", finish=finish)
            await _event(response, envelope | {"choices": [choice]})
        if wants_usage:
            await _event(response, envelope | {"usage": _usage(sequence)})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _sequence(self, body: dict[str, Any], *, is_chat: bool) -> Sequence:
        model = self._engine.model
        if is_chat:
            texts = [str(message.get("content", "")) for message in body["messages"]]
        else:
            texts = [str(body["prompt"])]
        prompt = max(round(sum(len(text.encode()) for text in texts) * model.tokens_per_byte), 1)
        bound = body.get("max_completion_tokens", body.get("max_tokens"))
        if bound is None:
            bound = model.window - prompt if is_chat else 16
        if prompt + bound > model.window:
            raise BadRequest(
                f"This model's maximum context length is {model.window} tokens. However, you requested"
                f" {bound} output tokens and your prompt contains {prompt} input tokens."
            )
        return Sequence(prompt, int(bound), time.monotonic())

    def _envelope(self, is_chat: bool, choices: list[object], kind: str) -> dict[str, object]:
        name = "chat.completion" + kind if is_chat else "text_completion"
        prefix = "chatcmpl" if is_chat else "cmpl"
        return {
            "id": f"{prefix}-{next(self._ids)}",
            "object": name,
            "created": int(time.time()),
            "model": self._engine.model.name,
            "choices": choices,
        }


def _choice(text: str, *, is_chat: bool, key: str, finish: str | None) -> dict[str, object]:
    if is_chat:
        return {"index": 0, key: {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"index": 0, "text": text, "finish_reason": finish}


def _usage(sequence: Sequence) -> dict[str, int]:
    return {
        "prompt_tokens": sequence.prompt,
        "total_tokens": sequence.prompt + sequence.produced,
        "completion_tokens": sequence.produced,
    }


async def _event(response: web.StreamResponse, event: dict[str, object]) -> None:
    await response.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")


def _error(status: int, message: str, kind: str) -> web.Response:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


async def serve(model: Model, host: str, port: int) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    engine = Engine(model)
    stepping = loop.create_task(engine.run())
    # Clients that leave abort what is computed for them.
    runner = web.AppRunner(
        Server(engine).application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=1024).start()
    await stopping.wait()
    stepping.cancel()
    await runner.cleanup()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadgen.engine", description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    defaults = Model()
    for name in ("slots", "blocks", "window"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--step", type=float, default=defaults.step_s, help="seconds of one step")
    arguments = parser.parse_args()
    model = Model(
        slots=arguments.slots, blocks=arguments.blocks, window=arguments.window, step_s=arguments.step
    )
    asyncio.run(serve(model, arguments.host, arguments.port))


if __name__ == "__main__":
    main()
