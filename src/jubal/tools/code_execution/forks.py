"""The server's side of the sandbox: keeps one warm interpreter, and has it forked for each session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from jubal.tools.code_execution import cgroup, layout
from jubal.tools.code_execution.inside.launch import Order
from jubal.tools.code_execution.inside.plan import FRAME_BYTES_MAX
from jubal.tools.code_execution.limits import MIB, Limits
from jubal.tools.code_execution.sandbox import End, Ran, SandboxUnavailable

START_S: Final = 60.0
OPEN_S: Final = 30.0
TURN_S: Final = 30.0
GRACE_S: Final = 10.0
"""What the supervisor may take beyond a call's own time, to kill and to collect files, before the server ends it all."""
END_S: Final = 10.0
RETRY_S: Final = 30.0
"""How long a sandbox that did not start is not tried again."""
FLOOD_FACTOR: Final = 16
"""Output beyond what is kept is read and dropped; beyond this many times as much, the interpreter is ended."""
STDERR_BYTES: Final = 4096
READ_BYTES: Final = 64 << 10

_NAMESPACES: Final = (
    "User namespaces are not allowed here. On a host: sysctl -w user.max_user_namespaces=15000, and where there are these "
    "switches kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0. In Docker: "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined. Or accept "
    'the weaker sandbox: [tools.code_execution] sandbox = "landlock".'
)
_PROC: Final = (
    "In Docker: --security-opt systempaths=unconfined; in Kubernetes: procMount: Unmasked. Or accept the weaker sandbox: "
    '[tools.code_execution] sandbox = "landlock".'
)
MENDS: Final = (
    (
        "no other user",
        "Start the server as an ordinary user: it is root in a container that has no other users, and code is never run as root.",
    ),
    ("no landlock", "Use a kernel with Landlock (Linux 5.13 or newer, named in its `lsm=` list), or bubblewrap."),
    (
        "closed to others",
        "Install Python and Jubal where every user can read them, such as /usr/local or /opt, or run the server as the user that "
        "owns them.",
    ),
    ("namespace", _NAMESPACES),
    ("loopback", _NAMESPACES),
    ("uid map", _NAMESPACES),
    ("mount proc", _PROC),
    ("no /proc", _PROC),
    ("ermission denied", "A file of the interpreter or of a library is closed to the user that the sandbox runs as."),
)
"""What the start said, in lower case, and what helps. The first that fits."""


@dataclass(slots=True)
class _Capture:
    """One output of a session, read as it comes so that the writer is never blocked, and kept up to a bound."""

    fd: int
    keep: int
    flooded: Callable[[], None]
    data: bytearray
    dropped: int = 0
    closed: bool = False

    def start(self) -> None:
        os.set_blocking(self.fd, False)
        asyncio.get_running_loop().add_reader(self.fd, self.read_some)

    def read_some(self) -> bool:
        """Whether there may be more right now."""
        if self.closed:
            return False
        try:
            part = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            part = b""
        if not part:
            self.close()
            return False
        room = max(0, self.keep - len(self.data))
        self.data += part[:room]
        self.dropped += max(0, len(part) - room)
        if self.dropped > FLOOD_FACTOR * self.keep:
            self.flooded()
            return False
        return True

    def take(self) -> str:
        """All that was written until now, as text."""
        while self.read_some():
            pass
        text = self.data.decode("utf-8", "replace")
        if self.dropped:
            text += f"\n… (cut: {self.dropped} more bytes)"
        self.data.clear()
        self.dropped = 0
        return text

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().remove_reader(self.fd)
            os.close(self.fd)


