"""Rate limits that a team was given in place of its tier's, and of the configuration's for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import teams
from jubal.accounts.tables import limits
from jubal.accounts.upserts import upsert
from jubal.core.errors import BadRequest

ALL: Final = "*"
"""In the place of a model: all of the team's requests together."""


@dataclass(frozen=True, slots=True)
class Rates:
    """rps: requests per second. rpm, tpm: requests and tokens per minute. None: not said here; 0: no limit, whatever others say."""

    rps: int | None = None
    rpm: int | None = None
    tpm: int | None = None

    def over(self, others: Rates) -> Rates:
        """These, and the others' where these say nothing."""
        return Rates(
            others.rps if self.rps is None else self.rps,
            others.rpm if self.rpm is None else self.rpm,
            others.tpm if self.tpm is None else self.tpm,
        )


NO_RATES: Final = Rates()


@dataclass(frozen=True, slots=True)
class TeamLimits:
    """What a team was given: for all of its requests, and for those to single models, by public name."""

    all: Rates = NO_RATES
    models: Mapping[str, Rates] = field(default_factory=lambda: MappingProxyType({}))


def put(conn: Connection, *, team_id: str, model: str, rates: Rates, now_us: int) -> Rates:
    """Gives a team limits for a model, or for all (`ALL`). What `rates` does not say stays as it was.

    In force on every gateway within 2 s. Raises `BadRequest` naming a number that is none, `NotFound`.
    """
    for param in ("rps", "rpm", "tpm"):
        value = getattr(rates, param)
        if value is not None and not 0 <= value < 2**53:
            raise BadRequest(f"{param} must be 0 (no limit) or more, and below 2**53; got {value}.", param=param)
    which = sa.and_(limits.c.team_id == team_id, limits.c.model == model)
    teams.locked(conn, team_id)
    row = conn.execute(sa.select(limits.c.rps, limits.c.rpm, limits.c.tpm).where(which)).one_or_none()
    kept = rates if row is None else rates.over(Rates(*row))
    upsert(conn, limits, {"team_id": team_id, "model": model}, {**asdict(kept), "modified_us": now_us})
    return kept


def clear(conn: Connection, *, team_id: str, model: str | None = None) -> int:
    """Takes back what a team was given for a model, or for all (`ALL`), or everything (None). Returns how many limits that were."""
    statement = limits.delete().where(limits.c.team_id == team_id)
    if model is not None:
        statement = statement.where(limits.c.model == model)
    return conn.execute(statement).rowcount


def of_team(conn: Connection, team_id: str) -> TeamLimits | None:
    """What a team was given; None where that is nothing, as with most."""
    query = sa.select(limits.c.model, limits.c.rps, limits.c.rpm, limits.c.tpm).where(limits.c.team_id == team_id)
    found = {row.model: Rates(row.rps, row.rpm, row.tpm) for row in conn.execute(query.order_by(limits.c.model))}
    if not found:
        return None
    return TeamLimits(found.pop(ALL, NO_RATES), MappingProxyType(found))
