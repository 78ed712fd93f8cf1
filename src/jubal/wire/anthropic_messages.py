"""POST /v1/messages: Anthropic's dialect, as xAI takes it (xai-api.md 11), with server tools and thinking.

Answers hold what Anthropic's SDKs read and one thing more: `cost_in_usd_ticks` in `usage`, as every dialect of Jubal tells it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, assert_never

import msgspec

from jubal.core import generation
from jubal.core.errors import BadRequest, JubalError, Undecodable
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
from jubal.core.fold import Completion, ReasoningItem, ServerItem, TextItem
from jubal.core.generation import (
    NO_TOOLS,
    Bounds,
    Effort,
    FunctionTool,
    Generation,
    ImagePart,
    JsonOutput,
    Message,
    NamedTool,
    Part,
    PastCall,
    Sampling,
    TextPart,
    ToolChoice,
    Tools,
)
from jubal.core.server_tools import CodeExecution, ServerTool, Source, ToolKind, WebSearch
from jubal.wire import anthropic_errors, server_tools, sse
from jubal.wire.base import ErrorReply
from jubal.wire.decode import decode, within
from jubal.wire.openai_chat import TOOL_NAME, TOOL_NAME_MAX, TOOLS_MAX, TURNS_MAX
from jubal.wire.openai_sampling import STOPS_MAX, TOKENS_MAX, tokens_bound

# ---------------------------------------------------------------------------------------------- the request


class _Source(msgspec.Struct, gc=False):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: Any = None


class _Block(msgspec.Struct, gc=False):
    """A content block of any type: which fields it needs depends on it. source: where a search result was found, or what an image
    or a document holds."""

    type: str
    text: str | None = None
    source: _Source | str | None = None
    title: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Any = None
    is_error: bool | None = None
    thinking: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Block]


class _Tool(server_tools.ServerToolFields, gc=False):
    """A function of the client has no type, or `custom`; anything else is a server tool, Anthropic's or ours."""

    type: str = "custom"
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    blocked_domains: list[str] | None = None


class _Choice(msgspec.Struct, gc=False):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct, gc=False):
    type: str
    budget_tokens: int | None = None


class _Format(msgspec.Struct, gc=False):
    type: str
    schema: dict[str, Any] | None = None


class _OutputConfig(msgspec.Struct, gc=False):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct, gc=False):
    user_id: str | None = None


class _Request(msgspec.Struct):
    """The body. Unknown fields are ignored, null means unset (xai-api.md 3)."""

    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    system: str | list[_Block] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: _Metadata | None = None
    mcp_servers: list[Any] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None
    max_turns: int | None = None
    cache: bool | None = None


_DECODER: Final = msgspec.json.Decoder(_Request)
_encode: Final = msgspec.json.Encoder().encode

EFFORTS: Final[dict[str, Effort]] = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
BUDGETS: Final[tuple[tuple[int, Effort], ...]] = ((4096, "low"), (16384, "medium"))
"""Up to how many tokens of `thinking.budget_tokens` stand for which effort; more is high."""


def _generation(asked: _Request) -> Generation:
    if not asked.model:
        raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
    if not asked.messages:
        raise BadRequest("`messages` needs at least one message.", param="messages", code="empty_value")
    within("max_turns", asked.max_turns, 1, TURNS_MAX)
    tokens_max = None if asked.max_tokens is None else tokens_bound("max_tokens", asked.max_tokens)
    tools = _tools(asked)
    return Generation(
        model=asked.model,
        messages=(*_system(asked.system), *_messages(asked.messages)),
        sampling=_sampling(asked),
        bounds=Bounds(tokens_max, asked.max_turns or generation.TURNS_MAX),
        live=bool(asked.stream),
        user=asked.metadata.user_id if asked.metadata else None,
        tools=tools,
        output=_output(asked),
        reasoning=_effort(asked),
        inline_citations=bool(tools.server),
        cache=asked.cache is not False,
    )


