"""Which web pages may call the API from a browser: none, unless their origin is named (Fetch standard, "CORS protocol").

Keys travel in headers that a page sets itself, so `access-control-allow-credentials` is never sent, and cookies never count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

Headers = tuple[tuple[bytes, bytes], ...]

EXPOSED: Final = ", ".join(
    (
        "x-request-id",
        "request-id",
        "retry-after",
        "x-should-retry",
        "x-jubal-cache",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
    )
).encode()
"""Answer headers that a page may read beside the few that all may."""
METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
MAX_AGE_S: Final = b"600"
NAMES: Final = re.compile(r"[A-Za-z0-9, _-]{1,2000}")
"""Header names that a page asks to send: the official SDKs send some twenty of their own."""


class Cors:
    """origins: such as `https://app.example`, compared exactly."""

    __slots__ = ("_origins",)

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)

    def headers(self, origin: str | None) -> Headers:
        """For any answer: `vary` always, since the answer to another origin is another one."""
        vary = ((b"vary", b"origin"),)
        if origin not in self._origins or origin is None:
            return vary
        return (*vary, (b"access-control-allow-origin", origin.encode()), (b"access-control-expose-headers", EXPOSED))

    def preflight(self, origin: str | None, asked: str | None) -> Headers | None:
        """For the answer to a browser's question before a request; None where it is refused.

        asked: the names of the headers that the page wants to send.
        """
        if origin is None or origin not in self._origins or not NAMES.fullmatch(asked or "content-type"):
            return None
        return (
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", (asked or "content-type").encode()),
            (b"access-control-max-age", MAX_AGE_S),
        )
