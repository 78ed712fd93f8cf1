"""The `openai` engine over a real socket, against an upstream that behaves and one that does not."""

from __future__ import annotations

import asyncio
import json

import pytest

from jubal.core.errors import AtCapacity, BadRequest, EngineBroken, EngineTimeout, EngineUnavailable, JubalError
from jubal.core.events import EngineEvent, TextDelta, TurnEnded
from jubal.core.generation import Generation, Message, PastCall, TextPart
from jubal.core.usage import Usage
from jubal.engines.openai_compat import OpenAICompatEngine, chat_body
from jubal.testing import check_engine, one_turn
from tests.fake_upstream import (
    Behaviour,
    Upstream,
    dies_after,
    ending,
    hangs_after,
    piece,
    refuses,
    says,
    trickles,
    upstream,
)

GOOD = says(piece("Hel"), piece("lo"), ending())
ANSWER = [TextDelta("Hel"), TextDelta("lo"), TurnEnded(("stop",), Usage(5, 2))]


class Engine:
    """An engine on an upstream with these behaviours; pauses between tries are only written down."""

    def __init__(self, *behaviours: Behaviour, **options: object) -> None:
        self._behaviours = behaviours
        self._options = options
        self.pauses: list[float] = []

    async def __aenter__(self) -> tuple[OpenAICompatEngine, Upstream, list[float]]:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        self._context = upstream(*self._behaviours)
        there = await self._context.__aenter__()
        self._engine = OpenAICompatEngine("box", there.url, sleep=sleep, **self._options)  # type: ignore[arg-type]
        await self._engine.start()
        return self._engine, there, self.pauses

    async def __aexit__(self, *error: object) -> None:
        await self._engine.close()
        await self._context.__aexit__(None, None, None)


async def collect(engine: OpenAICompatEngine) -> list[EngineEvent]:
    return [event async for event in engine.stream(one_turn(model="up"))]


async def test_keeps_the_promise() -> None:
    async with upstream(
        says(piece("a"), piece("b", 0), ending(choices=1)), says(piece("a"), piece("b", 1), ending(choices=2)), GOOD
    ) as there:

        async def make() -> OpenAICompatEngine:
            engine = OpenAICompatEngine("box", there.url)
            await engine.start()
            return engine

        await check_engine(make)


async def test_asks_for_usage_and_sends_its_key_and_the_upstream_name() -> None:
    async with Engine(GOOD, api_key="sk-up") as (engine, there, _):
        assert await collect(engine) == ANSWER
        assert there.headers[0]["authorization"] == "Bearer sk-up"
        assert there.bodies[0]["model"] == "up"
        assert there.bodies[0]["stream_options"] == {"include_usage": True}


async def test_one_connection_serves_many_turns() -> None:
    ports = set()

    async def behave(there: Upstream, request: object) -> object:
        ports.add(request.transport.get_extra_info("peername")[1])  # type: ignore[attr-defined]
        return await GOOD(there, request)  # type: ignore[arg-type]

    async with Engine(behave) as (engine, _, _p):  # type: ignore[arg-type]
        for _ in range(5):
            await collect(engine)
    assert len(ports) == 1


@pytest.mark.parametrize("behaviour", [trickles(), hangs_after(piece("x"))], ids=["speaks", "is silent"])
async def test_closing_the_stream_cuts_the_upstream(behaviour: Behaviour) -> None:
    """Without another word of it being waited for."""
    async with Engine(behaviour) as (engine, there, _):
        events = engine.stream(one_turn())
        await anext(events)
        await asyncio.wait_for(events.aclose(), 60)
        await asyncio.wait_for(there.gone.wait(), 60)


async def test_cancelling_before_the_first_token_cuts_it_too() -> None:
    async with Engine(hangs_after()) as (engine, there, _):
        task = asyncio.ensure_future(anext(engine.stream(one_turn())))
        while not there.bodies:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait_for(there.gone.wait(), 60)


