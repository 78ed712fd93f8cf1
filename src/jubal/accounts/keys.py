"""API keys: made and changed by their owner, and recognised at every request.

A secret is shown once, when it is made. The store holds its HMAC under a key that never leaves the store (`tables.meta`), so
who reads an index or a backup of `api_keys` can't tell a secret, and looking a digest up needs no constant time: nobody
outside can choose or compare digests.

A key that is rotated may keep its old secrets for a while, so that whoever uses it can change over (`old_secrets`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from jubal.accounts import acl, prices, team_limits, teams
from jubal.accounts.acl import EVERYTHING, MANAGE_EVERYTHING, Acl
from jubal.accounts.prices import TeamPrices
from jubal.accounts.store import Store
from jubal.accounts.tables import api_keys, meta, old_secrets
from jubal.accounts.tables import teams as teams_table
from jubal.accounts.team_limits import TeamLimits
from jubal.accounts.teams import STANDARD
from jubal.core.errors import BadRequest, NotAllowed, NotFound, NotIdentified

T = TypeVar("T")

PREFIX: Final = "xai-"
MANAGEMENT_PREFIX: Final = "xai-token-"
SECRET_BYTES: Final = 48
SECRET_CHARS_MAX: Final = 200
"""Nothing longer was ever issued, so nothing longer is hashed or looked up."""
OVERLAP_US_MAX: Final = 7 * 24 * 3600 * 1_000_000
"""How long an old secret may go on working (xai-api.md 21.1)."""
OLD_SECRETS_MAX: Final = 4
"""Old secrets of one key that work at a time."""
EXPIRES_US_MAX: Final = 253_370_764_800_000_000
"""The beginning of the year 9999: a calendar can tell any moment before it, in any time zone."""
ACLS_MAX: Final = 1000
LIMIT_MAX: Final = 2**53
"""Rate limits are below this: every counter and every client can tell such numbers exactly."""


@dataclass(frozen=True, slots=True)
class Key:
    """What may be known of a key: everything but its secret.

    redacted: `xai-...` and the last four characters of the secret. rps: requests per second; rpm, tpm: requests and
    tokens per minute; None: no limit. management: for the management API only. disabled: by its owner; blocked: by whoever runs
    the server. user_id: who made it. expires_us, last_used_us: None for never.
    """

    id: str
    team_id: str
    name: str
    redacted: str
    acls: tuple[str, ...]
    rpm: int | None
    tpm: int | None
    management: bool
    disabled: bool
    blocked: bool
    user_id: str
    created_us: int
    modified_us: int
    modified_by: str
    expires_us: int | None
    last_used_us: int | None
    rps: int | None = None


class Place(NamedTuple):
    """Where a key stands in a listing, also when it is deleted by now."""

    created_us: int
    id: str

    @classmethod
    def of(cls, key: Key) -> Place:
        return cls(key.created_us, key.id)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: what the pipeline needs of a key that may be used.

    tier, prepaid, spending_limit: of its team (`teams.Team`). prices: what the team pays in place of list prices, where it does.
    limits: the rate limits that the team was given, where it was.
    """

    key_id: str
    team_id: str
    acl: Acl
    rpm: int | None = None
    tpm: int | None = None
    management: bool = False
    name: str = ""
    tier: str = STANDARD
    prepaid: bool = False
    prices: TeamPrices | None = None
    limits: TeamLimits | None = None
    rps: int | None = None
    spending_limit: int | None = None


# -------------------------------------------------------------------------------------------------------- statements

_PUBLIC: Final = [column for column in api_keys.c if column.name != "digest"]


