"""Rows that are made or replaced in one statement, alike on SQLite and PostgreSQL.

To look first and insert then is a race: of two transactions that both find nothing, one fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql


def insert_into(conn: Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that may say what happens to a row that is there."""
    if conn.dialect.name == "sqlite":
        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql  # 2 MB that whoever is on SQLite need not have

    return postgresql.insert(table)


def upsert(conn: Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """The row with this primary key has these values from now on, whether it was there or not."""
    adding = insert_into(conn, table).values(**key, **values)
    conn.execute(adding.on_conflict_do_update(index_elements=list(key), set_=dict(values)))
