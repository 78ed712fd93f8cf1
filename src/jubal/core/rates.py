"""What is left of rate limits, as it may be told to whoever keeps them."""

from __future__ import annotations

from typing import NamedTuple


class Allowance(NamedTuple):
    """limit_*: of the limit that is told of. remaining_*: what could be taken of it. None: nothing limits it.

    Requests are those of a minute, or of a second where that is the limit.
    """

    limit_requests: int | None = None
    remaining_requests: int | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
