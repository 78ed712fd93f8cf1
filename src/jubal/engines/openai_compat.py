"""Engines that speak the OpenAI chat dialect: vLLM, SGLang, TGI, Ollama, llama-server, any provider.

Three layers, each usable alone: `chat_body` and `ChatDecoder` translate and do no I/O; `stream_chat` does one HTTP call;
`OpenAICompatEngine` adds where to send it, with which key, and when to try again. A prompt without messages goes through
openai_text.py instead of the first layer.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import msgspec
from yarl import URL

from jubal.core.errors import (
    AtCapacity,
    BadRequest,
    ContextTooLong,
    EngineBroken,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    JubalError,
)
from jubal.core.events import (
    EngineEvent,
    FinishReason,
    Likely,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCall,
    TurnEnded,
    UsageSoFar,
)
from jubal.core.generation import (
    FunctionTool,
    Generation,
    ImagePart,
    JsonOutput,
    Message,
    NamedTool,
    TextPart,
    ToolChoice,
    with_call_ids,
)
from jubal.core.hiding import HIDDEN, Concealed, hide
from jubal.core.tokens import Token
from jubal.core.usage import Usage
from jubal.engines.base import EngineStatus, Weights
from jubal.engines.http_client import (
    CannotConnect,
    HttpClient,
    Response,
    Target,
    basic_credential,
    header_line,
    target_of,
)
from jubal.engines.quirks import adapted, extra_fields
from jubal.engines.sse import SSEDecoder
from jubal.engines.thinking import ThinkSplitter

if TYPE_CHECKING:
    from jubal.engines.upstream import UpstreamFacts

S = TypeVar("S", bound=msgspec.Struct)
C = TypeVar("C", bound="WireChoice")
END_WAIT_S: Final = 0.25
"""How long to wait, after the last event, for the end of the body, so that the connection can be used again."""
ERROR_BODY_BYTES_MAX: Final = 64 << 10
WHOLE_BYTES_MAX: Final = 64 << 20
CONVERSATION_MAX: Final = 256
"""Characters of a conversation's id that is passed on."""
RETRY_FIRST_S: Final = 1.0
RETRY_AFTER_S_MAX: Final = 30.0
"""An upstream that asks for a longer pause is reported to the caller at once instead of being waited for."""
RETRY_AFTER_TOLD_S_MAX: Final = 86_400.0
"""The longest pause that is reported."""

# ---------------------------------------------------------------------------------------------- Generation -> body


def chat_body(turn: Generation, *, extra: Mapping[str, object] | None = None) -> bytes:
    """The body of a chat completion, streamed where the turn is live. extra: further fields that this engine understands."""
    sampling = turn.sampling
    body: dict[str, object] = {
        "model": turn.model,
        "messages": [_message(message) for message in with_call_ids(turn.messages)],
    }
    if turn.live:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    optional = {
        "max_tokens": turn.bounds.tokens_max,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
        "n": turn.choices if turn.choices > 1 else None,
        "user": turn.user,
        "logprobs": None if turn.logprobs is None else True,
        "top_logprobs": turn.logprobs or None,
        "reasoning_effort": turn.reasoning,
        "logit_bias": {str(token): bias for token, bias in sampling.bias} if sampling.bias else None,
    }
    for name, value in optional.items():
        if value is not None:
            body[name] = value
    if turn.tools.functions:
        body["tools"] = [_tool(function) for function in turn.tools.functions]
        body["tool_choice"] = _tool_choice(turn.tools.choice)
        if not turn.tools.parallel:
            body["parallel_tool_calls"] = False
    if turn.output is not None:
        body["response_format"] = _response_format(turn.output)
    if extra:
        body.update(extra)
    return msgspec.json.encode(body)


