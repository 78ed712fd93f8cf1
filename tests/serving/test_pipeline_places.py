"""Requests with server tools give their place at the engine back while the tools run: who gets it, and that none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest

from jubal.accounts.acl import EVERYTHING, Acl
from jubal.accounts.keys import Caller
from jubal.accounts.limits import MemoryLimiter
from jubal.accounts.usage import UsageRow
from jubal.agent.toolbox import Toolbox
from jubal.core.errors import AtCapacity, EngineBroken, EngineUnavailable
from jubal.core.events import Event, Finished, ServerToolCall, ServerToolResult, TextDelta, ToolCall, TurnEnded
from jubal.core.generation import FunctionTool, Generation, Message, TextPart, Tools
from jubal.core.model import Catalogue, Model, Weights
from jubal.core.server_tools import Mcp, ToolKind, WebSearch
from jubal.core.usage import Usage
from jubal.serving.admission import Admission
from jubal.serving.breaker import Breaker
from jubal.serving.pipeline import Pipeline, Served
from jubal.testing import Hang, ScriptedEngine
from jubal.testing.engines import Step
from jubal.testing.tools import ScriptedTools
from jubal.tools.base import ToolOutput, ToolSession
from tests.serving.test_pipeline import Keys

CALLER = Caller("key", "team", Acl.parse(EVERYTHING))
ABLE = Weights("able", "fp_0000000000", 1_000_000, tools=True)
CALLS: Sequence[Step] = (ToolCall("c1", "look", "{}"), TurnEnded(("tool_calls",), Usage(10, 4)))
ANSWERS: Sequence[Step] = (TextDelta("so"), TurnEnded(("stop",), Usage(20, 1)))
PLAIN = Generation("m", (Message("user", (TextPart("hi"),)),))
WITH_TOOLS = replace(PLAIN, tools=Tools(server=(WebSearch(),)))


@dataclass
class SlowTools:
    """A family whose call takes until `finish`; where `connects`, telling its functions does too."""

    kind: ToolKind = "web_search"
    connects: bool = False
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0

    def open(self, wanted: object) -> ToolSession:
        return self

    async def functions(self) -> tuple[FunctionTool, ...]:
        if self.connects:
            await self._wait()
        return (FunctionTool("look", "Looks."),)

    async def call(self, name: str, arguments: str) -> ToolOutput:
        await self._wait()
        return ToolOutput("seen")

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self.finish.wait()
        finally:
            self.waiting -= 1

    async def close(self) -> None:
        """Holds nothing."""


@dataclass
class House:
    """A pipeline with one place at each engine, and what became of its requests."""

    pipeline: Pipeline
    doors: list[Admission]
    rows: list[UsageRow] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    number: int = 0

    async def commit(self, row: UsageRow) -> None:
        self.rows.append(row)

    def begin(self, asked: Generation, name: str = "") -> asyncio.Task[list[Event]]:
        return asyncio.create_task(self._run(asked, name))

    async def _run(self, asked: Generation, name: str) -> list[Event]:
        self.number += 1
        admitted = self.pipeline.admit(CALLER, "chat", asked, request_id=f"r{self.number}")
        events: list[Event] = []
        async with aclosing(self.pipeline.run(admitted)) as pieces:
            async for event in pieces:
                if isinstance(event, TextDelta):
                    self.order.append(name)
                events.append(event)
        return events

    @property
    def empty(self) -> bool:
        return all((door.running, door.away, door.queued, door.returning) == (0, 0, 0, 0) for door in self.doors)


def house(
    *engines: ScriptedEngine,
    tools: SlowTools | ScriptedTools,
    queued_max: int = 5,
    breaker: Breaker | None = None,
    keep_s: float = 0.0,
) -> House:
    """breaker: of the first engine. keep_s: how long a tool may take that does not cost its request the place."""
    doors = [Admission(engine.name, 1, queued_max, keep_s=keep_s) for engine in engines]
    served = {engine.name: Served(engine, door) for engine, door in zip(engines, doors, strict=True)}
    if breaker is not None:
        served[engines[0].name] = replace(served[engines[0].name], breaker=breaker)
    names = [engine.name for engine in engines]
    model = Model("m", names[0], "up", fallback=tuple(names[1:]))
    made: list[House] = []

    class Log:
        async def commit(self, row: UsageRow) -> None:
            made[0].rows.append(row)

    box = Toolbox({tools.kind: tools})
    pipeline = Pipeline(Catalogue.of([model]), served, Keys(), MemoryLimiter(), Log(), toolbox=box)
    made.append(House(pipeline, doors))
    return made[0]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


def scripted(*scripts: Sequence[Step], name: str = "scripted") -> ScriptedEngine:
    return ScriptedEngine(*scripts, name=name, weights=ABLE)


async def test_a_slow_tool_keeps_nobody_from_the_engine() -> None:
    tools = SlowTools()
    here = house(scripted(CALLS, ANSWERS), tools=tools)
    slow = here.begin(WITH_TOOLS, "slow")
    await until(lambda: here.doors[0].away == 1)
    others = await asyncio.gather(*(here.begin(PLAIN, f"other {number}") for number in range(3)))
    assert all(isinstance(events[-1], Finished) for events in others), "they did not wait for the tool"
    assert tools.waiting == 1
    tools.finish.set()
    events = await slow
    assert isinstance(events[-1], Finished)
    assert here.order == ["other 0", "other 1", "other 2", "slow"]
    assert here.empty


async def test_who_began_goes_on_before_newcomers_and_is_not_refused_by_a_full_queue() -> None:
    tools = SlowTools()
    engine = scripted(CALLS, (Hang(0.2), *ANSWERS), ANSWERS)
    here = house(engine, tools=tools, queued_max=1)
    began = here.begin(WITH_TOOLS, "began")
    await until(lambda: here.doors[0].away == 1)
    works = here.begin(PLAIN, "works")
    await until(lambda: engine.running == 1)
    waits = here.begin(PLAIN, "waits")
    await until(lambda: here.doors[0].queued == 1)
    tools.finish.set()
    await until(lambda: here.doors[0].returning == 1)
    with pytest.raises(AtCapacity):
        await here.begin(PLAIN)
    await asyncio.gather(began, works, waits)
    assert here.order == ["works", "began", "waits"]
    assert here.empty


async def test_nobody_waits_while_a_request_connects_to_its_tools() -> None:
    tools = SlowTools("mcp", connects=True)
    here = house(scripted(ANSWERS), tools=tools)
    connecting = here.begin(replace(PLAIN, tools=Tools(server=(Mcp("box", "http://x.test/"),))), "connecting")
    await until(lambda: here.doors[0].away == 1)
    assert isinstance((await here.begin(PLAIN, "other"))[-1], Finished)
    tools.finish.set()
    await connecting
    assert here.order == ["other", "connecting"]
    assert here.empty


@pytest.mark.parametrize("state", ["in its tool", "connecting", "waiting for its place", "at the engine again"])
async def test_a_client_that_leaves_holds_nothing(state: str) -> None:
    tools = SlowTools("mcp" if state == "connecting" else "web_search", connects=state == "connecting")
    engine = scripted(CALLS, (Hang(),))
    here = house(engine, tools=tools)
    server = (Mcp("box", "http://x.test/"),) if state == "connecting" else (WebSearch(),)
    leaver = here.begin(replace(PLAIN, tools=Tools(server=server)))
    await until(lambda: here.doors[0].away == 1)
    other = None
    if state == "waiting for its place":
        other = here.begin(PLAIN)
        await until(lambda: engine.running == 1)
    if state in ("waiting for its place", "at the engine again"):
        tools.finish.set()
        await until(lambda: engine.running == 1 and here.doors[0].returning == (other is not None))
    for one in (leaver, other):
        if one is not None:
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
    assert here.empty
    assert (tools.waiting, engine.running) == (0, 0)
    await here.pipeline.drain()
    assert {row.status for row in here.rows} == {"cancelled"}
    assert len({row.request_id for row in here.rows}) == len(here.rows), "a row each"


async def test_an_engine_that_fails_in_a_later_turn_ends_the_answer_and_frees_its_place() -> None:
    tools = ScriptedTools({"look": 0.1})
    here = house(scripted(CALLS, (EngineBroken("gone"),), ANSWERS), scripted(ANSWERS, name="other"), tools=tools)
    seen: list[Event] = []
    admitted = here.pipeline.admit(CALLER, "chat", WITH_TOOLS, request_id="r1")
    with pytest.raises(EngineBroken):
        async for event in here.pipeline.run(admitted):
            seen.append(event)
    assert any(isinstance(event, ServerToolResult) for event in seen), "it was told before"
    assert here.empty
    assert tools.open_sessions == 0
    [row] = here.rows
    assert (row.status, row.engine) == ("failed", "scripted"), "what a client saw begin is not begun again elsewhere"


async def test_a_fallback_takes_its_own_place() -> None:
    tools = SlowTools()
    first, second = scripted((EngineUnavailable("away"),)), scripted(CALLS, ANSWERS, name="second")
    here = house(first, second, tools=tools)
    asked = here.begin(WITH_TOOLS, "asked")
    await until(lambda: here.doors[1].away == 1)
    assert (here.doors[0].running, here.doors[0].away) == (0, 0)
    tools.finish.set()
    assert isinstance((await asked)[-1], Finished)
    assert here.empty


async def test_an_engine_that_came_to_rest_while_tools_were_connected_to_is_not_asked() -> None:
    tools = SlowTools("mcp", connects=True)
    first, second = scripted(ANSWERS), scripted(ANSWERS, name="second")
    breaker = Breaker("scripted", failures_max=1)
    here = house(first, second, tools=tools, breaker=breaker)
    asked = here.begin(replace(PLAIN, tools=Tools(server=(Mcp("box", "http://x.test/"),))))
    await until(lambda: here.doors[0].away == 1)
    with pytest.raises(EngineUnavailable), breaker.attempt():
        raise EngineUnavailable("away")
    tools.finish.set()
    assert isinstance((await asked)[-1], Finished)
    assert (len(first.turns), len(second.turns)) == (0, 1)
    assert here.empty


async def test_an_answer_that_began_asks_its_engine_again_though_the_engine_rests() -> None:
    """The rest is for those who have somewhere else to go; and one that goes on does not count as the one that tries."""
    tools = SlowTools()
    breaker = Breaker("scripted", failures_max=1)
    here = house(scripted(CALLS, ANSWERS), tools=tools, breaker=breaker)
    asked = here.begin(WITH_TOOLS)
    await until(lambda: here.doors[0].away == 1)
    with pytest.raises(EngineUnavailable), breaker.attempt():
        raise EngineUnavailable("away")
    tools.finish.set()
    assert isinstance((await asked)[-1], Finished)
    assert breaker.state == "open"


async def test_quick_tools_keep_their_place() -> None:
    """Each turn would else wait for somebody's whole answer."""
    tools = ScriptedTools({"look": ToolOutput("seen")})
    calls = [(ToolCall(f"c{n}", "look", f'{{"n":{n}}}'), TurnEnded(("tool_calls",), Usage(10, 4))) for n in range(3)]
    here = house(scripted(*calls, ANSWERS), tools=tools, keep_s=600)
    quick, other = here.begin(WITH_TOOLS, "quick"), here.begin(PLAIN, "other")
    events = await quick
    assert sum(isinstance(event, ServerToolCall) for event in events) == 3
    await other
    assert here.order == ["quick", "other"]
    assert here.empty
