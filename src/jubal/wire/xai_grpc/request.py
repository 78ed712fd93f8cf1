"""A completion request: message to Generation (xai-api.md 23.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from jubal.core import generation
from jubal.core.errors import BadRequest
from jubal.core.generation import (
    Bounds,
    Effort,
    Generation,
    ImagePart,
    JsonOutput,
    Message,
    Part,
    PastCall,
    Role,
    Sampling,
    TextPart,
)
from jubal.wire import compaction
from jubal.wire.base import Sealer
from jubal.wire.decode import within
from jubal.wire.openai_chat import LOGPROBS_MAX, TURNS_MAX
from jubal.wire.openai_sampling import choices, sampling, tokens_bound
from jubal.wire.xai_grpc.decode import number, optional, wrong
from jubal.wire.xai_grpc.pb import Proto, chat, image, usage
from jubal.wire.xai_grpc.tools import json_object, tools

STOPS_MAX: Final = 8
ROLES: Final[dict[int, Role]] = {
    chat.ROLE_USER: "user",
    chat.ROLE_ASSISTANT: "assistant",
    chat.ROLE_SYSTEM: "system",
    chat.ROLE_FUNCTION: "tool",  # the old spelling
    chat.ROLE_TOOL: "tool",
    chat.ROLE_DEVELOPER: "developer",
}
EFFORTS: Final[dict[int, Effort]] = {
    chat.EFFORT_NONE: "none",
    chat.EFFORT_LOW: "low",
    chat.EFFORT_MEDIUM: "medium",
    chat.EFFORT_HIGH: "high",
    chat.EFFORT_XHIGH: "high",  # acts as high (xai-api.md 30)
}
PROTO_EFFORTS: Final[dict[Effort, int]] = {
    "none": chat.EFFORT_NONE,
    "low": chat.EFFORT_LOW,
    "medium": chat.EFFORT_MEDIUM,
    "high": chat.EFFORT_HIGH,
}
DETAILS: Final[dict[int, Literal["auto", "low", "high"]]] = {
    image.DETAIL_INVALID: "auto",
    image.DETAIL_AUTO: "auto",
    image.DETAIL_LOW: "low",
    image.DETAIL_HIGH: "high",
}
PROTO_ROLES: Final[dict[Role, int]] = {role: number for number, role in ROLES.items() if number != chat.ROLE_FUNCTION}
PROTO_DETAILS: Final = {"auto": image.DETAIL_AUTO, "low": image.DETAIL_LOW, "high": image.DETAIL_HIGH}
CLIENT_TYPES: Final = frozenset({chat.TOOL_CALL_TYPE_INVALID, chat.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL})
"""Calls that the client had to answer. Without a type it is one of these."""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """The fields on how to sample, as `sampling` wants them."""

    temperature: float | None
    top_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    seed: int | None
    stop: str | list[str] | None
    logit_bias: dict[str, float] | None = None


def sampled(asked: Proto) -> Sampling:
    """Raises `BadRequest` naming the first field out of its range."""
    fields = _Sampled(
        number(asked, "temperature"),
        number(asked, "top_p"),
        number(asked, "frequency_penalty"),
        number(asked, "presence_penalty"),
        optional(asked, "seed"),
        list(asked.stop),
    )
    return sampling(fields, STOPS_MAX)  # type: ignore[arg-type]


def generation_of(asked: Proto, messages: tuple[Message, ...], *, live: bool) -> Generation:
    """Raises `BadRequest` naming the field at fault."""
    if not asked.model:
        raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
    _refuse(asked)
    return Generation(
        model=asked.model,
        messages=messages,
        sampling=sampled(asked),
        bounds=_bounds(asked),
        choices=choices(optional(asked, "n")),
        live=live,
        user=asked.user or None,
        tools=tools(asked),
        output=_output(asked),
        logprobs=logprobs(asked),
        reasoning=_effort(asked),
        inline_citations=chat.INCLUDE_OPTION_INLINE_CITATIONS in asked.include,
        priority=asked.service_tier == usage.SERVICE_TIER_PRIORITY,
    )


def _refuse(asked: Proto) -> None:
    """What can't be honoured. Raises `BadRequest`."""
    if asked.agent_count:
        raise wrong("agent_count", "this server has no multi-agent models: leave it out")
    if getattr(asked, "guidelines", None):
        raise wrong("guidelines", "are not supported: leave them out, or write them into a system message")


