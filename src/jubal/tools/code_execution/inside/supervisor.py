"""The parent of one session's interpreter: builds its walls, hands it code, watches it, kills it, and collects its files.

All that the server believes of a session comes from here; what the interpreter says is only text to pass on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Generator
from typing import Any, Final, NoReturn

from jubal.tools.code_execution.inside import kernel, runner
from jubal.tools.code_execution.inside.plan import FRAME_BYTES_MAX, Broken, Plan, receive, send

READY_S: Final = 30.0
SEND_S: Final = 5.0
WATCH_BUSY_S: Final = 0.05
WATCH_IDLE_S: Final = 1.0
FORGET_MAX: Final = 64
DEPTH_MAX: Final = 32
ENTRIES_MAX: Final = 5000
NOT_RETURNED: Final = frozenset({"__pycache__"})


def main(plan: Plan, fds: list[int]) -> NoReturn:
    """Never returns. fds: the server's channel, stdout, stderr and, where there is one, the session's cgroup."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kernel.die_with_parent(signal.SIGKILL)
        server = socket.socket(fileno=fds[0])
        try:
            _join(fds[3:])
            session = Session(plan, server, fds[1], fds[2])
        except (OSError, Broken, Refused) as error:
            send(server, {"refused": f"{type(error).__name__}: {error}"})
        else:
            session.serve()
    except (OSError, Broken):
        pass  # the server is gone, and with it whoever could be told
    finally:
        os._exit(0)


def _join(groups: list[int]) -> None:
    """Enters the session's cgroup before there is an interpreter. The server opened the file, so its rights count."""
    for group in groups:
        os.write(group, b"0")
        os.close(group)


class Refused(Exception):
    """The interpreter could not be confined, so it does not run."""


