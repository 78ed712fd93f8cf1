"""The official Anthropic SDK for Python against a really started server with the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import pytest

from tests.server import Server

MODEL = "grok-4"
COLD = {"temperature": 0}  # this SDK no longer has it as an argument of its own
HI = [{"role": "user", "content": "Say hello in one short sentence."}]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(real_server: Server) -> Iterator[anthropic.Anthropic]:
    base = real_server.url.removesuffix("/v1")
    with anthropic.Anthropic(api_key=real_server.key, base_url=base, max_retries=0) as made:
        yield made


def test_a_whole_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=24, messages=HI, system="Be brief.", extra_body=COLD)
    assert message.type == "message"
    assert message.role == "assistant"
    assert message.model == MODEL
    assert message._request_id == message.id
    (block,) = message.content
    assert block.type == "text"
    assert block.text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 10
    assert message.usage.output_tokens > 0
    assert message.usage.cost_in_usd_ticks > 0  # type: ignore[attr-defined]


def test_a_stream_says_the_same(client: anthropic.Anthropic) -> None:
    asked = {"model": MODEL, "max_tokens": 24, "messages": CAPITAL, "extra_body": COLD}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.service_tier == whole.usage.service_tier == "standard"


def test_it_says_which_stop_sequence_ended_it(client: anthropic.Anthropic) -> None:
    asked = {"model": MODEL, "max_tokens": 200, "messages": CAPITAL, "extra_body": COLD}
    natural = client.messages.create(**asked, stop_sequences=["nowhere"])
    assert (natural.stop_reason, natural.stop_sequence) == ("end_turn", None)
    said = natural.content[0].text
    stop = " " + said.split()[3]
    whole = client.messages.create(**asked, stop_sequences=["nowhere", stop])
    assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", stop)
    assert whole.content[0].text == said[: said.index(stop)]
    with client.messages.stream(**asked, stop_sequences=["nowhere", stop]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", stop)


def test_tools_there_and_back(client: anthropic.Anthropic) -> None:
    question = {"role": "user", "content": "What is the weather in Oslo?"}
    first = client.messages.create(
        model=MODEL, max_tokens=200, messages=[question], tools=[WEATHER], tool_choice={"type": "any"}, extra_body=COLD
    )
    assert first.stop_reason == "tool_use"
    use = next(block for block in first.content if block.type == "tool_use")
    assert use.name == "get_weather"
    assert isinstance(use.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny, 18 degrees"}]}
    second = client.messages.create(
        model=MODEL,
        max_tokens=40,
        extra_body=COLD,
        tools=[WEATHER],
        tool_choice={"type": "none"},
        messages=[question, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}],
    )
    assert second.content[0].type == "text"


def test_a_streamed_call_is_whole(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL,
        max_tokens=200,
        extra_body=COLD,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "get_weather"},
    ) as stream:
        final = stream.get_final_message()
    (use,) = [block for block in final.content if block.type == "tool_use"]
    assert set(use.input) == {"city"}
    assert final.stop_reason == "tool_use"


def test_thinking_comes_as_blocks_of_its_own(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=2000, messages=HI, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].signature


def test_counting_is_what_the_answer_will_say(client: anthropic.Anthropic) -> None:
    asked = {"model": MODEL, "messages": HI, "system": "Be brief."}
    counted = client.messages.count_tokens(**asked)
    usage = client.messages.create(max_tokens=1, **asked).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    with_tools = client.messages.count_tokens(tools=[WEATHER], **asked)
    assert with_tools.input_tokens > counted.input_tokens


def test_structured_output(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    message = client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=[{"role": "user", "content": "Invent a person as JSON."}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert set(json.loads(message.content[0].text)) == {"name", "age"}


def test_the_legacy_completion(real_server: Server) -> None:
    body = {"model": MODEL, "prompt": "\n\nHuman: Say hello.\n\nAssistant:", "max_tokens_to_sample": 8}
    status, _, done = real_server.request("POST", "/v1/complete", body)
    assert status == 200
    assert done["type"] == "completion"
    assert done["completion"]
    assert done["stop_reason"] in ("stop_sequence", "max_tokens")
    status, _, raw = real_server.request("POST", "/v1/complete", {**body, "stream": True})
    events = [json.loads(frame.split(b"data: ")[1]) for frame in raw.strip().split(b"\n\n")]
    assert "".join(event["completion"] for event in events)
    assert [event["stop_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["stop_reason"] in ("stop_sequence", "max_tokens")


def test_errors_are_the_sdks_own(client: anthropic.Anthropic, real_server: Server) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="nobody", max_tokens=5, messages=HI)
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model=MODEL, max_tokens=0, messages=HI)
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="xai-wrong").messages.create(model=MODEL, max_tokens=5, messages=HI)
    bearer = anthropic.Anthropic(auth_token=real_server.key, base_url=client.base_url, max_retries=0)
    assert bearer.messages.create(model=MODEL, max_tokens=1, messages=HI).content
