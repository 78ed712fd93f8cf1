"""Reading the audit log."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from jubal.accounts import audit
from jubal.accounts.audit import Act
from jubal.admin.actor import Actor


def listing(
    conn: Connection,
    actor: Actor,
    *,
    team_id: str | None = None,
    begin_us: int = 0,
    end_us: int = 2**63 - 1,
    before: str | None = None,
    limit: int = 100,
) -> list[Act]:
    """As `audit.listing`; a management key sees the acts on its own team. Raises `NotAllowed`, `BadRequest`."""
    actor.demand("ListAuditEvents")
    if team_id is not None:
        actor.demand_team(team_id)
    team_id = actor.team_id if team_id is None else team_id
    return audit.listing(conn, team_id=team_id, begin_us=begin_us, end_us=end_us, before=before, limit=limit)
