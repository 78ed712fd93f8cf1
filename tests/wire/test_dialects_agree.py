"""The same answer through every dialect: the same text, thinking, calls, sources, token counts and cost, whole and streamed.

A dialect is a row of `DIALECTS`: how it is asked, and how its answer is read. Reading is as a client reads, not by our own code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from xai_sdk.proto import chat_pb2, sample_pb2, usage_pb2

from jubal.core.events import (
    Citation,
    Event,
    Finished,
    ReasoningDelta,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
    ToolCall,
    UsageSoFar,
)
from jubal.core.fold import Completion, Folder
from jubal.core.server_tools import Source
from jubal.core.usage import Usage
from jubal.records.sealing import FernetSealer
from jubal.wire.anthropic_messages import AnthropicMessages
from jubal.wire.base import Asked
from jubal.wire.openai_chat import OpenAIChat
from jubal.wire.openai_responses import OpenAIResponses
from jubal.wire.xai_grpc.chat import XaiChat

A, B = Source("https://a.test/", "A"), Source("https://b.test/p?q=1", "B")
START = Started("11111111-2222-4333-8444-555555555555", 1, "grok-4", "fp_0000000000")

SCENARIOS: dict[str, list[Event]] = {
    "text": [START, TextDelta("Hel"), TextDelta("lo ☃"), Finished(("stop",), Usage(10, 2, 4), 11)],
    "nothing": [START, Finished(("stop",), Usage(3, 0), 1)],
    "cut": [START, TextDelta("half"), Finished(("length",), Usage(10, 1, 10), 5)],
    "thinking": [START, ReasoningDelta("h"), ReasoningDelta("m"), TextDelta("4"), Finished(("stop",), Usage(9, 1, 0, 7), 8)],
    "calls": [
        START,
        TextDelta("I call."),
        ToolCall("call_1", "f", '{"a":1}'),
        ToolCall("call_2", "g", "{}"),
        Finished(("tool_calls",), Usage(50, 20), 4),
    ],
    "searched": [
        START,
        ReasoningDelta("look"),
        ServerToolCall("s1", "web_search", "web_search", '{"query":"x"}'),
        ServerToolCall("s2", "code_execution", "code_execution", '{"code":"1"}'),
        ServerToolResult("s2", "code_execution", "code_execution", True, "1", 0.1),
        ServerToolResult("s1", "web_search", "web_search", True, "[1] A", 0.2, (A, B)),
        UsageSoFar(Usage(100, 10, 50, 2)),
        TextDelta("It is "),
        TextDelta("[[1]](https://a.test/)"),
        Citation(1, A, 6, 28),
        TextDelta("."),
        Finished(("stop",), Usage(220, 15, 60, 4), 999, False, (A, B), (("web_search", 1), ("code_execution", 1))),
    ],
    "searched and calls": [
        START,
        ServerToolCall("s1", "x_search", "x_keyword_search", '{"query":"x"}'),
        ServerToolResult("s1", "x_search", "x_keyword_search", False, "away", 0.2),
        ToolCall("call_1", "f", '{"a":1}'),
        Finished(("tool_calls",), Usage(220, 15), 9),
    ],
}  # fmt: skip


@dataclass
class Read:
    """What a client gets out of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    served: list[tuple[str, str]] = field(default_factory=list)
    cited: list[tuple[str, str]] = field(default_factory=list)
    total_tokens: int = 0
    cached_tokens: int = 0
    cost: int | None = None
    searches: int = 0
    reason: str = ""


def expected(events: list[Event]) -> Read:
    """By the events alone."""
    read = Read()
    names: dict[str, str] = {}
    for event in events:
        match event:
            case TextDelta(text):
                read.text += text
            case ReasoningDelta(text):
                read.reasoning += text
            case ToolCall(id=identity, name=name, arguments=arguments):
                read.calls.append((identity, name, json.loads(arguments)))
            case ServerToolCall(id=identity, name=name):
                names[identity] = name
                read.served.append((name, "?"))
            case ServerToolResult(id=identity, ok=ok):
                place = list(names).index(identity)
                read.served[place] = (names[identity], "ok" if ok else "failed")
            case Citation(source=source, start=start, end=end):
                read.cited.append((source.url, read.text[start:end]))
            case Finished():
                usage = event.usage
                read.total_tokens, read.cached_tokens = usage.total, usage.cached or 0
                read.cost = event.cost_ticks
                read.searches = dict(event.tool_uses).get("web_search", 0)
                read.reason = event.reasons[0]
    return read


def frames(data: bytes) -> list[dict[str, Any]]:
    payloads = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ") and line != b"data: [DONE]"]
    return [json.loads(payload) for payload in payloads]


# ------------------------------------------------------------------------------------------------ chat


