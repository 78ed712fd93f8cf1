"""One child process that is kept alive. One task owns it; everybody else asks for it to be ready, and waits.

Decisions are in scheduler.py, and what touches the world is behind `Effects`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from jubal.core.errors import EngineUnavailable
from jubal.engines.llama_cpp.scheduler import Kill, Life, Policy, Record, Watch, after_life, judge

State: TypeAlias = Literal["stopped", "starting", "ready", "failed", "stopping"]
Heard: TypeAlias = Callable[[State, str | None], None]
"""Told of every change of state, with the reason if there is one. Must not block."""
T = TypeVar("T")

NOT_READY_RETRY_S = 1.0


class Child(Protocol):
    """A process that was started."""

    async def wait(self) -> None:
        """Returns when it is gone and reaped. May be awaited often and at the same time."""

    def signal(self, number: int) -> None:
        """Nothing happens where it is gone already."""

    def last_words(self) -> str | None:
        """Why it ended, by its own output."""


class Effects(Protocol):
    """Everything that the owner does to the world."""

    def problem(self) -> str | None:
        """Why a start can't succeed whatever is tried: one sentence that a user can act on. None: it may."""

    async def spawn(self) -> Child:
        """Starts a child. Raises `OSError`."""
        ...

    async def healthy(self, timeout_s: float) -> bool:
        """Whether the child says that it is ready. False where it does not answer in time."""
        ...

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...

    async def clean(self) -> None:
        """Removes what `spawn` left in the file system. The last call."""


