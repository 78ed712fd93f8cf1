"""Rate limits that a team was given in place of its tier's, and of the configuration's for a model; and those that it set itself,
with a management key, which only narrow: whoever runs the server decides how far a team may go.
"""

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

    def within(self, others: Rates) -> Rates:
        """The lower one of each. None where neither limits: here 0 and None are the same."""
        return Rates(_lower(self.rps, others.rps), _lower(self.rpm, others.rpm), _lower(self.tpm, others.tpm))


def _lower(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit), default=None)


NO_RATES: Final = Rates()


@dataclass(frozen=True, slots=True)
class TeamLimits:
    """What a team was given: for all of its requests, and for those to single models, by public name.

    own: what it set itself, by public name, and under `ALL`.
    """

    all: Rates = NO_RATES
    models: Mapping[str, Rates] = field(default_factory=lambda: MappingProxyType({}))
    own: Mapping[str, Rates] = field(default_factory=lambda: MappingProxyType({}))


NOTHING_GIVEN: Final = TeamLimits()


def put(conn: Connection, *, team_id: str, model: str, rates: Rates, now_us: int) -> Rates:
    """Gives a team limits for a model, or for all (`ALL`). What `rates` does not say stays as it was.

    In force on every gateway within 2 s. Raises `BadRequest` naming a number that is none, `NotFound`.
    """
    _check(rates)
    given, _ = _locked(conn, team_id, model)
    kept = rates.over(given)
    upsert(conn, limits, {"team_id": team_id, "model": model}, {**asdict(kept), "modified_us": now_us})
    return kept


def put_own(conn: Connection, *, team_id: str, model: str, rates: Rates, now_us: int) -> Rates:
    """What a team sets itself. As `put`; 0 takes one back."""
    _check(rates)
    _, own = _locked(conn, team_id, model)
    kept = rates.over(own).within(NO_RATES)
    values = {f"own_{kind}": limit for kind, limit in asdict(kept).items()}
    upsert(conn, limits, {"team_id": team_id, "model": model}, {**values, "modified_us": now_us})
    _forget_empty(conn, team_id)
    return kept


def clear(conn: Connection, *, team_id: str, model: str | None = None) -> int:
    """Takes back what a team was given for a model, or for all (`ALL`), or everything (None). Returns how many limits that were.

    What it set itself stays.
    """
    which = sa.and_(limits.c.team_id == team_id, sa.or_(*(column.is_not(None) for column in _GIVEN)))
    if model is not None:
        which = sa.and_(which, limits.c.model == model)
    cleared = conn.execute(limits.update().where(which).values(dict.fromkeys(_GIVEN))).rowcount
    _forget_empty(conn, team_id)
    return cleared


def of_team(conn: Connection, team_id: str) -> TeamLimits | None:
    """What a team was given and set itself; None where that is nothing, as with most."""
    query = sa.select(limits.c.model, *_GIVEN, *_OWN).where(limits.c.team_id == team_id).order_by(limits.c.model)
    rows = conn.execute(query).all()
    if not rows:
        return None
    given = {model: rates for model, *each in rows if (rates := Rates(*each[:3])) != NO_RATES}
    own = {model: rates for model, *each in rows if (rates := Rates(*each[3:])) != NO_RATES}
    return TeamLimits(given.pop(ALL, NO_RATES), MappingProxyType(given), MappingProxyType(own))


_GIVEN: Final = (limits.c.rps, limits.c.rpm, limits.c.tpm)
_OWN: Final = (limits.c.own_rps, limits.c.own_rpm, limits.c.own_tpm)


def _locked(conn: Connection, team_id: str, model: str) -> tuple[Rates, Rates]:
    """What a team was given for a model and what it set itself; nobody else changes it before the end of the transaction."""
    teams.locked(conn, team_id)
    query = sa.select(*_GIVEN, *_OWN).where(limits.c.team_id == team_id, limits.c.model == model)
    row = conn.execute(query).one_or_none()
    return (NO_RATES, NO_RATES) if row is None else (Rates(*row[:3]), Rates(*row[3:]))


def _forget_empty(conn: Connection, team_id: str) -> None:
    empty = sa.and_(*(column.is_(None) for column in (*_GIVEN, *_OWN)))
    conn.execute(limits.delete().where(limits.c.team_id == team_id, empty))


def _check(rates: Rates) -> None:
    for param, value in asdict(rates).items():
        if value is not None and not 0 <= value < 2**53:
            raise BadRequest(f"{param} must be 0 (no limit) or more, and below 2**53; got {value}.", param=param)
