"""The interpreter that runs a model's code: confines itself, then takes one piece of code after the other.

From its first piece of code on, nothing that it says is trusted.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import io
import linecache
import os
import random
import resource
import signal
import socket
import sys
import traceback
import types
from typing import Any, Final, NoReturn

from jubal.tools.code_execution.inside import kernel
from jubal.tools.code_execution.inside.plan import Broken, Plan, receive, send

STACK_BYTES: Final = 8 << 20
CHANNEL_FD: Final = 3
FIGURES_MAX: Final = 20
FRAMES_MAX: Final = 100
"""Of a traceback, the innermost: hundreds of thousands are possible, and take minutes to format."""


def main(plan: Plan, work: str, channel: socket.socket, out: int, err: int) -> NoReturn:
    """Never returns. The channel is the supervisor's; out and err are pipes to the server."""
    try:
        program = _program(plan)
        myself = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)  # before another /proc hides it
        size = _size()
        if plan.namespaces:
            _own_proc()
        os.setsid()
        _write(myself, "oom_score_adj", "1000")
        if plan.namespaces:
            _own_user(myself)
        _standard_files(channel, out, err)
        channel = socket.socket(fileno=CHANNEL_FD)
        os.set_inheritable(CHANNEL_FD, False)
        _limit(plan, size)
        os.chdir(work)
        os.umask(0o077)
        _no_way_back(plan, work, program)
        console = _Console()
        namespace = _fresh(work)
        send(channel, {"ready": True})
    except Exception as error:  # noqa: BLE001  whatever it is, the supervisor is told and no code runs
        send(channel, {"refused": f"{type(error).__name__}: {error}"})
        os._exit(1)
    serve(plan, channel, namespace, console)


def serve(plan: Plan, channel: socket.socket, namespace: dict[str, Any], console: _Console) -> NoReturn:
    number = 0
    while True:
        try:
            asked = receive(channel)
        except (Broken, OSError):
            os._exit(0)
        number += 1
        console.fresh()
        ret, error = execute(asked["code"], f"<call {number}>", namespace)
        figures = _save_figures()
        console.flush()
        error = "\n".join(part for part in (error, figures) if part)
        with contextlib.suppress(OSError):
            send(channel, {"ret": _cut(ret, plan.text_chars), "error": _cut(error, plan.text_chars, keep_end=True)})


# ------------------------------------------------------------------------------------------------------- confinement


def _program(plan: Plan) -> bytes:
    with open(plan.filter, "rb") as file:
        return file.read()


def _own_proc() -> None:
    """A /proc with this session's processes and nothing else; where the kernel refuses it, an empty folder."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    try:
        kernel.mount("proc", "/proc", "proc", flags, "subset=pid")
    except OSError:
        kernel.mount("tmpfs", "/proc", "tmpfs", flags | kernel.MS_RDONLY, "mode=555")


def _own_user(myself: int) -> None:
    """A user namespace of its own: counts of processes are kept per namespace, and rights in it open nothing outside."""
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    _write(myself, "setgroups", "deny")
    _write(myself, "uid_map", f"{uid} {uid} 1")
    _write(myself, "gid_map", f"{gid} {gid} 1")


def _write(folder: int, name: str, text: str) -> None:
    opened = os.open(name, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(opened, text.encode("ascii"))
    finally:
        os.close(opened)


def _size() -> int:
    """Bytes of address space that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _threads_of_user() -> int:
    """Of all processes of this user: the kernel counts them together where no user namespace keeps a count of its own, and a limit
    below what there is would leave the code without any thread."""
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, KeyError), open(f"/proc/{name}/status") as file:
            facts = dict(line.split(":", 1) for line in file)
            if int(facts["Uid"].split()[0]) == os.getuid():
                found += int(facts["Threads"])
    return found


def _limit(plan: Plan, size: int) -> None:
    for name, value in (
        ("AS", size + plan.memory_bytes),
        ("NPROC", plan.processes if plan.namespaces else plan.processes + _threads_of_user()),
        ("NOFILE", plan.open_files),
        ("FSIZE", plan.work_bytes),
        ("CORE", 0),
        ("STACK", STACK_BYTES),
        ("CPU", plan.cpu_s),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("SIGPENDING", 256),
        ("NICE", 0),
        ("RTPRIO", 0),
    ):
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (lower, lower))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows too large is an error, not the end


