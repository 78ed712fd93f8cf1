"""The stores of tests/accounts."""

from __future__ import annotations

from tests.accounts.conftest import (  # noqa: F401
    postgres_store,
    sqlite_store,
    sqlite_url,
    store,
    url,
)
