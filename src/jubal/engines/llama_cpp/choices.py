"""Several choices from an engine that makes one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias, assert_never

from jubal.core.events import (
    EngineEvent,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    TurnEnded,
    UsageSoFar,
)
from jubal.core.usage import NOTHING, Usage

Turns: TypeAlias = Sequence[AsyncGenerator[EngineEvent, None]]
AHEAD_MAX = 8
"""Events of one choice that wait to be taken; then its stream waits."""


async def merge_choices(turns: Turns, each: int) -> AsyncGenerator[EngineEvent, None]:
    """The events of several one-choice turns as those of one turn. each: so many in a row have the same prompt.

    The first error of any ends all. Closing closes all, before it returns.
    """
    queue: asyncio.Queue[tuple[int, EngineEvent | Exception]] = asyncio.Queue(AHEAD_MAX * len(turns))
    tasks = [asyncio.create_task(_pump(queue, index, turn)) for index, turn in enumerate(turns)]
    merged = Merged(len(turns), each)
    try:
        while not merged.ended:
            index, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            for out in merged.feed(index, event):
                yield out
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    queue: asyncio.Queue[tuple[int, EngineEvent | Exception]], index: int, turn: AsyncGenerator[EngineEvent, None]
) -> None:
    try:
        async with aclosing(turn) as events:
            async for event in events:
                await queue.put((index, event))
    except Exception as error:  # noqa: BLE001  raised again by the reader
        await queue.put((index, error))


class Merged:
    """Feeds on the events of one-choice turns, and gives those of the whole. Usage counts each prompt once, as OpenAI does.

    each: so many turns in a row have the same prompt.
    """

    def __init__(self, answers: int, each: int) -> None:
        self._ends: list[TurnEnded | None] = [None] * answers
        self._each = each
        self._given = 0
        self._metered: dict[int, Usage] = {}
        self.ended = False

    def feed(self, index: int, event: EngineEvent) -> Iterator[EngineEvent]:
        match event:
            case TextDelta() | ReasoningDelta():
                self._given += 1
                yield replace(event, choice=index)
            case ToolCall():
                yield replace(event, choice=index)
            case UsageSoFar(usage):
                # Enough once for each prompt: it tells that, and every delta after it counts for itself.
                if index // self._each not in self._metered:
                    self._metered[index // self._each] = usage
                    known = sum(self._metered.values(), NOTHING)
                    yield UsageSoFar(
                        Usage(known.prompt, max(usage.completion, self._given), known.cached, usage.reasoning)
                    )
            case TurnEnded():
                self._ends[index] = event
                yield from self._end()
            case _:
                assert_never(event)

    def _end(self) -> Iterator[TurnEnded]:
        ends = [end for end in self._ends if end is not None]
        if len(ends) == len(self._ends):
            self.ended = True
            reasons: tuple[FinishReason, ...] = tuple(end.reasons[0] for end in ends)
            stops = tuple(end.stops[0] if end.stops else None for end in ends)
            groups = [ends[first : first + self._each] for first in range(0, len(ends), self._each)]
            usages = [together([end.usage for end in group]) for group in groups]
            known = [usage for usage in usages if usage is not None]
            usage = sum(known[1:], known[0]) if len(known) == len(usages) else None
            yield TurnEnded(reasons, usage, stops if any(stops) else ())


def together(usages: Sequence[Usage | None]) -> Usage | None:
    """The usage of several answers to one prompt: the prompt and its cached part as the first counted them, all answers.

    None where one of them is not known.
    """
    told = [usage for usage in usages if usage is not None]
    if not told or len(told) < len(usages):
        return None
    completion = sum(usage.completion for usage in told)
    return Usage(told[0].prompt, completion, told[0].cached, sum(usage.reasoning for usage in told))
