"""The other side of a connection, and who must know when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

EXTENSION: Final = "jubal.peer"
NOTHING: Final[Mapping[str, Any]] = {}


class Peer:
    """gone: it has closed the connection, or was cut off. Belongs to one event loop."""

    __slots__ = ("_watchers", "gone")

    def __init__(self) -> None:
        self.gone = False
        self._watchers: set[Callable[[], None]] = set()

    def watch(self, tell: Callable[[], None]) -> None:
        """`tell` is called once, when the peer leaves; soon, where it has left already."""
        self._watchers.add(tell)
        if self.gone:
            asyncio.get_running_loop().call_soon(self._tell, tell)

    def unwatch(self, tell: Callable[[], None]) -> None:
        self._watchers.discard(tell)

    def leave(self) -> None:
        self.gone = True
        for tell in tuple(self._watchers):
            self._tell(tell)

    def extensions(self) -> dict[str, dict[object, object]]:
        """Of the ASGI scopes of all requests on this connection."""
        return {EXTENSION: {"peer": self}}

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Peer:
        """One that never leaves, where the server does not tell."""
        found: Peer | None = scope.get("extensions", NOTHING).get(EXTENSION, NOTHING).get("peer")
        return cls() if found is None else found

    def _tell(self, tell: Callable[[], None]) -> None:
        if tell in self._watchers:
            self._watchers.discard(tell)
            tell()
