"""Teams: who pays. Every key belongs to one."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from jubal.accounts.tables import meta, teams
from jubal.core.errors import BadRequest, NotFound

NAME_CHARS_MAX: Final = 200
STANDARD: Final = "standard"
"""The tier of a team that was given none."""


@dataclass(frozen=True, slots=True)
class Team:
    """prepaid: its credit must cover what it asks for. blocked: none of its keys may be used. tier: a name in [tiers].

    spending_limit_ticks: what it lets itself owe at most; None: what its tier says.
    """

    id: str
    name: str
    created_us: int
    blocked: bool
    prepaid: bool
    tier: str
    spending_limit_ticks: int | None = None


def create(conn: Connection, *, name: str, prepaid: bool = False, tier: str = STANDARD, now_us: int) -> Team:
    """Adds a team. Raises `BadRequest` for a name that is unfit or taken."""
    check_name(name, "team")
    team = Team(str(uuid.uuid4()), name, now_us, blocked=False, prepaid=prepaid, tier=tier)
    try:
        conn.execute(teams.insert(), asdict(team))
    except exc.IntegrityError as error:
        raise BadRequest(
            f"There is a team with the name `{name}` already.", param="name", code="team_exists"
        ) from error
    return team


def listing(conn: Connection, *, limit: int = 1000) -> list[Team]:
    """The oldest `limit` teams, oldest first."""
    rows = conn.execute(sa.select(teams).order_by(teams.c.created_us, teams.c.id).limit(limit))
    return [Team(**row) for row in rows.mappings()]


def by_tier(conn: Connection) -> dict[str, int]:
    """How many teams each tier has, by its name."""
    counted = sa.select(teams.c.tier, sa.func.count()).group_by(teams.c.tier).order_by(teams.c.tier)
    return {tier: int(count) for tier, count in conn.execute(counted)}


def get(conn: Connection, team_id: str) -> Team:
    """The team with this id. Raises `NotFound`."""
    row = conn.execute(sa.select(teams).where(teams.c.id == team_id)).mappings().one_or_none()
    if row is None:
        raise _no_team(team_id)
    return Team(**row)


def _no_team(team_id: str) -> NotFound:
    return NotFound(f"There is no team with the id `{team_id}`.", param="team_id", code="team_not_found")


def locked(conn: Connection, team_id: str) -> Team:
    """As `get`, and until the end of the transaction no other one gets past here with this team: who reads what it was given and
    then changes it does so alone. Requests of the team and new keys don't wait for that."""
    query = sa.select(teams).where(teams.c.id == team_id).with_for_update(key_share=True)
    row = conn.execute(query).mappings().one_or_none()
    if row is None:
        raise _no_team(team_id)
    return Team(**row)


def by_name_or_id(conn: Connection, text: str) -> Team:
    """The team with this id, else the one with this name. Raises `NotFound`."""
    matching = sa.select(teams).where(sa.or_(teams.c.id == text, teams.c.name == text))
    found = {row["id"]: Team(**row) for row in conn.execute(matching).mappings()}
    if not found:
        raise NotFound(f"There is no team with the name or id `{text}`.", param="team", code="team_not_found")
    return found.get(text) or next(iter(found.values()))


def change(
    conn: Connection,
    team_id: str,
    *,
    blocked: bool | None = None,
    prepaid: bool | None = None,
    tier: str | None = None,
) -> Team:
    """Changes what is not None; in force on every gateway within 2 s. Raises `NotFound`."""
    wanted = {"blocked": blocked, "prepaid": prepaid, "tier": tier}
    values = {name: value for name, value in wanted.items() if value is not None}
    if values:
        conn.execute(teams.update().where(teams.c.id == team_id).values(**values))
    return get(conn, team_id)


def limit_spending(conn: Connection, team_id: str, ticks: int | None) -> Team:
    """Sets what a team lets itself owe; in force on every gateway within 2 s. None: what its tier says. Raises `NotFound`."""
    conn.execute(teams.update().where(teams.c.id == team_id).values(spending_limit_ticks=ticks))
    return get(conn, team_id)


def default(conn: Connection) -> Team:
    """The team that keys belong to unless told otherwise."""
    row = conn.execute(sa.select(teams).join(meta, meta.c.value == teams.c.id).where(meta.c.name == "default_team"))
    return Team(**row.mappings().one())


def check_name(name: str, of: str) -> None:
    """Raises `BadRequest` unless `name` has 1 to 200 characters, all printable."""
    if not 1 <= len(name) <= NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise BadRequest(
            f"The name of a {of} has 1 to {NAME_CHARS_MAX} printable characters, and no space at its ends.",
            param="name",
            code="invalid_name",
        )