class ForkedInterpreter:
    """One session, as seen from the server."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        outputs: tuple[int, int],
        limits: Limits,
        group: cgroup.Group | None,
        ended: Callable[[bool], None],
    ) -> None:
        """ended: called once, when all is gone; with False where it would not go."""
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._group = group
        self._ended = ended
        self._alive = True
        self._flooded = False
        self._closing: asyncio.Task[None] | None = None
        self._out, self._err = (_Capture(fd, limits.output_bytes, self._flood, bytearray()) for fd in outputs)
        self._out.start()
        self._err.start()

    @property
    def alive(self) -> bool:
        return self._alive and not self._reader.at_eof()

    async def greet(self) -> None:
        """Waits until it is confined and ready. Raises `SandboxUnavailable`."""
        try:
            async with asyncio.timeout(OPEN_S):
                head = await self._frame()
        except (TimeoutError, OSError, EOFError) as error:
            raise SandboxUnavailable(f"A session of the sandbox did not start ({type(error).__name__}).") from error
        if "ready" not in head:
            raise SandboxUnavailable(explained(str(head.get("refused"))))

    async def run(self, code: str) -> Ran:
        if not self._alive:
            return Ran("lost", note="The interpreter is gone.")
        try:
            return await self._run(code)
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _run(self, code: str) -> Ran:
        timeout_s = self._limits.timeout_s
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                body = msgspec.json.encode({"code": code.encode("utf-8", "replace").decode(), "timeout_s": timeout_s})
                self._writer.write(len(body).to_bytes(4, "big") + body)
                await self._writer.drain()
                head = await self._frame()
                files = [(name, await self._reader.readexactly(size)) for name, size in head["files"]]
        except (TimeoutError, OSError, EOFError):
            end: End = "output" if self._flooded else "memory" if self._out_of_memory() else "lost"
            return await self._last(Ran(end))
        code_of_exit = head.get("exit")
        ran = Ran(
            head["end"],
            ret=head.get("ret", ""),
            error=head.get("error", ""),
            exit_code=code_of_exit,
            files=tuple(files),
            left_out=head["left_out"],
            note=head.get("note", ""),
        )
        if ran.end == "done":
            return self._with_output(ran)
        if ran.end == "exited" and self._out_of_memory():
            ran = replace(ran, end="memory")
        return await self._last(ran)

    async def _last(self, ran: Ran) -> Ran:
        self._alive = False
        ran = self._with_output(ran)
        await self.close()
        return ran

    def _with_output(self, ran: Ran) -> Ran:
        return replace(ran, stdout=self._out.take(), stderr=self._err.take())

    def _out_of_memory(self) -> bool:
        return self._group is not None and self._group.out_of_memory()

    async def _frame(self) -> dict[str, Any]:
        """Raises `OSError`, and `EOFError` where the supervisor is gone."""
        length = int.from_bytes(await self._reader.readexactly(4), "big")
        if length > FRAME_BYTES_MAX:
            raise EOFError
        return cast(dict[str, Any], msgspec.json.decode(await self._reader.readexactly(length)))

    def _flood(self) -> None:
        self._flooded = True
        self._alive = False
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def close(self) -> None:
        self._alive = False
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="sandbox session's end")
        await finished(self._closing)

    async def _close(self) -> None:
        """The end of our channel tells the supervisor to kill; the end of its own, that it has."""
        gone = True
        try:
            async with asyncio.timeout(END_S):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self._reader.read(READ_BYTES):
                    pass
        except TimeoutError:
            gone = False
        except OSError:
            pass
        self._out.close()
        self._err.close()
        self._writer.close()
        self._ended(gone)
        if self._group is not None:
            await self._group.remove()


async def finished(task: asyncio.Task[None]) -> None:
    """Waits for the task's end, also through cancellations, which are passed on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


