"""An answer: events to the transcript of outputs that a stream tells in pieces and a whole answer at once (xai-api.md 23.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

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
from jubal.core.fold import Completion
from jubal.core.generation import Generation
from jubal.core.server_tools import KINDS, ToolKind
from jubal.core.tally import estimate_prompt
from jubal.core.usage import Usage
from jubal.wire.base import Sealer
from jubal.wire.xai_grpc.pb import Proto, chat, sample, usage

FINISH_REASON: Final[dict[FinishReason, int]] = {
    "stop": sample.REASON_STOP,
    "length": sample.REASON_MAX_LEN,
    "tool_calls": sample.REASON_TOOL_CALLS,
    "content_filter": sample.REASON_STOP,  # this API has no word for it
    "turn_limit": sample.REASON_MAX_LEN,
}
CALL_TYPE: Final[dict[ToolKind, int]] = {
    "web_search": chat.TOOL_CALL_TYPE_WEB_SEARCH_TOOL,
    "x_search": chat.TOOL_CALL_TYPE_X_SEARCH_TOOL,
    "code_execution": chat.TOOL_CALL_TYPE_CODE_EXECUTION_TOOL,
    "mcp": chat.TOOL_CALL_TYPE_MCP_TOOL,
    "collections_search": chat.TOOL_CALL_TYPE_COLLECTIONS_SEARCH_TOOL,
}
CATEGORY: Final[dict[ToolKind, int]] = {
    "web_search": usage.SERVER_SIDE_TOOL_WEB_SEARCH,
    "x_search": usage.SERVER_SIDE_TOOL_X_SEARCH,
    "code_execution": usage.SERVER_SIDE_TOOL_CODE_EXECUTION,
    "mcp": usage.SERVER_SIDE_TOOL_MCP,
    "collections_search": usage.SERVER_SIDE_TOOL_COLLECTIONS_SEARCH,
}
INCLUDED: Final[dict[int, ToolKind]] = {
    chat.INCLUDE_OPTION_WEB_SEARCH_CALL_OUTPUT: "web_search",
    chat.INCLUDE_OPTION_X_SEARCH_CALL_OUTPUT: "x_search",
    chat.INCLUDE_OPTION_CODE_EXECUTION_CALL_OUTPUT: "code_execution",
    chat.INCLUDE_OPTION_COLLECTIONS_SEARCH_CALL_OUTPUT: "collections_search",
    chat.INCLUDE_OPTION_MCP_CALL_OUTPUT: "mcp",
}
SEALED: Final = frozenset({"web_search", "x_search"})
"""Outputs that only ever go out encrypted (xai-api.md 9.5)."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What of an answer is told. clear, sealed: of which tools the outputs are told, and how. reasoning: sealed as well.

    verbose: chunks that hold usage only, too. citations: all sources met, at the end. tier: in which the answer was served.
    """

    clear: frozenset[ToolKind] = frozenset()
    sealed: frozenset[ToolKind] = frozenset()
    reasoning: bool = False
    verbose: bool = False
    citations: bool = True
    tier: bool = False

    @classmethod
    def of(cls, asked: Proto) -> Wishes:
        included = {INCLUDED[option] for option in asked.include if option in INCLUDED}
        sealed = set(KINDS) - (included - SEALED) if asked.use_encrypted_content else included & SEALED
        search = asked.search_parameters if asked.HasField("search_parameters") else None
        return cls(
            frozenset(included - SEALED),
            frozenset(sealed),
            asked.use_encrypted_content,
            chat.INCLUDE_OPTION_VERBOSE_STREAMING in asked.include,
            search is None or search.return_citations,
            bool(asked.service_tier),
        )


@dataclass(slots=True)
class _Line:
    """One choice. index: of the output that is being told. text_before: characters of text in earlier outputs.

    tool: that output is of a tool. told: its finish reason is out. thought: what of the reasoning was not sealed yet.
    """

    index: int
    tool: bool = False
    told: bool = False
    text: int = 0
    text_before: int = 0
    thought: list[str] = field(default_factory=list)


class Transcript:
    """Events to pieces of outputs, `CompletionOutputChunk`s. With server tools there is one choice, and it has many outputs."""

    def __init__(self, wishes: Wishes, sealer: Sealer) -> None:
        self._wishes = wishes
        self._sealer = sealer
        self._lines: dict[int, _Line] = {}
        self._served: dict[str, ServerToolCall] = {}

    def feed(self, event: Event) -> list[Proto]:
        match event:
            case TextDelta():
                return [self._text(event)]
            case ReasoningDelta(text, choice):
                line = self._assistant(choice)
                if self._wishes.reasoning:
                    line.thought.append(text)
                return [_piece(line.index, chat.Delta(role=chat.ROLE_ASSISTANT, reasoning_content=text))]
            case ToolCall():
                return [self._called(event.choice, client_call(event))]
            case ServerToolCall():
                self._served[event.id] = event
                return [self._called(event.choice, server_call(event, chat.TOOL_CALL_STATUS_IN_PROGRESS))]
            case ServerToolResult():
                return self._result(event)
            case Citation():
                line = self._assistant(event.choice)
                cited = inline_citation(event, line.text_before)
                return [_piece(line.index, chat.Delta(role=chat.ROLE_ASSISTANT, citations=[cited]))]
            case Finished():
                return [self._end(choice, reason) for choice, reason in enumerate(event.reasons)]
            case Started() | UsageSoFar() | Failed():
                return []
            case _:
                assert_never(event)

    def plain(self, text: str, choice: int) -> int | None:
        """The index of the output that this text goes on, where nothing else is to be told of it; else None: `feed` it."""
        line = self._lines.get(choice)
        if line is None or line.tool or line.thought:
            return None
        line.text += len(text)
        return line.index

    def _assistant(self, choice: int) -> _Line:
        """The output in which the model goes on: a new one after a tool's."""
        line = self._lines.get(choice)
        if line is None:
            line = self._lines[choice] = _Line(choice)
        elif line.tool:
            line.index, line.tool, line.told = line.index + 1, False, False
            line.text_before += line.text
            line.text = 0
        return line

    def _text(self, event: TextDelta) -> Proto:
        line = self._assistant(event.choice)
        line.text += len(event.text)
        delta = chat.Delta(role=chat.ROLE_ASSISTANT, content=event.text)
        if line.thought:
            self._seal_thought(line, delta)
        piece = _piece(line.index, delta)
        if event.logprobs:
            piece.logprobs.content.extend(logprob(token) for token in event.logprobs)
        return piece

    def _seal_thought(self, line: _Line, delta: Proto) -> None:
        if line.thought:
            delta.encrypted_content = self._sealer.seal("".join(line.thought))
            line.thought.clear()

    def _called(self, choice: int, call: Proto) -> Proto:
        line = self._assistant(choice)
        delta = chat.Delta(role=chat.ROLE_ASSISTANT, tool_calls=[call])
        self._seal_thought(line, delta)
        return _piece(line.index, delta)

    def _result(self, result: ServerToolResult) -> list[Proto]:
        """Ends the output that called, before the first of its results."""
        line = self._lines[result.choice]
        pieces = []
        if not (line.tool or line.told):
            pieces.append(self._finish(line, sample.REASON_TOOL_CALLS))
        line.index, line.tool = line.index + 1, True
        status = chat.TOOL_CALL_STATUS_COMPLETED if result.ok else chat.TOOL_CALL_STATUS_FAILED
        call = server_call(self._served[result.id], status)
        if not result.ok:
            call.error_message = result.output
        delta = chat.Delta(role=chat.ROLE_TOOL, tool_calls=[call])
        if result.kind in self._wishes.sealed:
            delta.encrypted_content = self._sealer.seal(result.output)
        elif result.kind in self._wishes.clear:
            delta.content = result.output
        return [*pieces, _piece(line.index, delta)]

    def _end(self, choice: int, reason: FinishReason) -> Proto:
        """A client's calls can stand before the results of ours: then nothing follows them that would need an output."""
        line = self._lines.get(choice)
        if line is not None and line.tool and reason == "tool_calls":
            return _piece(line.index, chat.Delta(role=chat.ROLE_TOOL))
        return self._finish(self._assistant(choice), FINISH_REASON[reason])

    def _finish(self, line: _Line, reason: int) -> Proto:
        line.told = True
        delta = chat.Delta(role=chat.ROLE_ASSISTANT)
        self._seal_thought(line, delta)
        return chat.CompletionOutputChunk(index=line.index, delta=delta, finish_reason=reason)


