"""Anthropic's dialects: what they take and refuse, and every event as its clients expect it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jubal.core.errors import AtCapacity, BadRequest, EngineBroken, JubalError, NotIdentified
from jubal.core.events import (
    Citation,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
    ToolCall,
)
from jubal.core.fold import Folder
from jubal.core.generation import FunctionTool, ImagePart, JsonOutput, Message, NamedTool, PastCall, TextPart
from jubal.core.server_tools import CodeExecution, Source, WebSearch, XSearch
from jubal.core.usage import Usage
from jubal.wire import anthropic_errors
from jubal.wire.anthropic_complete import AnthropicComplete
from jubal.wire.anthropic_messages import AnthropicMessages, MessagesAsked

HI = [{"role": "user", "content": "hi"}]
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
SCHEMA = {"type": "object", "properties": {}}
F = {"name": "f", "description": "d", "input_schema": SCHEMA}


def parse(**fields: Any) -> MessagesAsked:
    body = {"model": "grok-4", "max_tokens": 9, "messages": HI, **fields}
    return AnthropicMessages().parse(json.dumps(body).encode())


def test_a_conversation() -> None:
    asked = parse(
        system=[{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "look"}, PNG]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I call"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "ok"}, PNG]},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        tools=[F],
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    ).generation
    assert asked.messages == (
        Message("system", (TextPart("S"),)),
        Message("user", (TextPart("look"), ImagePart("data:image/png;base64,AAAA"))),
        Message("assistant", (TextPart("I call"),), calls=(PastCall("t1", "f", '{"a": 1}'),), reasoning="hm"),
        Message("tool", (TextPart("ok"), ImagePart("data:image/png;base64,AAAA")), tool_call_id="t1"),
        Message("user", (TextPart("and?"),)),
    )
    assert asked.tools.functions == (FunctionTool("f", "d", '{"type":"object","properties":{}}'),)
    assert asked.tools.choice == NamedTool("f")
    assert not asked.tools.parallel
    assert (asked.bounds.tokens_max, asked.sampling.stop, asked.user) == (9, ("END",), "u")


def test_an_answer_with_server_tools_can_be_sent_back() -> None:
    asked = parse(
        messages=[
            *HI,
            {
                "role": "assistant",
                "content": [
                    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}},
                    {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"url": "https://a.test/"}]},
                    {"type": "text", "text": "so"},
                ],
            },
        ]
    ).generation
    assert [message.role for message in asked.messages] == ["user", "assistant", "tool", "assistant"]
    assert asked.messages[2].tool_call_id == "s1"
    assert "https://a.test/" in asked.messages[2].text


@pytest.mark.parametrize(
    ("tools", "server"),
    [
        ([{"type": "web_search_20250305", "name": "web_search", "blocked_domains": ["b.com"]}], (WebSearch(excluded_domains=("b.com",)),)),
        ([{"type": "code_execution_20250825", "name": "code_execution"}, {"type": "x_search"}], (CodeExecution(), XSearch())),
    ],
)  # fmt: skip
def test_server_tools(tools: list[dict[str, Any]], server: tuple[Any, ...]) -> None:
    asked = parse(tools=tools).generation
    assert asked.tools.server == server
    assert asked.inline_citations


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 32_000}}, "high"),
        ({"output_config": {"effort": "max"}}, "high"),
    ],
)
def test_thinking(fields: dict[str, Any], effort: str | None) -> None:
    assert parse(**fields).generation.reasoning == effort


def test_structured_output() -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    for fields in ({"output_format": wanted}, {"output_config": {"format": wanted}}):
        assert parse(**fields).generation.output == JsonOutput('{"type":"object","properties":{}}')


FOUND = {
    "type": "search_result",
    "source": "https://a.test",
    "title": "A",
    "content": [{"type": "text", "text": "Ada is 36."}],
}
PAPER = {"type": "document", "title": "A", "source": {"type": "text", "media_type": "text/plain", "data": "Ada is 36."}}


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (FOUND, "A\nhttps://a.test\nAda is 36."),
        (
            {**FOUND, "citations": {"enabled": True}, "cache_control": {"type": "ephemeral"}},
            "A\nhttps://a.test\nAda is 36.",
        ),
        (PAPER, "A\nAda is 36."),
        ({**PAPER, "title": None, "source": {"type": "content", "content": "x"}}, "x"),
        ({**PAPER, "title": None, "source": {"type": "content", "content": FOUND["content"]}}, "Ada is 36."),
    ],
)
def test_search_results_and_documents_are_read_as_text(block: dict[str, Any], text: str) -> None:
    """Also where they are what a tool gave: there, the source of a search result was taken for an image's."""
    said = parse(messages=[{"role": "user", "content": [block, {"type": "text", "text": "How old?"}]}]).generation
    assert [part.text for part in said.messages[0].parts if isinstance(part, TextPart)] == [text, "How old?"]
    given = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    asked = parse(messages=[*HI, {"role": "assistant", "content": [use]}, {"role": "user", "content": [given]}])
    assert asked.generation.messages[-1].text == text


