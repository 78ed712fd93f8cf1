"""POST /v1/chat/completions: the OpenAI chat dialect as xAI speaks it (seed, "Chat Completions"; xai-api.md 6).

Where the two differ the seed wins: ids begin `chatcmpl-`, `finish_reason` is null until the end.
"""

from __future__ import annotations

import re
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
    Likely,
    ReasoningDelta,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    UsageSoFar,
)
from jubal.core.fold import Choice, Completion
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
    Role,
    TextPart,
    ToolChoice,
    Tools,
)
from jubal.core.server_tools import ServerTool
from jubal.wire import openai_errors, server_tools, sse
from jubal.wire.base import ErrorReply
from jubal.wire.decode import decode, within
from jubal.wire.openai_sampling import choices, sampling, tier_of, tokens_bound, wants_priority

# ---------------------------------------------------------------------------------------------- the request


class _ImageUrl(msgspec.Struct, gc=False):
    url: str
    detail: str | None = None


class _Part(msgspec.Struct, gc=False):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _ImageUrl | str | None = None


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct, gc=False):
    function: _Function
    id: str | None = None
    type: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _ToolFunction(msgspec.Struct, gc=False):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(server_tools.ServerToolFields, gc=False):
    function: _ToolFunction | None = None


class _NamedFunction(msgspec.Struct, gc=False):
    name: str


class _NamedTool(msgspec.Struct, gc=False):
    type: str
    function: _NamedFunction | None = None


class _JsonSchema(msgspec.Struct, gc=False):
    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class _ResponseFormat(msgspec.Struct, gc=False):
    type: str
    json_schema: _JsonSchema | None = None


class _WebSearchOptions(msgspec.Struct, gc=False):
    """OpenAI's way to ask for web search."""

    user_location: _ApproximateLocation | None = None
    filters: server_tools.Filters | None = None


class _ApproximateLocation(msgspec.Struct, gc=False):
    approximate: server_tools.Location | None = None


class _Request(msgspec.Struct):
    """The body. Unknown fields are ignored, null means unset (xai-api.md 3)."""

    model: str
    messages: list[_Message]
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    cache: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    functions: list[Any] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    reasoning_effort: str | None = None
    deferred: bool | None = None
    search_parameters: server_tools.SearchParameters | None = None
    web_search_options: _WebSearchOptions | None = None
    max_turns: int | None = None
    include: list[str] | None = None
    service_tier: str | None = None


_DECODER: Final = msgspec.json.Decoder(_Request)
_encode: Final = msgspec.json.Encoder().encode

ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",  # the old spelling
}
EFFORTS: Final[dict[str, Effort]] = {
    "none": "none",
    "minimal": "low",  # OpenAI's smallest
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",  # acts as high (xai-api.md 30)
}
LOGPROBS_MAX: Final = 20
"""xAI takes 8 today and took 20 in the seed's year (xai-api.md 6.1); OpenAI takes 20."""
TOOLS_MAX: Final = 350
TURNS_MAX: Final = 64
OUTPUTS: Final = frozenset(
    {
        "web_search_call_output",
        "x_search_call_output",
        "code_execution_call_output",
        "code_interpreter_call.outputs",
        "collections_search_call_output",
        "file_search_call.results",
        "mcp_call_output",
    }
)
"""Values of `include` by which the outputs of server tools are asked for; any of them brings all (xai-api.md 8.5, 23.6)."""
TOOL_NAME_MAX: Final = 128
TOOL_NAME: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{TOOL_NAME_MAX}}}")


def _generation(asked: _Request) -> Generation:
    if not asked.model:
        raise BadRequest("`model` must not be empty.", param="model", code="empty_value")
    if not asked.messages:
        raise BadRequest("`messages` needs at least one message.", param="messages", code="empty_value")
    if asked.functions:  # ignored, an answer would come that calls none of them
        raise BadRequest(
            "`functions` is an old spelling: send `tools`.", param="functions", code="unsupported_parameter"
        )
    return Generation(
        model=asked.model,
        messages=tuple([_message(index, message) for index, message in enumerate(asked.messages)]),
        sampling=sampling(asked),
        bounds=_bounds(asked),
        choices=choices(asked.n),
        live=bool(asked.stream),
        user=asked.safety_identifier or asked.user,
        priority=wants_priority(asked.service_tier) and not asked.deferred,
        cache_key=asked.prompt_cache_key,
        tools=_tools(asked),
        output=_output(asked.response_format),
        logprobs=_logprobs(asked),
        reasoning=_effort(asked.reasoning_effort),
        cache=asked.cache is not False,
        inline_citations="inline_citations" in (asked.include or ()),
    )


