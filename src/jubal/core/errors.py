"""The error tree. A kind says whose fault it is and what to do next; each dialect maps kinds to its own codes.

JubalError
├── BadRequest            the caller must change the request
│   ├── BodyTooLarge
│   ├── UnsupportedMedia  the body is not in a form that is read here
│   ├── ContextTooLong    more tokens than the model's window
│   └── Undecodable       the body does not fit the schema
├── NotIdentified         no key, or one nobody issued
├── NotAllowed            the key is known and may not do this
├── NotFound              no such route, model or object
│   └── UnknownModel
├── MethodNotAllowed
├── OutOfCredit           the team has to pay first
├── TooFast               a rate limit; come back after `retry_after_s`
├── AtCapacity            every place of an engine's queue is taken; come back after `retry_after_s`
├── EngineError           what answers behind Jubal failed
│   ├── EngineUnavailable   not there, starting, or refusing: try again
│   ├── EngineTimeout       took too long
│   └── EngineBroken        answered nonsense, or died in the middle
├── StoreUnavailable      the accounts store, or the counters of limits, do not answer: try again
├── Stopping              the server is shutting down
└── InternalError         our own fault
"""

from __future__ import annotations

from jubal.core.rates import Allowance


class JubalError(Exception):
    """Base of all errors that a caller may see. `message` is for the caller: it never holds a secret.

    param: the request field at fault, in the words of the request ("messages.0.content"), or None.
    code: a stable machine-readable name of the exact problem, or None for the kind's own.
    retry_after_s: seconds after which the same request may succeed, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class BadRequest(JubalError):
    """The caller must change the request."""


class BodyTooLarge(BadRequest):
    """The body is over the server's limit."""


class UnsupportedMedia(BadRequest):
    """The body is not in a form that is read here."""


class ContextTooLong(BadRequest):
    """The prompt, or prompt and answer together, do not fit into the model's window."""


class Undecodable(BadRequest):
    """The body is JSON and does not fit the schema: a missing field, a wrong type, an unknown role."""


class NotIdentified(JubalError):
    """No key was given, or one that nobody issued. `given` tells which."""

    def __init__(self, message: str, *, given: bool, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.given = given


class NotAllowed(JubalError):
    """The key is known, and it or its team may not do this."""


class NotFound(JubalError):
    """There is no such route or object."""


class UnknownModel(NotFound):
    """There is no such model, or this key must not know of it."""


class MethodNotAllowed(JubalError):
    """The route exists for other methods. `allowed` lists them."""

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class OutOfCredit(JubalError):
    """The team's credit does not cover the most this request may cost. available_ticks: what there is; None: not known."""

    available_ticks: int | None = None


class TooFast(JubalError):
    """A rate limit is reached. allowance: how that limit stands, where one of the caller's own refused."""

    allowance: Allowance | None = None


class AtCapacity(JubalError):
    """The engine's queue is full."""


class EngineError(JubalError):
    """What answers behind Jubal failed."""


class EngineUnavailable(EngineError):
    """The engine is not there, is starting, or refuses work for now."""


class EngineTimeout(EngineError):
    """The engine took too long."""


class EngineBroken(EngineError):
    """The engine answered something that is no answer, or died in the middle of one."""


class StoreUnavailable(JubalError):
    """The accounts store, or what counts for rate limits, does not answer: nothing can be identified, limited or charged."""


class Stopping(JubalError):
    """The server is shutting down and ended this request at its drain limit."""


class InternalError(JubalError):
    """Our own fault; the log has the details under the request's id."""
