"""The same tests on SQLite and on a real PostgreSQL, which a wheel brings along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jubal.accounts.store import Store
from jubal.accounts.usage import UsageRow

NOW_US = 1_700_000_000_000_000


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