def _sampling(asked: _Request) -> Sampling:
    within("temperature", asked.temperature, 0, 2)
    within("top_p", asked.top_p, 0, 1)
    stops = asked.stop_sequences or []
    if len(stops) > STOPS_MAX:
        raise BadRequest(
            f"`stop_sequences` takes up to {STOPS_MAX} strings, got {len(stops)}.",
            param="stop_sequences",
            code="too_many",
        )
    if not all(stops):
        raise BadRequest("`stop_sequences` must not hold an empty string.", param="stop_sequences", code="empty_value")
    within("top_k", asked.top_k, 0, TOKENS_MAX)
    return Sampling(temperature=asked.temperature, top_p=asked.top_p, stop=tuple(stops), top_k=asked.top_k or None)


def _output(asked: _Request) -> JsonOutput | None:
    """`output_config.format`; `output_format` is its older place."""
    config = asked.output_config
    where, wanted = (
        ("output_config.format", config.format) if config and config.format else ("output_format", asked.output_format)
    )
    match wanted:
        case None:
            return None
        case _Format(type="json_schema", schema=dict() as schema):
            return JsonOutput(_encode(schema).decode(), where=f"{where}.schema")
        case _Format(type="json_schema"):
            raise _missing(f"{where}.schema")
    raise _wrong(f"{where}.type", "must be json_schema")


def _effort(asked: _Request) -> Effort | None:
    if asked.output_config is not None and asked.output_config.effort is not None:
        found = EFFORTS.get(asked.output_config.effort)
        if found is None:
            raise _wrong("output_config.effort", f"must be one of {', '.join(EFFORTS)}")
        return found
    match asked.thinking:
        case None | _Thinking(type="adaptive"):
            return None
        case _Thinking(type="disabled"):
            return "none"
        case _Thinking(type="enabled", budget_tokens=budget):
            return next((effort for most, effort in BUDGETS if (budget or 0) <= most), "high")
    raise _wrong("thinking.type", "must be enabled, disabled or adaptive")


def _system(system: str | list[_Block] | None) -> tuple[Message, ...]:
    if not system:
        return ()
    if isinstance(system, str):
        return (Message("system", (TextPart(system),)),)
    texts = []
    for number, block in enumerate(system):
        if block.type != "text" or block.text is None:
            raise _wrong(f"system[{number}].type", "must be text, with a `text`")
        texts.append(TextPart(block.text))
    return (Message("system", tuple(texts)),)


def _messages(messages: list[_Message]) -> Iterator[Message]:
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role not in ("user", "assistant", "system"):
            raise Undecodable(
                f"`{where}.role`: unknown role `{message.role[:64]}`. Roles: user, assistant.",
                param=f"{where}.role",
                code="invalid_value",
            )
        if isinstance(message.content, str):
            role: generation.Role = "assistant" if message.role == "assistant" else "user"
            yield Message("system" if message.role == "system" else role, (TextPart(message.content),))
        elif message.role == "assistant":
            yield from _assistant(where, message.content)
        else:
            yield from _user(where, "system" if message.role == "system" else "user", message.content)


def _user(where: str, role: generation.Role, blocks: list[_Block]) -> Iterator[Message]:
    """Results of tools become messages of their own, in front of what the user says beside them."""
    parts: list[Part] = []
    for number, block in enumerate(blocks):
        place = f"{where}.content[{number}]"
        if block.type == "tool_result":
            if not block.tool_use_id:
                raise _missing(f"{place}.tool_use_id")
            yield Message("tool", _result_parts(place, block), tool_call_id=block.tool_use_id)
        else:
            parts.append(_part(place, block))
    if parts:
        yield Message(role, tuple(parts))


def _assistant(where: str, blocks: list[_Block]) -> Iterator[Message]:
    """One message for each stretch up to the results of server tools, which come back in the middle of an answer."""
    open_ = _OpenMessage()
    for number, block in enumerate(blocks):
        place = f"{where}.content[{number}]"
        match block.type:
            case "tool_use" | "server_tool_use" | "mcp_tool_use":
                open_.calls.append(_past_call(place, block))
            case "thinking":
                open_.thoughts.append(block.thinking or "")
            case "redacted_thinking":
                pass  # nobody here can read it
            case kind if kind.endswith("_tool_result"):
                yield from open_.close()
                yield Message("tool", (TextPart(_result_text(block.content)),), tool_call_id=block.tool_use_id)
            case _:
                open_.parts.append(_part(place, block))
    yield from open_.close(even_empty=not blocks)


