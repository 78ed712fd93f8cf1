"""Usage: sums without scanning the rows, and the rows themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy.engine import Connection

from jubal.accounts import rollups, usage
from jubal.accounts.rollups import Group, Total
from jubal.accounts.usage import UsageRow
from jubal.admin.actor import Actor, note


def totals(
    conn: Connection,
    actor: Actor,
    by: Sequence[Group],
    begin_us: int,
    end_us: int,
    *,
    team_id: str | None = None,
    key_ids: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    limit: int = 100_000,
) -> list[Total]:
    """As `rollups.totals`; a management key sees its own team. Raises `NotAllowed`."""
    actor.demand("AnalyzeBillingItems")
    if team_id is not None:
        actor.demand_team(team_id)
    team_id = actor.team_id if team_id is None else team_id
    return rollups.totals(conn, by, begin_us, end_us, team_id=team_id, key_ids=key_ids, models=models, limit=limit)


def export(
    conn: Connection,
    actor: Actor,
    begin_us: int,
    end_us: int,
    *,
    team_id: str | None = None,
    key_ids: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> Iterator[UsageRow]:
    """All rows of begin..end, oldest first, while the connection is open. Raises `NotAllowed`."""
    actor.demand("AnalyzeBillingItems")
    if team_id is not None:
        actor.demand_team(team_id)
    team_id = actor.team_id if team_id is None else team_id
    return usage.export(conn, begin_us, end_us, team_id, key_ids=key_ids, models=models)


def recount(conn: Connection, actor: Actor, begin_us: int, end_us: int, *, now_us: int) -> int:
    """Counts the sums of begin..end anew from the rows, and returns how many sums that are. For the operator.

    Raises `NotAllowed`.
    """
    actor.demand_operator("count usage anew")
    cells = rollups.recount_all(conn, begin_us, end_us)
    after = {"begin_us": begin_us, "end_us": end_us, "sums": cells}
    note(conn, actor, "usage.recount", "usage", "", team_id=None, after=after, now_us=now_us)
    return cells
