"""Answers that are kept to be fetched, and gone on from, for 30 days (xai-api.md 8.9).

An answer and its usage row are one transaction: what is charged is kept, and what can't be kept is not charged.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import usage
from jubal.accounts.tables import answers
from jubal.accounts.usage import UsageRow

LIFE_US: Final = 30 * 24 * 3600 * 1_000_000
SWEEP_MAX: Final = 1000
"""Rows of one sweep: a long transaction would keep everyone else waiting."""


INLINE_BYTES_MAX: Final = 16 << 10
"""Up to here compressing costs less than asking a thread to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be kept. dialect: whose it is. packed: its record, by `packed`; somebody's conversation, so never logged."""

    request_id: str
    team_id: str
    dialect: str
    packed: bytes = field(repr=False)
    created_us: int
    life_us: int = LIFE_US


@dataclass(frozen=True, slots=True)
class Settled:
    """A request that was charged, and its answer."""

    usage: UsageRow
    answer: Answer


Entry: TypeAlias = UsageRow | Settled
"""What one request leaves in the store."""


async def packed(record: bytes) -> bytes:
    """As it is written: text compresses about 4 to 1."""
    if len(record) <= INLINE_BYTES_MAX:
        return zlib.compress(record, 1)
    return await asyncio.to_thread(zlib.compress, record, 1)


def settle(conn: Connection, entries: list[Entry]) -> None:
    """Writes usage rows, charges them, and keeps the answers that belong to them. What is there already stays as it is."""
    usage.record(conn, [row_of(entry) for entry in entries])
    for entry in entries:
        if isinstance(entry, Settled):
            keep(conn, entry.answer)


def row_of(entry: Entry) -> UsageRow:
    return entry.usage if isinstance(entry, Settled) else entry


def keep(conn: Connection, answer: Answer) -> None:
    """Keeps an answer; once more changes nothing."""
    if conn.scalar(sa.select(answers.c.request_id).where(answers.c.request_id == answer.request_id)) is not None:
        return
    conn.execute(
        answers.insert().values(
            request_id=answer.request_id,
            team_id=answer.team_id,
            dialect=answer.dialect,
            record=answer.packed,
            created_us=answer.created_us,
            expires_us=answer.created_us + answer.life_us,
        )
    )


def find(conn: Connection, request_id: str, team_id: str, dialect: str | None, now_us: int) -> bytes | None:
    """A team's record; None where it has none of this id, or none that is not expired. dialect: None: of any."""
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


def _of(request_id: str, team_id: str, dialect: str | None, now_us: int) -> tuple[sa.ColumnElement[bool], ...]:
    whose = () if dialect is None else (answers.c.dialect == dialect,)
    return answers.c.request_id == request_id, answers.c.team_id == team_id, *whose, answers.c.expires_us > now_us
