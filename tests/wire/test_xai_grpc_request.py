"""xAI's gRPC API, requests: every field to the core, and every refusal names its field."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format, text_format
from google.protobuf.timestamp_pb2 import Timestamp

from jubal.core.errors import BadRequest, Undecodable
from jubal.core.generation import (
    Bounds,
    FunctionTool,
    ImagePart,
    JsonOutput,
    Message,
    NamedTool,
    PastCall,
    TextPart,
    Tools,
)
from jubal.core.server_tools import CodeExecution, CollectionsSearch, Mcp, UserLocation, WebSearch, XSearch
from jubal.records.sealing import FernetSealer
from jubal.wire.xai_grpc import models, pb, tokenize
from jubal.wire.xai_grpc.chat import ChatAsked, XaiChat, XaiCompact
from jubal.wire.xai_grpc.embed import EmbedAsked
from jubal.wire.xai_grpc.sample import XaiSample

SEALER = FernetSealer(b"secret")
HI = {"role": "ROLE_USER", "content": [{"text": "hi"}]}


def request(**fields: Any) -> Any:
    whole = {"model": "grok-4", "messages": [HI], **fields}
    return json_format.ParseDict(whole, pb.chat.GetCompletionsRequest())


def parse(**fields: Any) -> ChatAsked:
    return XaiChat(SEALER).parse(request(**fields).SerializeToString())


def messages(*protos: dict[str, Any]) -> tuple[Message, ...]:
    return parse(messages=list(protos)).generation.messages


def test_a_whole_request() -> None:
    asked = parse(
        n=2,
        maxTokens=9,
        seed=-3,
        stop=["a", "b", "c", "d", "e"],
        temperature=0.7,
        topP=0.1,
        frequencyPenalty=-0.3,
        presencePenalty=1,
        logprobs=True,
        topLogprobs=3,
        user="me",
        reasoningEffort="EFFORT_HIGH",
        maxTurns=4,
        include=["INCLUDE_OPTION_INLINE_CITATIONS"],
    )
    one = asked.generation
    assert (one.model, one.choices, one.user, one.logprobs, one.reasoning) == ("grok-4", 2, "me", 3, "high")
    assert one.bounds == Bounds(9, 4)
    sampling = one.sampling
    assert (sampling.temperature, sampling.top_p, sampling.frequency_penalty) == (0.7, 0.1, -0.3), (
        "as they were written"
    )
    assert (sampling.presence_penalty, sampling.seed, sampling.stop) == (1, -3, ("a", "b", "c", "d", "e"))
    assert one.inline_citations
    assert not one.live
    assert one.messages == (Message("user", (TextPart("hi"),)),)


def test_nothing_is_something_that_was_not_said() -> None:
    one = parse().generation
    assert (one.choices, one.logprobs, one.reasoning, one.output, one.user) == (1, None, None, None, None)
    assert one.bounds.tokens_max is None
    assert (one.sampling.temperature, one.sampling.seed, one.sampling.stop) == (None, None, ())
    assert not one.tools.wanted
    assert XaiChat(SEALER, live=True).parse(request().SerializeToString()).generation.live


def test_messages_of_every_role() -> None:
    call = {"id": "c1", "type": "TOOL_CALL_TYPE_CLIENT_SIDE_TOOL", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert messages(
        {"role": "ROLE_SYSTEM", "content": [{"text": "s"}]},
        {"role": "ROLE_DEVELOPER", "content": [{"text": "d"}]},
        {"role": "ROLE_USER", "name": "ann", "content": [{"text": "a"}, {"imageUrl": {"imageUrl": "https://i.test/x.png", "detail": "DETAIL_LOW"}}]},
        {"role": "ROLE_ASSISTANT", "content": [{"text": ""}], "reasoningContent": "hm", "toolCalls": [call]},
        {"role": "ROLE_TOOL", "content": [{"text": "42"}]},
        {"role": "ROLE_FUNCTION", "toolCallId": "c9", "content": [{"text": "43"}]},
    ) == (
        Message("system", (TextPart("s"),)),
        Message("developer", (TextPart("d"),)),
        Message("user", (TextPart("a"), ImagePart("https://i.test/x.png", "low")), "ann"),
        Message("assistant", (), calls=(PastCall("c1", "f", '{"a":1}'),), reasoning="hm"),
        Message("tool", (TextPart("42"),), tool_call_id="c1"),
        Message("tool", (TextPart("43"),), tool_call_id="c9"),
    )  # fmt: skip


def server_call(output: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"id": "w1", "type": "TOOL_CALL_TYPE_WEB_SEARCH_TOOL", "function": {"name": "web_search", "arguments": "{}"}}
    return [
        HI,
        {"role": "ROLE_ASSISTANT", "toolCalls": [call], "content": [{"text": ""}]},
        {"role": "ROLE_TOOL", "toolCalls": [call], "toolCallId": "w1", "content": [{"text": ""}], **output},
        {"role": "ROLE_ASSISTANT", "content": [{"text": "Done."}]},
    ]


@pytest.mark.parametrize(
    "output",
    [{"content": [{"text": "found"}]}, {"encryptedContent": SEALER.seal("found")}],
    ids=["in clear", "sealed"],
)
def test_our_own_transcript_comes_back(output: dict[str, Any]) -> None:
    assert messages(*server_call(output))[1:] == (
        Message("assistant", (), calls=(PastCall("w1", "web_search", "{}"),)),
        Message("tool", (TextPart("found"),), "web_search", tool_call_id="w1"),
        Message("assistant", (TextPart("Done."),)),
    )


@pytest.mark.parametrize("output", [{}, {"encryptedContent": FernetSealer(b"other").seal("found")}])
def test_a_server_call_whose_output_nobody_knows_is_left_out(output: dict[str, Any]) -> None:
    assert messages(*server_call(output))[1:] == (Message("assistant", (TextPart("Done."),)),)


def test_sealed_reasoning_is_opened() -> None:
    sealed = {"role": "ROLE_ASSISTANT", "content": [{"text": "a"}], "encryptedContent": SEALER.seal("because")}
    assert messages(HI, sealed)[1] == Message("assistant", (TextPart("a"),), reasoning="because")


def test_a_compaction_stands_for_all_before_it() -> None:
    compaction = {"role": "ROLE_USER", "encryptedContent": SEALER.seal("They like tea.")}
    system = {"role": "ROLE_SYSTEM", "content": [{"text": "s"}]}
    kept = messages(system, HI, compaction, HI)
    assert [message.role for message in kept] == ["system", "user", "user"]
    assert "They like tea." in kept[1].text
    with pytest.raises(BadRequest, match="not made by this service"):
        messages({**compaction, "encryptedContent": FernetSealer(b"x").seal("no")})


def test_tools() -> None:
    from_date = {"fromDate": "2026-01-31T23:00:00Z"}
    tools = parse(
        tools=[
            {"function": {"name": "f", "description": "d", "parameters": '{"type":"object"}', "strict": True}},
            {"function": {"name": "g"}},
            {"webSearch": {"allowedDomains": ["A.test"], "enableImageUnderstanding": True, "userLocation": {"country": "no", "city": "Oslo"}}},
            {"xSearch": {"excludedXHandles": ["@spam"], **from_date, "enableVideoUnderstanding": True}},
            {"codeExecution": {}},
            {"mcp": {"serverLabel": "m", "serverUrl": "https://m.test/mcp", "allowedToolNames": ["t"], "authorization": "s", "extraHeaders": {"a": "b"}}},
            {"collectionsSearch": {"collectionIds": ["c"], "limit": 3}},
        ],
        toolChoice={"functionName": "g"},
        parallelToolCalls=False,
    ).generation.tools  # fmt: skip
    assert tools == Tools(
        (FunctionTool("f", "d", '{"type":"object"}', True), FunctionTool("g")),
        NamedTool("g"),
        False,
        (
            WebSearch(("a.test",), location=UserLocation("NO", None, "Oslo"), images=True),
            XSearch(excluded_handles=("spam",), from_date="2026-01-31", videos=True),
            CodeExecution(),
            Mcp("m", "https://m.test/mcp", "", ("t",), "s", (("a", "b"),)),
            CollectionsSearch(("c",), 3),
        ),
    )


@pytest.mark.parametrize(("mode", "choice"), [("AUTO", "auto"), ("NONE", "none"), ("REQUIRED", "required"), ("INVALID", "auto")])  # fmt: skip
def test_tool_choice(mode: str, choice: str) -> None:
    tools = parse(tools=[{"function": {"name": "f"}}], toolChoice={"mode": f"TOOL_MODE_{mode}"}).generation.tools
    assert tools.choice == choice


def test_live_search() -> None:
    tools = parse(
        searchParameters={
            "mode": "ON_SEARCH_MODE",
            "fromDate": "2026-01-01T00:00:00Z",
            "maxSearchResults": 5,
            "sources": [
                {"web": {"allowedWebsites": ["a.test"], "safeSearch": True, "country": "no"}},
                {"news": {"excludedWebsites": ["b.test"]}},
                {"x": {"includedXHandles": ["xai"], "postFavoriteCount": 7}},
                {"rss": {"links": ["https://a.test/feed"]}},
            ],
        }
    ).generation.tools
    assert tools.choice == "required"
    web, posts = tools.server
    assert isinstance(web, WebSearch)
    assert (web.allowed_domains, web.excluded_domains, web.links) == (
        ("a.test",),
        ("b.test",),
        ("https://a.test/feed",),
    )
    assert (web.results_max, web.from_date) == (5, "2026-01-01")
    assert posts == XSearch(("xai",), from_date="2026-01-01", favorites_min=7, results_max=5)
    assert parse(searchParameters={"mode": "OFF_SEARCH_MODE"}).generation.tools.server == ()
    assert len(parse(searchParameters={}).generation.tools.server) == 2, "auto where no mode is said"


def test_output_formats() -> None:
    assert parse(responseFormat={"formatType": "FORMAT_TYPE_TEXT"}).generation.output is None
    assert parse(responseFormat={"formatType": "FORMAT_TYPE_JSON_OBJECT"}).generation.output == JsonOutput()
    schema = '{"type": "object"}'
    asked = parse(responseFormat={"formatType": "FORMAT_TYPE_JSON_SCHEMA", "schema": schema})
    assert asked.generation.output == JsonOutput(schema)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": [{"content": [{"text": "x"}]}]}, "messages[0].role"),
    ({"messages": [HI, {"role": "ROLE_USER"}]}, "messages[1].content"),
    ({"messages": [{"role": "ROLE_USER", "content": [{}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "ROLE_USER", "content": [{"file": {"fileId": "f"}}]}]}, "messages[0].content[0].file"),
    ({"messages": [{"role": "ROLE_USER", "content": [{"imageUrl": {"imageUrl": "ftp://x"}}]}]}, "messages[0].content[0].image_url.image_url"),
    ({"messages": [{"role": "ROLE_USER", "content": [{"imageUrl": {"fileId": "f"}}]}]}, "messages[0].content[0].image_url.file_id"),
    ({"messages": [{"role": "ROLE_ASSISTANT", "toolCalls": [{"id": "c"}]}]}, "messages[0].tool_calls[0].function.name"),
    ({"temperature": 3}, "temperature"),
    ({"topP": -1}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"maxTokens": 0}, "max_tokens"),
    ({"stop": list("123456789")}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"topLogprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "topLogprobs": 21}, "top_logprobs"),
    ({"maxTurns": 0}, "max_turns"),
    ({"agentCount": "AGENT_COUNT_4"}, "agent_count"),
    ({"reasoningEffort": 77}, "reasoning_effort"),
    ({"responseFormat": {"formatType": "FORMAT_TYPE_JSON_SCHEMA"}}, "response_format.schema"),
    ({"responseFormat": {"formatType": "FORMAT_TYPE_JSON_SCHEMA", "schema": "[]"}}, "response_format.schema"),
    ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "f", "parameters": "{"}}]}, "tools[0].function.parameters"),
    ({"tools": [{"function": {"name": "f", "parameters": '{"type":"string"}'}}]}, "tools[0].function.parameters"),
    ({"tools": [{"function": {"name": "f"}}] * 2}, "tools"),
    ({"tools": [{}]}, "tools[0]"),
    ({"tools": [{"imageGeneration": {}}]}, "tools[0].image_generation"),
    ({"tools": [{"attachmentSearch": {}}]}, "tools[0].attachment_search"),
    ({"tools": [{"webSearch": {"allowedDomains": ["https://a.test"]}}]}, "tools[0].web_search.allowed_domains"),
    ({"tools": [{"webSearch": {"allowedDomains": ["a"], "excludedDomains": ["b"]}}]}, "tools[0].web_search"),
    ({"tools": [{"xSearch": {"allowedXHandles": ["a b"]}}]}, "tools[0].x_search.allowed_x_handles"),
    ({"tools": [{"mcp": {}}]}, "tools[0].mcp.server_url"),
    ({"tools": [{"collectionsSearch": {}}]}, "tools[0].collections_search.collection_ids"),
    ({"toolChoice": {"functionName": "f"}}, "tool_choice.function_name"),
    ({"toolChoice": {"mode": "TOOL_MODE_REQUIRED"}}, "tool_choice.mode"),
    ({"searchParameters": {"maxSearchResults": 31}}, "search_parameters.max_search_results"),
    ({"searchParameters": {"sources": [{}]}}, "search_parameters.sources[0]"),
    ({"searchParameters": {"sources": [{"rss": {}}]}}, "search_parameters.sources[0].links"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_can_not_be_honoured_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


def test_a_time_out_of_range() -> None:
    asked = request(tools=[{"xSearch": {}}])
    asked.tools[0].x_search.from_date.CopyFrom(Timestamp(seconds=2**60))
    with pytest.raises(BadRequest) as caught:
        XaiChat(SEALER).parse(asked.SerializeToString())
    assert caught.value.param == "tools[0].x_search.from_date"


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x0a\xff", b"{}"])
def test_bytes_that_are_no_message(body: bytes) -> None:
    with pytest.raises(Undecodable):
        XaiChat(SEALER).parse(body)


def test_the_other_requests() -> None:
    compact = pb.chat.CompactContextRequest(model="m", input=[request().messages[0]])
    asked = XaiCompact(SEALER).parse(compact.SerializeToString())
    assert asked.generation.messages[0].text == "hi"
    assert asked.generation.bounds.tokens_max is not None
    with pytest.raises(BadRequest, match="input"):
        XaiCompact(SEALER).parse(pb.chat.CompactContextRequest(model="m").SerializeToString())
    sample = pb.sample.SampleTextRequest(model="m", prompt=["Once"], n=2, max_tokens=4)
    generation = XaiSample(live=True).parse(sample.SerializeToString()).generation
    assert (generation.prompts, generation.choices, generation.live) == (("Once",), 2, True)
    for wrong, param in (
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"], "logprobs": True}, "logprobs"),
    ):
        with pytest.raises(BadRequest) as caught:
            XaiSample().parse(pb.sample.SampleTextRequest(model="m", **wrong).SerializeToString())
        assert caught.value.param == param
    assert tokenize.asked(pb.tokenize.TokenizeTextRequest(model="m", text="t").SerializeToString()) == ("m", "t")
    with pytest.raises(BadRequest, match="name"):
        models.wanted(b"")


def test_embedding_requests() -> None:
    ask = pb.embed.EmbedRequest(model="m", input=[pb.embed.EmbedInput(string="a"), pb.embed.EmbedInput(string="b")])
    assert EmbedAsked(ask.SerializeToString()).request.texts == ("a", "b")
    image = text_format.Parse('model: "m" input { image_url { image_url: "https://x" } }', pb.embed.EmbedRequest())
    for wrong, param in (
        (image, "input[0].image_url"),
        (pb.embed.EmbedRequest(model="m"), "input"),
        (pb.embed.EmbedRequest(model="m", input=[pb.embed.EmbedInput(string="")]), "input[0].string"),
        (pb.embed.EmbedRequest(model="m", input=ask.input, encoding_format=9), "encoding_format"),
    ):
        with pytest.raises(BadRequest) as caught:
            EmbedAsked(wrong.SerializeToString())
        assert caught.value.param == param
