"""Answers that are kept to be fetched, and gone on from, for 30 days (xai-api.md 8.9). A record is its dialect's own."""

from __future__ import annotations

import zlib
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts.tables import answers

LIFE_US: Final = 30 * 24 * 3600 * 1_000_000
SWEEP_MAX: Final = 1000
"""Rows of one sweep: a long transaction would keep everyone else waiting."""


def keep(
    conn: Connection, *, request_id: str, team_id: str, dialect: str, record: bytes, now_us: int, life_us: int = LIFE_US
) -> None:
    """Keeps a record; once more changes nothing."""
    if conn.scalar(sa.select(answers.c.request_id).where(answers.c.request_id == request_id)) is not None:
        return
    conn.execute(
        answers.insert().values(
            request_id=request_id,
            team_id=team_id,
            dialect=dialect,
            record=zlib.compress(record, 1),
            created_us=now_us,
            expires_us=now_us + life_us,
        )
    )


def find(conn: Connection, request_id: str, team_id: str, dialect: str, now_us: int) -> bytes | None:
    """A team's record; None where it has none of this id, or none that is not expired."""
    found: bytes | None = conn.scalar(sa.select(answers.c.record).where(*_of(request_id, team_id, dialect, now_us)))
    return None if found is None else zlib.decompress(bytes(found))


def delete(conn: Connection, request_id: str, team_id: str, dialect: str, now_us: int) -> bool:
    """False where there was nothing to delete."""
    return bool(conn.execute(answers.delete().where(*_of(request_id, team_id, dialect, now_us))).rowcount)


def sweep(conn: Connection, now_us: int) -> int:
    """Deletes expired records, and returns how many."""
    oldest = sa.select(answers.c.request_id).where(answers.c.expires_us <= now_us).limit(SWEEP_MAX)
    ids = list(conn.scalars(oldest))
    return conn.execute(answers.delete().where(answers.c.request_id.in_(ids))).rowcount if ids else 0


def _of(request_id: str, team_id: str, dialect: str, now_us: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        answers.c.request_id == request_id,
        answers.c.team_id == team_id,
        answers.c.dialect == dialect,
        answers.c.expires_us > now_us,
    )
