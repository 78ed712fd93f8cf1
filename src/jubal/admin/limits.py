"""Rate limits of teams: given by whoever runs the server, and narrowed by a team itself. Each act with its row in the audit log."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy.engine import Connection

from jubal.accounts import team_limits, teams
from jubal.accounts.team_limits import ALL, NOTHING_GIVEN, Rates, TeamLimits
from jubal.accounts.teams import Team
from jubal.admin.actor import Actor, note


def put(conn: Connection, actor: Actor, team_id: str, model: str, rates: Rates, *, now_us: int) -> Rates:
    """Gives a team limits for a model, or for all (`team_limits.ALL`); what `rates` does not say stays.

    Raises `NotAllowed`, `NotFound`, `BadRequest`.
    """
    actor.demand_operator("set limits")
    before = _given(conn, team_id).get(model)
    kept = team_limits.put(conn, team_id=team_id, model=model, rates=rates, now_us=now_us)
    was = None if before is None else asdict(before)
    note(conn, actor, "limits.set", "limit", model, team_id=team_id, before=was, after=asdict(kept), now_us=now_us)
    return kept


def clear(conn: Connection, actor: Actor, team_id: str, model: str | None, *, now_us: int) -> int:
    """Takes back what a team was given for a model, or everything (None). Returns how many limits that were.

    Raises `NotAllowed`, `NotFound`.
    """
    actor.demand_operator("set limits")
    for name, rates in _given(conn, team_id).items():
        if model in (None, name):
            note(conn, actor, "limits.clear", "limit", name, team_id=team_id, before=asdict(rates), now_us=now_us)
    return team_limits.clear(conn, team_id=team_id, model=model)


def get(conn: Connection, actor: Actor, team_id: str) -> tuple[Team, TeamLimits]:
    """A team, what it was given and what it set itself. Raises `NotAllowed`, `NotFound`."""
    actor.demand("GetTeamLimits")
    return _of_team(conn, actor, team_id)


def on_models(conn: Connection, actor: Actor, team_id: str) -> tuple[Team, TeamLimits]:
    """As `get`, beside the list of models. Raises `NotAllowed`, `NotFound`."""
    actor.demand("ListPossibleModels")
    return _of_team(conn, actor, team_id)


def put_own(conn: Connection, actor: Actor, team_id: str, model: str, rates: Rates, *, now_us: int) -> Rates:
    """A team limits itself, for a model or for all; what `rates` does not say stays, and 0 takes one back.

    It is never let do more than it was given. Raises `NotAllowed`, `NotFound`, `BadRequest`.
    """
    actor.demand("SetTeamLimits")
    actor.demand_team(team_id)
    teams.locked(conn, team_id)
    found = team_limits.of_team(conn, team_id)
    before = None if found is None else found.own.get(model)
    kept = team_limits.put_own(conn, team_id=team_id, model=model, rates=rates, now_us=now_us)
    was = None if before is None else asdict(before)
    note(conn, actor, "limits.set_own", "limit", model, team_id=team_id, before=was, after=asdict(kept), now_us=now_us)
    return kept


def _of_team(conn: Connection, actor: Actor, team_id: str) -> tuple[Team, TeamLimits]:
    actor.demand_team(team_id)
    return teams.get(conn, team_id), team_limits.of_team(conn, team_id) or NOTHING_GIVEN


def _given(conn: Connection, team_id: str) -> dict[str, Rates]:
    """What a team was given, by model, for an act that changes it. Raises `NotFound`."""
    teams.locked(conn, team_id)
    found = team_limits.of_team(conn, team_id)
    if found is None:
        return {}
    return {**({} if found.all == Rates() else {ALL: found.all}), **found.models}
