"""What is kept of an answer: the conversation, in no dialect's words, so that any of them can go on from it, and beside it what
only the dialect that answered reads (xai-api.md 8.8, 8.9, 23.5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, assert_never

import msgspec

from jubal.core.events import (
    Citation,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
    ToolCall,
    UsageSoFar,
)
from jubal.core.fold import Completion
from jubal.core.generation import ImagePart, Message, Part, PastCall, Role, TextPart


class _Part(msgspec.Struct, omit_defaults=True):
    """Text, or an image by its URL."""

    text: str | None = None
    url: str = ""
    detail: Literal["auto", "low", "high"] = "auto"


class _Message(msgspec.Struct, omit_defaults=True):
    """A core message, with its parts as they can be written."""

    role: Role
    parts: tuple[_Part, ...] = ()
    name: str | None = None
    calls: tuple[PastCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None


class _Record(msgspec.Struct):
    conversation: list[_Message]
    own: bytes


_RECORD = msgspec.msgpack.Decoder(_Record)


def record(conversation: Iterable[Message], own: bytes) -> bytes:
    """own: what the dialect wants again (`own_of`)."""
    messages = [
        _Message(one.role, tuple(map(_written, one.parts)), one.name, one.calls, one.tool_call_id, one.reasoning)
        for one in conversation
    ]
    return msgspec.msgpack.encode(_Record(messages, own))


def own_of(record: bytes) -> bytes:
    return _RECORD.decode(record).own


def conversation_of(record: bytes) -> tuple[Message, ...]:
    """What was said up to the end of the answer, in whatever dialect."""
    return tuple(
        Message(one.role, tuple(map(_read, one.parts)), one.name, one.calls, one.tool_call_id, one.reasoning)
        for one in _RECORD.decode(record).conversation
    )


def _written(part: Part) -> _Part:
    return _Part(part.text) if isinstance(part, TextPart) else _Part(None, part.url, part.detail)


def _read(part: _Part) -> Part:
    return ImagePart(part.url, part.detail) if part.text is None else TextPart(part.text)


class Speech:
    """Makes messages of what an assistant says, thinks and calls one after the other. before: what was said already."""

    def __init__(self, before: Iterable[Message] = ()) -> None:
        self._messages = list(before)
        self._parts: list[Part] = []
        self._calls: list[PastCall] = []
        self._thoughts: list[str] = []
        self._results: list[Message] = []

    def says(self, parts: Iterable[Part]) -> None:
        self._close_calls()
        self._parts += parts

    def thinks(self, thought: str) -> None:
        self._close_calls()
        self._thoughts.append(thought)

    def calls(self, call: PastCall) -> None:
        if self._results:
            self.close()
        self._calls.append(call)

    def gets(self, result: Message) -> None:
        """What a call gave."""
        self._results.append(result)

    def hears(self, message: Message) -> None:
        """Somebody else's message."""
        self.close()
        self._messages.append(message)

    def close(self) -> list[Message]:
        """The conversation so far; what follows is in a message of its own. It may be changed."""
        if self._parts or self._calls or self._thoughts:
            thought = "".join(self._thoughts) or None
            self._messages.append(Message("assistant", tuple(self._parts), calls=tuple(self._calls), reasoning=thought))
        self._messages += self._results
        self._parts, self._calls, self._thoughts, self._results = [], [], [], []
        return self._messages

    def _close_calls(self) -> None:
        if self._results or self._calls:
            self.close()


def spoken(conversation: Iterable[Message], completion: Completion) -> tuple[Message, ...]:
    """A conversation with an answer at its end: the first, where there are several. What tools gave is in clear."""
    speech = Speech(conversation)
    for event in _ended_calls(completion.choices[0].events()):
        match event:
            case TextDelta(text):
                speech.says((TextPart(text),))
            case ReasoningDelta(text):
                speech.thinks(text)
            case ToolCall() | ServerToolCall():
                speech.calls(PastCall(event.id, event.name, event.arguments))
            case ServerToolResult():
                speech.gets(Message("tool", (TextPart(event.output),), tool_call_id=event.id))
            case Citation() | Started() | UsageSoFar() | Finished() | Failed():
                pass
            case _:
                assert_never(event)
    return tuple(speech.close())


def _ended_calls(events: Iterable[Event]) -> Iterator[Event]:
    """Without calls of ours that gave nothing, as the answer ended before: nobody can answer them any more."""
    told = list(events)
    ended = {event.id for event in told if isinstance(event, ServerToolResult)}
    return (event for event in told if not isinstance(event, ServerToolCall) or event.id in ended)
