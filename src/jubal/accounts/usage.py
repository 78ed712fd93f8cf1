"""What was asked and what it cost: one row per request that an engine was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import credits, driver, itemised, ledger, rollups
from jubal.accounts.ledger import Used
from jubal.accounts.tables import api_keys, transfers, usage


class UsageRow(NamedTuple):
    """One request.

    created_us: when it ended. endpoint: its ACL name. model: the public name; engine and weights: what answered.
    status: "ok", "failed" or "cancelled"; error_code: why, where it failed. cached_tokens: None where the engine does not
    report them. latency_us: from its arrival to its end; first_token_us: to its first token, None where there was none.
    estimated: the tokens are an estimate, as the engine reported none.
    *_ticks: what `cost_in_usd_ticks` is the sum of, with the fees in `tools`: JSON of calls and ticks by tool, {"web_search": [2,
    100000000]}. None in rows of releases that did not tell. reserve_id: where its cost was held, None where none had to be;
    drawn_ticks: what it took from there, its cost but never more than was held. service_tier: "priority" where it went
    before others and cost more; None for the usual one.
    """

    request_id: str
    created_us: int
    team_id: str
    key_id: str
    endpoint: str
    model: str
    engine: str
    weights: str
    status: str
    error_code: str | None
    stream: bool
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    reasoning_tokens: int
    cost_in_usd_ticks: int
    latency_us: int
    first_token_us: int | None
    estimated: bool
    input_ticks: int | None = None
    cached_input_ticks: int | None = None
    output_ticks: int | None = None
    reasoning_ticks: int | None = None
    request_ticks: int | None = None
    tools: str | None = None
    reserve_id: str | None = None
    drawn_ticks: int | None = None
    service_tier: str | None = None


_COLUMNS: Final = UsageRow._fields

LAST_USED_EVERY_US: Final = 60_000_000
"""How exact `last_used_us` of a key is: finer would be one more write for each request."""
KEYS_REMEMBERED_MAX: Final = 10_000


def record(conn: Connection, rows: list[UsageRow]) -> None:
    """Adds rows, charges them to their teams, counts them in their hours, and notes when their keys were used last.

    A request id that is there already stays as it is, and is charged and counted once: a batch may come again.
    """
    added = driver.insert(conn, "usage", _COLUMNS, rows, "ON CONFLICT DO NOTHING")
    charged = [row for row in rows if row.cost_in_usd_ticks > 0]
    if added != len(rows):
        charged = _uncharged(conn, charged)
    if charged:
        ledger.post_usage(
            conn, [Used(row.request_id, row.team_id, row.cost_in_usd_ticks, row.created_us) for row in charged]
        )
        credits.draw(conn, charged)
    if added == len(rows):
        rollups.add(conn, rows)
    else:  # some were there already, and nothing tells which
        rollups.recount(conn, rollups.cells_of(rows))
    _note_last_use(conn, rows)


def _uncharged(conn: Connection, rows: list[UsageRow]) -> list[UsageRow]:
    """Of these rows, as the store holds them, those that no transfer stands for yet.

    After a failure that leaves open what was committed, rows come again; some may be new beside them.
    """
    ids = {row.request_id for row in rows}
    stored = conn.execute(
        sa.select(usage).where(
            usage.c.request_id.in_(ids),
            usage.c.cost_in_usd_ticks > 0,
            ~sa.exists().where(transfers.c.id == usage.c.request_id),
        )
    )
    return [UsageRow(**row) for row in stored.mappings()]


def _note_last_use(conn: Connection, rows: list[UsageRow]) -> None:
    """At most one UPDATE per key and minute: this connection remembers which it has done."""
    noted: dict[str, int] = conn.info.setdefault("jubal_last_used", {})
    due = {
        row.key_id: row.created_us for row in rows if row.created_us >= noted.get(row.key_id, 0) + LAST_USED_EVERY_US
    }
    if not due:
        return
    if len(noted) > KEYS_REMEMBERED_MAX:
        noted.clear()
    older = sa.or_(api_keys.c.last_used_us.is_(None), api_keys.c.last_used_us < sa.bindparam("now_us"))
    conn.execute(
        api_keys.update()
        .where(api_keys.c.id == sa.bindparam("key_id"), older)
        .values(last_used_us=sa.bindparam("now_us")),
        # in one order everywhere, so that two gateways never wait for each other in a circle
        [{"key_id": key_id, "now_us": created_us} for key_id, created_us in sorted(due.items())],
    )
    noted.update(due)


def listing(
    conn: Connection, key_id: str | None = None, team_id: str | None = None, limit: int = 1000
) -> list[UsageRow]:
    """The newest `limit` rows, of one key or team where that is given, newest last."""
    newest = sa.select(usage).order_by(usage.c.created_us.desc(), usage.c.request_id.desc()).limit(limit)
    return [UsageRow(**row) for row in conn.execute(_of(newest, key_id, team_id)).mappings()][::-1]


def export(
    conn: Connection,
    begin_us: int,
    end_us: int,
    team_id: str | None = None,
    *,
    key_ids: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    page: int = 5_000,
) -> Iterator[UsageRow]:
    """All rows of begin..end (the end not included), oldest first, read a page at a time: memory stays bounded."""
    place = sa.tuple_(usage.c.created_us, usage.c.request_id)
    query = sa.select(*(usage.c[name] for name in _COLUMNS)).where(usage.c.created_us < end_us)
    query = query.order_by(usage.c.created_us, usage.c.request_id)
    query = _of(query, None, team_id).limit(page)
    if key_ids is not None:
        query = query.where(usage.c.key_id.in_(key_ids))
    if models is not None:
        query = query.where(usage.c.model.in_(models))
    last = (begin_us, "")  # no request id sorts before the empty one
    while rows := conn.execute(query.where(usage.c.created_us >= last[0], place > last)).all():
        yield from map(UsageRow._make, rows)
        last = rows[-1].created_us, rows[-1].request_id


def _of(query: sa.Select[Any], key_id: str | None, team_id: str | None) -> sa.Select[Any]:
    if key_id is not None:
        query = query.where(usage.c.key_id == key_id)
    if team_id is not None:
        query = query.where(usage.c.team_id == team_id)
    return query


def delete_before(conn: Connection, before_us: int, *, limit: int = 1_000) -> int:
    """Deletes the oldest rows of before a moment, at most `limit`, and returns how many. The sums by the hour stay, and what
    invoices say.

    The moment counts as the begin of its hour: whichever hour was not begun on is whole, so it can be counted again.
    """
    before_us -= before_us % rollups.HOUR_US
    oldest = sa.select(usage.c.request_id).where(usage.c.created_us < before_us).order_by(usage.c.created_us)
    # What was deleted is told by the statement that does it: another gateway may delete the same ones at the same time.
    deleting = usage.delete().where(usage.c.request_id.in_(oldest.limit(limit))).returning(*usage.c)
    deleted = [UsageRow(**row) for row in conn.execute(deleting).mappings()]
    if deleted:
        itemised.keep(conn, deleted)
        rollups.forget_before(conn, before_us)
    return len(deleted)
