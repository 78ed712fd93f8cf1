"""The official `openai` Python SDK against a really started server on the real model: only the base URL and the key change."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server import Server

CAPITAL = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def client(real_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=real_server.key, base_url=real_server.url, max_retries=0, timeout=60) as client:
        yield client


def test_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="grok-4", messages=CAPITAL, max_tokens=200, temperature=0)  # type: ignore[arg-type]
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "grok-4"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens > 15
    assert answer.system_fingerprint == "fp_b179c9523d", "names the real weights"


def test_streamed_pieces_are_the_whole(client: openai.OpenAI) -> None:
    asked = {"model": "grok-2-1212", "messages": CAPITAL, "max_tokens": 200, "temperature": 0}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    assert said == whole.choices[0].message.content
    assert len([chunk for chunk in chunks if chunk.choices]) > 3, "a chunk per token, not one for all"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_prompt_cache_is_real(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Remember: " + "the quick brown fox " * 60}]
    first = client.chat.completions.create(model="grok-4", messages=messages, max_tokens=2, temperature=0)  # type: ignore[arg-type]
    again = client.chat.completions.create(model="grok-4", messages=messages, max_tokens=2, temperature=0)  # type: ignore[arg-type]
    assert first.usage
    assert again.usage
    assert again.usage.prompt_tokens_details
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) > 0.9 * again.usage.prompt_tokens
    assert again.usage.cost_in_usd_ticks < first.usage.cost_in_usd_ticks  # type: ignore[attr-defined]


def test_several_choices_a_stop_string_and_a_seed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="grok-4", messages=CAPITAL, n=2, stop=["Paris"], seed=7, temperature=0, max_tokens=200, user="u"  # type: ignore[arg-type]
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all("Paris" not in (choice.message.content or "") for choice in answer.choices)
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]


def test_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="grok-4", messages=CAPITAL, max_completion_tokens=2)  # type: ignore[arg-type]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 2


def test_roles_in_any_order_and_content_as_parts(client: openai.OpenAI) -> None:
    messages = [
        {"role": "assistant", "content": "Hello."},
        {"role": "developer", "content": "Answer in one word."},
        {"role": "user", "content": [{"type": "text", "text": "Is water"}, {"type": "text", "text": " wet?"}]},
        {"role": "user", "content": "Yes or no?"},
        {"role": "tool", "tool_call_id": "c1", "content": "It is."},
    ]
    answer = client.chat.completions.create(model="grok-4", messages=messages, max_tokens=5)  # type: ignore[arg-type]
    assert answer.choices[0].message.content


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {
        "grok-4",
        "grok-4-fast-reasoning",
        "grok-4-fast-non-reasoning",
        "grok-beta",
        "grok-2-1212",
        "grok-1",
    } <= set(models)
    assert client.models.retrieve("grok-4") == models["grok-4"]
    assert models["grok-4"].weights["name"] == "SmolLM2-135M-Instruct.Q4_1.gguf"  # type: ignore[attr-defined]
    assert models["grok-4"].context_length == 8192, "what the engine holds, not what is advertised"  # type: ignore[attr-defined]


def test_errors_are_the_sdks_own_classes(client: openai.OpenAI, real_server: Server) -> None:
    def ask(client: openai.OpenAI = client, **fields: object) -> object:
        return client.chat.completions.create(**{"model": "grok-4", "messages": CAPITAL, "max_tokens": 1, **fields})  # type: ignore[call-overload]

    with pytest.raises(openai.AuthenticationError) as bad_key:
        ask(client.with_options(api_key="xai-nobody"))
    assert bad_key.value.code == "invalid_api_key"
    assert bad_key.value.type == "invalid_request_error"
    assert bad_key.value.body["message"].startswith("Incorrect API key provided")  # type: ignore[index]
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="grok-99")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as out_of_range:
        ask(temperature=9)
    assert out_of_range.value.param == "temperature"
    with pytest.raises(openai.UnprocessableEntityError) as wrong_type:
        ask(temperature="hot")
    assert wrong_type.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        ask(messages=[{"role": "user", "content": "word " * 9000}])
    assert too_long.value.code == "context_length_exceeded"
    assert "8192" in str(too_long.value)
    with pytest.raises(openai.BadRequestError) as blind:
        ask(
            messages=[
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
            ]
        )
    assert "grok-4" in str(blind.value)
    narrow = real_server.command(
        "keys", "create", "--name", "narrow", "--acl", "api-key:endpoint:chat", "--acl", "api-key:model:grok-2-1212"
    )
    with pytest.raises(openai.PermissionDeniedError):
        ask(client.with_options(api_key=narrow["key"]))
    assert ask(client.with_options(api_key=narrow["key"]), model="grok-2-1212")


async def test_async_client_leaves_in_the_middle(real_server: Server) -> None:
    async with openai.AsyncOpenAI(api_key=real_server.key, base_url=real_server.url) as client:
        stream = await client.chat.completions.create(
            model="grok-4",
            messages=[{"role": "user", "content": "Count to one thousand."}],
            stream=True,
            max_tokens=500,
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()


def test_the_best_of_several_completions(client: openai.OpenAI) -> None:
    """The same answers as all of them together, and of those the likeliest.

    In one of three tries: a processor may round a prompt that is in the cache already a little otherwise, and a die then falls
    to the other side.
    """
    asked: dict[str, Any] = {
        "model": "grok-4",
        "prompt": "Once upon a time",
        "max_tokens": 6,
        "seed": 3,
        "temperature": 1.2,
    }
    for _ in range(3):
        every = client.completions.create(**asked, n=3, logprobs=0)
        means = {choice.text: statistics.mean(choice.logprobs.token_logprobs) for choice in every.choices}  # type: ignore
        likeliest = sorted(means, key=means.__getitem__, reverse=True)[:2]
        best = client.completions.create(**asked, best_of=3, n=2)
        if (found := [choice.text for choice in best.choices]) == likeliest:
            break
    assert found == likeliest
    assert best.usage is not None
    assert best.usage.completion_tokens == every.usage.completion_tokens  # type: ignore[union-attr]
