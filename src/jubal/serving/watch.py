"""Looks after upstreams in the background: how each is, and which breaker need not wait any longer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from jubal.engines.base import EngineStatus
from jubal.serving.breaker import Breaker

log = structlog.get_logger("jubal.watch")

SPREAD: Final = 0.2
"""Pauses differ by up to this share: many gateways that started together must not ask together."""
READY: Final = EngineStatus("ready")


class Probe(Protocol):
    """`engines.upstream.UpstreamProbe` is the real one."""

    async def probe(self) -> EngineStatus:
        """How the upstream is. Does not raise for what it does."""
        ...

    def unlisted(self, names: frozenset[str]) -> list[str]:
        """Those of `names` that it does not serve, as far as it told."""
        ...


@dataclass(slots=True)
class Watched:
    """An upstream to look after. interval_s: between two probes. upstreams: the model names that it is asked for."""

    name: str
    probe: Probe
    breaker: Breaker
    interval_s: float
    upstreams: frozenset[str]
    last: EngineStatus = READY
    warned: frozenset[str] = frozenset()


class Watch:
    """One task for each upstream. The first probe is at once."""

    def __init__(
        self,
        upstreams: Iterable[Watched],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._upstreams = tuple(upstreams)
        self._sleep = sleep
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.ensure_future(self._look_after(one)) for one in self._upstreams]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_after(self, one: Watched) -> None:
        while True:
            try:
                look(one, await one.probe.probe())
            except Exception:
                log.exception("a probe failed by a fault of ours", engine=one.name)
            await self._sleep(one.interval_s * random.uniform(1 - SPREAD, 1 + SPREAD))  # noqa: S311


def look(one: Watched, status: EngineStatus) -> None:
    """Tells the operator what is new, and wakes the breaker where the upstream answers again.

    Only then: one that lists its models and fails at answering would be woken from every rest otherwise.
    """
    before, one.last = one.last, status
    if status != before:
        if status.state == "failed":
            log.warning("upstream failed its health check", engine=one.name, reason=status.reason)
        elif before.state == "failed":  # as loud as the failure was: whoever read of that wants to know
            log.warning("upstream answers again", engine=one.name)
        if status.state == "ready" and status.reason:
            log.warning("upstream answers, but", engine=one.name, reason=status.reason)
    if status.state == "ready" and before.state == "failed":
        one.breaker.wake()
    missing = frozenset(one.probe.unlisted(one.upstreams)) - one.warned
    if missing:
        one.warned |= missing
        log.warning(
            "upstream does not list a configured model; requests for it will fail unless it knows the name all the same",
            engine=one.name,
            upstream=sorted(missing),
        )
