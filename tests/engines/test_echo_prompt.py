"""The echo engine goes on from a prompt as it answers messages: by saying it back."""

from __future__ import annotations

from jubal.core.events import TextDelta, TurnEnded
from jubal.core.generation import Bounds, Generation, Sampling
from jubal.core.usage import Usage
from jubal.engines.echo import EchoEngine


async def test_a_prompt_is_said_back_within_its_bounds() -> None:
    turn = Generation("m", (), Sampling(), Bounds(2), 2, prompts=("one two three",))
    assert [event async for event in EchoEngine("e").stream(turn)] == [
        TextDelta("one"),
        TextDelta(" two"),
        TextDelta("one", 1),
        TextDelta(" two", 1),
        TurnEnded(("length", "length"), Usage(3, 4, 0)),
    ]


async def test_several_prompts_are_several_answers_each_as_often_as_asked() -> None:
    turn = Generation("m", (), Sampling(stop=("x",)), Bounds(2), 2, prompts=("one two three", "a x"))
    events = [event async for event in EchoEngine("e").stream(turn)]
    said = ["".join(e.text for e in events if isinstance(e, TextDelta) and e.choice == index) for index in range(4)]
    assert said == ["one two", "one two", "a ", "a "]
    usage, stops = Usage(5, 6, 0), (None, None, "x", "x")
    assert events[-1] == TurnEnded(("length", "length", "stop", "stop"), usage, stops)
