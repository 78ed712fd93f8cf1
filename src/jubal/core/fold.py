"""Events to a whole answer: a fold of the stream, the only way one is made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from jubal.core.errors import EngineBroken
from jubal.core.events import (
    UNTOLD,
    Applied,
    Citation,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    UsageSoFar,
)
from jubal.core.server_tools import Source, ToolKind
from jubal.core.usage import Usage
from jubal.core.values import value


@value(frozen=True, slots=True)
class TextItem:
    """Visible text without anything else between its pieces."""

    text: str


@value(frozen=True, slots=True)
class ReasoningItem:
    """Thinking without anything else between its pieces."""

    text: str


@value(frozen=True, slots=True)
class ServerItem:
    """A call of a server tool and how it ended; result: None where the answer ended before it.

    round: the same for calls that the model made together, before it saw what any of them gave.
    """

    call: ServerToolCall
    result: ServerToolResult | None = None
    round: int = field(default=0, compare=False)


Item: TypeAlias = TextItem | ReasoningItem | ToolCall | ServerItem


@value(frozen=True, slots=True)
class Choice:
    """One answer of a completion. items: all of it, in the order in which it began.

    stop: the stop string that ended it; None where none did, or the engine does not tell.
    """

    items: tuple[Item, ...]
    reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    citations: tuple[Citation, ...] = ()
    stop: str | None = None

    @property
    def text(self) -> str:
        return "".join(item.text for item in self.items if isinstance(item, TextItem))

    @property
    def reasoning(self) -> str:
        return "".join(item.text for item in self.items if isinstance(item, ReasoningItem))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Calls that the client has to answer."""
        return tuple(item for item in self.items if isinstance(item, ToolCall))

    @property
    def server_calls(self) -> tuple[ServerItem, ...]:
        """Calls that were answered here."""
        return tuple(item for item in self.items if isinstance(item, ServerItem))

    def events(self) -> Iterator[Event]:
        """Events that fold to this choice: each stretch of text in one piece, calls made together followed by their results."""
        place, logprobs = 0, self.logprobs
        results: list[ServerToolResult] = []
        round = 0
        for item in self.items:
            if not (isinstance(item, ToolCall) or (isinstance(item, ServerItem) and item.round == round)):
                yield from results
                results.clear()
            match item:
                case TextItem(text):
                    yield TextDelta(text, 0, logprobs)
                    yield from (cited for cited in self.citations if place <= cited.start < place + len(text))
                    place, logprobs = place + len(text), ()
                case ReasoningItem(text):
                    yield ReasoningDelta(text)
                case ToolCall():
                    yield item
                case ServerItem(call, result, round):
                    yield call
                    if result is not None:
                        results.append(result)
                case _:
                    assert_never(item)
        yield from results


@value(frozen=True, slots=True)
class Completion:
    """A whole answer. sources, tool_uses, ended: as in `Finished`; priority: as in `Started`."""

    id: str
    created: int
    model: str
    fingerprint: str
    choices: tuple[Choice, ...]
    usage: Usage
    cost_ticks: int | None
    sources: tuple[Source, ...] = ()
    tool_uses: tuple[tuple[ToolKind, int], ...] = ()
    ended: int | None = None
    applied: Applied = UNTOLD

    def started(self) -> Started:
        """The event that it began with."""
        return Started(self.id, self.created, self.model, self.fingerprint, self.applied)


@dataclass(slots=True)
class _Pieces:
    """Text or thinking that is not over yet."""

    kind: type[TextItem] | type[ReasoningItem]
    pieces: list[str]


@dataclass(slots=True)
class _Open:
    """A choice that is not over yet."""

    items: list[_Pieces | ToolCall | ServerItem] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    citations: list[Citation] = field(default_factory=list)
    round: int = 0
    answered: bool = False

    def call(self, call: ServerToolCall) -> None:
        self.round += self.answered
        self.answered = False
        self.items.append(ServerItem(call, round=self.round))

    def add(self, kind: type[TextItem] | type[ReasoningItem], text: str) -> None:
        last = self.items[-1] if self.items else None
        if isinstance(last, _Pieces) and last.kind is kind:
            last.pieces.append(text)
        else:
            self.items.append(_Pieces(kind, [text]))

    def end_call(self, result: ServerToolResult) -> None:
        for place, item in enumerate(self.items):
            if isinstance(item, ServerItem) and item.call.id == result.id and item.result is None:
                self.items[place] = ServerItem(item.call, result, item.round)
                self.answered = True
                return

    def close(self, reason: FinishReason, stop: str | None) -> Choice:
        items = [item.kind("".join(item.pieces)) if isinstance(item, _Pieces) else item for item in self.items]
        return Choice(tuple(items), reason, tuple(self.logprobs), tuple(self.citations), stop)


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
                choice.add(TextItem, event.text)
                choice.logprobs += event.logprobs
            case ReasoningDelta():
                self._choice(event.choice).add(ReasoningItem, event.text)
            case ToolCall():
                self._choice(event.choice).items.append(event)
            case ServerToolCall():
                self._choice(event.choice).call(event)
            case ServerToolResult():
                self._choice(event.choice).end_call(event)
            case Citation():
                self._choice(event.choice).citations.append(event)
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
        choices = tuple(
            [self._choice(index).close(reason, end.stop_of(index)) for index, reason in enumerate(end.reasons)]
        )
        start = self._started
        return Completion(
            start.id,
            start.created,
            start.model,
            start.fingerprint,
            choices,
            end.usage,
            end.cost_ticks,
            end.sources,
            end.tool_uses,
            end.ended,
            start.applied,
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