def _message(index: int, message: _Message) -> Message:
    role = ROLES.get(message.role)
    if role is None:
        known = ", ".join(dict.fromkeys(ROLES.values()))
        where = f"messages[{index}].role"
        raise Undecodable(
            f"`{where}`: unknown role `{message.role[:64]}`. Roles: {known}.", param=where, code="invalid_value"
        )
    content = message.content
    parts: tuple[Part, ...]
    if isinstance(content, str):
        parts = (TextPart(content),)
    elif content is not None:
        parts = tuple(_part(f"messages[{index}].content[{number}]", part) for number, part in enumerate(content))
    elif role == "assistant":
        parts = ()
    else:
        where = f"messages[{index}].content"
        raise Undecodable(f"`{where}` is required for role `{role}`.", param=where, code="missing_field")
    return Message(
        role,
        parts,
        message.name,
        tuple(_past_call(index, number, call) for number, call in enumerate(message.tool_calls))
        if message.tool_calls
        else (),
        message.tool_call_id,
        message.reasoning_content,
    )


def _part(where: str, part: _Part) -> Part:
    match part.type:
        case "text" | "input_text" | "output_text":
            if part.text is None:
                raise Undecodable(f"`{where}.text` is required.", param=f"{where}.text", code="missing_field")
            return TextPart(part.text)
        case "refusal":  # of an assistant message that comes back
            return TextPart(part.refusal or "")
        case "image_url" | "input_image":
            return _image(where, part.image_url)
    raise BadRequest(
        f"`{where}.type`: content parts of type `{part.type[:64]}` are not supported. Types: text, image_url.",
        param=f"{where}.type",
        code="invalid_value",
    )


def _image(where: str, image: _ImageUrl | str | None) -> ImagePart:
    where += ".image_url"
    if image is None:
        raise Undecodable(f"`{where}` is required.", param=where, code="missing_field")
    url, detail = (image, None) if isinstance(image, str) else (image.url, image.detail)
    if not url.startswith(("https://", "http://", "data:image/")):
        raise BadRequest(
            f"`{where}.url` must be an https address or a data:image URL.", param=f"{where}.url", code="invalid_value"
        )
    match detail:
        case None | "auto":
            return ImagePart(url, where=f"{where}.url")
        case "low" | "high":
            return ImagePart(url, detail, where=f"{where}.url")
    raise BadRequest(f"`{where}.detail` must be auto, low or high.", param=f"{where}.detail", code="invalid_value")


def _past_call(index: int, number: int, call: _Call) -> PastCall:
    if not call.function.name:
        where = f"messages[{index}].tool_calls[{number}].function.name"
        raise BadRequest(f"`{where}` must not be empty.", param=where, code="empty_value")
    return PastCall(call.id or f"call_{index}_{number}", call.function.name, call.function.arguments)