def create(
    conn: Connection,
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
    """Adds a key, and returns it with its secret, which can't be had again. acls: None for all that its kind may do.

    Raises `BadRequest` naming the parameter at fault, `NotFound` for the team.
    """
    if acls is None:
        acls = MANAGE_EVERYTHING if management else EVERYTHING
    asked = {"name": name, "acls": acls, "rps": rps, "rpm": rpm, "tpm": tpm, "expires_us": expires_us}
    _check(management, asked, now_us)
    team = teams.get(conn, team_id)
    owner = _fact(conn, "owner")
    secret = _new_secret(management)
    key = Key(
        id=str(uuid.uuid4()),
        team_id=team.id,
        name=name,
        redacted=redact(secret),
        acls=tuple(acls),
        rpm=rpm,
        tpm=tpm,
        management=management,
        disabled=False,
        blocked=False,
        user_id=owner,
        created_us=now_us,
        modified_us=now_us,
        modified_by=owner,
        expires_us=expires_us,
        last_used_us=None,
        rps=rps,
    )
    values = {column.name: getattr(key, column.name) for column in _PUBLIC}
    conn.execute(api_keys.insert().values(**values | {"acls": json.dumps(key.acls), "digest": _hashed(conn, secret)}))
    return key, secret


def listing(
    conn: Connection, team_id: str | None = None, *, limit: int = 1000, after: Place | None = None, **only: bool
) -> list[Key]:
    """The oldest `limit` keys, of one team where that is given, oldest first.

    after: only those that come after there. only: a column and the value that it must have, such as `management=False`.
    """
    query = sa.select(*_PUBLIC).order_by(api_keys.c.created_us, api_keys.c.id).limit(limit)
    query = query.where(*(api_keys.c[name] == value for name, value in only.items()))
    if team_id is not None:
        query = query.where(api_keys.c.team_id == team_id)
    if after is not None:
        query = query.where(sa.tuple_(api_keys.c.created_us, api_keys.c.id) > after)
    return [_key(row) for row in conn.execute(query).mappings()]


def get(conn: Connection, key_id: str) -> Key:
    """The key with this id. Raises `NotFound`."""
    row = conn.execute(sa.select(*_PUBLIC).where(api_keys.c.id == key_id)).mappings().one_or_none()
    if row is None:
        raise _no_key(key_id)
    return _key(row)


def labels(conn: Connection, team_id: str, key_ids: Iterable[str]) -> dict[str, str]:
    """By id: what those of these keys that a team has are called, such as `ci (xai-...9Qz1)`."""
    query = sa.select(api_keys.c.id, api_keys.c.name, api_keys.c.redacted)
    query = query.where(api_keys.c.team_id == team_id, api_keys.c.id.in_(list(key_ids)))
    return {row.id: f"{row.name} ({row.redacted})" for row in conn.execute(query)}


def _locked(conn: Connection, key_id: str) -> Key:
    """As `get`; nobody else changes it before the end of the transaction."""
    query = sa.select(*_PUBLIC).where(api_keys.c.id == key_id).with_for_update(key_share=True)
    row = conn.execute(query).mappings().one_or_none()
    if row is None:
        raise _no_key(key_id)
    return _key(row)


def disable(conn: Connection, key_id: str, *, now_us: int) -> Key:
    """Stops a key until it is enabled again. Raises `NotFound`."""
    return _change(conn, key_id, now_us, disabled=True)


def enable(conn: Connection, key_id: str, *, now_us: int) -> Key:
    """Lets a disabled key work again. Raises `NotFound`."""
    return _change(conn, key_id, now_us, disabled=False)


def block(conn: Connection, key_id: str, *, now_us: int) -> Key:
    """Stops a key; its owner can't undo that. Raises `NotFound`."""
    return _change(conn, key_id, now_us, blocked=True)


def unblock(conn: Connection, key_id: str, *, now_us: int) -> Key:
    """Lets a blocked key work again. Raises `NotFound`."""
    return _change(conn, key_id, now_us, blocked=False)


CHANGEABLE: Final = frozenset({"name", "acls", "rps", "rpm", "tpm", "expires_us", "disabled"})


def update(conn: Connection, key_id: str, changes: Mapping[str, Any], *, now_us: int) -> Key:
    """Changes columns of `CHANGEABLE`; in force on every gateway within 2 s.

    Raises `BadRequest` naming the parameter at fault, `NotFound`.
    """
    assert changes.keys() <= CHANGEABLE
    key = get(conn, key_id)
    _check(key.management, changes, now_us)
    values = dict(changes)
    if "acls" in values:
        values["acls"] = json.dumps(values["acls"])
    return _change(conn, key_id, now_us, **values)


def rotate(conn: Connection, key_id: str, *, now_us: int, overlap_us: int = 0) -> str:
    """Gives a key a new secret and returns it. The old one works for `overlap_us` more, and older ones keep what they had left;
    without an overlap all of them stop.

    Id, settings and usage stay. Raises `NotFound`, `BadRequest` for an overlap outside 0..7 days.
    """
    if not 0 <= overlap_us <= OVERLAP_US_MAX:
        raise BadRequest("An old secret can go on working for 0 to 7 days.", param="overlap", code="out_of_range")
    secret = _new_secret(_locked(conn, key_id).management)
    kept_until_us = now_us if overlap_us else 2**63 - 1
    conn.execute(old_secrets.delete().where(old_secrets.c.key_id == key_id, old_secrets.c.until_us <= kept_until_us))
    if overlap_us:
        _keep_secret(conn, key_id, now_us + overlap_us)
    _change(conn, key_id, now_us, digest=_hashed(conn, secret), redacted=redact(secret))
    return secret


def _keep_secret(conn: Connection, key_id: str, until_us: int) -> None:
    """The present secret becomes an old one. Raises `BadRequest` where there are too many of them."""
    there = conn.scalar(sa.select(sa.func.count()).select_from(old_secrets).where(old_secrets.c.key_id == key_id))
    if (there or 0) >= OLD_SECRETS_MAX:
        raise BadRequest(
            f"{OLD_SECRETS_MAX} old secrets of this key still work, and no more may. Rotate it without an overlap, or later.",
            param="overlap",
            code="too_many_secrets",
        )
    present = sa.select(api_keys.c.digest, api_keys.c.id, sa.literal(until_us)).where(api_keys.c.id == key_id)
    conn.execute(old_secrets.insert().from_select(["digest", "key_id", "until_us"], present))


def old_secrets_until(conn: Connection, key_id: str, now_us: int) -> list[int]:
    """When each old secret that still works will stop, the last one first."""
    until = sa.select(old_secrets.c.until_us).where(old_secrets.c.key_id == key_id, old_secrets.c.until_us > now_us)
    return list(conn.scalars(until.order_by(old_secrets.c.until_us.desc())))


def caller_of(conn: Connection, key_id: str, now_us: int) -> Caller:
    """Who asks with this key, for work that was asked for earlier. Raises `NotAllowed` where it must not be used (any more)."""
    found = _find(conn, api_keys.c.id == key_id, now_us)
    if found is None:
        raise NotAllowed("The API key that asked for this has been deleted.", code="key_deleted")
    if (refusal := _refusal(found.key, found.team_blocked, now_us)) is not None:
        code, message = refusal
        raise NotAllowed(message, code=code)
    return _caller(found)


def delete(conn: Connection, key_id: str) -> None:
    """Removes a key for good, with its old secrets; its usage rows stay. Raises `NotFound`."""
    if conn.execute(api_keys.delete().where(api_keys.c.id == key_id)).rowcount == 0:
        raise _no_key(key_id)


def redact(secret: str) -> str:
    """A secret as it may be shown."""
    return f"{PREFIX}...{secret[-4:]}"


def _change(conn: Connection, key_id: str, now_us: int, **values: Any) -> Key:
    """Sets columns of a key, and by whom and when it was changed."""
    changed = values | {"modified_us": now_us, "modified_by": _fact(conn, "owner")}
    conn.execute(api_keys.update().where(api_keys.c.id == key_id).values(**changed))
    return get(conn, key_id)


@dataclass(frozen=True, slots=True)
class _Found:
    """A key, and what matters here of its team. until_us: when the secret it was found by stops, where that is an old one."""

    key: Key
    team_blocked: bool
    tier: str
    prepaid: bool
    prices: TeamPrices | None
    limits: TeamLimits | None = None
    until_us: int | None = None
    spending_limit: int | None = None


def _find_digest(conn: Connection, digest: str, now_us: int) -> _Found | None:
    """The key whose secret has this digest, the present one or an old one that still works."""
    if (found := _find(conn, api_keys.c.digest == digest, now_us)) is not None:
        return found
    working = sa.and_(old_secrets.c.digest == digest, old_secrets.c.until_us > now_us)
    old = conn.execute(sa.select(old_secrets).where(working)).one_or_none()
    if old is None or (found := _find(conn, api_keys.c.id == old.key_id, now_us)) is None:
        return None
    return replace(found, until_us=old.until_us)


def _find(conn: Connection, which: sa.ColumnElement[bool], now_us: int) -> _Found | None:
    """The one key that is meant."""
    query = (
        sa.select(
            *_PUBLIC,
            teams_table.c.blocked.label("team_blocked"),
            teams_table.c.tier,
            teams_table.c.prepaid,
            teams_table.c.spending_limit_ticks,
        )
        .join(teams_table, teams_table.c.id == api_keys.c.team_id)
        .where(which)
    )
    row = conn.execute(query).mappings().one_or_none()
    if row is None:
        return None
    own_prices = prices.of_team(conn, row["team_id"], now_us)
    own_limits = team_limits.of_team(conn, row["team_id"])
    return _Found(
        _key(row),
        row["team_blocked"],
        row["tier"],
        row["prepaid"],
        own_prices,
        own_limits,
        spending_limit=row["spending_limit_ticks"],
    )


def _fact(conn: Connection, name: str) -> str:
    """One value of `tables.meta`."""
    found: str = conn.execute(sa.select(meta.c.value).where(meta.c.name == name)).scalar_one()
    return found


def _hashed(conn: Connection, secret: str) -> str:
    return hmac.digest(bytes.fromhex(_fact(conn, "hash_key")), secret.encode(), "sha256").hex()


def _new_secret(management: bool) -> str:
    return (MANAGEMENT_PREFIX if management else PREFIX) + secrets.token_urlsafe(SECRET_BYTES)


def _key(row: RowMapping) -> Key:
    values = {column.name: row[column.name] for column in _PUBLIC}
    return Key(**values | {"acls": tuple(json.loads(row["acls"]))})


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"There is no API key with the id `{key_id}`.", param="key_id", code="key_not_found")