def _piece(index: int, delta: Proto) -> Proto:
    return chat.CompletionOutputChunk(index=index, delta=delta)


def client_call(call: ToolCall) -> Proto:
    """Whole when it comes, so it is complete (clients.md 6)."""
    return chat.ToolCall(
        id=call.id,
        type=chat.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL,
        status=chat.TOOL_CALL_STATUS_COMPLETED,
        function=chat.FunctionCall(name=call.name, arguments=call.arguments),
    )


def server_call(call: ServerToolCall, status: int) -> Proto:
    return chat.ToolCall(
        id=call.id,
        type=CALL_TYPE[call.kind],
        status=status,
        function=chat.FunctionCall(name=call.name, arguments=call.arguments),
    )


def inline_citation(citation: Citation, text_before: int) -> Proto:
    """Places count from the beginning of the output's own text."""
    cited = chat.InlineCitation(
        id=str(citation.number), start_index=citation.start - text_before, end_index=citation.end - text_before
    )
    if citation.source.url.startswith(("https://x.com/", "https://twitter.com/")):
        cited.x_citation.url = citation.source.url
    else:
        cited.web_citation.url = citation.source.url
    return cited


def logprob(token: TokenLogprob) -> Proto:
    top = [chat.TopLogProb(token=one.token, logprob=one.logprob, bytes=_bytes(one)) for one in token.top]
    chosen = token.chosen
    return chat.LogProb(token=chosen.token, logprob=chosen.logprob, bytes=_bytes(chosen), top_logprobs=top)


