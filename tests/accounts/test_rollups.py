"""Sums by the hour: equal to the rows whatever happened, and kept when the rows go."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import rollups, tables, usage
from jubal.accounts.rollups import DAY_US, HOUR_US
from jubal.accounts.store import GroupCommit, Store
from jubal.accounts.usage import UsageRow
from jubal.serving.retention import Retention
from tests.accounts.conftest import NOW_US, usage_row

BEGIN_US = NOW_US - NOW_US % HOUR_US

TOOL_CALLS = {None: 0, '{"web_search": [2, 50]}': 2, '{"web_search": [1, 5], "mcp": [3, 0]}': 4}


def some_rows(count: int, seed: int = 1, name: str = "r") -> list[UsageRow]:
    pick = random.Random(seed)
    return [
        usage_row(
            f"{name}{n}",
            created_us=BEGIN_US + pick.randrange(5 * HOUR_US),
            key_id=f"k{pick.randrange(3)}",
            team_id=f"t{pick.randrange(2)}",
            model=f"m{pick.randrange(2)}",
            status=pick.choice(["ok", "failed", "cancelled"]),
            cached_tokens=pick.choice([None, 3]),
            tools=pick.choice([None, '{"web_search": [2, 50]}', '{"web_search": [1, 5], "mcp": [3, 0]}']),
            cost_in_usd_ticks=pick.randrange(10**9),
        )
        for n in range(count)
    ]


def counted(conn: Connection) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in conn.execute(sa.select(tables.usage_hours)))


def expected(rows: list[UsageRow]) -> list[tuple[Any, ...]]:
    """By the plainest way there is."""
    cells: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        cell = cells.setdefault((row.created_us // HOUR_US * HOUR_US, row.team_id, row.key_id, row.model), [0] * 10)
        values = (
            1, row.status == "failed", row.status == "cancelled", row.prompt_tokens, row.cached_tokens or 0,
            row.completion_tokens, row.reasoning_tokens, TOOL_CALLS[row.tools], row.cost_in_usd_ticks, row.latency_us,
        )  # fmt: skip
        for index, value in enumerate(values):
            cell[index] += value
    return sorted((*cell, *sums) for cell, sums in cells.items())


def test_sums_are_those_of_the_rows(store: Store) -> None:
    rows = some_rows(300)
    for begin in range(0, 300, 70):
        store.transact(usage.record, rows[begin : begin + 70])
    assert store.read(counted) == expected(rows)


def test_rows_that_come_again_are_counted_once(store: Store) -> None:
    """Alone, beside new ones, and with other numbers: what the store holds is what counts."""
    rows = some_rows(60)
    store.transact(usage.record, rows[:40])
    store.transact(usage.record, rows[:40])
    store.transact(usage.record, rows[20:60])
    store.transact(usage.record, [rows[0]._replace(cost_in_usd_ticks=7, prompt_tokens=10**6)])
    assert store.read(counted) == expected(rows)


def test_two_gateways_at_once(store: Store) -> None:
    """On the same cells, with rows that come again from both: no deadlock, and exact sums."""
    rows = some_rows(400)
    errors: list[BaseException] = []

    def write(seed: int) -> None:
        pick = random.Random(seed)
        session = store.session()
        try:
            order = rows[:]
            pick.shuffle(order)
            for begin in range(0, len(order), 20):
                session.transact(usage.record, order[begin : begin + 20])
        except BaseException as error:
            errors.append(error)
        finally:
            session.close()

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert store.read(counted) == expected(rows)


async def test_a_batch_that_fails_counts_nothing(store: Store) -> None:
    """A row that can't be stored takes none of the others' sums with it."""
    log = GroupCommit(store, usage.record)
    rows = some_rows(20)
    bad = usage_row("bad", created_us=BEGIN_US, prompt_tokens=2**70)
    results = await asyncio.gather(*(log.commit(row) for row in [*rows, bad]), return_exceptions=True)
    await log.close()
    assert [type(one) for one in results[:-1]] == [type(None)] * 20
    assert isinstance(results[-1], Exception)
    assert store.read(counted) == expected(rows)


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        (["hour"], 5), (["day"], 2), (["key"], 3), (["model"], 2), (["team"], 2), (["day", "key"], 6), (["key", "model"], 6), ([], 1),
    ],
)  # fmt: skip
def test_totals(store: Store, by: Any, groups: int) -> None:
    rows = some_rows(300)
    store.transact(usage.record, rows)
    found = store.read(rollups.totals, by, BEGIN_US, BEGIN_US + DAY_US)
    assert len(found) == groups, "the day turns within the five hours"
    assert sum(one.requests for one in found) == 300
    assert sum(one.cost_in_usd_ticks for one in found) == sum(row.cost_in_usd_ticks for row in rows)
    mine = store.read(rollups.totals, by, BEGIN_US, BEGIN_US + DAY_US, team_id="t1", key_ids=["k0"], models=["m1"])
    matching = [row for row in rows if (row.team_id, row.key_id, row.model) == ("t1", "k0", "m1")]
    assert sum(one.requests for one in mine) == len(matching)
    first = store.read(rollups.totals, by, BEGIN_US, BEGIN_US + HOUR_US)
    assert sum(one.requests for one in first) == len([row for row in rows if row.created_us < BEGIN_US + HOUR_US])


def test_nothing_is_scanned(sqlite_store: Store) -> None:
    """Sums of a team are found by index, and no row of `usage` is read for them."""

    def plan(conn: Connection) -> str:
        statements: list[str] = []

        def see(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
            rows = conn.connection.driver_connection.execute("EXPLAIN QUERY PLAN " + statement, parameters)  # type: ignore[union-attr]
            statements.extend(row[-1] for row in rows)

        sa.event.listen(conn, "before_cursor_execute", see)
        rollups.totals(conn, ["day", "key"], 0, 2**60, team_id="t")
        return "\n".join(statements)

    found = sqlite_store.read(plan)
    assert "SEARCH usage_hours USING INDEX ix_usage_hours_team_id_hour_us" in found
    assert "usage " not in found.replace("usage_hours", "")


def test_sums_stay_when_rows_go(store: Store) -> None:
    rows = some_rows(200)
    store.transact(usage.record, rows)
    before_us = BEGIN_US + 2 * HOUR_US + 17
    deleted = 0
    while found := store.transact(usage.delete_before, before_us, limit=30):
        assert found <= 30
        deleted += found
    kept = [row for row in rows if row.created_us >= BEGIN_US + 2 * HOUR_US]
    assert deleted == 200 - len(kept)
    assert len(store.read(usage.listing, limit=1000)) == len(kept)
    assert store.read(counted) == expected(rows)
    store.transact(usage.record, rows[:5])  # a row that comes again after it was deleted is stored, not counted
    store.transact(rollups.recount_all, 0, 2**62)
    recounted = [row for row in store.read(counted) if row[0] >= BEGIN_US + 2 * HOUR_US]
    assert recounted == [row for row in expected(rows) if row[0] >= BEGIN_US + 2 * HOUR_US]


def test_rows_of_an_older_release_can_be_counted(store: Store) -> None:
    rows = some_rows(50)
    store.transact(usage.record, rows[:20])

    def as_before(conn: Connection) -> None:
        conn.execute(tables.usage.insert(), [row._asdict() for row in rows[20:]])

    store.transact(as_before)
    assert store.read(counted) != expected(rows)
    store.transact(rollups.recount_all, 0, 2**62)
    assert store.read(counted) == expected(rows)


async def test_retention_deletes_what_is_too_old(store: Store) -> None:
    rows = [usage_row(n, created_us=BEGIN_US - n * DAY_US // 2) for n in range(20)]
    store.transact(usage.record, rows)
    retention = Retention(store, 3, now_us=lambda: BEGIN_US)
    assert await retention.round() == 13
    assert await retention.round() == 0
    assert len(store.read(usage.listing)) == 7
    retention.start()
    await retention.stop()


def test_export_reads_all_rows_in_order(store: Store) -> None:
    rows = sorted(some_rows(120), key=lambda row: (row.created_us, row.request_id))
    store.transact(usage.record, rows)

    def read(conn: Connection, **only: Any) -> list[UsageRow]:
        return list(usage.export(conn, BEGIN_US, BEGIN_US + 4 * HOUR_US, page=7, **only))

    within = [row for row in rows if row.created_us < BEGIN_US + 4 * HOUR_US]
    assert store.read(read) == within
    assert store.read(read, key_ids=["k1"]) == [row for row in within if row.key_id == "k1"]
    some = [row for row in within if row.key_id in ("k0", "k1") and row.model == within[0].model]
    assert store.read(read, key_ids=["k0", "k1"], models=[within[0].model]) == some


def test_a_store_of_before_has_its_sums_counted(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrating counts the rows that are there, and gives management keys ACLs of their kind."""
    from jubal.accounts import keys, teams
    from jubal.accounts import store as store_module

    rows = some_rows(40)
    with Store.open(sqlite_url) as store:
        store.transact(usage.record, rows)
        team = store.read(teams.default)
        key, _ = store.transact(keys.create, team_id=team.id, name="boss", management=True, now_us=NOW_US)
        whole = store.read(counted)

        def back(conn: Connection) -> None:
            from alembic import command
            from alembic.config import Config

            config = Config(attributes={"connection": conn})
            where = store_module.__file__.replace("store.py", "migrations")
            config.set_main_option("script_location", where)
            command.downgrade(config, "0005")

        store.transact(back)
    with Store.open(sqlite_url) as store:
        assert store.read(counted) == whole
        assert store.read(keys.get, key.id).acls == ("team-token:endpoint:*",)
