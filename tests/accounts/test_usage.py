"""Usage rows, and when a key was used last."""

from __future__ import annotations

import sqlalchemy as sa

from jubal.accounts import keys, tables, teams, usage
from jubal.accounts.store import Store
from jubal.accounts.usage import UsageRow
from tests.accounts.conftest import NOW_US, usage_row

MINUTE_US = 60_000_000


def test_a_row_comes_back_as_it_went_in(store: Store) -> None:
    rows = [
        usage_row("1", created_us=1),
        usage_row(
            "2",
            created_us=2,
            error_code="engine_timeout",
            status="failed",
            stream=True,
            cached_tokens=0,
            reasoning_tokens=2**40,
            cost_in_usd_ticks=2**62,
            first_token_us=7,
            estimated=True,
        ),
    ]
    store.transact(usage.record, rows)
    assert store.read(usage.listing) == rows


def test_the_fields_are_the_columns() -> None:
    assert list(UsageRow._fields) == [column.name for column in tables.usage.c]


def test_the_listing_has_the_newest_rows_newest_last(store: Store) -> None:
    rows = [usage_row(n, created_us=n, key_id=f"k{n % 2}", team_id=f"t{n % 3}") for n in range(12)]
    store.transact(usage.record, rows[::-1])
    assert store.read(usage.listing) == rows
    assert store.read(usage.listing, limit=3) == rows[-3:]
    assert store.read(usage.listing, key_id="k1") == rows[1::2]
    assert store.read(usage.listing, team_id="t2", limit=2) == [rows[8], rows[11]]
    assert store.read(usage.listing, key_id="k1", team_id="t2") == [rows[5], rows[11]]


def test_last_use_is_noted_once_a_minute(store: Store) -> None:
    team = store.read(teams.default)
    (a, _), (b, _) = (store.transact(keys.create, team_id=team.id, name=name, now_us=NOW_US) for name in "ab")
    updates: list[object] = []

    @sa.event.listens_for(store._engine, "before_cursor_execute")
    def count(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE api_keys"):
            updates.append(statement)

    session = store.session()
    for n in range(8):  # 20 s apart
        session.transact(usage.record, [usage_row(n, key_id=a.id, created_us=NOW_US + n * MINUTE_US // 3)])
    assert len(updates) == 3
    assert store.read(keys.get, a.id).last_used_us == NOW_US + 2 * MINUTE_US
    assert store.read(keys.get, b.id).last_used_us is None
    session.close()


def test_last_use_never_goes_back(store: Store) -> None:
    """Another gateway's clock, or its slower batch."""
    key, _ = store.transact(keys.create, team_id=store.read(teams.default).id, name="a", now_us=NOW_US)
    one, other = store.session(), store.session()
    one.transact(usage.record, [usage_row("1", key_id=key.id, created_us=NOW_US + 5 * MINUTE_US)])
    other.transact(usage.record, [usage_row("2", key_id=key.id, created_us=NOW_US)])
    assert store.read(keys.get, key.id).last_used_us == NOW_US + 5 * MINUTE_US
    one.close()
    other.close()


def test_what_is_remembered_of_keys_is_bounded(sqlite_store: Store) -> None:
    def remembered(conn: sa.Connection) -> int:
        return len(conn.info["jubal_last_used"])

    session = sqlite_store.session()
    for batch in range(3):
        rows = [usage_row(f"{batch}-{n}", key_id=f"{batch}-{n}") for n in range(usage.KEYS_REMEMBERED_MAX - 1)]
        session.transact(usage.record, rows)
        assert session.transact(remembered) < 2 * usage.KEYS_REMEMBERED_MAX
    session.close()


def test_new_rows_are_known_to_be_new(store: Store) -> None:
    """Both drivers count what a list of inserts added: else every batch would be looked up again."""
    looked_up: list[object] = []

    @sa.event.listens_for(store._engine, "before_cursor_execute")
    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "EXISTS" in statement:
            looked_up.append(statement)

    store.transact(usage.record, [usage_row(n) for n in range(5)])
    assert not looked_up
    store.transact(usage.record, [usage_row(n) for n in range(3, 8)])
    assert len(looked_up) == 1
