"""Bytes to messages, and what their fields have in common."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from jubal.core.errors import BadRequest, Undecodable
from jubal.wire.xai_grpc.pb import Proto


def decode(kind: Any, body: bytes) -> Proto:
    """A message of this class. Raises `Undecodable`."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise Undecodable(f"The request is no {kind.DESCRIPTOR.name} message.", code="invalid_message") from error


def optional(message: Proto, name: str) -> Any:
    """The field's value, None where it is not set."""
    return getattr(message, name) if message.HasField(name) else None


def number(message: Proto, name: str) -> float | None:
    """A 32-bit float as the number that its sender wrote: 0.7, not 0.699999988."""
    return float(f"{getattr(message, name):.7g}") if message.HasField(name) else None


def day(message: Proto, name: str, where: str) -> str | None:
    """A Timestamp's day in UTC, `YYYY-MM-DD`. Raises `BadRequest` for one outside of years 1 to 9999."""
    if not message.HasField(name):
        return None
    try:
        return datetime.fromtimestamp(getattr(message, name).seconds, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise wrong(f"{where}.{name}", "is outside of the years 1 to 9999") from None


def wrong(where: str, what: str) -> BadRequest:
    return BadRequest(f"`{where}`: {what}.", param=where, code="invalid_value")
