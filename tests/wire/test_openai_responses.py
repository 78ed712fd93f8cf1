"""The Responses dialect: items in and out, every event in its order, and what is kept for going on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jubal.core.errors import BadRequest, EngineBroken
from jubal.core.events import (
    Applied,
    Citation,
    Event,
    Failed,
    Finished,
    Likely,
    ReasoningDelta,
    ServerToolCall,
    ServerToolResult,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
)
from jubal.core.fold import Completion, Folder
from jubal.core.generation import ImagePart, JsonOutput, Message, NamedTool, PastCall, TextPart
from jubal.core.server_tools import CodeExecution, OutputFile, Source, WebSearch
from jubal.core.usage import Usage
from jubal.records.sealing import FernetSealer
from jubal.wire import openai_errors
from jubal.wire.openai_responses import OpenAIResponses, ResponsesAsked, ResponsesCompact

SEALER = FernetSealer(b"s" * 32)
DIALECT = OpenAIResponses(SEALER)
F = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


def parse(**fields: Any) -> ResponsesAsked:
    return DIALECT.parse(json.dumps({"model": "grok-4", "input": "hi", **fields}).encode())


def user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def test_text_and_items_make_messages() -> None:
    assert parse(instructions="S").generation.messages == (Message("system", (TextPart("S"),)), user("hi"))
    items = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}]},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I call"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "x"}, "status": "completed"},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip
    assert parse(input=items).generation.messages == (
        Message("developer", (TextPart("D"),)),
        Message("user", (TextPart("look"), ImagePart("data:image/png;base64,AAAA", "low"))),
        Message("assistant", (TextPart("I call"),), calls=(PastCall("c1", "f", "{}"), PastCall("c2", "f", '{"a":1}')), reasoning="hm"),
        Message("tool", (TextPart("one"),), tool_call_id="c1"),
        Message("tool", (TextPart("two"),), tool_call_id="c2"),
        user("and?"),
    )  # fmt: skip


def test_the_other_fields() -> None:
    asked = parse(
        max_output_tokens=9,
        reasoning={"effort": "high"},
        temperature=0.5,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        tools=[F, {"type": "web_search"}, {"type": "code_interpreter"}],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        max_turns=3,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        safety_identifier="u",
        stream=True,
    ).generation
    assert asked.bounds.tokens_max == 9
    assert asked.bounds.turns_max == 3
    assert asked.reasoning == "high"
    assert asked.output == JsonOutput('{"type":"object"}', "n")
    assert asked.tools.choice == NamedTool("f")
    assert asked.tools.server == (WebSearch(), CodeExecution())
    assert not asked.tools.parallel
    assert asked.inline_citations, "on, unless they are refused"
    assert asked.logprobs == 2
    assert (asked.user, asked.live) == ("u", True)
    refused = parse(tools=[{"type": "web_search"}], include=["no_inline_citations"])
    assert not refused.generation.inline_citations
    assert parse(store=False).keep is False
    assert parse().keep is True


BAD: list[tuple[dict[str, Any], str, int]] = [
    ({"model": ""}, "model", 400),
    ({"input": []}, "input", 400),
    ({"conversation": "conv_1"}, "conversation", 400),
    ({"conversation": {"id": "conv_1"}}, "conversation", 400),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", 400),
    ({"input": 7}, "input", 422),
    ({"input": [{"type": "message", "role": "owner", "content": "x"}]}, "input[0].role", 422),
    ({"input": [{"role": "user"}]}, "input[0].content", 422),
    ({"input": [{"content": "x"}]}, "input[0].type", 422),
    ({"input": [{"type": "shell_call"}]}, "input[0].type", 400),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type", 400),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url", 422),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///x"}]}]}, "input[0].content[0].image_url", 400),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x", "detail": "max"}]}]}, "input[0].content[0].detail", 400),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", 422),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", 422),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": 7}]}, "input[0].output", 422),
    ({"input": [{"type": "compaction", "encrypted_content": "forged"}]}, "input[0].encrypted_content", 400),
    ({"instructions": "x", "previous_response_id": "y"}, "instructions", 400),
    ({"max_output_tokens": 0}, "max_output_tokens", 400),
    ({"reasoning": {"effort": "much"}}, "reasoning.effort", 400),
    ({"reasoning_effort": "much"}, "reasoning_effort", 400),
    ({"temperature": 3}, "temperature", 400),
    ({"top_p": 2}, "top_p", 400),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", 400),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", 422),
    ({"response_format": {"type": "json_object"}}, "response_format", 400),
    ({"tools": [{"type": "function"}]}, "tools[0].name", 422),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", 400),
    ({"tools": [F, F]}, "tools", 400),
    ({"tools": [{"type": "telepathy"}]}, "tools[0].type", 400),
    ({"tools": [{**F, "parameters": {"type": "string"}}]}, "tools[0].parameters", 400),
    ({"tool_choice": "required"}, "tool_choice", 400),
    ({"tool_choice": {"type": "function", "name": "g"}, "tools": [F]}, "tool_choice", 400),
    ({"tool_choice": {"type": "some"}}, "tool_choice", 400),
    ({"max_turns": 0}, "max_turns", 400),
    ({"top_logprobs": 30}, "top_logprobs", 400),
    ({"top_k": 0}, "top_k", 400),
    ({"min_p": 1.5}, "min_p", 400),
    ({"stream": "yes"}, "stream", 422),
    ({"store": "yes"}, "store", 422),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "status"), BAD, ids=[f"{p}-{n}" for n, (_, p, _) in enumerate(BAD)])
def test_bad_input_names_the_field(fields: dict[str, Any], param: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    reply = openai_errors.reply(caught.value)
    assert reply.status == status
    assert json.loads(reply.body)["error"]["param"] == param


A = Source("https://a.test/", "A")
ODD = TokenLogprob(Likely("see ", -0.5, b"see "))
EVENTS: list[Event] = [
    Started("R", 1, "grok-4", "fp_0000000000"),
    ReasoningDelta("h"),
    ReasoningDelta("m"),
    ServerToolCall("1", "web_search", "web_search", '{"query":"x"}'),
    ServerToolResult("1", "web_search", "web_search", True, "[1] A", 1.0, (A,)),
    ServerToolCall("2", "x_search", "x_keyword_search", '{"query":"y"}'),
    ServerToolResult("2", "x_search", "x_keyword_search", False, "failed", 1.0),
    ServerToolCall("3", "code_execution", "code_execution", '{"code":"1+1"}'),
    ServerToolResult(
        "3", "code_execution", "code_execution", True, "2", 1.0, (), (OutputFile("p.png", b"PNG", "image/png"),)
    ),
    ServerToolCall("4", "mcp", "box.look", '{"a":1}'),
    ServerToolResult("4", "mcp", "box.look", True, "seen", 1.0),
    TextDelta("see ", 0, (ODD,)),
    TextDelta("[[1]](https://a.test/)"),
    Citation(1, A, 4, 26),
    ToolCall("t1", "f", '{"a":1}'),
    Finished(("tool_calls",), Usage(100, 20, 60, 5), 7, False, (A,), (("web_search", 1), ("mcp", 1)), 9),
]
EVERYTHING = {
    "tools": [F, {"type": "web_search"}, {"type": "mcp", "server_url": "https://x", "authorization": "SECRET", "headers": {"k": "SECRET"}}],
    "include": ["web_search_call.action.sources", "code_interpreter_call.outputs", "reasoning.encrypted_content"],
}  # fmt: skip


def frames(events: list[Event], **fields: Any) -> list[dict[str, Any]]:
    renderer = parse(stream=True, **fields).renderer()
    out = []
    for frame in b"".join(renderer.feed(event) for event in events).decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert out[-1]["type"] == name.removeprefix("event: ")
    assert [event["sequence_number"] for event in out] == list(range(len(out)))
    return out


def completion(events: list[Event]) -> Completion:
    folder = Folder()
    for event in events:
        folder.feed(event)
    assert folder.completion is not None
    return folder.completion


def items_of(seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items as a client collects them: each is added once, told of, and done once."""
    items: dict[int, dict[str, Any]] = {}
    done = set()
    for event in seen:
        number = event.get("output_index")
        if event["type"] == "response.output_item.added":
            assert number == len(items)
            items[number] = event["item"]
            assert event["item"]["status"] == "in_progress"
        elif event["type"] == "response.output_item.done":
            done.add(number)
            assert event["item"]["id"] == items[number]["id"]
            items[number] = event["item"]
        elif number is not None:
            assert event["item_id"] == items[number]["id"]
            assert number not in done
    assert done == set(items)
    return [items[number] for number in sorted(items)]


