"""Processes forked from one that has Jubal loaded are like ones that were started: nothing is alike in two of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forking import Forked, Forker
from tests.server import FORKS, environment

pytestmark = pytest.mark.skipif(not FORKS, reason="only on Linux are servers forked")

PROGRAM = """
import json, os, random, secrets, sys
from jubal.serving.pipeline import new_request_id
number = sys.argv[1]
if number == "0":
    os.kill(os.getpid(), 15)
print(json.dumps([[new_request_id()[13:], random.random(), secrets.token_hex()], [number, os.environ["NUMBER"], os.getcwd()]]))
print("told", file=sys.stderr)
sys.exit(int(number))
"""


@pytest.fixture
def forker(tmp_path: Path) -> Iterator[Forker]:
    (tmp_path / "program.py").write_text(PROGRAM)
    one = Forker(environment(tmp_path))
    yield one
    one.close()


def start(forker: Forker, folder: Path, number: int) -> Forked:
    with (folder / f"out{number}").open("w") as out, (folder / f"err{number}").open("w") as err:
        with open(os.devnull) as nothing:
            return forker.start(
                [str(folder / "program.py"), str(number)],
                env={**environment(folder), "NUMBER": str(number)},
                stdin=nothing.fileno(),
                stdout=out,
                stderr=err,
                new_session=bool(number % 2),
            )


def test_each_has_its_own_ids_chances_environment_output_and_exit_code(forker: Forker, tmp_path: Path) -> None:
    """Two gateways with the same request ids would overwrite each other's rows."""
    numbers = range(1, 9)
    processes = [start(forker, tmp_path, number) for number in numbers]
    assert [one.wait(60) for one in processes] == list(numbers)
    assert [one.poll() for one in processes] == list(numbers)
    said = [json.loads((tmp_path / f"out{number}").read_text()) for number in numbers]
    for chances in zip(*(one[0] for one in said), strict=True):
        assert len(set(chances)) == len(numbers)
    assert [one[1] for one in said] == [[str(number), str(number), os.getcwd()] for number in numbers]
    assert {(tmp_path / f"err{number}").read_text() for number in numbers} == {"told\n"}


def test_one_that_a_signal_ends_is_told(forker: Forker, tmp_path: Path) -> None:
    assert start(forker, tmp_path, 0).wait(60) == -15


def test_waiting_has_an_end(forker: Forker, tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(600)")
    with open(os.devnull, "r+") as nothing:
        one = forker.start(
            [str(tmp_path / "sleeps.py")],
            env=environment(tmp_path),
            stdin=nothing.fileno(),
            stdout=nothing,
            stderr=nothing,
        )
    assert one.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(0.05)
    one.kill()
    assert one.wait(60) == -9


def test_what_is_loaded_before_is_what_a_fresh_server_would_load() -> None:
    """Not more: NumPy and gRPC start threads, and a fork of those is not safe."""
    code = "import importlib, sys\nfrom tests.forking import LOADED\n"
    code += "for name in LOADED: importlib.import_module(name)\nprint(sorted({'numpy', 'grpc'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
