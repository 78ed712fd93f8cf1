"""Errors as OpenAI clients expect them: {"error": {"message", "type", "code", "param"?}} (seed, "Error Response Format").

One table, used by every dialect of the OpenAI family. litellm reads the type before the status, so `invalid_request_error`
stands only where the request itself is at fault.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from jubal.core import errors
from jubal.wire import sse
from jubal.wire.base import ErrorReply, rate_headers


class Shape(NamedTuple):
    status: int
    type: str
    code: str


SHAPES: Final[dict[type[errors.JubalError], Shape]] = {
    errors.BadRequest: Shape(400, "invalid_request_error", "invalid_request"),
    errors.BodyTooLarge: Shape(413, "invalid_request_error", "body_too_large"),
    errors.UnsupportedMedia: Shape(415, "invalid_request_error", "unsupported_media_type"),
    errors.ContextTooLong: Shape(400, "invalid_request_error", "context_length_exceeded"),
    errors.Undecodable: Shape(422, "invalid_request_error", "invalid_type"),
    errors.NotIdentified: Shape(401, "invalid_request_error", "invalid_api_key"),
    errors.NotAllowed: Shape(403, "permission_error", "permission_denied"),
    errors.NotFound: Shape(404, "invalid_request_error", "not_found"),
    errors.UnknownModel: Shape(404, "invalid_request_error", "model_not_found"),
    errors.MethodNotAllowed: Shape(405, "invalid_request_error", "method_not_allowed"),
    errors.OutOfCredit: Shape(429, "insufficient_quota", "insufficient_quota"),
    errors.TooFast: Shape(429, "rate_limit_error", "rate_limit_exceeded"),
    errors.AtCapacity: Shape(498, "capacity_error", "capacity_exceeded"),
    errors.EngineError: Shape(502, "engine_error", "engine_error"),
    errors.EngineUnavailable: Shape(503, "engine_error", "engine_unavailable"),
    errors.EngineTimeout: Shape(504, "engine_error", "engine_timeout"),
    errors.EngineBroken: Shape(502, "engine_error", "engine_broken"),
    errors.StoreUnavailable: Shape(503, "server_error", "store_unavailable"),
    errors.Stopping: Shape(503, "server_error", "stopping"),
    errors.InternalError: Shape(500, "server_error", "internal_error"),
}


def shape_of(error: errors.JubalError) -> Shape:
    """The entry of the nearest kind in the table."""
    for kind in type(error).__mro__:
        if kind in SHAPES:
            return SHAPES[kind]
    return SHAPES[errors.InternalError]


def body(error: errors.JubalError) -> bytes:
    shape = shape_of(error)
    inner = {"message": error.message, "type": shape.type, "code": error.code or shape.code}
    if error.param is not None:
        inner["param"] = error.param
    return msgspec.json.encode({"error": inner})


def reply(error: errors.JubalError) -> ErrorReply:
    """An error as a whole HTTP answer."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    match error:
        case errors.NotIdentified(given=False):
            headers.append((b"www-authenticate", b"Bearer"))
        case errors.MethodNotAllowed(allowed=allowed):
            headers.append((b"allow", ", ".join(allowed).encode()))
        case errors.TooFast(allowance=allowance) if allowance is not None:
            headers += rate_headers(allowance)
        case errors.OutOfCredit():
            headers.append((b"x-should-retry", b"false"))  # the official SDKs try every 429 again
        case errors.AtCapacity():
            headers.append((b"x-should-retry", b"true"))  # the official SDKs do not know 498 as retryable
            if error.retry_after_s is None:
                headers.append((b"retry-after", b"1"))
    return ErrorReply(shape_of(error).status, body(error), tuple(headers))


def frame(error: errors.JubalError) -> bytes:
    """An error inside a stream. No [DONE] follows: the answer is not whole (xai-api.md 4.5)."""
    return sse.data(body(error))
