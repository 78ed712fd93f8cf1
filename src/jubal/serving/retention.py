"""Deletes usage rows that are too old, a few at a time, so that nobody waits long for the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from jubal.accounts import usage
from jubal.accounts.store import Store
from jubal.core.errors import JubalError

log = structlog.get_logger("jubal.retention")

DAY_US: Final = 86_400_000_000
EVERY_S: Final = 600.0
PAUSE_S: Final = 0.05
"""Between two batches: a batch of 1,000 takes some milliseconds, so answers keep nine tenths of the store."""


class Retention:
    """days: how long rows stay. Any number of gateways may do this at once. now_us: microseconds since 1970."""

    def __init__(
        self,
        store: Store,
        days: int,
        *,
        every_s: float = EVERY_S,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._store = store
        self._days = days
        self._every_s = every_s
        self._now_us = now_us
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._work())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                await self.round()
            except JubalError as error:
                log.warning("old usage rows stay for now", error=error.message)
            except Exception:
                log.exception("a round of deleting old usage rows failed by a fault of ours")
            await asyncio.sleep(self._every_s)

    async def round(self) -> int:
        """Deletes all that is too old now, and returns how many rows that were. Raises `StoreUnavailable`."""
        before_us = self._now_us() - self._days * DAY_US
        deleted = 0
        while found := await self._store.run(usage.delete_before, before_us):
            deleted += found
            await asyncio.sleep(PAUSE_S)
        return deleted
