"""From the server's process to the sandbox: gives up being root, lets go of everything open, and becomes the given program.

A process of its own, as all this must happen between fork and exec, where a server with threads can't run Python.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Final

from jubal.tools.code_execution.inside import kernel

CONTROL_FD: Final = 3
NOBODYS_UIDS: Final = range(59_999, 50_000, -1)
"""Between those for people and those that systems give to services; also within the range of most user namespaces."""


@dataclass(frozen=True, slots=True)
class Order:
    """argv and environment: of the program. control: the descriptor to leave open, as 3. parent: the server's process.

    reveal: paths that the program must be able to read. folder: is given to the user that the program runs as.
    """

    argv: tuple[str, ...]
    environment: dict[str, str]
    control: int
    parent: int
    reveal: tuple[str, ...]
    folder: str | None

    def dumps(self) -> str:
        return json.dumps(asdict(self))


def main(text: str) -> None:
    order = Order(**json.loads(text))
    os.dup2(order.control, CONTROL_FD, inheritable=True)
    kernel.close_from(CONTROL_FD + 1)
    if os.getuid() == 0:
        stop_being_root(order)
    kernel.die_with_parent(signal.SIGKILL)
    if os.getppid() != order.parent:
        sys.exit("the server is gone")
    os.umask(0o077)
    os.execve(order.argv[0], order.argv, order.environment)  # noqa: S606  the argv is ours


def stop_being_root(order: Order) -> None:
    """Becomes a user that nobody is, without groups and capabilities, and without a way to get some."""
    uid = unused_uid()
    if not mapped(uid):
        sys.exit("refused: there is no other user here to become")
    reveal(order.reveal)
    if order.folder is not None:
        os.chown(order.folder, uid, uid)
    os.setgroups([])
    kernel.drop_bounding_set()
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getgroups():
        sys.exit("refused: this process is still root")


def mapped(uid: int) -> bool:
    """Whether the user namespace that the server was started in has this user: one for a container may have root alone."""
    with open("/proc/self/uid_map") as file:
        ranges = [[int(field) for field in line.split()] for line in file]
    return any(first <= uid < first + count for first, _, count in ranges)


def unused_uid() -> int:
    """No account has it, and no process of now: two servers' sandboxes do not share one."""
    import pwd

    taken = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                taken.add(os.stat(f"/proc/{name}").st_uid)
            except OSError:
                continue
    for uid in NOBODYS_UIDS:
        if uid in taken:
            continue
        try:
            pwd.getpwuid(uid)
        except KeyError:
            return uid
    sys.exit("refused: there is no unused user to run as")


def reveal(paths: tuple[str, ...]) -> None:
    """Makes the paths reachable for everybody, in this mount namespace alone, where a folder above is closed to others.

    That folder gets an empty one mounted on it, and in there only these paths, at their own places: an interpreter that finds
    itself elsewhere may load another's library.
    """
    closed = {path: top for path in paths if (top := _closed_above(path)) is not None}
    if not closed:
        return  # and no right to mount is needed, which root in a container has not
    try:
        kernel.unshare(kernel.CLONE_NEWNS)
    except OSError:
        sys.exit(f"refused: {min(closed.values())} is closed to others, and this root may not mount")
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    opened = {path: os.open(path, os.O_PATH) for path in closed if not _within(path, closed)}
    for top in sorted(set(closed.values())):
        kernel.mount("tmpfs", top, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
    os.umask(0o022)
    for path, fd in opened.items():
        _make_place(path, is_folder=os.path.isdir(f"/proc/self/fd/{fd}"))
        kernel.mount(f"/proc/self/fd/{fd}", path, None, kernel.MS_BIND | kernel.MS_REC)
        os.close(fd)


def _make_place(path: str, *, is_folder: bool) -> None:
    os.makedirs(path if is_folder else os.path.dirname(path), 0o755, exist_ok=True)
    if not is_folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _within(path: str, paths: dict[str, str]) -> bool:
    return any(path.startswith(other + "/") for other in paths)


def _closed_above(path: str) -> str | None:
    """The topmost folder above the path that others may not pass."""
    parts = path.split("/")
    for end in range(2, len(parts)):
        above = "/".join(parts[:end])
        if not os.stat(above).st_mode & 0o001:
            return above
    return None
