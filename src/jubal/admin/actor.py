"""Who manages: the operator at the command line, who may do everything, or a management key, which manages its own team."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import audit
from jubal.accounts.acl import Acl
from jubal.accounts.audit import Act
from jubal.accounts.keys import Caller
from jubal.accounts.tables import meta
from jubal.core.errors import NotAllowed


@dataclass(frozen=True, slots=True)
class Actor:
    """kind, id, name: as in `audit.Act`. team_id: whose resources it manages, None for everybody's. acl: None for everything.

    request_id, address: of the HTTP request, where it is one.
    """

    kind: Literal["operator", "key"]
    id: str
    name: str
    team_id: str | None = None
    acl: Acl | None = None
    request_id: str | None = None
    address: str | None = None

    def demand(self, call: str) -> None:
        """Raises `NotAllowed` where a management key's ACL does not hold this call (`acl.CALLS`)."""
        if self.acl is not None:
            self.acl.demand_call(call)

    def demand_team(self, team_id: str) -> None:
        """Raises `NotAllowed` for a team that is not the actor's, whether there is one of this id or not."""
        if self.team_id is not None and team_id != self.team_id:
            raise NotAllowed(
                f"This management key manages the team `{self.team_id}` only.", param="team_id", code="other_team"
            )

    def demand_operator(self, what: str) -> None:
        """Raises `NotAllowed` for whoever is not the operator."""
        if self.kind != "operator":
            raise NotAllowed(f"Only the operator of this server can {what}.", code="operator_only")


def operator(conn: Connection, name: str = "") -> Actor:
    """Whoever runs the command line. name: of their account on this machine."""
    owner: str = conn.execute(sa.select(meta.c.value).where(meta.c.name == "owner")).scalar_one()
    return Actor("operator", owner, name)


def of_key(caller: Caller, *, request_id: str, address: str | None) -> Actor:
    """A management key that was identified as one."""
    assert caller.management
    return Actor("key", caller.key_id, caller.name, caller.team_id, caller.acl, request_id, address)


def note(
    conn: Connection,
    actor: Actor,
    action: str,
    resource: str,
    resource_id: str,
    *,
    team_id: str | None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    now_us: int,
) -> None:
    """Writes an act down, in the transaction that does it."""
    audit.append(
        conn,
        Act(
            audit.new_id(),
            now_us,
            actor.kind,
            actor.id,
            actor.name,
            team_id,
            action,
            resource,
            resource_id,
            before,
            after,
            actor.request_id,
            actor.address,
        ),
    )