class Session:
    """One interpreter, from its walls to its end."""

    def __init__(self, plan: Plan, server: socket.socket, out: int, err: int) -> None:
        """Raises `Refused` and `OSError` where a wall can't be built."""
        self._plan = plan
        self._server = server
        self._folder = None if plan.namespaces else tempfile.mkdtemp(dir=plan.work)
        self._work = self._folder or plan.work
        if plan.namespaces:
            _walls(plan)
        self._seen: dict[str, tuple[int, ...]] = {}
        self._channel, theirs = socket.socketpair()
        self._buffer = bytearray()
        self._pid = os.fork()
        if self._pid == 0:
            server.close()
            runner.main(plan, self._work, theirs, out, err)
        theirs.close()
        os.close(out)
        os.close(err)
        self._pidfd = os.pidfd_open(self._pid)
        self._status: int | None = None
        self._cpu_s = 0.0
        try:
            self._greet()
        except BaseException:
            self._end()
            raise
        self._memory_max = plan.memory_bytes + self._memory(exact=True)

    def _greet(self) -> None:
        self._channel.settimeout(READY_S)
        greeting = receive(self._channel)
        if "ready" not in greeting:
            raise Refused(str(greeting.get("refused")))
        if self._plan.namespaces and self._plan.watch_memory and not os.path.exists("/proc/1/status"):
            raise Refused("no /proc can be mounted, so that memory could not be watched, and there is no cgroup")
        self._channel.setblocking(False)

    def serve(self) -> None:
        """Until the server closes its end or the interpreter is gone."""
        try:
            send(self._server, {"ready": True})
            while self._alive() and (asked := self._asked()) is not None:
                self._answer(*self._call(asked))
        finally:
            self._end()

    # Waiting

    def _asked(self) -> dict[str, Any] | None:
        """The next thing that the server wants. None: it left, or the interpreter ended or had to be."""
        poll = self._poll(channel=False)
        while True:
            ready = dict(poll.poll(WATCH_IDLE_S * 1000))
            if self._pidfd in ready:
                self._reap()
                return None
            if self._server.fileno() in ready:
                try:
                    return receive(self._server)
                except Broken:
                    return None
            if self._excess() is not None:
                return None

    def _call(self, asked: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Runs one piece of code; how that ended, and what the interpreter said."""
        ends = time.monotonic() + float(asked["timeout_s"])
        self._forget()
        if not self._hand_over({"code": asked["code"]}):
            return self._over("exited")
        poll = self._poll(channel=True)
        watched = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= ends:
                return self._over("timeout")
            ready = dict(poll.poll(min(WATCH_BUSY_S, ends - now) * 1000 + 1))
            if self._server.fileno() in ready:
                raise Broken  # cancelled
            if self._channel.fileno() in ready and (said := self._heard()) is not None:
                return "done", said
            if self._pidfd in ready:
                return self._over("exited")
            if now - watched >= WATCH_BUSY_S:
                watched = now
                if (excess := self._excess()) is not None:
                    return self._over(excess)

    def _poll(self, *, channel: bool) -> select.poll:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(self._server, select.POLLIN)
        if channel:
            poll.register(self._channel, select.POLLIN)
        return poll

    def _forget(self) -> None:
        """What the interpreter said without being asked, as far as that ends."""
        self._buffer.clear()
        with contextlib.suppress(OSError):
            for _ in range(FORGET_MAX):
                if not self._channel.recv(1 << 16):
                    return

    def _hand_over(self, message: dict[str, Any]) -> bool:
        try:
            self._channel.settimeout(SEND_S)
            send(self._channel, message)
        except OSError:
            return False
        finally:
            self._channel.setblocking(False)
        return True

    def _heard(self) -> dict[str, Any] | None:
        """The answer, once it is whole. What can't be one ends the interpreter, and `_call` sees that."""
        try:
            part = self._channel.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            part = b""
        self._buffer += part
        if not part or len(self._buffer) > FRAME_BYTES_MAX:
            self._kill()
            return None
        if len(self._buffer) < 4:
            return None
        (length,) = struct.unpack_from("!I", self._buffer)
        if length > FRAME_BYTES_MAX:
            self._kill()
            return None
        if len(self._buffer) < 4 + length:
            return None
        try:
            said = json.loads(self._buffer[4 : 4 + length])
            return {"ret": str(said["ret"]), "error": str(said["error"])}
        except (ValueError, KeyError, TypeError, RecursionError):
            self._kill()
            return None

    # Ending

    def _alive(self) -> bool:
        return self._status is None

    def _kill(self) -> None:
        """The first process of a PID namespace takes all others with it."""
        if self._status is None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _reap(self) -> None:
        if self._status is None:
            _, self._status, usage = os.wait4(self._pid, 0)
            self._cpu_s = usage.ru_utime + usage.ru_stime

    def _over(self, why: str) -> tuple[str, dict[str, Any]]:
        self._kill()
        self._reap()
        status = self._status or 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        if why == "exited" and code == -signal.SIGKILL and self._cpu_s >= self._plan.cpu_s - 1:
            why = "cpu"
        return why, {"exit": code}

    def _end(self) -> None:
        self._kill()
        self._reap()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # Memory and disk

    def _excess(self) -> str | None:
        """ "memory" or "disk", where the session took more than it may."""
        if self._folder is not None and _disk(self._folder) > self._plan.work_bytes:
            return "disk"
        if not self._plan.watch_memory or self._memory(exact=False) <= self._memory_max:
            return None
        return "memory" if self._memory(exact=True) > self._memory_max else None

    def _memory(self, *, exact: bool) -> int:
        """Bytes that the session's processes and its tmpfs hold.

        Inexact is too much rather than too little: memory that processes share, and the zygote's, counts for each. Exact costs
        a walk over all page tables.
        """
        pids = [name for name in os.listdir("/proc") if name.isdigit()] if self._plan.namespaces else [str(self._pid)]
        file, names = ("smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")) if exact else ("status", ("RssAnon:", "RssShmem:"))
        total = sum(_sum(f"/proc/{pid}/{file}", names) for pid in pids)
        return total + (sum(_held(path) for path in (self._work, "/tmp", "/dev/shm")) if self._plan.namespaces else 0)  # noqa: S108

    # Files

    def _answer(self, end: str, said: dict[str, Any]) -> None:
        files: list[tuple[str, bytes]] = []
        left_out = 0
        try:
            files, left_out = self._changed()
        except OSError as error:  # such as a folder that the code closed to itself
            said = {**said, "note": f"The files in the working folder can't be collected: {error.strerror}."}
        head = {"end": end, **said, "files": [[name, len(data)] for name, data in files], "left_out": left_out}
        send(self._server, head)
        for _, data in files:
            self._server.sendall(data)

    def _changed(self) -> tuple[list[tuple[str, bytes]], int]:
        """New and changed files with their content, within the budget, and how many more there are."""
        root = os.open(self._work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        seen: dict[str, tuple[int, ...]] = {}
        files: list[tuple[str, bytes]] = []
        room, left_out = self._plan.files_bytes, 0
        with contextlib.closing(_walk(root, "", 0)) as found:
            for number, (folder, entry, path) in enumerate(found):
                if number >= ENTRIES_MAX:
                    left_out += 1
                    break
                state = entry.stat(follow_symlinks=False)
                seen[path] = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
                if not stat.S_ISREG(state.st_mode) or self._seen.get(path) == seen[path]:
                    continue
                data = None
                if len(files) < self._plan.files_max and state.st_size <= room:
                    data = _content(folder, entry.name, room)
                if data is None:
                    left_out += 1
                else:
                    files.append((_printable(path), data))
                    room -= len(data)
        self._seen = seen
        return files, left_out


def _walls(plan: Plan) -> None:
    """Mounts, processes and shared memory of the session's own; all that it can write is in these three file systems."""
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kept = [(path, os.open(path, os.O_PATH)) for path in plan.keep]
    for path, size in ((plan.work, plan.work_bytes), ("/tmp", plan.work_bytes), ("/dev/shm", plan.shm_bytes)):  # noqa: S108
        options = f"size={size},nr_inodes={plan.inodes},mode=700"
        kernel.mount("tmpfs", path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    for path, fd in kept:  # what the new /tmp hides of the interpreter
        os.makedirs(path, exist_ok=True)
        kernel.mount(f"/proc/self/fd/{fd}", path, None, kernel.MS_BIND | kernel.MS_REC)
        os.close(fd)


def _sum(file: str, names: tuple[str, ...]) -> int:
    """Bytes behind these names, lines such as `RssAnon:   123 kB`. 0 for a process that is gone."""
    try:
        with open(file) as opened:
            return sum(int(line.split()[1]) * 1024 for line in opened if line.startswith(names))
    except OSError:
        return 0


def _held(path: str) -> int:
    state = os.statvfs(path)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def _disk(folder: str) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total


def _walk(folder: int, above: str, depth: int) -> Generator[tuple[int, os.DirEntry[str], str], None, None]:
    """(open folder, entry, path from the root) of all that is no folder. Closes the folder; follows no link.

    What the code closed to itself or removes meanwhile is left out; only the root raises `OSError`.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path = f"{above}{entry.name}"
            try:
                if not entry.is_dir(follow_symlinks=False):
                    os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
                    yield folder, entry, path
                    continue
                if depth >= DEPTH_MAX or entry.name in NOT_RETURNED:
                    continue
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(entry.name, flags, dir_fd=folder)
            except OSError:
                if depth == 0 and not os.access(".", os.X_OK, dir_fd=folder):
                    raise
                continue
            yield from _walk(below, f"{path}/", depth + 1)
    finally:
        os.close(folder)


def _content(folder: int, name: str, bytes_max: int) -> bytes | None:
    """None: no regular file any more, closed to its owner, or too large."""
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with open(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return None
        data = file.read(bytes_max + 1)
    return data if len(data) <= bytes_max else None


def _printable(path: str) -> str:
    """The code chose the name: nothing in it may steer a terminal, or be no text."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "�" for letter in text)
