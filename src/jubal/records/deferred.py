"""Deferred answers: a request is kept, run when there is room, and its answer is kept until it is fetched, once.

A job is `pending`, then `running` under a lease, then `done` or `failed`. Whoever holds the lease renews it; where it runs out
(its holder was killed) the job may be claimed again. Every claim has a name of its own, so a holder that comes back too late
changes nothing. An answer and its usage row are one transaction: a job may run twice, and is charged once, for the answer
that is kept.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts.tables import deferred
from jubal.core.errors import AtCapacity
from jubal.records import answers
from jubal.records.answers import Entry

LIFE_US: Final = 24 * 3600 * 1_000_000
"""How long after its request an answer can be fetched (xai-api.md 7)."""
WAITING_MAX: Final = 10_000
"""Jobs of one team that have no answer yet. More are refused: bodies can be large, and they are all kept."""

_OPEN: Final = deferred.c.state.in_(("pending", "running"))


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job. dialect: who reads its body. lease: the name of this claim.

    attempts: claims so far, with this one, that were not given back.
    """

    request_id: str
    key_id: str
    dialect: str
    body: bytes
    lease: str
    lease_until_us: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended. state: "done" or "failed". status, body: the answer or the error, as its dialect renders it.

    entry: its usage row, with the answer that is kept beside; None where no engine was asked.
    """

    state: str
    status: int
    body: bytes
    entry: Entry | None = None


def submit(
    conn: Connection, *, request_id: str, team_id: str, key_id: str, dialect: str, body: bytes, now_us: int
) -> None:
    """Adds a job. Raises `AtCapacity` where too many of the team's wait."""
    waiting = sa.select(deferred.c.request_id).where(deferred.c.team_id == team_id, _OPEN)
    if conn.execute(waiting.offset(WAITING_MAX - 1).limit(1)).first() is not None:
        raise AtCapacity(
            f"This team has {WAITING_MAX:,} deferred requests without an answer. Retry when some are done.",
            code="too_many_deferred",
        )
    conn.execute(
        deferred.insert().values(
            request_id=request_id,
            team_id=team_id,
            key_id=key_id,
            dialect=dialect,
            body=body,
            state="pending",
            created_us=now_us,
            expires_us=now_us + LIFE_US,
            lease_until_us=0,
            attempts=0,
        )
    )


def due(conn: Connection, dialects: Collection[str], now_us: int) -> bool:
    """Whether there is a job of these dialects to claim. Writes nothing, so it can be asked often."""
    return conn.execute(_claimable(sa.select(deferred.c.request_id), dialects, now_us).limit(1)).first() is not None


def claim(
    conn: Connection, *, dialects: Collection[str], jobs_max: int, lease: str, lease_us: int, now_us: int
) -> list[Job]:
    """Takes up to `jobs_max` jobs of these dialects that nobody works on, the oldest first.

    lease: a name that no other claim has.
    """
    columns = sa.select(
        deferred.c.request_id, deferred.c.key_id, deferred.c.dialect, deferred.c.body, deferred.c.attempts
    )
    oldest = (
        _claimable(columns, dialects, now_us).order_by(deferred.c.created_us, deferred.c.request_id).limit(jobs_max)
    )
    # On SQLite there is no FOR UPDATE and no need of it: one writer at a time, and this transaction is one.
    found = conn.execute(oldest.with_for_update(skip_locked=True)).all()
    until = now_us + lease_us
    if found:
        conn.execute(
            deferred.update()
            .where(deferred.c.request_id.in_([row.request_id for row in found]))
            .values(state="running", lease=lease, lease_until_us=until, attempts=deferred.c.attempts + 1)
        )
    return [
        Job(row.request_id, row.key_id, row.dialect, bytes(row.body), lease, until, row.attempts + 1) for row in found
    ]


def renew(conn: Connection, job: Job, *, lease_us: int, now_us: int) -> int | None:
    """Holds a claimed job for longer, and returns until when; None where the claim is lost."""
    until = now_us + lease_us
    renewed = conn.execute(deferred.update().where(*_held(job)).values(lease_until_us=until)).rowcount
    return until if renewed else None


def give_back(conn: Connection, job: Job, *, not_before_us: int = 0) -> None:
    """Ends a claim as if it had never been. not_before_us: when the job may be claimed again."""
    conn.execute(
        deferred.update()
        .where(*_held(job))
        .values(state="pending", lease=None, lease_until_us=not_before_us, attempts=deferred.c.attempts - 1)
    )


def finish(conn: Connection, job: Job, ended: Ended) -> bool:
    """Keeps how a job ended, with its usage row. False where the claim is lost: then nothing is written."""
    kept = conn.execute(
        deferred.update()
        .where(*_held(job))
        .values(state=ended.state, status=ended.status, result=ended.body, body=b"", lease=None)
    ).rowcount
    if kept and ended.entry is not None:
        answers.settle(conn, [ended.entry])
    return bool(kept)


def state(conn: Connection, request_id: str, team_id: str, dialect: str, now_us: int) -> str | None:
    """The state of a team's job; None where it has no such job of this dialect, or none that is not expired."""
    found: str | None = conn.scalar(sa.select(deferred.c.state).where(*_of(request_id, team_id, dialect, now_us)))
    return found


def take(conn: Connection, request_id: str, team_id: str, dialect: str, now_us: int) -> Ended | None:
    """Hands out how a job ended and forgets the job. None where there is nothing (any more) to hand out."""
    ended = (
        sa.select(deferred.c.state, deferred.c.status, deferred.c.result)
        .where(*_of(request_id, team_id, dialect, now_us), deferred.c.state.in_(("done", "failed")))
        .with_for_update()
    )
    row = conn.execute(ended).one_or_none()
    if row is None:
        return None
    conn.execute(deferred.delete().where(deferred.c.request_id == request_id))
    return Ended(row.state, row.status, bytes(row.result))


def sweep(conn: Connection, now_us: int) -> int:
    """Deletes expired jobs, and returns how many; one that runs is left until it has ended."""
    runs = sa.and_(deferred.c.state == "running", deferred.c.lease_until_us > now_us)
    return conn.execute(deferred.delete().where(deferred.c.expires_us <= now_us, ~runs)).rowcount


def _claimable(
    query: sa.Select[tuple[object, ...]], dialects: Collection[str], now_us: int
) -> sa.Select[tuple[object, ...]]:
    return query.where(
        deferred.c.dialect.in_(dialects), _OPEN, deferred.c.lease_until_us <= now_us, deferred.c.expires_us > now_us
    )


def _held(job: Job) -> tuple[sa.ColumnElement[bool], ...]:
    return deferred.c.request_id == job.request_id, deferred.c.state == "running", deferred.c.lease == job.lease


def _of(request_id: str, team_id: str, dialect: str, now_us: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        deferred.c.request_id == request_id,
        deferred.c.team_id == team_id,
        deferred.c.dialect == dialect,
        deferred.c.expires_us > now_us,
    )
