"""Runs Jubal, or another program, so that it ends with the test process, however that ends.

    python leash.py serve --port 8001        `jubal serve`, whose standard input is a pipe that the tests hold open
    CLOCK=FILE python leash.py …             the same, its clock put forward by the seconds in the file, read each time
    FAULTS=jubal.m:C.f python leash.py …     the same, where these functions raise what tells all they were given
    python leash.py --program /bin/redis …   any program, ended by the kernel (Linux)

A server is started in a session of its own, so that Ctrl-C and the like are for pytest alone: nothing else would end it when
pytest is killed.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import runpy
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

CHANGES = frozenset({"CLOCK", "FAULTS"})
"""Variables that change what modules import, so none of Jubal's may be loaded yet."""
_PR_SET_PDEATHSIG = 1


@cache
def held() -> int:
    """What to give as standard input: it ends when the process that calls this ends, since nobody else has the other side."""
    read, _ = os.pipe()
    return read


def main() -> None:
    if sys.argv[1] == "--program":
        if sys.platform == "linux":  # survives the call below. The "parent" is the thread that started us
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execv(sys.argv[2], sys.argv[2:])
    ours = os.dup(0)  # not inheritable
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    threading.Thread(target=_end_with, args=(ours,), daemon=True).start()
    if clock := os.environ.pop("CLOCK", ""):
        _shift(Path(clock))
    for name in filter(None, os.environ.pop("FAULTS", "").split(",")):
        _break(name)
    runpy.run_module("jubal", run_name="__main__", alter_sys=True)


def _end_with(pipe: int) -> None:
    while os.read(pipe, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # its children end with it: tests/flow/test_faults.py


def _shift(file: Path) -> None:
    """As when somebody sets the machine's clock: only the time of day jumps, not the monotonic one."""
    seconds, nanoseconds = time.time, time.time_ns

    def shift_s() -> int:
        return int(file.read_text() or 0)

    time.time = lambda: seconds() + shift_s()
    time.time_ns = lambda: nanoseconds() + shift_s() * 10**9


def _break(name: str) -> None:
    """From now on this function raises an exception that nobody has foreseen, with all secrets that it can get at."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)

    def fail(*args: Any, **kwargs: Any) -> Any:
        told = [vars(one) if hasattr(one, "__dict__") else one for one in args]
        raise RuntimeError(f"forced in {last}: {told!r} {kwargs!r}")

    setattr(owner, last, fail)


if __name__ == "__main__":
    main()