def read_chat(body: dict[str, Any]) -> Read:
    message, usage = body["choices"][0]["message"], body["usage"]
    calls = message.get("tool_calls", [])
    return Read(
        message["content"],
        message.get("reasoning_content", ""),
        [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls],
        [
            (call["function"]["name"], "ok" if call["status"] == "completed" else "failed")
            for call in message.get("server_side_tool_calls", [])
        ],
        [
            (note["url_citation"]["url"], message["content"][note["url_citation"]["start_index"] : note["url_citation"]["end_index"]])
            for note in message.get("annotations", [])
        ],
        usage["total_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
        usage["cost_in_usd_ticks"],
        usage.get("server_side_tool_usage_details", {}).get("web_search_calls", 0),
        body["choices"][0]["finish_reason"],
    )  # fmt: skip


def whole_of_chat(data: bytes) -> dict[str, Any]:
    message: dict[str, Any] = {"content": ""}
    served: dict[str, dict[str, Any]] = {}
    reason, usage = "", {}
    for chunk in frames(data):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            for name in ("tool_calls", "annotations"):
                message.setdefault(name, []).extend(delta.get(name, []))
            message["reasoning_content"] = message.get("reasoning_content", "") + delta.get("reasoning_content", "")
            for call in delta.get("server_side_tool_calls", []):
                served[call["id"]] = {**served.get(call["id"], {}), **call}
            reason = choice.get("finish_reason") or reason
    message["server_side_tool_calls"] = list(served.values())
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}


# ------------------------------------------------------------------------------------------------ responses


def read_response(body: dict[str, Any]) -> Read:
    read = Read(reason="stop")
    for item in body["output"]:
        ok = "ok" if item["status"] == "completed" else "failed"
        match item["type"]:
            case "message":
                for part in item["content"]:
                    read.cited += [
                        (note["url"], part["text"][note["start_index"] : note["end_index"]])
                        for note in part["annotations"]
                    ]
                    read.text += part["text"]
            case "reasoning":
                read.reasoning += item["summary"][0]["text"]
            case "function_call":
                read.calls.append((item["call_id"], item["name"], json.loads(item["arguments"])))
                read.reason = "tool_calls"
            case "web_search_call":
                read.served.append(("web_search", ok))
            case "code_interpreter_call":
                read.served.append(("code_execution", ok))
            case "custom_tool_call":
                read.served.append((item["name"], ok))
    usage = body["usage"]
    read.total_tokens, read.cost = usage["total_tokens"], usage["cost_in_usd_ticks"]
    read.cached_tokens = usage["input_tokens_details"]["cached_tokens"]
    read.searches = usage.get("server_side_tool_usage_details", {}).get("web_search_calls", 0)
    if body["status"] == "incomplete":
        read.reason = {"max_output_tokens": "length"}[body["incomplete_details"]["reason"]]
    return read


# ------------------------------------------------------------------------------------------------ messages


def read_message(body: dict[str, Any]) -> Read:
    read = Read()
    uses: dict[str, str] = {}
    for block in body["content"]:
        match block["type"]:
            case "text":
                read.cited += [
                    (note["url"], f"[[{note['encrypted_index']}]]({note['url']})")
                    for note in block.get("citations", [])
                ]
                read.text += block["text"]
            case "thinking":
                read.reasoning += block["thinking"]
            case "tool_use":
                read.calls.append((block["id"], block["name"], block["input"]))
            case "server_tool_use":
                uses[block["id"]] = block["name"]
                read.served.append((block["name"], "?"))
            case kind if kind.endswith("_tool_result"):
                failed = isinstance(block["content"], dict) and block["content"]["type"].endswith("_error")
                name = uses[block["tool_use_id"]]
                read.served[list(uses).index(block["tool_use_id"])] = (name, "failed" if failed else "ok")
    usage = body["usage"]
    read.cached_tokens = usage["cache_read_input_tokens"]
    read.total_tokens = usage["input_tokens"] + read.cached_tokens + usage["output_tokens"]
    read.cost = usage["cost_in_usd_ticks"]
    read.searches = usage.get("server_tool_use", {}).get("web_search_requests", 0)
    read.reason = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}[body["stop_reason"]]
    return read


def whole_of_messages(data: bytes) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for event in frames(data):
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                message["content"].append({**event["content_block"], "_": ""})
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                for name in ("text", "thinking"):
                    if name in delta:
                        block[name] += delta[name]
                block["_"] += delta.get("partial_json", "")
                if "citation" in delta:
                    block.setdefault("citations", []).append(delta["citation"])
            case "content_block_stop":
                block = message["content"][event["index"]]
                if block["type"] in ("tool_use", "server_tool_use"):
                    block["input"] = json.loads(block["_"] or "{}")
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    return message


# ------------------------------------------------------------------------------------------------ gRPC


