"""The echo and the scripted engine keep the promise too."""

from __future__ import annotations

from jubal.core.events import TextDelta, TurnEnded
from jubal.core.generation import Generation, Message, Sampling, TextPart
from jubal.core.usage import Usage
from jubal.engines.echo import EchoEngine
from jubal.testing import ScriptedEngine, check_engine, one_turn


async def test_echo() -> None:
    async def make() -> EchoEngine:
        engine = EchoEngine("local")
        await engine.start()
        return engine

    await check_engine(make)


async def test_scripted() -> None:
    async def make() -> ScriptedEngine:
        one = [TextDelta("a"), TurnEnded(("stop",), Usage(3, 1))]
        two = [TextDelta("a"), TextDelta("a", 1), TurnEnded(("stop", "stop"), Usage(3, 2))]
        return ScriptedEngine(one, two, one)

    await check_engine(make)


async def _said(turn: Generation) -> tuple[str, tuple[str, ...]]:
    text, reasons = "", ()
    async for event in EchoEngine("e").stream(turn):
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, TurnEnded):
            reasons = event.reasons
    return text, reasons


async def test_echo_says_it_back_to_the_letter_within_its_bounds() -> None:
    assert await _said(one_turn("a  b\n c ", tokens_max=None)) == ("a  b\n c ", ("stop",))
    assert await _said(one_turn("a b c", tokens_max=2)) == ("a b", ("length",))
    stop = Generation("m", (Message("user", (TextPart("a b c d"),)),), Sampling(stop=("c", "b ")))
    assert await _said(stop) == ("a ", ("stop",))
