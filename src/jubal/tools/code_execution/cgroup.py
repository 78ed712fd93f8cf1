"""Bounds the memory of a whole session with a cgroup below the server's own, where that can be written."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PREFIX: Final = "jubal-"
HEADROOM_BYTES: Final = 128 << 20
"""Beyond what the session may take: its page tables, and the zygote's pages that it writes to and so gets copies of."""
REMOVE_TRIES: Final = 100
REMOVE_PAUSE_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Group:
    """The cgroup of one session. procs: an open file; whoever writes 0 there is in. The session's supervisor does, before it
    starts anything."""

    path: Path
    procs: int

    def let_go(self) -> None:
        os.close(self.procs)

    async def remove(self) -> None:
        """Once the session's processes are gone; the kernel needs a moment after the last one."""
        for _ in range(REMOVE_TRIES):
            with contextlib.suppress(FileNotFoundError):
                try:
                    self.path.rmdir()
                except OSError:
                    await asyncio.sleep(REMOVE_PAUSE_S)
                    continue
            return

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something in here."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                found = re.search(r"^oom_kill (\d+)", (self.path / name).read_text(), re.MULTILINE)
                if found and int(found[1]):
                    return True
        return False


class Groups:
    """Makes cgroups in `parent`. version: 1 or 2."""

    def __init__(self, parent: Path, version: int) -> None:
        self._parent = parent
        self._version = version
        self._made = 0

    def make(self, memory_bytes: int) -> Group:
        """Raises `OSError`."""
        self._made += 1
        path = self._parent / f"{PREFIX}{os.getpid()}-{id(self):x}-{self._made}"
        path.mkdir()
        try:
            self._limit(path, memory_bytes + HEADROOM_BYTES)
            return Group(path, os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            path.rmdir()
            raise

    def _limit(self, path: Path, size: int) -> None:
        if self._version == 2:
            (path / "memory.max").write_text(str(size))
            with contextlib.suppress(OSError):  # a kernel without swap accounting
                (path / "memory.swap.max").write_text("0")
            return
        (path / "memory.limit_in_bytes").write_text(str(size))
        with contextlib.suppress(OSError):
            (path / "memory.memsw.limit_in_bytes").write_text(str(size))

    def sweep(self) -> None:
        """Removes what killed servers left. One with processes in it stays: the kernel refuses."""
        for path in self._parent.glob(f"{PREFIX}*-*"):
            server = path.name.removeprefix(PREFIX).partition("-")[0]
            if server.isdigit() and not os.path.exists(f"/proc/{server}"):
                with contextlib.suppress(OSError):
                    path.rmdir()


def find(own: str | None = None, mounts: str | None = None) -> Groups | None:
    """Where cgroups can be made with a limit on memory, tried for real. None: nowhere.

    own, mounts: the content of /proc/self/cgroup and /proc/self/mountinfo.
    """
    with contextlib.suppress(OSError):
        own = Path("/proc/self/cgroup").read_text() if own is None else own
        mounts = Path("/proc/self/mountinfo").read_text() if mounts is None else mounts
        for parent, version in _candidates(own, mounts):
            groups = Groups(parent, version)
            with contextlib.suppress(OSError):
                tried = groups.make(0)
                tried.let_go()
                tried.path.rmdir()
                groups.sweep()
                return groups
    return None


def _candidates(own: str, mounts: str) -> list[tuple[Path, int]]:
    """The server's own group in the hierarchy that bounds memory, version 1 or 2."""
    found = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        root, point = before.split()[3:5]
        version = 2 if kind == "cgroup2" else 1 if kind == "cgroup" and "memory" in options.split(",") else 0
        if version and (path := _own_path(own, version)) is not None and path.startswith(root):
            found.append((Path(point) / path.removeprefix(root).lstrip("/"), version))
    return found


def _own_path(own: str, version: int) -> str | None:
    for line in own.splitlines():
        number, controllers, path = line.split(":", 2)
        if (version == 2 and number == "0" and not controllers) or (
            version == 1 and "memory" in controllers.split(",")
        ):
            return path
    return None
