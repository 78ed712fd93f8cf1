"""Statements past SQLAlchemy: the same errors, and lost connections are known as such."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from jubal.accounts import driver, teams
from jubal.accounts.store import Store
from jubal.accounts.tables import balances


def name_of(conn: Connection, name: str) -> int:
    return driver.execute(conn, f"UPDATE teams SET name = {driver.marks(conn, 1)}", (name,))


def test_it_tells_how_many_rows_changed(store: Store) -> None:
    assert store.transact(name_of, "one") == 1
    assert store.read(teams.default).name == "one"
    insert = "INSERT INTO meta (name, value) VALUES ({}) ON CONFLICT DO NOTHING"
    rows = [("a", "1"), ("b", "2"), ("a", "3")]
    assert store.transact(lambda conn: driver.execute(conn, insert.format(driver.marks(conn, 2)), rows)) == 2


@pytest.mark.parametrize(
    "sql", ["INSERT INTO meta (name, value) VALUES ('a', NULL)", "no SQL", "SELECT * FROM nowhere"]
)
def test_its_errors_are_sqlalchemys(store: Store, sql: str) -> None:
    """Nothing of the transaction stays, and the connection is good for the next."""

    def work(conn: Connection) -> None:
        name_of(conn, "never")
        with pytest.raises(exc.DBAPIError) as own:
            driver.execute(conn, sql)
        assert type(own.value) is expected
        assert not own.value.connection_invalidated
        raise RuntimeError

    with store._engine.connect() as conn, pytest.raises(exc.DBAPIError) as sqlalchemys:
        conn.exec_driver_sql(sql)
    expected = type(sqlalchemys.value)
    with pytest.raises(RuntimeError):
        store.transact(work)
    assert store.read(teams.default).name == "default"
    assert store.transact(name_of, "next") == 1


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_many_rows_by_few_statements(store: Store, count: int) -> None:
    """Those that are there already stay as they are, and are not counted."""
    columns = ("team_id", "month")
    rows = [(f"t{n}", n) for n in range(count)]

    def insert(conn: Connection, rows: list[tuple[str, int]]) -> int:
        return driver.insert(conn, "balances", columns, rows, "ON CONFLICT DO NOTHING")

    assert store.transact(insert, rows) == count
    assert store.transact(insert, [("t0", 7), ("new", 7)]) == (1 if count else 2)
    months = sa.select(balances.c.team_id, balances.c.month)
    found = {row.team_id: row.month for row in store.read(lambda conn: conn.execute(months).all())}
    assert {team: month for team, month in rows if team != "t0"}.items() <= found.items()
    assert found["t0"] == (0 if count else 7)


def test_a_lost_connection_is_replaced(postgres_store: Store) -> None:
    hang_ups = iter([True, False])
    other = postgres_store._engine.connect()  # was open before, and is in the pool when the first one is lost
    other.close()

    def work(conn: Connection) -> int:
        if next(hang_ups):
            conn.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        return name_of(conn, "found")

    assert postgres_store.transact(work) == 1
    assert postgres_store.read(teams.default).name == "found"


def test_what_was_lost_is_told(postgres_store: Store) -> None:
    with postgres_store._engine.connect() as conn:
        pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with postgres_store._engine.connect() as killer:
            killer.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(exc.DBAPIError) as lost:
            driver.execute(conn, "SELECT 1")
        assert lost.value.connection_invalidated
        assert conn.invalidated