def without_seals(response: dict[str, Any]) -> dict[str, Any]:
    for item in response["output"]:
        if item["type"] == "reasoning" and "encrypted_content" in item:
            item["encrypted_content"] = SEALER.open(item["encrypted_content"])
    return response


def test_a_stream_has_every_event_in_order() -> None:
    seen = frames(EVENTS, **EVERYTHING)
    kinds = [event["type"].removeprefix("response.") for event in seen]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
        "output_item.added", "web_search_call.in_progress", "web_search_call.searching", "web_search_call.completed", "output_item.done",
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
        "output_item.added", "code_interpreter_call.in_progress", "code_interpreter_call_code.delta", "code_interpreter_call_code.done",
        "code_interpreter_call.interpreting", "code_interpreter_call.completed", "output_item.done",
        "output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done", "mcp_call.executing",
        "mcp_call_output.delta", "mcp_call_output.done", "mcp_call.completed", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.annotation.added",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    items = items_of(seen)
    last = seen[-1]["response"]
    assert last["output"] == items
    assert last["usage"]["output_tokens"] == 25
    assert last["usage"]["input_tokens_details"] == {"cached_tokens": 60}
    assert last["usage"]["num_server_side_tools_used"] == 2
    assert last["usage"]["cost_in_usd_ticks"] == 7
    assert (last["completed_at"], last["status"], last["created_at"]) == (9, "completed", 1)
    assert "SECRET" not in json.dumps(seen), "a key for an MCP server is never told again"

    reasoning, web, posts, code, mcp, message, function = items
    assert reasoning["id"] == "rs_R"
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert SEALER.open(reasoning["encrypted_content"]) == "hm"
    assert web["action"] == {"type": "search", "query": "x", "sources": [{"type": "url", "url": "https://a.test/"}]}
    assert (posts["type"], posts["name"], posts["input"], posts["status"]) == (
        "custom_tool_call", "x_keyword_search", '{"query":"y"}', "failed",
    )  # fmt: skip
    assert code["outputs"][0] == {"type": "logs", "logs": "2"}
    assert code["outputs"][1]["url"].startswith("data:image/png;base64,")
    assert (mcp["server_label"], mcp["name"], mcp["output"]) == ("box", "look", "seen")
    (part,) = message["content"]
    assert part["text"] == "see [[1]](https://a.test/)"
    (note,) = part["annotations"]
    assert part["text"][note["start_index"] : note["end_index"]] == "[[1]](https://a.test/)"
    assert part["logprobs"][0]["token"] == "see "
    assert (function["call_id"], function["arguments"]) == ("t1", '{"a":1}')


