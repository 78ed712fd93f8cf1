"""What can be done to teams. All of it is for the operator, but looking at one's own."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy.engine import Connection

from jubal.accounts import teams
from jubal.accounts.teams import Team
from jubal.admin.actor import Actor, note


def create(
    conn: Connection, actor: Actor, *, name: str, prepaid: bool = False, tier: str = "standard", now_us: int
) -> Team:
    """Makes a team. Raises `NotAllowed`, `BadRequest` for a name that is unfit or taken."""
    actor.demand_operator("make teams")
    team = teams.create(conn, name=name, prepaid=prepaid, tier=tier, now_us=now_us)
    note(conn, actor, "teams.create", "team", team.id, team_id=team.id, after=asdict(team), now_us=now_us)
    return team


def listing(conn: Connection, actor: Actor, *, limit: int = 100_000) -> list[Team]:
    """All teams for the operator, its own for a management key."""
    actor.demand("ListTeams")
    return teams.listing(conn, limit=limit) if actor.team_id is None else [teams.get(conn, actor.team_id)]


def get(conn: Connection, actor: Actor, team_id: str) -> Team:
    """Raises `NotAllowed`, `NotFound`."""
    actor.demand("ListTeams")
    actor.demand_team(team_id)
    return teams.get(conn, team_id)


def change(
    conn: Connection,
    actor: Actor,
    team_id: str,
    *,
    blocked: bool | None = None,
    prepaid: bool | None = None,
    tier: str | None = None,
    now_us: int,
) -> Team:
    """Changes what is not None; in force on every gateway within 2 s. blocked: none of the team's keys may be used.

    Raises `NotAllowed`, `NotFound`.
    """
    actor.demand_operator("change teams")
    before = asdict(teams.get(conn, team_id))
    team = teams.change(conn, team_id, blocked=blocked, prepaid=prepaid, tier=tier)
    after = asdict(team)
    names = [name for name in after if before[name] != after[name]]
    action = "teams.change" if blocked is None else "teams.block" if blocked else "teams.unblock"
    note(
        conn,
        actor,
        action,
        "team",
        team.id,
        team_id=team.id,
        before={name: before[name] for name in names},
        after={name: after[name] for name in names},
        now_us=now_us,
    )
    return team