def _tool(function: FunctionTool) -> dict[str, object]:
    """A tool without parameters still gets an object schema: several servers demand one."""
    schema = msgspec.Raw((function.parameters or '{"type":"object","properties":{}}').encode())
    body: dict[str, object] = {"name": function.name, "description": function.description, "parameters": schema}
    if function.strict:
        body["strict"] = True
    return {"type": "function", "function": body}


def _tool_choice(choice: ToolChoice) -> object:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedTool) else choice


def _response_format(output: JsonOutput) -> dict[str, object]:
    if output.schema is None:
        return {"type": "json_object"}
    schema = {"name": output.name or "answer", "schema": msgspec.Raw(output.schema.encode()), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _message(message: Message) -> dict[str, object]:
    out: dict[str, object] = {"role": message.role, "content": _content(message)}
    if message.name is not None:
        out["name"] = message.name
    if message.calls:
        out["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    return out


def _content(message: Message) -> object:
    if not message.has_image:
        return message.text
    return [_part(part) for part in message.parts]


def _part(part: TextPart | ImagePart) -> dict[str, object]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.url, "detail": part.detail}}


# ---------------------------------------------------------------------------------------------- bytes -> events


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Likely(msgspec.Struct, gc=False):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    top_logprobs: list[_Likely] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Likely] | None = None


class WireChoice(msgspec.Struct, gc=False):
    """What the choices of both dialects have. stop_reason, matched_stop: how vLLM and SGLang name the stop string that ended it;
    either may be a token's number instead."""

    index: int = 0
    finish_reason: str | None = None
    stop_reason: Any = None
    matched_stop: Any = None


class _Choice(WireChoice, gc=False):
    """delta in a chunk, message in a whole answer."""

    delta: _Delta | None = None
    message: _Delta | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    image_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


COUNT_MAX: Final = 2**31
"""Tokens of one request that an engine is believed to have used: no window is as large."""


