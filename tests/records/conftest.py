"""The stores of the accounts' tests."""

from __future__ import annotations

from tests.accounts.conftest import sqlite_store, sqlite_url, store, url

__all__ = ["sqlite_store", "sqlite_url", "store", "url"]
