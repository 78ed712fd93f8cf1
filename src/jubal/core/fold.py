"""Events to a whole answer: a fold of the stream, the only way one is made."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import assert_never

from jubal.core.errors import EngineBroken
from jubal.core.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    UsageSoFar,
)
from jubal.core.usage import Usage


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a completion."""

    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    id: str
    created: int
    model: str
    fingerprint: str
    choices: tuple[Choice, ...]
    usage: Usage
    cost_ticks: int | None


@dataclass(slots=True)
class _Open:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Folder:
    """Feeds on the events of one answer; `completion` is there once `Finished` was fed."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._open: dict[int, _Open] = {}
        self.completion: Completion | None = None

    def feed(self, event: Event) -> None:
        """Raises the error that a `Failed` event carries."""
        match event:
            case TextDelta():
                choice = self._choice(event.choice)
                choice.text.append(event.text)
                choice.logprobs += event.logprobs
            case ReasoningDelta():
                self._choice(event.choice).reasoning.append(event.text)
            case ToolCall():
                self._choice(event.choice).calls.append(event)
            case Started():
                self._started = event
            case Finished():
                self.completion = self._close(event)
            case Failed(error):
                raise error
            case UsageSoFar():
                pass
            case _:
                assert_never(event)

    def _choice(self, index: int) -> _Open:
        choice = self._open.get(index)
        if choice is None:
            choice = self._open[index] = _Open()
        return choice

    def _close(self, end: Finished) -> Completion:
        assert self._started is not None, "Started comes first"
        choices = []
        for index, reason in enumerate(end.reasons):
            made = self._choice(index)
            choices.append(
                Choice("".join(made.text), "".join(made.reasoning), tuple(made.calls), reason, tuple(made.logprobs))
            )
        start = self._started
        return Completion(
            start.id, start.created, start.model, start.fingerprint, tuple(choices), end.usage, end.cost_ticks
        )


async def fold(events: AsyncGenerator[Event, None]) -> Completion:
    """Consumes an answer to its end.

    Raises: the error of a `Failed` event; `EngineBroken` where the events stop without an end.
    """
    folder = Folder()
    async with aclosing(events):
        async for event in events:
            folder.feed(event)
    if folder.completion is None:
        raise EngineBroken("The answer ended without an end.")
    return folder.completion
