"""Commands run in this process, against a home of their own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

from jubal.cli.root import app
from tests.server import ECHO, Server, running


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """Commands configure logging for their process, which here is the test run's."""
    before, root = structlog.get_config(), logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    structlog.configure(**before)
    root.level, root.handlers[:] = level, handlers


class Cli:
    """Runs commands as a user would, in this process: fast, and with stdin that is no terminal."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._runner = CliRunner()

    def __call__(self, *args: str, input: str | None = None, **env: str | None) -> Result:
        unset = dict.fromkeys(("JUBAL_CONFIG", "XAI_API_KEY"))
        return self._runner.invoke(app, args, input=input, env={**unset, "JUBAL_HOME": str(self.home), **env})

    def json(self, *args: str) -> Any:
        done = self(*args, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home of mine")


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A really started server whose model says the last message back."""
    with running(tmp_path_factory.mktemp("echo") / "home of mine", config=ECHO) as server:
        yield server
