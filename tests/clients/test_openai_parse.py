"""`client.chat.completions.parse` of the official SDK with pydantic models, on a really started server and the real model."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Iterator
from typing import Annotated, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.server import Server


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Size(BaseModel):
    width: Annotated[int, Field(ge=1, le=50)]
    depth: Annotated[float, Field(gt=0, lt=9, multiple_of=0.25)]


class Chair(BaseModel):
    kind: Literal["chair"]
    legs: Annotated[int, Field(ge=3, le=5)]


class Lamp(BaseModel):
    kind: Literal["lamp"]
    watts: Annotated[int, Field(ge=0, le=500)] | None


class Room(BaseModel):
    """A room of a house."""

    name: Annotated[str, Field(min_length=1, max_length=20)]
    colour: Colour
    size: Size
    floor: int | None = Field(description="counted from the street", le=9, ge=0)
    things: Annotated[list[Chair | Lamp], Field(min_length=1, max_length=2)]
    built: datetime.date
    inventory: uuid.UUID
    doors: tuple[bool, bool]


class Tree(BaseModel):
    value: Literal["a", "b"]
    children: Annotated[list[Tree], Field(max_length=2)]


class SetHeat(BaseModel):
    room: Annotated[str, Field(max_length=12)]
    degrees: Annotated[int, Field(ge=15, le=25)]


ROOM = [{"role": "user", "content": "Describe the kitchen of an old house."}]


@pytest.fixture(scope="module")
def client(real_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=real_server.key, base_url=real_server.url, max_retries=0, timeout=120) as client:
        yield client


def test_a_model_with_everything(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="grok-4", messages=ROOM, response_format=Room, max_tokens=400, temperature=0, seed=1  # type: ignore[arg-type]
    )  # fmt: skip
    room = answer.choices[0].message.parsed
    assert isinstance(room, Room)
    assert room.colour in Colour
    assert 1 <= len(room.things) <= 2
    assert len(room.doors) == 2


def test_several_choices_each_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="grok-4", messages=ROOM, response_format=Size, max_tokens=60, n=2, temperature=0.5, seed=1  # type: ignore[arg-type]
    )  # fmt: skip
    assert all(isinstance(choice.message.parsed, Size) for choice in answer.choices)


def test_a_model_that_holds_itself(client: openai.OpenAI) -> None:
    try:
        answer = client.chat.completions.parse(
            model="grok-4", messages=ROOM, response_format=Tree, max_tokens=300, temperature=0  # type: ignore[arg-type]
        )  # fmt: skip
    except openai.LengthFinishReasonError as cut:  # trees have no bound; what there is of it is right
        assert (cut.completion.choices[0].message.content or "").startswith('{"value": "')
    else:
        assert isinstance(answer.choices[0].message.parsed, Tree)


def test_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="grok-4", messages=ROOM, response_format=Size, max_tokens=60, temperature=0  # type: ignore[arg-type]
    ) as stream:  # fmt: skip
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Size)


def test_a_tool_made_of_a_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="grok-4",
        messages=[{"role": "user", "content": "Make the kitchen warmer: 22 degrees."}],
        tools=[openai.pydantic_function_tool(SetHeat)],
        tool_choice="required",
        parallel_tool_calls=False,  # how many it makes depends on what the model has been asked before
        max_tokens=100,
        temperature=0,
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, SetHeat)


@pytest.mark.parametrize("strict", [False, None])
def test_strict_or_not(client: openai.OpenAI, strict: bool | None) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 3}}, "required": ["n"]}
    answer = client.chat.completions.create(
        model="grok-4",
        messages=ROOM,  # type: ignore[arg-type]
        max_tokens=40,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": strict}},
    )
    assert '"n": ' in (answer.choices[0].message.content or "")


def test_what_is_not_obeyed_is_refused_before_any_work(client: openai.OpenAI, real_server: Server) -> None:
    class Bag(BaseModel):
        words: set[str]

    rows = len(real_server.usage())
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.parse(model="grok-4", messages=ROOM, response_format=Bag, max_tokens=9)  # type: ignore[arg-type]
    assert caught.value.param == "response_format.json_schema.schema.properties.words.uniqueItems"
    assert caught.value.code == "unsupported_schema"
    with pytest.raises(openai.BadRequestError) as in_a_tool:
        client.chat.completions.create(
            model="grok-4",
            messages=ROOM,  # type: ignore[arg-type]
            max_tokens=9,
            tools=[
                {"type": "function", "function": {"name": "ok", "parameters": {"type": "object"}}},
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "parameters": {"type": "object", "properties": {"a": {"not": {"const": 1}}}},
                    },
                },
            ],
        )
    assert in_a_tool.value.param == "tools[1].function.parameters.properties.a.not"
    with pytest.raises(openai.BadRequestError) as no_schema:
        client.chat.completions.create(
            model="grok-4",
            messages=ROOM,  # type: ignore[arg-type]
            max_tokens=9,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"x": {"type": 5}}}},
            },
        )
    assert no_schema.value.param == "response_format.json_schema.schema.properties.x.type"
    assert no_schema.value.code == "invalid_schema"
    deferred = {
        "model": "grok-4",
        "messages": ROOM,
        "deferred": True,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array", "uniqueItems": True}}},
    }
    status, _, body = real_server.request("POST", "/v1/chat/completions", deferred)
    assert (status, body["error"]["param"]) == (400, "response_format.json_schema.schema.uniqueItems")
    assert len(real_server.usage()) == rows