def test_a_whole_answer_is_what_its_stream_ends_with() -> None:
    whole = json.loads(parse(**EVERYTHING).whole(completion(EVENTS)))
    streamed = frames(EVENTS, **EVERYTHING)[-1]["response"]
    assert without_seals(whole) == without_seals(streamed)


def test_interleaved_calls() -> None:
    events = [EVENTS[0], EVENTS[3], EVENTS[7], EVENTS[8], EVENTS[4], EVENTS[-1]]
    assert [item["type"] for item in items_of(frames(events))] == ["web_search_call", "code_interpreter_call"]


PIECES = {
    "response.custom_tool_call_input.delta": "input",
    "response.code_interpreter_call_code.delta": "code",
    "response.mcp_call_arguments.delta": "arguments",
    "response.mcp_call_output.delta": "output",
    "response.function_call_arguments.delta": "arguments",
}


def test_the_pieces_of_a_call_join_to_what_its_item_ends_with() -> None:
    """As clients do it: from the item that was added, piece after piece."""
    seen = frames(EVENTS, **EVERYTHING)
    items = {
        event["output_index"]: dict(event["item"]) for event in seen if event["type"] == "response.output_item.added"
    }
    for event in seen:
        if (name := PIECES.get(event["type"])) is not None:
            item = items[event["output_index"]]
            item[name] = (item.get(name) or "") + event["delta"]
    ended = {event["output_index"]: event["item"] for event in seen if event["type"] == "response.output_item.done"}
    joined = [(number, name) for number, item in items.items() for name in set(PIECES.values()) & set(item)]
    assert len(joined) >= 5
    for number, name in joined:
        assert items[number][name] == ended[number][name]