def _bytes(token: Likely) -> bytes:
    return token.token.encode() if token.bytes is None else token.bytes


def usage_of(used: Usage, told: Finished | Completion | None = None) -> Proto:
    """told: at the end of an answer, what it cost and met."""
    message = usage.SamplingUsage(
        prompt_tokens=used.prompt,
        completion_tokens=used.completion,
        total_tokens=used.total,
        prompt_text_tokens=used.prompt - used.image,
        prompt_image_tokens=used.image,
        reasoning_tokens=used.reasoning,
        cached_prompt_text_tokens=used.cached or 0,
    )
    if told is not None:
        message.num_sources_used = len(told.sources)
        for kind, count in told.tool_uses:
            message.server_side_tools_used.extend([CATEGORY[kind]] * count)
        if told.cost_ticks is not None:
            message.cost_in_usd_ticks = told.cost_ticks
    return message


class RunningUsage:
    """What an answer has used so far, for its chunks; `seen` has to be given each event. The prompt is estimated until the
    engine tells."""

    __slots__ = ("_base", "_deltas", "_generation", "_thoughts")

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._base: Usage | None = None
        self._deltas = 0
        self._thoughts = 0

    def see(self, event: Event) -> None:
        kind = type(event)
        if kind is TextDelta or kind is ToolCall:
            self._deltas += 1
        elif kind is ReasoningDelta:
            self._thoughts += 1
        elif isinstance(event, UsageSoFar):
            self._base, self._deltas, self._thoughts = event.usage, 0, 0

    def put(self, message: Proto) -> None:
        """Into a SamplingUsage that was filled from here before, or is empty."""
        base = self._base
        if base is None:
            base = self._base = Usage(estimate_prompt(self._generation), 0)
        message.completion_tokens = base.completion + self._deltas
        message.total_tokens = base.total + self._deltas + self._thoughts
        message.prompt_tokens = base.prompt
        message.prompt_text_tokens = base.prompt - base.image
        message.prompt_image_tokens = base.image
        if base.reasoning or self._thoughts:
            message.reasoning_tokens = base.reasoning + self._thoughts
        if base.cached:
            message.cached_prompt_text_tokens = base.cached


