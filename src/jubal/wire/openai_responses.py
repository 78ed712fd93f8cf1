"""POST /v1/responses: OpenAI's Responses dialect as xAI speaks it (xai-api.md 8), with what is kept for GET and for going on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, assert_never

import msgspec

from jubal.core import generation
from jubal.core.errors import BadRequest, JubalError, Undecodable, UnknownModel
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
    TokenLogprob,
    ToolCall,
    UsageSoFar,
)
from jubal.core.fold import Completion
from jubal.core.generation import (
    NO_TOOLS,
    Bounds,
    FunctionTool,
    Generation,
    ImagePart,
    JsonOutput,
    Message,
    NamedTool,
    Part,
    PastCall,
    TextPart,
    ToolChoice,
    Tools,
)
from jubal.core.server_tools import ServerTool
from jubal.wire import compaction, kept, openai_errors, server_tools, sse
from jubal.wire.base import ErrorReply, Sealer
from jubal.wire.decode import decode, within
from jubal.wire.kept import Speech
from jubal.wire.openai_chat import (
    EFFORTS,
    LOGPROBS_MAX,
    ROLES,
    TOOL_NAME,
    TOOL_NAME_MAX,
    TOOLS_MAX,
    TURNS_MAX,
    is_of_objects,
    logprobs_content,
)
from jubal.wire.openai_sampling import TOKENS_MAX, sampling, tier_of, tokens_bound, wants_priority

_encode: Final = msgspec.json.Encoder().encode


# ---------------------------------------------------------------------------------------------- the request


class _Part(msgspec.Struct, gc=False):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None


class _Item(msgspec.Struct, gc=False):
    """An input item of any type: which fields it needs depends on it. Output items come back as they went out."""

    type: str | None = None
    role: str | None = None
    content: str | list[_Part] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Any = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None
    action: dict[str, Any] | None = None
    input: str | None = None
    code: str | None = None
    server_label: str | None = None


class _Reasoning(msgspec.Struct, gc=False):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class _Format(msgspec.Struct, gc=False):
    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _Text(msgspec.Struct, gc=False):
    format: _Format | None = None
    verbosity: str | None = None


class _Tool(server_tools.ServerToolFields, gc=False):
    """A function stands flat here."""

    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Named(msgspec.Struct, gc=False):
    type: str
    name: str | None = None


class _Request(msgspec.Struct):
    """The body. Unknown fields are ignored, null means unset (xai-api.md 3)."""

    model: str
    input: str | list[_Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    reasoning: _Reasoning | None = None
    reasoning_effort: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    text: _Text | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Named | None = None
    parallel_tool_calls: bool | None = None
    max_turns: int | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    search_parameters: server_tools.SearchParameters | None = None
    response_format: Any = None
    conversation: Any = None
    prompt: Any = None
    cache: bool | None = None


class _Echoed(msgspec.Struct):
    """What of the body is told again as it came."""

    text: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")
    tool_choice: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")


_DECODER: Final = msgspec.json.Decoder(_Request)
_ECHOED: Final = msgspec.json.Decoder(_Echoed)
_ITEMS: Final = msgspec.json.Decoder(list[_Item])


def _generation(asked: _Request, messages: tuple[Message, ...]) -> Generation:
    if not asked.model:
        raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
    if asked.response_format is not None:
        raise _wrong("response_format", "is `text.format` in this API")
    if asked.conversation is not None:  # ignored, the model would not know what was said before
        raise _wrong("conversation", "is not kept here: go on with `previous_response_id`, or send the items again")
    if asked.prompt is not None:
        raise _wrong("prompt", "templates are not kept here: send `input` and `instructions`")
    within("max_turns", asked.max_turns, 1, TURNS_MAX)
    within("top_k", asked.top_k, 1, TOKENS_MAX)
    within("min_p", asked.min_p, 0, 1)
    tokens_max = None
    if asked.max_output_tokens is not None:
        tokens_max = tokens_bound("max_output_tokens", asked.max_output_tokens)
    tools = _tools(asked)
    return Generation(
        model=asked.model,
        messages=messages,
        sampling=replace(sampling(asked), top_k=asked.top_k, min_p=asked.min_p),
        bounds=Bounds(tokens_max, asked.max_turns or generation.TURNS_MAX),
        live=bool(asked.stream),
        user=asked.safety_identifier or asked.user,
        priority=wants_priority(asked.service_tier),
        cache_key=asked.prompt_cache_key,
        tools=tools,
        output=_output(asked.text),
        logprobs=_logprobs(asked),
        reasoning=_effort(asked),
        inline_citations=bool(tools.server) and "no_inline_citations" not in (asked.include or ()),
        cache=asked.cache is not False,
    )


def _effort(asked: _Request) -> generation.Effort | None:
    where, effort = "reasoning_effort", asked.reasoning_effort
    if asked.reasoning is not None:
        where, effort = "reasoning.effort", asked.reasoning.effort
    if effort is None:
        return None
    found = EFFORTS.get(effort)
    if found is None:
        raise _wrong(where, f"must be one of {', '.join(EFFORTS)}, got `{effort[:64]}`")
    return found


def _logprobs(asked: _Request) -> int | None:
    within("top_logprobs", asked.top_logprobs, 0, LOGPROBS_MAX)
    wanted = asked.logprobs or "message.output_text.logprobs" in (asked.include or ())
    return (asked.top_logprobs or 0) if wanted else None


def _output(text: _Text | None) -> JsonOutput | None:
    match text.format if text else None:
        case None | _Format(type="text"):
            return None
        case _Format(type="json_object"):
            return JsonOutput()
        case _Format(type="json_schema", schema=dict() as schema, name=name):
            return JsonOutput(_encode(schema).decode(), name or "", "text.format.schema")
        case _Format(type="json_schema"):
            raise _missing("text.format.schema")
    raise _wrong("text.format.type", "must be text, json_object or json_schema")


def _tools(asked: _Request) -> Tools:
    functions: list[FunctionTool] = []
    served: list[ServerTool] = []
    for number, tool in enumerate(asked.tools or ()):
        if tool.type == "function":
            functions.append(_function(f"tools[{number}]", tool))
        else:
            served += server_tools.parse(f"tools[{number}]", tool)
    if len(functions) + len(served) > TOOLS_MAX:
        raise BadRequest(f"`tools` takes up to {TOOLS_MAX} tools.", param="tools", code="too_many")
    names = [function.name for function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadRequest(f"`tools` has two functions named `{twice}`.", param="tools", code="invalid_value")
    searched, must = server_tools.parse_search(asked.search_parameters)
    served += [tool for tool in searched if type(tool) not in map(type, served)]
    if not (functions or served) and asked.tool_choice in (None, "auto", "none"):
        return NO_TOOLS
    choice = _choice(asked.tool_choice, names, any_tool=bool(functions or served))
    if must and choice == "auto":
        choice = "required"
    return Tools(tuple(functions), choice, asked.parallel_tool_calls is not False, tuple(served))


def _function(where: str, tool: _Tool) -> FunctionTool:
    if not tool.name:
        raise _missing(f"{where}.name")
    if not TOOL_NAME.fullmatch(tool.name):
        raise _wrong(f"{where}.name", f"must be 1 to {TOOL_NAME_MAX} letters, digits, `_`, `-` or `.`")
    schema = tool.parameters
    if schema and not is_of_objects(schema):
        raise BadRequest(
            f"`{where}.parameters`: the schema of `{tool.name}` must be of type object.",
            param=f"{where}.parameters",
            code="invalid_schema",
        )
    return FunctionTool(
        tool.name,
        tool.description or "",
        _encode(schema).decode() if schema else None,
        bool(tool.strict),
        f"{where}.parameters",
    )


def _choice(choice: str | _Named | None, names: list[str], *, any_tool: bool) -> ToolChoice:
    match choice:
        case None | "auto":
            return "auto"
        case "none":
            return "none"
        case "required":
            if not any_tool:
                raise _wrong("tool_choice", "is required, and `tools` is empty")
            return "required"
        case _Named(type="function", name=name):
            if name not in names:
                raise _wrong("tool_choice", f"names `{(name or '')[:64]}`, which `tools` has not")
            return NamedTool(str(name))
        case _Named(type=kind) if kind in server_tools.SERVER_TYPES and any_tool:
            return "required"
    raise _wrong("tool_choice", 'must be none, auto, required or {"type": "function", "name": …}')


# ---------------------------------------------------------------------------------------------- input items

SERVER_ITEMS: Final = frozenset(
    {"web_search_call", "custom_tool_call", "code_interpreter_call", "mcp_call", "file_search_call"}
)


class _Conversation:
    """Input items to messages: what an assistant said, thought and called one after the other becomes one message.

    before: what was said in answers that this one goes on from.
    """

    def __init__(self, sealer: Sealer, before: tuple[Message, ...] = ()) -> None:
        self._sealer = sealer
        self._speech = Speech(before)

    def messages(self, items: list[_Item], where: str) -> tuple[Message, ...]:
        """Raises `BadRequest` naming the item at fault."""
        for number, item in enumerate(items):
            self._item(f"{where}[{number}]", item)
        return tuple(self._speech.close())

    def _item(self, where: str, item: _Item) -> None:
        match item.type or ("message" if item.role else None):
            case "message":
                self._message(where, item)
            case "function_call":
                if not item.name or not item.call_id:
                    raise _missing(f"{where}.{'call_id' if item.name else 'name'}")
                self._speech.calls(PastCall(item.call_id, item.name, item.arguments or "{}"))
            case "function_call_output":
                if not item.call_id:
                    raise _missing(f"{where}.call_id")
                self._speech.gets(_result(where, item.call_id, item.output))
            case "reasoning":
                self._reasoning(item)
            case "compaction":
                self._compaction(where, item)
            case "mcp_list_tools":
                pass  # of another service's answer: which tools there are is asked anew
            case str() as kind if kind in SERVER_ITEMS:
                self._server_call(item)
            case None:
                raise _missing(f"{where}.type")
            case kind:
                raise _wrong(f"{where}.type", f"items of type `{kind[:64]}` are not supported")

    def _message(self, where: str, item: _Item) -> None:
        role = ROLES.get(item.role or "")
        if role is None or role == "tool":
            raise Undecodable(
                f"`{where}.role`: must be user, assistant, system or developer.",
                param=f"{where}.role",
                code="invalid_value",
            )
        if item.content is None:
            raise _missing(f"{where}.content")
        parts = _parts(f"{where}.content", item.content)
        if role == "assistant":
            self._speech.says(parts)
        else:
            self._speech.hears(Message(role, parts))

    def _server_call(self, item: _Item) -> None:
        """A call of ours. Where what it gave is not told, the call is left out."""
        result = item.output if isinstance(item.output, str) else None
        if result is None or item.id is None:
            return
        name, arguments = server_tools.function_of(
            item.type or "", item.name, item.server_label, item.arguments or item.input, item.action, item.code
        )
        identity = item.call_id or item.id
        self._speech.calls(PastCall(identity, name, arguments))
        self._speech.gets(Message("tool", (TextPart(result),), tool_call_id=identity))

    def _reasoning(self, item: _Item) -> None:
        known = self._sealer.open(item.encrypted_content) if item.encrypted_content else None
        told = item.summary or (item.content if isinstance(item.content, list) else ())
        self._speech.thinks(known or "".join(part.text or "" for part in told))

    def _compaction(self, where: str, item: _Item) -> None:
        """A summary stands for everything before it. Raises `BadRequest` for one that this service did not make."""
        summary = self._sealer.open(item.encrypted_content or "")
        if summary is None:
            raise _wrong(f"{where}.encrypted_content", "was not made by this service, or by another key of it")
        self._speech = Speech(compaction.shortened(self._speech.close(), summary))


def _parts(where: str, content: str | list[_Part]) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_part(f"{where}[{number}]", part) for number, part in enumerate(content))


def _part(where: str, part: _Part) -> Part:
    match part.type:
        case "input_text" | "output_text" | "text" | "summary_text":
            if part.text is None:
                raise _missing(f"{where}.text")
            return TextPart(part.text)
        case "refusal":
            return TextPart(part.refusal or "")
        case "input_image":
            if part.image_url is None:
                raise _missing(f"{where}.image_url")
            if not part.image_url.startswith(("https://", "http://", "data:image/")):
                raise _wrong(f"{where}.image_url", "must be an https address or a data:image URL")
            match part.detail:
                case None | "auto":
                    return ImagePart(part.image_url, where=f"{where}.image_url")
                case "low" | "high":
                    return ImagePart(part.image_url, part.detail, where=f"{where}.image_url")
            raise _wrong(f"{where}.detail", "must be auto, low or high")
    raise _wrong(f"{where}.type", f"parts of type `{part.type[:64]}` are not supported. Types: input_text, input_image")


def _result(where: str, call_id: str, output: object) -> Message:
    if isinstance(output, str):
        return Message("tool", (TextPart(output),), tool_call_id=call_id)
    try:
        parts = msgspec.convert(output, list[_Part])
    except msgspec.ValidationError as error:
        raise Undecodable(f"`{where}.output`: {error}", param=f"{where}.output", code="invalid_type") from error
    return Message("tool", _parts(f"{where}.output", parts), tool_call_id=call_id)


def _wrong(where: str, what: str) -> BadRequest:
    return BadRequest(f"`{where}`: {what}.", param=where, code="invalid_value")


def _missing(where: str) -> Undecodable:
    return Undecodable(f"`{where}` is required.", param=where, code="missing_field")


# ---------------------------------------------------------------------------------------------- the answer

INCOMPLETE: Final[dict[FinishReason, str | None]] = {
    "stop": None,
    "tool_calls": None,
    "length": "max_output_tokens",
    "turn_limit": "max_turns",
    "content_filter": "content_filter",
}


def usage_body(told: Finished | Completion) -> dict[str, object]:
    """The usage object (xai-api.md 8.7): reasoning is part of `output_tokens` here."""
    usage = told.usage
    output = usage.completion + usage.reasoning
    body: dict[str, object] = {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached or 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
        "num_sources_used": len(told.sources),
        "num_server_side_tools_used": sum(count for _, count in told.tool_uses),
        "context_details": {"input_tokens": usage.prompt, "output_tokens": output},
    }
    if told.cost_ticks is not None:
        body["cost_in_usd_ticks"] = told.cost_ticks
    if told.tool_uses:
        body["server_side_tool_usage_details"] = server_tools.usage_details(told.tool_uses)
    return body


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What of a request decides how its answer is written."""

    echo: dict[str, Any]
    sealed_reasoning: bool
    search_sources: bool
    code_outputs: bool
    citations: bool


