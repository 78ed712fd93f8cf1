"""The run of the tests itself: whatever becomes of one of its processes, it comes to an end and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SLOW_FIRST

ROOT = Path(__file__).parent.parent
OPTIONS = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull, "-o", "asyncio_mode=auto")
FINE = "import time\ndef test_one(): time.sleep(0.1)\ndef test_two(): pass\ndef test_three(): pass\n"
DIES = """
import os, signal
def test_before(): pass
def test_that_dies(): os.kill(os.getpid(), signal.SIGKILL)
def test_after(): pass
"""
STUCK = """
import signal, time
def test_that_is_stuck():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # as within a C function that does not return
    time.sleep(600)
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A run of the tests in `folder`, with this project's settings of a run."""
    places = ("--rootdir", str(folder), "--basetemp", str(folder / "base"))
    return subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *places, *options, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def several(folder: Path, bad: str) -> None:
    (folder / "test_bad.py").write_text(bad)
    for name in "abcdef":
        (folder / f"test_{name}.py").write_text(FINE)


def test_a_process_that_dies_fails_the_run_and_names_the_test(tmp_path: Path) -> None:
    """pytest-xdist replaced it, and then waited for ever, with all tests but a few done and no word of it."""
    several(tmp_path, DIES)
    done = run(tmp_path, "-n", "3", "--dist", "loadfile")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "crashed while running" in done.stdout
    assert "test_bad.py::test_that_dies" in done.stdout
    assert "worker restarting disabled" in done.stdout


@pytest.mark.parametrize("processes", ["0", "3"])
def test_a_test_that_no_signal_reaches_is_ended_and_named(tmp_path: Path, processes: str) -> None:
    several(tmp_path, STUCK)
    done = run(tmp_path, "-n", processes, "--dist", "loadfile", "-o", "timeout=2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Timeout (0:00:04)!" in done.stderr
    assert 'test_bad.py", line 5 in test_that_is_stuck' in done.stderr


def test_the_slow_files_are_there() -> None:
    assert [name for name in SLOW_FIRST if not (ROOT / "tests" / name).exists()] == []
