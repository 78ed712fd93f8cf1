"""Several local models under one limit on memory. One task owns what is loaded; requests ask it for their model, and wait.

Decisions are in eviction.py, and what touches the world is behind `Loadable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

from jubal.core.errors import EngineUnavailable, JubalError
from jubal.engines.llama_cpp.eviction import Plan, Tenant, decide

MIB: Final = 1 << 20
RETRY_S: Final = 2.0
LOOK_EVERY_S: Final = 5.0
"""How often the models' real size is looked at while nobody asks for anything: they grow while they work."""

Place: TypeAlias = Literal["loaded", "unloaded", "undecided", "refused"]


@dataclass(frozen=True, slots=True)
class Size:
    """What a model takes by its file, in bytes: the file itself, the cache of `slots` times `context` tokens, the program."""

    weights: int
    cache: int
    program: int
    slots: int
    context: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.program

    def __str__(self) -> str:
        return (
            f"about {in_mib(self.total)} MiB ({in_mib(self.weights)} of weights, {in_mib(self.cache)} for {self.slots} x "
            f"{self.context:,} tokens, {in_mib(self.program)} for the program)"
        )


def in_mib(size: int) -> str:
    """Rounded up, so that nobody sets a limit that is a little too low."""
    return f"{-(-size // MIB):,}"


class Loadable(Protocol):
    """A model in a process of its own: all that the owner does to the world."""

    name: str

    async def estimate(self) -> Size | None:
        """What it will take, by its file. None: the file is not there."""
        ...

    async def load(self) -> None:
        """Begins to load, and returns soon. Raises `OSError`."""

    async def unload(self) -> None:
        """Ends its process. Returns when that is gone."""

    def measured(self) -> int | None:
        """Bytes that its process really takes, None before it is ready."""
        ...


@dataclass(slots=True, eq=False)
class _Waiter:
    since: float
    turn: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class _Member:
    """size: None before it was estimated. grown: the most that was ever measured. refusal: why it can't be loaded."""

    model: Loadable
    preload: bool
    size: Size | None = None
    grown: int = 0
    loaded: bool = False
    running: int = 0
    used: float = 0.0
    refusal: str | None = None
    waiting: deque[_Waiter] = field(default_factory=deque)
    leaving: asyncio.Event | None = None


