"""The promise that every engine keeps. Its tests are `jubal.testing.check_engine`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from jubal.core.events import EngineEvent
from jubal.core.generation import Generation
from jubal.core.model import Weights as Weights

EngineState: TypeAlias = Literal["ready", "starting", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine is doing. reason: for starting and failed, one sentence that a user can act on."""

    state: EngineState
    reason: str | None = None


class Engine(Protocol):
    """Streams one turn. Made without I/O; `start` before the first `stream`, `close` after the last."""

    name: str
    """The name in the configuration, such as "local"."""
    kind: str
    """The kind in the configuration, such as "llama"."""

    async def start(self) -> None:
        """Begin to get ready and return soon: loading goes on in the background, and `status` tells how far it is."""

    async def ready(self) -> None:
        """Wait until `status` is ready. Raises `EngineUnavailable` where it failed for good."""

    async def close(self) -> None:
        """End all work and free everything, child processes included. Returns when they are gone."""

    def status(self) -> EngineStatus: ...

    def weights(self, model: str) -> Weights:
        """What answers when a turn names `model`. No I/O."""
        ...

    def stream(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        """Answer one turn: end with exactly one `TurnEnded`, or raise `EngineError` or `BadRequest`.

        An engine that is starting waits for itself, within its own timeout. Each piece is yielded when it is there. Closing
        the iterator stops the work in the engine before `aclose()` returns.
        """
        ...
