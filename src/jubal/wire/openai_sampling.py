"""The fields on how to sample, which chat and legacy completions share, from their wire models to the core."""

from __future__ import annotations

from operator import attrgetter
from typing import Final, Protocol

from jubal.core.errors import BadRequest
from jubal.core.events import Applied
from jubal.core.generation import Sampling
from jubal.wire.decode import within

STOPS_MAX: Final = 4
CHOICES_MAX: Final = 128
SEED_BITS: Final = 63
TOKEN_ID_DIGITS_MAX: Final = 9
TOKENS_MAX: Final = 2**31 - 1
RANGES: Final[dict[str, tuple[int, int]]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "seed": (-(2**SEED_BITS), 2**SEED_BITS - 1),
}
"""Of fields that take a number, both ends included (xai-api.md 6.1)."""
_ranged: Final = attrgetter(*RANGES)


def wants_priority(service_tier: str | None) -> bool:
    """Any other text is the default tier (xai-api.md 6.1)."""
    return service_tier in ("priority", "fast")


def tier_of(applied: Applied) -> str:
    """The service tier as an answer tells it: what was given, whatever was asked for."""
    return "priority" if applied.priority else "default"


class Sampled(Protocol):
    """A body with these fields; None means unset."""

    temperature: float | None
    top_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    seed: int | None
    stop: str | list[str] | None
    logit_bias: dict[str, float] | None


def sampling(asked: Sampled, stops_max: int = STOPS_MAX) -> Sampling:
    """Raises `BadRequest` naming the first field out of its range."""
    for value, name in zip(_ranged(asked), RANGES, strict=True):
        if value is not None:
            within(name, value, *RANGES[name])
    return Sampling(
        asked.temperature,
        asked.top_p,
        asked.frequency_penalty,
        asked.presence_penalty,
        asked.seed,
        _stops(asked.stop, stops_max),
        tuple(_bias(token, bias) for token, bias in asked.logit_bias.items()) if asked.logit_bias else (),
    )


def _bias(token: str, bias: float) -> tuple[int, float]:
    if not (token.isascii() and token.isdecimal()) or len(token) > TOKEN_ID_DIGITS_MAX:
        raise BadRequest(f"`logit_bias` takes token ids, got `{token[:64]}`.", param="logit_bias", code="invalid_value")
    within("logit_bias", bias, -100, 100)
    return int(token), bias


def _stops(stop: str | list[str] | None, most: int) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > most:
        raise BadRequest(f"`stop` takes up to {most} strings, got {len(stops)}.", param="stop", code="too_many")
    if not all(stops):
        raise BadRequest("`stop` must not hold an empty string.", param="stop", code="empty_value")
    return stops


def choices(n: int | None) -> int:
    """Raises `BadRequest`."""
    within("n", n, 1, CHOICES_MAX)
    return n or 1


def tokens_bound(name: str, value: int) -> int:
    """Raises `BadRequest` naming the field."""
    if value < 1:
        raise BadRequest(f"`{name}` must be at least 1, got {value}.", param=name, code="out_of_range")
    return min(value, TOKENS_MAX)
