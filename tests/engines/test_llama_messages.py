"""Turns as a given model takes them, and choices put together: pure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from jubal.core.errors import EngineBroken
from jubal.core.events import EngineEvent, ReasoningDelta, TextDelta, ToolCall, TurnEnded, UsageSoFar
from jubal.core.generation import Generation, ImagePart, Message, PastCall, Role, Sampling, TextPart
from jubal.core.grammar import TURN, Checker
from jubal.core.usage import Usage
from jubal.engines.llama_cpp.choices import merge_choices, together
from jubal.engines.llama_cpp.messages import SEED_BITS, plain, prepared, single
from jubal.engines.weights import Profile

PROFILE = Profile(template_tools=False, system_prompt="Be good.", temperature=0.2, top_p=0.9)
CALL = PastCall("call_1", "get_weather", '{"city": "Oslo"}')


def says(role: Role, text: str = "", *calls: PastCall) -> Message:
    return Message(role, (TextPart(text),) if text else (), calls=calls)


def turn(*messages: Message, sampling: Sampling = Sampling()) -> Generation:  # noqa: B008
    return Generation("m", messages, sampling)


def seen(made: Generation) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in made.messages]


def test_a_system_message_is_added_only_where_there_is_none() -> None:
    bare = prepared(turn(says("user", "Hi")), PROFILE, template_tools=False)
    assert seen(bare) == [("system", "Be good."), ("user", "Hi")]
    own = prepared(turn(says("user", "Hi"), says("system", "Mine.")), PROFILE, template_tools=False)
    assert seen(own) == [("user", "Hi"), ("system", "Mine.")]
    assert seen(prepared(turn(says("user", "Hi")), Profile(), template_tools=False)) == [("user", "Hi")]


def test_a_developer_is_the_system() -> None:
    made = prepared(turn(says("developer", "Short."), says("user", "Hi")), PROFILE, template_tools=True)
    assert seen(made) == [("system", "Short."), ("user", "Hi")]


def test_sampling_defaults_yield_to_the_caller() -> None:
    assert prepared(turn(says("user", "Hi")), PROFILE, template_tools=True).sampling == Sampling(0.2, 0.9)
    asked = Sampling(temperature=0, top_p=1, seed=3)
    assert prepared(turn(says("user", "Hi"), sampling=asked), PROFILE, template_tools=True).sampling == asked
    assert prepared(turn(says("user", "Hi")), Profile(), template_tools=True).sampling == Sampling()


def test_images_stay_whatever_becomes_of_the_text() -> None:
    one, two, three = (ImagePart(f"data:image/png;base64,{name}") for name in "ABC")
    messages = (
        Message("user", (one, TextPart("look"))),
        Message("assistant", (TextPart("I call"), two), calls=(CALL,)),
        Message("tool", (TextPart("a map"), three), tool_call_id="call_1"),
        Message("tool", (TextPart("and"), one)),
        Message("user", (TextPart("Well?"),)),
    )
    made = prepared(turn(*messages), PROFILE, template_tools=False).messages[1:]
    assert made[0] == messages[0]
    assert [part for part in made[1].parts if isinstance(part, ImagePart)] == [two]
    assert made[2].role == "user"
    assert made[2].parts[1:] == (three, one)
    assert len(made) == 4


def test_calls_and_results_become_text_for_a_template_without_tools() -> None:
    made = list(
        plain(
            (
                says("user", "Weather in Oslo and Rome?"),
                says("assistant", "I will look.", CALL, PastCall("call_2", "get_weather", '{"city": "Rome"}')),
                Message("tool", (TextPart("7 degrees"),), tool_call_id=CALL.id),
                Message("tool", (TextPart("20 degrees"),), tool_call_id="call_2"),
                says("assistant", "Cold and warm."),
            )
        )
    )
    assert [(message.role, message.text) for message in made] == [
        ("user", "Weather in Oslo and Rome?"),
        ("assistant", "I will look."),
        (
            "user",
            'get_weather({"city": "Oslo"}) gave:\n7 degrees\n\nget_weather({"city": "Rome"}) gave:\n20 degrees\n\n'
            "Answer with this: Weather in Oslo and Rome?",
        ),
        ("assistant", "Cold and warm."),
    ]
    assert all(not message.calls for message in made)


def test_a_result_at_the_end_and_a_call_without_text_or_arguments() -> None:
    call = PastCall("c", "now", " ")
    result = Message("tool", (TextPart("14:35"),), tool_call_id="c")
    made = list(plain((says("assistant", "", call), result)))
    assert [(message.role, message.text) for message in made] == [
        ("assistant", "Let me see."),
        ("user", "now() gave:\n14:35"),
    ]
    assert [message.text for message in plain((says("tool", "14:35"),))] == ["The function gave:\n14:35"]


def test_a_template_with_tools_gets_them_as_they_are() -> None:
    messages = (says("system", "x"), says("assistant", "", CALL), says("tool", "7"))
    assert prepared(turn(*messages), Profile(), template_tools=True).messages == messages


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, -(2**63), SEED_BITS, SEED_BITS - 1])
def test_every_seed_is_one_that_llama_cpp_keeps(seed: int) -> None:
    asked = replace(turn(says("user", "Hi"), sampling=Sampling(seed=seed)), choices=3)
    made = [single(asked, choice).sampling.seed for choice in range(3)]
    assert len(set(made)) == 3
    assert all(one is not None and 0 <= one < SEED_BITS for one in made)
    assert made == [single(asked, choice).sampling.seed for choice in range(3)]


def test_one_choice_of_a_turn() -> None:
    asked = Generation("m", (says("user", "Hi"),), choices=3, live=False)
    assert single(asked, 2).choices == 1
    assert single(asked, 2).live, "llama.cpp sees a closed connection only while it streams"
    assert single(asked, 2).sampling.seed is None


def test_one_answer_of_several_prompts() -> None:
    asked = Generation("m", (), Sampling(seed=7), choices=2, prompts=("a", (1, 2), "c"))
    made = [single(asked, answer) for answer in range(asked.answers)]
    assert [(one.prompts, one.choices, one.sampling.seed) for one in made] == [
        (("a",), 1, 7), (("a",), 1, 8), (((1, 2),), 1, 7), (((1, 2),), 1, 8), (("c",), 1, 7), (("c",), 1, 8),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- choices


class Scripted:
    """One-choice turns that play these events, and count how many were closed."""

    def __init__(self, *scripts: list[EngineEvent | Exception | None]) -> None:
        self.closed = 0
        self.turns = [self._play(script) for script in scripts]

    async def _play(self, script: list[EngineEvent | Exception | None]) -> AsyncGenerator[EngineEvent, None]:
        try:
            for event in script:
                await asyncio.sleep(0)
                if event is None:
                    await asyncio.sleep(3600)
                elif isinstance(event, Exception):
                    raise event
                else:
                    yield event
        finally:
            self.closed += 1


def ended(reason: str = "stop", prompt: int = 5, completion: int = 1, cached: int | None = 2) -> TurnEnded:
    return TurnEnded((reason,), Usage(prompt, completion, cached))  # type: ignore[arg-type]


async def test_choices_are_merged_and_counted() -> None:
    scripted = Scripted(
        [TextDelta("a"), UsageSoFar(Usage(5, 1, 2)), ended("stop", cached=2)],
        [
            ReasoningDelta("b"),
            TextDelta("c"),
            UsageSoFar(Usage(5, 1, 4)),
            ToolCall("i", "f", "{}"),
            ended("tool_calls", 5, 9, 4),
        ],
    )
    events = [event async for event in merge_choices(scripted.turns, len(scripted.turns))]
    checker = Checker(TURN, choices=2)
    for event in events:
        checker.see(event)
    checker.end()
    assert events[-1] == TurnEnded(("stop", "tool_calls"), Usage(5, 10, 2))
    assert [event for event in events if getattr(event, "choice", None) == 0] == [TextDelta("a", 0)]
    assert [event for event in events if getattr(event, "choice", None) == 1] == [
        ReasoningDelta("b", 1),
        TextDelta("c", 1),
        ToolCall("i", "f", "{}", 1),
    ]
    assert sum(isinstance(event, UsageSoFar) for event in events) == 1
    assert scripted.closed == 2


async def test_each_of_several_prompts_counts_once() -> None:
    """Also while it goes on: one that is cut pays for the prompts that were read."""
    scripted = Scripted(
        [TextDelta("a"), UsageSoFar(Usage(5, 1, 2)), ended(prompt=5, completion=3, cached=2)],
        [TextDelta("b"), UsageSoFar(Usage(5, 1, 4)), ended(prompt=5, completion=1, cached=4)],
        [TextDelta("c"), UsageSoFar(Usage(70, 1, 0)), ended(prompt=70, completion=2, cached=0)],
        [TextDelta("d"), UsageSoFar(Usage(70, 1, 69)), ended(prompt=70, completion=2, cached=69)],
    )
    events = [event async for event in merge_choices(scripted.turns, 2)]
    assert events[-1] == TurnEnded(("stop",) * 4, Usage(75, 8, 2))
    so_far = [event.usage for event in events if isinstance(event, UsageSoFar)]
    assert len(so_far) == 2
    assert so_far[-1].prompt == 75


async def test_one_choice_that_fails_ends_all() -> None:
    scripted = Scripted([TextDelta("a"), None], [EngineBroken("it died")])
    with pytest.raises(EngineBroken, match="it died"):
        async with aclosing(merge_choices(scripted.turns, len(scripted.turns))) as events:
            async for _ in events:
                pass
    assert scripted.closed == 2


async def test_closing_closes_every_choice_before_it_returns() -> None:
    scripted = Scripted(*([TextDelta("a"), None] for _ in range(5)))
    events = merge_choices(scripted.turns, len(scripted.turns))
    for _ in range(5):
        await anext(events)
    await events.aclose()
    assert scripted.closed == 5


async def test_a_slow_reader_holds_the_engine_back() -> None:
    scripted = Scripted([TextDelta("a") for _ in range(1000)])
    events = merge_choices(scripted.turns, len(scripted.turns))
    await anext(events)
    await asyncio.sleep(0.05)
    await events.aclose()
    assert scripted.closed == 1


@pytest.mark.parametrize(
    ("usages", "whole"),
    [
        ([Usage(5, 1)], Usage(5, 1)),
        ([Usage(5, 1, 3, 2), Usage(5, 2, 5, 1)], Usage(5, 3, 3, 3)),
        ([Usage(5, 1), None], None),
        ([None], None),
    ],
)
def test_the_prompt_counts_once(usages: list[Usage | None], whole: Usage | None) -> None:
    assert together(usages) == whole