class _Timings(msgspec.Struct, gc=False):
    """llama.cpp's own counts, on every chunk when asked for."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class _Verbose(msgspec.Struct, gc=False):
    """What llama.cpp adds to the end of an answer where it was asked to be verbose."""

    index: int = 0
    stopping_word: str = ""


class CompletionChunk(msgspec.Struct, Generic[C], gc=False):
    """A chunk; a whole answer looks alike. `C` is how the dialect writes a choice."""

    choices: list[C] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()  # `Raw | None` would take nothing but null
    timings: _Timings | None = None
    verbose: _Verbose | None = msgspec.field(default=None, name="__verbose")


FINISH_REASON: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
"""Anything else that an engine may say, such as `eos` or `end_turn`, is a natural end."""


class StreamDecoder(ABC, Generic[C]):
    """Feeds on the bytes of a streamed completion, cut anywhere, and yields events; the last one is `TurnEnded`.

    chunks: reads a chunk. How one choice of it reads is the dialect's. stops: the stop strings that were asked for: what else an
    engine names as the reason is none of them.
    """

    def __init__(self, choices: int, chunks: msgspec.json.Decoder[CompletionChunk[C]], stops: tuple[str, ...]) -> None:
        self._chunk = chunks.type
        self._asked_stops = stops
        self._stops: dict[int, str] = {}
        self._decode = chunks.decode
        self._sse = SSEDecoder()
        self._choices = choices
        self._reasons: dict[int, FinishReason] = {}
        self._usage: Usage | None = None
        self._mender: _Mender | None = None
        self._metered = False
        self._begun = False
        self.ended = False

    def conceal(self, concealed: Concealed) -> None:
        """Secrets that no event is to hold. Before the first `feed`."""
        self._sse = SSEDecoder(concealed)

    def feed(self, data: bytes) -> Iterator[EngineEvent]:
        """Raises `EngineBroken` for what is no chunk, and the error that an error frame stands for."""
        for payload in self._sse.feed(data):
            yield from self._event(payload)

    def whole(self, body: bytes) -> Iterator[EngineEvent]:
        """The same events from the body of a whole answer, which reads like one chunk with everything in it."""
        yield from self._event(body)
        yield from self.finish()

    def finish(self) -> Iterator[EngineEvent]:
        """The bytes are over. Raises `EngineBroken` where the answer is not."""
        for payload in self._sse.finish():
            yield from self._event(payload)
        if self.ended:
            return
        if len(self._reasons) < self._choices:
            raise EngineBroken("The engine's stream ended in the middle of the answer.")
        yield self._end()  # some servers send no [DONE]

    def _event(self, payload: bytes) -> Iterator[EngineEvent]:
        if self.ended:
            return
        if payload == b"[DONE]":
            yield self._end()
            return
        try:
            chunk = self._decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # The careful way for chunks whose text is not Unicode: characters cut in half between two events.
            self._mender = self._mender or _Mender()
            chunk = self._mender.chunk(payload, self._chunk)
        if (error := bytes(chunk.error)) and error != b"null":
            raise _reported(503 if not self._begun else 200, payload)
        self._begun = True
        for choice in chunk.choices:
            yield from self._choice(choice)
            if self._asked_stops and choice.finish_reason is not None:
                self._stopped_by(choice.index, choice.stop_reason)
                self._stopped_by(choice.index, choice.matched_stop)
        if chunk.verbose is not None:
            self._stopped_by(chunk.verbose.index, chunk.verbose.stopping_word)
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
        if chunk.timings is not None and chunk.timings.predicted_n and not self._metered:  # not a report on the prompt
            self._metered = True
            t = chunk.timings
            if all(0 <= count <= COUNT_MAX for count in (t.cache_n, t.prompt_n, t.predicted_n)):
                yield UsageSoFar(Usage(t.cache_n + t.prompt_n, t.predicted_n, t.cache_n))

    @abstractmethod
    def _choice(self, choice: C) -> Iterator[EngineEvent]:
        """What one choice of a chunk says. Raises `EngineBroken`."""

    def _check_index(self, index: int) -> None:
        """Raises `EngineBroken` for a choice that nobody asked for."""
        if not 0 <= index < self._choices:
            raise EngineBroken(f"The engine answered choice {index} of {self._choices}.")

    def _stopped_by(self, index: int, told: object) -> None:
        if isinstance(told, str) and told in self._asked_stops:
            self._stops[index] = told

    def _end(self) -> TurnEnded:
        self.ended = True
        indices = range(self._choices)
        stops = tuple([self._stops.get(index) for index in indices]) if self._stops else ()
        return TurnEnded(tuple([self._reasons.get(index, "stop") for index in indices]), self._usage, stops)


_CHUNKS: Final = msgspec.json.Decoder(CompletionChunk[_Choice])


class ChatDecoder(StreamDecoder[_Choice]):
    """The decoder of chat completions: reasoning is taken apart, calls become whole."""

    def __init__(self, choices: int, stops: tuple[str, ...] = ()) -> None:
        super().__init__(choices, _CHUNKS, stops)
        self._calls: dict[tuple[int, int], _OpenCall] = {}
        self._splitters: dict[int, ThinkSplitter] = {}
        self._decided: set[int] = set()

    def _choice(self, choice: _Choice) -> Iterator[EngineEvent]:
        index, delta = choice.index, choice.delta or choice.message
        self._check_index(index)
        if delta is not None:
            if thought := delta.reasoning_content or delta.reasoning:
                self._decided.add(index)  # this engine keeps it apart itself
                yield from self._held_back(index)
                if self._mender is not None:
                    thought = self._mender.join((index, "thought"), thought)
                if thought:
                    yield ReasoningDelta(thought, index)
            if (text := delta.content) or self._mender is not None:
                if self._mender is not None:
                    text = self._mender.join(index, text or "")
                if text and index not in self._decided:
                    yield from self._split(index, text, choice.logprobs)
                elif text:
                    told = choice.logprobs
                    if told is None or not told.content:
                        yield TextDelta(text, index)
                    else:
                        yield TextDelta(text, index, tuple(map(_token_logprob, told.content)))
            if delta.tool_calls:
                self._collect(index, delta.tool_calls)
        if choice.finish_reason is not None and index not in self._reasons:
            self._reasons[index] = FINISH_REASON.get(choice.finish_reason, "stop")
            if self._splitters:
                yield from self._held_back(index)
            if self._calls:
                yield from self._whole_calls(index)

    def _split(self, index: int, text: str, told: _Logprobs | None) -> Iterator[TextDelta | ReasoningDelta]:
        """The beginning of a choice, where `<think>` may stand."""
        splitter = self._splitters.get(index)
        if splitter is None:
            splitter = self._splitters[index] = ThinkSplitter()
        for is_thought, piece in splitter.feed(text):
            if is_thought:
                yield ReasoningDelta(piece, index)
            else:
                likely = tuple(map(_token_logprob, told.content)) if told is not None and told.content else ()
                yield TextDelta(piece, index, likely)
        if splitter.decided:
            self._decided.add(index)
            del self._splitters[index]

    def _held_back(self, index: int) -> Iterator[TextDelta | ReasoningDelta]:
        """What could have become a tag and did not."""
        splitter = self._splitters.pop(index, None)
        if splitter is not None:
            for is_thought, piece in splitter.finish():
                yield ReasoningDelta(piece, index) if is_thought else TextDelta(piece, index)

    def _collect(self, index: int, calls: list[_Call]) -> None:
        """Pieces of function calls become whole: a call has no meaning before its arguments are complete."""
        for piece in calls:
            number = piece.index if piece.index is not None else len(self._calls)
            call = self._calls.setdefault((index, number), _OpenCall())
            call.id = piece.id or call.id
            if piece.function is not None:
                call.name += piece.function.name or ""
                call.arguments += piece.function.arguments or ""

    def _whole_calls(self, index: int) -> Iterator[ToolCall]:
        keys = sorted(key for key in self._calls if key[0] == index)
        if keys and self._reasons[index] == "stop":
            self._reasons[index] = "tool_calls"  # vLLM and OpenAI say `stop` after a call that the caller named
        for owner, number in keys:
            call = self._calls.pop((owner, number))
            if self._mender is not None:
                call.arguments = _whole_characters(call.arguments)
            yield ToolCall(call.id or f"call_{random.randrange(10**8):08d}", call.name, call.arguments or "{}", index)  # noqa: S311


class _OpenCall:
    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id: str | None = None
        self.name = ""
        self.arguments = ""


def _whole_characters(text: str) -> str:
    """Halves of surrogate pairs become characters, and those without another half U+FFFD: no text that is sent on may hold one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


