"""Streams as upstreams really send them, each named for its quirk."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core.errors import AtCapacity, BadRequest, ContextTooLong, EngineBroken, EngineUnavailable, JubalError
from jubal.core.events import EngineEvent, ReasoningDelta, TextDelta, ToolCall, TurnEnded, UsageSoFar
from jubal.core.generation import (
    Bounds,
    FunctionTool,
    Generation,
    ImagePart,
    JsonOutput,
    Message,
    NamedTool,
    PastCall,
    Sampling,
    TextPart,
    Tools,
)
from jubal.core.usage import Usage
from jubal.engines.openai_compat import ChatDecoder, _reported, chat_body, retry_delay_s


def decode(*payloads: object, choices: int = 1) -> list[EngineEvent]:
    decoder = ChatDecoder(choices)
    seen: list[EngineEvent] = []
    for payload in payloads:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        seen += decoder.feed(b"data: " + data + b"\n\n")
    return seen + list(decoder.finish())


def text(content: str | None, reason: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}], **more}


STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def test_no_done_but_a_finish_reason_is_a_whole_answer() -> None:
    assert decode(text("a"), STOP) == [TextDelta("a"), TurnEnded(("stop",), None)]


def test_no_usage_is_told_as_unknown_not_as_zero() -> None:
    assert decode(text("a"), STOP, b"[DONE]")[-1] == TurnEnded(("stop",), None)


def test_an_error_that_is_null_is_none() -> None:
    assert decode(text("a", error=None), STOP)[0] == TextDelta("a")


def test_nothing_after_done_counts() -> None:
    assert decode(text("a"), b"[DONE]", text("b")) == [TextDelta("a"), TurnEnded(("stop",), None)]


def test_role_only_and_empty_deltas_are_no_events() -> None:
    seen = decode(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}, text(None), text("a"), STOP
    )
    assert seen == [TextDelta("a"), TurnEnded(("stop",), None)]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_both_names_of_reasoning(field: str) -> None:
    seen = decode({"choices": [{"index": 0, "delta": {field: "hm"}}]}, STOP)
    assert seen[0] == ReasoningDelta("hm")


@pytest.mark.parametrize(
    ("usage", "core"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}, Usage(9, 5)),
        # OpenAI and vLLM: completion holds the reasoning
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "total_tokens": 14,
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(9, 2, None, 3),
        ),
        # xAI: it does not
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "total_tokens": 17,
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(9, 5, None, 3),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 99}},
            Usage(9, 0, 9),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "prompt_tokens_details": {"cached_tokens": 2, "image_tokens": 5},
            },
            Usage(9, 1, 2, 0, 5),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "prompt_tokens_details": {"cached_tokens": 6, "image_tokens": 5},
            },
            Usage(9, 1, 6, 0, 3),
        ),
    ],
)
def test_reasoning_is_taken_out_of_completion_where_it_is_in(usage: object, core: Usage) -> None:
    seen = decode(text("a"), STOP, {"choices": [], "usage": usage}, b"[DONE]")
    assert seen[-1] == TurnEnded(("stop",), core)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -9, "completion_tokens": 5},
        {"prompt_tokens": 9, "completion_tokens": -5},
        {"prompt_tokens": 2**62, "completion_tokens": 5},
        {"prompt_tokens": 9, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": -1}},
    ],
)
def test_counts_that_can_not_be_are_unknown(usage: object) -> None:
    """An upstream that counted below zero would have given its callers credit."""
    timings = {"cache_n": 0, "prompt_n": -6, "predicted_n": 1}
    seen = decode(text("a", timings=timings), STOP, {"choices": [], "usage": usage}, b"[DONE]")
    assert seen == [TextDelta("a"), TurnEnded(("stop",), None)]


def test_a_cached_part_below_zero_is_none() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": -4}}
    seen = decode(text("a"), STOP, {"choices": [], "usage": usage}, b"[DONE]")
    assert seen[-1] == TurnEnded(("stop",), Usage(9, 1, 0))


def test_llama_cpp_timings_become_one_exact_count() -> None:
    timings = {"cache_n": 24, "prompt_n": 6, "predicted_n": 1}
    seen = decode(text("a", timings=timings), text("b", timings=timings), STOP)
    assert [event for event in seen if isinstance(event, UsageSoFar)] == [UsageSoFar(Usage(30, 1, 24))]


def test_call_arguments_in_pieces_become_one_call() -> None:
    def call(**function: object) -> dict[str, object]:
        return {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **function}]}}]}

    seen = decode(
        call(id="call_9", function={"name": "f"}),
        call(function={"arguments": '{"a"'}),
        call(function={"arguments": ":1}"}),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    )
    assert seen == [ToolCall("call_9", "f", '{"a":1}'), TurnEnded(("tool_calls",), None)]


def test_a_surrogate_pair_cut_in_half() -> None:
    first = b'{"choices":[{"index":0,"delta":{"content":"a\\ud83e"}}]}'
    second = b'{"choices":[{"index":0,"delta":{"content":"\\udd8ab"}}]}'
    seen = decode(first, second, STOP)
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == "a\U0001f98ab"
    for event in seen:
        if isinstance(event, TextDelta):
            event.text.encode()  # every piece is Unicode by itself


def test_a_surrogate_pair_cut_in_half_where_an_engine_thinks_or_calls() -> None:
    def said(half: str, **more: object) -> dict[str, object]:
        call = {"index": 0, "id": "call_9", "function": {"arguments": half}}
        return {"choices": [{"index": 0, "delta": {"reasoning_content": half, "tool_calls": [call]}, **more}]}

    seen = decode(said("a\ud83e"), said("\udd8ab", finish_reason="tool_calls"))
    assert "".join(event.text for event in seen if isinstance(event, ReasoningDelta)) == "a\U0001f98ab"
    assert [event.arguments for event in seen if isinstance(event, ToolCall)] == ["a\U0001f98ab"]
    msgspec.json.encode(seen)


@pytest.mark.parametrize("field", ["content", "reasoning_content", "tool_calls", "logprobs"])
def test_no_text_that_is_passed_on_holds_half_a_character(field: str) -> None:
    """It could not be written: a client would wait for the rest of its answer, or get a fault of ours."""
    half = "a\ud83e"
    likely = {"token": half, "logprob": -1.0, "top_logprobs": [{"token": half, "logprob": -1.0}]}
    value = [{"index": 0, "id": half, "function": {"name": half, "arguments": half}}] if field == "tool_calls" else half
    delta = {"content": "x"} if field == "logprobs" else {field: value}
    choice = {"index": 0, "delta": delta, "logprobs": {"content": [likely]}, "finish_reason": "stop"}
    seen = decode({"choices": [choice]})
    assert b"a" in msgspec.json.encode(seen)


def test_no_error_that_is_passed_on_holds_half_a_character() -> None:
    for body in (b'{"error": {"message": "a\\ud83e"}}', b'{"error": "a\\ud83e"}', b'{"message": "a\\ud83e"}'):
        assert "a\ufffd" in _reported(400, body).message


@pytest.mark.parametrize("told", ["inf", "1e999", "1e300"])
def test_a_pause_without_an_end_is_a_day(told: str) -> None:
    assert _reported(503, b"{}", told).retry_after_s == 86_400


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_utf8_cut_between_two_events(cut: int) -> None:
    fox = "\U0001f98a".encode()
    events = [
        b'{"choices":[{"index":0,"delta":{"content":"' + part + b'"}}]}'
        for part in (b"a" + fox[:cut], fox[cut:] + b"b")
    ]
    seen = decode(*events, STOP)
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == "a\U0001f98ab"


@pytest.mark.parametrize(
    "frame",
    [
        {"error": {"message": "boom", "code": 500}},
        {"error": "boom", "code": "internal"},
        {"error": {"message": "boom", "type": "server_error"}, "choices": []},
    ],
)
def test_an_error_frame_ends_the_answer_after_what_came_before(frame: object) -> None:
    decoder = ChatDecoder(1)
    seen = []
    wire = b"data: " + json.dumps(text("a")).encode() + b"\n\ndata: " + json.dumps(frame).encode() + b"\n\n"
    with pytest.raises(EngineBroken, match="boom"):
        seen.extend(decoder.feed(wire))
    assert seen == [TextDelta("a")]


@pytest.mark.parametrize("junk", [b"<html>", b"{", b"[]", b"7", b'{"choices":7}', b"\xff", b"[" * 100_000])
def test_junk_is_a_broken_engine(junk: bytes) -> None:
    with pytest.raises(EngineBroken):
        decode(junk)


def test_a_choice_that_nobody_asked_for() -> None:
    with pytest.raises(EngineBroken):
        decode({"choices": [{"index": 3, "delta": {"content": "a"}}]})


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["choices", "delta", "index", "content", "usage", "error", "x"]), inner, max_size=4)))  # fmt: skip
def test_any_json_is_events_or_a_core_error(tree: object) -> None:
    try:
        decode(json.dumps(tree).encode())
    except JubalError:
        pass


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "bad temperature"}}, BadRequest),
        (
            400,
            {"error": {"type": "exceed_context_size_error", "message": "m", "n_prompt_tokens": 9, "n_ctx": 8}},
            ContextTooLong,
        ),
        (400, {"error": {"code": "context_length_exceeded", "message": "m"}}, ContextTooLong),
        (401, {"error": {"message": "bad key sk-upstream-secret"}}, EngineBroken),
        (404, {"detail": "no model"}, EngineBroken),
        (429, {}, AtCapacity),
        (498, {}, AtCapacity),
        (500, "oops", EngineBroken),
        (503, {"error": "loading"}, EngineUnavailable),
    ],
)
def test_http_errors(status: int, body: object, kind: type[JubalError]) -> None:
    error = _reported(status, json.dumps(body).encode(), "7")
    assert type(error) is kind
    assert "secret" not in error.message, "an upstream's 401 may quote its key"


def test_context_error_has_both_numbers() -> None:
    body = {"error": {"type": "exceed_context_size_error", "message": "m", "n_prompt_tokens": 9000, "n_ctx": 8192}}
    error = _reported(400, json.dumps(body).encode())
    assert "9000" in error.message
    assert "8192" in error.message


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (  # vLLM 0.32
            "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, which"
            " exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
            " (parameter=input_tokens, value=2049)",
            "The prompt has at least 2049 tokens; this model's context window holds 2048.",
        ),
        (
            "This model's maximum context length is 2048 tokens. However, you requested 2060 tokens (2050 in the messages, 10 in"
            " the completion).",
            "you requested 2060 tokens",
        ),
    ],
)
def test_a_context_error_in_words_alone(said: str, told: str) -> None:
    body = {"error": {"message": said, "type": "BadRequestError", "param": "input_tokens", "code": 400}}
    error = _reported(400, json.dumps(body).encode())
    assert (type(error), error.code) == (ContextTooLong, "context_length_exceeded")
    assert told in error.message


def test_a_call_that_was_named_ends_with_tool_calls_whatever_the_engine_says() -> None:
    """vLLM and OpenAI say `stop` there."""
    call = {"id": "chatcmpl-tool-b26e", "type": "function", "index": 0, "function": {"name": "get_weather"}}
    frames = [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": None, "tool_calls": [call]}, "finish_reason": None, "token_ids": None},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, "finish_reason": None},
        {"index": 0, "delta": {"content": ""}, "finish_reason": "stop", "stop_reason": None},
    ]
    decoder = ChatDecoder(1)
    stream = b"".join(b"data: " + json.dumps({"choices": [frame]}).encode() + b"\n\n" for frame in frames)
    events = [*decoder.feed(stream + b"data: [DONE]\n\n")]
    assert events == [ToolCall("chatcmpl-tool-b26e", "get_weather", "{}", 0), TurnEnded(("tool_calls",), None)]


def test_the_body_has_what_was_asked_and_nothing_else() -> None:
    turn = Generation(
        "m",
        (
            Message("user", (TextPart("look"), ImagePart("https://x/y.png", "low"))),
            Message("assistant", (), calls=(PastCall("c1", "f", "{}"),)),
            Message("tool", (TextPart("ok"),), tool_call_id="c1"),
        ),
        Sampling(temperature=0.0, stop=("\n",), seed=7),
        Bounds(tokens_max=5),
        choices=2,
    )
    assert json.loads(chat_body(turn, extra={"cache_prompt": True})) == {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "ok", "tool_call_id": "c1"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 7,
        "stop": ["\n"],
        "n": 2,
        "cache_prompt": True,
    }


def test_tools_and_output_are_sent_as_they_were_asked_for() -> None:
    turn = Generation(
        "m",
        (Message("user", (TextPart("hi"),)),),
        tools=Tools(
            (FunctionTool("f", "d", '{"type":"object"}', True), FunctionTool("g")), NamedTool("f"), parallel=False
        ),
        output=JsonOutput('{"type":"object"}', "n"),
        live=False,
    )
    body = json.loads(chat_body(turn))
    assert body["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
        },
        {
            "type": "function",
            "function": {"name": "g", "description": "", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["parallel_tool_calls"] is False
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    assert "stream" not in body


def test_a_whole_answer_is_the_same_events() -> None:
    message = {
        "role": "assistant",
        "content": "hi",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    assert list(ChatDecoder(1).whole(json.dumps(body).encode())) == [
        ReasoningDelta("hm"),
        TextDelta("hi"),
        ToolCall("c1", "f", "{}"),
        TurnEnded(("tool_calls",), Usage(5, 2)),
    ]


def test_retry_delays() -> None:
    assert [retry_delay_s(attempt, None, 0.0) for attempt in range(3)] == [1.0, 2.0, 4.0]
    assert retry_delay_s(0, None, 1.0) == 2.0
    assert retry_delay_s(0, 5.0, 0.0) == 5.0
    assert retry_delay_s(0, 3600.0, 0.0) is None


@pytest.mark.parametrize(
    ("last", "stop"),
    [
        pytest.param({"stop_reason": "END"}, "END", id="vllm"),
        pytest.param({"stop_reason": 2}, None, id="vllm, a token's number"),
        pytest.param({"stop_reason": None}, None, id="vllm, the model's own end"),
        pytest.param({"matched_stop": "\n\n"}, "\n\n", id="sglang"),
        pytest.param({"matched_stop": 151645}, None, id="sglang, a token's number"),
        pytest.param({"stop_reason": "end_turn"}, None, id="a gateway's own word, which nobody asked to stop at"),
        pytest.param({}, None, id="openai, which does not tell"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_which_stop_string_ended_an_answer(last: dict[str, object], stop: str | None, whole: bool) -> None:
    decoder = ChatDecoder(1, stops=("END", "\n\n"))
    choice = {"index": 0, "finish_reason": "stop", **last}
    if whole:
        events = list(decoder.whole(json.dumps({"choices": [{**choice, "message": {"content": "a"}}]}).encode()))
    else:
        frames = (text("a"), {"choices": [{**choice, "delta": {}}]})
        events = [event for frame in frames for event in decoder.feed(b"data: %b\n\n" % json.dumps(frame).encode())]
        events += decoder.finish()
    assert events == [TextDelta("a"), TurnEnded(("stop",), None, () if stop is None else (stop,))]


def test_llama_cpp_tells_its_stopping_word_beside_the_choices() -> None:
    decoder = ChatDecoder(1, stops=(" 7",))
    end = {**STOP, "__verbose": {"index": 0, "stop_type": "word", "stopping_word": " 7", "prompt": "1, 2"}}
    payloads = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in (text("a"), end))
    assert [*decoder.feed(payloads), *decoder.finish()][-1] == TurnEnded(("stop",), None, (" 7",))


def test_only_the_choice_that_met_it_has_a_stop_string() -> None:
    decoder = ChatDecoder(2, stops=("END",))
    ends = {
        "choices": [
            {"index": 0, "delta": {"content": "a"}, "finish_reason": "length", "stop_reason": None},
            {"index": 1, "delta": {"content": "b"}, "finish_reason": "stop", "stop_reason": "END"},
        ]
    }
    events = [*decoder.feed(b"data: %b\n\n" % json.dumps(ends).encode()), *decoder.finish()]
    assert events[-1] == TurnEnded(("length", "stop"), None, (None, "END"))
