"""Programs of Jubal in processes forked from one that has its modules loaded, which is what takes most of a start's time.

    python forking.py FD        loads them, then forks for each message that comes over the socket FD

The child then runs the same code in the same way as `python -m jubal` and `python leash.py` do; nothing of ours runs in the parent,
which only forks and waits. Linux only, as elsewhere a fork of a process with loaded libraries is not safe.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any, NoReturn

MESSAGE_BYTES_MAX = 200_000
LOADED = (
    "alembic.command",
    "alembic.config",
    "httptools",
    "jubal.app",
    "jubal.cli.logs",
    "jubal.cli.root",
    "jubal.engines.echo",
    "jubal.engines.openai_compat",
    "jubal.engines.wordllama_engine",
    "jubal.tools.code_execution.family",
    "jubal.tools.mcp",
    "jubal.tools.web_search.family",
    "jubal.tools.web_search.make",
    "jubal.tools.x_search.family",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)
"""What a server or a command imports and what takes long. None of them starts a thread when it is imported, as NumPy and gRPC do."""


class Forked:
    """A process that the parent forked: what `subprocess.Popen` offers, as far as tests need it."""

    def __init__(self, args: Sequence[str], said: socket.socket) -> None:
        self.args = list(args)
        self.returncode: int | None = None
        self._said = said
        self._lock = threading.Lock()
        self.pid = int(self._line(None))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal's number. Raises `subprocess.TimeoutExpired`. timeout: seconds."""
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):  # another thread waits
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        try:
            if self.returncode is None:
                self.returncode = int(self._line(timeout))
                self._said.close()
            return self.returncode
        except (TimeoutError, BlockingIOError):
            raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        finally:
            self._lock.release()

    def _line(self, timeout: float | None) -> bytes:
        self._said.settimeout(timeout)
        line = self._said.recv(64)
        assert line, "the process that forks has ended"
        return line

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Forker:
    """The parent, as seen from the tests. It ends when this process does, as it then reads the end of its socket."""

    def __init__(self, env: dict[str, str]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                env=env,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def close(self) -> None:
        self._ours.close()
        self._process.wait(60)

    def start(
        self,
        program: Sequence[str],
        *,
        env: dict[str, str],
        stdin: int,
        stdout: IO[Any],
        stderr: IO[Any],
        new_session: bool = False,
    ) -> Forked:
        """program: "-m", a module and its arguments, or a file and its arguments."""
        message = json.dumps(
            {"program": list(program), "env": env, "cwd": os.getcwd(), "session": new_session}
        ).encode()
        assert len(message) <= MESSAGE_BYTES_MAX
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._ours, [message], [theirs.fileno(), stdin, stdout.fileno(), stderr.fileno()])
        return Forked(program, ours)


# ------------------------------------------------------------------------------------------- in the parent


def serve(asked: socket.socket) -> list[str]:
    """Forks until the tests have ended. Returns in each child: what it is to run."""
    waiting: dict[int, socket.socket] = {}
    ended, wakes = socket.socketpair()
    for one in (ended, wakes):
        one.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, and they end us
    with selectors.DefaultSelector() as ready:
        ready.register(asked, selectors.EVENT_READ)
        ready.register(ended, selectors.EVENT_READ)
        while True:
            found = [key.fileobj for key, _ in ready.select()]
            if ended in found:
                ended.recv(4096)
                _tell(waiting)
            if asked in found:
                message, fds, _, _ = socket.recv_fds(asked, MESSAGE_BYTES_MAX, 4)
                if not message:
                    _leave()
                said = socket.socket(fileno=fds[0])
                if (pid := os.fork()) == 0:
                    break
                said.sendall(str(pid).encode())
                waiting[pid] = said
                for fd in fds[1:]:
                    os.close(fd)
    signal.set_wakeup_fd(-1)
    for one in (asked, ended, wakes, said, *waiting.values()):
        one.close()
    return _become(json.loads(message), fds[1:])


def _tell(waiting: dict[int, socket.socket]) -> None:
    """Reaps who has ended, and tells their exit codes."""
    while waiting:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with waiting.pop(pid) as said:
            try:
                said.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            except OSError:  # nobody asks any more
                pass


def _leave() -> NoReturn:
    os._exit(0)


def _become(wanted: dict[str, Any], fds: list[int]) -> list[str]:
    """Makes this child what a started process would be."""
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
    for place, fd in enumerate(fds):
        os.dup2(fd, place)
        os.close(fd)
    if wanted["session"]:
        os.setsid()
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    program: list[str] = wanted["program"]
    return program


def main() -> None:
    for name in LOADED:
        with contextlib.suppress(ImportError):  # whoever needs it says so
            importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread does not survive a fork"
    gc.freeze()  # the children need not look at what is there already
    asked = socket.socket(fileno=int(sys.argv[1]))
    asked.set_inheritable(False)
    program = serve(asked)
    if program[0] == "-m":
        sys.argv = [program[1], *program[2:]]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
