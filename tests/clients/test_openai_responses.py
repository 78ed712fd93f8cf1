"""The official openai SDK's Responses API against a really started server with the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import openai
import pydantic
import pytest

from tests.clients.scripted import TALK
from tests.server import Server

MODEL = "grok-4"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": False,
}


@pytest.fixture
def client(real_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=real_server.key, base_url=real_server.url, max_retries=0) as made:
        yield made


def test_whole_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "input": "What is the capital of France?", "max_output_tokens": 24, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.status in ("completed", "incomplete")
    assert whole.output_text
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    with client.responses.stream(**asked) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == whole.output_text == final.output_text
    assert len(pieces) > 1


def test_it_tells_what_it_samples_with_where_nobody_said(client: openai.OpenAI) -> None:
    """The defaults of the embedded model, as they are used."""
    answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=2)
    assert (answer.temperature, answer.top_p) == (0.2, 0.9)
    thinking = client.responses.create(model="grok-4-fast-reasoning", input="hi", max_output_tokens=2)
    assert thinking.reasoning is not None
    assert (thinking.reasoning.effort, thinking.reasoning.summary) == ("low", "detailed")


def test_a_stored_response_is_not_streamed_again(client: openai.OpenAI) -> None:
    """The SDK made an empty stream of the whole one that it got."""
    stored = client.responses.create(model=MODEL, input="hi", max_output_tokens=2)
    with pytest.raises(openai.BadRequestError, match="stream"):
        client.responses.retrieve(stored.id, stream=True)
    assert client.responses.retrieve(stored.id, stream=False).id == stored.id


def test_going_on_and_forgetting(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model=MODEL, input="My name is Ada.", instructions="You are brief.", max_output_tokens=12, temperature=0
    )
    second = client.responses.create(
        model=MODEL, input="Say my name.", previous_response_id=first.id, max_output_tokens=12, temperature=0
    )
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens - 3
    assert client.responses.retrieve(first.id).output_text == first.output_text
    items = client.responses.input_items.list(first.id)
    assert [item.content for item in items.data] == ["You are brief.", "My name is Ada."]  # type: ignore[union-attr]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    third = client.responses.create(model=MODEL, input="And?", previous_response_id=second.id, max_output_tokens=4)
    assert third.id, "what was gone on from holds the whole conversation"
    with pytest.raises(openai.NotFoundError, match="no response"):
        client.responses.create(model=MODEL, input="x", previous_response_id=first.id)
    unkept = client.responses.create(model=MODEL, input="x", store=False, max_output_tokens=2)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_functions_there_and_back(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model=MODEL, input="What is the weather in Oslo?", tools=[WEATHER], tool_choice="required", temperature=0
    )
    call = next(item for item in first.output if item.type == "function_call")
    assert isinstance(json.loads(call.arguments)["city"], str)
    second = client.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 18 degrees"}],
        max_output_tokens=40,
        temperature=0,
    )
    assert second.output_text


class Person(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=20)]
    age: Annotated[int, pydantic.Field(ge=0, le=150)]


def test_structured(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(
        model=MODEL,
        input="Ada is 36 years old. Extract the person.",
        text_format=Person,
        max_output_tokens=80,
        temperature=0,
    )
    assert parsed.output_parsed is not None


def test_reasoning_that_only_the_server_reads(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL,
        input="What is 2 + 2?",
        reasoning={"effort": "low"},
        include=["reasoning.encrypted_content"],
        store=False,
        max_output_tokens=16,
    )
    thought = next(item for item in answer.output if item.type == "reasoning")
    assert thought.encrypted_content
    assert thought.summary[0].text
    again = client.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "What is 2 + 2?"},
            *answer.output,
            {"role": "user", "content": "And 3 + 3?"},
        ],  # type: ignore[list-item]
        max_output_tokens=8,
    )
    assert again.output_text


def test_compaction(scripted_server: Server) -> None:
    """On the scripted model: the small one would write a summary of as many tokens as it may."""
    body = {"model": MODEL, "input": [{"role": "user", "content": "My cat is called Tom."}]}
    status, _, made = scripted_server.request("POST", "/v1/responses/compact", body)
    assert status == 200
    assert [item["type"] for item in made["output"]] == ["compaction"]
    with openai.OpenAI(api_key=scripted_server.key, base_url=scripted_server.url, max_retries=0) as client:
        answer = client.responses.create(model=MODEL, input=[*made["output"], {"role": "user", "content": "Hello"}])
        assert answer.output_text == "".join(TALK)
        with pytest.raises(openai.BadRequestError, match="not made by this service"):
            client.responses.create(model=MODEL, input=[{"type": "compaction", "encrypted_content": "x"}])  # type: ignore[list-item]


def test_another_team_sees_nothing(client: openai.OpenAI, real_server: Server) -> None:
    mine = client.responses.create(model=MODEL, input="x", max_output_tokens=2)
    real_server.command("teams", "create", "--name", "strangers")
    key = real_server.command("keys", "create", "--name", "stranger", "--team", "strangers")["key"]
    with pytest.raises(openai.NotFoundError):
        client.with_options(api_key=key).responses.retrieve(mine.id)
