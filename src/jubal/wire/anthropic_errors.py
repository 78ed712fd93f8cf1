"""Errors as Anthropic's clients expect them: {"type": "error", "error": {"type", "message", …}}.

The status, and `code` and `param` inside, are those of the OpenAI family: one server answers one way (seed, "Error Response
Format"), and Anthropic's SDKs choose their exception by the status.
"""

from __future__ import annotations

from typing import Final

import msgspec

from jubal.core import errors
from jubal.wire import openai_errors, sse
from jubal.wire.base import ErrorReply

TYPES: Final[dict[type[errors.JubalError], str]] = {
    errors.BadRequest: "invalid_request_error",
    errors.BodyTooLarge: "request_too_large",
    errors.NotIdentified: "authentication_error",
    errors.NotAllowed: "permission_error",
    errors.NotFound: "not_found_error",
    errors.MethodNotAllowed: "invalid_request_error",
    errors.OutOfCredit: "billing_error",
    errors.TooFast: "rate_limit_error",
    errors.AtCapacity: "overloaded_error",
    errors.EngineError: "api_error",
    errors.EngineUnavailable: "overloaded_error",
    errors.EngineTimeout: "timeout_error",
    errors.StoreUnavailable: "api_error",
    errors.Stopping: "overloaded_error",
    errors.InternalError: "api_error",
}


def type_of(error: errors.JubalError) -> str:
    """The entry of the nearest kind in the table."""
    return next((TYPES[kind] for kind in type(error).__mro__ if kind in TYPES), "api_error")


def body(error: errors.JubalError) -> bytes:
    inner = {
        "type": type_of(error),
        "message": error.message,
        "code": error.code or openai_errors.shape_of(error).code,
    }
    if error.param is not None:
        inner["param"] = error.param
    return msgspec.json.encode({"type": "error", "error": inner})


def reply(error: errors.JubalError) -> ErrorReply:
    """An error as a whole HTTP answer."""
    plain = openai_errors.reply(error)
    return ErrorReply(plain.status, body(error), plain.headers)


def frame(error: errors.JubalError) -> bytes:
    """An error inside a stream; nothing follows it."""
    return sse.event(b"error", body(error))