def tokens_max(asked: Proto) -> int | None:
    """Raises `BadRequest`."""
    return tokens_bound("max_tokens", asked.max_tokens) if asked.HasField("max_tokens") else None


def _bounds(asked: Proto) -> Bounds:
    turns = optional(asked, "max_turns")
    within("max_turns", turns, 1, TURNS_MAX)
    return Bounds(tokens_max(asked), turns or generation.TURNS_MAX)


def logprobs(asked: Proto) -> int | None:
    """Raises `BadRequest`."""
    others = optional(asked, "top_logprobs")
    within("top_logprobs", others, 0, LOGPROBS_MAX)
    if others and not asked.logprobs:
        raise wrong("top_logprobs", "needs logprobs")
    return (others or 0) if asked.logprobs else None


def _output(asked: Proto) -> JsonOutput | None:
    wanted = asked.response_format
    match wanted.format_type:
        case chat.FORMAT_TYPE_INVALID | chat.FORMAT_TYPE_TEXT:
            return None
        case chat.FORMAT_TYPE_JSON_OBJECT:
            return JsonOutput()
        case chat.FORMAT_TYPE_JSON_SCHEMA:
            json_object("response_format.schema", wanted.schema)
            return JsonOutput(wanted.schema)
    raise wrong("response_format.format_type", f"there is no format {wanted.format_type}")


def _effort(asked: Proto) -> Effort | None:
    if not asked.reasoning_effort:
        return None
    effort = EFFORTS.get(asked.reasoning_effort)
    if effort is None:
        raise wrong("reasoning_effort", f"there is no effort {asked.reasoning_effort}")
    return effort


# ---------------------------------------------------------------------------------------------- messages


def messages_of(
    protos: list[Proto], sealer: Sealer, where: str = "messages", *, before: tuple[Message, ...] = ()
) -> tuple[Message, ...]:
    """The conversation, in which answers of this API may stand as they went out. Raises `BadRequest` naming the message.

    before: what was said in answers that this one goes on from.
    """
    reader = _Reader(sealer, _answered(protos, sealer), before)
    for index, proto in enumerate(protos):
        reader.read(f"{where}[{index}]", proto)
    if not reader.messages:
        raise BadRequest(f"`{where}` needs at least one message.", param=where, code="empty_value")
    return tuple(reader.messages)


def _answered(protos: list[Proto], sealer: Sealer) -> dict[str, str]:
    """What tools gave, by the ids of their calls; only what is told in clear, or sealed by us."""
    found: dict[str, str] = {}
    for proto in protos:
        if proto.role in (chat.ROLE_TOOL, chat.ROLE_FUNCTION) and (text := _tool_text(proto, sealer)):
            found[proto.tool_call_id] = text
    return found


def _tool_text(proto: Proto, sealer: Sealer) -> str:
    text = "".join(content.text for content in proto.content)
    if not text and proto.encrypted_content:
        return sealer.open(proto.encrypted_content) or ""
    return text


