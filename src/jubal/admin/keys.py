"""What can be done to API keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy.engine import Connection

from jubal.accounts import keys
from jubal.accounts.keys import Key, Place
from jubal.admin.actor import Actor, note
from jubal.core.errors import NotFound

PROPAGATED_US: Final = 2_000_000
"""After so long every gateway on the store knows of a change (accounts/keys.KeyRing)."""
FACTS: Final = ("name", "acls", "rps", "rpm", "tpm", "management", "disabled", "blocked", "expires_us", "redacted")


def create(
    conn: Connection,
    actor: Actor,
    *,
    team_id: str,
    name: str,
    acls: tuple[str, ...] | None = None,
    rpm: int | None = None,
    tpm: int | None = None,
    rps: int | None = None,
    management: bool = False,
    expires_us: int | None = None,
    now_us: int,
) -> tuple[Key, str]:
    """Makes a key, and returns it with its secret. acls: None for all that its kind may do.

    Raises `NotAllowed`, `NotFound` for the team, `BadRequest` naming the parameter at fault.
    """
    actor.demand("CreateApiKey")
    actor.demand_team(team_id)
    if management:
        actor.demand_operator("make management keys")
    key, secret = keys.create(
        conn,
        team_id=team_id,
        name=name,
        acls=acls,
        rpm=rpm,
        tpm=tpm,
        rps=rps,
        management=management,
        expires_us=expires_us,
        now_us=now_us,
    )
    note(conn, actor, "keys.create", "key", key.id, team_id=key.team_id, after=facts(key), now_us=now_us)
    return key, secret


def listing(
    conn: Connection,
    actor: Actor,
    *,
    team_id: str | None = None,
    limit: int = 1000,
    after: Place | None = None,
    only: Callable[[Key], bool] = lambda key: True,
) -> list[Key]:
    """Keys, oldest first, of one team where that is given. after: only those that come after there.

    The operator sees management keys too. Raises `NotAllowed`.
    """
    actor.demand("ListApiKeys")
    if team_id is not None:
        actor.demand_team(team_id)
    team_id = actor.team_id if team_id is None else team_id
    kinds = {} if actor.kind == "operator" else {"management": False}
    found: list[Key] = []
    while len(found) < limit:
        page = keys.listing(conn, team_id, limit=limit, after=after, **kinds)
        found += filter(only, page)
        if len(page) < limit:
            break
        after = Place.of(page[-1])
    return found[:limit]


def get(conn: Connection, actor: Actor, key_id: str) -> Key:
    """Raises `NotFound`, also for a key that the actor does not manage."""
    actor.demand("ListApiKeys")
    return _managed(conn, actor, key_id)


def is_propagated(conn: Connection, actor: Actor, key_id: str, *, now_us: int) -> bool:
    """Whether every gateway knows of the last change to a key. Raises as `get`."""
    actor.demand("CheckApiKeyPropagation")
    return _managed(conn, actor, key_id).modified_us + PROPAGATED_US <= now_us


def update(conn: Connection, actor: Actor, key_id: str, changes: Mapping[str, Any], *, now_us: int) -> Key:
    """Changes what `keys.CHANGEABLE` names. Raises as `get`, and `BadRequest` naming the parameter at fault."""
    actor.demand("UpdateApiKey")
    before = _managed(conn, actor, key_id)
    return _changed(conn, actor, "keys.update", before, keys.update(conn, key_id, changes, now_us=now_us), now_us)


def disable(conn: Connection, actor: Actor, key_id: str, *, now_us: int) -> Key:
    """Stops a key until it is enabled again. Raises as `get`."""
    actor.demand("UpdateApiKey")
    before = _managed(conn, actor, key_id)
    return _changed(conn, actor, "keys.disable", before, keys.disable(conn, key_id, now_us=now_us), now_us)


def enable(conn: Connection, actor: Actor, key_id: str, *, now_us: int) -> Key:
    """Lets a disabled key work again. Raises as `get`."""
    actor.demand("UpdateApiKey")
    before = _managed(conn, actor, key_id)
    return _changed(conn, actor, "keys.enable", before, keys.enable(conn, key_id, now_us=now_us), now_us)


def block(conn: Connection, actor: Actor, key_id: str, *, now_us: int) -> Key:
    """Stops a key; its team can't undo that. For the operator. Raises as `get`."""
    actor.demand_operator("block keys")
    before = _managed(conn, actor, key_id)
    return _changed(conn, actor, "keys.block", before, keys.block(conn, key_id, now_us=now_us), now_us)


def unblock(conn: Connection, actor: Actor, key_id: str, *, now_us: int) -> Key:
    """Lets a blocked key work again. For the operator. Raises as `get`."""
    actor.demand_operator("unblock keys")
    before = _managed(conn, actor, key_id)
    return _changed(conn, actor, "keys.unblock", before, keys.unblock(conn, key_id, now_us=now_us), now_us)


def rotate(
    conn: Connection, actor: Actor, key_id: str, *, overlap_us: int = 0, expires_us: int | None = None, now_us: int
) -> tuple[Key, str]:
    """Gives a key a new secret. The old one works for `overlap_us` more. expires_us: when the key expires now; None: as before.

    Raises as `get`, and `BadRequest` naming the parameter at fault.
    """
    actor.demand("RotateApiKey")
    before = _managed(conn, actor, key_id)
    secret = keys.rotate(conn, key_id, overlap_us=overlap_us, now_us=now_us)
    if expires_us is not None:
        keys.update(conn, key_id, {"expires_us": expires_us}, now_us=now_us)
    key = keys.get(conn, key_id)
    old, new = _difference(before, key)
    new["overlap_us"] = overlap_us
    note(conn, actor, "keys.rotate", "key", key.id, team_id=key.team_id, before=old, after=new, now_us=now_us)
    return key, secret


def delete(conn: Connection, actor: Actor, key_id: str, *, now_us: int) -> Key:
    """Removes a key for good, and returns what it was; its usage stays. Raises as `get`."""
    actor.demand("DeleteApiKey")
    key = _managed(conn, actor, key_id)
    keys.delete(conn, key_id)
    note(conn, actor, "keys.delete", "key", key.id, team_id=key.team_id, before=facts(key), now_us=now_us)
    return key


def facts(key: Key) -> dict[str, Any]:
    """What the audit log says of a key."""
    return {name: getattr(key, name) for name in FACTS}


def _managed(conn: Connection, actor: Actor, key_id: str) -> Key:
    """A team's management key manages its other keys: not those of other teams, and not those of its own kind."""
    key = keys.get(conn, key_id)
    if actor.kind != "operator" and (key.team_id != actor.team_id or key.management):
        raise NotFound(f"There is no API key with the id `{key_id}`.", param="key_id", code="key_not_found")
    return key


def _changed(conn: Connection, actor: Actor, action: str, before: Key, after: Key, now_us: int) -> Key:
    old, new = _difference(before, after)
    note(conn, actor, action, "key", after.id, team_id=after.team_id, before=old, after=new, now_us=now_us)
    return after


def _difference(before: Key, after: Key) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of the facts changed: as it was, and as it is."""
    names = [name for name in FACTS if getattr(before, name) != getattr(after, name)]
    return {name: getattr(before, name) for name in names}, {name: getattr(after, name) for name in names}
