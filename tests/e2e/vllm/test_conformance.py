"""Official clients and curl on each route through the sidecar: unary, streamed, errors, sheds, disconnects.

test_transparency.py compares the bytes with the engine's. These tests check the clients' interpretation of
them. Sheds are real: the entitlement may run one sequence, which another request holds.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.e2e.vllm.conftest import Sidecar

MESSAGES: Any = [{"role": "user", "content": "hello"}]
LONG = {"ignore_eos": True}
LONGEST = 1500
"""The tokens of a response that is still running at the time of the check."""
KEY, NARROW_KEY = "guaranteed-key", "narrow-key"


@dataclass
class Clock:
    """The times of a client's requests, and the waits that the responses asked for."""

    sent_at: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def client(self, kind: type[httpx2.Client]) -> httpx2.Client:
        return kind(event_hooks={"request": [self._sent], "response": [self._told]})

    def _sent(self, _: httpx2.Request) -> None:
        self.sent_at.append(time.monotonic())

    def _told(self, response: httpx2.Response) -> None:
        self.statuses.append(response.status_code)
        self.waits_s.append(float(response.headers.get("retry-after-ms", 0)) / 1000)


class OfOpenAI:
    """OpenAI's client."""

    errors = openai

    def __init__(self, url: str, key: str, retries: int, clock: Clock) -> None:
        http = clock.client(openai.DefaultHttpxClient)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=retries, http_client=http)


class Chat(OfOpenAI):
    def ask(self, tokens: int = 5, model: str = "tiny") -> int:
        answer = self.client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=tokens, extra_body=LONG
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    def stream(self, tokens: int) -> Any:
        return self.client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=tokens, stream=True, extra_body=LONG
        )


class Completions(OfOpenAI):
    def ask(self, tokens: int = 5, model: str = "tiny") -> int:
        answer = self.client.completions.create(
            model=model, prompt="hello", max_tokens=tokens, extra_body=LONG
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    def stream(self, tokens: int) -> Any:
        return self.client.completions.create(
            model="tiny", prompt="hello", max_tokens=tokens, stream=True, extra_body=LONG
        )


class Responses(OfOpenAI):
    def ask(self, tokens: int = 5, model: str = "tiny") -> int:
        answer = self.client.responses.create(
            model=model, input="hello", max_output_tokens=tokens, extra_body=LONG
        )
        assert answer.usage is not None
        return answer.usage.output_tokens

    def stream(self, tokens: int) -> Any:
        return self.client.responses.create(
            model="tiny", input="hello", max_output_tokens=tokens, stream=True, extra_body=LONG
        )


class Messages:
    """Anthropic's client. Its API has no ``ignore_eos``, but the model's greedy response is long enough."""

    errors = anthropic

    def __init__(self, url: str, key: str, retries: int, clock: Clock) -> None:
        http = clock.client(anthropic.DefaultHttpxClient)
        self.client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=retries, http_client=http)

    def ask(self, tokens: int = 5, model: str = "tiny") -> int:
        answer = self.client.messages.create(model=model, messages=MESSAGES, max_tokens=tokens)
        return answer.usage.output_tokens

    def stream(self, tokens: int) -> Any:
        return self.client.messages.create(model="tiny", messages=MESSAGES, max_tokens=tokens, stream=True)


KINDS = [Chat, Completions, Responses, Messages]
Client = Chat | Completions | Responses | Messages


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__.lower())
def made(request: pytest.FixtureRequest, front: Sidecar) -> Iterator[Callable[..., Client]]:
    """A factory of clients of one API."""
    clients: list[Client] = []

    def make(key: str = KEY, retries: int = 0, clock: Clock | None = None) -> Client:
        clients.append(request.param(front.url, key, retries, clock or Clock()))
        return clients[-1]

    yield make
    for each in clients:
        each.client.close()
    front.until_whole()


@contextmanager
def busy(front: Sidecar) -> Iterator[Any]:
    """The narrow entitlement's only sequence, held until the end."""
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=NARROW_KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=LONGEST, stream=True, extra_body=LONG
        )
        next(iter(stream))
        try:
            yield stream
        finally:
            stream.close()


def test_plain(made: Callable[..., Client]) -> None:
    assert 1 <= made().ask() <= 5


def test_streamed(made: Callable[..., Client]) -> None:
    assert len(list(made().stream(5))) >= 2


def test_an_unknown_model_and_a_wrong_key(made: Callable[..., Client]) -> None:
    client, unauthenticated = made(), made("nobody's")
    with pytest.raises(client.errors.NotFoundError, match="does not exist"):
        client.ask(model="other")
    with pytest.raises(client.errors.AuthenticationError):
        unauthenticated.ask()


def test_shed(made: Callable[..., Client], front: Sidecar) -> None:
    client = made(NARROW_KEY)
    with busy(front), pytest.raises(client.errors.RateLimitError, match="concurrency") as error:
        client.ask()
    assert int(error.value.response.headers["retry-after"]) >= 1


def test_a_client_retries_at_the_given_time(made: Callable[..., Client], front: Sidecar) -> None:
    shed = Clock()
    client = made(NARROW_KEY, retries=1, clock=shed)
    with busy(front), pytest.raises(client.errors.RateLimitError):
        client.ask()

    assert shed.statuses == [429, 429]
    waited = shed.sent_at[1] - shed.sent_at[0]
    assert shed.waits_s[0] <= waited < shed.waits_s[0] + 2


def test_a_client_that_retries_is_served(made: Callable[..., Client], front: Sidecar) -> None:
    clock = Clock()
    client = made(NARROW_KEY, retries=8, clock=clock)
    with ThreadPoolExecutor(1) as thread:
        with busy(front):
            asked = thread.submit(client.ask)
            while 429 not in clock.statuses:
                time.sleep(0.01)
        assert asked.result(30) >= 1
    assert clock.statuses[-1] == 200


def test_a_disconnect_from_a_stream_frees_all_capacity(made: Callable[..., Client], front: Sidecar) -> None:
    for _ in range(5):
        stream = made().stream(LONGEST)
        next(iter(stream))
        stream.close()
    front.until_whole()


def test_tokens_are_counted(front: Sidecar) -> None:
    with anthropic.Anthropic(base_url=front.url, api_key=KEY) as client:
        assert client.messages.count_tokens(model="tiny", messages=MESSAGES).input_tokens > 0


def test_curl_retries_at_the_given_time(front: Sidecar, tmp_path: Path) -> None:
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1})
    command = [
        *("curl", "-sS", "--retry", "1", "-o", str(tmp_path / "body"), "-w", "%{http_code}"),
        *("-H", f"authorization: Bearer {NARROW_KEY}", "-H", "content-type: application/json"),
        *("-d", body, f"{front.url}/v1/completions"),
    ]
    before = sheds(front)
    with busy(front):
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        took = time.monotonic() - started

    assert done.stdout == "429"
    assert sheds(front) == before + 2
    assert took >= 1


def sheds(front: Sidecar) -> int:
    """The number of sheds of the narrow entitlement for its only sequence."""
    return int(front.state()["entitlements"]["narrow"]["outcomes"].get("concurrency", 0))
