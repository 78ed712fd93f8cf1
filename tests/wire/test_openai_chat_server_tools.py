"""Server tools in the chat dialect: told while they run, and in whole answers; never as calls that the client must answer."""

from __future__ import annotations

import json
from typing import Any

from jubal.core.events import (
    Citation,
    Event,
    Finished,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
)
from jubal.core.fold import Folder
from jubal.core.server_tools import Source
from jubal.core.usage import Usage
from jubal.wire.openai_chat import ChatAsked, OpenAIChat

A = Source("https://a.test/", "A")
EVENTS: list[Event] = [
    Started("0", 1, "grok-4", "fp_0000000000"),
    ServerToolCall("call_1", "web_search", "web_search", '{"query":"x"}'),
    ServerToolCall("call_2", "code_execution", "code_execution", '{"code":"1"}'),
    ServerToolResult("call_2", "code_execution", "code_execution", False, "The call failed: off", 0.5),
    ServerToolResult("call_1", "web_search", "web_search", True, "[1] A", 1.25, (A,)),
    TextDelta("see [[1]](https://a.test/)"),
    Citation(1, A, 4, 27),
    Finished(("stop",), Usage(10, 5), 7, False, (A,), (("web_search", 1),)),
]


def asked(**fields: Any) -> ChatAsked:
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "x"}], **fields}
    return OpenAIChat().parse(json.dumps(body).encode())


def whole(**fields: Any) -> dict[str, Any]:
    folder = Folder()
    for event in EVENTS:
        folder.feed(event)
    assert folder.completion is not None
    answer: dict[str, Any] = json.loads(asked(**fields).whole(folder.completion))
    return answer


def streamed(**fields: Any) -> list[dict[str, Any]]:
    renderer = asked(stream=True, **fields).renderer()
    data = b"".join(renderer.feed(event) for event in EVENTS)
    frames = [frame.removeprefix(b"data: ") for frame in data.split(b"\n\n") if frame]
    assert frames[-1] == b"[DONE]"
    return [json.loads(frame) for frame in frames[:-1]]


def test_a_stream_tells_them_live() -> None:
    chunks = streamed(stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert not any("tool_calls" in delta for delta in deltas)
    told = [delta["server_side_tool_calls"][0] for delta in deltas if "server_side_tool_calls" in delta]
    assert [(call["id"], call["type"], call["status"]) for call in told] == [
        ("call_1", "web_search_call", "in_progress"),
        ("call_2", "code_interpreter_call", "in_progress"),
        ("call_2", "code_interpreter_call", "failed"),
        ("call_1", "web_search_call", "completed"),
    ]
    assert told[0]["function"] == {"name": "web_search", "arguments": '{"query":"x"}'}
    assert told[3]["duration_ms"] == 1250
    assert "output" not in told[3]
    (note,) = [delta["annotations"][0] for delta in deltas if "annotations" in delta]
    assert note["url_citation"] == {"url": "https://a.test/", "title": "A", "start_index": 4, "end_index": 27}
    last = chunks[-2]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["citations"] == ["https://a.test/"]
    assert last["server_side_tool_usage"] == {"SERVER_SIDE_TOOL_WEB_SEARCH": 1}
    usage = chunks[-1]["usage"]
    assert usage["num_sources_used"] == 1
    assert usage["server_side_tool_usage_details"]["web_search_calls"] == 1
    assert usage["server_side_tool_usage_details"]["code_interpreter_calls"] == 0


def test_a_whole_answer_tells_them_all() -> None:
    answer = whole()
    message = answer["choices"][0]["message"]
    assert "tool_calls" not in message
    assert [(call["id"], call["status"]) for call in message["server_side_tool_calls"]] == [
        ("call_1", "completed"),
        ("call_2", "failed"),
    ]
    assert message["annotations"][0]["url_citation"]["start_index"] == 4
    assert answer["citations"] == ["https://a.test/"]
    assert answer["usage"]["num_sources_used"] == 1


def test_outputs_only_where_they_are_asked_for() -> None:
    with_outputs = {"include": ["web_search_call_output"]}
    calls = whole(**with_outputs)["choices"][0]["message"]["server_side_tool_calls"]
    assert calls[0]["output"] == "[1] A"
    assert any("[1] A" in json.dumps(chunk) for chunk in streamed(**with_outputs))
    assert "output" not in whole()["choices"][0]["message"]["server_side_tool_calls"][0]


def test_citations_can_be_left_out() -> None:
    search = {"search_parameters": {"mode": "auto", "return_citations": False}}
    assert "citations" not in whole(**search)
    assert not any("citations" in chunk for chunk in streamed(**search))
