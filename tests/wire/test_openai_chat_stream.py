"""The chat dialect's stream, both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core.errors import EngineBroken, EngineUnavailable
from jubal.core.events import Failed, Finished, ReasoningDelta, Started, TextDelta, ToolCall, TurnEnded
from jubal.core.fold import Folder
from jubal.core.grammar import ANSWER, Checker
from jubal.core.usage import Usage
from jubal.engines.openai_compat import ChatDecoder
from jubal.wire.openai_chat import ChatAsked, ChatRenderer, OpenAIChat
from tests.chat_table import START, TABLE, Row

rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


@rows
def test_events_become_these_bytes(row: Row) -> None:
    renderer = ChatRenderer(include_usage=True)
    assert [renderer.feed(event).decode() for event in row.events] == list(row.frames)


@rows
@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
def test_these_bytes_become_the_events(row: Row, size: int) -> None:
    decoder = ChatDecoder(row.choices)
    events = []
    for place in range(0, len(row.bytes), size):
        events += decoder.feed(row.bytes[place : place + size])
    events += decoder.finish()
    assert events == _as_engine_events(row)


def _as_engine_events(row: Row) -> list[object]:
    out: list[object] = []
    for event in row.events:
        if isinstance(event, Started):
            continue
        out.append(TurnEnded(event.reasons, event.usage) if isinstance(event, Finished) else event)
    return out


@rows
def test_the_table_obeys_the_grammar(row: Row) -> None:
    checker = Checker(ANSWER, row.choices)
    for event in row.events:
        checker.see(event)
    checker.end()


@rows
def test_a_whole_answer_is_the_fold_of_the_stream(row: Row) -> None:
    folder = Folder()
    for event in row.events:
        folder.feed(event)
    assert folder.completion is not None
    body = json.loads(_asked().whole(folder.completion))
    chunks = [json.loads(line[6:]) for line in row.bytes.decode().split("\n\n") if line.startswith("data: {")]
    for index, choice in enumerate(body["choices"]):
        deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert choice["message"]["content"] == "".join(delta.get("content") or "" for delta in deltas)
        reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert choice["finish_reason"] == reasons[-1]
    assert body["usage"] == chunks[-1]["usage"]
    assert body["id"] == chunks[0]["id"]
    assert body["object"] == "chat.completion"
    assert body["system_fingerprint"] == chunks[0]["system_fingerprint"]


def _asked() -> ChatAsked:
    return OpenAIChat().parse(b'{"model":"grok-4","messages":[{"role":"user","content":"hi"}]}')


def test_what_images_took_of_the_prompt_is_told_apart() -> None:
    renderer = ChatRenderer(include_usage=True)
    renderer.feed(START)
    frames = renderer.feed(Finished(("stop",), Usage(300, 1, 0, image=256), 0)).split(b"\n\n")
    usage = json.loads(frames[-3].removeprefix(b"data: "))["usage"]
    assert usage["prompt_tokens"] == 300
    assert usage["prompt_tokens_details"] == {
        "text_tokens": 44,
        "audio_tokens": 0,
        "image_tokens": 256,
        "cached_tokens": 0,
    }


def test_no_chunk_without_choices_unless_usage_was_asked_for() -> None:
    renderer = ChatRenderer(include_usage=False)
    frames = b"".join(renderer.feed(event) for event in TABLE[0].events)
    assert b'"choices":[]' not in frames
    assert frames.endswith(b"data: [DONE]\n\n")


def test_a_failure_in_the_middle_is_said_and_not_done() -> None:
    renderer = ChatRenderer(include_usage=True)
    renderer.feed(START)
    renderer.feed(TextDelta("half"))
    frame = renderer.feed(Failed(EngineUnavailable("gone", retry_after_s=3)))
    assert json.loads(frame[6:]) == {"error": {"message": "gone", "type": "engine_error", "code": "engine_unavailable"}}
    assert b"[DONE]" not in frame


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
pieces = st.one_of(
    st.builds(TextDelta, texts), st.builds(ReasoningDelta, texts), st.builds(ToolCall, texts, texts, texts)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, max_size=8), st.data())
def test_what_is_rendered_is_read_back_in_any_cut(said: list[TextDelta], data: st.DataObject) -> None:
    events = [START, *said, Finished(("stop",), Usage(9, 8, 7, 6), 5)]
    renderer = ChatRenderer(include_usage=True)
    wire = b"".join(renderer.feed(event) for event in events)
    decoder = ChatDecoder(1)
    seen = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        seen += decoder.feed(wire[:size])
        wire = wire[size:]
    seen += decoder.finish()
    # calls are complete only when their choice ends, so they come after everything else
    calls = [event for event in said if isinstance(event, ToolCall)]
    rest = [event for event in said if not isinstance(event, ToolCall)]
    reason = "tool_calls" if calls else "stop"  # an answer with calls ends with them, whatever its engine says
    assert _joined(seen) == [*_joined(rest), *calls, TurnEnded((reason,), Usage(9, 8, 7, 6))]


def _joined(events: list[Any]) -> list[Any]:
    """White space at the begin may come with what follows: a `<think>` could still come after it."""
    joined: list[Any] = []
    for event in events:
        if joined and type(event) in (TextDelta, ReasoningDelta) and type(event) is type(joined[-1]):
            joined[-1] = type(event)(joined[-1].text + event.text)
        else:
            joined.append(event)
    return joined


def test_the_decoder_tells_a_cut_stream_from_a_whole_one() -> None:
    decoder = ChatDecoder(1)
    list(decoder.feed(TABLE[0].frames[1].encode()))
    with pytest.raises(EngineBroken):
        list(decoder.finish())