class ChunkRenderer:
    """One streamed answer as serialized `GetChatCompletionChunk`s.

    A chunk per token is the hot path: what every chunk repeats is serialized once, and one message serves for all plain text.
    """

    def __init__(self, generation: Generation, wishes: Wishes, sealer: Sealer) -> None:
        self._wishes = wishes
        self._transcript = Transcript(wishes, sealer)
        self._running = RunningUsage(generation)
        self._head = b""
        self._plain = chat.GetChatCompletionChunk(outputs=[_piece(0, chat.Delta(role=chat.ROLE_ASSISTANT))])
        self._output = self._plain.outputs[0]
        self._delta = self._output.delta
        self._usage = self._plain.usage

    def frames(self, events: Sequence[Event]) -> Iterator[bytes]:
        """The chunks for these events. Neighbouring pieces of text of one choice, which waited together, share a chunk."""
        for event in events:
            self._running.see(event)
        for event in events if len(events) == 1 else _joined(events):
            yield from self._frames(event)

    def _frames(self, event: Event) -> Iterator[bytes]:
        match event:
            case TextDelta(text, choice, ()) if (index := self._transcript.plain(text, choice)) is not None:
                self._output.index = index
                self._delta.content = text
                self._running.put(self._usage)
                yield self._head + self._plain.SerializeToString()
            case Started():
                self._head = head(event, self._wishes, chat.GetChatCompletionChunk).SerializeToString()
            case UsageSoFar() if self._wishes.verbose:
                yield self._chunk([])
            case Finished():
                yield self._chunk(self._transcript.feed(event), event)
            case _:
                for piece in self._transcript.feed(event):
                    yield self._chunk([piece])

    def _chunk(self, pieces: list[Proto], end: Finished | None = None) -> bytes:
        chunk = chat.GetChatCompletionChunk(outputs=pieces)
        if end is None:
            self._running.put(chunk.usage)
        else:
            chunk.usage.CopyFrom(usage_of(end.usage, end))
            if self._wishes.citations:
                chunk.citations.extend(source.url for source in end.sources)
        serialized: bytes = chunk.SerializeToString()
        return self._head + serialized  # fields in a row are one message


def _joined(events: Sequence[Event]) -> Iterator[Event]:
    waiting: list[TextDelta] = []
    for event in events:
        if isinstance(event, TextDelta) and (not waiting or waiting[0].choice == event.choice):
            waiting.append(event)
            continue
        if waiting:
            yield _one_of(waiting)
            waiting = []
        if isinstance(event, TextDelta):
            waiting.append(event)
        else:
            yield event
    if waiting:
        yield _one_of(waiting)


def _one_of(deltas: list[TextDelta]) -> TextDelta:
    if len(deltas) == 1:
        return deltas[0]
    logprobs = tuple(token for delta in deltas for token in delta.logprobs)
    return TextDelta("".join(delta.text for delta in deltas), deltas[0].choice, logprobs)


def head(start: Started | Completion, wishes: Wishes, kind: Callable[..., Proto]) -> Proto:
    tier = usage.SERVICE_TIER_PRIORITY if start.applied.priority else usage.SERVICE_TIER_DEFAULT
    message = kind(
        id=start.id, model=start.model, system_fingerprint=start.fingerprint, service_tier=tier if wishes.tier else 0
    )
    message.created.seconds = start.created
    return message


# ---------------------------------------------------------------------------------------------- whole answers


def response(completion: Completion, wishes: Wishes, sealer: Sealer) -> Proto:
    """A whole answer: what a stream of it adds up to, with calls as they ended."""
    answer = head(completion, wishes, chat.GetChatCompletionResponse)
    answer.outputs.extend(outputs(completion, wishes, sealer))
    answer.usage.CopyFrom(usage_of(completion.usage, completion))
    if wishes.citations:
        answer.citations.extend(source.url for source in completion.sources)
    return answer


def outputs(completion: Completion, wishes: Wishes, sealer: Sealer) -> list[Proto]:
    """The transcript, in the order of its indices."""
    transcript = Transcript(wishes, sealer)
    made: dict[int, Proto] = {}
    for event in _events_of(completion):
        for piece in transcript.feed(event):
            _add(made.setdefault(piece.index, chat.CompletionOutput(index=piece.index)), piece)
    ended = [made[index] for index in sorted(made)]
    status = {
        call.id: call.status
        for output in ended
        if output.message.role == chat.ROLE_TOOL
        for call in output.message.tool_calls
    }
    for output in ended:
        for call in output.message.tool_calls:
            call.status = status.get(call.id, chat.TOOL_CALL_STATUS_COMPLETED)
    return ended


def _add(output: Proto, piece: Proto) -> None:
    message, delta = output.message, piece.delta
    message.role = delta.role
    message.content += delta.content
    message.reasoning_content += delta.reasoning_content
    message.encrypted_content += delta.encrypted_content
    message.tool_calls.extend(delta.tool_calls)
    message.citations.extend(delta.citations)
    if piece.HasField("logprobs"):
        output.logprobs.content.extend(piece.logprobs.content)
    if piece.finish_reason:
        output.finish_reason = piece.finish_reason


def _events_of(completion: Completion) -> Iterator[Event]:
    """A whole answer as the events that it was made of."""
    for number, choice in enumerate(completion.choices):
        for event in choice.events():
            yield replace(event, choice=number) if isinstance(event, TextDelta | ReasoningDelta) else event
    yield Finished(tuple(choice.reason for choice in completion.choices), completion.usage)