class ModelMemory:
    """Room for models, at most `limit` bytes of it."""

    def __init__(self, limit: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        self._members: dict[str, _Member] = {}
        self._closed: frozenset[str] = frozenset()
        self._asked = asyncio.Event()
        self._decided = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None

    # What models and requests ask

    async def refusals(self, models: Iterable[Loadable]) -> list[str]:
        """A sentence for each model that can never be loaded, because alone it is larger than the limit."""
        sizes = [(model.name, await model.estimate()) for model in models]
        return [self._too_large(name, size) for name, size in sizes if size is not None and size.total > self.limit]

    def join(self, model: Loadable, *, preload: bool) -> None:
        """From now on requests may `use` the model. preload: it is loaded now if it fits beside those that joined before it."""
        if model.name in self._members:
            return
        self._members[model.name] = _Member(model, preload)
        self._asked.set()
        if self._owner is None or self._owner.done():
            self._owner = asyncio.create_task(self._own(), name="model memory")

    async def leave(self, model: Loadable) -> None:
        """Unloads the model, whoever uses it. A caller that is cancelled stops waiting, not the end."""
        member = self._members.get(model.name)
        if member is None:
            return
        member.leaving = member.leaving or asyncio.Event()
        self._asked.set()
        await member.leaving.wait()

    def place(self, name: str) -> Place:
        """Where a model is. undecided: it is not known yet whether it will be loaded from the start."""
        member = self._members.get(name)
        if member is None or member.leaving is not None:
            return "unloaded"
        if member.loaded:
            return "loaded"
        if member.refusal is not None:
            return "refused"
        return "undecided" if member.preload or member.waiting else "unloaded"

    def refusal(self, name: str) -> str | None:
        """Why a model is refused."""
        member = self._members.get(name)
        return member.refusal if member else None

    async def decided(self, name: str) -> Place:
        """Waits until it is known whether a model is loaded from the start."""
        while (place := self.place(name)) == "undecided":
            await self._decided.wait()
        return place

    @asynccontextmanager
    async def use(self, name: str, timeout_s: float) -> AsyncIterator[None]:
        """Inside, the model is loaded or loading, and stays so.

        Raises `EngineUnavailable` where it can't ever be, or found no room within timeout_s.
        """
        member = self._members.get(name)
        if member is None or member.leaving is not None:
            raise EngineUnavailable(f"The engine `{name}` is not started.")
        if member.loaded and not member.waiting and name not in self._closed:
            self._enter(member)
        else:
            await self._wait(member, timeout_s)
        try:
            yield
        finally:
            self._exit(member)

    # Requests

    def _enter(self, member: _Member) -> None:
        member.running += 1
        member.used = self._now()

    def _exit(self, member: _Member) -> None:
        member.running -= 1
        self._asked.set()

    async def _wait(self, member: _Member, timeout_s: float) -> None:
        """Until the owner lets it in, which counts it as running."""
        waiter = _Waiter(self._now(), asyncio.get_running_loop().create_future())
        member.waiting.append(waiter)
        self._asked.set()
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.turn
        except BaseException as error:
            if waiter in member.waiting:
                member.waiting.remove(waiter)
                self._asked.set()
            elif not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self._exit(member)  # let in, and gone in the same moment
            if isinstance(error, TimeoutError):
                raise EngineUnavailable(
                    f"There was no room in memory for the model of the engine `{member.model.name}` within {timeout_s:g} s: "
                    "the others are busy.",
                    retry_after_s=RETRY_S,
                ) from None
            raise

    def _let_in(self, member: _Member) -> None:
        while member.waiting:
            waiter = member.waiting.popleft()
            if not waiter.turn.done():
                self._enter(member)
                waiter.turn.set_result(None)

    @staticmethod
    def _turn_away(member: _Member, error: JubalError) -> None:
        while member.waiting:
            waiter = member.waiting.popleft()
            if not waiter.turn.done():
                waiter.turn.set_exception(error)

    # The owner

    async def _own(self) -> None:
        while True:
            self._asked.clear()
            await asyncio.gather(*(self._dismiss(one) for one in self._members.values() if one.leaving is not None))
            if not self._members:
                return
            await self._weigh()
            plan = decide([self._tenant(one) for one in self._members.values()], self.limit)
            self._closed = plan.closed
            await self._do(plan)
            decided, self._decided = self._decided, asyncio.Event()
            decided.set()
            if plan.idle:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._asked.wait()

    async def _dismiss(self, member: _Member) -> None:
        name = member.model.name
        self._turn_away(member, EngineUnavailable(f"The engine `{name}` is stopped.", retry_after_s=RETRY_S))
        if member.loaded:
            await member.model.unload()
        del self._members[name]
        assert member.leaving is not None
        member.leaving.set()

    async def _weigh(self) -> None:
        for member in list(self._members.values()):
            if member.loaded:
                member.grown = max(member.grown, member.model.measured() or 0)
            elif (
                member.size is None or member.preload or member.waiting
            ):  # the file may have come, or another in its place
                member.size = await member.model.estimate()
                fits = member.size is None or member.size.total <= self.limit
                member.refusal = None if fits else self._too_large(member.model.name, member.size)

    def _tenant(self, member: _Member) -> Tenant:
        """The larger of estimate and measurement counts: a process grows while it works, and what is on a GPU is not seen.

        One that has grown beyond the limit may be loaded again, alone.
        """
        size = member.size.total if member.size else 0
        if member.refusal is None:
            size = max(size, member.grown if member.loaded else min(member.grown, self.limit))
        since = member.waiting[0].since if member.waiting else None
        return Tenant(
            member.model.name, size, member.loaded, member.running, since, member.used, preload=member.preload
        )

    async def _do(self, plan: Plan) -> None:
        for name in plan.refuse:
            member = self._members[name]
            member.preload = False
            self._turn_away(member, EngineUnavailable(member.refusal or "", code="model_too_large"))
        for name in plan.admit:
            self._let_in(self._members[name])
        going = [self._members[name] for name in plan.unload]
        for member in going:
            member.loaded = False
        await asyncio.gather(*(member.model.unload() for member in going))
        if plan.load is not None:
            await self._load(self._members[plan.load])
        if plan.settle:
            for member in self._members.values():
                member.preload = False

    async def _load(self, member: _Member) -> None:
        member.preload = False
        try:
            await member.model.load()
        except OSError as error:
            why = f"The engine `{member.model.name}` can't be started: {error.strerror or error}."
            self._turn_away(member, EngineUnavailable(why, retry_after_s=RETRY_S))
            return
        member.loaded = True
        member.used = self._now()
        self._let_in(member)

    def _too_large(self, name: str, size: Size | None) -> str:
        return (
            f"The model of the engine `{name}` takes {size}, and all models together may take {in_mib(self.limit)} MiB."
        )
