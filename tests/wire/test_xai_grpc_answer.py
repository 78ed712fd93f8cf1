"""xAI's gRPC API, answers: events to chunks, and to whole answers that are what the chunks add up to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format

from jubal.core import errors as core
from jubal.core.embedding import Embeddings, pack
from jubal.core.errors import JubalError
from jubal.core.events import (
    Applied,
    Citation,
    Event,
    Finished,
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
from jubal.core.fold import Completion, Folder
from jubal.core.server_tools import Source
from jubal.core.usage import Usage
from jubal.records.sealing import FernetSealer
from jubal.wire.xai_grpc import errors, pb
from jubal.wire.xai_grpc.answer import usage_of
from jubal.wire.xai_grpc.chat import ChatAsked, XaiChat, XaiCompact
from jubal.wire.xai_grpc.embed import EmbedAsked
from jubal.wire.xai_grpc.sample import XaiSample

SEALER = FernetSealer(b"secret")
A = Source("https://a.test/", "A")
X = Source("https://x.com/xai/status/1", "X")
START = Started("id-1", 1_790_000_000, "grok-4", "fp_0000000000")
AGENTIC: list[Event] = [
    START,
    ReasoningDelta("Let me look."),
    TextDelta("Looking. "),
    ServerToolCall("w1", "web_search", "web_search", '{"query":"x"}'),
    ServerToolCall("c1", "code_execution", "code_execution", '{"code":"1"}'),
    UsageSoFar(Usage(10, 4, 2, 3)),
    ServerToolResult("w1", "web_search", "web_search", True, "[1] A", 0.5, (A,)),
    ServerToolResult("c1", "code_execution", "code_execution", False, "The call failed: off", 0.1),
    TextDelta("See [[1]](https://a.test/)"),
    Citation(1, A, 13, 35),
    TextDelta(" and [[2]](https://x.com/xai/status/1)"),
    Citation(2, X, 40, 73),
    UsageSoFar(Usage(30, 9, 2, 3)),
    Finished(("stop",), Usage(30, 9, 2, 3), 77, False, (A, X), (("web_search", 1),)),
]
ASSISTANT, TOOL = "ROLE_ASSISTANT", "ROLE_TOOL"


def asked(**fields: Any) -> ChatAsked:
    whole = {"model": "grok-4", "messages": [{"role": "ROLE_USER", "content": [{"text": "hi"}]}], **fields}
    body = json_format.ParseDict(whole, pb.chat.GetCompletionsRequest()).SerializeToString()
    return XaiChat(SEALER, live=True).parse(body)


def chunks(events: list[Event], **fields: Any) -> list[Any]:
    """As when each event is rendered before the next comes."""
    renderer = asked(**fields).renderer()
    return [pb.chat.GetChatCompletionChunk.FromString(frame) for event in events for frame in renderer.frames([event])]


def completion(events: list[Event]) -> Completion:
    folder = Folder()
    for event in events:
        folder.feed(event)
    assert folder.completion is not None
    return folder.completion


def whole(events: list[Event], **fields: Any) -> Any:
    return pb.chat.GetChatCompletionResponse.FromString(asked(**fields).whole(completion(events)))


def told(chunk: Any) -> list[tuple[int, str, str]]:
    """Index, role and what is new of each output."""
    return [
        (
            output.index,
            pb.chat.MessageRole.Name(output.delta.role),
            output.delta.content
            or output.delta.reasoning_content
            or ",".join(f"{call.function.name}:{call.status}" for call in output.delta.tool_calls)
            or "".join(f"[{cited.id}]" for cited in output.delta.citations)
            or pb.sample.FinishReason.Name(output.finish_reason),
        )
        for output in chunk.outputs
    ]


def test_a_plain_answer() -> None:
    made = chunks([START, TextDelta("Par"), TextDelta("is"), Finished(("stop",), Usage(5, 2, 1), 12)])
    assert [told(chunk) for chunk in made] == [
        [(0, ASSISTANT, "Par")],
        [(0, ASSISTANT, "is")],
        [(0, ASSISTANT, "REASON_STOP")],
    ]
    assert {(chunk.id, chunk.model, chunk.created.seconds, chunk.system_fingerprint) for chunk in made} == {
        ("id-1", "grok-4", 1_790_000_000, "fp_0000000000")
    }
    assert [chunk.usage.completion_tokens for chunk in made] == [1, 2, 2], "running, then exact"
    last = made[-1].usage
    assert (last.prompt_tokens, last.total_tokens, last.cached_prompt_text_tokens, last.cost_in_usd_ticks) == (
        5,
        7,
        1,
        12,
    )
    assert not any(chunk.usage.HasField("cost_in_usd_ticks") for chunk in made[:-1])


@pytest.mark.parametrize(
    ("tier", "wanted", "given", "told"),
    [
        ("SERVICE_TIER_UNSPECIFIED", False, False, 0),
        ("SERVICE_TIER_DEFAULT", False, False, 1),
        ("SERVICE_TIER_PRIORITY", True, False, 1),
        ("SERVICE_TIER_PRIORITY", True, True, 2),
    ],
)
def test_the_service_tier_that_was_given_is_told(tier: str, wanted: bool, given: bool, told: int) -> None:
    assert asked(service_tier=tier).generation.priority is wanted
    events = [replace(START, applied=Applied(priority=given)), TextDelta("a"), Finished(("stop",), Usage(5, 2))]
    assert {chunk.service_tier for chunk in chunks(events, service_tier=tier)} == {told}
    assert whole(events, service_tier=tier).service_tier == told


def test_an_agents_answer_is_a_transcript() -> None:
    made = chunks(AGENTIC)
    assert [told(chunk)[0] for chunk in made] == [
        (0, ASSISTANT, "Let me look."),
        (0, ASSISTANT, "Looking. "),
        (0, ASSISTANT, "web_search:0"),
        (0, ASSISTANT, "code_execution:0"),
        (0, ASSISTANT, "REASON_TOOL_CALLS"),
        (1, TOOL, "web_search:1"),
        (2, TOOL, "code_execution:3"),
        (3, ASSISTANT, "See [[1]](https://a.test/)"),
        (3, ASSISTANT, "[1]"),
        (3, ASSISTANT, " and [[2]](https://x.com/xai/status/1)"),
        (3, ASSISTANT, "[2]"),
        (3, ASSISTANT, "REASON_STOP"),
    ]
    call = made[2].outputs[0].delta.tool_calls[0]
    assert (call.id, call.type, call.function.arguments) == (
        "w1",
        pb.chat.TOOL_CALL_TYPE_WEB_SEARCH_TOOL,
        '{"query":"x"}',
    )
    assert made[6].outputs[0].delta.tool_calls[0].error_message == "The call failed: off"
    assert [list(chunk.citations) for chunk in made if chunk.citations] == [[A.url, X.url]], "once, at the end"
    assert made[-1].citations
    usage = made[-1].usage
    assert list(usage.server_side_tools_used) == [pb.usage.SERVER_SIDE_TOOL_WEB_SEARCH]
    assert (usage.reasoning_tokens, usage.total_tokens, usage.num_sources_used) == (3, 42, 2)
    assert made[5].usage.prompt_tokens == 10, "as UsageSoFar told"
    first, second = made[8].outputs[0].delta.citations[0], made[10].outputs[0].delta.citations[0]
    text = "See [[1]](https://a.test/) and [[2]](https://x.com/xai/status/1)"
    assert text[first.start_index : first.end_index] == "[[1]](https://a.test/)"
    assert first.web_citation.url == A.url
    assert text[second.start_index : second.end_index] == "[[2]](https://x.com/xai/status/1)"
    assert second.x_citation.url == X.url


@pytest.mark.parametrize("include", [[], ["INCLUDE_OPTION_WEB_SEARCH_CALL_OUTPUT", "INCLUDE_OPTION_CODE_EXECUTION_CALL_OUTPUT"]])  # fmt: skip
@pytest.mark.parametrize("sealed", [False, True])
def test_a_whole_answer_is_what_its_chunks_add_up_to(include: list[str], sealed: bool) -> None:
    """As the SDK adds them up."""
    fields = {"include": include, "useEncryptedContent": sealed}
    answer = whole(AGENTIC, **fields)
    parts: dict[int, dict[str, Any]] = {}
    for chunk in chunks(AGENTIC, **fields):
        for output in chunk.outputs:
            part = parts.setdefault(
                output.index, {"content": "", "reasoning": "", "sealed": "", "calls": [], "cited": 0}
            )
            part["content"] += output.delta.content
            part["reasoning"] += output.delta.reasoning_content
            part["sealed"] += (
                SEALER.open(output.delta.encrypted_content) or "" if output.delta.encrypted_content else ""
            )
            part["calls"] += [call.id for call in output.delta.tool_calls]
            part["cited"] += len(output.delta.citations)
            part["role"], part["finish"] = output.delta.role, output.finish_reason
    assert [output.index for output in answer.outputs] == sorted(parts) == [0, 1, 2, 3]
    for output in answer.outputs:
        message = output.message
        assert {
            "content": message.content,
            "reasoning": message.reasoning_content,
            "sealed": SEALER.open(message.encrypted_content) if message.encrypted_content else "",
            "calls": [call.id for call in message.tool_calls],
            "cited": len(message.citations),
            "role": message.role,
            "finish": output.finish_reason,
        } == parts[output.index]
    assert [call.status for call in answer.outputs[0].message.tool_calls] == [
        pb.chat.TOOL_CALL_STATUS_COMPLETED,
        pb.chat.TOOL_CALL_STATUS_FAILED,
    ]
    assert list(answer.citations) == [A.url, X.url]


def test_outputs_of_tools_are_told_as_wished() -> None:
    def outputs(**fields: Any) -> list[tuple[str, str]]:
        found = whole(AGENTIC, **fields).outputs[1:3]
        return [(one.message.content, SEALER.open(one.message.encrypted_content) or "") for one in found]

    failed = "The call failed: off"
    assert outputs() == [("", ""), ("", "")]
    assert outputs(include=["INCLUDE_OPTION_WEB_SEARCH_CALL_OUTPUT"]) == [("", "[1] A"), ("", "")]
    assert outputs(include=["INCLUDE_OPTION_CODE_EXECUTION_CALL_OUTPUT"]) == [("", ""), (failed, "")]
    assert outputs(useEncryptedContent=True) == [("", "[1] A"), ("", failed)]
    thought = whole(AGENTIC, useEncryptedContent=True).outputs[0].message.encrypted_content
    assert SEALER.open(thought) == "Let me look."


def test_verbose_streams_tell_of_usage_alone() -> None:
    made = chunks(AGENTIC, include=["INCLUDE_OPTION_VERBOSE_STREAMING"])
    assert [chunk.usage.total_tokens for chunk in made if not chunk.outputs] == [17, 42]


def test_client_calls() -> None:
    call = ToolCall("call_1", "f", "{}")
    made = chunks([START, call, Finished(("tool_calls",), Usage(5, 2), 0)])
    assert [told(chunk)[0] for chunk in made] == [(0, ASSISTANT, "f:1"), (0, ASSISTANT, "REASON_TOOL_CALLS")]
    assert made[0].outputs[0].delta.tool_calls[0].type == pb.chat.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL
    assert made[-1].usage.HasField("cost_in_usd_ticks"), "free is a cost too"


def test_calls_of_both_sides_end_without_an_empty_output() -> None:
    events: list[Event] = [
        START,
        ServerToolCall("w1", "web_search", "web_search", "{}"),
        ToolCall("mine", "f", "{}"),
        ServerToolResult("w1", "web_search", "web_search", True, "x", 0.1),
        Finished(("tool_calls",), Usage(5, 2), 0),
    ]
    answer = whole(events)
    assert [(one.index, one.message.role, one.finish_reason) for one in answer.outputs] == [
        (0, pb.chat.ROLE_ASSISTANT, pb.sample.REASON_TOOL_CALLS),
        (1, pb.chat.ROLE_TOOL, pb.sample.REASON_INVALID),
    ]
    assert chunks(events)[-1].usage.total_tokens == 7


def test_a_turn_limit_after_a_tool() -> None:
    events = [*AGENTIC[:8], Finished(("turn_limit",), Usage(1, 1), None)]
    assert told(chunks(events)[-1]) == [(3, ASSISTANT, "REASON_MAX_LEN")]
    assert not chunks(events)[-1].usage.HasField("cost_in_usd_ticks")


def test_several_choices_and_probabilities() -> None:
    likely = (TokenLogprob(Likely("a", -0.5, b"a"), (Likely("a", -0.5), Likely("é", -1.5))),)
    events: list[Event] = [
        START,
        TextDelta("a", 0, likely),
        TextDelta("b", 1),
        Finished(("stop", "length"), Usage(5, 2), 1),
    ]
    answer = whole(events, n=2)
    assert [(one.index, one.message.content, one.finish_reason) for one in answer.outputs] == [
        (0, "a", pb.sample.REASON_STOP),
        (1, "b", pb.sample.REASON_MAX_LEN),
    ]
    [token] = answer.outputs[0].logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("a", -0.5, b"a")
    assert [(one.token, one.bytes) for one in token.top_logprobs] == [("a", b"a"), ("é", "é".encode())]
    made = chunks(events, n=2)
    assert told(made[-1]) == [(0, ASSISTANT, "REASON_STOP"), (1, ASSISTANT, "REASON_MAX_LEN")]
    assert len(made[0].outputs[0].logprobs.content) == 1


def test_what_waited_together_shares_a_chunk() -> None:
    likely = (TokenLogprob(Likely("b", -1)),)
    events: list[Event] = [START, TextDelta("a"), TextDelta("b", 0, likely), TextDelta("c", 1), ReasoningDelta("d"), TextDelta("e")]  # fmt: skip
    frames = asked(n=2).renderer().frames(events)
    made = [pb.chat.GetChatCompletionChunk.FromString(frame) for frame in frames]
    assert [told(chunk)[0][::2] for chunk in made] == [(0, "ab"), (1, "c"), (0, "d"), (0, "e")]
    assert made[0].outputs[0].logprobs.content[0].token == "b"
    assert made[0].usage.completion_tokens == 4, "all that is known counts"


def test_settings_echo_and_hide_secrets() -> None:
    mcp = {
        "mcp": {
            "serverLabel": "m",
            "serverUrl": "https://m.test",
            "authorization": "SECRET",
            "extraHeaders": {"k": "SECRET"},
        }
    }
    request = asked(
        temperature=0.5, maxTokens=7, storeMessages=True, tools=[mcp], user="u", reasoningEffort="EFFORT_LOW",
        responseFormat={"formatType": "FORMAT_TYPE_JSON_OBJECT"}, include=["INCLUDE_OPTION_INLINE_CITATIONS"],
    )  # fmt: skip
    body = request.whole(completion([START, TextDelta("a"), Finished(("stop",), Usage(1, 1), 1)]))
    settings = pb.chat.GetChatCompletionResponse.FromString(body).settings
    assert (settings.temperature, settings.max_tokens, settings.store_messages, settings.user) == (0.5, 7, True, "u")
    assert settings.parallel_tool_calls
    assert settings.reasoning_effort == pb.chat.EFFORT_LOW
    assert settings.response_format.format_type == pb.chat.FORMAT_TYPE_JSON_OBJECT
    assert settings.tools[0].mcp.server_url == "https://m.test"
    assert not settings.HasField("top_p")
    assert b"SECRET" not in body
    assert b"SECRET" not in request.record(completion([START, TextDelta("a"), Finished(("stop",), Usage(1, 1), 1)]))


def test_settings_that_were_left_open_are_told_as_they_were_decided() -> None:
    decided = Started("id-1", 1, "grok-4", "fp_0", Applied(0.5, 0.75, "high"))
    for start, fields, told in (
        (decided, {}, (0.5, 0.75, pb.chat.EFFORT_HIGH)),
        (decided, {"reasoningEffort": "EFFORT_XHIGH"}, (0.5, 0.75, pb.chat.EFFORT_XHIGH)),
    ):
        body = asked(**fields).whole(completion([start, TextDelta("a"), Finished(("stop",), Usage(1, 1), 1)]))
        settings = pb.chat.GetChatCompletionResponse.FromString(body).settings
        assert (settings.temperature, settings.top_p, settings.reasoning_effort) == told


def test_a_kept_answer_is_gone_on_from_with_what_was_hidden() -> None:
    record = asked(storeMessages=True).record(completion(AGENTIC))
    response = pb.chat.GetChatCompletionResponse.FromString(XaiChat(SEALER).shown(record))
    assert response.outputs[1].message.content == "", "nobody asked to include it"
    after = asked(previousResponseId="id-1")
    assert after.previous == "id-1"
    after.go_on_from(record)
    roles = [(one.role, one.text, tuple(call.name for call in one.calls)) for one in after.generation.messages]
    assert roles == [
        ("user", "hi", ()),
        ("assistant", "Looking. ", ("web_search", "code_execution")),
        ("tool", "[1] A", ()),
        ("tool", "The call failed: off", ()),
        ("assistant", "See [[1]](https://a.test/) and [[2]](https://x.com/xai/status/1)", ()),
        ("user", "hi", ()),
    ]
    again = XaiChat(SEALER).parse(after.body())
    assert again.previous is None
    assert again.generation.messages == after.generation.messages, "a deferred request needs no kept answer any more"


def test_a_compaction() -> None:
    ask = pb.chat.CompactContextRequest(
        model="m", input=[pb.chat.Message(role=1, content=[pb.chat.Content(text="a")])] * 3
    )
    asked = XaiCompact(SEALER).parse(ask.SerializeToString())
    done = completion([START, TextDelta("sum"), Finished(("stop",), Usage(9, 1), 3)])
    answer = pb.chat.CompactContextResponse.FromString(asked.whole(done))
    assert SEALER.open(answer.encrypted_content) == "sum"
    assert (answer.dropped_message_count, answer.usage.prompt_tokens) == (3, 9)


def test_samples() -> None:
    events: list[Event] = [START, TextDelta("a"), TextDelta("b", 1), Finished(("stop", "length"), Usage(5, 2), 1)]
    parsed = XaiSample(live=True).parse(pb.sample.SampleTextRequest(model="m", prompt=["p"], n=2).SerializeToString())
    answer = pb.sample.SampleTextResponse.FromString(parsed.whole(completion(events)))
    assert [(one.index, one.text, one.finish_reason) for one in answer.choices] == [(0, "a", 3), (1, "b", 1)]
    assert (answer.id, answer.usage.total_tokens) == ("id-1", 7)
    made = [pb.sample.SampleTextResponse.FromString(frame) for frame in parsed.renderer().frames(events)]
    assert [[(one.index, one.text) for one in part.choices] for part in made] == [
        [(0, "a")],
        [(1, "b")],
        [(0, ""), (1, "")],
    ]
    assert {part.model for part in made} == {"grok-4"}


@pytest.mark.parametrize("encoding", [0, 1, 2])
def test_embeddings(encoding: int) -> None:
    import base64

    vectors = Embeddings((pack([1, 2]), pack([3, 4])), 5)
    ask = pb.embed.EmbedRequest(
        model="m", input=[pb.embed.EmbedInput(string=one) for one in "ab"], encoding_format=encoding
    )
    answer = EmbedAsked(ask.SerializeToString()).whole("id", "model", "fp_1", vectors)
    got = [one.embeddings[0] for one in answer.embeddings]
    if encoding == 2:
        assert [base64.b64decode(one.base64_array) for one in got] == list(vectors.vectors)
    else:
        assert [list(one.float_array) for one in got] == [[1, 2], [3, 4]]
    assert [one.index for one in answer.embeddings] == [0, 1]
    assert answer.usage.num_text_embeddings == 2


def kinds(kind: type[JubalError] = JubalError) -> list[type[JubalError]]:
    return [one for sub in kind.__subclasses__() for one in (sub, *kinds(sub)) if one.__module__ == core.__name__]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_kind_of_error_has_a_code(kind: type[JubalError]) -> None:
    assert kind in errors.CODES
    error = kind.__new__(kind)
    JubalError.__init__(error, "m", param="p", code="c", retry_after_s=1.5)
    reply = errors.reply(error)
    assert (reply.status, reply.body) == (errors.CODES[kind], b"m (field `p`)")
    assert dict(reply.headers) == {b"x-error-code": b"c", b"retry-after": b"2"}


def test_what_images_took_of_the_prompt_is_told_apart() -> None:
    told = usage_of(Usage(300, 1, 20, image=256))
    assert (told.prompt_tokens, told.prompt_text_tokens, told.prompt_image_tokens) == (300, 44, 256)
