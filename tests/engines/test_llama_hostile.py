"""Schemas made to hurt, on the real llama.cpp: refused before they reach it, harmless at the bounds, and ended by a watchdog where
one comes through all the same."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jubal.core.errors import BadRequest, EngineTimeout
from jubal.core.events import TextDelta
from jubal.core.generation import Bounds, Generation, JsonOutput, Message, Sampling, TextPart
from jubal.core.schema import check
from jubal.engines.llama_cpp.engine import URL, LlamaEngine
from jubal.engines.llama_cpp.scheduler import Policy
from jubal.engines.llama_cpp.schema import BUILT_IN, demand
from tests.core.test_schema_size import laughs

WHERE = "response_format.json_schema.schema"
PATIENCE_S = 60.0
BYTES_MAX = 200 << 20
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models_home: Path) -> AsyncIterator[LlamaEngine]:
    policy = Policy(trial_s=PATIENCE_S, trial_bytes_max=BYTES_MAX, backoff_first_s=0.1)
    engine = LlamaEngine("local", models_home, "smollm2-135m", context=1024, slots=2, policy=policy)
    await engine.start()
    await engine.ready()
    yield engine
    await engine.close()


def asks(schema: Any, tokens: int = 24) -> Generation:
    message = Message("user", (TextPart("Make something up, in JSON."),))
    output = JsonOutput(json.dumps(schema), where=WHERE) if schema is not None else None
    return Generation("m", (message,), sampling=Sampling(temperature=1.5, seed=3), bounds=Bounds(tokens), output=output)


async def answer(engine: LlamaEngine, turn: Generation) -> str:
    async with aclosing(engine.stream(turn)) as events:
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])


def a(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


HOSTILE: dict[str, Any] = {
    "a remainder of many": a(type="integer", multipleOf=123456789),
    "remainders combined": a(allOf=[{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]),
    "many remainders": {"type": "object", "properties": {f"p{n}": {"multipleOf": 1009 + n} for n in range(1000)}},
    "definitions that multiply": laughs(24),
    "repetitions of repetitions": a(type="string", pattern="^(a{1000}){1000}$"),
    "a long repetition": a(type="string", pattern="^a{9999999}$"),
    "a long pattern": a(type="string", pattern=f"^{'ab?' * 100_000}$"),
    "many that may be left out": a(type="string", pattern=f"^{'a?' * 2000}$"),
    "nested lists": {"type": "array", "minItems": 10_001, "items": {"type": "integer"}},
    "deep": json.loads('{"items":' * 70 + "{}" + "}" * 70),
    "very many schemas": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(6000)}},
    "a huge enum": {"enum": list(range(10_001))},
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_it_never_reaches_the_child(engine: LlamaEngine, case: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(HOSTILE[case], WHERE)
        await answer(engine, asks(HOSTILE[case]))
    assert (refused.value.param or "").startswith(WHERE)
    assert not engine._guide._trials


AT_THE_BOUNDS: dict[str, tuple[Any, str]] = {
    "one remainder": (a(type="integer", multipleOf=49_999), r'\{"a": -?\d*\}?'),
    "many remainders": (
        {"type": "object", "properties": {f"p{n}": {"type": "integer", "multipleOf": 2 * n + 1} for n in range(200)}},
        r"\{.*",
    ),
    "definitions that multiply": (laughs(12), r'".*'),
    "a repetition": (a(type="string", pattern="^[ab]{99990}$"), r'\{"a": "[ab]*'),
    "repetitions of repetitions": (a(type="string", pattern="^([ab]{310}){310}$"), r'\{"a": "[ab]*'),
    "choices in repetitions": (a(type="string", pattern="^([ab]{0,310}c){0,310}$"), r'\{"a": "[abc]*("\}?)?'),
    "many that may be left out": (a(type="string", pattern=f"^{'[ab]?' * 100}$"), r'\{"a": "[ab]*("\}?)?'),
    "a huge enum": ({"enum": [f"value{n}" for n in range(10_000)]}, r'"value\d+"?'),
    "exponential as an automaton": (a(type="string", pattern="^(a|b)*a(a|b){200}$"), r'\{"a": "[ab]*'),
    "lists of lists": (
        {"type": "array", "minItems": 100, "items": {"type": "array", "minItems": 100, "items": {"type": "integer"}}},
        r"\[\[[-\d, ]*.*",
    ),
}


@pytest.mark.parametrize("case", AT_THE_BOUNDS)
async def test_at_the_bounds_it_is_obeyed_and_others_are_served_meanwhile(engine: LlamaEngine, case: str) -> None:
    schema, obeyed = AT_THE_BOUNDS[case]
    check(schema, WHERE)
    life = engine._learned_of
    other = asyncio.ensure_future(answer(engine, asks(None, tokens=100)))
    text = await asyncio.wait_for(answer(engine, asks(schema)), PATIENCE_S)
    assert re.fullmatch(obeyed, text), text
    assert await asyncio.wait_for(other, PATIENCE_S)
    assert engine._learned_of == life, "the child was ended"


BUILT_IN_HOSTILE: dict[str, Any] = {
    "a huge enum": {"enum": [f"value{n}" for n in range(501)]},
    "many branches": {"anyOf": [{"type": "object", "properties": {f"p{n}": {"type": "null"}}} for n in range(501)]},
    "many properties": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(501)}},
    "many that may be left out": {"type": "string", "pattern": f"^{'a?' * 100}$"},
    "a long repetition": {"type": "string", "pattern": "^a{100000}$"},
}


@pytest.mark.parametrize("case", BUILT_IN_HOSTILE)
async def test_the_other_converter_has_closer_bounds(case: str) -> None:
    with pytest.raises(BadRequest, match="so much of it"):
        demand(JsonOutput(json.dumps(BUILT_IN_HOSTILE[case]), where=WHERE), BUILT_IN)


# ------------------------------------------------------------------------------------------------ the watchdog

SLOW = "%llguidance {}\nstart: %json " + json.dumps({"type": "integer", "multipleOf": 123456789})
"""As if it had come through: it takes minutes and many gigabytes."""


async def test_a_child_that_swells_over_a_schema_is_ended_once(engine: LlamaEngine) -> None:
    assert engine._session is not None
    life = engine._learned_of
    asked = asyncio.ensure_future(engine._guide.obeys(engine._session, URL, SLOW))
    while engine._guide._turn.locked() is False:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    asked.cancel()  # the client has left: llama.cpp is as busy as before
    async with asyncio.timeout(PATIENCE_S):
        while engine._guide._trials:
            await asyncio.sleep(0.05)
        assert await answer(engine, asks(None)), "another child answers"
    assert engine._learned_of == life + 1
    assert await engine._guide.obeys(engine._session, URL, SLOW) is False, "refused without another try"
    assert await answer(engine, asks(None))
    assert engine._learned_of == life + 1


async def test_a_child_that_does_not_come_back_is_ended(models_home: Path) -> None:
    policy = Policy(trial_s=1.5, trial_bytes_max=1 << 40, backoff_first_s=0.1)
    engine = LlamaEngine("local", models_home, "smollm2-135m", context=1024, slots=1, policy=policy)
    await engine.start()
    try:
        await engine.ready()
        await asyncio.sleep(policy.trial_s)  # so that its last sign of life is old
        assert engine._session is not None
        assert await engine._guide.obeys(engine._session, URL, SLOW) is False
        async with asyncio.timeout(PATIENCE_S):
            assert await answer(engine, asks(None))
        assert engine._learned_of == 2
    finally:
        await engine.close()


async def test_a_child_that_serves_others_meanwhile_is_only_slow(models_home: Path) -> None:
    policy = Policy(trial_s=0.0, trial_bytes_max=1 << 40)
    engine = LlamaEngine("local", models_home, "smollm2-135m", context=1024, slots=2, policy=policy)
    engine._guide._hung = lambda why, certain: False
    await engine.start()
    try:
        await engine.ready()
        with pytest.raises(EngineTimeout):
            await answer(engine, asks(a(type="string")))
        assert await answer(engine, asks(None))
        assert engine._learned_of == 1
    finally:
        await engine.close()
