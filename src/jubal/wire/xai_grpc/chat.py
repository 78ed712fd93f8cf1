"""The service Chat: completions, streamed, whole, deferred and kept, and compaction (xai-api.md 23.2-23.6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from jubal.core.errors import BadRequest, JubalError
from jubal.core.events import Applied
from jubal.core.fold import Completion
from jubal.core.generation import Message
from jubal.wire import compaction, kept
from jubal.wire.base import ErrorReply, Sealer
from jubal.wire.xai_grpc import errors
from jubal.wire.xai_grpc.answer import ChunkRenderer, Wishes, response, usage_of
from jubal.wire.xai_grpc.decode import decode, optional, wrong
from jubal.wire.xai_grpc.pb import Proto, chat, deferred
from jubal.wire.xai_grpc.request import PROTO_EFFORTS, generation_of, message_proto, messages_of

ID_CHARS_MAX: Final = 200
SETTINGS: Final = (
    "max_tokens",
    "previous_response_id",
    "reasoning_effort",
    "temperature",
    "response_format",
    "tool_choice",
    "top_p",
    "search_parameters",
)
"""What is told again as it was asked for; where it was not, only if it is known what was decided."""


class ChatAsked:
    """A parsed request. previous: the answer to go on from, to be given to `go_on_from` before the request runs.

    keep: the answer is to be kept, as `record` writes it. generation may be replaced.
    """

    __slots__ = ("_asked", "_before", "_sealer", "_wishes", "generation", "keep", "previous")

    def __init__(self, asked: Proto, sealer: Sealer, *, live: bool) -> None:
        self._asked = asked
        self._sealer = sealer
        self._wishes = Wishes.of(asked)
        self._before: tuple[Message, ...] = ()
        self.previous: str | None = optional(asked, "previous_response_id") or None
        self.keep: bool = asked.store_messages
        self.generation = generation_of(asked, messages_of(asked.messages, sealer), live=live)

    def go_on_from(self, record: bytes) -> None:
        """Puts the conversation of a kept answer before this request."""
        self._before = kept.conversation_of(record)
        whole = messages_of(self._asked.messages, self._sealer, before=self._before)
        self.generation = replace(self.generation, messages=whole)

    def body(self) -> bytes:
        """This request again, with the whole conversation in it: it needs no kept answer any more."""
        whole = chat.GetCompletionsRequest()
        whole.CopyFrom(self._asked)
        whole.ClearField("previous_response_id")
        whole.ClearField("messages")
        whole.messages.extend(map(message_proto, self._before))
        whole.messages.extend(self._asked.messages)
        serialized: bytes = whole.SerializeToString()
        return serialized

    def renderer(self) -> ChunkRenderer:
        return ChunkRenderer(self.generation, self._wishes, self._sealer)

    def whole(self, completion: Completion) -> bytes:
        """A GetChatCompletionResponse."""
        answer = response(completion, self._wishes, self._sealer)
        self._settings(answer.settings, completion.applied)
        serialized: bytes = answer.SerializeToString()
        return serialized

    def accepted(self, request_id: str) -> bytes:
        """A StartDeferredResponse."""
        serialized: bytes = deferred.StartDeferredResponse(request_id=request_id).SerializeToString()
        return serialized

    def record(self, completion: Completion) -> bytes:
        """What is kept of the answer: the conversation for going on, and the response. Nothing of it is hidden from us."""
        return kept.record(kept.spoken(self.generation.messages, completion), self.whole(completion))

    def _settings(self, settings: Proto, applied: Applied) -> None:
        """What was asked for or its defaults (xai-api.md 23.4). applied: those that were decided for this answer."""
        asked = self._asked
        if applied.temperature is not None:
            settings.temperature = applied.temperature
        if applied.top_p is not None:
            settings.top_p = applied.top_p
        if applied.reasoning is not None:
            settings.reasoning_effort = PROTO_EFFORTS[applied.reasoning]
        for name in SETTINGS:
            if asked.HasField(name):
                if isinstance(value := getattr(asked, name), int | float | str):
                    setattr(settings, name, value)
                else:
                    getattr(settings, name).CopyFrom(value)
        settings.parallel_tool_calls = optional(asked, "parallel_tool_calls") is not False
        settings.user = asked.user
        settings.store_messages = asked.store_messages
        settings.use_encrypted_content = asked.use_encrypted_content
        settings.include.extend(asked.include)
        settings.tools.extend(asked.tools)
        for tool in settings.tools:
            if tool.WhichOneof("tool") == "mcp":  # an MCP server's key is never told again, nor kept
                tool.mcp.ClearField("authorization")
                tool.mcp.extra_headers.clear()


class XaiChat:
    """The dialect. sealer: for encrypted reasoning and outputs. live: requests are for a stream."""

    endpoint = "chat"

    def __init__(self, sealer: Sealer, *, live: bool = False) -> None:
        self._sealer = sealer
        self._live = live

    def parse(self, body: bytes) -> ChatAsked:
        """Raises `BadRequest`."""
        return ChatAsked(decode(chat.GetCompletionsRequest, body), self._sealer, live=self._live)

    def error(self, error: JubalError) -> ErrorReply:
        return errors.reply(error)

    def shown(self, record: bytes) -> bytes:
        """A kept answer's GetChatCompletionResponse."""
        return kept.own_of(record)


