"""Core errors as gRPC status codes (xai-api.md 4.2, 23.8)."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final

from jubal.core import errors
from jubal.wire.base import ErrorReply, rate_headers


class Code(IntEnum):
    """The numbers that gRPC gives its status codes."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


CODES: Final[dict[type[errors.JubalError], Code]] = {
    errors.BadRequest: Code.INVALID_ARGUMENT,
    errors.BodyTooLarge: Code.RESOURCE_EXHAUSTED,
    errors.UnsupportedMedia: Code.INVALID_ARGUMENT,
    errors.ContextTooLong: Code.INVALID_ARGUMENT,
    errors.Undecodable: Code.INVALID_ARGUMENT,
    errors.NotIdentified: Code.UNAUTHENTICATED,
    errors.NotAllowed: Code.PERMISSION_DENIED,
    errors.NotFound: Code.NOT_FOUND,
    errors.UnknownModel: Code.NOT_FOUND,
    errors.MethodNotAllowed: Code.UNIMPLEMENTED,
    errors.OutOfCredit: Code.RESOURCE_EXHAUSTED,
    errors.TooFast: Code.RESOURCE_EXHAUSTED,
    errors.AtCapacity: Code.UNAVAILABLE,
    errors.EngineError: Code.UNAVAILABLE,
    errors.EngineUnavailable: Code.UNAVAILABLE,
    errors.EngineTimeout: Code.DEADLINE_EXCEEDED,
    errors.EngineBroken: Code.UNAVAILABLE,
    errors.StoreUnavailable: Code.UNAVAILABLE,
    errors.Stopping: Code.UNAVAILABLE,
    errors.InternalError: Code.INTERNAL,
}
"""UNAVAILABLE is what the SDK asks again for, by itself."""


def code_of(error: errors.JubalError) -> Code:
    """The entry of the nearest kind in the table."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return Code.INTERNAL


def reply(error: errors.JubalError) -> ErrorReply:
    """status: the gRPC code. body: the message. headers: trailing metadata."""
    headers: list[tuple[bytes, bytes]] = []
    if error.code is not None:
        headers.append((b"x-error-code", error.code.encode()))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if isinstance(error, errors.TooFast) and error.allowance is not None:
        headers += rate_headers(error.allowance)
    message = error.message
    if error.param is not None and error.param not in message:  # a status has no other place for it
        message += f" (field `{error.param}`)"
    return ErrorReply(code_of(error), message.encode(), tuple(headers))
