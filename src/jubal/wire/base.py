"""What a dialect promises to serving/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jubal.core.errors import JubalError
from jubal.core.events import Event
from jubal.core.fold import Completion
from jubal.core.generation import Generation
from jubal.core.rates import Allowance


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error before the first byte of an answer. headers: beside the content type."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def rate_headers(allowance: Allowance) -> list[tuple[bytes, bytes]]:
    """x-ratelimit-* of what is limited, as whole numbers; there are no reset headers (xai-api.md 3)."""
    values = (
        (b"x-ratelimit-limit-requests", allowance.limit_requests),
        (b"x-ratelimit-remaining-requests", allowance.remaining_requests),
        (b"x-ratelimit-limit-tokens", allowance.limit_tokens),
        (b"x-ratelimit-remaining-tokens", allowance.remaining_tokens),
    )
    return [(name, b"%d" % value) for name, value in values if value is not None]


class Sealer(Protocol):
    """Makes text that only this service can read again, and that nobody else can make (xai-api.md 8.8)."""

    def seal(self, text: str) -> str: ...

    def open(self, sealed: str) -> str | None:
        """None for what this service did not seal."""
        ...


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
    def deferral(self) -> Callable[[str], bytes] | None:
        """None: the answer is wanted now. Else it is to be kept and fetched later, `generation.live` is false, and this makes the
        body that says by which request id."""
        ...

    def renderer(self) -> Renderer: ...

    def whole(self, completion: Completion) -> bytes:
        """The body of a whole answer."""
        ...


class WholeAsked(Protocol):
    """A parsed request whose answer is rendered whole."""

    @property
    def generation(self) -> Generation: ...

    def whole(self, completion: Completion) -> bytes: ...


class WholeDialect(Protocol):
    """What reads a kept request again, and renders its answer or its error."""

    endpoint: str

    def parse(self, body: bytes) -> WholeAsked:
        """Raises `BadRequest` naming the field at fault."""
        ...

    def error(self, error: JubalError) -> ErrorReply: ...


class Recorded(Protocol):
    """A request whose answer can be kept."""

    def record(self, completion: Completion) -> bytes:
        """What is to be kept of the answer."""
        ...


class KeptWholeAsked(WholeAsked, Recorded, Protocol):
    """A request whose answer is rendered whole, and may be kept."""

    @property
    def keep(self) -> bool: ...


class KeptWhole(Protocol):
    """A `WholeDialect` whose answers can be kept."""

    endpoint: str

    def parse(self, body: bytes) -> KeptWholeAsked:
        """Raises `BadRequest` naming the field at fault."""
        ...

    def error(self, error: JubalError) -> ErrorReply: ...


class Dialect(Protocol):
    """Pure translation, no I/O.

    endpoint: the ACL name of what it serves.
    """

    endpoint: str

    def parse(self, body: bytes) -> Asked:
        """Raises `BadRequest` naming the field at fault."""
        ...

    def error(self, error: JubalError) -> ErrorReply: ...


class KeptAsked(Asked, Protocol):
    """A parsed request that may go on from an answer that was kept, and whose own answer may be kept."""

    @property
    def previous(self) -> str | None:
        """The id of the answer to go on from; its record has to be given to `go_on_from` before the request runs."""
        ...

    @property
    def keep(self) -> bool: ...

    def go_on_from(self, record: bytes) -> None: ...

    def record(self, completion: Completion) -> bytes:
        """What is to be kept of the answer."""
        ...


class KeptDialect(Protocol):
    """A dialect whose answers can be fetched again. The records are its own: nobody else reads them."""

    endpoint: str

    def parse(self, body: bytes) -> KeptAsked:
        """Raises `BadRequest` naming the field at fault."""
        ...

    def error(self, error: JubalError) -> ErrorReply: ...

    def shown(self, record: bytes) -> bytes:
        """The body of the answer, again."""
        ...

    def deleted(self, identity: str) -> bytes:
        """The body that says that an answer is gone."""
        ...

    def input_items(self, record: bytes, *, limit: int, order: str, after: str | None) -> bytes:
        """The body with what was asked. Raises `BadRequest`."""
        ...
