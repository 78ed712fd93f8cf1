"""The chat parser: what it takes, what it refuses, and that nothing at all makes it fall over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core.errors import BadRequest
from jubal.core.generation import ImagePart, JsonOutput, NamedTool, PastCall, TextPart
from jubal.core.server_tools import (
    CodeExecution,
    CollectionsSearch,
    Mcp,
    ServerTool,
    UserLocation,
    WebSearch,
    XSearch,
)
from jubal.wire import openai_errors
from jubal.wire.openai_chat import ChatAsked, OpenAIChat

DIALECT = OpenAIChat()
HI = [{"role": "user", "content": "hi"}]


def parse(**fields: Any) -> ChatAsked:
    return DIALECT.parse(json.dumps({"model": "grok-4", "messages": HI, **fields}).encode())


def test_everything_at_once() -> None:
    asked = parse(
        messages=[
            {"role": "assistant", "content": "first, before any user: any order"},
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "42", "tool_call_id": "c"},
            {"role": "function", "name": "f", "content": "old"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
        ],
        temperature=0,
        max_tokens=9,
        max_completion_tokens=7,
        top_p=1,
        frequency_penalty=2,
        presence_penalty=-2,
        stop=["a", "b"],
        seed=1,
        n=3,
        stream=True,
        stream_options={"include_usage": True},
        user="u",
        tools=[],
    )  # fmt: skip
    generation = asked.generation
    assert [message.role for message in generation.messages] == [
        "assistant",
        "system",
        "developer",
        "assistant",
        "tool",
        "tool",
        "user",
    ]
    assert generation.messages[2].text == "ab"
    assert generation.messages[3].calls == (PastCall("c", "f", "{}"),)
    assert generation.messages[6].parts == (ImagePart("data:image/png;base64,AA=="),)
    assert generation.sampling.stop == ("a", "b")
    assert generation.bounds.tokens_max == 7
    assert generation.choices == 3
    assert generation.live


def test_nulls_mean_unset_and_unknown_fields_are_ignored() -> None:
    names = "temperature max_tokens max_completion_tokens top_p frequency_penalty presence_penalty stop seed n stream stream_options user tools tool_choice response_format reasoning_effort logprobs top_logprobs logit_bias deferred search_parameters"
    with_nulls = parse(**dict.fromkeys(names.split()), metadata={"a": 1}, made_up=[1])
    assert with_nulls.generation == parse().generation
    assert not with_nulls.generation.live


def test_empty_content_is_text() -> None:
    assert parse(messages=[{"role": "user", "content": ""}]).generation.messages[0].parts == (TextPart(""),)


def test_the_prompt_keeps_every_character() -> None:
    odd = "\x00\u2028\U0001f98a\ufffe"
    assert parse(messages=[{"role": "user", "content": odd}]).generation.messages[0].text == odd


def test_tools_and_output() -> None:
    weather = {
        "name": "get_weather",
        "description": "d",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
    }
    either = {"name": "e", "parameters": {"anyOf": [{"type": "object"}, {"properties": {}}]}}
    asked = parse(
        tools=[{"type": "function", "function": weather}, {"type": "function", "function": either}],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
        },
    ).generation
    assert [function.name for function in asked.tools.functions] == ["get_weather", "e"]
    assert json.loads(asked.tools.functions[0].parameters or "") == weather["parameters"]
    assert asked.tools.choice == NamedTool("get_weather")
    assert not asked.tools.parallel
    assert asked.output == JsonOutput('{"type":"object"}', "n")
    assert parse(response_format={"type": "json_object"}).generation.output == JsonOutput()
    assert parse(response_format={"type": "text"}, tool_choice="none").generation == parse().generation


@pytest.mark.parametrize(
    ("fields", "server", "choice"),
    [
        ({"tools": [{"type": "web_search"}]}, (WebSearch(),), "auto"),
        ({"tools": [{"type": "web_search", "filters": {"excluded_domains": ["A.com"]}, "enable_image_understanding": True}]}, (WebSearch(excluded_domains=("a.com",), images=True),), "auto"),
        ({"tools": [{"type": "web_search", "user_location": {"type": "approximate", "country": "no", "city": "Oslo"}}]}, (WebSearch(location=UserLocation("NO", city="Oslo")),), "auto"),
        ({"tools": [{"type": "x_search", "allowed_x_handles": ["@xai"], "to_date": "2026-01-31"}], "tool_choice": "required"}, (XSearch(("xai",), to_date="2026-01-31"),), "required"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}, {"type": "x_search"}]}, (CodeExecution(), XSearch()), "auto"),
        ({"tools": [{"type": "mcp", "server_label": "box", "server_url": "https://x", "allowed_tool_names": ["t"], "authorization": "s"}]}, (Mcp("box", "https://x", allowed=("t",), authorization="s"),), "auto"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["c1"]}]}, (CollectionsSearch(("c1",)),), "auto"),
        ({"search_parameters": {}}, (WebSearch(), XSearch()), "auto"),
        ({"search_parameters": {"mode": "off"}}, (), "auto"),
        ({"search_parameters": {"mode": "on", "max_search_results": 3, "from_date": "2026-01-01", "sources": [{"type": "web", "country": "NO"}, {"type": "news", "excluded_websites": ["b.com"]}]}}, (WebSearch(excluded_domains=("b.com",), location=UserLocation("NO"), results_max=3, from_date="2026-01-01"),), "required"),
        ({"search_parameters": {"sources": [{"type": "x", "x_handles": ["a"], "post_favorite_count": 5}]}}, (XSearch(("a",), favorites_min=5),), "auto"),
        ({"search_parameters": {"sources": [{"type": "rss", "links": ["https://a.com/feed"]}]}}, (WebSearch(links=("https://a.com/feed",)),), "auto"),
        ({"web_search_options": {}}, (WebSearch(),), "auto"),
        ({"web_search_options": {}, "tools": [{"type": "web_search", "enable_image_search": True}]}, (WebSearch(image_search=True),), "auto"),
    ],
)  # fmt: skip
def test_server_tools(fields: dict[str, Any], server: tuple[ServerTool, ...], choice: str) -> None:
    tools = parse(**fields).generation.tools
    assert tools.server == server
    assert tools.choice == choice


def test_turns_and_citations() -> None:
    asked = parse(max_turns=3, include=["inline_citations", "unknown"]).generation
    assert asked.bounds.turns_max == 3
    assert asked.inline_citations


BAD: list[tuple[dict[str, Any], str, int]] = [
    ({"model": None}, "model", 422),
    ({"model": 7}, "model", 422),
    ({"model": ""}, "model", 400),
    ({"messages": []}, "messages", 400),
    ({"functions": [{"name": "f"}]}, "functions", 400),
    ({"messages": "hi"}, "messages", 422),
    ({"messages": [7]}, "messages[0]", 422),
    ({"messages": [{"content": "x"}]}, "messages[0].role", 422),
    ({"messages": [*HI, {"role": "owner", "content": "x"}]}, "messages[1].role", 422),
    ({"messages": [{"role": "user"}]}, "messages[0].content", 422),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", 422),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", 422),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", 400),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url", 422),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}, "messages[0].content[0].image_url.url", 400),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x", "detail": "max"}}]}]}, "messages[0].content[0].image_url.detail", 400),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}]}, "messages[0].tool_calls[0].function.name", 400),
    ({"temperature": "hot"}, "temperature", 422),
    ({"temperature": True}, "temperature", 422),
    ({"temperature": 2.1}, "temperature", 400),
    ({"temperature": -0.1}, "temperature", 400),
    ({"top_p": 1.1}, "top_p", 400),
    ({"top_p": -1}, "top_p", 400),
    ({"max_tokens": 0}, "max_tokens", 400),
    ({"max_tokens": -5}, "max_tokens", 400),
    ({"max_tokens": 1.5}, "max_tokens", 422),
    ({"max_completion_tokens": 0}, "max_completion_tokens", 400),
    ({"frequency_penalty": 2.5}, "frequency_penalty", 400),
    ({"presence_penalty": -2.5}, "presence_penalty", 400),
    ({"n": 0}, "n", 400),
    ({"n": 129}, "n", 400),
    ({"n": "two"}, "n", 422),
    ({"seed": 2**63}, "seed", 400),
    ({"seed": "x"}, "seed", 422),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", 400),
    ({"stop": ""}, "stop", 400),
    ({"stop": [""]}, "stop", 400),
    ({"stop": 7}, "stop", 422),
    ({"stream": "yes"}, "stream", 422),
    ({"stream_options": {"include_usage": True}}, "stream_options", 400),
    ({"stream": True, "stream_options": {"include_usage": "x"}}, "stream_options.include_usage", 422),
    ({"user": 7}, "user", 422),
    ({"tools": [{"type": "function"}]}, "tools[0].function", 422),
    ({"tools": [{"type": "telepathy"}]}, "tools[0].type", 400),
    ({"tools": [{"type": "web_search", "allowed_domains": ["a.com"], "excluded_domains": ["b.com"]}]}, "tools[0]", 400),
    ({"tools": [{"type": "web_search", "filters": {"allowed_domains": ["a.com"] * 6}}]}, "tools[0].filters.allowed_domains", 400),
    ({"tools": [{"type": "web_search", "allowed_domains": ["https://a.com"]}]}, "tools[0].allowed_domains", 400),
    ({"tools": [{"type": "web_search", "allowed_domains": "a.com"}]}, "tools[0].allowed_domains", 422),
    ({"tools": [{"type": "web_search", "user_location": {"country": "Norway"}}]}, "tools[0].user_location.country", 400),
    ({"tools": [{"type": "x_search", "allowed_x_handles": ["a b"]}]}, "tools[0].allowed_x_handles", 400),
    ({"tools": [{"type": "x_search", "excluded_x_handles": ["a"] * 21}]}, "tools[0].excluded_x_handles", 400),
    ({"tools": [{"type": "x_search", "from_date": "yesterday"}]}, "tools[0].from_date", 400),
    ({"tools": [{"type": "x_search", "from_date": "2026-02-01", "to_date": "2026-01-01"}]}, "tools[0].to_date", 400),
    ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, "tools[0].container", 400),
    ({"tools": [{"type": "mcp"}]}, "tools[0].server_url", 422),
    ({"tools": [{"type": "mcp", "server_url": "ftp://x"}]}, "tools[0].server_url", 400),
    ({"tools": [{"type": "mcp", "server_url": "https://x", "server_label": "a.b"}]}, "tools[0].server_label", 400),
    ({"tools": [{"type": "mcp", "server_url": "https://x", "headers": {"a b": "c"}}]}, "tools[0].headers", 400),
    ({"tools": [{"type": "mcp", "server_url": "https://x", "require_approval": "always"}]}, "tools[0].require_approval", 400),
    ({"tools": [{"type": "mcp", "server_url": "https://x", "connector_id": "c"}]}, "tools[0].connector_id", 400),
    ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].vector_store_ids", 400),
    ({"max_turns": 0}, "max_turns", 400),
    ({"max_turns": "many"}, "max_turns", 422),
    ({"include": "all"}, "include", 422),
    ({"web_search_options": {"user_location": {"approximate": {"country": "x"}}}}, "web_search_options.user_location.country", 400),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", 400),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]}, "tools[0].function.parameters", 400),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters", 422),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools", 400),
    ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(351)]}, "tools", 400),
    ({"tool_choice": "required"}, "tool_choice", 400),
    ({"tool_choice": "sometimes"}, "tool_choice", 400),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", 400),
    ({"tool_choice": {"type": "function"}}, "tool_choice", 400),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", 422),
    ({"response_format": {"type": "xml"}}, "response_format.type", 400),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", 422),
    ({"logprobs": 1}, "logprobs", 422),
    ({"reasoning_effort": "much"}, "reasoning_effort", 400),
    ({"reasoning_effort": 3}, "reasoning_effort", 422),
    ({"top_logprobs": 3}, "top_logprobs", 400),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", 400),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", 400),
    ({"logit_bias": {"x": 1}}, "logit_bias", 400),
    ({"logit_bias": {"5": 101}}, "logit_bias", 400),
    ({"logit_bias": {"5": "a"}}, "logit_bias[...]", 422),
    ({"deferred": True, "stream": True}, "deferred", 400),
    ({"deferred": "yes"}, "deferred", 422),
    ({"search_parameters": {"mode": "maybe"}}, "search_parameters.mode", 400),
    ({"search_parameters": {"max_search_results": 31}}, "search_parameters.max_search_results", 400),
    ({"search_parameters": {"from_date": "31.1.2026"}}, "search_parameters.from_date", 400),
    ({"search_parameters": {"sources": [{"type": "tv"}]}}, "search_parameters.sources[0].type", 400),
    ({"search_parameters": {"sources": [{"type": "rss"}]}}, "search_parameters.sources[0].links", 400),
    ({"search_parameters": {"sources": [{"type": "x", "post_view_count": -1}]}}, "search_parameters.sources[0].post_view_count", 400),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "status"), BAD, ids=[f"{param}-{n}" for n, (_, param, _) in enumerate(BAD)]
)
def test_bad_input_names_the_field(fields: dict[str, Any], param: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    reply = openai_errors.reply(caught.value)
    error = json.loads(reply.body)["error"]
    assert (error["param"], reply.status, error["type"]) == (param, status, "invalid_request_error")
    assert param in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"model":"\\ud800","messages":[]}',
        b"null",
        b"[]",
        b'"x"',
        b"{}",
    ],
)
def test_what_is_no_request_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        DIALECT.parse(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "type",
                    "text",
                    "image_url",
                    "url",
                    "name",
                    "tool_calls",
                    "function",
                    "arguments",
                    "id",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
fields = st.sampled_from(
    [
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "seed",
        "n",
        "stream",
        "stream_options",
        "user",
        "tools",
        "logprobs",
        "x",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(fields, values, max_size=5), st.booleans())
def test_any_json_is_a_generation_or_a_bad_request(body: dict[str, Any], filled: bool) -> None:
    if filled:
        body = {"model": "m", "messages": HI, **body}
    try:
        asked = DIALECT.parse(json.dumps(body).encode())
    except BadRequest as error:
        assert 400 <= openai_errors.reply(error).status < 500
    else:
        assert asked.generation.messages


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_generation_or_a_bad_request(body: bytes) -> None:
    try:
        DIALECT.parse(body)
    except BadRequest:
        pass