class _OpenMessage:
    """An assistant message whose blocks are still being read."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.calls: list[PastCall] = []
        self.thoughts: list[str] = []

    def close(self, *, even_empty: bool = False) -> Iterator[Message]:
        if self.parts or self.calls or self.thoughts or even_empty:
            thought = "".join(self.thoughts) or None
            yield Message("assistant", tuple(self.parts), calls=tuple(self.calls), reasoning=thought)
        self.parts, self.calls, self.thoughts = [], [], []


def _past_call(place: str, block: _Block) -> PastCall:
    if not block.name or not block.id:
        raise _missing(f"{place}.{'id' if block.name else 'name'}")
    return PastCall(block.id, block.name, json.dumps(block.input or {}, ensure_ascii=False))


def _part(place: str, block: _Block) -> Part:
    match block.type:
        case "text":
            if block.text is None:
                raise _missing(f"{place}.text")
            return TextPart(block.text)
        case "image":
            return _image(f"{place}.source", block.source)
        case "document":
            return TextPart(_titled(block, _document(f"{place}.source", block.source)))
        case "search_result":
            return TextPart(_titled(block, _texts(f"{place}.content", block.content)))
    raise _wrong(f"{place}.type", f"content blocks of type `{block.type[:64]}` are not supported here")


def _document(where: str, source: _Source | str | None) -> str:
    """Its text: Anthropic's two forms that are no files."""
    match source:
        case _Source(type="text", data=str() as text):
            return text
        case _Source(type="content", content=content):
            return _texts(f"{where}.content", content)
    raise _wrong(f"{where}.type", "must be text, with `data`, or content: files are not supported here")


def _texts(where: str, content: object) -> str:
    """A string, or blocks of text. Raises `BadRequest`."""
    if isinstance(content, str):
        return content
    blocks = _blocks_of(where, content)
    if not all(block.type == "text" and block.text is not None for block in blocks):
        raise _wrong(where, "must hold blocks of text only")
    return "\n".join(block.text or "" for block in blocks)


def _blocks_of(where: str, content: object) -> list[_Block]:
    try:
        return msgspec.convert(content, list[_Block])
    except msgspec.ValidationError as error:
        raise Undecodable(f"`{where}`: {error}", param=where, code="invalid_type") from error


def _titled(block: _Block, text: str) -> str:
    """With where it is from, for the model to read."""
    named = [block.title, block.source if isinstance(block.source, str) else None]
    return "\n".join([line for line in named if line] + [text])


def _image(where: str, source: _Source | str | None) -> ImagePart:
    match source:
        case None:
            raise _missing(where)
        case _Source(type="base64", media_type=str() as media, data=str() as data) if media.startswith("image/"):
            return ImagePart(f"data:{media};base64,{data}", where=f"{where}.data")
        case _Source(type="base64"):
            raise _wrong(where, "needs a `media_type` such as image/png, and `data` in base64")
        case _Source(type="url", url=str() as url) if url.startswith(("https://", "http://")):
            return ImagePart(url, where=f"{where}.url")
    raise _wrong(f"{where}.type", "must be base64, or url with an https address")


def _result_parts(place: str, block: _Block) -> tuple[Part, ...]:
    """What a tool of the client gave: a string, or blocks of text and images."""
    content = block.content
    if content is None or isinstance(content, str):
        return (TextPart(content or ("The tool failed." if block.is_error else "")),)
    blocks = _blocks_of(f"{place}.content", content)
    return tuple(_part(f"{place}.content[{number}]", inner) for number, inner in enumerate(blocks))