class _Reader:
    """Messages of the request to messages of the core, one by one. answered: what tools gave, by the ids of their calls.

    A call of a server tool whose output is not known any more is left out: it came without, as nobody asked to include it.
    A tool's result without an id answers the first call that has no answer yet. before: what was said already.
    """

    def __init__(self, sealer: Sealer, answered: dict[str, str], before: tuple[Message, ...]) -> None:
        self._sealer = sealer
        self._answered = answered
        self._lost: set[str] = set()
        ended = {message.tool_call_id for message in before}
        self._open = [call.id for message in before for call in message.calls if call.id not in ended]
        self.messages: list[Message] = list(before)

    def read(self, where: str, proto: Proto) -> None:
        role = ROLES.get(proto.role)
        match role:
            case None:
                raise wrong(f"{where}.role", "must be user, assistant, system, developer or tool")
            case "assistant":
                self._assistant(where, proto)
            case "tool":
                self._tool(where, proto)
            case "user" if proto.encrypted_content and not proto.content:
                self._compaction(where, proto)
            case _:
                if not proto.content:
                    raise wrong(f"{where}.content", "needs at least one element")
                self.messages.append(Message(role, _parts(where, proto), proto.name or None))

    def _assistant(self, where: str, proto: Proto) -> None:
        parts = tuple(part for part in _parts(where, proto) if part != TextPart(""))
        calls = []
        for index, call in enumerate(proto.tool_calls):
            identity = call.id or f"call_{len(self.messages)}_{index}"
            if not call.function.name:
                raise wrong(f"{where}.tool_calls[{index}].function.name", "must not be empty")
            if call.type not in CLIENT_TYPES and identity not in self._answered:
                self._lost.add(identity)
                continue
            calls.append(PastCall(identity, call.function.name, call.function.arguments or "{}"))
            self._open.append(identity)
        sealed = self._sealer.open(proto.encrypted_content) if proto.encrypted_content else None
        thought = sealed or proto.reasoning_content or None
        if parts or calls or thought or not proto.tool_calls:
            self.messages.append(Message("assistant", parts, calls=tuple(calls), reasoning=thought))

    def _tool(self, where: str, proto: Proto) -> None:
        identity = optional(proto, "tool_call_id")
        if identity in self._lost:
            return
        if identity in self._open:
            self._open.remove(identity)
        elif not identity and self._open:
            identity = self._open.pop(0)
        text = _tool_text(proto, self._sealer)
        parts = (TextPart(text),) if proto.encrypted_content else _parts(where, proto)
        name = proto.name or (proto.tool_calls[0].function.name if proto.tool_calls else None)
        self.messages.append(Message("tool", parts or (TextPart(""),), name, tool_call_id=identity))

    def _compaction(self, where: str, proto: Proto) -> None:
        """Raises `BadRequest` for what this service did not make."""
        summary = self._sealer.open(proto.encrypted_content)
        if summary is None:
            raise wrong(f"{where}.encrypted_content", "was not made by this service, or by another key of it")
        self.messages = compaction.shortened(self.messages, summary)


def _parts(where: str, proto: Proto) -> tuple[Part, ...]:
    return tuple(_part(f"{where}.content[{index}]", content) for index, content in enumerate(proto.content))


def _part(where: str, content: Proto) -> Part:
    match content.WhichOneof("content"):
        case "text":
            return TextPart(content.text)
        case "image_url":
            return _image(f"{where}.image_url", content.image_url)
        case "file":
            raise wrong(f"{where}.file", "files in prompts are not supported")
    raise wrong(where, "must be text or image_url")


def _image(where: str, asked: Proto) -> ImagePart:
    if asked.WhichOneof("source") == "file_id":
        raise wrong(f"{where}.file_id", "files in prompts are not supported: send an address or a data URL")
    if not asked.image_url.startswith(("https://", "http://", "data:image/")):
        raise wrong(f"{where}.image_url", "must be an https address or a data:image URL")
    detail = DETAILS.get(asked.detail)
    if detail is None:
        raise wrong(f"{where}.detail", "must be auto, low or high")
    return ImagePart(asked.image_url, detail, where=f"{where}.image_url")


# ---------------------------------------------------------------------------------------------- and back


def message_proto(message: Message) -> Proto:
    """A message of a conversation that was kept, as a request may bring it."""
    proto = chat.Message(role=PROTO_ROLES[message.role], name=message.name or "")
    for part in message.parts:
        if isinstance(part, TextPart):
            proto.content.add(text=part.text)
        else:
            proto.content.add(image_url=image.ImageUrlContent(image_url=part.url, detail=PROTO_DETAILS[part.detail]))
    for call in message.calls:
        called = chat.FunctionCall(name=call.name, arguments=call.arguments)
        proto.tool_calls.add(id=call.id, type=chat.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL, function=called)
    if message.tool_call_id is not None:
        proto.tool_call_id = message.tool_call_id
    if message.reasoning is not None:
        proto.reasoning_content = message.reasoning
    return proto
