"""Runs deferred requests when there is room, and hands out their answers, once.

Any number of gateways on one store share the work: what each of them takes is claimed in records/deferred.py, and renewed
while it runs. A job goes through the pipeline as any request does, but its usage row is kept back and stored with its answer
in one transaction; so an attempt that is cut by a shutdown, or by a kill, leaves no row, and the one that counts leaves one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import structlog

from jubal.accounts import keys
from jubal.accounts.keys import Caller
from jubal.accounts.limits import Ticket
from jubal.accounts.store import Store
from jubal.core.errors import AtCapacity, InternalError, JubalError, NotFound, StoreUnavailable
from jubal.core.fold import fold
from jubal.records import answers, deferred
from jubal.records.answers import Entry, row_of
from jubal.records.deferred import Ended, Job
from jubal.serving.answers import Answers
from jubal.serving.pipeline import Admitted, Keeper, Pipeline
from jubal.wire.base import ErrorReply, KeptWhole, WholeAsked, WholeDialect

log = structlog.get_logger("jubal.deferred")

RUNNING_MAX: Final = 3
"""Jobs at a time: one less than the embedded engine's places, so that those who wait for their answer find one."""
POLL_S: Final = 1.0
"""How soon a job is found that another gateway took in, or lost."""
LEASE_S: Final = 60.0
TOKENS_COUNT_S: Final = 60.0
"""A limit is per minute."""
BUSY_PAUSE_S: Final = 2.0
"""How long a job stays away from an engine that has a queue."""
SWEEP_S: Final = 60.0
ATTEMPTS_MAX: Final = 3
"""Claims that are not given back end with their process: a request that kills its server must not do so for ever."""
FINISH_PAUSES_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 5.0)
"""An answer is there and the store is not: worth some patience, as all the work would have to be done again."""


class Line(Protocol):
    """The deferred requests of one dialect."""

    endpoint: str

    def read(self, body: bytes) -> tuple[WholeAsked, Callable[[Admitted], Keeper | None]]:
        """The request, and what makes the keeper of its answer. Raises `BadRequest`."""
        ...

    def error(self, error: JubalError) -> ErrorReply: ...


class PlainLine:
    """Of a dialect that keeps no answers."""

    def __init__(self, dialect: WholeDialect) -> None:
        self.endpoint = dialect.endpoint
        self.error = dialect.error
        self._dialect = dialect

    def read(self, body: bytes) -> tuple[WholeAsked, Callable[[Admitted], Keeper | None]]:
        return self._dialect.parse(body), lambda admitted: None


class KeptLine:
    """Of a dialect whose answers can be kept beside."""

    def __init__(self, dialect: KeptWhole, answers: Answers) -> None:
        self.endpoint = dialect.endpoint
        self.error = dialect.error
        self._dialect = dialect
        self._answers = answers

    def read(self, body: bytes) -> tuple[WholeAsked, Callable[[Admitted], Keeper | None]]:
        asked = self._dialect.parse(body)
        return asked, lambda admitted: self._answers.keeper(asked, admitted) if asked.keep else None