BAD: list[tuple[dict[str, Any], str, int]] = [
    ({"model": ""}, "model", 400),
    ({"model": 7}, "model", 422),
    ({"messages": []}, "messages", 400),
    ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role", 422),
    ({"messages": [{"role": "user"}]}, "messages[0].content", 422),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", 400),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", 422),
    ({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64", "data": "A"}}]}]}, "messages[0].content[0].source.type", 400),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].source.type", 400),
    ({"messages": [{"role": "user", "content": [{**FOUND, "content": [{"type": "image"}]}]}]}, "messages[0].content[0].content", 400),
    ({"messages": [{"role": "user", "content": [{**FOUND, "content": 7}]}]}, "messages[0].content[0].content", 422),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": "https://x"}]}]}, "messages[0].content[0].source.type", 400),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source", 422),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "A"}}]}]}, "messages[0].content[0].source", 400),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "file:///x"}}]}]}, "messages[0].content[0].source.type", 400),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, "messages[0].content[0].tool_use_id", 422),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": 7}]}]}, "messages[0].content[0].content", 422),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}]}, "messages[0].content[0].name", 422),
    ({"system": [{"type": "image"}]}, "system[0].type", 400),
    ({"max_tokens": 0}, "max_tokens", 400),
    ({"max_tokens": "x"}, "max_tokens", 422),
    ({"temperature": 3}, "temperature", 400),
    ({"top_p": 2}, "top_p", 400),
    ({"stop_sequences": ["a"] * 5}, "stop_sequences", 400),
    ({"stop_sequences": [""]}, "stop_sequences", 400),
    ({"stream": "yes"}, "stream", 422),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name", 400),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema", 422),
    ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools[0].input_schema", 400),
    ({"tools": [F, F]}, "tools", 400),
    ({"mcp_servers": [{"type": "url", "url": "https://m.test", "name": "m"}]}, "mcp_servers", 400),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type", 400),
    ({"tool_choice": {"type": "any"}}, "tool_choice", 400),
    ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [F]}, "tool_choice.name", 400),
    ({"tool_choice": {"type": "some"}, "tools": [F]}, "tool_choice.type", 400),
    ({"thinking": {"type": "deep"}}, "thinking.type", 400),
    ({"output_config": {"effort": "much"}}, "output_config.effort", 400),
    ({"output_format": {"type": "xml"}}, "output_format.type", 400),
    ({"max_turns": 0}, "max_turns", 400),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "status"), BAD, ids=[f"{param}-{n}" for n, (_, param, _) in enumerate(BAD)]
)
def test_bad_input_names_the_field(fields: dict[str, Any], param: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    reply = anthropic_errors.reply(caught.value)
    assert reply.status == status
    body = json.loads(reply.body)
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"] == param
    assert param.split("[")[0].split(".")[0] in body["error"]["message"]


A = Source("https://a.test/", "A")
EVENTS: list[Event] = [
    Started("id-1", 1, "grok-4", "fp_0000000000"),
    ReasoningDelta("hm"),
    ReasoningDelta("m"),
    ServerToolCall("s1", "web_search", "web_search", '{"query":"x"}'),
    ServerToolResult("s1", "web_search", "web_search", True, "[1] A", 1.0, (A,)),
    ServerToolCall("s2", "code_execution", "code_execution", '{"code":"1"}'),
    ServerToolResult("s2", "code_execution", "code_execution", True, '{"stdout":"1","stderr":"","error":null}', 1.0),
    TextDelta("see "),
    TextDelta("[[1]](https://a.test/)"),
    Citation(1, A, 4, 26),
    ToolCall("t1", "f", '{"a": 1}'),
    Finished(("tool_calls",), Usage(100, 20, 60, 5), 7, False, (A,), (("web_search", 1), ("code_execution", 1))),
]
USAGE = {"input_tokens": 40, "cache_read_input_tokens": 60, "output_tokens": 25, "cost_in_usd_ticks": 7}


def frames(events: list[Event]) -> list[tuple[str, dict[str, Any]]]:
    renderer = parse(stream=True).renderer()
    out = []
    for frame in b"".join(renderer.feed(event) for event in events).decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert body["type"] == name.removeprefix("event: ")
        out.append((body["type"], body))
    return out


def assembled(seen: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """As a client puts a stream together, strictly: blocks in order, one open at a time."""
    message: dict[str, Any] = {}
    open_: int | None = None
    for kind, body in seen:
        if kind == "message_start":
            message = body["message"]
        elif kind == "content_block_start":
            assert open_ is None
            assert body["index"] == len(message["content"])
            open_ = body["index"]
            message["content"].append({**body["content_block"], "_json": ""})
        elif kind == "content_block_delta":
            assert body["index"] == open_
            block, delta = message["content"][open_], body["delta"]
            match delta["type"]:
                case "text_delta":
                    block["text"] += delta["text"]
                case "thinking_delta":
                    block["thinking"] += delta["thinking"]
                case "signature_delta":
                    block["signature"] = delta["signature"]
                case "input_json_delta":
                    block["_json"] += delta["partial_json"]
                case "citations_delta":
                    block.setdefault("citations", []).append(delta["citation"])
        elif kind == "content_block_stop":
            assert body["index"] == open_
            text = message["content"][open_].pop("_json")
            if text:
                message["content"][open_]["input"] = json.loads(text)
            open_ = None
        elif kind == "message_delta":
            message |= body["delta"]
            message["usage"] |= body["usage"]
    assert seen[-1][0] == "message_stop"
    return message


def test_a_stream_is_the_whole_answer() -> None:
    folder = Folder()
    for event in EVENTS:
        folder.feed(event)
    assert folder.completion is not None
    whole = json.loads(parse().whole(folder.completion))
    streamed = assembled(frames(EVENTS))
    assert streamed == whole
    assert [block["type"] for block in whole["content"]] == [
        "thinking", "server_tool_use", "web_search_tool_result", "server_tool_use", "code_execution_tool_result",
        "text", "tool_use",
    ]  # fmt: skip
    assert whole["content"][0]["thinking"] == "hmm"
    assert whole["content"][2]["content"][0]["url"] == "https://a.test/"
    assert whole["content"][4]["content"] == {
        "type": "code_execution_result", "stdout": "1", "stderr": "", "return_code": 0, "content": [],
    }  # fmt: skip
    assert whole["content"][5]["citations"][0]["url"] == "https://a.test/"
    assert whole["content"][6]["input"] == {"a": 1}
    assert whole["stop_reason"] == "tool_use"
    assert USAGE.items() <= whole["usage"].items()
    assert whole["usage"]["server_tool_use"]["web_search_requests"] == 1


def test_an_empty_answer_has_a_block_all_the_same() -> None:
    events: list[Event] = [EVENTS[0], Finished(("length",), Usage(1, 0))]
    message = assembled(frames(events))
    assert message["content"] == [{"type": "text", "text": ""}]
    assert message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (Finished(("stop",), Usage(1, 1), stops=("END",)), ("stop_sequence", "END")),
        (Finished(("stop",), Usage(1, 1), stops=(None,)), ("end_turn", None)),
        (Finished(("stop",), Usage(1, 1)), ("end_turn", None)),
        (Finished(("length",), Usage(1, 1)), ("max_tokens", None)),
    ],
)
def test_the_stop_sequence_that_ended_it_is_named(end: Finished, told: tuple[str, str | None]) -> None:
    events: list[Event] = [EVENTS[0], TextDelta("x"), end]
    folder = Folder()
    for event in events:
        folder.feed(event)
    assert folder.completion is not None
    for message in (json.loads(parse().whole(folder.completion)), assembled(frames(events))):
        assert (message["stop_reason"], message["stop_sequence"]) == told
    legacy = AnthropicComplete().parse(b'{"model": "m", "prompt": "hi", "max_tokens_to_sample": 5}')
    last = b"".join(legacy.renderer().feed(event) for event in events).split(b"data: ")[-1]
    for body in (json.loads(legacy.whole(folder.completion)), json.loads(last)):
        assert body["stop"] == told[1]
        assert body["stop_reason"] == ("max_tokens" if told[0] == "max_tokens" else "stop_sequence")


