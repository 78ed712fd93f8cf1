"""What an answer has used so far, as exactly as its events tell."""

from __future__ import annotations

from typing import Final

from jubal.core.events import EngineEvent, Event, Finished, ReasoningDelta, TextDelta, ToolCall, TurnEnded, UsageSoFar
from jubal.core.generation import Generation, ImagePart
from jubal.core.usage import Usage

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_TILE = 256
TILE_PIXELS = 448
TOKENS_PER_IMAGE_MAX = 1792


def estimate_prompt(generation: Generation) -> int:
    """Prompt tokens of `generation` without a tokenizer: a quarter of its characters and a few for each message.

    Good enough for rate limits and for an answer that was cut before its engine reported; never used where the engine does.
    """
    characters, tokens, image_tokens = 0, 0, 0
    for prompt in generation.prompts:
        if isinstance(prompt, str):
            characters += len(prompt)
        else:
            tokens += len(prompt)
    for message in generation.messages:
        for part in message.parts:
            if isinstance(part, ImagePart):
                image_tokens += estimate_image(part)
            else:
                characters += len(part.text)
        for call in message.calls:
            characters += len(call.name) + len(call.arguments)
    text_tokens = tokens - (-characters // CHARACTERS_PER_TOKEN)
    return text_tokens + TOKENS_PER_MESSAGE * len(generation.messages) + image_tokens


def estimate_image(image: ImagePart) -> int:
    """Tokens of an image: so many for each tile that it covers (xai-api.md 6.3); one tile's where its size is not known."""
    if image.size is None or image.detail == "low":
        return TOKENS_PER_TILE
    width, height = image.size
    tiles = -(-width // TILE_PIXELS) * -(-height // TILE_PIXELS)
    return min(TOKENS_PER_IMAGE_MAX, TOKENS_PER_TILE * tiles)


COUNTING: Final = (UsageSoFar, Finished, TurnEnded)
"""Events with the engine's own counts. A tuple, as `A | B` is made anew each time that it is come by."""


class Tally:
    """Feeds on the events of one turn or one answer.

    One delta counts as one token until the engine tells: engines send a frame per token.
    """

    __slots__ = ("_deltas", "_known", "_thoughts", "exact")

    def __init__(self) -> None:
        self._known: Usage | None = None
        self._deltas = 0
        self._thoughts = 0
        self.exact = False

    def see(self, event: Event | EngineEvent) -> None:
        kind = type(event)
        if kind is TextDelta or kind is ToolCall:
            self._deltas += 1
        elif kind is ReasoningDelta:
            self._thoughts += 1
        elif isinstance(event, COUNTING) and event.usage is not None:
            self._known = event.usage
            self._deltas = self._thoughts = 0
            self.exact = isinstance(event, TurnEnded) or (isinstance(event, Finished) and not event.estimated)

    def usage(self, generation: Generation) -> Usage:
        """The best knowledge; `exact` tells whether it is the engine's own final count."""
        known = self._known
        if known is None:
            return Usage(estimate_prompt(generation), self._deltas, None, self._thoughts)
        if self._deltas or self._thoughts:
            return known + Usage(0, self._deltas, None, self._thoughts)
        return known