class Zygote:
    """One process that is forked for each session. `start`, then `open`, at last `kill`."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket, folder: str | None) -> None:
        self._process = process
        self._control = control
        self._folder = folder
        self._stderr = bytearray()
        self._listener = asyncio.create_task(self._listen(), name="sandbox stderr")
        self._gone = asyncio.create_task(self._process.wait(), name="sandbox's end")
        self.started_s = time.monotonic()
        self.made = 0
        self.open_now = 0
        self.retired = False
        self.ready_after_s = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._gone.done()

    def last_words(self) -> str:
        return self._stderr.decode("utf-8", "replace").strip()

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while part := await self._process.stderr.read(READ_BYTES):
            self._stderr = (self._stderr + part)[-STDERR_BYTES:]

    async def ready(self) -> None:
        """Waits until the libraries are loaded. Raises `SandboxUnavailable`."""
        greeting = asyncio.create_task(asyncio.get_running_loop().sock_recv(self._control, READ_BYTES))
        try:
            await asyncio.wait({greeting, self._gone}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            said = b""
            if greeting.done():
                with contextlib.suppress(OSError):
                    said = greeting.result()
            if not said:
                await asyncio.wait({self._listener}, timeout=1 if self._gone.done() or greeting.done() else 0)
                words = self.last_words() or (
                    f"exit code {self._process.returncode}" if not self.alive else "no answer"
                )
                raise SandboxUnavailable(explained(words))
            self.ready_after_s = time.monotonic() - self.started_s
        finally:
            greeting.cancel()

    async def open(self, limits: Limits, groups: cgroup.Groups | None) -> ForkedInterpreter:
        """Raises `SandboxUnavailable`."""
        group = None
        ours, theirs = socket.socketpair()
        pipes: list[int] = []
        handed = False
        try:
            out_read, out_write = os.pipe()
            pipes += [out_read, out_write]
            err_read, err_write = os.pipe()
            pipes += [err_read, err_write]
            group = groups.make(limits.memory_mb * MIB) if groups is not None else None
            fds = [theirs.fileno(), out_write, err_write, *([group.procs] if group else [])]
            await self._send(fds)
            handed = True
        except OSError as error:
            raise SandboxUnavailable(f"A session of the sandbox can't be started: {error.strerror}.") from error
        finally:
            theirs.close()
            for fd in pipes if not handed else (out_write, err_write):
                os.close(fd)
            if group is not None:
                group.let_go()
            if not handed:
                ours.close()
                if group is not None:
                    await group.remove()
        ours.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        self.made += 1
        self.open_now += 1
        session = ForkedInterpreter(reader, writer, (out_read, err_read), limits, group, self._closed)
        try:
            await session.greet()
        except BaseException:
            await session.close()
            raise
        return session

    async def _send(self, fds: list[int]) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(1000):
            try:
                socket.send_fds(self._control, [b"fork"], fds)
                return
            except BlockingIOError:  # it forks one after the other
                writable = asyncio.Event()
                loop.add_writer(self._control, writable.set)
                try:
                    await writable.wait()
                finally:
                    loop.remove_writer(self._control)
        raise OSError(0, "the zygote does not take requests")

    def _closed(self, gone: bool) -> None:
        self.open_now -= 1
        if not gone or (self.retired and not self.open_now):
            self.condemn()

    def retire(self) -> None:
        """No more sessions; it ends with the last one."""
        self.retired = True
        if not self.open_now:
            self.condemn()

    def condemn(self) -> None:
        """Ends it and every session that it made."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def kill(self) -> None:
        """Returns when it is gone, and every session with it."""
        self.condemn()
        await asyncio.wait({self._gone})
        self._listener.cancel()
        self._control.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def explained(words: str) -> str:
    """What the start of a sandbox said, and what helps."""
    line = " ".join((words.splitlines() or ["it said nothing"])[-1].split())[:300]
    mend = next((mend for sign, mend in MENDS if sign in words.lower()), "")
    return f"The sandbox does not start: {line}. {mend}".strip()


