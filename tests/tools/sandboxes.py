"""Real sandboxes for tests, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from jubal.tools.code_execution import cgroup, layout
from jubal.tools.code_execution.forks import ForkSandbox
from jubal.tools.code_execution.limits import Limits
from jubal.tools.code_execution.sandbox import Interpreter, SandboxUnavailable

SMALL = Limits(timeout_s=60, libraries=())


def no_cgroup() -> cgroup.Groups | None:
    return None


@asynccontextmanager
async def sandbox(limits: Limits = SMALL, kind: layout.Kind = "bubblewrap", **how: Any) -> AsyncIterator[ForkSandbox]:
    """Started, or the test is skipped with the reason. Afterwards nothing of it is left."""
    mine: set[int] = set()
    made = ForkSandbox(limits, kind, **how)
    try:
        try:
            await made.check()
        except SandboxUnavailable as error:
            if made.zygote is None and any(word in str(error).lower() for word in ("namespace", "landlock", "proc")):
                pytest.skip(str(error))
            raise
        yield made
    finally:
        mine = below(made.zygote.pid) if made.zygote is not None else set()
        await made.close()
    await until(lambda: gone(mine))


@asynccontextmanager
async def interpreter(made: ForkSandbox) -> AsyncIterator[Interpreter]:
    opened = await made.open()
    try:
        yield opened
    finally:
        await opened.close()


def below(pid: int | None = None) -> set[int]:
    """The processes that came of this one and live."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid or os.getpid()).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
    return found


def gone(pids: set[int]) -> bool:
    """Whether none of them lives, wherever it hangs in the tree by now."""
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


async def until(true: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)
