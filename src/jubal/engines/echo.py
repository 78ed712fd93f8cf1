"""An engine without a model: it says the last message or the prompt back, word by word. For tests, demos and measuring the rest."""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncGenerator

from jubal.core.events import EngineEvent, FinishReason, TextDelta, TurnEnded
from jubal.core.generation import Generation
from jubal.core.tokens import Token
from jubal.core.usage import Usage
from jubal.engines.base import EngineStatus, Weights

_WORDS = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")
TOKEN_ID_MAX = 2**31 - 1


class EchoEngine:
    """One word is one token, whatever it looks like."""

    kind = "echo"

    def __init__(self, name: str) -> None:
        self.name = name
        self._started = False

    async def start(self) -> None:
        self._started = True

    async def ready(self) -> None:
        """At once."""

    async def close(self) -> None:
        self._started = False

    def status(self) -> EngineStatus:
        return EngineStatus("ready" if self._started else "stopped")

    def weights(self, model: str) -> Weights:
        return Weights("echo", "fp_ec40ec40ec", 1_000_000)

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        """An id is a checksum of the word: the same everywhere, and other words can share it."""
        raw = ((word, word.encode()) for word in _words(text))
        return tuple(Token(zlib.crc32(data) & TOKEN_ID_MAX, word, data) for word, data in raw)

    async def stream(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        prompts = [prompt for prompt in turn.prompts if isinstance(prompt, str)]
        heard = prompts or [message.text for message in turn.messages]
        reasons: list[FinishReason] = []
        stops: list[str | None] = []
        said = 0
        for text in prompts or heard[-1:]:
            words, reason, stop = _said(text, turn)
            for _ in range(turn.choices):
                for word in words:
                    yield TextDelta(word, len(reasons))
                reasons.append(reason)
                stops.append(stop)
                said += len(words)
        usage = Usage(sum(len(_words(text)) for text in heard), said, 0)
        yield TurnEnded(tuple(reasons), usage, tuple(stops) if any(stops) else ())


def _said(text: str, turn: Generation) -> tuple[list[str], FinishReason, str | None]:
    """What of `text` is said back, and why no more: a stop string, where the bound does not come first."""
    said, stop = _until_stop(text, turn.sampling.stop)
    words = _words(said)
    bound = turn.bounds.tokens_max
    if bound is not None and len(words) > bound:
        return words[:bound], "length", None
    return words, "stop", stop


def _words(text: str) -> list[str]:
    return _WORDS.findall(text)


def _until_stop(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """`text` before the first stop string, and that one."""
    places = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        return text, None
    place, stop = min(places)
    return text[:place], stop