def _result_text(content: object) -> str:
    """What a server tool gave, as the model may read it again."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _tools(asked: _Request) -> Tools:
    if asked.mcp_servers:  # ignored, the model would be without its tools
        raise _wrong("mcp_servers", 'stand among `tools` here, as {"type": "mcp", "server_label": …, "server_url": …}')
    functions: list[FunctionTool] = []
    served: list[ServerTool] = []
    for number, tool in enumerate(asked.tools or ()):
        where = f"tools[{number}]"
        if tool.type == "custom":
            functions.append(_function(where, tool))
        else:
            served += _server_tool(where, tool)
    if len(functions) + len(served) > TOOLS_MAX:
        raise BadRequest(f"`tools` takes up to {TOOLS_MAX} tools.", param="tools", code="too_many")
    names = [function.name for function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadRequest(f"`tools` has two functions named `{twice}`.", param="tools", code="invalid_value")
    if not (functions or served) and asked.tool_choice is None:
        return NO_TOOLS
    choice = asked.tool_choice
    parallel = choice is None or not choice.disable_parallel_tool_use
    return Tools(tuple(functions), _choice(choice, names, any_tool=bool(names or served)), parallel, tuple(served))


def _function(where: str, tool: _Tool) -> FunctionTool:
    if not tool.name or not TOOL_NAME.fullmatch(tool.name):
        raise _wrong(f"{where}.name", f"must be 1 to {TOOL_NAME_MAX} letters, digits, `_`, `-` or `.`")
    if tool.input_schema is None:
        raise _missing(f"{where}.input_schema")
    if tool.input_schema.get("type", "object") != "object":
        raise _wrong(f"{where}.input_schema", "must be a schema of type object")
    schema = _encode(tool.input_schema).decode()
    return FunctionTool(tool.name, tool.description or "", schema, where=f"{where}.input_schema")


def _server_tool(where: str, tool: _Tool) -> tuple[ServerTool, ...]:
    """Anthropic's dated names (`web_search_20250305`) stand for ours."""
    if tool.type.startswith("web_search_2"):
        fields = server_tools.ServerToolFields(
            "web_search",
            allowed_domains=tool.allowed_domains,
            excluded_domains=tool.blocked_domains,
            user_location=tool.user_location,
        )
        return server_tools.parse(where, fields)
    if tool.type.startswith("web_fetch_2"):
        return (WebSearch(),)
    if tool.type.startswith("code_execution_2"):
        return (CodeExecution(),)
    return server_tools.parse(where, tool)


def _choice(choice: _Choice | None, names: list[str], *, any_tool: bool) -> ToolChoice:
    match choice:
        case None | _Choice(type="auto"):
            return "auto"
        case _Choice(type="none"):
            return "none"
        case _Choice(type="any"):
            if not any_tool:
                raise _wrong("tool_choice", "is any, and `tools` is empty")
            return "required"
        case _Choice(type="tool", name=name):
            if name in names:
                return NamedTool(str(name))
            if any_tool and name in ("web_search", "code_execution"):
                return NamedTool(str(name))
            raise _wrong("tool_choice.name", f"names `{(name or '')[:64]}`, which `tools` has not")
    raise _wrong("tool_choice.type", "must be auto, any, tool or none")


def _wrong(where: str, what: str) -> BadRequest:
    return BadRequest(f"`{where}`: {what}.", param=where, code="invalid_value")


def _missing(where: str) -> Undecodable:
    return Undecodable(f"`{where}` is required.", param=where, code="missing_field")


# ---------------------------------------------------------------------------------------------- the answer