@pytest.mark.parametrize("bad", [refuses(500), refuses(503), refuses(429), refuses(429, None, **{"retry-after": "2"})])
async def test_what_may_pass_is_tried_again(bad: Behaviour) -> None:
    async with Engine(bad, bad, GOOD) as (engine, there, pauses):
        assert await collect(engine) == ANSWER
        assert len(there.bodies) == 3
        assert len(pauses) == 2
        assert all(0.5 <= pause <= 4 for pause in pauses)


async def test_backoff_doubles_and_ends() -> None:
    async with Engine(refuses(503), retries=3) as (engine, there, pauses):
        with pytest.raises(EngineUnavailable):
            await collect(engine)
        assert len(there.bodies) == 4
        assert 1 <= pauses[0] <= 2 <= pauses[1] <= 4 <= pauses[2] <= 8


async def test_a_long_retry_after_is_told_instead_of_waited_for() -> None:
    async with Engine(refuses(429, None, **{"retry-after": "3600"})) as (engine, there, pauses):
        with pytest.raises(AtCapacity) as caught:
            await collect(engine)
        assert caught.value.retry_after_s == 3600
        assert (len(there.bodies), pauses) == (1, [])


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (refuses(400, {"error": {"message": "bad"}}), BadRequest),
        (refuses(401, {"error": {"message": "no"}}), EngineBroken),
        (refuses(404, {"error": {"message": "no"}}), EngineBroken),
        (refuses(302, None, location="http://127.0.0.1:1/"), EngineBroken),
    ],
)
async def test_what_will_not_pass_is_not_tried_again(behaviour: Behaviour, kind: type[JubalError]) -> None:
    async with Engine(behaviour, retries=0 if kind is EngineBroken else 3) as (engine, there, _):
        with pytest.raises(kind):
            await collect(engine)
        assert len(there.bodies) == 1


async def test_dying_in_the_middle_is_never_tried_again_nor_silent() -> None:
    async with Engine(dies_after(piece("a"))) as (engine, there, _):
        seen: list[EngineEvent] = []
        with pytest.raises(EngineBroken):
            async for event in engine.stream(one_turn()):
                seen.append(event)
        assert seen == [TextDelta("a")]
        assert len(there.bodies) == 1


async def test_silence_is_a_timeout() -> None:
    async with Engine(hangs_after(piece("a")), timeout_s=0.2) as (engine, _, _p):
        with pytest.raises(EngineTimeout):
            await collect(engine)


async def test_nobody_there() -> None:
    engine = OpenAICompatEngine("box", "http://127.0.0.1:9/v1", retries=0)
    await engine.start()
    with pytest.raises(EngineUnavailable):
        await collect(engine)
    await engine.close()


async def test_a_page_instead_of_a_stream() -> None:
    async with Engine(refuses(200, {"hello": 1}), retries=0) as (engine, _, _p):
        with pytest.raises(EngineBroken):
            await collect(engine)


async def test_a_timeout_told_in_a_200_body() -> None:
    body = {"code": "The service is currently unavailable", "error": "Timed out waiting for first token"}
    async with Engine(refuses(200, body), retries=0) as (engine, _, _p):
        with pytest.raises(EngineUnavailable, match="first token"):
            await collect(engine)


def test_results_without_ids_are_paired_with_calls_in_order() -> None:
    calls = (PastCall("c1", "f", "{}"), PastCall("c2", "g", "{}"))
    messages = (
        Message("user", (TextPart("hi"),)),
        Message("assistant", (), calls=calls),
        Message("tool", (TextPart("one"),)),
        Message("tool", (TextPart("two"),)),
        Message("assistant", (), calls=(PastCall("c3", "f", "{}"),)),
        Message("tool", (TextPart("three"),), tool_call_id="c3"),
        Message("tool", (TextPart("too many"),)),
    )
    body = json.loads(chat_body(Generation("m", messages)))
    assert [message.get("tool_call_id") for message in body["messages"]] == [None, None, "c1", "c2", None, "c3", None]