def test_an_mcp_call_that_fails_says_why_in_its_item() -> None:
    call = ServerToolCall("m1", "mcp", "box.fail", "{}")
    failed = ServerToolResult("m1", "mcp", "box.fail", False, "The call failed: out of paper", 0.1)
    seen = frames([EVENTS[0], call, failed, EVENTS[-1]])
    kinds = [event["type"] for event in seen if "mcp" in event["type"]]
    assert kinds[-2:] == ["response.mcp_call.executing", "response.mcp_call.failed"]
    [item] = items_of(seen)
    assert (item["status"], item["output"], item["error"]) == ("failed", None, "The call failed: out of paper")


def test_a_call_that_was_cut_has_what_the_model_wrote() -> None:
    call = ServerToolCall("m1", "mcp", "box.add", '{"a":1}')
    last = frames([EVENTS[0], call, Failed(EngineBroken("gone"))])[-1]["response"]
    assert [(item["status"], item["arguments"]) for item in last["output"]] == [("incomplete", '{"a":1}')]


def test_tools_that_another_service_listed_are_left_out() -> None:
    listed = {
        "type": "mcp_list_tools",
        "id": "l",
        "server_label": "box",
        "tools": [{"name": "add", "input_schema": {}}],
    }
    messages = parse(
        input=[{"role": "user", "content": "hi"}, listed, {"role": "user", "content": "ho"}]
    ).generation.messages
    assert [message.text for message in messages] == ["hi", "ho"]


@pytest.mark.parametrize(
    ("asked", "applied", "told"),
    [
        ({}, Applied(0.2, 0.9, "low"), (0.2, 0.9, {"effort": "low", "summary": "detailed"})),
        ({}, Applied(), (None, None, {"effort": None, "summary": None})),
        (
            {"temperature": 0, "top_p": 0.5, "reasoning": {"effort": "none"}},
            Applied(0.0, 0.5, "none"),
            (0, 0.5, {"effort": "none", "summary": None}),
        ),
    ],
)
def test_what_was_left_open_is_told_as_it_was_decided(
    asked: dict[str, Any], applied: Applied, told: tuple[object, ...]
) -> None:
    events = [Started("R", 1, "grok-4", "fp_0", applied), TextDelta("a"), EVENTS[-1]]
    seen = frames(events, **asked)
    whole = json.loads(parse(**asked).whole(completion(events)))
    for response in (seen[0]["response"], seen[-1]["response"], whole):
        assert (response["temperature"], response["top_p"], response["reasoning"]) == told


def test_a_text_setting_without_a_format_is_told_with_one() -> None:
    last = frames([EVENTS[0], TextDelta("a"), EVENTS[-1]], text={"verbosity": "low"})[-1]["response"]
    assert last["text"] == {"format": {"type": "text"}, "verbosity": "low"}


