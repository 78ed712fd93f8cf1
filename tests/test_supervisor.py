"""The supervisor with workers that are a few lines of Python, in processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jubal.supervisor import PAUSE_FIRST_S, PAUSE_MAX_S, Supervisor, packed, pause_s

WORKER = """
import asyncio, os, sys, time
from pathlib import Path
from jubal.supervisor import Line

line = Line(int(sys.argv[1]))
first = line.orders() == b"first"
folder = Path(sys.argv[2])

async def serve():
    over = asyncio.Event()
    line.listen(over.set, lambda: os._exit(3), drain_s=0.2)
    (folder / str(os.getpid())).write_text("first" if first else "")
    line.ready(b"hello" if first else b"")
    await over.wait()
    (folder / f"{os.getpid()} drained").touch()

"""
SERVES = WORKER + "asyncio.run(serve())"
HANGS = WORKER.replace("await over.wait()", "time.sleep(60)") + "asyncio.run(serve())"
FAILS = WORKER + "asyncio.run(serve()) if first else sys.exit(7)"
DIES = WORKER + "asyncio.run(serve()) if first else os.kill(os.getpid(), 9)"


def supervisor(folder: Path, script: str, *, number: int = 2, drain_s: float = 20) -> Supervisor:
    return Supervisor(
        number,
        lambda line: (sys.executable, "-c", script, str(line), str(folder)),
        lambda first: b"first" if first else b"next",
        drain_s=drain_s,
    )


def started(folder: Path) -> dict[int, str]:
    """What workers wrote down, by their process ids, in the order of their starts."""
    files = [file for file in folder.iterdir() if file.name.isdecimal()]
    return {int(file.name): file.read_text() for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)}


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def test_pauses_grow_and_end_growing() -> None:
    assert [pause_s(deaths) for deaths in range(3)] == [PAUSE_FIRST_S, 2 * PAUSE_FIRST_S, 4 * PAUSE_FIRST_S]
    assert pause_s(100_000) == PAUSE_MAX_S


async def test_the_first_worker_starts_alone_and_all_drain(tmp_path: Path) -> None:
    heard: list[bytes] = []
    running = asyncio.create_task(supervisor(tmp_path, SERVES, number=3).run(heard.append))
    await until(lambda: heard)
    assert heard == [b"hello"]
    assert list(started(tmp_path).values()) == ["first", "", ""]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert len(list(tmp_path.glob("* drained"))) == 3
    assert heard == [b"hello"]


async def test_one_that_dies_is_replaced_and_its_fellow_stays(tmp_path: Path) -> None:
    heard: list[bytes] = []
    running = asyncio.create_task(supervisor(tmp_path, SERVES).run(heard.append))
    await until(lambda: heard)
    dead, fellow = started(tmp_path)
    os.kill(dead, signal.SIGKILL)
    await until(lambda: len(started(tmp_path)) == 3)
    third = list(started(tmp_path))[-1]
    assert started(tmp_path)[third] == "", "there is one before it"
    assert psutil.pid_exists(fellow)
    os.kill(third, signal.SIGTERM)  # drains one of them: it is replaced as well
    await until(lambda: len(started(tmp_path)) == 4)
    assert (tmp_path / f"{third} drained").exists()
    os.kill(os.getpid(), signal.SIGINT)
    assert await running == 0
    assert {int(file.name.split()[0]) for file in tmp_path.glob("* drained")} == set(started(tmp_path)) - {dead}


@pytest.mark.parametrize(("script", "code"), [(FAILS, 7), (DIES, 1)])
async def test_one_that_cannot_start_ends_all(script: str, code: int, tmp_path: Path) -> None:
    heard: list[bytes] = []
    assert await supervisor(tmp_path, script, number=3).run(heard.append) == code
    assert not heard
    (first,) = started(tmp_path)
    assert not psutil.pid_exists(first)


async def test_stopped_while_the_first_one_starts(tmp_path: Path) -> None:
    slow = "import time; time.sleep(60)"
    others = set(
        psutil.Process().children()
    )  # servers of other tests: whoever takes one of them for ours sends the signal too soon
    running = asyncio.create_task(supervisor(tmp_path, slow).run(lambda said: None))
    await until(lambda: set(psutil.Process().children()) - others)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


async def test_one_that_hangs_is_killed_after_the_drain(tmp_path: Path) -> None:
    heard: list[bytes] = []
    script = HANGS.replace("drain_s=0.2", "drain_s=60")
    running = asyncio.create_task(supervisor(tmp_path, script, drain_s=0.2).run(heard.append))
    await until(lambda: heard)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 1
    assert not any(psutil.pid_exists(pid) for pid in started(tmp_path))


def test_one_that_hangs_does_not_outlive_its_parent(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", HANGS, str(theirs.fileno()), str(tmp_path)]
        with subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as worker:
            theirs.close()
            ours.sendall(packed(b"first"))
            assert ours.recv(100)
            ours.close()  # as when the parent is killed
            assert worker.wait(30) == 1
