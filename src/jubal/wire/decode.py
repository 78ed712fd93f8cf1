"""JSON bodies to wire models, with errors that name the field. Shared by all JSON dialects."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from jubal.core.errors import BadRequest, Undecodable

T = TypeVar("T")
LARGE: Final = 1e300


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises `BadRequest` for what is no JSON, `Undecodable` for what does not fit the schema, naming the field."""
    if not body:
        raise BadRequest("The request has no body. Send a JSON object.", code="empty_body")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequest("The body is nested too deeply.", code="invalid_json") from error


def _misfit(complaint: str) -> Undecodable:
    """msgspec's «Expected `int | null`, got `str` - at `$.max_tokens`» for the caller."""
    what, _, where = complaint.partition(" - at `$")
    field = where.rstrip("`").removeprefix(".")
    if what.startswith("Object missing required field"):
        field = f"{field}.{what.split('`')[1]}".removeprefix(".")
        return Undecodable(f"`{field}` is required.", param=field, code="missing_field")
    return Undecodable(f"`{field}`: {what}." if field else f"{what}.", param=field or None, code="invalid_type")


def within(name: str, value: float | None, low: float, high: float) -> None:
    """Raises `BadRequest` where `value` is outside low..high, both included."""
    if value is not None and not low <= value <= high:
        raise BadRequest(
            f"`{name}` must be between {low:g} and {high:g}, got {_shown(value)}.", param=name, code="out_of_range"
        )


def _shown(value: float) -> str:
    """An integer in JSON may be larger than any float."""
    return f"{value:g}" if abs(value) < LARGE else "a number of too many digits"