def test_a_broken_stream_closes_its_block_and_says_so() -> None:
    seen = frames([EVENTS[0], TextDelta("x"), Failed(EngineBroken("gone"))])
    assert [kind for kind, _ in seen[-2:]] == ["content_block_stop", "error"]
    assert seen[-1][1]["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(AtCapacity("full"), 498, "overloaded_error"), (NotIdentified("no", given=True), 401, "authentication_error")],
)
def test_errors(error: JubalError, status: int, kind: str) -> None:
    reply = anthropic_errors.reply(error)
    assert (reply.status, json.loads(reply.body)["error"]["type"]) == (status, kind)


@pytest.mark.parametrize(
    ("prompt", "roles"),
    [
        ("\n\nHuman: hi\n\nAssistant:", ["user"]),
        ("Be kind.\n\nHuman: hi\n\nAssistant: ho\n\nHuman: he\n\nAssistant:", ["system", "user", "assistant", "user"]),
        ("just text", ["user"]),
    ],
)
def test_the_conversation_in_a_legacy_prompt(prompt: str, roles: list[str]) -> None:
    body = {"model": "m", "prompt": prompt, "max_tokens_to_sample": 5}
    asked = AnthropicComplete().parse(json.dumps(body).encode()).generation
    assert [message.role for message in asked.messages] == roles
    assert asked.bounds.tokens_max == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": " "}, "prompt"),
        ({"max_tokens_to_sample": 0}, "max_tokens_to_sample"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": 3}, "temperature"),
        ({"model": ""}, "model"),
    ],
)
def test_a_bad_legacy_prompt(fields: dict[str, Any], param: str) -> None:
    body = {"model": "m", "prompt": "hi", "max_tokens_to_sample": 5, **fields}
    with pytest.raises(BadRequest) as caught:
        AnthropicComplete().parse(json.dumps(body).encode())
    assert caught.value.param == param


def test_arguments_with_half_a_character_are_passed_on_as_they_are() -> None:
    """JSON can write one, and small models do."""
    arguments = '{"a": "\\ud83e"}'
    events: list[Event] = [Started("id-1", 1, "grok-4", "fp"), ToolCall("t1", "f", arguments), EVENTS[-1]]
    folder = Folder()
    for event in events:
        folder.feed(event)
    assert folder.completion is not None
    whole = json.loads(parse().whole(folder.completion))
    assert whole["content"][-1]["input"] == {"arguments": arguments}
    assert assembled(frames(events))["content"] == whole["content"]
