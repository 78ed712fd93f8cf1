"""What a dialect promises to serving/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jubal.core.errors import JubalError
from jubal.core.events import Event
from jubal.core.fold import Completion
from jubal.core.generation import Generation


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error before the first byte of an answer. headers: beside the content type."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Renderer(Protocol):
    """Renders one streamed answer: events in, bytes out. The same events give the same bytes."""

    def feed(self, event: Event) -> bytes:
        """The frames for this event, whole; b"" where it has none."""
        ...


class Asked(Protocol):
    """A parsed request: what is asked, and how to answer it. `generation.live` says whether by `renderer` or by `whole`."""

    @property
    def generation(self) -> Generation: ...

    @property
    def deferred(self) -> bool:
        """The answer is to be kept and fetched later; then `generation.live` is false."""
        ...

    def renderer(self) -> Renderer: ...

    def whole(self, completion: Completion) -> bytes:
        """The body of a whole answer."""
        ...

    def accepted(self, request_id: str) -> bytes:
        """The body that says by which id a deferred answer can be fetched."""
        ...


class Dialect(Protocol):
    """Pure translation, no I/O.

    endpoint: the ACL name of what it serves.
    """

    endpoint: str

    def parse(self, body: bytes) -> Asked:
        """Raises `BadRequest` naming the field at fault."""
        ...

    def error(self, error: JubalError) -> ErrorReply: ...
