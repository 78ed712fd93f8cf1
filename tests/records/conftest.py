"""The stores of the accounts' tests."""

from __future__ import annotations

from tests.accounts.conftest import postgres, postgres_url, sqlite_store, sqlite_url, store, url

__all__ = ["postgres", "postgres_url", "sqlite_store", "sqlite_url", "store", "url"]