def _standard_files(channel: socket.socket, out: int, err: int) -> None:
    """stdin is empty, stdout and stderr are the pipes, 3 is the channel, and everything else is closed."""
    null = os.open("/dev/null", os.O_RDONLY)
    # First to numbers that none of the targets has, so that no copy overwrites what is still to be copied.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 16) for fd in (null, out, err, channel.fileno())]
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=True)
    channel.detach()
    kernel.close_from(CHANNEL_FD + 1)


def _no_way_back(plan: Plan, work: str, program: bytes) -> None:
    if plan.namespaces:
        kernel.drop_capabilities()
    kernel.no_new_privileges()
    if not plan.namespaces:
        kernel.landlock((*plan.readable, "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"), (work,))
    kernel.die_with_parent(signal.SIGKILL)  # and the filter keeps the code from taking that back
    kernel.load_filter(program)


# ----------------------------------------------------------------------------------------------------------- the code


class _Console:
    """sys.stdin, sys.stdout and sys.stderr of each call, whatever the code before did to them; `exit` closes the first."""

    def __init__(self) -> None:
        self.out = self.err = io.TextIOWrapper(io.BytesIO())

    def fresh(self) -> None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        for name, fd in (("stdout", 1), ("stderr", 2)):
            raw = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115
            text = io.TextIOWrapper(
                io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
            )
            setattr(sys, name, text)
            setattr(sys, f"__{name}__", text)
        self.out, self.err = sys.stdout, sys.stderr  # type: ignore[assignment]

    def flush(self) -> None:
        for stream in (sys.stdout, sys.stderr, self.out, self.err):
            with contextlib.suppress(Exception):
                stream.flush()


def _fresh(work: str) -> dict[str, Any]:
    """The namespace of a new session, and random numbers that no other session has."""
    for name in [name for name in sys.modules if name.startswith("jubal.")]:
        del sys.modules[name]
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    multiprocessing: Any = sys.modules["multiprocessing"]
    multiprocessing.set_start_method("fork", force=True)  # the other ways need sockets
    sys.argv = [""]
    sys.path.insert(0, work)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    return main.__dict__


def execute(code: str, name: str, namespace: dict[str, Any]) -> tuple[str, str]:
    """Runs the code; the repr of its last expression ("" where there is none, or it is None), and the traceback."""
    lines = code.splitlines(keepends=True)
    linecache.cache[name] = (len(code), None, lines, name)
    try:
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, ast.Expr):
            last = None
        else:
            tree.body.pop()
        exec(compile(tree, name, "exec"), namespace)  # noqa: S102  this is what the sandbox is for
        if last is None:
            return "", ""
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)  # noqa: S307
        if value is None:
            return "", ""
        namespace["_"] = value
        return repr(value), ""
    except SystemExit as stop:
        return "", "" if stop.code in (None, 0) else f"SystemExit: {stop.code}"
    except BaseException as error:  # noqa: BLE001  whatever the code raises is its result
        return "", _traceback(error)


def _traceback(error: BaseException) -> str:
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        if isinstance(error, SyntaxError) and str(error.filename).startswith("<call "):
            frames = None  # the parser's own are of no use
        return "".join(traceback.format_exception(type(error), error, frames, limit=-FRAMES_MAX)).rstrip()
    except BaseException:  # noqa: BLE001  such as MemoryError once more
        return f"{type(error).__name__} (its traceback can't be shown)"


def _save_figures() -> str:
    """Saves the open figures that the code did not save itself, and closes all. What went wrong, if anything."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return ""
    try:
        for number in pyplot.get_fignums()[:FIGURES_MAX]:
            figure = pyplot.figure(number)
            if not getattr(figure, "_jubal_saved", False):
                figure.savefig(_free_name())
        return ""
    except BaseException as error:  # noqa: BLE001
        return f"A figure could not be saved: {_traceback(error)}"
    finally:
        with contextlib.suppress(Exception):
            pyplot.close("all")


def _free_name() -> str:
    number = 1
    while os.path.lexists(f"figure_{number}.png"):
        number += 1
    return f"figure_{number}.png"


def _cut(text: str, chars: int, *, keep_end: bool = False) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= chars:
        return text
    return f"… {text[-chars:]}" if keep_end else f"{text[:chars]} … (cut: {len(text)} characters)"