def _tools(asked: _Request) -> Tools:
    if not (asked.tools or asked.search_parameters or asked.web_search_options) and asked.tool_choice is None:
        return NO_TOOLS
    functions: list[FunctionTool] = []
    served: list[ServerTool] = []
    for number, tool in enumerate(asked.tools or ()):
        if tool.type == "function":
            functions.append(_function(f"tools[{number}]", tool.function))
        else:
            served += server_tools.parse(f"tools[{number}]", tool)
    if len(functions) + len(served) > TOOLS_MAX:
        raise BadRequest(
            f"`tools` takes up to {TOOLS_MAX} tools, got {len(asked.tools or ())}.", param="tools", code="too_many"
        )
    names = [function.name for function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadRequest(f"`tools` has two functions named `{twice}`.", param="tools", code="invalid_value")
    searched, must = server_tools.parse_search(asked.search_parameters)
    served += [tool for tool in (*searched, *_web_search_options(asked)) if type(tool) not in map(type, served)]
    if not (functions or served) and asked.tool_choice in (None, "auto", "none"):
        return NO_TOOLS
    choice = _choice(asked.tool_choice, names, any_tool=bool(functions or served))
    if must and choice == "auto":
        choice = "required"
    return Tools(tuple(functions), choice, asked.parallel_tool_calls is not False, tuple(served))


def _web_search_options(asked: _Request) -> tuple[ServerTool, ...]:
    options = asked.web_search_options
    if options is None:
        return ()
    location = options.user_location.approximate if options.user_location else None
    fields = server_tools.ServerToolFields("web_search", filters=options.filters, user_location=location)
    return server_tools.parse("web_search_options", fields)


def _function(where: str, function: _ToolFunction | None) -> FunctionTool:
    if function is None:
        raise Undecodable(f"`{where}.function` is required.", param=f"{where}.function", code="missing_field")
    if not TOOL_NAME.fullmatch(function.name):
        raise BadRequest(
            f"`{where}.function.name` must be 1 to {TOOL_NAME_MAX} letters, digits, `_`, `-` or `.`.",
            param=f"{where}.function.name",
            code="invalid_value",
        )
    schema = function.parameters
    parameters = f"{where}.function.parameters"
    if schema and not is_of_objects(schema):
        raise BadRequest(
            f"`{parameters}`: the schema of `{function.name}` must be of type object.",
            param=parameters,
            code="invalid_schema",
        )
    return FunctionTool(
        function.name,
        function.description or "",
        _encode(schema).decode() if schema else None,
        bool(function.strict),
        parameters,
    )


def is_of_objects(schema: dict[str, Any]) -> bool:
    """The root describes an object, or a choice of objects (xai-api.md 6.4)."""
    if schema.get("type", "object" if "properties" in schema or "$ref" in schema else None) == "object":
        return True
    choice = schema.get("anyOf") or schema.get("oneOf")
    return isinstance(choice, list) and all(isinstance(one, dict) and is_of_objects(one) for one in choice)


def _choice(choice: str | _NamedTool | None, names: list[str], *, any_tool: bool) -> ToolChoice:
    match choice:
        case None | "auto":
            return "auto"
        case "none":
            return "none"
        case "required":
            if not any_tool:
                raise BadRequest(
                    "`tool_choice` is required, and `tools` is empty.", param="tool_choice", code="invalid_value"
                )
            return "required"
        case _NamedTool(type="function", function=_NamedFunction(name=name)):
            if name not in names:
                raise BadRequest(
                    f"`tool_choice` names `{name[:64]}`, which `tools` has not.",
                    param="tool_choice",
                    code="invalid_value",
                )
            return NamedTool(name)
        case _NamedTool(type=kind) if kind in server_tools.SERVER_TYPES and any_tool:
            return "required"
    raise BadRequest(
        '`tool_choice` must be none, auto, required or {"type": "function", "function": {"name": …}}.',
        param="tool_choice",
        code="invalid_value",
    )


def _output(wanted: _ResponseFormat | None) -> JsonOutput | None:
    match wanted:
        case None | _ResponseFormat(type="text"):
            return None
        case _ResponseFormat(type="json_object"):
            return JsonOutput()
        case _ResponseFormat(type="json_schema", json_schema=_JsonSchema(schema=schema, name=name)) if (
            schema is not None
        ):
            return JsonOutput(_encode(schema).decode(), name or "", "response_format.json_schema.schema")
        case _ResponseFormat(type="json_schema"):
            where = "response_format.json_schema.schema"
            raise Undecodable(f"`{where}` is required.", param=where, code="missing_field")
    raise BadRequest(
        "`response_format.type` must be text, json_object or json_schema.",
        param="response_format.type",
        code="invalid_value",
    )


def _effort(effort: str | None) -> Effort | None:
    if effort is None:
        return None
    found = EFFORTS.get(effort)
    if found is None:
        raise BadRequest(
            f"`reasoning_effort` must be one of {', '.join(EFFORTS)}, got `{effort[:64]}`.",
            param="reasoning_effort",
            code="invalid_value",
        )
    return found


def _logprobs(asked: _Request) -> int | None:
    within("top_logprobs", asked.top_logprobs, 0, LOGPROBS_MAX)
    if asked.top_logprobs and not asked.logprobs:
        raise BadRequest("`top_logprobs` needs `logprobs: true`.", param="top_logprobs", code="invalid_value")
    return (asked.top_logprobs or 0) if asked.logprobs else None


def _bounds(asked: _Request) -> Bounds:
    within("max_turns", asked.max_turns, 1, TURNS_MAX)
    return Bounds(_tokens_max(asked), asked.max_turns or generation.TURNS_MAX)


def _tokens_max(asked: _Request) -> int | None:
    """`max_tokens` is the old spelling of `max_completion_tokens`, which wins."""
    for name, value in (("max_completion_tokens", asked.max_completion_tokens), ("max_tokens", asked.max_tokens)):
        if value is not None:
            return tokens_bound(name, value)
    return None


# ---------------------------------------------------------------------------------------------- the answer

FINISH_REASON: Final[dict[FinishReason, str]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "turn_limit": "length",
}


def usage_body(told: Finished | Completion) -> dict[str, object]:
    """The usage object (xai-api.md 6.8)."""
    usage = told.usage
    body: dict[str, object] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
        "prompt_tokens_details": {
            "text_tokens": usage.prompt - usage.image,
            "audio_tokens": 0,
            "image_tokens": usage.image,
            "cached_tokens": usage.cached or 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "num_sources_used": len(told.sources),
    }
    if told.cost_ticks is not None:
        body["cost_in_usd_ticks"] = told.cost_ticks
    if told.tool_uses:
        body["server_side_tool_usage_details"] = server_tools.usage_details(told.tool_uses)
    return body


def _served_body(told: Finished | Completion, *, with_citations: bool) -> dict[str, object]:
    """What server tools add to an answer as a whole: all sources met, and the calls that count, by category."""
    body: dict[str, object] = {}
    if told.sources and with_citations:
        body["citations"] = [source.url for source in told.sources]
    if told.tool_uses:
        body["server_side_tool_usage"] = server_tools.usage_categories(told.tool_uses)
    return body


def _call_body(call: ToolCall) -> dict[str, object]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def logprobs_content(logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, object]]:
    """An entry for each token."""
    return [
        {**_likely_body(token.chosen), "top_logprobs": [_likely_body(other) for other in token.top]}
        for token in logprobs
    ]


