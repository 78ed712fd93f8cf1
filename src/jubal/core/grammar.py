"""Which event may follow which: one table, used by the test kits and by `checked` in debug runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from jubal.core.events import (
    Citation,
    EngineEvent,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
    ToolCall,
    TurnEnded,
    UsageSoFar,
)

_PIECES: Final = frozenset({TextDelta, ReasoningDelta, ToolCall, UsageSoFar})
_SERVED: Final = _PIECES | {ServerToolCall, ServerToolResult, Citation}
START: Final = None

ANSWER: Final[dict[type | None, frozenset[type]]] = {
    START: frozenset({Started}),
    Started: _SERVED | {Finished, Failed},
    **dict.fromkeys(_SERVED, _SERVED | {Finished, Failed}),
    Finished: frozenset(),
    Failed: frozenset(),
}
"""The answer as a dialect sees it."""

TURN: Final[dict[type | None, frozenset[type]]] = {
    START: _PIECES | {TurnEnded},
    **dict.fromkeys(_PIECES, _PIECES | {TurnEnded}),
    TurnEnded: frozenset(),
}
"""One turn as an engine yields it."""


class OutOfOrder(AssertionError):
    """An event came where the table does not allow it."""


class Checker:
    """Feeds on events and raises `OutOfOrder` at the first that must not be there."""

    def __init__(self, table: dict[type | None, frozenset[type]], choices: int = 1) -> None:
        self._table = table
        self._choices = choices
        self._last: type | None = START

    def see(self, event: Event | EngineEvent) -> None:
        kind = type(event)
        if kind not in self._table[self._last]:
            raise OutOfOrder(f"{kind.__name__} after {self._last.__name__ if self._last else 'nothing'}")
        if isinstance(event, TextDelta | ReasoningDelta):
            if not event.text:
                raise OutOfOrder(f"{kind.__name__} without text")
            if not 0 <= event.choice < self._choices:
                raise OutOfOrder(f"{kind.__name__} for choice {event.choice} of {self._choices}")
        if isinstance(event, TurnEnded | Finished) and len(event.reasons) != self._choices:
            raise OutOfOrder(f"{len(event.reasons)} finish reasons for {self._choices} choices")
        if isinstance(event, TurnEnded | Finished) and len(event.stops) not in (0, self._choices):
            raise OutOfOrder(f"{len(event.stops)} stop strings for {self._choices} choices")
        self._last = kind

    def end(self) -> None:
        """No more events come. Raises `OutOfOrder` where one is still owed."""
        if self._table[self._last]:
            raise OutOfOrder(f"ended after {self._last.__name__ if self._last else 'nothing'}")


async def checked(events: AsyncGenerator[Event, None], choices: int = 1) -> AsyncIterator[Event]:
    """The same events, each checked against `ANSWER`."""
    checker = Checker(ANSWER, choices)
    async with aclosing(events):
        async for event in events:
            checker.see(event)
            yield event
    checker.end()