class Process:
    """The child, from outside. `start` once, then `ready` as often as wanted, `close` at the end.

    stopped -> starting -> ready -> starting (it died) -> …; failed (it will not start; tried again slowly) -> ready;
    any -> stopping -> stopped.
    """

    def __init__(self, effects: Effects, policy: Policy, heard: Heard = lambda state, reason: None) -> None:
        self._effects = effects
        self._policy = policy
        self._heard = heard
        self._state: State = "stopped"
        self._reason: str | None = None
        self._life = 0
        self._changed = asyncio.Event()
        self._asked = asyncio.Event()
        self._stop = False
        self._accused: str | None = None
        self._heard_s = 0.0
        self._owner: asyncio.Task[None] | None = None

    # What others may ask

    @property
    def state(self) -> State:
        return self._state

    @property
    def reason(self) -> str | None:
        """Why it is not ready, where there is more to say than that it has not been tried for long enough."""
        return self._reason

    def start(self) -> None:
        """Begins to get ready, and keeps it so until `close`."""
        if self._owner is None:
            self._become("starting", None)
            self._owner = asyncio.create_task(self._own(), name="llama child")

    async def ready(self, timeout_s: float | None = None) -> int:
        """Waits until the child is ready, and returns the number of its life.

        Raises `EngineUnavailable` with the reason: at once where it failed or is stopped, else after timeout_s.
        """
        if not self._is("ready"):
            try:
                async with asyncio.timeout(timeout_s):
                    while self._is("starting"):
                        await self._changed.wait()
            except TimeoutError:
                raise self._unavailable(f"The model was not ready after {timeout_s:g} s.") from None
        if not self._is("ready"):
            raise self._unavailable("The model does not start." if self._is("failed") else "The engine is stopped.")
        return self._life

    async def over(self, life: int, within_s: float) -> bool:
        """Whether this life ended, waiting a little for the news: a broken connection is seen before the death behind it."""
        try:
            async with asyncio.timeout(within_s):
                while self._is("ready") and self._life == life:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def progressed(self) -> None:
        """The child did some work: a sign of life."""
        self._heard_s = self._effects.now()

    def accuse(self, life: int, why: str) -> None:
        """Somebody found the child hung: it is killed and started again, if it is still the same one."""
        if life == self._life and self._is("ready"):
            self._accused = why
            self._asked.set()

    def silent_s(self) -> float:
        """Seconds since the last sign of life that was work, or since it got ready."""
        return self._effects.now() - self._heard_s

    async def close(self) -> None:
        """Ends the child. Returns when it is gone; a caller that is cancelled stops waiting, not the end."""
        self._stop = True
        self._asked.set()
        if self._owner is not None:
            await asyncio.wait({self._owner})

    # The owner

    def _is(self, state: State) -> bool:
        return self._state == state

    def _become(self, state: State, reason: str | None) -> None:
        if (state, reason) == (self._state, self._reason):
            return
        self._state, self._reason = state, reason
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._heard(state, reason)

    def _unavailable(self, what: str) -> EngineUnavailable:
        return EngineUnavailable(f"{what} {self._reason or ''}".strip(), retry_after_s=NOT_READY_RETRY_S)

    async def _own(self) -> None:
        record = Record()
        try:
            life = await self._live()
            while not self._stop:
                record, pause = after_life(record, life, self._policy)
                self._become(pause.state, pause.reason)
                await self._until_asked(self._effects.sleep(pause.delay_s))
                life = life if self._stop else await self._live()
        finally:
            self._become("stopping", None)
            await self._effects.clean()
            self._become("stopped", None)

    async def _live(self) -> Life:
        """One child from start to end."""
        problem = self._effects.problem()
        if problem is not None:
            return Life(None, self._effects.now(), problem, hopeless=True)
        try:
            child = await self._effects.spawn()
        except OSError as error:
            return Life(None, self._effects.now(), f"Its process can't be started: {error}")
        self._life += 1
        self._accused = None
        gone = asyncio.create_task(child.wait())
        gently = True
        try:
            watch, verdict = await self._watch(gone)
            gently = verdict is None
        finally:
            if self._stop:
                self._become("stopping", None)
            await self._end(child, gone, gently=gently)
        why = verdict or f"It ended: {child.last_words() or 'it said nothing.'}"
        return Life(watch.ready_s, self._effects.now(), why)

    async def _watch(self, gone: asyncio.Task[None]) -> tuple[Watch, str | None]:
        """Follows the child until it is gone, somebody asks, or it must be killed; why, in that case."""
        now_s = self._effects.now()
        watch = Watch(now_s, None, now_s)
        while True:
            well = await self._until_asked(self._effects.healthy(self._policy.probe_timeout_s), gone)
            if self._over(gone):
                return watch, self._accused
            now_s = self._effects.now()
            watch = self._seen(watch, now_s, well=bool(well))
            verdict = judge(watch, now_s, self._policy)
            if isinstance(verdict, Kill):
                return watch, verdict.why
            await self._until_asked(self._effects.sleep(verdict.after_s), gone)
            if self._over(gone):
                return watch, self._accused

    def _over(self, gone: asyncio.Task[None]) -> bool:
        return gone.done() or self._stop or self._accused is not None

    def _seen(self, watch: Watch, now_s: float, *, well: bool) -> Watch:
        """The watch after a probe; the first good one makes the child ready."""
        if watch.ready_s is None:
            if not well:
                return watch
            self._heard_s = now_s
            self._become("ready", None)
            return Watch(watch.started_s, now_s, now_s)
        return Watch(watch.started_s, watch.ready_s, now_s if well else max(watch.heard_s, self._heard_s))

    async def _end(self, child: Child, gone: asyncio.Task[None], *, gently: bool) -> None:
        """Returns when the child is gone. A hung one gets no time to say goodbye."""
        if gently and not gone.done():
            child.signal(signal.SIGTERM)
            await self._first(self._effects.sleep(self._policy.grace_s), gone)
        if not gone.done():
            child.signal(signal.SIGKILL)
        await gone

    async def _until_asked(self, work: Coroutine[Any, Any, T], gone: asyncio.Task[None] | None = None) -> T | None:
        """The result of `work`, or None where the child is gone or somebody asks for something before."""
        asked = asyncio.create_task(self._asked.wait())
        try:
            return await self._first(work, *([asked] if gone is None else [asked, gone]))
        finally:
            asked.cancel()
            if not self._stop:
                self._asked.clear()

    @staticmethod
    async def _first(work: Coroutine[Any, Any, T], *others: asyncio.Task[Any]) -> T | None:
        """The result of `work`, or None where one of the others is done before; those go on."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, *others}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