class ForkSandbox:
    """A sandbox of warm interpreters: bubblewrap's, or Landlock's where the operator chose that."""

    def __init__(
        self,
        limits: Limits,
        kind: layout.Kind = "bubblewrap",
        *,
        bwrap: Callable[[], str] = layout.bwrap,
        groups: Callable[[], cgroup.Groups | None] = cgroup.find,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """bwrap: finds bubblewrap's program. groups: finds where cgroups can be made."""
        self._limits = limits
        self._kind = kind
        self._bwrap = bwrap
        self._find_groups = groups
        self._clock = clock
        self._groups: cgroup.Groups | None = None
        self._zygote: Zygote | None = None
        self._all: set[Zygote] = set()
        self._starting: asyncio.Task[Zygote] | None = None
        self._places = asyncio.Semaphore(limits.sessions_max)
        self._in_use = 0
        self._failed: tuple[float, str] | None = None
        self._parked: tuple[Zygote, ForkedInterpreter] | None = None
        self._parking: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def zygote(self) -> Zygote | None:
        """The one that new sessions come from."""
        return self._zygote

    def warm(self) -> None:
        """Begins to start, so that the first session need not wait. Failing is told to the session that needs it."""
        if not self._closed and self._failed is None and (self._zygote is None or not self._zygote.alive):
            self._begin()

    async def open(self) -> Session:
        try:
            async with asyncio.timeout(TURN_S):
                await self._places.acquire()
        except TimeoutError:
            raise SandboxUnavailable(
                f"All {self._limits.sessions_max} interpreters are in use. Try again later; "
                "[tools.code_execution] sessions_max allows more."
            ) from None
        self._in_use += 1
        try:
            return Session(await self._forked(), self._leave)
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        self._in_use -= 1
        self._places.release()

    async def _forked(self) -> ForkedInterpreter:
        zygote = await self._ready()
        parked, self._parked = self._parked, None
        self._park(zygote)
        if parked is not None:
            if parked[0] is zygote and parked[1].alive:
                return parked[1]
            await parked[1].close()
        try:
            return await zygote.open(self._limits, self._groups)
        except SandboxUnavailable:
            if zygote.alive:
                raise
        return await (await self._ready()).open(self._limits, self._groups)  # it had died; once more, with a new one

    def _park(self, zygote: Zygote) -> None:
        """Begins to make the interpreter of the next session, which then need not wait for forks and cgroups."""
        if self._parking is None or self._parking.done():
            self._parking = asyncio.create_task(self._park_one(zygote), name="sandbox's next session")

    async def _park_one(self, zygote: Zygote) -> None:
        with contextlib.suppress(SandboxUnavailable):  # a session that really needs one is told
            session = await zygote.open(self._limits, self._groups)
            if self._closed or self._parked is not None or zygote is not self._zygote:
                await session.close()
            else:
                self._parked = (zygote, session)

    async def _ready(self) -> Zygote:
        if self._closed:
            raise SandboxUnavailable("The server is closing.")
        zygote = self._zygote
        if zygote is not None and zygote.alive and not zygote.retired:
            if self._worn(zygote):
                self._begin()  # this one serves until the next is ready
            return zygote
        if self._failed is not None and self._clock() < self._failed[0]:
            raise SandboxUnavailable(self._failed[1])
        return await asyncio.shield(self._begin())

    def _worn(self, zygote: Zygote) -> bool:
        return (
            zygote.made >= self._limits.sessions_per_zygote
            or time.monotonic() - zygote.started_s >= self._limits.zygote_age_s
        )

    def _begin(self) -> asyncio.Task[Zygote]:
        """The start that is under way, or a new one; whoever waits for it may be cancelled, it goes on."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start(), name="sandbox's start")
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._starting

    async def _start(self) -> Zygote:
        zygote = None
        try:
            zygote = await self._spawn()
            await zygote.ready()
            await self._try(zygote)
        except BaseException as error:
            if zygote is not None:
                self._all.discard(zygote)
                await zygote.kill()
            if isinstance(error, SandboxUnavailable):
                self._failed = (self._clock() + RETRY_S, str(error))
            raise
        self._failed = None
        old, self._zygote = self._zygote, zygote
        await self._unpark()
        if old is not None:
            old.retire()
        self._park(zygote)
        await self._bury()
        return zygote

    async def _unpark(self) -> None:
        parked, self._parked = self._parked, None
        if parked is not None:
            await parked[1].close()

    async def _bury(self) -> None:
        for zygote in [one for one in self._all if not one.alive]:
            self._all.discard(zygote)
            await zygote.kill()

    async def _spawn(self) -> Zygote:
        """Raises `SandboxUnavailable`."""
        if sys.platform != "linux":
            raise SandboxUnavailable("Code can be run on Linux only: there is no sandbox for this system.")
        python = layout.interpreter()
        bubblewrap = self._bwrap() if self._kind == "bubblewrap" else None
        self._groups = self._find_groups() if bubblewrap else None
        folder = None if bubblewrap else tempfile.mkdtemp(prefix="jubal-code-")
        try:
            plan = layout.plan(
                self._kind,
                self._limits,
                python,
                folder=folder or "",
                watch_memory=self._groups is None and folder is None,
            )
            argv = (
                layout.bubblewrap_argv(bubblewrap, python, plan) if bubblewrap else layout.landlock_argv(python, plan)
            )
            home = {} if bubblewrap else {**layout.ENVIRONMENT, "HOME": folder or "", "MPLCONFIGDIR": f"{folder}/mpl"}
            reveal = (
                *python.needed,
                str(layout.HERE / "inside"),
                *([_binary_folder(bubblewrap)] if bubblewrap else []),
            )
            process, control = await _launched(argv, home, reveal, folder, python)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        zygote = Zygote(process, control, folder)
        self._all.add(zygote)
        return zygote

    async def _try(self, zygote: Zygote) -> None:
        """One real run: nothing else shows that it works. Raises `SandboxUnavailable`."""
        session = await zygote.open(self._limits, self._groups)
        try:
            ran = await session.run("1 + 1")
        finally:
            await session.close()
        if ran.ret != "2":
            raise SandboxUnavailable(f"The sandbox can't count: {ran.end} {ran.error or ran.stderr}".strip())

    def status(self) -> str:
        memory = "a cgroup each" if self._groups is not None else "watched"
        if self._failed is not None:
            return f"{self._kind}: {self._failed[1]}"
        if self._zygote is None or not self._zygote.alive:
            return f"{self._kind}: not started yet"
        bound = f", memory by {memory}" if self._kind == "bubblewrap" else ", no disk quota, no processes (fallback)"
        return f"{self._kind}: ready, {self._in_use} of {self._limits.sessions_max} interpreters in use{bound}"

    async def check(self) -> None:
        """Starts it if need be, with one real run. Raises `SandboxUnavailable`."""
        await self._ready()

    async def close(self) -> None:
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        if self._parking is not None:
            self._parking.cancel()
            await asyncio.wait({self._parking})
        await self._unpark()
        for zygote in list(self._all):
            await zygote.kill()
        self._all.clear()


class Session:
    """An interpreter that gives its place back when it is closed."""

    def __init__(self, interpreter: ForkedInterpreter, release: Callable[[], None]) -> None:
        self._interpreter = interpreter
        self._release: Callable[[], None] | None = release

    @property
    def alive(self) -> bool:
        return self._interpreter.alive

    async def run(self, code: str) -> Ran:
        return await self._interpreter.run(code)

    async def close(self) -> None:
        try:
            await self._interpreter.close()
        finally:
            if self._release is not None:
                self._release()
                self._release = None


def _binary_folder(program: str) -> str:
    """The folder that holds the program and the libraries it brought: of a Python package, its site-packages."""
    path = Path(program)
    return str(path.parent.parent.parent if path.parent.name == "_bin" else path.parent)


async def _launched(
    argv: tuple[str, ...],
    environment: dict[str, str],
    reveal: tuple[str, ...],
    folder: str | None,
    python: layout.Interpreter,
) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """Raises `SandboxUnavailable`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    order = Order(argv, environment, theirs.fileno(), os.getpid(), tuple(dict.fromkeys(reveal)), folder)
    launcher = (python.program, "-I", "-S", str(layout.HERE / "inside" / "start.py"), "launch", order.dumps())
    try:
        process = await asyncio.create_subprocess_exec(
            *launcher,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={},
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise SandboxUnavailable(f"The sandbox's process can't be started: {error.strerror}.") from error
    finally:
        theirs.close()
    ours.setblocking(False)
    return process, ours
