"""Shared fixtures: the real model's file, and one real server for all tests that only ask it things."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Server, running

CACHE = Path(os.environ.get("JUBAL_TEST_CACHE") or Path(__file__).parent.parent / ".cache")


def pytest_configure() -> None:
    """A SIGTERM ends the tests as Ctrl-C does, so that what fixtures have started is ended by them. (After a SIGKILL that is
    left to `tests/leash.py`.)"""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


@pytest.fixture(scope="session")
def models_home() -> Path:
    """A folder with the embedded model's file, fetched once and kept between runs."""
    from jubal.engines import weights

    folder = CACHE / "models"
    if weights.resolve(folder, "smollm2-135m") is None:
        weights.pull(folder, "smollm2-135m", lambda done, total: None)
    return folder


def home_with_models(home: Path, models_home: Path) -> Path:
    """A $JUBAL_HOME that need not fetch the model."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models_home, target_is_directory=True)
    return home


@pytest.fixture(scope="session")
def real_server(models_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with all defaults, on the real model."""
    home = home_with_models(tmp_path_factory.mktemp("real") / "home", models_home)
    with running(home) as server:
        yield server
