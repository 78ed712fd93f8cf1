"""A scripted engine, and the promise of `engines.base.Engine` as checks that every engine's test calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from jubal.core.events import EngineEvent, TurnEnded
from jubal.core.generation import Bounds, Generation, Message, Sampling, TextPart
from jubal.core.grammar import TURN, Checker
from jubal.engines.base import Engine, EngineStatus, Weights


@dataclass(frozen=True)
class Hang:
    """A step of a script: say nothing for this long."""

    seconds: float = 3600.0


Step: TypeAlias = EngineEvent | Exception | Hang


class ScriptedEngine:
    """Plays one script per turn, in order; the last one again and again. Keeps what it was asked and what was cut.

    An exception in a script is raised; `Hang` waits.
    """

    kind = "scripted"

    def __init__(self, *scripts: Sequence[Step], name: str = "scripted", weights: Weights | None = None) -> None:
        self.name = name
        self.turns: list[Generation] = []
        self.cut = 0
        self.running = 0
        self._scripts = scripts
        self._weights = weights or Weights("scripted", "fp_0000000000", 1_000_000, ("text", "image"))
        self.state = EngineStatus("ready")

    async def start(self) -> None:
        """At once."""

    async def ready(self) -> None:
        """At once."""

    async def close(self) -> None:
        """At once."""

    def status(self) -> EngineStatus:
        return self.state

    def weights(self, model: str) -> Weights:
        return self._weights

    async def stream(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        script = self._scripts[min(len(self.turns), len(self._scripts) - 1)]
        self.turns.append(turn)
        self.running += 1
        done = False
        try:
            for step in script:
                if isinstance(step, Hang):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Exception):
                    raise step
                else:
                    done = isinstance(step, TurnEnded)
                    yield step
        finally:
            self.running -= 1
            self.cut += not done


def one_turn(text: str = "Say hello.", *, model: str = "m", tokens_max: int | None = 8, choices: int = 1) -> Generation:
    """A small turn at temperature 0."""
    message = Message("user", (TextPart(text),))
    return Generation(model, (message,), Sampling(temperature=0), Bounds(tokens_max), choices)


async def check_engine(make: Callable[[], Awaitable[Engine]], *, model: str = "m") -> None:
    """The promise of `Engine`: raises AssertionError where one is broken.

    make: an engine, started. It is closed here.
    """
    engine = await make()
    try:
        await engine.ready()
        assert engine.status().state == "ready"
        weights = engine.weights(model)
        assert weights.name
        assert weights.fingerprint.startswith("fp_")
        assert len(weights.fingerprint) == len("fp_") + 10
        await _ends_each_turn_once(engine, model)
        await _answers_several_at_once(engine, model)
        await _stops_when_closed(engine, model)
    finally:
        await engine.close()
    assert engine.status().state == "stopped" or engine.kind == "scripted"


async def _collect(engine: Engine, turn: Generation) -> list[EngineEvent]:
    checker = Checker(TURN, turn.answers)
    seen = []
    async with aclosing(engine.stream(turn)) as events:
        async for event in events:
            checker.see(event)
            seen.append(event)
    checker.end()
    return seen


async def _ends_each_turn_once(engine: Engine, model: str) -> None:
    for choices in (1, 2):
        last = (await _collect(engine, one_turn(model=model, choices=choices)))[-1]
        assert isinstance(last, TurnEnded)
        if last.usage is not None:
            assert last.usage.prompt > 0
            assert 0 < last.usage.completion <= 8 * choices
            assert last.usage.cached is None or 0 <= last.usage.cached <= last.usage.prompt


async def _answers_several_at_once(engine: Engine, model: str) -> None:
    answers = await asyncio.gather(*(_collect(engine, one_turn(f"Number {n}.", model=model)) for n in range(3)))
    assert all(isinstance(answer[-1], TurnEnded) for answer in answers)


async def _stops_when_closed(engine: Engine, model: str) -> None:
    events = engine.stream(one_turn("Count to one hundred.", model=model, tokens_max=400))
    await anext(events)
    await events.aclose()
    assert (await _collect(engine, one_turn(model=model)))[-1], "works on after a cut answer"
