"""The official OpenAI client through the sidecar, against real vLLM."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.e2e.vllm.conftest import Sidecar

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(front: Sidecar) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="guaranteed-key", max_retries=0) as made:
        yield made


def test_plain(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 5


def test_n_and_stop(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=20, n=3, stop=["a"], temperature=1
    )
    assert len(answer.choices) == 3


def test_a_list_of_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["one", "two"], max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_streams_with_and_without_usage(client: openai.OpenAI) -> None:
    plain = list(client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=6, stream=True))
    asked = list(
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert all(event.usage is None and event.choices for event in plain)
    assert asked[-1].usage is not None
    assert not asked[-1].choices


def test_tools_in_the_request(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=5, tools=[tool], tool_choice="none"
    )
    assert answer.choices


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_errors_have_the_classes_that_clients_expect(front: Sidecar, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=[])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="x")
    with (
        openai.OpenAI(base_url=f"{front.url}/v1", api_key="wrong", max_retries=0) as unauthenticated,
        pytest.raises(openai.AuthenticationError),
    ):
        unauthenticated.chat.completions.create(model="tiny", messages=MESSAGES)


def test_a_disconnect_from_a_stream_frees_all_capacity(front: Sidecar, client: openai.OpenAI) -> None:
    for _ in range(10):
        stream = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    front.until_whole()
