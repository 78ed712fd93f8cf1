"""POST /v1/complete: Anthropic's legacy text completion, as xAI takes it (xai-api.md 12.2)."""

from __future__ import annotations

import re
from typing import Final, assert_never

import msgspec

from jubal.core.errors import BadRequest, JubalError
from jubal.core.events import (
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
    ToolCall,
    UsageSoFar,
)
from jubal.core.fold import Completion
from jubal.core.generation import Bounds, Generation, Message, Role, Sampling, TextPart
from jubal.wire import anthropic_errors, sse
from jubal.wire.base import ErrorReply
from jubal.wire.decode import decode, within
from jubal.wire.openai_sampling import STOPS_MAX, tokens_bound


class _Metadata(msgspec.Struct, gc=False):
    user_id: str | None = None


class _Request(msgspec.Struct):
    """The body. Unknown fields are ignored, null means unset (xai-api.md 3)."""

    model: str
    prompt: str
    max_tokens_to_sample: int
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    metadata: _Metadata | None = None
    cache: bool | None = None


_DECODER: Final = msgspec.json.Decoder(_Request)
_encode: Final = msgspec.json.Encoder().encode
_TURN: Final = re.compile(r"\n\n(Human|Assistant):")
ROLES: Final[dict[str, Role]] = {"Human": "user", "Assistant": "assistant"}

STOP_REASON: Final[dict[FinishReason, str]] = {
    "stop": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "stop_sequence",
    "content_filter": "refusal",
    "turn_limit": "max_tokens",
}


def _generation(asked: _Request) -> Generation:
    if not asked.model:
        raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
    if not asked.prompt.strip():
        raise BadRequest("`prompt` must not be empty.", param="prompt", code="empty_value")
    within("temperature", asked.temperature, 0, 2)
    within("top_p", asked.top_p, 0, 1)
    stops = asked.stop_sequences or []
    if len(stops) > STOPS_MAX or not all(stops):
        raise BadRequest(
            f"`stop_sequences` takes up to {STOPS_MAX} strings, none of them empty.",
            param="stop_sequences",
            code="invalid_value",
        )
    return Generation(
        model=asked.model,
        messages=_messages(asked.prompt),
        sampling=Sampling(temperature=asked.temperature, top_p=asked.top_p, stop=tuple(stops)),
        bounds=Bounds(tokens_bound("max_tokens_to_sample", asked.max_tokens_to_sample)),
        live=bool(asked.stream),
        user=asked.metadata.user_id if asked.metadata else None,
        cache=asked.cache is not False,
    )


def _messages(prompt: str) -> tuple[Message, ...]:
    r"""The conversation that is written into the prompt: what stands before the first `\n\nHuman:` is the system's."""
    pieces = _TURN.split(prompt if prompt.startswith("\n\n") else "\n\n" + prompt.lstrip("\n"))
    first = pieces[0].strip()
    if len(pieces) == 1:
        return (Message("user", (TextPart(first),)),)
    messages = [Message("system", (TextPart(first),))] if first else []
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if text.strip():
            messages.append(Message(ROLES[name], (TextPart(text.strip()),)))
    return tuple(messages) or (Message("user", (TextPart(prompt.strip()),)),)


class CompleteRenderer:
    """One streamed answer: `completion` events, the last of them with the reason to stop."""

    def __init__(self) -> None:
        self._start = Started("", 0, "", "")

    def feed(self, event: Event) -> bytes:
        match event:
            case Started():
                self._start = event
                return b""
            case TextDelta(text):
                return self._frame(text, None)
            case Finished():
                return self._frame("", STOP_REASON[event.reasons[0]], event.stop_of(0))
            case Failed(error):
                return anthropic_errors.frame(error)
            case ReasoningDelta() | ToolCall() | ServerToolCall() | ServerToolResult() | Citation() | UsageSoFar():
                return b""  # none of them can be asked for here, and thinking is not shown
            case _:
                assert_never(event)

    def _frame(self, text: str, reason: str | None, stop: str | None = None) -> bytes:
        return sse.event(b"completion", _encode(_body(self._start.id, self._start.model, text, reason, stop)))


def _body(identity: str, model: str, text: str, reason: str | None, stop: str | None) -> dict[str, object]:
    """stop: the stop sequence that ended it; None where none did, or the engine does not tell."""
    return {
        "type": "completion",
        "id": f"compl_{identity}",
        "completion": text,
        "stop_reason": reason,
        "stop": stop,
        "model": model,
    }


class CompleteAsked:
    """A parsed request."""

    __slots__ = ("generation",)

    deferral: Final = None

    def __init__(self, asked: _Request) -> None:
        self.generation = _generation(asked)

    def renderer(self) -> CompleteRenderer:
        return CompleteRenderer()

    def whole(self, completion: Completion) -> bytes:
        choice = completion.choices[0]
        reason = STOP_REASON[choice.reason]
        return _encode(_body(completion.id, completion.model, choice.text, reason, choice.stop))


class AnthropicComplete:
    """The dialect."""

    endpoint = "sample"
    body = _Request

    def parse(self, body: bytes) -> CompleteAsked:
        """Raises `BadRequest`; `Undecodable` where a field is missing or has the wrong type."""
        return CompleteAsked(decode(_DECODER, body))

    def error(self, error: JubalError) -> ErrorReply:
        return anthropic_errors.reply(error)