PIECEWISE: Final = frozenset({"content", "text", "reasoning_content", "reasoning", "arguments"})
"""Fields that come in pieces: the other half of a character may be in the next."""


def _without_halves(tree: Any, field: str = "") -> Any:
    """JSON in which no text but that of `PIECEWISE` fields holds half a character."""
    if isinstance(tree, str):
        return tree if field in PIECEWISE else _whole_characters(tree)
    if isinstance(tree, list):
        return [_without_halves(item, field) for item in tree]
    if isinstance(tree, dict):
        return {_whole_characters(name): _without_halves(value, name) for name, value in tree.items()}
    return tree


class _Mender:
    """Joins characters that an engine cut in half between two events: as UTF-8 bytes, or as halves of a surrogate pair."""

    def __init__(self) -> None:
        self._bytes: dict[Hashable, codecs.IncrementalDecoder] = {}
        self._high: dict[Hashable, str] = {}
        self._raw = False

    def chunk(self, payload: bytes, kind: type[S]) -> S:
        """Raises `EngineBroken` for what is no chunk at all."""
        try:
            try:
                tree = json.loads(payload)
                self._raw = False
            except UnicodeDecodeError:
                tree = json.loads(payload.decode("latin-1"))  # one character per byte, put together by `join`
                self._raw = True
            return msgspec.convert(_without_halves(tree), kind)
        except (ValueError, RecursionError) as error:
            raise EngineBroken("The engine sent an event that is not a completion chunk.") from error

    def join(self, place: Hashable, text: str) -> str:
        """What of `text` is whole, with the half that was held back before it at the same place."""
        if self._raw:
            self._raw = False
            return self._join_bytes(place, text)
        if place in self._bytes:  # the other half never came, or came as ordinary text
            text = self._bytes.pop(place).decode(b"", True) + text
        text = self._high.pop(place, "") + text
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._high[place], text = text[-1], text[:-1]
        return _whole_characters(text)

    def _join_bytes(self, place: Hashable, text: str) -> str:
        decoder = self._bytes.setdefault(place, codecs.getincrementaldecoder("utf-8")("replace"))
        try:
            raw = text.encode("latin-1")
        except UnicodeEncodeError:  # \\uXXXX escapes beside raw bytes: nothing can be held back
            return text
        return decoder.decode(raw)


