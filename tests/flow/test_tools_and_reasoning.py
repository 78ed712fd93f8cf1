"""Functions, JSON output, reasoning and probabilities: on an upstream that has them, and on the embedded model, which has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fake_upstream import refuses, says
from tests.flow.test_faults import gateway
from tests.server import Server

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather for a location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "City name", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location", "unit"],
            "additionalProperties": False,
        },
    },
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TIME = {"type": "function", "function": {"name": "get_time", "description": "Tell the time", "parameters": NOTHING}}
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.fixture(scope="module")
def client(real_server: Server) -> openai.OpenAI:
    return openai.OpenAI(api_key=real_server.key, base_url=real_server.url, max_retries=0, timeout=90)


def chunks(*deltas: dict[str, Any], reason: str) -> bytes:
    frames = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    frames += [{"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}]
    return b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames) + b"data: [DONE]\n\n"


async def test_an_upstreams_calls_come_whole_through_the_stream(tmp_path: Path) -> None:
    wire = chunks(
        {"role": "assistant", "content": None},
        {"tool_calls": [{"index": 0, "id": "call_9", "function": {"name": "get_weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"location":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
        reason="tool_calls",
    )
    async with gateway(tmp_path, says(wire)) as (server, there, session):
        body = {"model": "grok-4", "messages": ASK, "tools": [WEATHER], "tool_choice": "required", "stream": True}
        async with session.post(server.url + "/chat/completions", json=body) as answer:
            frames = [
                json.loads(line[6:]) for line in (await answer.text()).split("\n\n") if line.startswith("data: {")
            ]
        assert there.bodies[0]["tools"] == [WEATHER]
        assert there.bodies[0]["tool_choice"] == "required"
        [call] = [
            frame["choices"][0]["delta"]["tool_calls"][0]
            for frame in frames
            if "tool_calls" in frame["choices"][0]["delta"]
        ]
        assert call == {
            "index": 0,
            "id": "call_9",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"location":"Oslo"}'},
        }
        assert frames[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_think_tags_of_an_open_model_become_reasoning_content(tmp_path: Path) -> None:
    wire = chunks(
        {"content": "<thi"}, {"content": "nk>hm</th"}, {"content": "ink>\n\nye"}, {"content": "s"}, reason="stop"
    )
    async with gateway(tmp_path, says(wire)) as (server, _, session):
        async with session.post(server.url + "/chat/completions", json={"model": "grok-4", "messages": ASK}) as answer:
            message = (await answer.json())["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm", "yes")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_the_embedded_model_calls_what_it_must_with_valid_arguments(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model="grok-4",
        messages=ASK,
        tools=[WEATHER, TIME],
        tool_choice=choice,
        temperature=0,
        max_tokens=120,
        parallel_tool_calls=False,
    )  # type: ignore[call-overload]
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls
    if choice != "required":
        assert call.function.name == "get_weather"
    if call.function.name == "get_weather":
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == {"location", "unit"}
        assert arguments["unit"] in ("celsius", "fahrenheit")


def test_a_round_trip_with_a_result(client: openai.OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"location":"Oslo","unit":"celsius"}'},
    }
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 18, "condition": "sunny"}'},
    ]
    answer = client.chat.completions.create(model="grok-4", messages=messages, temperature=0, max_tokens=60)  # type: ignore[call-overload]
    assert answer.choices[0].message.content


def test_json_output_holds_to_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "size": {"enum": ["small", "big"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 2},
        },
        "required": ["name", "size", "tags"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="grok-4",
        messages=[{"role": "user", "content": "Describe a cat."}],
        response_format={"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}},
        temperature=0,
        max_tokens=200,
    )
    animal = json.loads(answer.choices[0].message.content or "")
    assert animal["size"] in ("small", "big")
    assert len(animal["tags"]) <= 2


def test_one_of_two_names_on_the_same_weights_thinks(client: openai.OpenAI) -> None:
    def ask(model: str, **fields: Any) -> Any:
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is 2 + 2?"}],
            temperature=0,
            max_tokens=20,
            **fields,
        )

    thinks, does_not = ask("grok-4-fast-reasoning"), ask("grok-4-fast-non-reasoning")
    assert thinks.system_fingerprint == does_not.system_fingerprint
    assert thinks.choices[0].message.reasoning_content
    assert 0 < thinks.usage.completion_tokens_details.reasoning_tokens <= 64
    assert (
        thinks.usage.total_tokens
        == thinks.usage.prompt_tokens
        + thinks.usage.completion_tokens
        + thinks.usage.completion_tokens_details.reasoning_tokens
    )
    assert not hasattr(does_not.choices[0].message, "reasoning_content")
    assert does_not.usage.completion_tokens_details.reasoning_tokens == 0
    assert not hasattr(ask("grok-4-fast-reasoning", reasoning_effort="none").choices[0].message, "reasoning_content")
    with pytest.raises(openai.BadRequestError) as refused:
        ask("grok-4-fast-non-reasoning", reasoning_effort="high")
    assert refused.value.param == "reasoning_effort"


def test_probabilities_of_tokens(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "grok-4",
        "messages": ASK,
        "temperature": 0,
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
    }
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in content)
    streamed = [
        chunk.choices[0].logprobs for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices
    ]
    assert sum(len(told.content or []) for told in streamed if told) == len(content)


def test_a_seed_is_repeatable_at_temperature_0(client: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked: dict[str, Any] = {"model": "grok-4", "messages": question, "temperature": 0, "max_tokens": 8, "seed": 1}
    answers = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}
    assert len(answers) == 1


def test_a_bias_moves_the_choice_of_a_token(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "grok-4", "messages": ASK, "temperature": 0, "max_tokens": 1}
    said = {
        client.chat.completions.create(**asked, logit_bias={str(token): 100}).choices[0].message.content
        for token in (504, 505)
    }
    assert len(said) == 2, "each forced token, not the one that the model would have chosen"


async def test_an_upstream_that_refuses_a_schema_says_why(tmp_path: Path) -> None:
    async with gateway(tmp_path, refuses(400, {"error": {"message": "enum must not be empty"}})) as (
        server,
        _,
        session,
    ):
        body = {"model": "grok-4", "messages": ASK, "response_format": {"type": "json_object"}}
        async with session.post(server.url + "/chat/completions", json=body) as answer:
            assert answer.status == 400
            assert "enum must not be empty" in (await answer.json())["error"]["message"]
