"""The audit log: who did what to which key or team, when, from where. Rows are only ever added (the database sees to it)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts.tables import audit
from jubal.core.errors import BadRequest

SECRETS: Final = frozenset({"key", "secret", "digest", "api_key", "apiKey", "password", "authorization"})
"""Names that no `before` or `after` may have: whoever passes one has made a mistake that must not reach the store."""


@dataclass(frozen=True, slots=True)
class Act:
    """One management act.

    actor_kind: "operator" for the command line, whose actor_id is the user id of `tables.meta`'s owner; "key" for a management
    key, whose id it is. team_id: whose resource it is; None where it is nobody's. action: such as `keys.rotate`. before,
    after: what the act changed, None where there was or is nothing. request_id, address: of the HTTP request, where it was one.
    """

    id: str
    created_us: int
    actor_kind: str
    actor_id: str
    actor_name: str
    team_id: str | None
    action: str
    resource: str
    resource_id: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    request_id: str | None
    address: str | None


def append(conn: Connection, act: Act) -> None:
    """Adds an act, in the transaction that does it: neither is there without the other."""
    for facts in (act.before, act.after):
        assert facts is None or SECRETS.isdisjoint(facts), "a secret must not be written down"
    values = {name: getattr(act, name) for name in act.__slots__}
    for name in ("before", "after"):
        values[name] = None if values[name] is None else json.dumps(dict(values[name]))
    conn.execute(audit.insert().values(**values))


def new_id() -> str:
    return str(uuid.uuid4())


def listing(
    conn: Connection,
    *,
    team_id: str | None = None,
    begin_us: int = 0,
    end_us: int = 2**63 - 1,
    before: str | None = None,
    limit: int = 100,
) -> list[Act]:
    """The newest `limit` acts of begin..end (the end not included), newest first, of one team where that is given.

    before: the id of an act; only older ones. Raises `BadRequest` where there is none with this id.
    """
    query = sa.select(audit).where(audit.c.created_us >= begin_us, audit.c.created_us < end_us)
    if team_id is not None:
        query = query.where(audit.c.team_id == team_id)
    if before is not None:
        query = query.where(sa.tuple_(audit.c.created_us, audit.c.id) < _place(conn, before, team_id))
    query = query.order_by(audit.c.created_us.desc(), audit.c.id.desc()).limit(limit)
    return [_act(row) for row in conn.execute(query).mappings()]


def _place(conn: Connection, ident: str, team_id: str | None) -> tuple[int, str]:
    found = conn.execute(sa.select(audit.c.created_us, audit.c.team_id).where(audit.c.id == ident)).one_or_none()
    if found is None or (team_id is not None and found.team_id != team_id):
        raise BadRequest("There is no page of this name.", param="paginationToken", code="invalid_value")
    return found.created_us, ident


def _act(row: sa.RowMapping) -> Act:
    facts = {name: None if row[name] is None else json.loads(row[name]) for name in ("before", "after")}
    return Act(**{**row, **facts})
