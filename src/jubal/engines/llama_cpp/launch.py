"""The effects behind a child: a private folder for its socket, the process itself, and asking it how it is."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import aiohttp

from jubal.engines.llama_cpp.process import Child
from jubal.engines.llama_cpp.scheduler import Tail, fed, last_words

FOLDER_PREFIX: Final = "jubal-llama-"
SOCKET_PATH_BYTES_MAX: Final = 100
"""What a socket address holds is 104 bytes on some systems and 108 on others, an end mark included."""
LAST_OUTPUT_S: Final = 0.5
READ_BYTES: Final = 16 << 10


class SocketFolder:
    """A folder that only this user can enter, with a lock that tells the next server whether its owner still lives.

    A UNIX socket there instead of a port: nobody else on the machine can reach the child, and its address stays the same over
    restarts. Not below $JUBAL_HOME, whose path may be too long for a socket address.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or _short_temporary_folder()
        _sweep(parent)
        self.path, self._lock = _made(parent)
        self.socket = self.path / "s.sock"  # llama.cpp takes a path for a socket only with this ending

    def remove(self) -> None:
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _short_temporary_folder() -> Path:
    usual = Path(tempfile.gettempdir())
    length = len(os.fsencode(usual / f"{FOLDER_PREFIX}12345678" / "s.sock"))
    return usual if length <= SOCKET_PATH_BYTES_MAX else Path("/tmp")  # noqa: S108  mkdtemp makes it private


def _made(parent: Path) -> tuple[Path, int]:
    """A new folder, and its lock held."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))  # mode 0700
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path, lock
        os.close(lock)  # another server swept it away between the two lines before


def _sweep(parent: Path) -> None:
    """Removes folders of servers that were killed. Only whose lock can be taken is surely nobody's."""
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


class RunningChild:
    """A process whose output is kept to the last lines and shown to nobody unless it fails."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process  # and with it the write end of the child's standard input, which keeps the child alive
        self._tail = Tail()
        self._reader = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> None:
        await self._process.wait()
        await asyncio.wait({self._reader}, timeout=LAST_OUTPUT_S)
        self._reader.cancel()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def last_words(self) -> str | None:
        code = self._process.returncode
        said = last_words(self._tail)
        if code is not None and code < 0:
            return f"killed by signal {-code}" + (f"; its last words: {said}" if said else ".")
        return said

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(READ_BYTES):
            self._tail = fed(self._tail, data)


class ChildEffects:
    """The effects on a real machine.

    command: makes the argv of a child, which must listen on `folder.socket`; it may read files. problem: see `Effects`.
    """

    def __init__(
        self,
        folder: SocketFolder,
        session: aiohttp.ClientSession,
        command: Callable[[], Awaitable[Sequence[str]]],
        problem: Callable[[], str | None],
    ) -> None:
        self._folder = folder
        self._session = session
        self._command = command
        self.problem = problem
        self.child: RunningChild | None = None

    async def spawn(self) -> Child:
        argv = await self._command()
        self._folder.socket.unlink(missing_ok=True)  # left by a child that was killed; nobody can bind it again
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for the server, not for its children
        )
        self.child = RunningChild(process)
        return self.child

    def resident(self) -> int | None:
        """Bytes of memory that the child takes; None where it is gone."""
        import psutil  # type: ignore[import-untyped]  # here, because only a limit on memory needs it

        try:
            return None if self.child is None else int(psutil.Process(self.child.pid).memory_info().rss)
        except psutil.Error:
            return None

    def anonymous(self) -> int | None:
        """Bytes of memory that the child took for itself, without pages of files; None where that is not known."""
        try:
            if self.child is None or sys.platform != "linux":
                return None
            _, resident, shared, *_ = Path(f"/proc/{self.child.pid}/statm").read_text().split()
            return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None

    async def healthy(self, timeout_s: float) -> bool:
        try:
            async with self._session.get(
                "http://llama/health", timeout=aiohttp.ClientTimeout(total=timeout_s)
            ) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def clean(self) -> None:
        self._folder.remove()