def _token_logprob(told: _Likely) -> TokenLogprob:
    return TokenLogprob(_likely(told), tuple(map(_likely, told.top_logprobs or ())))


def _likely(told: _Likely) -> Likely:
    raw = told.bytes
    return Likely(told.token, told.logprob, None if raw is None else bytes(byte & 0xFF for byte in raw))


def _usage(told: _Usage) -> Usage | None:
    """Core counts leave reasoning out of `completion`; most engines leave it in, xAI does not: the total tells.

    None for counts that can't be: what somebody pays follows from them.
    """
    reasoning = (told.completion_tokens_details and told.completion_tokens_details.reasoning_tokens) or 0
    completion = told.completion_tokens
    possible = 0 <= told.prompt_tokens <= COUNT_MAX and 0 <= completion <= COUNT_MAX and 0 <= reasoning <= COUNT_MAX
    if not possible:
        return None
    if told.total_tokens != told.prompt_tokens + completion + reasoning:
        completion = max(0, completion - reasoning)
    details = told.prompt_tokens_details or _PromptDetails()
    cached = None if details.cached_tokens is None else min(max(0, details.cached_tokens), told.prompt_tokens)
    image = min(max(0, details.image_tokens or 0), told.prompt_tokens - (cached or 0))
    return Usage(told.prompt_tokens, completion, cached, reasoning, image)


# ---------------------------------------------------------------------------------------------- errors


def _reported(status: int, body: bytes, retry_after: str | None = None) -> JubalError:
    """The core error for what an engine reported: with an HTTP status, or inside a stream (status 200)."""
    message, code, numbers = _error_fields(body)
    said = f": {message}" if message else "."
    wait = _seconds(retry_after)
    if status == 400 and (told := OVER_WINDOW.search(message)) is not None:
        return ContextTooLong(_over_window(message, told), param="messages", code="context_length_exceeded")
    if code in ("context_length_exceeded", "exceed_context_size_error"):
        return ContextTooLong(_context_message(message, numbers), param="messages", code="context_length_exceeded")
    if status in (400, 413, 422):
        return BadRequest(f"The engine refused the request{said}", code="engine_refused")
    if status in (401, 403):
        # Jubal's own credentials are at fault, never the caller's: a 401 passed on would make clients drop a good key.
        return EngineBroken("The engine refused the credentials that Jubal has for it.", code="engine_credentials")
    if status == 404:
        return EngineBroken(f"The engine does not know this model or address{said}", code="engine_model_not_found")
    if status in (429, 498, 529):
        return AtCapacity("The engine is at its own limit.", code="capacity_exceeded", retry_after_s=wait or 1.0)
    if status in (502, 503, 504):
        return EngineUnavailable(f"The engine is not available (HTTP {status}){said}", retry_after_s=wait)
    return EngineBroken(f"The engine failed{said}" if status == 200 else f"The engine failed (HTTP {status}){said}")


