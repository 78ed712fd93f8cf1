"""The embedded engine held to JSON Schemas: the real model, hot enough to try everything that it may, and a real validator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio

from jubal.core.errors import BadRequest
from jubal.core.events import TextDelta, ToolCall, TurnEnded
from jubal.core.generation import (
    Bounds,
    FunctionTool,
    Generation,
    JsonOutput,
    Message,
    NamedTool,
    Sampling,
    TextPart,
    Tools,
)
from jubal.core.schema import check
from jubal.engines.llama_cpp.engine import LlamaEngine
from jubal.engines.llama_cpp.schema import BUILT_IN, GUIDED, demand

WHERE = "response_format.json_schema.schema"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models_home: Path) -> AsyncIterator[LlamaEngine]:
    engine = LlamaEngine("local", models_home, "smollm2-135m", context=1024, slots=2)
    await engine.start()
    await engine.ready()
    yield engine
    await engine.close()


def asks(schema: Any, seed: int = 1, **fields: Any) -> Generation:
    message = Message("user", (TextPart("Make something up, in JSON."),))
    sampling = Sampling(temperature=1.5, top_p=1.0, seed=seed)
    output = JsonOutput(json.dumps(schema), where=WHERE) if schema is not None else None
    return Generation("m", (message,), **{"sampling": sampling, "bounds": Bounds(120), "output": output, **fields})


async def answer(engine: LlamaEngine, turn: Generation) -> tuple[str, str]:
    text, reason = [], ""
    async with aclosing(engine.stream(turn)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text.append(event.text)
            elif isinstance(event, TurnEnded):
                reason = event.reasons[0]
    return "".join(text), reason


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SHORT = {"type": "string", "maxLength": 8}
SCHEMAS: dict[str, Any] = {
    "nested objects and lists": closed(
        name=SHORT,
        tags={"type": "array", "items": SHORT, "minItems": 1, "maxItems": 3},
        at=closed(x={"type": "boolean"}),
    ),
    "numbers in ranges": closed(
        a={"type": "integer", "minimum": 3, "maximum": 9},
        b={"type": "number", "minimum": 0, "maximum": 2, "multipleOf": 0.25},
        c={"type": "integer", "exclusiveMinimum": -4, "exclusiveMaximum": 4, "multipleOf": 3},
        d={"type": ["integer", "null"], "minimum": 1, "maximum": 2},
    ),
    "strings": closed(
        a={"type": "string", "minLength": 2, "maxLength": 4},
        b={"type": "string", "pattern": "^[a-c]{2,3}(x|yz)?$"},
        c={"type": "string", "pattern": "^[A-Z]+-[0-9]+$", "maxLength": 6},
        d={"type": "string", "pattern": r'^[\\"]{2}$'},
    ),
    "formats": closed(
        a={"type": "string", "format": "date"},
        b={"type": "string", "format": "uuid"},
        c={"type": "string", "format": "ipv4"},
        e={"type": "string", "format": "ipv6"},
    ),
    "a time": closed(a={"type": "string", "format": "date-time", "maxLength": 25}),
    "enum, const and what is beside them": closed(
        a={"enum": ["red", 'a "quoted" one', 7, None, {"x": [1]}]},
        b={"const": {"k": "v w"}},
        c={"enum": ["a", "bbb"], "minLength": 2},
        d={"type": "string", "enum": ["a", 1]},
    ),
    "allOf of objects": {
        "allOf": [
            {"$ref": "#/$defs/base"},
            {"type": "object", "properties": {"y": {"type": "null"}}, "required": ["y"]},
            {"additionalProperties": {"type": "boolean"}, "maxProperties": 3, "properties": {"x": True, "y": True}},
        ],
        "$defs": {"base": {"type": "object", "properties": {"x": {"enum": ["q"]}}, "required": ["x"]}},
    },
    "a reference with something beside it": closed(a={"$ref": "#/$defs/s", "maxLength": 2})
    | {"$defs": {"s": {"type": "string", "minLength": 1}}},
    "anyOf beside properties": {
        **closed(k={"type": "null"}),
        "additionalProperties": {"type": "null"},
        "anyOf": [{"required": ["j"]}, {"required": ["i"]}],
    },
    "oneOf as anyOf": closed(a={"oneOf": [{"type": "integer", "maximum": 5, "minimum": 0}, {"type": "boolean"}]}),
    "tuples": closed(
        a={"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False, "minItems": 2},
        b={"type": "array", "prefixItems": [{"const": 1}], "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    ),
    "names by patterns": {
        "type": "object",
        "properties": {"ab": {"type": "boolean"}},
        "patternProperties": {"^[a-d]{1,3}$": {"type": "boolean"}},
        "additionalProperties": False,
        "required": ["ab"],
        "maxProperties": 4,
    },
    "required, but nowhere described": {"type": "object", "required": ["z"], "additionalProperties": {"enum": [1, 2]}},
    "no type": {"properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False, "maximum": 3},
}


@pytest.mark.parametrize("name", SCHEMAS)
async def test_what_is_obeyed(engine: LlamaEngine, name: str) -> None:
    schema = SCHEMAS[name]
    check(schema, "schema")
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    whole = 0
    for seed in range(1, 17):
        if seed > 4 and whole:
            break
        text, reason = await answer(engine, asks(schema, seed))
        if reason == "stop":  # one that was cut by the bound on tokens is no JSON
            whole += 1
            validator.validate(json.loads(text))
    assert whole, f"none of the answers came to its end: {text}"


async def test_json_without_a_schema_is_an_object(engine: LlamaEngine) -> None:
    turn = asks({}, bounds=Bounds(200), sampling=Sampling(temperature=0), output=JsonOutput())
    text, reason = await answer(engine, turn)
    assert reason != "stop" or isinstance(json.loads(text), dict)
    assert text.startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        closed(a={"type": "string", "format": "date", "maxLength": 3}),
        {"type": "string", "pattern": "(a"},
        {"type": "object", "required": ["z"], "additionalProperties": False},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
    ],
)
async def test_what_llguidance_refuses_is_refused_and_not_ignored(engine: LlamaEngine, schema: Any) -> None:
    """llama.cpp logs it and answers without a grammar."""
    check(schema, "schema")
    demand(JsonOutput(json.dumps(schema)), GUIDED)
    for _ in range(2):  # the second time from memory
        with pytest.raises(BadRequest, match="no answer can be held to this schema") as caught:
            await answer(engine, asks(schema))
        assert caught.value.code == "unsupported_schema"
        assert caught.value.param == WHERE


async def test_a_keyword_that_is_not_obeyed_is_named_by_the_engine_too(engine: LlamaEngine) -> None:
    with pytest.raises(BadRequest, match="uniqueItems") as caught:
        await answer(engine, asks({"type": "array", "uniqueItems": True}))
    assert caught.value.param == WHERE + ".uniqueItems"


@pytest.mark.parametrize("seed", range(3))
async def test_arguments_of_calls_obey_their_schema(engine: LlamaEngine, seed: int) -> None:
    schema = closed(
        room={"allOf": [{"$ref": "#/$defs/room"}, {"maxLength": 5}]},
        degrees={"type": "number", "minimum": 15, "maximum": 25, "multipleOf": 0.5},
    ) | {"$defs": {"room": {"type": "string", "minLength": 3}}}
    tool = FunctionTool("set_heat", "Set the temperature of a room.", json.dumps(schema))
    turn = asks(None, seed, tools=Tools((tool,), NamedTool("set_heat")), bounds=Bounds(200))
    async with aclosing(engine.stream(turn)) as events:
        calls = [event async for event in events if isinstance(event, ToolCall)]
    assert calls
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), schema)


async def test_a_server_tools_schema_is_obeyed_as_far_as_can_be(engine: LlamaEngine) -> None:
    """Nobody who reads the answer could change it."""
    schema = closed(
        a={"type": "integer", "minimum": 1, "maximum": 3}, b={"type": "array", "uniqueItems": True, "maxItems": 0}
    )
    functions = (
        FunctionTool("f", "Does it.", json.dumps(schema)),
        FunctionTool(
            "g", "Does that.", json.dumps({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1/x"}}})
        ),
    )
    for name in ("f", "g"):
        for seed in range(1, 9):  # one that the bound cuts is no call
            turn = asks(None, seed, tools=Tools(functions, NamedTool(name)), bounds=Bounds(200))
            async with aclosing(engine.stream(turn)) as events:
                calls = [event async for event in events if isinstance(event, ToolCall)]
            if calls:
                break
        assert [call.name for call in calls] == [name]
        if name == "f":
            jsonschema.validate(json.loads(calls[0].arguments), schema)


async def test_without_llguidance_its_own_converter_is_used_for_what_it_can(engine: LlamaEngine) -> None:
    guide, engine._guide.works = engine._guide, False
    try:
        assert engine.weights("m").schema is BUILT_IN
        text, reason = await answer(engine, asks(closed(a={"enum": ["x", "y"]}, b={"type": "boolean"})))
        assert reason == "stop"
        assert json.loads(text)["a"] in ("x", "y")
        with pytest.raises(BadRequest, match="minimum"):
            await answer(engine, asks({"type": "number", "minimum": 3}))
    finally:
        guide.works = True
