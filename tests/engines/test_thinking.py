"""Thinking taken apart, and thinking that a model is asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core.events import EngineEvent, ReasoningDelta, TextDelta, TurnEnded, UsageSoFar
from jubal.core.generation import Bounds, Generation, JsonOutput, Message, Sampling, TextPart
from jubal.core.usage import Usage
from jubal.engines.openai_compat import ChatDecoder
from jubal.engines.thinking import BUDGET, ThinkSplitter, stream_thinking


def split(*pieces: str) -> tuple[str, str]:
    splitter = ThinkSplitter()
    out = [part for piece in pieces for part in splitter.feed(piece)] + splitter.finish()
    assert all(text for _, text in out)
    return "".join(text for thought, text in out if thought), "".join(text for thought, text in out if not thought)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>\nhm\n</think>\n\nyes", "hm\n", "yes"),
        ("  \n<think>hm</think>yes", "hm", "yes"),
        ("<think></think>yes", "", "yes"),
        ("<think>\n\n</think>\n\nyes </think> no", "", "yes </think> no"),
        ("<think>hm < /think> </thin</think>x", "hm < /think> </thin", "x"),
        ("<think>never closed </thi", "never closed </thi", ""),
        ("plain <think>no</think>", "", "plain <think>no</think>"),
        ("<thinking>no", "", "<thinking>no"),
        ("<thi", "", "<thi"),
        ("   ", "", "   "),
        ("", "", ""),
    ],
)
def test_in_any_cut(text: str, thought: str, said: str, size: int) -> None:
    assert split(*(text[place : place + size] for place in range(0, len(text), size))) == (thought, said)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<think>/ \na", max_size=40), st.data())
def test_the_cut_makes_no_difference(text: str, data: st.DataObject) -> None:
    pieces, rest = [], text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces.append(rest[:size])
        rest = rest[size:]
    assert split(*pieces) == split(text)


def test_the_decoder_splits_each_choice_and_leaves_servers_alone_that_split_themselves() -> None:
    def chunk(index: int, **delta: str) -> bytes:
        return b"data: " + json.dumps({"choices": [{"index": index, "delta": delta}]}).encode() + b"\n\n"

    decoder = ChatDecoder(2)
    events = [
        event
        for wire in (
            chunk(0, content="<thi"),
            chunk(1, reasoning_content="apart"),
            chunk(0, content="nk>hm</think>\n"),
            chunk(1, content="<think>said"),
            chunk(0, content="\nyes"),
        )
        for event in decoder.feed(wire)
    ]
    assert events == [
        ReasoningDelta("apart", 1),
        ReasoningDelta("hm", 0),
        TextDelta("<think>said", 1),
        TextDelta("yes", 0),
    ]


async def test_notes_come_first_and_count_as_reasoning() -> None:
    asked = Generation(
        "m",
        (Message("system", (TextPart("Be brief."),)), Message("user", (TextPart("2 + 2?"),))),
        Sampling(temperature=0.5, stop=("x",), seed=7),
        Bounds(9),
        output=JsonOutput(),
        reasoning="low",
    )
    turns: list[Generation] = []

    async def engine(turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        turns.append(turn)
        if len(turns) == 1:
            yield UsageSoFar(Usage(20, 1, 5))
            yield TextDelta("two and ")
            yield TextDelta("two")
            yield TurnEnded(("length",), Usage(20, 2, 5))
        else:
            yield UsageSoFar(Usage(40, 1, 30))
            yield TextDelta("4")
            yield TurnEnded(("stop",), Usage(40, 1, 30))

    events = [event async for event in stream_thinking(asked, engine)]
    assert events == [
        UsageSoFar(Usage(20, 0, 5, 1)),
        ReasoningDelta("two and "),
        ReasoningDelta("two"),
        TextDelta("4"),
        TurnEnded(("stop",), Usage(20, 1, 5, 2)),
    ]
    notes, answer = turns
    assert notes.bounds.tokens_max == BUDGET["low"]
    assert notes.output is None
    assert notes.sampling.stop == ()
    assert notes.sampling.seed == 7
    assert "two and two" in answer.messages[0].text
    assert answer.messages[0].text.startswith("Be brief.")
    assert (answer.output, answer.bounds, answer.sampling) == (asked.output, asked.bounds, asked.sampling)
