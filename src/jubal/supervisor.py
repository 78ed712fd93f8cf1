"""Several processes that are one server: a small parent starts workers, replaces those that die, and ends with all of them.

The parent answers no request and reads no store. To each worker it has a line, a pair of connected sockets:

    parent -> worker    first what it is to do (`Line.orders`); later `DRAIN`, and `STOP_NOW` for the end of a drain
    worker -> parent    once, when it answers requests, whatever it has to say

A line that closes tells the other side that nobody is there any more: a worker whose parent was killed drains and ends by itself.
Orders are no signals, as whoever stops a service may send signals to every process of it, and a worker would count two.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

import structlog

log = structlog.get_logger("jubal.supervisor")

DRAIN: Final = b"d"
STOP_NOW: Final = b"n"
LENGTH: Final = struct.Struct("!I")
PAUSE_FIRST_S: Final = 0.25
PAUSE_MAX_S: Final = 30.0
CALM_S: Final = 60.0
"""A worker that answered for so long did not die of its start: the next one comes after the shortest pause again."""


def pause_s(deaths: int) -> float:
    """Seconds until a worker is replaced. deaths: how many in a row came before this one, in its place."""
    return float(min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(deaths, 20)))


def has_terminal() -> bool:
    """Whether this process has, or had, one: asked at SIGHUP, which says that it is gone, or else that files are to be read again.

    A file that was a terminal is still told from others by its error.
    """
    for number in (0, 1, 2):
        try:
            os.tcgetpgrp(number)
        except OSError as error:
            if error.errno == errno.EIO:
                return True
        else:
            return True
    return False


# ---------------------------------------------------------------------------------------------- the parent


class Supervisor:
    """`number` workers, from the first start to the last exit. For one event loop, and `run` for one call.

    command: the argv of a worker, given the file descriptor of its line. orders: what a worker is told first; `first`: nobody is
    there before it, so it prepares what all of them need. close_door: lets go of the ports that the parent keeps for them.
    drain_s: how long a drain may take, after which workers are killed.
    """

    def __init__(
        self,
        number: int,
        command: Callable[[int], Sequence[str]],
        orders: Callable[[bool], bytes],
        *,
        close_door: Callable[[], None] = lambda: None,
        drain_s: float = 60,
    ) -> None:
        self._number = number
        self._command = command
        self._orders = orders
        self._close_door = close_door
        self._drain_s = drain_s
        self._stopping = asyncio.Event()
        self._workers: set[_Worker] = set()

    async def run(self, on_ready: Callable[[bytes], None]) -> int:
        """Returns the exit code when no worker is left: 0 where all of them drained.

        on_ready is called once, when all workers answer, with what the first one said. A worker that ends before that ends all:
        its code is returned, and it has said why on standard error.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        try:
            started = await self._start_all(on_ready)
            if started is None:
                return await self._failed()
            return max(await asyncio.gather(*(self._keep(worker) for worker in started)), default=0)
        finally:
            for worker in self._workers:
                worker.kill()

    async def _start_all(self, on_ready: Callable[[bytes], None]) -> list[_Worker] | None:
        """All workers, ready; None where one of them ended, or will not begin any more."""
        first = await self._start(first=True)
        said = await first.ready()
        if said is None or self._stopping.is_set():
            return [first] if self._stopping.is_set() else None
        others = [await self._start() for _ in range(self._number - 1)]
        ready = [await worker.ready() for worker in others]
        if self._stopping.is_set():
            return [first, *others]
        if None in ready:
            return None
        on_ready(said)
        return [first, *others]

    async def _failed(self) -> int:
        """Ends all because one could not start. Its exit code."""
        (culprit, *_) = [worker for worker in self._workers if worker.said is None]
        code = await culprit.gone()
        if code <= 0:
            log.error("a worker ended before it answered", worker=culprit.pid, how=_how(code))
        self._stop()
        await asyncio.gather(*(worker.gone() for worker in self._workers))
        return code if code > 0 else 1

    async def _keep(self, worker: _Worker) -> int:
        """Follows one worker and those that come in its place. The exit code of the last one, as this process's: 0 or 1."""
        deaths = 0
        while True:
            code = await worker.gone()
            self._workers.discard(worker)
            if self._stopping.is_set():
                return 0 if code == 0 or worker.ready_s is None else 1
            deaths = 0 if worker.answered_s() >= CALM_S else deaths
            log.warning("a worker ended and is replaced", worker=worker.pid, how=_how(code), pause_s=pause_s(deaths))
            next_one, deaths = await self._next(deaths)
            if next_one is None:
                return 0
            worker = next_one

    async def _next(self, deaths: int) -> tuple[_Worker | None, int]:
        """The worker that comes after so many deaths, and how many they are then; None where none comes any more."""
        while not await self._stopped_within(pause_s(deaths)):
            deaths += 1
            try:
                return await self._start(), deaths
            except OSError as error:
                log.error("no worker can be started", error=str(error), pause_s=pause_s(deaths))
        return None, deaths

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _start(self, *, first: bool = False) -> _Worker:
        ours, theirs = socket.socketpair()
        with ExitStack() as undo, theirs:
            undo.enter_context(ours)
            process = await asyncio.create_subprocess_exec(
                *self._command(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in a terminal is for the parent, which tells its workers
            )
            undo.pop_all()
        worker = _Worker(process, *await asyncio.open_connection(sock=ours))
        self._workers.add(worker)
        worker.tell(packed(self._orders(first)))
        if self._stopping.is_set():
            worker.drain()
        return worker

    def _stop(self) -> None:
        """Drains all; called again: ends the drain at once."""
        if self._stopping.is_set():
            for worker in self._workers:
                worker.tell(STOP_NOW)
            return
        self._stopping.set()
        self._close_door()
        for worker in self._workers:
            worker.drain()
        asyncio.get_running_loop().call_later(self._drain_s, self._kill)

    def _hung_up(self) -> None:
        """The terminal is gone, and with it who started the server; without one, workers read their files again."""
        if has_terminal():
            if not self._stopping.is_set():
                self._stop()
            return
        for worker in self._workers:
            worker.hang_up()

    def _kill(self) -> None:
        for worker in self._workers:
            log.error("a worker did not end and is killed", worker=worker.pid)
            worker.kill()


class _Worker:
    """One worker as its parent sees it. said: what it said when it was ready; ready_s: when, on the monotonic clock."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.said: bytes | None = None
        self.ready_s: float | None = None
        self._process = process
        self._writer = writer
        self._hearing = asyncio.ensure_future(self._hear(reader))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> bytes | None:
        """What it says when it answers requests; None where it ends before."""
        return await self._hearing

    async def _hear(self, reader: asyncio.StreamReader) -> bytes | None:
        try:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            self.said = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self.ready_s = time.monotonic()
        return self.said

    def answered_s(self) -> float:
        return 0.0 if self.ready_s is None else time.monotonic() - self.ready_s

    async def gone(self) -> int:
        """Its exit code when it has ended, negative for a signal."""
        code = await self._process.wait()
        self._writer.close()
        return code

    def tell(self, order: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(order)

    def drain(self) -> None:
        self.tell(DRAIN)
        if self.ready_s is None:  # it may not listen to orders for a while, and has nothing to drain
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def hang_up(self) -> None:
        """One that is not ready yet reads its files anyway, and would be ended by the signal."""
        if self.ready_s is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


def packed(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


# ---------------------------------------------------------------------------------------------- a worker


class Line:
    """A worker's end of the line to its parent. descriptor: as its command was given it."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)  # not for what this worker starts

    def orders(self) -> bytes:
        """What the parent says first. Raises `EOFError` where it is gone."""
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        return self._exactly(length)

    def ready(self, said: bytes) -> None:
        """Tells the parent that requests are answered here. Nothing where it is gone: `listen` hears of that."""
        with contextlib.suppress(OSError):
            self._socket.sendall(packed(said))

    def listen(self, drain: Callable[[], None], stop_now: Callable[[], None], *, drain_s: float) -> None:
        """From now on calls these in the event loop when the parent says so; `drain` also where the parent is gone.

        In a thread of its own: a worker whose event loop hangs must not outlive its parent either. It is given drain_s then.
        SIGTERM drains too; SIGINT is the parent's.
        """
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, drain)
        acts = {DRAIN: drain, STOP_NOW: stop_now}

        def follow() -> None:
            with contextlib.suppress(OSError):
                while order := self._socket.recv(1):
                    _call(loop, acts[order])
            _call(loop, drain)
            time.sleep(drain_s)
            os._exit(1)

        threading.Thread(target=follow, name="jubal-line", daemon=True).start()

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self._socket.recv(size - len(found))
            if not piece:
                raise EOFError("the parent is gone")
            found += piece
        return found


def _call(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: this process is at its end anyway
        loop.call_soon_threadsafe(act)