STOP_REASON: Final[dict[FinishReason, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "turn_limit": "pause_turn",
}


def _stopped(reason: FinishReason, stop: str | None) -> dict[str, object]:
    """Why an answer ended. stop: the stop sequence that did it; None where none did, or the engine does not tell."""
    named = stop if reason == "stop" else None
    return {"stop_reason": STOP_REASON[reason] if named is None else "stop_sequence", "stop_sequence": named}


SERVICE_TIER: Final = "standard"
RESULT_TYPE: Final[dict[ToolKind, str]] = {
    "web_search": "web_search_tool_result",
    "x_search": "x_search_tool_result",
    "code_execution": "code_execution_tool_result",
    "mcp": "mcp_tool_result",
    "collections_search": "collections_search_tool_result",
}


def usage_body(told: Finished | Completion) -> dict[str, object]:
    """Cached tokens stand beside `input_tokens`, thinking is part of `output_tokens`."""
    usage = told.usage
    body: dict[str, object] = {
        "input_tokens": usage.prompt - (usage.cached or 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached or 0,
        "output_tokens": usage.completion + usage.reasoning,
        "service_tier": SERVICE_TIER,
    }
    if told.tool_uses:
        uses = dict(told.tool_uses)
        body["server_tool_use"] = {
            "web_search_requests": uses.get("web_search", 0),
            "web_fetch_requests": 0,
            **server_tools.usage_details(told.tool_uses),
        }
    if told.cost_ticks is not None:
        body["cost_in_usd_ticks"] = told.cost_ticks
    return body


def _input(arguments: str) -> Any:
    """Arguments are an object here. What a model wrote as anything else still has to reach the client."""
    try:
        value = json.loads(arguments)
        msgspec.json.encode(value)  # which half a character in it can't be: JSON may hold one as `\\ud800`
    except ValueError:
        return {"arguments": arguments}
    return value if isinstance(value, dict) else {"arguments": value}


def _use_block(call: ToolCall) -> dict[str, object]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}


def _server_use_block(call: ServerToolCall) -> dict[str, object]:
    kind = "mcp_tool_use" if call.kind == "mcp" else "server_tool_use"
    body: dict[str, object] = {"type": kind, "id": call.id, "name": call.name, "input": _input(call.arguments)}
    if call.kind == "mcp":
        body["server_name"] = call.name.partition(".")[0]
    return body


def _result_block(result: ServerToolResult) -> dict[str, object]:
    return {"type": RESULT_TYPE[result.kind], "tool_use_id": result.id, "content": _result_content(result)}


def _result_content(result: ServerToolResult) -> object:
    match result.kind:
        case "mcp":
            return [{"type": "text", "text": result.output}]
        case "code_execution" if result.ok:
            return {"type": "code_execution_result", **_ran(result.output), "content": []}
        case "web_search" | "x_search" | "collections_search" if result.ok:
            return [_found(result.kind, source) for source in result.sources]
    return {"type": f"{RESULT_TYPE[result.kind]}_error", "error_code": "unavailable"}


def _found(kind: ToolKind, source: Source) -> dict[str, object]:
    name = f"{kind}_result"
    return {"type": name, "url": source.url, "title": source.title, "encrypted_content": "", "page_age": None}


def _ran(output: str) -> dict[str, object]:
    run = server_tools.ran(output)
    return {"stdout": run.stdout, "stderr": run.stderr + run.error, "return_code": 1 if run.error else 0}


def _citation_body(citation: Citation) -> dict[str, object]:
    return {
        "type": "web_search_result_location",
        "url": citation.source.url,
        "title": citation.source.title or str(citation.number),
        "encrypted_index": str(citation.number),
        "cited_text": "",
    }


TEXT_FRAME: Final = (
    b"event: content_block_delta\ndata: "
    b'{"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":%b}}\n\n'
)


class MessagesRenderer:
    """One streamed answer as Anthropic's events: one block open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None
        self._signature = ""

    def feed(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                if self._open == "text":  # the hot path: a frame for each token
                    return TEXT_FRAME % (self._index, _encode(event.text))
                return self._delta("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": event.text})
            case ReasoningDelta():
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                return self._delta("thinking", empty, {"type": "thinking_delta", "thinking": event.text})
            case ToolCall():
                return self._call(_use_block(event), event.arguments)
            case ServerToolCall():
                return self._call(_server_use_block(event), event.arguments)
            case ServerToolResult():
                return self._whole_block(_result_block(event))
            case Citation():
                delta = {"type": "citations_delta", "citation": _citation_body(event)}
                return self._delta("text", {"type": "text", "text": ""}, delta)
            case Started():
                return self._start(event)
            case Finished():
                return self._finish(event)
            case Failed(error):
                return self._close() + anthropic_errors.frame(error)
            case UsageSoFar():
                return b""
            case _:
                assert_never(event)

    def _start(self, start: Started) -> bytes:
        self._signature = start.fingerprint
        message: dict[str, object] = {
            "id": start.id,
            "type": "message",
            "role": "assistant",
            "model": start.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 0,  # nobody knows yet; message_delta tells
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
                "service_tier": SERVICE_TIER,
            },
        }
        return sse.event(b"message_start", _encode({"type": "message_start", "message": message}))

    def _delta(self, kind: str, empty: dict[str, str], delta: dict[str, Any]) -> bytes:
        begin = b""
        if self._open != kind:
            begin = self._close() + self._begin(kind, empty)
        return begin + sse.event(
            b"content_block_delta",
            b'{"type":"content_block_delta","index":%d,"delta":%b}' % (self._index, _encode(delta)),
        )

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        self._index += 1
        self._open = kind
        body = {"type": "content_block_start", "index": self._index, "content_block": block}
        return sse.event(b"content_block_start", _encode(body))

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        frames = b""
        if self._open == "thinking":
            signature = {"type": "signature_delta", "signature": self._signature}
            body = {"type": "content_block_delta", "index": self._index, "delta": signature}
            frames = sse.event(b"content_block_delta", _encode(body))
        self._open = None
        body = {"type": "content_block_stop", "index": self._index}
        return frames + sse.event(b"content_block_stop", _encode(body))

    def _call(self, block: dict[str, object], arguments: str) -> bytes:
        """Arguments come as one piece of JSON text."""
        frames = self._close() + self._begin("call", {**block, "input": {}})
        delta = {"type": "input_json_delta", "partial_json": _encode(block["input"]).decode() if block["input"] else ""}
        body = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return frames + sse.event(b"content_block_delta", _encode(body)) + self._close()

    def _whole_block(self, block: dict[str, object]) -> bytes:
        return self._close() + self._begin("result", block) + self._close()

    def _finish(self, end: Finished) -> bytes:
        body = {
            "type": "message_delta",
            "delta": _stopped(end.reasons[0], end.stop_of(0)),
            "usage": usage_body(end),
        }
        begin = self._begin("text", {"type": "text", "text": ""}) if self._index < 0 else b""
        return (
            begin
            + self._close()
            + sse.event(b"message_delta", _encode(body))
            + sse.event(b"message_stop", b'{"type":"message_stop"}')
        )


def _blocks(completion: Completion) -> Iterator[dict[str, object]]:
    choice = completion.choices[0]
    texts = [item for item in choice.items if isinstance(item, TextItem)]
    place = 0
    for item in choice.items:
        match item:
            case TextItem(text):
                block: dict[str, object] = {"type": "text", "text": text}
                cited = [one for one in choice.citations if place <= one.start < place + len(text)]
                if cited:
                    block["citations"] = [_citation_body(citation) for citation in cited]
                place += len(text)
                yield block
            case ReasoningItem(text):
                yield {"type": "thinking", "thinking": text, "signature": completion.fingerprint}
            case ToolCall():
                yield _use_block(item)
            case ServerItem(call, result):
                yield _server_use_block(call)
                if result is not None:
                    yield _result_block(result)
            case _:
                assert_never(item)
    if not texts and not choice.calls:
        yield {"type": "text", "text": ""}


class MessagesAsked:
    """A parsed request."""

    __slots__ = ("generation",)

    deferral: Final = None

    def __init__(self, asked: _Request) -> None:
        self.generation = _generation(asked)

    def renderer(self) -> MessagesRenderer:
        return MessagesRenderer()

    def whole(self, completion: Completion) -> bytes:
        return _encode(
            {
                "id": completion.id,
                "type": "message",
                "role": "assistant",
                "model": completion.model,
                "content": list(_blocks(completion)),
                **_stopped(completion.choices[0].reason, completion.choices[0].stop),
                "usage": usage_body(completion),
            }
        )

    def counted(self, tokens: int) -> bytes:
        """The body of an answer to count_tokens."""
        return _encode({"input_tokens": tokens})


class AnthropicMessages:
    """The dialect."""

    endpoint = "chat"
    body = _Request

    def parse(self, body: bytes) -> MessagesAsked:
        """Raises `BadRequest`; `Undecodable` where a field is missing or has the wrong type."""
        return MessagesAsked(decode(_DECODER, body))

    def error(self, error: JubalError) -> ErrorReply:
        return anthropic_errors.reply(error)
