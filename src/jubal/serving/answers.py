"""Keeps answers for dialects whose answers can be fetched again and gone on from."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from jubal.accounts.keys import Caller
from jubal.accounts.store import Store
from jubal.core.errors import NotFound
from jubal.core.events import Event, Finished
from jubal.core.fold import Folder
from jubal.records import answers
from jubal.serving.pipeline import Admitted
from jubal.wire.base import Recorded

SWEEP_US: Final = 600 * 1_000_000


class Answers:
    """The kept answers of one dialect. dialect: its name in the store. now_us: microseconds since 1970."""

    def __init__(
        self, store: Store, dialect: str, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self._store = store
        self._dialect = dialect
        self._now_us = now_us
        self._sweep_at_us = 0

    async def find(self, caller: Caller, identity: str, param: str = "response_id") -> bytes:
        """The record. Raises `NotFound` for what was never kept, is gone, or belongs to another team."""
        if "\0" in identity:  # PostgreSQL takes none in a text
            raise _not_found(identity, param)
        found = await self._store.run_read(answers.find, identity[:200], caller.team_id, self._dialect, self._now_us())
        if found is None:
            raise _not_found(identity, param)
        return found

    async def delete(self, caller: Caller, identity: str) -> None:
        """Raises `NotFound`."""
        if not await self._store.run(answers.delete, identity[:200], caller.team_id, self._dialect, self._now_us()):
            raise _not_found(identity, "response_id")

    async def kept(
        self, events: AsyncGenerator[Event, None], asked: Recorded, admitted: Admitted
    ) -> AsyncGenerator[Event, None]:
        """The same events; the answer is in the store before its last event is passed on."""
        folder = Folder()
        async with aclosing(events):
            async for event in events:
                folder.feed(event)
                if isinstance(event, Finished) and folder.completion is not None:
                    await self._keep(admitted, asked.record(folder.completion))
                yield event

    async def _keep(self, admitted: Admitted, record: bytes) -> None:
        now_us = self._now_us()
        if now_us >= self._sweep_at_us:
            self._sweep_at_us = now_us + SWEEP_US
            await self._store.run(answers.sweep, now_us)
        await self._store.run(
            answers.keep,
            request_id=admitted.request_id,
            team_id=admitted.caller.team_id,
            dialect=self._dialect,
            record=record,
            now_us=now_us,
        )


def _not_found(identity: str, param: str) -> NotFound:
    return NotFound(
        f"There is no response `{identity[:64]}`: it was not stored, was deleted, or has expired.",
        param=param,
        code="response_not_found",
    )