def _check(management: bool, values: Mapping[str, Any], now_us: int) -> None:
    """Raises `BadRequest` naming the first of these columns of a key that can't be so."""
    if "name" in values:
        teams.check_name(values["name"], "key")
    if "acls" in values:
        if len(values["acls"]) > ACLS_MAX:
            raise BadRequest(f"A key has at most {ACLS_MAX} ACLs; got {len(values['acls'])}.", param="acls")
        (Acl.parse_management if management else acl.check_new)(values["acls"])
    for limit in ("rps", "rpm", "tpm"):
        _check_limit(limit, values.get(limit))
    expires_us = values.get("expires_us")
    if expires_us is not None and expires_us <= now_us:
        raise BadRequest("A key must expire in the future, or never.", param="expires", code="expires_in_the_past")
    if expires_us is not None and expires_us >= EXPIRES_US_MAX:
        raise BadRequest("A key must expire before the year 9999, or never.", param="expires", code="out_of_range")


def _check_limit(param: str, limit: int | None) -> None:
    if limit is not None and not 1 <= limit < LIMIT_MAX:
        raise BadRequest(
            f"{param} must be at least 1 and below 2**53, or absent for no limit; got {limit}.", param=param
        )


# ---------------------------------------------------------------------------------------------------------- the ring


