"""The echo engine goes on from a prompt as it answers messages: by saying it back."""

from __future__ import annotations

from jubal.core.events import TextDelta, TurnEnded
from jubal.core.generation import Bounds, Generation, Sampling
from jubal.core.usage import Usage
from jubal.engines.echo import EchoEngine


async def test_a_prompt_is_said_back_within_its_bounds() -> None:
    turn = Generation("m", (), Sampling(), Bounds(2), 2, prompt="one two three")
    assert [event async for event in EchoEngine("e").stream(turn)] == [
        TextDelta("one"),
        TextDelta(" two"),
        TextDelta("one", 1),
        TextDelta(" two", 1),
        TurnEnded(("length", "length"), Usage(3, 4, 0)),
    ]