class Deferred:
    """Made without I/O; `start` before jobs run, `stop` before the pipeline and the store end. Belongs to one event loop.

    lines: by the dialects' names in the store, each made at the first job of its dialect. now_us: microseconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        pipeline: Pipeline,
        lines: Mapping[str, Callable[[], Line]],
        *,
        running_max: int = RUNNING_MAX,
        poll_s: float = POLL_S,
        lease_s: float = LEASE_S,
        tokens_count_s: float = TOKENS_COUNT_S,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._lines = lines
        self._made: dict[str, Line] = {}
        self._running_max = running_max
        self._poll_s = poll_s
        self._lease_s = lease_s
        self._tokens_count_s = tokens_count_s
        self._now_us = now_us
        self._wake = asyncio.Event()
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._held: dict[str, tuple[Ticket, int, asyncio.TimerHandle]] = {}
        self._sweep_at_us = 0

    # ------------------------------------------------------------------------------------------ for callers

    async def submit(self, admitted: Admitted, dialect: str, body: bytes) -> None:
        """Returns when the job is durable. Raises `TooFast`, `AtCapacity`, `OutOfCredit`, `StoreUnavailable`."""
        await self._pipeline.take(admitted)
        kept = False
        self._hold(admitted)  # before the job can be claimed
        try:
            await self._pipeline.check_credit(admitted)
            await self._store.run(
                deferred.submit,
                request_id=admitted.request_id,
                team_id=admitted.caller.team_id,
                key_id=admitted.caller.key_id,
                dialect=dialect,
                body=body,
                now_us=self._now_us(),
            )
            kept = True
        finally:
            if not kept:
                self._let_go(admitted.request_id, 0)
        self._wake.set()

    def _hold(self, admitted: Admitted) -> None:
        """Its tokens stay taken until it has ended here. Not for longer than they count: after a minute they have left the limit,
        and who knows which gateway runs it."""
        if admitted.ticket.open:  # somebody limits it
            over = asyncio.get_running_loop().call_later(self._tokens_count_s, self._let_go, admitted.request_id, None)
            self._held[admitted.request_id] = (admitted.ticket, admitted.tokens_taken, over)

    def _let_go(self, request_id: str, used_tokens: int | None) -> None:
        """used_tokens: None where that is not known, and it counts as all it may use."""
        held = self._held.pop(request_id, None)
        if held is not None:
            ticket, taken, over = held
            over.cancel()
            self._pipeline.put_off(ticket, 0 if used_tokens is None else taken - used_tokens)

    async def fetch(self, caller: Caller, dialect: str, request_id: str) -> tuple[int, bytes]:
        """The status and body to answer with: 202 and none until the job has ended; after that what it ended with, once.

        dialect: in whose words it was asked for, and is answered.

        Raises `NotFound` for what was never there, is gone, or belongs to another team.
        """
        now_us = self._now_us()
        state = await self._store.run_read(deferred.state, request_id, caller.team_id, dialect, now_us)
        if state in ("pending", "running"):
            return 202, b""
        ended = None
        if state is not None:
            ended = await self._store.run(deferred.take, request_id, caller.team_id, dialect, now_us)
        if ended is None:
            raise NotFound(
                f"There is no deferred completion `{request_id}`: it was fetched already, has expired, or never was.",
                param="request_id",
                code="deferred_not_found",
            )
        return ended.status, ended.body

    # ------------------------------------------------------------------------------------------ the worker

    def start(self) -> None:
        self._loop = asyncio.ensure_future(self._work())

    async def stop(self) -> None:
        """Cuts the jobs that run and gives them back: whoever starts next on this store goes on with them."""
        self._stopping = True
        self._wake.set()
        if self._loop is not None:  # not cancelled: what it is just claiming would stay claimed
            await self._loop
        for task in self._running:
            task.cancel()
        for request_id in tuple(self._held):
            self._let_go(request_id, None)
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _work(self) -> None:
        away = False
        while not self._stopping:
            self._wake.clear()
            try:
                await self._round()
                away = False
            except JubalError as error:
                if not away:
                    log.warning("deferred requests wait for the store", error=error.message)
                away = True
            except Exception:
                log.exception("a round of deferred requests failed by a fault of ours")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()

    async def _round(self) -> None:
        """Takes as many jobs as there is room for."""
        now_us = self._now_us()
        if now_us >= self._sweep_at_us:
            await self._store.run(deferred.sweep, now_us)
            await self._sweep_answers(now_us)
            self._sweep_at_us = now_us + int(SWEEP_S * 1e6)
        room = self._running_max - len(self._running)
        if room <= 0 or not await self._store.run_read(deferred.due, list(self._lines), now_us):
            return
        claimed = await self._store.run(
            deferred.claim,
            dialects=list(self._lines),
            jobs_max=room,
            lease=str(uuid.uuid4()),
            lease_us=self._lease_us,
            now_us=self._now_us(),
        )
        for job in claimed:
            task = asyncio.ensure_future(self._run(job))
            self._running.add(task)
            task.add_done_callback(self._ran)

    async def _sweep_answers(self, now_us: int) -> None:
        """Of no deferred request, but this is what goes round in every server."""
        while await self._store.run(answers.sweep, now_us) == answers.SWEEP_MAX:
            pass

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("a deferred request could not be ended", error=str(error), exc_info=error)
        else:
            self._wake.set()

    @property
    def _lease_us(self) -> int:
        return int(self._lease_s * 1e6)

    async def _run(self, job: Job) -> None:
        """One attempt at a job, to its end or to its being given back."""
        task = asyncio.current_task()
        assert task is not None
        keeper = asyncio.ensure_future(self._keep(job, task))
        row = _Kept()
        try:
            ended = await self._attempt(job, row)
            await self._finish(job, ended)
            self._let_go(job.request_id, _used(ended.entry))
            row.charged = True
        except AtCapacity:
            await self._give_back(job, self._now_us() + int(BUSY_PAUSE_S * 1e6))
            raise asyncio.CancelledError from None  # no reason to look for work at once
        except (asyncio.CancelledError, StoreUnavailable):
            await self._give_back(job)
            raise asyncio.CancelledError from None
        finally:
            keeper.cancel()
            if row.admitted is not None:  # only now: the row is committed with the answer, or never
                cost = row_of(row.entry).cost_in_usd_ticks if row.entry is not None else 0
                self._pipeline.charging.settled(row.admitted.held, cost, certain=row.charged or not cost)

    async def _attempt(self, job: Job, row: _Kept) -> Ended:
        """How the job ended. Raises `AtCapacity` and `StoreUnavailable`, which are no end: it can go on later."""
        line = self._line(job.dialect)
        try:
            if job.attempts > ATTEMPTS_MAX:
                raise InternalError(
                    f"This request was begun {ATTEMPTS_MAX} times and never came to an end, so it was given up.",
                    code="deferred_given_up",
                )
            caller = await self._store.run_read(keys.caller_of, job.key_id, self._now_us())
            asked, keeper_of = line.read(job.body)
            row.admitted = admitted = self._pipeline.admit(
                caller, line.endpoint, asked.generation, request_id=job.request_id, later=row
            )
            if self._pipeline.engines[admitted.model.engine].admission.queued:
                raise AtCapacity("Others wait for the engine.")
            if self._pipeline.rests(admitted.model):
                raise AtCapacity("The engine rests after failures.")
            admitted.keeper = keeper_of(admitted)
            completion = await fold(self._pipeline.run(admitted))
            return Ended("done", 200, asked.whole(completion), row.entry)
        except (AtCapacity, StoreUnavailable):
            raise
        except JubalError as error:
            reply = line.error(error)
            return Ended("failed", reply.status, reply.body, row.entry)

    def _line(self, dialect: str) -> Line:
        line = self._made.get(dialect)
        if line is None:
            line = self._made[dialect] = self._lines[dialect]()
        return line

    async def _finish(self, job: Job, ended: Ended) -> None:
        """Raises `StoreUnavailable` where the store stays away."""
        for pause_s in FINISH_PAUSES_S:
            try:
                if not await self._store.run(deferred.finish, job, ended):
                    log.warning("a deferred request was run by someone else too", request_id=job.request_id)
                return
            except StoreUnavailable:
                await asyncio.sleep(pause_s)
        await self._store.run(deferred.finish, job, ended)

    async def _give_back(self, job: Job, not_before_us: int = 0) -> None:
        try:
            await self._store.run(deferred.give_back, job, not_before_us=not_before_us)
        except StoreUnavailable as error:
            log.warning("a deferred request waits for its lease to end", request_id=job.request_id, error=error.message)

    async def _keep(self, job: Job, task: asyncio.Task[None]) -> None:
        """Renews the lease while `task` runs, and cuts it where that fails: then another gateway may begin."""
        until_us = job.lease_until_us
        while True:
            await asyncio.sleep(self._lease_s / 3)
            now_us = self._now_us()
            try:
                renewed = await self._store.run(deferred.renew, job, lease_us=self._lease_us, now_us=now_us)
                until_us = renewed or 0
            except StoreUnavailable:
                pass
            if self._now_us() + self._lease_us // 3 >= until_us:
                break
        log.warning("a deferred request lost its lease", request_id=job.request_id)
        task.cancel()


def _used(entry: Entry | None) -> int:
    if entry is None:
        return 0
    row = row_of(entry)
    return row.prompt_tokens + row.completion_tokens + row.reasoning_tokens


class _Kept:
    """A usage log that keeps the row of one attempt. charged: it is in the store."""

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.admitted: Admitted | None = None
        self.charged = False

    async def commit(self, entry: Entry) -> None:
        self.entry = entry
