"""A turn as a given model takes it: pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from jubal.core.generation import Generation, ImagePart, Message, PastCall, Sampling, TextPart
from jubal.engines.weights import Profile

SEED_BITS: Final = 0xFFFF_FFFF
"""llama.cpp keeps 32 bits of a seed, and takes the last of them all for "choose one"."""


def prepared(turn: Generation, profile: Profile, *, template_tools: bool) -> Generation:
    """The same turn, as this model answers it best. template_tools: its template renders calls and results."""
    if turn.prompts:
        return replace(turn, sampling=_with_defaults(turn.sampling, profile))
    messages = tuple(_in_known_role(message) for message in turn.messages)
    if not template_tools:
        messages = tuple(plain(messages))
    if profile.system_prompt is not None and not any(message.role == "system" for message in messages):
        messages = (Message("system", (TextPart(profile.system_prompt),)), *messages)
    return replace(turn, messages=messages, sampling=_with_defaults(turn.sampling, profile))


def single(turn: Generation, answer: int) -> Generation:
    """One answer of a turn. Choices of one prompt and seed differ, and are the same each time."""
    number, choice = divmod(answer, turn.choices)
    seed = turn.sampling.seed
    if seed is not None:
        seed = (seed + choice) % SEED_BITS
    prompts = turn.prompts[number : number + 1]
    return replace(turn, choices=1, prompts=prompts, live=True, sampling=replace(turn.sampling, seed=seed))


def _in_known_role(message: Message) -> Message:
    return replace(message, role="system") if message.role == "developer" else message


def _with_defaults(sampling: Sampling, profile: Profile) -> Sampling:
    return replace(
        sampling,
        temperature=profile.temperature if sampling.temperature is None else sampling.temperature,
        top_p=profile.top_p if sampling.top_p is None else sampling.top_p,
    )


LOOKING: Final = "Let me see."
"""What the assistant said where it only called functions: a turn must not be empty."""


def plain(messages: tuple[Message, ...]) -> Iterator[Message]:
    """The conversation for a template that knows neither calls nor results: both become text of the user's next message.

    No call stands in the assistant's own words: a small model copies those, and then answers with a call in text. The question
    comes again behind the results, which may be long. Measured on SmolLM2 (docs/decisions/function-calling.md). Results in a row
    become one message, as many templates want user and assistant to alternate. Images stay, behind the text of their message.
    """
    question = ""
    called: dict[str | None, PastCall] = {}
    results: list[Message] = []
    for message in messages:
        if message.role == "tool":
            results.append(message)
            continue
        if results:
            yield _results(results, called, question)
            results = []
        if message.role == "user":
            question = message.text
        called |= {call.id: call for call in message.calls}
        yield _without_calls(message) if message.calls else message
    if results:
        yield _results(results, called, question)


def _results(results: list[Message], called: dict[str | None, PastCall], question: str) -> Message:
    parts = [f"{_name(called.get(result.tool_call_id), result.name)} gave:\n{result.text}" for result in results]
    if question:
        parts.append(f"Answer with this: {question}")
    return Message("user", (TextPart("\n\n".join(parts)), *(image for result in results for image in _images(result))))


def _name(call: PastCall | None, name: str | None) -> str:
    """Arguments go in as the model wrote them, even where they are no JSON."""
    return f"{call.name}({call.arguments.strip()})" if call is not None else name or "The function"


def _images(message: Message) -> tuple[ImagePart, ...]:
    return tuple(part for part in message.parts if isinstance(part, ImagePart))


def _without_calls(message: Message) -> Message:
    return replace(message, parts=(TextPart(message.text or LOOKING), *_images(message)), calls=())
