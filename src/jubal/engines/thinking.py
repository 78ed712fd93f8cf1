"""Reasoning, for models and servers that do not keep it apart themselves.

`ThinkSplitter` takes `<think>…</think>` at the beginning of an answer apart, in any cut. `stream_thinking` makes a model think that
was never taught to: a bounded turn of notes first, then the answer with the notes before its eyes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from jubal.core.events import EngineEvent, ReasoningDelta, TextDelta, TurnEnded, UsageSoFar
from jubal.core.generation import NO_TOOLS, Bounds, Effort, Generation, Sampling, with_system
from jubal.core.usage import Usage

OPEN: Final = "<think>"
CLOSE: Final = "</think>"
WHITE: Final = " \t\r\n"

# ---------------------------------------------------------------------------------------------- taken apart


class ThinkSplitter:
    """One choice's text in, (is reasoning, text) out; texts are never empty.

    Thinking is what stands between the tags at the very beginning; the line ends after each tag belong to nothing.
    `decided`: no tag can come any more, so that the rest need not go through here.
    """

    __slots__ = ("_fresh", "_held", "_inside", "_strip", "decided")

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._fresh = False
        self._strip = False
        self.decided = False

    def feed(self, text: str) -> list[tuple[bool, str]]:
        if self.decided:
            return [(False, text)] if text else []
        held, self._held = self._held + text, ""
        if self._inside:
            return self._think(held)
        if self._strip:
            return self._answer(held)
        begun = held.lstrip(WHITE)
        if OPEN.startswith(begun):  # also where nothing but white space came
            self._held = held
            return []
        if not begun.startswith(OPEN):
            self.decided = True
            return [(False, held)]
        self._inside = True
        self._fresh = True
        return self._think(begun[len(OPEN) :])

    def _think(self, text: str) -> list[tuple[bool, str]]:
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        thought, closed, rest = text.partition(CLOSE)
        if closed:
            self._inside, self._strip = False, True
            return [(True, thought)][: bool(thought)] + self._answer(rest)
        keep = _end_that_may_be(CLOSE, text)
        self._held = text[len(text) - keep :]
        thought = text[: len(text) - keep]
        return [(True, thought)] if thought else []

    def _answer(self, text: str) -> list[tuple[bool, str]]:
        text = text.lstrip("\n")
        if not text:
            return []
        self.decided = True
        return [(False, text)]

    def finish(self) -> list[tuple[bool, str]]:
        """What was held back because more could have come."""
        held, self._held = self._held, ""
        return [(self._inside, held)] if held else []


def _end_that_may_be(tag: str, text: str) -> int:
    """Length of the longest end of `text` that `tag` begins with."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


# ---------------------------------------------------------------------------------------------- prompted

BUDGET: Final[dict[Effort, int]] = {"none": 0, "low": 64, "medium": 256, "high": 1024}
"""Tokens of notes. Small models repeat themselves soon; the penalty below keeps them going on."""
NOTES_PENALTY: Final = 0.5
_ASK: Final = (
    "Before you answer, think about the last message step by step. "
    "Write short notes for yourself only: what is asked, what you know, what follows. Do not write the answer yet."
)
_USE: Final = (
    "These are your own notes, which the user can't see:\n{notes}\n\nNow answer the user. Do not mention the notes."
)


def stream_thinking(
    turn: Generation, stream: Callable[[Generation], AsyncGenerator[EngineEvent, None]]
) -> AsyncGenerator[EngineEvent, None]:
    """One-choice turns: notes as `ReasoningDelta`, then the answer, as one turn.

    Usage: the prompt is the one that was thought about; the notes are reasoning, whatever the second prompt made of them.
    """
    return _think_then_answer(turn, stream)


async def _think_then_answer(
    turn: Generation, stream: Callable[[Generation], AsyncGenerator[EngineEvent, None]]
) -> AsyncGenerator[EngineEvent, None]:
    notes: list[str] = []
    thought: Usage | None = None
    async with aclosing(stream(_notes_turn(turn))) as events:
        async for event in events:
            if isinstance(event, TextDelta | ReasoningDelta):
                notes.append(event.text)
                yield ReasoningDelta(event.text, event.choice)
            elif isinstance(event, UsageSoFar):
                yield UsageSoFar(_as_reasoning(event.usage))
            elif isinstance(event, TurnEnded):
                thought = event.usage
    async with aclosing(stream(_answer_turn(turn, "".join(notes)))) as events:
        async for event in events:
            if isinstance(event, TurnEnded):
                yield TurnEnded(event.reasons, _together(thought, event.usage), event.stops)
            elif not isinstance(event, UsageSoFar):  # it would count the notes as prompt
                yield event


def _notes_turn(turn: Generation) -> Generation:
    sampling = turn.sampling
    return replace(
        turn,
        messages=with_system(turn.messages, _ASK),
        sampling=Sampling(sampling.temperature, sampling.top_p, NOTES_PENALTY, NOTES_PENALTY, sampling.seed),
        bounds=Bounds(BUDGET[turn.reasoning or "none"]),
        tools=NO_TOOLS,
        output=None,
        logprobs=None,
        reasoning=None,
    )


def _answer_turn(turn: Generation, notes: str) -> Generation:
    notes = notes.strip()
    messages = with_system(turn.messages, _USE.format(notes=notes)) if notes else turn.messages
    return replace(turn, messages=messages, reasoning=None)


def _as_reasoning(usage: Usage) -> Usage:
    return Usage(usage.prompt, 0, usage.cached, usage.completion + usage.reasoning)


def _together(thought: Usage | None, answer: Usage | None) -> Usage | None:
    if thought is None or answer is None:
        return None
    notes = _as_reasoning(thought)
    return Usage(notes.prompt, answer.completion, notes.cached, notes.reasoning + answer.reasoning)