@dataclass(slots=True)
class _Entry:
    """What the store said of a digest. refusal: code and message, where the key must not be used.

    fresh_until, stale_until: on the ring's clock; between the two it still serves, while it is read again.
    """

    caller: Caller
    refusal: tuple[str, str] | None
    fresh_until: float
    stale_until: float


class KeyRing:
    """Recognises secrets, from memory where the store was asked at most 2 * `ttl_s` ago.

    So a change to a key is in force within that time on every gateway, and a store that is away for less goes unnoticed.
    Belongs to one event loop. clock: monotonic seconds. now_us: microseconds since 1970, for keys that expire.
    entries_max: keys that are remembered, and apart from them as many strings that are none.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        ttl_s: float = 1.0,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        entries_max: int = 10_000,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ttl_s = ttl_s
        self._now_us = now_us
        self._entries_max = entries_max
        self._mac = hmac.new(store.hash_key, digestmod=hashlib.sha256)
        self._known: dict[bytes, _Entry] = {}
        self._unknown: dict[bytes, float] = {}  # until when it needn't be asked for again
        self._lookups: dict[bytes, asyncio.Task[_Entry | None]] = {}

    def identify_cached(self, secret: str) -> Caller | None:
        """The caller, if that is known without waiting. None decides nothing: ask `identify`."""
        digest = self._digest(secret)
        entry = self._known.get(digest)
        if entry is None or entry.refusal is not None or entry.caller.management:
            return None
        now = self._clock()
        if now >= entry.fresh_until:
            if now >= entry.stale_until:
                return None
            self._look_up(digest)
        return entry.caller

    async def identify(self, secret: str, *, management: bool = False) -> Caller:
        """The caller with this secret. management: whether the management API asks, whose keys are of their own kind.

        Raises `NotIdentified`, `NotAllowed` for a key that must not be used (so), `StoreUnavailable`.
        """
        if not secret.startswith(PREFIX) or len(secret) > SECRET_CHARS_MAX or not secret.isascii():
            raise unknown()
        digest = self._digest(secret)
        now = self._clock()
        entry = self._known.get(digest)
        if entry is None or now >= entry.stale_until:
            if self._unknown.get(digest, now) > now:
                raise unknown()
            entry = await asyncio.shield(self._look_up(digest))  # others may wait for the same one
            if entry is None:
                raise unknown()
        elif now >= entry.fresh_until:
            self._look_up(digest)
        if entry.refusal is not None:
            code, message = entry.refusal
            raise NotAllowed(message, code=code)
        if entry.caller.management is not management:
            raise _wrong_kind(management)
        return entry.caller

    def _digest(self, secret: str) -> bytes:
        mac = self._mac.copy()  # half the price of hmac.digest, which sets up its key each time
        mac.update(secret.encode("utf-8", "surrogatepass"))
        return mac.digest()

    def _look_up(self, digest: bytes) -> asyncio.Task[_Entry | None]:
        """Asks the store for a digest; one question at a time for each."""
        task = self._lookups.get(digest)
        if task is None:
            task = self._lookups[digest] = asyncio.ensure_future(self._ask(digest))
            task.add_done_callback(lambda done: self._asked(digest, done))
        return task

    async def _ask(self, digest: bytes) -> _Entry | None:
        asked_at = self._clock()
        found = await self._store.run_read(_find_digest, digest.hex(), self._now_us())
        self._known.pop(digest, None)
        self._unknown.pop(digest, None)
        if found is None:
            _put(self._unknown, digest, asked_at + self._ttl_s, self._entries_max)
            return None
        entry = self._entry(found, asked_at)
        _put(self._known, digest, entry, self._entries_max)
        return entry

    def _asked(self, digest: bytes, done: asyncio.Task[_Entry | None]) -> None:
        del self._lookups[digest]
        if not done.cancelled():
            done.exception()  # whoever waits has it; where nobody does, the next request asks again

    def _entry(self, found: _Found, asked_at: float) -> _Entry:
        key, now_us = found.key, self._now_us()
        ends = [us for us in (key.expires_us, found.until_us) if us is not None]
        left_s = (min(ends) - now_us) / 1e6 if ends else float("inf")
        refusal = _refusal(key, found.team_blocked, now_us)
        serves_s = left_s if refusal is None else float("inf")
        return _Entry(
            _caller(found),
            refusal,
            fresh_until=asked_at + min(self._ttl_s, serves_s),
            stale_until=asked_at + min(2 * self._ttl_s, serves_s),
        )


def _refusal(key: Key, team_blocked: bool, now_us: int) -> tuple[str, str] | None:
    """Code and message of why a key must not be used now; None where it may."""
    if key.disabled:
        return "key_disabled", f"The API key `{key.redacted}` is disabled. Its owner can enable it again."
    if key.blocked:
        return "key_blocked", f"The API key `{key.redacted}` is blocked."
    if team_blocked:
        return "team_blocked", f"The team of the API key `{key.redacted}` is blocked."
    if key.expires_us is not None and key.expires_us <= now_us:
        return "key_expired", f"The API key `{key.redacted}` has expired."
    return None


def _caller(found: _Found) -> Caller:
    key = found.key
    return Caller(
        key.id,
        key.team_id,
        (Acl.parse_management if key.management else Acl.parse)(key.acls),
        key.rpm,
        key.tpm,
        key.management,
        key.name,
        found.tier,
        found.prepaid,
        found.prices,
        found.limits,
        key.rps,
        found.spending_limit,
    )


def _put(cache: dict[bytes, T], digest: bytes, value: T, entries_max: int) -> None:
    """Adds to a cache, at the price of its oldest entry where it is full."""
    if len(cache) >= entries_max:
        del cache[next(iter(cache))]
    cache[digest] = value


def unknown() -> NotIdentified:
    """What a secret is answered with that is no key's, or no longer."""
    return NotIdentified(
        "Incorrect API key provided. You can obtain an API key with `jubal keys create`.",
        given=True,
        code="invalid_api_key",
    )


def _wrong_kind(management: bool) -> NotAllowed:
    if management:
        return NotAllowed(
            "This is not a management key. `jubal keys create --management` makes one.", code="not_management_key"
        )
    return NotAllowed("This is a management key: it can't be used for inference.", code="management_key")
