"""Token counts."""

from __future__ import annotations

from jubal.core.values import value


@value(frozen=True, slots=True)
class Usage:
    """Tokens of one request.

    prompt: all prompt tokens, cached ones included.
    completion: visible answer and function-call tokens; reasoning is not included (xai-api.md 6.8).
    cached: the part of `prompt` that came from the engine's prompt cache. None: the engine does not report it.
    reasoning: hidden reasoning tokens, beside `completion`.
    image: the part of `prompt` that is images and was not cached, where the engine tells; else 0.
    """

    prompt: int
    completion: int
    cached: int | None = None
    reasoning: int = 0
    image: int = 0

    @property
    def total(self) -> int:
        """prompt + completion + reasoning."""
        return self.prompt + self.completion + self.reasoning

    def __add__(self, other: Usage) -> Usage:
        cached = None
        if self.cached is not None or other.cached is not None:
            cached = (self.cached or 0) + (other.cached or 0)
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            cached,
            self.reasoning + other.reasoning,
            self.image + other.image,
        )


NOTHING = Usage(0, 0)
