"""Two engines on the real model, with room in memory for one child."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import psutil
import pytest

from jubal.core.events import TextDelta, TurnEnded
from jubal.core.generation import Bounds, Generation, Message, Sampling, TextPart
from jubal.engines.llama_cpp.engine import LlamaEngine
from jubal.engines.llama_cpp.memory import MIB, ModelMemory

LIMIT_MIB = 300
"""A child of one slot of 512 tokens takes about 180 MiB."""


def children() -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):
            if "jubal.engines.llama_cpp.child" in one.cmdline() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


class Watched:
    """Counts children all the time."""

    def __init__(self) -> None:
        self.most = 0
        self._others = {one.pid for one in children()}  # servers that other tests share
        self._task = asyncio.create_task(self._watch())

    def now(self) -> list[psutil.Process]:
        return [one for one in children() if one.pid not in self._others]

    async def _watch(self) -> None:
        while True:
            self.most = max(self.most, len(self.now()))
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        self._task.cancel()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched()
    yield watched
    watched.stop()
    assert watched.now() == [], "a child is left"


async def answer(engine: LlamaEngine, tokens_max: int = 8) -> str:
    message = Message("user", (TextPart("What is the capital of France?"),))
    turn = Generation("m", (message,), Sampling(temperature=0), Bounds(tokens_max))
    said = ""
    async with aclosing(engine.stream(turn)) as events:
        async for event in events:
            said += event.text if isinstance(event, TextDelta) else ""
    assert isinstance(event, TurnEnded)
    return said


def two(models_home: Path, memory: ModelMemory) -> list[LlamaEngine]:
    return [
        LlamaEngine(name, models_home, "smollm2-135m", context=512, slots=1, timeout_s=60, memory=memory)
        for name in ("one", "two")
    ]


async def test_two_models_take_turns_and_a_killed_child_is_replaced(models_home: Path, watched: Watched) -> None:
    memory = ModelMemory(LIMIT_MIB * MIB)
    one, two_ = engines = two(models_home, memory)
    size = await one.estimate()
    assert size is not None
    assert size.total < LIMIT_MIB * MIB < 2 * size.total
    for engine in engines:
        await engine.start()
    assert one.status().state == "starting"
    for engine in engines:
        await engine.ready()
    assert [engine.status().state for engine in engines] == ["ready", "stopped"]
    for engine in (one, two_, one):
        assert "Paris" in await answer(engine)
        assert engine.status().state == "ready"
    (child,) = watched.now()
    measured = one.measured()
    assert measured is not None
    assert 0.6 < measured / size.total < 1.6, "the estimate is of the right order"
    child.kill()
    assert "Paris" in await answer(two_)
    (child,) = watched.now()
    child.kill()
    assert "Paris" in await answer(two_), "the same engine again"
    together = await asyncio.gather(*(answer(engine) for engine in (one, two_, one, two_)))
    assert all("Paris" in said for said in together)
    assert watched.most == 1
    await asyncio.gather(*(engine.close() for engine in engines))
    assert [engine.status().state for engine in engines] == ["stopped", "stopped"]


async def test_an_answer_is_not_cut_by_a_request_for_another_model(models_home: Path, watched: Watched) -> None:
    memory = ModelMemory(LIMIT_MIB * MIB)
    one, two_ = engines = two(models_home, memory)
    for engine in engines:
        await engine.start()
    long = asyncio.create_task(answer(one, 64))
    while memory._members["one"].running == 0:
        await asyncio.sleep(0.01)
    assert "Paris" in await answer(two_)
    assert long.done(), "the other waited for its end"
    assert "Paris" in await long
    assert watched.most == 1
    await asyncio.gather(*(engine.close() for engine in engines))
