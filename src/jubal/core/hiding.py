"""Secrets taken out of texts that somebody will read: what others sent us, and what an exception says.

A last line: whoever makes a text leaves secrets out of it. But a library's exception may hold a header, and an upstream may repeat
the key that it was sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

HIDDEN: Final = "[hidden]"
SURE_CHARS_MIN: Final = 12
"""A shorter value may be a word: keys of local servers are often `none`, `EMPTY` or the server's name."""

_FORMS: Final = re.compile(
    r"(?i)(?P<scheme>\b(?:bearer|basic)\s+)[^\s\"'\\,;)}\]]{6,}"
    r"|(?P<place>[a-z][a-z0-9+.-]*://)[^\s/@\"'\\]*(?=@)"
    r"|(?P<prefix>\bxai-)[A-Za-z0-9_-]{16,}"
)
"""What is a secret by its form: of an Authorization header, before the host in a URL, a key of Jubal's or xAI's."""


def sure(values: Iterable[str | None]) -> tuple[str, ...]:
    """Those that can be looked for anywhere, the longest first: one may hold another."""
    found = {value for value in values if value and len(value) >= SURE_CHARS_MIN}
    return tuple(sorted(found, key=len, reverse=True))


def hide(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without `secrets`, and without what is a secret by its form."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _FORMS.sub(lambda found: f"{found['scheme'] or found['place'] or found['prefix']}{HIDDEN}", text)


class Concealed:
    """Secrets that are kept out of bytes. Falsy where there are none."""

    __slots__ = ("_values",)

    def __init__(self, *values: str | None) -> None:
        self._values = tuple(value.encode() for value in sure(values))

    def __bool__(self) -> bool:
        return bool(self._values)

    def __repr__(self) -> str:
        return "Concealed()"

    def out_of(self, data: bytes) -> bytes:
        """0.2 us where nothing is found, whatever the length: nearly all of it is the call."""
        for value in self._values:
            if value in data:
                data = data.replace(value, HIDDEN.encode())
        return data
