"""Keeps answers for dialects whose answers can be fetched again and gone on from."""

from __future__ import annotations

import time
from collections.abc import Callable

from jubal.accounts.keys import Caller
from jubal.accounts.store import Store
from jubal.core.errors import NotFound
from jubal.core.events import Event
from jubal.core.fold import Folder
from jubal.records import answers
from jubal.records.answers import Answer
from jubal.serving.pipeline import Admitted
from jubal.wire.base import Recorded


class Answers:
    """The kept answers of one dialect, and those of any that it goes on from.

    dialect: its name in the store. now_us: microseconds since 1970.
    """

    def __init__(
        self, store: Store, dialect: str, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self._store = store
        self._dialect = dialect
        self._now_us = now_us

    async def find(self, caller: Caller, identity: str) -> bytes:
        """The record. Raises `NotFound` for what was never kept, is gone, or belongs to another team or dialect."""
        return await self._found(caller, identity, self._dialect, "response_id")

    async def previous(self, caller: Caller, identity: str) -> bytes:
        """The record of an answer to go on from, in whatever dialect it was given. Raises `NotFound`."""
        return await self._found(caller, identity, None, "previous_response_id")

    async def _found(self, caller: Caller, identity: str, dialect: str | None, param: str) -> bytes:
        if "\0" in identity:  # PostgreSQL takes none in a text
            raise _not_found(identity, param)
        found = await self._store.run_read(answers.find, identity[:200], caller.team_id, dialect, self._now_us())
        if found is None:
            raise _not_found(identity, param)
        return found

    async def delete(self, caller: Caller, identity: str) -> None:
        """Raises `NotFound`."""
        if not await self._store.run(answers.delete, identity[:200], caller.team_id, self._dialect, self._now_us()):
            raise _not_found(identity, "response_id")

    def keeper(self, asked: Recorded, admitted: Admitted) -> AnswerKeeper:
        """What gathers the answer to `asked`, for `Admitted.keeper`."""
        return AnswerKeeper(asked, admitted, self._dialect, self._now_us)


class AnswerKeeper:
    """Feeds on the events of one answer, and makes of them what is kept."""

    __slots__ = ("_admitted", "_asked", "_dialect", "_folder", "_now_us")

    def __init__(self, asked: Recorded, admitted: Admitted, dialect: str, now_us: Callable[[], int]) -> None:
        self._asked = asked
        self._admitted = admitted
        self._dialect = dialect
        self._now_us = now_us
        self._folder = Folder()

    def see(self, event: Event) -> None:
        self._folder.feed(event)

    async def answer(self) -> Answer:
        """After `Finished` was seen."""
        assert self._folder.completion is not None
        admitted = self._admitted
        packed = await answers.packed(self._asked.record(self._folder.completion))
        return Answer(admitted.request_id, admitted.caller.team_id, self._dialect, packed, self._now_us())


def _not_found(identity: str, param: str) -> NotFound:
    return NotFound(
        f"There is no response `{identity[:64]}`: it was not stored, was deleted, or has expired.",
        param=param,
        code="response_not_found",
    )
