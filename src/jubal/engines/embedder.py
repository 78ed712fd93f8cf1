"""The promise of what makes vectors of texts. An engine may keep this one, `engines.base.Engine`, or both."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jubal.core.embedding import EmbeddingRequest, Embeddings
from jubal.core.model import Weights
from jubal.engines.base import EngineStatus


@runtime_checkable
class Embedder(Protocol):
    """Lives like an `Engine`: made without I/O; `start` before the first `embed`, `close` after the last."""

    name: str
    """The name in the configuration, such as "local"."""
    kind: str
    """The kind in the configuration, such as "wordllama"."""

    async def start(self) -> None:
        """Begin to get ready and return soon: loading goes on in the background, and `status` tells how far it is."""

    async def ready(self) -> None:
        """Wait until `status` is ready. Raises `EngineUnavailable` where it failed for good."""

    async def close(self) -> None:
        """End all work and free everything. Returns when it is gone."""

    def status(self) -> EngineStatus: ...

    def weights(self, model: str) -> Weights:
        """What answers when a request names `model`. `context`: the longest input in tokens. No I/O."""
        ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """A vector for each input, in order: as long as `request.dimensions` says, and of length one where it is shortened here.

        All or nothing: raises `BadRequest` naming `dimensions`, or the input at fault as `input` or `input[3]`, or `EngineError`.
        The same input has the same vector, whatever else is in the request. An embedder that is starting waits for itself. It
        never blocks the event loop; cancelling it stops the work soon.
        """
        ...
