"""Usage by the hour: sums over the rows of each hour, team, key and model (docs/decisions/usage.md).

They are added to in the transaction that adds the rows, so both are there or neither is. Where a row may have been there
before, its hour is counted anew from the rows, which is exact whatever happened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import driver
from jubal.accounts.tables import meta, usage, usage_hours

if TYPE_CHECKING:
    from jubal.accounts.usage import UsageRow

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
DELETED_BEFORE: Final = "usage_deleted_before_us"
"""The fact in `tables.meta` that says up to which moment rows may be gone."""


class Cell(NamedTuple):
    """What sums are kept for. hour_us: when the hour began."""

    hour_us: int
    team_id: str
    key_id: str
    model: str


CELL: Final = Cell._fields
SUMS: Final = (
    "requests",
    "failed",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "tool_calls",
    "cost_in_usd_ticks",
    "latency_us",
)
_COLUMNS: Final = (*CELL, *SUMS)
_ADDING: Final = ", ".join(f"{name} = usage_hours.{name} + excluded.{name}" for name in SUMS)

Group: TypeAlias = Literal["hour", "day", "key", "model", "team"]


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over some hours. begin_us: when the hour or (UTC) day began, where it is asked by them; the others likewise.

    requests: all of them, failed and cancelled ones included. cached_tokens: where engines report them.
    """

    requests: int
    failed: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    tool_calls: int
    cost_in_usd_ticks: int
    latency_us: int
    begin_us: int | None = None
    team_id: str | None = None
    key_id: str | None = None
    model: str | None = None


# ------------------------------------------------------------------------------------------------------------- counting


def cells_of(rows: Iterable[UsageRow]) -> set[Cell]:
    """Where these rows count."""
    return {Cell(row.created_us - row.created_us % HOUR_US, row.team_id, row.key_id, row.model) for row in rows}


def add(conn: Connection, rows: Iterable[UsageRow]) -> None:
    """Counts rows that were added in this transaction: one upsert for each cell, in one order everywhere, so that two gateways
    never wait for each other in a circle."""
    sums: dict[tuple[int, str, str, str], list[int]] = {}
    for row in rows:
        cell = (row.created_us - row.created_us % HOUR_US, row.team_id, row.key_id, row.model)
        counted = _of_row(row)
        found = sums.get(cell)
        sums[cell] = counted if found is None else [a + b for a, b in zip(found, counted, strict=True)]
    _upsert(conn, [(*cell, *sums[cell]) for cell in sorted(sums)])


def total_of(row: UsageRow) -> Total:
    """What one row adds to the sums."""
    sums: dict[str, Any] = dict(zip(SUMS, _of_row(row), strict=True))
    return Total(**sums)


def _of_row(row: UsageRow) -> list[int]:
    """In the order of `SUMS`."""
    return [
        1,
        int(row.status == "failed"),
        int(row.status == "cancelled"),
        row.prompt_tokens,
        row.cached_tokens or 0,
        row.completion_tokens,
        row.reasoning_tokens,
        0 if row.tools is None else tool_calls(row.tools),
        row.cost_in_usd_ticks,
        row.latency_us,
    ]


def tool_calls(tools: str) -> int:
    """All calls that `UsageRow.tools` tells of."""
    return sum(calls for calls, _ in json.loads(tools).values())


def _upsert(conn: Connection, values: list[tuple[Any, ...]], *, change: str = _ADDING) -> None:
    driver.insert(conn, "usage_hours", _COLUMNS, values, f"ON CONFLICT ({', '.join(CELL)}) DO UPDATE SET {change}")


def recount(conn: Connection, cells: Iterable[Cell]) -> None:
    """Counts cells anew from their rows. Cells of hours whose rows may be deleted stay as they are.

    Each cell is taken first, and read after that: what another transaction adds to it is in the rows by then, or comes on top.
    """
    deleted_before_us = deleted_before(conn)
    for cell in sorted(cells):
        if cell.hour_us < deleted_before_us:
            continue
        _upsert(conn, [(*cell, *([0] * len(SUMS)))])
        conn.execute(usage_hours.update().where(*_is(cell)).values(_counted(conn, cell)))


