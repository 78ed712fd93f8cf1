"""The promises of engines that can tell which tokens a text has, and how many a prompt."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jubal.core.generation import Generation
from jubal.core.tokens import Token


@runtime_checkable
class Tokenizer(Protocol):
    """An ability that an engine may have beside `engines.base.Engine`."""

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        """The tokens of `text` itself, in order: none that begins or ends a prompt is added. An empty text has none.

        An engine that is starting waits for itself. Raises `EngineError`; `BadRequest` where what answers behind `model` turns
        out not to be able to.
        """
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """An ability that an engine may have beside `engines.base.Engine`."""

    async def count(self, turn: Generation) -> int:
        """The prompt tokens that `turn` would use, its tools included; of several prompts the longest. Nothing is generated.

        An engine that is starting waits for itself. Raises `EngineError`.
        """
        ...