class CompactAsked:
    """A conversation to be made short."""

    __slots__ = ("_dropped", "_sealer", "generation")

    def __init__(self, asked: Proto, sealer: Sealer) -> None:
        if not asked.model:
            raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
        messages = messages_of(asked.input, sealer, "input")
        self._sealer = sealer
        self._dropped = len(asked.input)
        self.generation = compaction.summary_of(asked.model, messages)

    def whole(self, completion: Completion) -> bytes:
        """A CompactContextResponse."""
        answer = chat.CompactContextResponse(
            id=f"cmp_{completion.id}",
            encrypted_content=self._sealer.seal(completion.choices[0].text),
            dropped_message_count=self._dropped,
            usage=usage_of(completion.usage, completion),
        )
        serialized: bytes = answer.SerializeToString()
        return serialized


class XaiCompact:
    """CompactContext."""

    endpoint = "chat"

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def parse(self, body: bytes) -> CompactAsked:
        """Raises `BadRequest`."""
        return CompactAsked(decode(chat.CompactContextRequest, body), self._sealer)

    def error(self, error: JubalError) -> ErrorReply:
        return errors.reply(error)


# ---------------------------------------------------------------------------------------------- ids


def deferred_id(body: bytes) -> str:
    """Of a GetDeferredRequest."""
    return _identity(decode(deferred.GetDeferredRequest, body).request_id, "request_id")


def stored_id(body: bytes) -> str:
    """Of a GetStoredCompletionRequest, or of a DeleteStoredCompletionRequest, which is the same."""
    return _identity(decode(chat.GetStoredCompletionRequest, body).response_id, "response_id")


def _identity(text: str, where: str) -> str:
    if not text:
        raise wrong(where, "must not be empty")
    return text[:ID_CHARS_MAX]


def deferred_answer(answer: bytes | None) -> bytes:
    """A GetDeferredCompletionResponse. answer: a GetChatCompletionResponse; None: not yet."""
    if answer is None:
        told = chat.GetDeferredCompletionResponse(status=deferred.PENDING)
    else:
        told = chat.GetDeferredCompletionResponse(
            status=deferred.DONE, response=chat.GetChatCompletionResponse.FromString(answer)
        )
    serialized: bytes = told.SerializeToString()
    return serialized


def deleted(identity: str) -> bytes:
    serialized: bytes = chat.DeleteStoredCompletionResponse(response_id=identity).SerializeToString()
    return serialized
