"""The answers of Anthropic's dialects, against the structs that the OpenAPI document describes them by."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jubal.core import errors
from jubal.core.events import Event, Failed, Finished, ServerToolCall, ServerToolResult, Started, TextDelta
from jubal.core.server_tools import Source, ToolKind
from jubal.core.usage import Usage
from jubal.wire import anthropic_errors
from jubal.wire.anthropic_complete import AnthropicComplete
from jubal.wire.anthropic_messages import AnthropicMessages
from jubal.wire.anthropic_schema import EVENTS as DESCRIBED_EVENTS
from jubal.wire.anthropic_schema import OPERATIONS
from tests.openapi_schemas import Described, fold
from tests.wire.test_anthropic import EVENTS

BY_TYPE = {struct.__struct_config__.tag or "error": struct.__name__ for struct in DESCRIBED_EVENTS}
MESSAGE = AnthropicMessages().parse(
    b'{"model":"grok-4","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"x"}]}'
)
COMPLETE = AnthropicComplete().parse(b'{"model":"m","prompt":"x","max_tokens_to_sample":9,"stream":true}')


@pytest.fixture
def described() -> Described:
    return Described(OPERATIONS)


def tool(kind: ToolKind, output: str, ok: bool = True) -> list[Event]:
    sources = () if kind in ("mcp", "code_execution") else (Source("https://a.test/", "A"),)
    return [
        ServerToolCall("s1", kind, "box.do" if kind == "mcp" else kind, "{}"),
        ServerToolResult("s1", kind, kind, ok, output, 1.0, sources if ok else ()),
    ]


KINDS: tuple[ToolKind, ...] = ("web_search", "x_search", "code_execution", "mcp", "collections_search")
ALL_TOOLS: list[Event] = [
    Started("id-1", 1, "grok-4", "fp_0000000000"),
    *(event for kind in KINDS for ok in (True, False) for event in tool(kind, "out", ok)),
    Finished(("stop",), Usage(1, 1), 0),
]


def frames(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(frame.split("data: ", 1)[1]) for frame in raw.decode().split("\n\n") if frame]


@pytest.mark.parametrize("events", [EVENTS, ALL_TOOLS, [ALL_TOOLS[0], Finished(("length",), Usage(1, 0))]])
def test_messages(described: Described, events: list[Event]) -> None:
    described.check("Message", MESSAGE.whole(fold(events)))
    renderer = MESSAGE.renderer()
    for frame in frames(b"".join(renderer.feed(event) for event in events)):
        described.check(BY_TYPE[frame["type"]], json.dumps(frame))


def test_a_broken_stream_and_every_error(described: Described) -> None:
    renderer = MESSAGE.renderer()
    broken = [ALL_TOOLS[0], TextDelta("x"), Failed(errors.EngineBroken("gone", param="messages"))]
    for frame in frames(b"".join(renderer.feed(event) for event in broken)):
        described.check(BY_TYPE[frame["type"]], json.dumps(frame))
    described.check("AnthropicError", anthropic_errors.body(errors.TooFast("m")))
    assert described.fields("AnthropicError") <= described.seen


def test_counted_tokens_and_legacy_completions(described: Described) -> None:
    described.check("CountedTokens", MESSAGE.counted(5))
    events: list[Event] = [ALL_TOOLS[0], TextDelta("x"), Finished(("stop",), Usage(1, 1), 0)]
    described.check("Completed", COMPLETE.whole(fold(events)))
    renderer = COMPLETE.renderer()
    for frame in frames(b"".join(renderer.feed(event) for event in events)):
        described.check("Completed", json.dumps(frame))