def _likely_body(likely: Likely) -> dict[str, object]:
    raw = None if likely.bytes is None else list(likely.bytes)
    return {"token": likely.token, "logprob": likely.logprob, "bytes": raw}


class ChatRenderer:
    """One streamed answer as chat.completion.chunk frames. with_tier: each tells the service tier.

    The parts of a frame that never change are encoded once: a frame per token is the hot path.
    """

    def __init__(
        self,
        *,
        include_usage: bool,
        with_outputs: bool = False,
        with_citations: bool = True,
        with_tier: bool = False,
    ) -> None:
        self._include_usage = include_usage
        self._with_tier = with_tier
        self._with_outputs = with_outputs
        self._with_citations = with_citations
        self._head = b""
        self._tail = b""
        self._begun: set[int] = set()
        self._calls: dict[int, int] = {}

    def feed(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                choice = event.choice
                if event.logprobs:
                    return self._delta(choice, {"content": event.text}, event.logprobs)
                if choice in self._begun:
                    return b'%b%d,"delta":{"content":%b},"finish_reason":null}]%b' % (
                        self._head,
                        choice,
                        _encode(event.text),
                        self._tail,
                    )
                return self._delta(choice, {"content": event.text})
            case ReasoningDelta():
                return self._delta(event.choice, {"reasoning_content": event.text})
            case ToolCall():
                return self._call(event)
            case Started():
                return self._start(event)
            case Finished():
                return self._finish(event)
            case Failed(error):
                return openai_errors.frame(error)
            case ServerToolCall():
                return self._delta(event.choice, {"server_side_tool_calls": [server_tools.call_body(event)]})
            case ServerToolResult():
                body = server_tools.result_body(event, with_output=self._with_outputs)
                return self._delta(event.choice, {"server_side_tool_calls": [body]})
            case Citation():
                return self._delta(event.choice, {"annotations": [server_tools.annotation_body(event)]})
            case UsageSoFar():
                return b""
            case _:
                assert_never(event)

    def _start(self, start: Started) -> bytes:
        self._head = (
            b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":%d,"model":%b,"choices":[{"index":'
            % (start.id.encode(), start.created, _encode(start.model))
        )
        tier = b',"service_tier":%b' % _encode(tier_of(start.applied)) if self._with_tier else b""
        self._tail = b',"system_fingerprint":%b%b}\n\n' % (_encode(start.fingerprint), tier)
        return b""

    def _delta(self, choice: int, delta: dict[str, object], logprobs: tuple[TokenLogprob, ...] = ()) -> bytes:
        """The role goes with the first piece of each choice."""
        if choice not in self._begun:
            self._begun.add(choice)
            delta = {"role": "assistant", **delta}
        return self._chunk(choice, delta, logprobs=logprobs)

    def _chunk(
        self,
        choice: int,
        delta: dict[str, object],
        reason: bytes = b"null",
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> bytes:
        likely = b',"logprobs":' + _encode({"content": logprobs_content(logprobs)}) if logprobs else b""
        return b'%b%d,"delta":%b%b,"finish_reason":%b}]%b' % (
            self._head, choice, _encode(delta), likely, reason, self._tail,
        )  # fmt: skip

    def _call(self, call: ToolCall) -> bytes:
        """Whole calls, one delta each (xai-api.md 6.7)."""
        number = self._calls.get(call.choice, 0)
        self._calls[call.choice] = number + 1
        return self._delta(call.choice, {"tool_calls": [{"index": number, **_call_body(call)}]})

    def _finish(self, end: Finished) -> bytes:
        frames = []
        for choice, reason in enumerate(end.reasons):
            if choice not in self._begun:
                frames.append(self._delta(choice, {"content": ""}))
            frames.append(self._chunk(choice, {}, _encode(FINISH_REASON[reason])))
        if served := _served_body(end, with_citations=self._with_citations):
            last = frames[-1].removesuffix(self._tail)
            frames[-1] = b"%b,%b%b" % (last, _encode(served)[1:-1], self._tail)
        if self._include_usage:
            head = self._head.removesuffix(b'{"index":')
            frames.append(b'%b],"usage":%b%b' % (head, _encode(usage_body(end)), self._tail))
        frames.append(sse.DONE)
        return b"".join(frames)


def _choice_body(index: int, choice: Choice, *, with_outputs: bool) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": choice.text, "refusal": None}
    if reasoning := choice.reasoning:
        message["reasoning_content"] = reasoning
    if calls := choice.calls:
        message["tool_calls"] = [_call_body(call) for call in calls]
    if served := choice.server_calls:
        message["server_side_tool_calls"] = [server_tools.item_body(item, with_output=with_outputs) for item in served]
    if choice.citations:
        message["annotations"] = [server_tools.annotation_body(citation) for citation in choice.citations]
    logprobs = {"content": logprobs_content(choice.logprobs)} if choice.logprobs else None
    return {"index": index, "message": message, "finish_reason": FINISH_REASON[choice.reason], "logprobs": logprobs}


class ChatAsked:
    """A parsed chat completion request."""

    __slots__ = ("_include_usage", "_with_citations", "_with_outputs", "_with_tier", "deferral", "generation")

    def __init__(self, asked: _Request) -> None:
        self.generation = _generation(asked)
        self._include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self._with_outputs = not OUTPUTS.isdisjoint(asked.include or ())
        self._with_tier = asked.service_tier is not None
        search = asked.search_parameters
        self._with_citations = search is None or search.return_citations is not False
        if asked.stream_options is not None and not asked.stream:
            raise BadRequest("`stream_options` needs `stream: true`.", param="stream_options", code="invalid_value")
        self.deferral = _accepted if asked.deferred else None
        if asked.deferred and asked.stream:
            raise BadRequest(
                "`deferred` can't be streamed: leave out `stream`.", param="deferred", code="invalid_value"
            )

    def renderer(self) -> ChatRenderer:
        return ChatRenderer(
            include_usage=self._include_usage,
            with_outputs=self._with_outputs,
            with_citations=self._with_citations,
            with_tier=self._with_tier,
        )

    def whole(self, completion: Completion) -> bytes:
        return _encode(
            {
                "id": f"chatcmpl-{completion.id}",
                "object": "chat.completion",
                "created": completion.created,
                "model": completion.model,
                "choices": [
                    _choice_body(index, choice, with_outputs=self._with_outputs)
                    for index, choice in enumerate(completion.choices)
                ],
                "usage": usage_body(completion),
                "system_fingerprint": completion.fingerprint,
                "service_tier": tier_of(completion.applied),
                **_served_body(completion, with_citations=self._with_citations),
            }
        )


def _accepted(request_id: str) -> bytes:
    """By which id a deferred answer can be fetched (xai-api.md 7)."""
    return _encode({"request_id": request_id})


class OpenAIChat:
    """The dialect."""

    endpoint = "chat"
    body = _Request

    def parse(self, body: bytes) -> ChatAsked:
        """Raises `BadRequest`; `Undecodable` where a field is missing or has the wrong type."""
        return ChatAsked(decode(_DECODER, body))

    def error(self, error: JubalError) -> ErrorReply:
        return openai_errors.reply(error)