def _counted(conn: Connection, cell: Cell) -> dict[str, int]:
    mine = (
        usage.c.key_id == cell.key_id,
        usage.c.created_us >= cell.hour_us,
        usage.c.created_us < cell.hour_us + HOUR_US,
        usage.c.team_id == cell.team_id,
        usage.c.model == cell.model,
    )
    sums = conn.execute(sa.select(*_SUMS_OF_ROWS).where(*mine)).mappings().one()
    tools = conn.scalars(sa.select(usage.c.tools).where(*mine, usage.c.tools.is_not(None)))
    calls = sum(tool_calls(text) for text in tools if text)
    return {"tool_calls": calls, **{name: int(value or 0) for name, value in sums.items()}}


def _is(cell: Cell) -> list[sa.ColumnElement[bool]]:
    return [usage_hours.c[name] == value for name, value in zip(CELL, cell, strict=True)]


def _one_if(status: str) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((usage.c.status == status, 1), else_=0))


_SUMS_OF_ROWS: Final = (
    sa.func.count().label("requests"),
    _one_if("failed").label("failed"),
    _one_if("cancelled").label("cancelled"),
    sa.func.sum(usage.c.prompt_tokens).label("prompt_tokens"),
    sa.func.sum(usage.c.cached_tokens).label("cached_tokens"),
    sa.func.sum(usage.c.completion_tokens).label("completion_tokens"),
    sa.func.sum(usage.c.reasoning_tokens).label("reasoning_tokens"),
    sa.func.sum(usage.c.cost_in_usd_ticks).label("cost_in_usd_ticks"),
    sa.func.sum(usage.c.latency_us).label("latency_us"),
)


def recount_all(conn: Connection, begin_us: int, end_us: int) -> int:
    """Counts every hour of begin..end anew whose rows are all there, and returns how many cells that are.

    For rows that a gateway of an older release wrote, which knew of no sums.
    """
    hour = usage.c.created_us - usage.c.created_us % HOUR_US
    within = (usage.c.created_us >= begin_us - begin_us % HOUR_US, usage.c.created_us < end_us)
    found = sa.select(hour, usage.c.team_id, usage.c.key_id, usage.c.model).where(*within).distinct()
    cells = [Cell(*row) for row in conn.execute(found)]
    recount(conn, cells)
    return len(cells)


def forget_before(conn: Connection, before_us: int) -> None:
    """Notes that rows of before a moment are being deleted."""
    if before_us <= deleted_before(conn):
        return
    driver.execute(
        conn,
        f"INSERT INTO meta (name, value) VALUES ({driver.marks(conn, 2)}) "  # noqa: S608  no values in it
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (DELETED_BEFORE, str(before_us)),
    )


def deleted_before(conn: Connection) -> int:
    """Rows of before this moment may be gone; 0 where none is."""
    return int(conn.scalar(sa.select(meta.c.value).where(meta.c.name == DELETED_BEFORE)) or 0)


# -------------------------------------------------------------------------------------------------------------- reading


def totals(
    conn: Connection,
    by: Sequence[Group],
    begin_us: int,
    end_us: int,
    *,
    team_id: str | None = None,
    key_ids: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    limit: int = 100_000,
) -> list[Total]:
    """Sums over the hours that begin in begin..end (the end not included), grouped, in the order of the groups.

    At most `limit` of them. `hour` and `day` exclude each other.
    """
    columns = {
        "hour": usage_hours.c.hour_us.label("begin_us"),
        "day": (usage_hours.c.hour_us - usage_hours.c.hour_us % DAY_US).label("begin_us"),
        "key": usage_hours.c.key_id,
        "model": usage_hours.c.model,
        "team": usage_hours.c.team_id,
    }
    groups = [columns[one] for one in by]
    sums = [sa.func.sum(usage_hours.c[name]).label(name) for name in SUMS]
    query = sa.select(*groups, *sums).where(usage_hours.c.hour_us >= begin_us, usage_hours.c.hour_us < end_us)
    if team_id is not None:
        query = query.where(usage_hours.c.team_id == team_id)
    if key_ids is not None:
        query = query.where(usage_hours.c.key_id.in_(key_ids))
    if models is not None:
        query = query.where(usage_hours.c.model.in_(models))
    query = query.group_by(*groups).order_by(*groups).limit(limit)
    return [_total(row) for row in conn.execute(query).mappings()]


def _total(row: sa.RowMapping) -> Total:
    """PostgreSQL sums whole numbers as decimals; without groups there is a row of nothing where nothing was used."""
    values: dict[str, Any] = {name: int(value or 0) if name in SUMS else value for name, value in row.items()}
    return Total(**values)
