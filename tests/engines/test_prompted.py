"""Prompted tools: the schema that is asked for, and the events that come of JSON in any cut."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core.events import EngineEvent, TextDelta, ToolCall, TurnEnded, UsageSoFar
from jubal.core.generation import (
    Bounds,
    FunctionTool,
    Generation,
    JsonOutput,
    Message,
    NamedTool,
    TextPart,
    ToolChoice,
    Tools,
)
from jubal.core.usage import Usage
from jubal.engines.prompted import answer_schema, stream_prompted, worded

WEATHER = FunctionTool(
    "get_weather",
    "Weather of a place.",
    '{"type":"object","properties":{"location":{"type":"string"}},"required":["location"]}',
)
TIME = FunctionTool("get_time")


def turn(
    choice: ToolChoice = "auto", *, parallel: bool = True, output: JsonOutput | None = None, choices: int = 1
) -> Generation:
    return Generation(
        "m",
        (Message("system", (TextPart("Be brief."),)), Message("user", (TextPart("Weather?"),))),
        tools=Tools((WEATHER, TIME), choice, parallel),
        output=output,
        choices=choices,
    )


async def answer(asked: Generation, *pieces: str, reason: str = "stop") -> tuple[list[EngineEvent], Generation]:
    got: list[Generation] = []

    async def engine(simple: Generation) -> AsyncGenerator[EngineEvent, None]:
        got.append(simple)
        for choice in range(simple.choices):
            for piece in pieces:
                yield TextDelta(piece, choice)
        yield TurnEnded((reason,) * simple.choices, Usage(9, 3))  # type: ignore[arg-type]

    return [event async for event in stream_prompted(asked, engine)], got[0]


async def test_the_engine_is_asked_in_words_and_held_to_the_schema() -> None:
    _, simple = await answer(turn(), '{"answer":""}')
    assert not simple.tools.functions
    assert simple.output is not None
    assert json.loads(simple.output.schema or "") == answer_schema(turn())
    system = simple.messages[0].text
    assert system.startswith("Be brief.")
    assert "get_weather" in system
    assert '"location"' in system
    assert simple.messages[1:] == turn().messages[1:]


@pytest.mark.parametrize(
    ("choice", "parallel", "names", "calls_max", "may_answer"),
    [
        ("auto", True, ["get_weather", "get_time"], 4, True),
        ("auto", False, ["get_weather", "get_time"], 1, True),
        ("required", True, ["get_weather", "get_time"], 4, False),
        (NamedTool("get_time"), True, ["get_time"], 1, False),
    ],
)
def test_what_the_answer_may_be(
    choice: ToolChoice, parallel: bool, names: list[str], calls_max: int, may_answer: bool
) -> None:
    schema = answer_schema(turn(choice, parallel=parallel))
    assert ("anyOf" in schema) == may_answer
    calls = (schema["anyOf"][1] if may_answer else schema)["properties"]["tool_calls"]
    items = calls["items"].get("anyOf", [calls["items"]])
    assert [item["properties"]["name"]["const"] for item in items] == names
    assert (calls["minItems"], calls["maxItems"]) == (1, calls_max)


def test_references_follow_a_schema_that_is_moved() -> None:
    recursive: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {"type": "string"}},
    }
    asked = Generation("m", (), tools=Tools((FunctionTool("f", "", json.dumps(recursive)),), "required"))
    schema = answer_schema(asked)
    assert schema["properties"]["tool_calls"]["items"]["properties"]["arguments"] == {"$ref": "#/$defs/f0"}
    assert schema["$defs"]["f0"]["properties"]["a"] == {"$ref": "#/$defs/f0/$defs/x"}
    assert schema["$defs"]["f0"]["$defs"]["x"]["type"] == "string"


async def test_an_answer_streams_as_text() -> None:
    events, _ = await answer(turn(), '{"ans', 'wer": "It', " is\\n", "\\ud83e", "\\udd8a \\u00e9", ' fine."', "}")
    texts = [event.text for event in events if isinstance(event, TextDelta)]
    assert texts == ["It", " is\n", "\U0001f98a é", " fine."]
    assert events[-1] == TurnEnded(("stop",), Usage(9, 3))


async def test_calls_come_whole() -> None:
    wire = '{"tool_calls": [{"name": "get_weather", "arguments": {"location": "Oslo é"}}, {"name": "get_time", "arguments": {}}]}'
    events, _ = await answer(turn(), *wire)
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("get_weather", {"location": "Oslo é"}),
        ("get_time", {}),
    ]
    assert len({call.id for call in calls}) == 2
    assert events[-1] == TurnEnded(("tool_calls",), Usage(9, 3))


async def test_calls_that_the_token_bound_cut_are_none() -> None:
    cut = '{"tool_calls": [{"name": "get_we'
    events, _ = await answer(turn(), cut, reason="length")
    assert events == [TurnEnded(("length",), Usage(9, 3))]
    events, _ = await answer(turn("required"), cut, reason="length")
    assert events == [TurnEnded(("length",), Usage(9, 3))], "the second try, which is the answer"


async def test_a_call_that_must_be_made_is_not_cut_by_the_bound_on_text() -> None:
    for choice, bound in (("required", 2048), (NamedTool("get_time"), 2048), ("auto", 2048)):
        _, simple = await answer(replace(turn(choice), bounds=Bounds(9)), "{}")
        assert simple.bounds.tokens_max == bound


async def test_an_answer_held_to_a_schema_beside_tools() -> None:
    output = JsonOutput('{"type":"object","properties":{"city":{"type":"string"}}}')
    assert answer_schema(turn(output=output))["anyOf"][0]["properties"]["answer"] == json.loads(output.schema or "")
    events, _ = await answer(turn(output=output), '{"answer": {"city": "Oslo"}}')
    assert events[0] == TextDelta('{"city": "Oslo"}')


async def test_several_choices() -> None:
    events, _ = await answer(turn(choices=2), '{"answer": "a"}')
    assert [event for event in events if isinstance(event, TextDelta)] == [TextDelta("a", 0), TextDelta("a", 1)]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.booleans(), st.data())
async def test_any_text_in_any_cut(text: str, ascii_only: bool, data: st.DataObject) -> None:
    text = text.encode("utf-8", "ignore").decode()
    wire = json.dumps({"answer": text}, ensure_ascii=ascii_only)
    pieces = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        pieces.append(wire[:size])
        wire = wire[size:]
    events, _ = await answer(turn(), *pieces)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == text


async def test_half_a_surrogate_pair_is_no_character_and_no_crash() -> None:
    for wire in ('{"answer": "a\\ud83e"}', '{"answer": "a\\ud83eb"}', '{"answer": "a\\ud83e\\n"}'):
        for pieces in ([wire], list(wire)):
            events, _ = await answer(turn(), *pieces)
            said = "".join(event.text for event in events if isinstance(event, TextDelta))
            assert said.startswith("a")
            said.encode()


async def test_visible_text_keeps_its_bound_beside_calls() -> None:
    cut = False

    async def engine(simple: Generation) -> AsyncGenerator[EngineEvent, None]:
        nonlocal cut
        try:
            for piece in ('{"answer": "', *("word " for _ in range(50)), '"}'):
                yield TextDelta(piece)
            yield TurnEnded(("stop",), Usage(10, 52))
        finally:
            cut = True

    asked = replace(turn("auto"), bounds=Bounds(3))
    events = [event async for event in stream_prompted(asked, engine)]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "word word word "
    assert events[-1] == TurnEnded(("length",), None)
    assert cut, "the engine is not left running"


async def test_whole_calls_survive_a_cut() -> None:
    cut = '{"tool_calls": [{"name": "get_time", "arguments": {}}, {"name": "get_weather", "arguments": {"loc'

    async def engine(simple: Generation) -> AsyncGenerator[EngineEvent, None]:
        yield TextDelta(cut)
        yield TurnEnded(("length",), Usage(10, 2048))

    events = [event async for event in stream_prompted(turn("required"), engine)]
    assert [(call.name, call.arguments) for call in events if isinstance(call, ToolCall)] == [("get_time", "{}")]
    assert events[-1] == TurnEnded(("tool_calls",), Usage(10, 2048))


def test_every_text_has_an_end() -> None:
    parameters = {
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "short": {"type": ["string", "null"], "maxLength": 5},
            "list": {"type": "array", "items": {"type": "string", "minLength": 2000}},
            "one": {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "string"}]},
        },
    }
    asked = replace(turn("required"), tools=Tools((FunctionTool("f", "", json.dumps(parameters)),), "required"))
    held = answer_schema(asked)["properties"]["tool_calls"]["items"]["properties"]["arguments"]["properties"]
    assert held["type"]["maxLength"] == 1000
    assert held["short"]["maxLength"] == 5
    assert held["list"]["items"]["maxLength"] == 2000
    assert held["one"]["anyOf"] == [{"type": "string", "enum": ["a"]}, {"type": "string", "maxLength": 1000}]


async def test_a_call_that_must_be_made_is_asked_for_again() -> None:
    asked: list[Generation] = []

    async def engine(simple: Generation) -> AsyncGenerator[EngineEvent, None]:
        asked.append(simple)
        if len(asked) == 1:
            yield TextDelta('{"tool_calls": [{"name": "get_time", "arguments": {"hours": 1.0000000')
            yield TurnEnded(("length",), Usage(10, 2048))
        else:
            yield UsageSoFar(Usage(10, 1))
            yield TextDelta('{"tool_calls": [{"name": "get_time", "arguments": {}}]}')
            yield TurnEnded(("stop",), Usage(10, 9))

    events = [event async for event in stream_prompted(turn("required"), engine)]
    assert [event.name for event in events if isinstance(event, ToolCall)] == ["get_time"]
    assert len(asked) == 2
    assert events[-1] == TurnEnded(("tool_calls",), Usage(10, 9)), "what ran on is not the caller's"
    assert UsageSoFar(Usage(10, 1)) in events
    assert asked[1].sampling.temperature == 0.8
    asked.clear()
    events = [event async for event in stream_prompted(turn("auto"), engine)]
    assert len(asked) == 1, "where no call is demanded, none is forced"


def test_an_example_is_shown_of_a_function_that_has_one() -> None:
    plain = FunctionTool("save", "Saves.")
    shown = FunctionTool("find", "Finds.", example='{"query": "weather in Oslo"}')
    asked = Generation("m", (Message("user", (TextPart("x"),)),), tools=Tools((plain, shown)))
    system = worded(asked).messages[0].text
    example = 'For example: {"tool_calls": [{"name": "find", "arguments": {"query": "weather in Oslo"}}]}'
    assert example in system.splitlines()
    assert "For example" not in worded(replace(asked, tools=Tools((plain,)))).messages[0].text
