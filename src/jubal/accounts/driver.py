"""Statements of the hot path, which the driver runs itself.

SQLAlchemy's `exec_driver_sql` takes 10 us a statement for a context, events and a result that nobody uses. Its errors are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

from sqlalchemy import exc
from sqlalchemy.engine import Connection


def marks(conn: Connection, count: int) -> str:
    """So many placeholders, as the driver writes them: `?, ?, ?`."""
    return ", ".join(["?" if conn.dialect.paramstyle == "qmark" else "%s"] * count)


ROWS_AT_ONCE: Final = (32, 16, 8, 4, 2, 1)
"""Statements of few sizes, so that the driver knows each of them already."""


def insert(
    conn: Connection, into: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], rest: str = ""
) -> int:
    """Adds rows to a table, many by one statement. Returns how many were added. rest: what the statement ends with; where that
    updates, no two of the rows may be of one key.

    One statement for each row would cost the same work and, for each, a handing over of the interpreter's lock to whoever waits for
    it. Raises as `execute` does.
    """
    added, begin = 0, 0
    one = f"({marks(conn, len(columns))})"
    for count in ROWS_AT_ONCE:
        while len(rows) - begin >= count:
            values = ", ".join([one] * count)
            statement = f"INSERT INTO {into} ({', '.join(columns)}) VALUES {values} {rest}"  # noqa: S608  our own names only
            added += execute(conn, statement, tuple(chain.from_iterable(rows[begin : begin + count])))
            begin += count
    return added


def execute(conn: Connection, sql: str, parameters: tuple[Any, ...] | list[Any] = ()) -> int:
    """Runs one statement in the connection's transaction, once for each of a list of parameters. Returns the rows it changed.

    sql: with the driver's own placeholders (`marks`). Raises what `Connection.exec_driver_sql` would: `exc.DBAPIError`.
    """
    raw = conn.connection
    cursor = raw.cursor()
    drivers = conn.dialect.loaded_dbapi.Error
    try:
        if isinstance(parameters, list):
            cursor.executemany(sql, parameters)
        else:
            cursor.execute(sql, parameters)
        return cursor.rowcount
    except drivers as error:
        if conn.dialect.is_disconnect(error, raw, cursor):
            conn.exec_driver_sql("SELECT 1")  # fails the same way, and SQLAlchemy forgets all connections that are lost
        raise exc.DBAPIError.instance(sql, None, error, drivers, hide_parameters=True, dialect=conn.dialect) from error
    finally:
        cursor.close()