def read_outputs(outputs: list[Any], usage: Any) -> Read:
    """The outputs of a transcript, as the official SDK's response reads them."""
    read = Read()
    failed: dict[str, bool] = {}
    for output in outputs:
        message = output.message
        if message.role == chat_pb2.ROLE_TOOL:
            failed[message.tool_calls[0].id] = message.tool_calls[0].status == chat_pb2.TOOL_CALL_STATUS_FAILED
            continue
        before = len(read.text)
        read.text += message.content
        read.reasoning += message.reasoning_content
        for call in message.tool_calls:
            if call.type == chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL:
                read.calls.append((call.id, call.function.name, json.loads(call.function.arguments)))
            else:
                read.served.append((call.function.name, call.id))
        for note in message.citations:
            read.cited.append((note.web_citation.url, read.text[before + note.start_index : before + note.end_index]))
        reason = sample_pb2.FinishReason.Name(output.finish_reason)
        read.reason = {"REASON_STOP": "stop", "REASON_MAX_LEN": "length", "REASON_TOOL_CALLS": "tool_calls"}[reason]
    read.served = [(name, "failed" if failed[identity] else "ok") for name, identity in read.served]
    read.total_tokens, read.cached_tokens = usage.total_tokens, usage.cached_prompt_text_tokens
    read.cost = usage.cost_in_usd_ticks
    used = [usage_pb2.ServerSideTool.Name(tool) for tool in usage.server_side_tools_used]
    read.searches = used.count("SERVER_SIDE_TOOL_WEB_SEARCH")
    return read


def _grpc(stream: bool) -> Any:
    content = [chat_pb2.Content(text="hi")]
    asked = chat_pb2.GetCompletionsRequest(
        model="m",
        messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, content=content)],
        include=[chat_pb2.INCLUDE_OPTION_INLINE_CITATIONS],
    )
    return XaiChat(FernetSealer(b"k" * 32), live=stream).parse(asked.SerializeToString())


def whole_by_grpc(events: list[Event]) -> Read:
    body = chat_pb2.GetChatCompletionResponse.FromString(_grpc(False).whole(completion(events)))
    return read_outputs(list(body.outputs), body.usage)


def streamed_by_grpc(events: list[Event]) -> Read:
    """Chunks put together by the SDK's rules (xai-api.md 23.4)."""
    whole: dict[int, Any] = {}
    usage = None
    for frame in _grpc(True).renderer().frames(events):
        chunk = chat_pb2.GetChatCompletionChunk.FromString(frame)
        usage = chunk.usage
        for piece in chunk.outputs:
            output = whole.setdefault(piece.index, chat_pb2.CompletionOutput(index=piece.index))
            output.message.role = piece.delta.role
            output.message.content += piece.delta.content
            output.message.reasoning_content += piece.delta.reasoning_content
            output.message.tool_calls.extend(piece.delta.tool_calls)
            output.message.citations.extend(piece.delta.citations)
            output.finish_reason = piece.finish_reason
    return read_outputs([whole[index] for index in sorted(whole)], usage)


# ------------------------------------------------------------------------------------------------ all of them

HI = [{"role": "user", "content": "hi"}]


def _chat(stream: bool) -> Asked:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return OpenAIChat().parse(json.dumps({"model": "m", "messages": HI, "stream": stream, **options}).encode())


def _responses(stream: bool) -> Asked:
    body = {"model": "m", "input": "hi", "stream": stream, "tools": [{"type": "web_search"}]}
    return OpenAIResponses(FernetSealer(b"k" * 32)).parse(json.dumps(body).encode())


def _messages(stream: bool) -> Asked:
    body = {"model": "m", "messages": HI, "max_tokens": 9, "stream": stream}
    return AnthropicMessages().parse(json.dumps(body).encode())


@dataclass(frozen=True)
class Row:
    """How a client reads an answer of these events, whole and streamed."""

    whole: Callable[[list[Event]], Read]
    streamed: Callable[[list[Event]], Read]


def http_row(
    ask: Callable[[bool], Asked],
    read: Callable[[dict[str, Any]], Read],
    joined: Callable[[bytes], dict[str, Any]],
) -> Row:
    """ask: a parsed request, streamed or not. read: of a whole body. joined: a stream's bytes as one body."""

    def streamed(events: list[Event]) -> Read:
        renderer = ask(True).renderer()
        return read(joined(b"".join(renderer.feed(event) for event in events)))

    return Row(lambda events: read(json.loads(ask(False).whole(completion(events)))), streamed)


DIALECTS: dict[str, Row] = {
    "chat": http_row(_chat, read_chat, whole_of_chat),
    "responses": http_row(_responses, read_response, lambda data: dict(frames(data)[-1]["response"])),
    "messages": http_row(_messages, read_message, whole_of_messages),
    "grpc": Row(whole_by_grpc, streamed_by_grpc),
}


def completion(events: list[Event]) -> Completion:
    folder = Folder()
    for event in events:
        folder.feed(event)
    assert folder.completion is not None
    return folder.completion


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_whole(dialect: str, name: str) -> None:
    assert DIALECTS[dialect].whole(SCENARIOS[name]) == expected(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_streamed(dialect: str, name: str) -> None:
    assert DIALECTS[dialect].streamed(SCENARIOS[name]) == expected(SCENARIOS[name])