def test_an_incomplete_message_is_not_done() -> None:
    seen = frames([EVENTS[0], TextDelta("half"), Finished(("length",), Usage(1, 1), 0)])
    assert [event["type"] for event in seen[-2:]] == ["response.output_text.delta", "response.incomplete"]
    last = seen[-1]["response"]
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["completed_at"] is None
    assert last["output"][0]["status"] == "incomplete"
    assert last["output"][0]["content"][0]["text"] == "half"


def test_a_broken_stream_says_so() -> None:
    last = frames([EVENTS[0], TextDelta("x"), EVENTS[3], Failed(EngineBroken("gone", code="c"))])[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "c", "message": "gone"}
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "incomplete"]


def test_going_on_replays_our_own_calls_and_results() -> None:
    first = parse(instructions="S", **EVERYTHING)
    record = first.record(completion(EVENTS))
    second = parse(
        input=[{"type": "function_call_output", "call_id": "t1", "output": "done"}], previous_response_id="R"
    )
    second.go_on_from(record)
    messages = second.generation.messages
    assert [message.role for message in messages] == [
        "system", "user", "assistant", "tool", "assistant", "tool", "assistant", "tool", "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip
    assert messages[3].text == "[1] A"
    assert messages[2].reasoning == "hm"
    assert messages[-2].calls == (PastCall("t1", "f", '{"a":1}'),)
    assert messages[-1].text == "done"
    assert b"SECRET" not in record

    third = parse(input="more", previous_response_id="R2")
    third.go_on_from(second.record(completion([*EVENTS[:1], TextDelta("ok"), EVENTS[-1]])))
    assert [message.role for message in third.generation.messages[-2:]] == ["assistant", "user"]
    assert len(third.generation.messages) == len(messages) + 2


def test_it_can_be_asked_past_the_cache() -> None:
    assert [parse(**fields).generation.cache for fields in ({}, {"cache": None}, {"cache": False})] == [
        True,
        True,
        False,
    ]


def test_what_is_kept_can_be_shown() -> None:
    record = parse(input=[{"role": "user", "content": str(n)} for n in range(5)]).record(completion(EVENTS))
    shown = json.loads(DIALECT.shown(record))
    assert shown["id"] == "R"
    assert "[1] A" not in json.dumps(shown), "outputs stay hidden"
    page = json.loads(DIALECT.input_items(record, limit=2, order="asc", after=None))
    assert [item["content"] for item in page["data"]] == ["0", "1"]
    assert page["has_more"]
    rest = json.loads(DIALECT.input_items(record, limit=20, order="desc", after=page["last_id"]))
    assert [item["content"] for item in rest["data"]] == ["0"]
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "nobody"}):
        with pytest.raises(BadRequest):
            DIALECT.input_items(record, **{"limit": 20, "order": "asc", "after": None, **wrong})  # type: ignore[arg-type]


def test_encrypted_reasoning_comes_back() -> None:
    sealed = SEALER.seal("secret thought")
    for content, thought in (
        (sealed, "secret thought"),
        (FernetSealer(b"o" * 32).seal("x"), "shown"),
        ("junk", "shown"),
    ):
        items = [
            {"role": "user", "content": "q"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "shown"}], "encrypted_content": content},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "q2"},
        ]
        assert parse(input=items).generation.messages[1].reasoning == thought


def test_a_compaction_stands_for_what_was_before() -> None:
    body = {"model": "grok-4", "input": [{"role": "system", "content": "S"}, {"role": "user", "content": "long"}]}
    compact = ResponsesCompact(SEALER).parse(json.dumps(body).encode())
    made = json.loads(compact.whole(completion([EVENTS[0], TextDelta("SUMMARY"), EVENTS[-1]])))
    assert made["object"] == "response.compaction"
    assert made["usage"]["dropped_message_count"] == 2
    assert "SUMMARY" not in json.dumps(made)
    messages = parse(
        input=[{"role": "user", "content": "old"}, *made["output"], {"role": "user", "content": "new"}]
    ).generation.messages
    assert [message.text for message in messages] == ["Summary of the conversation so far:\nSUMMARY", "new"]