@dataclass(slots=True)
class _Open:
    """An output item that is not over yet. number: its output_index."""

    number: int
    body: dict[str, Any]
    pieces: list[str]
    logprobs: list[TokenLogprob]
    citations: list[Citation]


class ResponsesRenderer:
    """One answer as the Responses API's events; the whole answer is the `response` of the last one.

    seal: None where encrypted reasoning is not asked for.
    """

    def __init__(self, wishes: _Wishes, seal: Callable[[str], str] | None) -> None:
        self._wishes = wishes
        self._seal = seal if wishes.sealed_reasoning else None
        self._start = Started("", 0, "", "")
        self._sequence = 0
        self._items: list[dict[str, Any]] = []
        self._text: _Open | None = None
        self._thought: _Open | None = None
        self._served: dict[str, tuple[_Open, ServerToolCall]] = {}
        self._head = b""
        self.response: dict[str, Any] = {}

    def feed(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                return self._text_delta(event)
            case ReasoningDelta():
                return self._thought_delta(event)
            case ToolCall():
                return self._close() + self._function_call(event)
            case ServerToolCall():
                return self._close() + self._server_begins(event)
            case ServerToolResult():
                return self._server_ends(event)
            case Citation():
                if self._text is not None and self._wishes.citations:
                    self._text.citations.append(event)
                return b""
            case Started():
                return self._begin(event)
            case Finished():
                return self._finish(event)
            case Failed(error):
                return self._fail(error)
            case UsageSoFar():
                return b""
            case _:
                assert_never(event)

    # ------------------------------------------------------------------------------------------ envelope

    def _event(self, kind: str, body: dict[str, Any]) -> bytes:
        frame = sse.event(kind.encode(), _encode({"sequence_number": self._sequence, "type": kind, **body}))
        self._sequence += 1
        return frame

    def _begin(self, start: Started) -> bytes:
        self._start = start
        body = {"response": self._response("in_progress", None)}
        return self._event("response.created", body) + self._event("response.in_progress", body)

    def _response(self, status: str, told: Finished | None, error: dict[str, Any] | None = None) -> dict[str, Any]:
        start = self._start
        reason = INCOMPLETE[told.reasons[0]] if told is not None else None
        return {
            "id": start.id,
            "object": "response",
            "created_at": start.created,
            "completed_at": told.ended if told is not None and status == "completed" else None,
            "status": status,
            "model": start.model,
            "output": list(self._items),
            "usage": None if told is None else usage_body(told),
            "incomplete_details": {"reason": reason} if reason else None,
            "error": error,
            **self._wishes.echo,
            **self._decided(),
            "service_tier": tier_of(start.applied),
            "metadata": {**self._wishes.echo["metadata"], "system_fingerprint": start.fingerprint},
        }

    def _decided(self) -> dict[str, Any]:
        """What the request left open, as it was decided for it; null where the engine does not tell."""
        echo, applied = self._wishes.echo, self._start.applied
        effort = echo["reasoning"]["effort"] or applied.reasoning
        return {
            "temperature": applied.temperature if echo["temperature"] is None else echo["temperature"],
            "top_p": applied.top_p if echo["top_p"] is None else echo["top_p"],
            "reasoning": {"effort": effort, "summary": "detailed" if effort not in (None, "none") else None},
        }

    def _finish(self, end: Finished) -> bytes:
        """An incomplete message stays open: only the object at the end says how far it came (xai-api.md 8.6)."""
        complete = INCOMPLETE[end.reasons[0]] is None
        frames = self._close() if complete else self._cut()
        status = "completed" if complete else "incomplete"
        self.response = self._response(status, end)
        return frames + self._event(f"response.{status}", {"response": self.response})

    def _fail(self, error: JubalError) -> bytes:
        self._cut()
        body = {"code": error.code or openai_errors.shape_of(error).code, "message": error.message}
        self.response = self._response("failed", None, body)
        return self._event("response.failed", {"response": self.response})

    def _add(self, body: dict[str, Any]) -> tuple[_Open, bytes]:
        """A new output item, as it looks at its beginning."""
        item = _Open(len(self._items), body, [], [], [])
        self._items.append(body)
        return item, self._event("response.output_item.added", {"output_index": item.number, "item": body})

    def _done(self, item: _Open, **changes: Any) -> bytes:
        body = {**item.body, "status": "completed", **changes}
        self._items[item.number] = body
        return self._event("response.output_item.done", {"output_index": item.number, "item": body})

    def _identity(self, prefix: str) -> str:
        """The response's id with a prefix; a second item of a kind gets a number."""
        base = f"{prefix}_{self._start.id}"
        taken = sum(1 for item in self._items if str(item["id"]).startswith(base))
        return f"{base}_{taken}" if taken else base

    # ------------------------------------------------------------------------------------------ text and thinking

    def _text_delta(self, delta: TextDelta) -> bytes:
        frames = self._close_thought()
        item = self._text
        if item is None:
            item, frames = self._text_begins(frames)
        item.pieces.append(delta.text)
        if delta.logprobs:
            item.logprobs += delta.logprobs
            likely = logprobs_content(delta.logprobs)
            body = {"item_id": item.body["id"], "output_index": item.number, "content_index": 0}
            return frames + self._event("response.output_text.delta", {**body, "delta": delta.text, "logprobs": likely})
        number, self._sequence = self._sequence, self._sequence + 1
        return frames + b'event: response.output_text.delta\ndata: {"sequence_number":%d%b%b,"logprobs":[]}\n\n' % (
            number,
            self._head,
            _encode(delta.text),
        )

    def _text_begins(self, frames: bytes) -> tuple[_Open, bytes]:
        body = {
            "type": "message",
            "id": self._identity("msg"),
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        item, added = self._add(body)
        self._text = item
        self._head = (
            b',"type":"response.output_text.delta","item_id":%b,"output_index":%d,"content_index":0,"delta":'
            % (_encode(body["id"]), item.number)
        )
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        at = {"item_id": body["id"], "output_index": item.number, "content_index": 0}
        return item, frames + added + self._event("response.content_part.added", {**at, "part": part})

    def _text_part(self, item: _Open) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": "".join(item.pieces),
            "annotations": [server_tools.flat_annotation_body(citation) for citation in item.citations],
            "logprobs": logprobs_content(tuple(item.logprobs)),
        }

    def _close_text(self) -> bytes:
        item, self._text = self._text, None
        if item is None:
            return b""
        part = self._text_part(item)
        at = {"item_id": item.body["id"], "output_index": item.number, "content_index": 0}
        frames = b"".join(
            self._event(
                "response.output_text.annotation.added", {**at, "annotation_index": number, "annotation": annotation}
            )
            for number, annotation in enumerate(part["annotations"])
        )
        frames += self._event("response.output_text.done", {**at, "text": part["text"], "logprobs": part["logprobs"]})
        frames += self._event("response.content_part.done", {**at, "part": part})
        return frames + self._done(item, content=[part])

    def _thought_delta(self, delta: ReasoningDelta) -> bytes:
        frames = self._close_text()
        item = self._thought
        if item is None:
            body = {"type": "reasoning", "id": self._identity("rs"), "summary": [], "status": "in_progress"}
            item, added = self._add(body)
            self._thought = item
            at = {"item_id": body["id"], "output_index": item.number, "summary_index": 0}
            part = {"type": "summary_text", "text": ""}
            frames += added + self._event("response.reasoning_summary_part.added", {**at, "part": part})
        item.pieces.append(delta.text)
        at = {"item_id": item.body["id"], "output_index": item.number, "summary_index": 0}
        return frames + self._event("response.reasoning_summary_text.delta", {**at, "delta": delta.text})

    def _close_thought(self) -> bytes:
        item, self._thought = self._thought, None
        if item is None:
            return b""
        text = "".join(item.pieces)
        part = {"type": "summary_text", "text": text}
        at = {"item_id": item.body["id"], "output_index": item.number, "summary_index": 0}
        frames = self._event("response.reasoning_summary_text.done", {**at, "text": text})
        frames += self._event("response.reasoning_summary_part.done", {**at, "part": part})
        return frames + self._done(item, **self._thought_body(text))

    def _thought_body(self, text: str) -> dict[str, Any]:
        body: dict[str, Any] = {"summary": [{"type": "summary_text", "text": text}]}
        if self._seal is not None:
            body["encrypted_content"] = self._seal(text)
        return body

    def _close(self) -> bytes:
        return self._close_thought() + self._close_text()

    def _cut(self) -> bytes:
        """The answer ends in the middle: thinking is over, a message stays incomplete."""
        frames = self._close_thought()
        if self._text is not None:
            item, self._text = self._text, None
            self._items[item.number] = {**item.body, "status": "incomplete", "content": [self._text_part(item)]}
        for item, call in self._served.values():
            self._items[item.number] = {**item.body, **server_tools.item_written(call), "status": "incomplete"}
        return frames

    # ------------------------------------------------------------------------------------------ calls

    def _function_call(self, call: ToolCall) -> bytes:
        body = {
            "type": "function_call",
            "id": f"fc_{self._start.id}_{len(self._items)}",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        item, frames = self._add(body)
        at = {"item_id": body["id"], "output_index": item.number}
        frames += self._event("response.function_call_arguments.delta", {**at, "delta": call.arguments})
        whole = {**at, "name": call.name, "arguments": call.arguments}
        frames += self._event("response.function_call_arguments.done", whole)
        return frames + self._done(item, arguments=call.arguments)

    def _server_begins(self, call: ServerToolCall) -> bytes:
        body = server_tools.item_begun(self._start.id, call)
        item, frames = self._add(body)
        self._served[call.id] = item, call
        at = {"item_id": body["id"], "output_index": item.number}
        return frames + b"".join(
            self._event(kind, {**at, **more}) for kind, more in server_tools.events_at_beginning(call)
        )

    def _server_ends(self, result: ServerToolResult) -> bytes:
        item, call = self._served.pop(result.id)
        at = {"item_id": item.body["id"], "output_index": item.number}
        frames = b"".join(self._event(kind, {**at, **more}) for kind, more in server_tools.events_at_end(result))
        changes = server_tools.item_ended(
            call, result, item.body, sources=self._wishes.search_sources, outputs=self._wishes.code_outputs
        )
        return frames + self._done(item, **changes)


class ResponsesAsked:
    """A parsed request. previous: the response to go on from, to be given to `go_on_from` before the request runs.

    keep: the answer is to be kept, as `record` writes it.
    """

    __slots__ = ("_asked", "_echoed", "_items", "_sealer", "generation", "keep", "previous")

    deferral: Final = None

    def __init__(self, asked: _Request, echoed: _Echoed, sealer: Sealer) -> None:
        if asked.instructions is not None and asked.previous_response_id is not None:
            raise _wrong("instructions", "can't be given with previous_response_id: the earlier ones stay")
        self._asked = asked
        self._echoed = echoed
        self._sealer = sealer
        self._items: list[_Item] = (
            [_Item("message", "user", asked.input)] if isinstance(asked.input, str) else asked.input
        )
        if not self._items:
            raise BadRequest("`input` needs at least one item.", param="input", code="empty_value")
        self.previous = asked.previous_response_id
        self.keep = asked.store is not False
        messages = _Conversation(sealer).messages(self._items, "input")
        if asked.instructions:
            messages = (Message("system", (TextPart(asked.instructions),)), *messages)
        if not messages:
            raise BadRequest("`input` holds no message.", param="input", code="empty_value")
        self.generation = _generation(asked, messages)

    def go_on_from(self, record: bytes) -> None:
        """Puts the conversation of a kept response before this request."""
        whole = _Conversation(self._sealer, kept.conversation_of(record)).messages(self._items, "input")
        self.generation = replace(self.generation, messages=whole)

    def renderer(self) -> ResponsesRenderer:
        return ResponsesRenderer(self._wishes(), self._sealer.seal)

    def whole(self, completion: Completion) -> bytes:
        return _encode(self._replayed(completion).response)

    def record(self, completion: Completion) -> bytes:
        """What is kept of the answer: the conversation for going on, the response for GET, and the items that were asked with."""
        own = _Own(self._own_input(), self._replayed(completion).response)
        return kept.record(kept.spoken(self.generation.messages, completion), _encode(own))

    def _own_input(self) -> list[Any]:
        """The input items as they came, each with an id, and the instructions as the first of them."""
        raw = msgspec.json.decode(bytes(self._echoed.input))
        items = [{"type": "message", "role": "user", "content": raw}] if isinstance(raw, str) else list(raw)
        if self._asked.instructions:
            items.insert(0, {"type": "message", "role": "system", "content": self._asked.instructions})
        return [{**item, "id": item.get("id") or f"item_{number}"} for number, item in enumerate(items)]

    def _replayed(self, completion: Completion) -> ResponsesRenderer:
        """A whole answer is what a stream of it ends with."""
        renderer = self.renderer()
        for event in _events_of(completion):
            renderer.feed(event)
        return renderer

    def _wishes(self) -> _Wishes:
        include = self._asked.include or []
        return _Wishes(
            self._echo(),
            sealed_reasoning="reasoning.encrypted_content" in include,
            search_sources="web_search_call.action.sources" in include,
            code_outputs="code_interpreter_call.outputs" in include,
            citations=self.generation.inline_citations,
        )

    def _echo(self) -> dict[str, Any]:
        """The request or its defaults; keys are there also where they are null (xai-api.md 8.3)."""
        asked, told = self._asked, self._echoed
        return {
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": self.generation.reasoning},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": self.keep,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_logprobs": asked.top_logprobs or 0,
            "text": {"format": {"type": "text"}, **(msgspec.json.decode(told.text) or {})},
            "tool_choice": "auto" if bytes(told.tool_choice) == b"null" else told.tool_choice,
            "tools": [] if asked.tools is None else _without_secrets(bytes(told.tools)),
            "user": asked.user,
            "metadata": asked.metadata or {},
            "background": False,
            "truncation": "disabled",
            "presence_penalty": asked.presence_penalty or 0,
            "frequency_penalty": asked.frequency_penalty or 0,
        }


def _without_secrets(tools: bytes) -> list[dict[str, Any]]:
    """An MCP server's key is never told again, nor kept."""
    told: list[dict[str, Any]] = msgspec.json.decode(tools)
    return [{name: value for name, value in tool.items() if name not in ("authorization", "headers")} for tool in told]


def _events_of(completion: Completion) -> Iterator[Event]:
    """A whole answer as the events that it was made of."""
    yield completion.started()
    choice = completion.choices[0]
    yield from choice.events()
    yield Finished(
        (choice.reason,),
        completion.usage,
        completion.cost_ticks,
        False,
        completion.sources,
        completion.tool_uses,
        completion.ended,
    )


# ---------------------------------------------------------------------------------------------- what is kept


_PLACES: Final = {"reasoning_not_supported": "reasoning.effort", "response_format_not_supported": "text.format"}
"""Where the field is that an error of the pipeline with this code is about."""


def _in_our_words(error: JubalError) -> JubalError:
    """The pipeline and engines name the fields of a chat completion."""
    if error.param == "messages" or (error.param or "").startswith("messages["):
        error.param = "input"
    error.param = _PLACES.get(error.code or "", error.param)
    return error


class _Own(msgspec.Struct):
    """What only this dialect reads of a kept answer."""

    input: list[Any]
    response: dict[str, Any]


def _own(record: bytes) -> _Own:
    return msgspec.json.decode(kept.own_of(record), type=_Own)


class OpenAIResponses:
    """The dialect. sealer: for encrypted reasoning and compactions."""

    endpoint = "chat"
    body = _Request

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def parse(self, body: bytes) -> ResponsesAsked:
        """Raises `BadRequest`; `Undecodable` where a field is missing or has the wrong type."""
        return ResponsesAsked(decode(_DECODER, body), decode(_ECHOED, body), self._sealer)

    def error(self, error: JubalError) -> ErrorReply:
        """An unknown model is a 400 here, and a 404 elsewhere (xai-api.md 4.3, 30)."""
        reply = openai_errors.reply(_in_our_words(error))
        return replace(reply, status=400) if isinstance(error, UnknownModel) else reply

    def shown(self, record: bytes) -> bytes:
        """The body of GET /v1/responses/{id}."""
        return _encode(_own(record).response)

    def deleted(self, identity: str) -> bytes:
        return _encode({"id": identity, "object": "response", "deleted": True})

    def input_items(self, record: bytes, *, limit: int = 20, order: str = "asc", after: str | None = None) -> bytes:
        """The body of GET /v1/responses/{id}/input_items (xai-api.md 8.9). Raises `BadRequest`."""
        within("limit", limit, 1, 100)
        if order not in ("asc", "desc"):
            raise _wrong("order", "must be asc or desc")
        items = _own(record).input
        if order == "desc":
            items = items[::-1]
        if after is not None:
            places = [place for place, item in enumerate(items) if item["id"] == after]
            if not places:
                raise _wrong("after", "is no item of this response")
            items = items[places[0] + 1 :]
        page = items[:limit]
        return _encode(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": len(items) > limit,
            }
        )


# ---------------------------------------------------------------------------------------------- compaction


class _CompactRequest(msgspec.Struct):
    model: str
    input: str | list[_Item]
    instructions: str | None = None


_COMPACT: Final = msgspec.json.Decoder(_CompactRequest)


class CompactAsked:
    """A conversation to be made short: the same model writes a summary of it, which is sealed."""

    __slots__ = ("_dropped", "_sealer", "generation")

    def __init__(self, asked: _CompactRequest, sealer: Sealer) -> None:
        items = [_Item("message", "user", asked.input)] if isinstance(asked.input, str) else asked.input
        messages = _Conversation(sealer).messages(items, "input")
        if not messages:
            raise BadRequest("`input` holds no message.", param="input", code="empty_value")
        self._sealer = sealer
        self._dropped = len(messages)
        self.generation = compaction.summary_of(asked.model, messages)

    def whole(self, completion: Completion) -> bytes:
        sealed = self._sealer.seal(completion.choices[0].text)
        return _encode(
            {
                "id": f"cmp_{completion.id}",
                "object": "response.compaction",
                "created_at": completion.created,
                "model": completion.model,
                "output": [{"type": "compaction", "encrypted_content": sealed, "id": f"cmp_item_{completion.id}"}],
                "usage": {**usage_body(completion), "dropped_message_count": self._dropped},
            }
        )


class ResponsesCompact:
    """POST /v1/responses/compact (xai-api.md 8.10)."""

    endpoint = "chat"
    body = _CompactRequest

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def parse(self, body: bytes) -> CompactAsked:
        """Raises `BadRequest`; `Undecodable` where a field is missing or has the wrong type."""
        return CompactAsked(decode(_COMPACT, body), self._sealer)

    def error(self, error: JubalError) -> ErrorReply:
        return openai_errors.reply(error)
