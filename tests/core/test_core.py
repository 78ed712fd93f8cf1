"""Money, counts, order of events, folds."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jubal.core.errors import EngineBroken, EngineTimeout
from jubal.core.events import (
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCall,
    TurnEnded,
    UsageSoFar,
)
from jubal.core.fold import fold
from jubal.core.grammar import ANSWER, TURN, Checker, OutOfOrder, checked
from jubal.core.money import Price, ticks_of_usd, usd_of_ticks
from jubal.core.tally import Tally, estimate_prompt
from jubal.core.usage import Usage
from jubal.testing import one_turn

START = Started("id", 1, "m", "fp_0")
counts = st.integers(0, 10**7)


@pytest.mark.parametrize(
    ("price", "usage", "ticks"),
    [  # captures of the real service, xai-api.md 5.4
        (Price(3000, 750, 5000), Usage(291, 26, 290, 196), 1_330_500),
        (Price(20000, 5000, 60000), Usage(208, 42, 128), 4_760_000),
        (Price(20000, 5000, 60000), Usage(1528, 182, 0), 41_480_000),
    ],
)
def test_cost_of_captured_answers(price: Price, usage: Usage, ticks: int) -> None:
    assert price.cost_ticks(usage) == ticks


def test_prices_in_usd_are_ticks_per_token() -> None:
    assert Price.from_usd_per_million(3.00, 0.75, 15.00) == Price(30_000, 7_500, 150_000)
    assert ticks_of_usd(25) == 250_000_000_000
    assert usd_of_ticks(ticks_of_usd(0.1)) == 0.1


@given(counts, counts, counts, counts)
def test_cost_adds_up(prompt: int, cached: int, completion: int, reasoning: int) -> None:
    usage = Usage(prompt + cached, completion, cached, reasoning)
    price = Price(3, 1, 5)
    assert price.cost_ticks(usage + usage) == 2 * price.cost_ticks(usage)
    assert usage.total == prompt + cached + completion + reasoning


def test_unknown_cached_stays_unknown_until_one_tells() -> None:
    assert (Usage(1, 1) + Usage(1, 1)).cached is None
    assert (Usage(1, 1) + Usage(1, 1, 1)).cached == 1


def test_a_tally_knows_best_what_the_engine_told_last() -> None:
    tally, turn = Tally(), one_turn("x" * 40)
    assert tally.usage(turn) == Usage(estimate_prompt(turn), 0)
    for event in (TextDelta("a"), TextDelta("b"), ReasoningDelta("c")):
        tally.see(event)
    assert tally.usage(turn) == Usage(estimate_prompt(turn), 2, None, 1)
    tally.see(UsageSoFar(Usage(30, 3, 20)))
    tally.see(TextDelta("d"))
    assert tally.usage(turn) == Usage(30, 4, 20)
    assert not tally.exact
    tally.see(TurnEnded(("stop",), None))
    assert tally.usage(turn) == Usage(30, 4, 20)
    tally.see(TurnEnded(("stop",), Usage(30, 5, 20)))
    assert tally.usage(turn) == Usage(30, 5, 20)
    assert tally.exact


@pytest.mark.parametrize(
    "events",
    [
        (TextDelta("a"),),
        (START, START),
        (START, TextDelta("")),
        (START, TextDelta("a", 1)),
        (START, Finished(("stop", "stop"), Usage(1, 1))),
        (START, Finished(("stop",), Usage(1, 1)), TextDelta("a")),
        (START, Failed(EngineTimeout("x")), Finished(("stop",), Usage(1, 1))),
    ],
)
def test_answers_out_of_order(events: tuple[Event, ...]) -> None:
    checker = Checker(ANSWER)
    with pytest.raises(OutOfOrder):
        for event in events:
            checker.see(event)


def test_a_turn_without_end() -> None:
    checker = Checker(TURN)
    checker.see(TextDelta("a"))
    with pytest.raises(OutOfOrder):
        checker.end()


async def stream(*events: Event) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event


async def test_a_fold_is_what_was_said() -> None:
    call = ToolCall("c", "f", "{}")
    whole = await fold(
        stream(
            START,
            ReasoningDelta("hm"),
            TextDelta("a"),
            TextDelta("x", 1),
            TextDelta("b"),
            call,
            Finished(("tool_calls", "stop"), Usage(1, 2), 3),
        )
    )
    assert [(c.text, c.reasoning, c.calls, c.reason) for c in whole.choices] == [
        ("ab", "hm", (call,), "tool_calls"),
        ("x", "", (), "stop"),
    ]
    assert (whole.id, whole.usage, whole.cost_ticks) == ("id", Usage(1, 2), 3)


async def test_a_fold_of_a_failure_or_a_cut() -> None:
    with pytest.raises(EngineTimeout):
        await fold(stream(START, TextDelta("a"), Failed(EngineTimeout("x"))))
    with pytest.raises(EngineBroken):
        await fold(stream(START, TextDelta("a")))


async def test_checked_passes_everything_on() -> None:
    events = (START, TextDelta("a"), Finished(("stop",), Usage(1, 1)))
    assert tuple([event async for event in checked(stream(*events))]) == events