def _context_message(message: str, numbers: dict[str, Any]) -> str:
    prompt, window = numbers.get("n_prompt_tokens"), numbers.get("n_ctx")
    if isinstance(prompt, int) and isinstance(window, int):
        return f"The prompt has {prompt} tokens; this model's context window holds {window}."
    return message or "The prompt does not fit into this model's context window."


OVER_WINDOW: Final = re.compile(
    r"maximum context length is (?P<window>\d+) tokens(?:.*?contains (?P<least>at least )?(?P<prompt>\d+) input tokens)?",
    re.DOTALL,
)
"""How vLLM says it, in words alone: it counts no further than one token over its window."""


def _over_window(message: str, told: re.Match[str]) -> str:
    if told["prompt"] is None:
        return message
    prompt = f"{told['least'] or ''}{told['prompt']}"
    return f"The prompt has {prompt} tokens; this model's context window holds {told['window']}."


def _error_fields(body: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """(message, code or type, the whole error object) of any of the error shapes in use; all empty where it is none."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return "", None, {}
    if not isinstance(tree, dict):
        return "", None, {}
    error = tree.get("error", tree)
    if isinstance(error, str):
        return _whole_characters(error)[:2000], _word(tree.get("code")), tree
    if not isinstance(error, dict):
        return "", None, {}
    message = error.get("message") or error.get("detail") or ""
    code = _word(error.get("code")) or _word(error.get("type"))
    return _whole_characters(str(message))[:2000], code, error


def _word(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds, at most a day, though it may say `inf`; None where it is absent or a date."""
    try:
        return min(max(0.0, float(retry_after)), RETRY_AFTER_TOLD_S_MAX) if retry_after else None
    except ValueError:
        return None


# ---------------------------------------------------------------------------------------------- one HTTP call


class Decoder(Protocol):
    """What reads one answer. ended: the last event is out, and nothing that follows counts."""

    ended: bool

    def conceal(self, concealed: Concealed) -> None: ...

    def feed(self, data: bytes) -> Iterator[EngineEvent]: ...

    def whole(self, body: bytes) -> Iterator[EngineEvent]: ...

    def finish(self) -> Iterator[EngineEvent]: ...


async def stream_chat(
    client: HttpClient,
    target: Target,
    body: bytes,
    choices: int,
    *,
    lines: bytes = b"",
    timeout_s: float,
    decoder: Callable[[int], Decoder] = ChatDecoder,
    concealed: Concealed | None = None,
) -> AsyncGenerator[EngineEvent, None]:
    """One POST, answered as a stream or whole, as `body` asks. timeout_s: longest silence, before the first byte and between two.
    lines: headers of this request only. decoder: makes what reads the answer, of the number of choices. concealed: what no answer
    may repeat.

    Raises core errors only. When the generator is closed the connection is cut at once: that is what makes an engine stop.
    """
    response: Response | None = None
    try:
        response = await client.post(target, body, timeout_s, lines)
        reader = decoder(choices)
        if concealed:
            reader.conceal(concealed)
        if response.status != 200:
            raise await _refusal(response, concealed)
        if not response.content_type.startswith("text/event-stream"):
            for event in reader.whole(await _bounded(response, concealed)):
                yield event
            return
        while data := await response.read_some():
            for event in reader.feed(data):
                yield event
            if reader.ended:
                await _to_the_end(response)
                return
        for event in reader.finish():
            yield event
    except OSError as error:
        raise _translated(error, begun=response is not None) from error
    finally:
        if response is not None:
            response.close()  # back to the pool when it was read to its end, cut off otherwise


async def post_whole(
    client: HttpClient,
    target: Target,
    body: bytes,
    *,
    timeout_s: float,
    concealed: Concealed | None = None,
    refused: Callable[[int, JubalError], JubalError],
) -> bytes:
    """One POST and its whole answer. timeout_s: for all of it. refused: what to raise for a status other than 200 and what it says.

    Raises core errors only. When it is cancelled the connection is cut at once.
    """
    response: Response | None = None
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.post(target, body, timeout_s)
            if response.status != 200:
                raise refused(response.status, await _refusal(response, concealed))
            return await _bounded(response, concealed)
    except OSError as error:
        raise _translated(error, begun=response is not None) from error
    finally:
        if response is not None:
            response.close()


async def _to_the_end(response: Response) -> None:
    if response.ended:
        return
    try:
        async with asyncio.timeout(END_WAIT_S):
            await response.read_some()
    except OSError:
        pass  # the answer is whole; only the connection is lost


async def _bounded(response: Response, concealed: Concealed | None = None) -> bytes:
    """The whole body. Raises `EngineBroken` where it is longer than any answer."""
    pieces = []
    size = 0
    while data := await response.read_some():
        pieces.append(data)
        size += len(data)
        if size > WHOLE_BYTES_MAX:
            raise EngineBroken("The engine's answer is longer than 64 MiB.")
    whole = b"".join(pieces)
    return concealed.out_of(whole) if concealed else whole


async def _refusal(response: Response, concealed: Concealed | None = None) -> JubalError:
    body = b""
    while len(body) < ERROR_BODY_BYTES_MAX and (more := await response.read_some()):
        body += more
    if concealed:
        body = concealed.out_of(body)
    if key := response.credential:
        # Some servers repeat the key that they refuse, and what they say is passed on. Here also one that could be a word.
        body = body.replace(key, HIDDEN.encode())
    error = _reported(response.status, body[:ERROR_BODY_BYTES_MAX], response.header("retry-after"))
    error.message = hide(error.message)
    return error


def _translated(error: OSError, *, begun: bool) -> EngineError:
    """The client's exceptions as ours. begun: the engine had begun to answer."""
    if isinstance(error, TimeoutError):
        return EngineTimeout("The engine was silent for too long.")
    if isinstance(error, CannotConnect):
        return EngineUnavailable("The engine can't be reached.")
    if begun:
        return EngineBroken("The connection to the engine broke in the middle of the answer.")
    return EngineUnavailable("The connection to the engine broke before it answered.")


# ---------------------------------------------------------------------------------------------- the engine


def retry_delay_s(attempt: int, asked: float | None, spread: float) -> float | None:
    """Seconds to wait before try `attempt` + 1 (first try: 0), or None when the pause asked for is too long to hold a caller.

    1 s doubling, at most doubled again by jitter; `spread` is random in 0..1. Retry-After is honoured (seed, "Rate Limiting").
    """
    if asked is not None:
        return asked if asked <= RETRY_AFTER_S_MAX else None
    return float(RETRY_FIRST_S * 2**attempt * (1 + spread))


def upstream_headers(api_key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    return headers


def upstream_secrets(api_key: str | None, base_url: str) -> Concealed:
    """What an upstream is sent and must not come back to callers: the key, or user and password of its address in both forms."""
    url = URL(base_url)
    basic = None if url.password is None else basic_credential(url)
    return Concealed(api_key, url.password, url.raw_password, basic)


def conversation_line(turn: Generation) -> bytes:
    """xAI's header that keeps a conversation at one cache, which others ignore and routers can hash (xai-api.md 22)."""
    key = turn.cache_key
    if not key or len(key) > CONVERSATION_MAX or not (key.isascii() and key.isprintable()):
        return b""
    return header_line("x-grok-conv-id", key)


def upstream_fingerprint(base_url: str, model: str) -> str:
    """Names weights that nobody here has seen: by where they are and what they are called there."""
    return f"fp_{hashlib.sha256(f'{base_url} {model}'.encode()).hexdigest()[:10]}"


class OpenAICompatEngine:
    """Any server that speaks the OpenAI chat dialect.

    base_url: up to and with /v1. retries: further tries after one that failed before its first event.
    context: the window in tokens if the operator tells, else None. facts: what somebody else learns of the server meanwhile.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        kind: str = "openai",
        api_key: str | None = None,
        timeout_s: float = 600,
        retries: int = 3,
        context: int | None = None,
        facts: UpstreamFacts | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.kind = kind
        self._base_url = base_url.rstrip("/")
        self._headers = upstream_headers(api_key)
        self._target = target_of(URL(self._base_url + "/chat/completions"), self._headers)
        self._text_target = target_of(URL(self._base_url + "/completions"), self._headers)
        self._concealed = upstream_secrets(api_key, base_url)
        self._timeout_s = timeout_s
        self._retries = retries
        self._context = context
        self._facts = facts
        self._sleep = sleep
        self._client: HttpClient | None = None
        self._weights: dict[str, Weights] = {}

    async def start(self) -> None:
        if self._client is None:
            self._client = HttpClient(URL(self._base_url))

    async def ready(self) -> None:
        """At once: whether the other side answers is seen when it is asked."""

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def status(self) -> EngineStatus:
        if self._client is None:
            return EngineStatus("stopped")
        return EngineStatus("ready") if self._facts is None else self._facts.status

    def weights(self, model: str) -> Weights:
        context = self._context
        if context is None and self._facts is not None:
            context = self._facts.contexts.get(model)
        found = self._weights.get(model)
        if found is None or found.context != context:
            found = Weights(
                model,
                upstream_fingerprint(self._base_url, model),
                context,
                ("text", "image"),
                tools=True,
                json=True,
                token_prompts=True,
                fill=True,
            )
            self._weights[model] = found  # models come from the configuration, so there are few
        return found

    async def stream(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        if self._client is None:
            raise EngineUnavailable(f"The engine `{self.name}` is not started.")
        target, body, decoder = self._call(turn)
        for attempt in range(self._retries + 1):
            begun = False
            try:
                async with aclosing(
                    stream_chat(
                        self._client,
                        target,
                        body,
                        turn.answers,
                        lines=conversation_line(turn),
                        timeout_s=self._timeout_s,
                        decoder=decoder,
                        concealed=self._concealed,
                    )
                ) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except (EngineUnavailable, EngineBroken, AtCapacity) as error:
                delay = retry_delay_s(attempt, error.retry_after_s, random.random())  # noqa: S311
                hopeless = error.code in ("engine_credentials", "engine_model_not_found")
                if begun or hopeless or attempt == self._retries or delay is None:
                    raise
            await self._sleep(delay)

    def _call(self, turn: Generation) -> tuple[Target, bytes, Callable[[int], Decoder]]:
        """Where a turn goes, as what, and what reads the answer."""
        owner = None if self._facts is None else self._facts.owners.get(turn.model)
        turn, extra, stops = adapted(turn, owner), extra_fields(turn, owner), turn.sampling.stop
        if not turn.prompts:
            return self._target, chat_body(turn, extra=extra), partial(ChatDecoder, stops=stops)
        from jubal.engines.openai_text import TextDecoder, text_body  # which builds on this module

        return self._text_target, text_body(turn, extra=extra), partial(TextDecoder, stops=stops)

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        """Raises `BadRequest` where the server has no such ability: it is no part of the OpenAI dialect."""
        from jubal.engines.openai_tokenize import post_tokenize  # which builds on this module

        if self._client is None:
            raise EngineUnavailable(f"The engine `{self.name}` is not started.")
        return await post_tokenize(
            self._client,
            self._base_url,
            model,
            text,
            kind=self.kind,
            headers=self._headers,
            timeout_s=self._timeout_s,
            concealed=self._concealed,
        )
