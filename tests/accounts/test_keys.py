"""Keys and the ring that recognises them."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
import structlog.testing
from sqlalchemy.engine import Connection

from jubal.accounts import keys, tables, teams
from jubal.accounts.acl import EVERYTHING, Acl
from jubal.accounts.keys import EXPIRES_US_MAX, Caller, Key, KeyRing
from jubal.accounts.store import Store
from jubal.core.errors import BadRequest, JubalError, NotAllowed, NotFound, NotIdentified, StoreUnavailable
from tests.accounts.conftest import NOW_US, Clock


def new_key(store: Store, **wanted: Any) -> tuple[Key, str]:
    """A key of the default team."""
    made: tuple[Key, str] = store.transact(
        keys.create, **{"team_id": store.read(teams.default).id, "name": "test", "now_us": NOW_US} | wanted
    )
    return made


def everything_in(store: Store) -> str:
    """The whole content of the store, as text."""

    def dump(conn: Connection) -> str:
        return "\n".join(str(row) for table in tables.metadata.sorted_tables for row in conn.execute(sa.select(table)))

    return store.read(dump)


# -------------------------------------------------------------------------------------------------------- statements


def test_a_new_key(store: Store) -> None:
    team = store.transact(teams.create, name="research", now_us=1)
    key, secret = new_key(store, team_id=team.id, name="ci", rpm=60, tpm=100_000, expires_us=NOW_US + 1)
    assert re.fullmatch(r"xai-[A-Za-z0-9_-]{64}", secret)
    assert key == Key(
        id=key.id,
        team_id=team.id,
        name="ci",
        redacted=f"xai-...{secret[-4:]}",
        acls=EVERYTHING,
        rpm=60,
        tpm=100_000,
        management=False,
        disabled=False,
        blocked=False,
        user_id=key.user_id,
        created_us=NOW_US,
        modified_us=NOW_US,
        modified_by=key.user_id,
        expires_us=NOW_US + 1,
        last_used_us=None,
    )
    assert store.read(keys.get, key.id) == key


def test_a_management_key_looks_like_one(store: Store) -> None:
    key, secret = new_key(store, management=True)
    assert secret.startswith("xai-token-")
    assert key.redacted == f"xai-...{secret[-4:]}"
    assert store.transact(keys.rotate, key.id, now_us=NOW_US).startswith("xai-token-")


def test_the_listing_is_oldest_first_and_of_one_team_where_asked(store: Store) -> None:
    team = store.transact(teams.create, name="research", now_us=1)
    made = [new_key(store, name=f"k{n}", now_us=n, **({"team_id": team.id} if n % 2 else {}))[0] for n in range(4)]
    assert store.read(keys.listing) == made
    assert store.read(keys.listing, team.id) == made[1::2]
    assert store.read(keys.listing, limit=3) == made[:3]


def test_disable_enable_delete(store: Store) -> None:
    key, _ = new_key(store)
    off = store.transact(keys.disable, key.id, now_us=NOW_US + 1)
    assert off == replace(key, disabled=True, modified_us=NOW_US + 1)
    assert store.transact(keys.enable, key.id, now_us=NOW_US + 2) == replace(key, modified_us=NOW_US + 2)
    store.transact(keys.delete, key.id)
    assert store.read(keys.listing) == []


def test_rotate_changes_the_secret_and_nothing_else(store: Store) -> None:
    key, secret = new_key(store, acls=("api-key:model:grok-4",), rpm=3)
    fresh = store.transact(keys.rotate, key.id, now_us=NOW_US + 1)
    assert fresh != secret
    assert store.read(keys.get, key.id) == replace(key, redacted=f"xai-...{fresh[-4:]}", modified_us=NOW_US + 1)


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.read(keys.get, "no-such"),
        lambda store: store.transact(keys.disable, "no-such", now_us=1),
        lambda store: store.transact(keys.enable, "no-such", now_us=1),
        lambda store: store.transact(keys.rotate, "no-such", now_us=1),
        lambda store: store.transact(keys.delete, "no-such"),
    ],
    ids=["get", "disable", "enable", "rotate", "delete"],
)
def test_an_unknown_id(sqlite_store: Store, act: Callable[[Store], object]) -> None:
    with pytest.raises(NotFound, match="`no-such`") as caught:
        act(sqlite_store)
    assert caught.value.code == "key_not_found"


@pytest.mark.parametrize(
    ("param", "wanted"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "x" * 201}),
        ("acls", {"acls": ("api-key:everything",)}),
        ("rpm", {"rpm": 0}),
        ("rpm", {"rpm": 2**53}),
        ("expires", {"expires_us": EXPIRES_US_MAX}),
        ("expires", {"expires_us": NOW_US}),
        ("rps", {"rps": 0}),
        ("rps", {"rps": -1}),
        ("rps", {"rps": 2**53}),
        ("tpm", {"tpm": -1}),
    ],
)
def test_bad_settings_are_named(sqlite_store: Store, param: str, wanted: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        new_key(sqlite_store, **wanted)
    assert caught.value.param == param
    assert sqlite_store.read(keys.listing) == []


def test_a_key_needs_a_team(store: Store) -> None:
    with pytest.raises(NotFound, match="`nobody`"):
        new_key(store, team_id="nobody")


# ---------------------------------------------------------------------------------------------------------- the ring


class Asked:
    """A store that counts what it is asked, and can go away."""

    def __init__(self, store: Store) -> None:
        self.hash_key = store.hash_key
        self.times = 0
        self.away = False
        self._store = store

    async def run_read(self, *args: Any) -> Any:
        self.times += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("The accounts store does not answer.")
        return self._store.read(*args)


@pytest.fixture
def asked(sqlite_store: Store) -> Asked:
    return Asked(sqlite_store)


def ring_of(store: Any, clock: Clock, **options: Any) -> KeyRing:
    return KeyRing(store, clock, now_us=lambda: NOW_US + int((clock.now - 1000) * 1_000_000), **options)


async def settle() -> None:
    """Lets what runs in the background come to its end."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_key_is_recognised(store: Store) -> None:
    key, secret = new_key(store, acls=("api-key:endpoint:chat", "api-key:model:*"), rpm=5, tpm=6)
    ring = KeyRing(store)
    assert ring.identify_cached(secret) is None
    caller = await ring.identify(secret)
    assert caller == Caller(key.id, key.team_id, Acl(frozenset({"chat"}), frozenset({"*"})), 5, 6, False, "test")
    assert ring.identify_cached(secret) is caller


async def test_what_nobody_issued(store: Store) -> None:
    _, secret = new_key(store)
    ring = KeyRing(store)
    wrong = ["", "x", "sk-123", "xai-", secret[:-1], secret + "x", "xai-" + "x" * 10_000, "xai-ключ", "xai-\udcff"]
    for text in wrong:
        assert ring.identify_cached(text) is None
        with pytest.raises(NotIdentified) as caught:
            await ring.identify(text)
        assert caught.value.message == (
            "Incorrect API key provided. You can obtain an API key with `jubal keys create`."
        )
        assert (caught.value.given, caught.value.code) == (True, "invalid_api_key")


def set_team_blocked(conn: Connection, team_id: str) -> None:
    conn.execute(tables.teams.update().where(tables.teams.c.id == team_id).values(blocked=True))


def set_blocked(conn: Connection, key_id: str) -> None:
    conn.execute(tables.api_keys.update().where(tables.api_keys.c.id == key_id).values(blocked=True))


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("key_disabled", lambda store, key: store.transact(keys.disable, key.id, now_us=NOW_US)),
        ("key_blocked", lambda store, key: store.transact(set_blocked, key.id)),
        ("team_blocked", lambda store, key: store.transact(set_team_blocked, key.team_id)),
    ],
)
async def test_keys_that_must_not_be_used(store: Store, code: str, spoil: Callable[[Store, Key], object]) -> None:
    key, secret = new_key(store)
    spoil(store, key)
    ring = KeyRing(store)
    for _ in range(2):  # read from the store, then remembered
        with pytest.raises(NotAllowed) as caught:
            await ring.identify(secret)
        assert caught.value.code == code
        assert ring.identify_cached(secret) is None


async def test_each_kind_of_key_has_its_own_door(store: Store) -> None:
    _, secret = new_key(store)
    _, management = new_key(store, management=True)
    ring = KeyRing(store)
    assert (await ring.identify(management, management=True)).management
    assert ring.identify_cached(management) is None
    with pytest.raises(NotAllowed) as caught:
        await ring.identify(management)
    assert caught.value.code == "management_key"
    with pytest.raises(NotAllowed) as caught:
        await ring.identify(secret, management=True)
    assert caught.value.code == "not_management_key"


async def test_a_key_expires_on_time(sqlite_store: Store, clock: Clock) -> None:
    """Also while it is remembered."""
    _, secret = new_key(sqlite_store, expires_us=NOW_US + 500_000)
    ring = ring_of(sqlite_store, clock)
    await ring.identify(secret)
    clock.pass_s(0.499)
    assert ring.identify_cached(secret) is not None
    clock.pass_s(0.001)
    assert ring.identify_cached(secret) is None
    with pytest.raises(NotAllowed) as caught:
        await ring.identify(secret)
    assert caught.value.code == "key_expired"


@pytest.mark.parametrize("change", ["disable", "delete", "rotate"])
async def test_a_revoked_key_stops_within_two_seconds(sqlite_store: Store, clock: Clock, change: str) -> None:
    """Whatever the traffic: it is asked for before, at, and after the time."""
    for busy in (False, True):
        key, secret = new_key(sqlite_store)
        ring = ring_of(sqlite_store, clock)
        await ring.identify(secret)
        if change == "delete":
            sqlite_store.transact(keys.delete, key.id)
        else:
            sqlite_store.transact(getattr(keys, change), key.id, now_us=NOW_US)
        for _ in range(19):
            clock.pass_s(0.1)
            if busy:
                ring.identify_cached(secret)
        clock.pass_s(0.1)
        assert ring.identify_cached(secret) is None
        with pytest.raises(NotAllowed if change == "disable" else NotIdentified):
            await ring.identify(secret)


async def test_the_store_is_asked_once_a_second_beside_the_requests(
    asked: Asked, sqlite_store: Store, clock: Clock
) -> None:
    _, secret = new_key(sqlite_store)
    ring = ring_of(asked, clock)
    await ring.identify(secret)
    for _ in range(100):  # 10 s of traffic
        clock.pass_s(0.1)
        assert ring.identify_cached(secret) is not None
        await settle()
    assert 9 <= asked.times <= 11


async def test_a_question_is_asked_once_for_all(asked: Asked, sqlite_store: Store, clock: Clock) -> None:
    _, secret = new_key(sqlite_store)
    ring = ring_of(asked, clock)
    tasks = [asyncio.create_task(ring.identify(secret)) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # the others wait on
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert all(isinstance(end, Caller) for end in ends[1:])
    assert asked.times == 1


async def test_a_store_that_is_away_is_missed_after_two_seconds(
    asked: Asked, sqlite_store: Store, clock: Clock
) -> None:
    _, secret = new_key(sqlite_store)
    ring = ring_of(asked, clock)
    await ring.identify(secret)
    asked.away = True
    clock.pass_s(1.9)
    assert ring.identify_cached(secret) is not None
    await settle()
    assert await ring.identify(secret)
    await settle()
    clock.pass_s(0.1)
    assert ring.identify_cached(secret) is None
    with pytest.raises(StoreUnavailable):
        await ring.identify(secret)
    asked.away = False
    assert await ring.identify(secret)


async def test_guessing_keys_costs_no_memory(asked: Asked, sqlite_store: Store, clock: Clock) -> None:
    _, secret = new_key(sqlite_store)
    ring = ring_of(asked, clock, entries_max=50)
    await ring.identify(secret)
    for n in range(200):
        with pytest.raises(NotIdentified):
            await ring.identify(f"xai-{n}")
    assert len(ring._unknown) == 50
    assert ring.identify_cached(secret) is not None, "guesses drive no key out"
    asked.times = 0
    with pytest.raises(NotIdentified):
        await ring.identify("xai-199")
    assert asked.times == 0, "a wrong key is remembered too"
    clock.pass_s(1)
    with pytest.raises(NotIdentified):
        await ring.identify("xai-199")
    assert asked.times == 1


async def test_a_key_works_soon_after_it_was_refused(sqlite_store: Store, clock: Clock) -> None:
    key, secret = new_key(sqlite_store)
    sqlite_store.transact(keys.disable, key.id, now_us=NOW_US)
    ring = ring_of(sqlite_store, clock)
    with pytest.raises(NotAllowed):
        await ring.identify(secret)
    sqlite_store.transact(keys.enable, key.id, now_us=NOW_US)
    clock.pass_s(2)
    assert await ring.identify(secret)


async def test_keys_that_are_remembered_are_bounded(sqlite_store: Store, clock: Clock) -> None:
    ring = ring_of(sqlite_store, clock, entries_max=3)
    made = [new_key(sqlite_store)[1] for _ in range(5)]
    for secret in made:
        await ring.identify(secret)
    assert [ring.identify_cached(secret) is not None for secret in made] == [False, False, True, True, True]


async def test_changes_by_another_process_are_seen(store: Store, url: str, clock: Clock) -> None:
    """Two gateways on one store: made by one, revoked by the other."""
    ring = ring_of(store, clock)
    with Store.open(url) as other:
        key, secret = new_key(other)
        assert await ring.identify(secret)
        other.transact(keys.delete, key.id)
    clock.pass_s(2)
    with pytest.raises(NotIdentified):
        await ring.identify(secret)


# ----------------------------------------------------------------------------------------------------------- secrets


async def test_secrets_are_shown_once_and_kept_nowhere(store: Store, clock: Clock) -> None:
    said: list[str] = []
    with structlog.testing.capture_logs() as logs:
        key, secret = new_key(store, expires_us=NOW_US + 1)
        rotated = store.transact(keys.rotate, key.id, now_us=NOW_US)
        _, management = new_key(store, management=True)
        ring = ring_of(store, clock)
        said.append(repr(await ring.identify(rotated)))
        clock.pass_s(1)
        for text in (secret, rotated, management, rotated + "x"):
            with pytest.raises(JubalError) as caught:
                await ring.identify(text)
            said.append(f"{caught.value!r} {caught.value} {vars(caught.value)}")
    said += [everything_in(store), repr(store), repr(ring), repr(store.read(keys.listing)), repr(logs)]
    whole = "\n".join(said)
    for text in (secret, rotated, management):
        assert text not in whole
        assert text[4:40] not in whole
        assert hashlib.sha256(text.encode()).hexdigest() not in whole, "a digest that needs no key could be tried out"
    shown = "\n".join(said[:-5] + said[-4:])
    stored = store.read(lambda conn: conn.execute(sa.select(tables.api_keys.c.digest)).scalars().all())
    assert len(stored) == 2
    assert not any(digest in shown for digest in stored)
    assert store.hash_key.hex() not in shown


async def test_a_failing_store_gives_nothing_away(postgres: Any, postgres_store: Store, clock: Clock) -> None:
    _, secret = new_key(postgres_store)
    ring = ring_of(postgres_store, clock)
    postgres.stop()
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await ring.identify(secret)
    finally:
        postgres.start()
    digest = ring._digest(secret).hex()
    error: BaseException | None = caught.value
    while error is not None:
        assert secret not in str(error)
        assert digest not in str(error)
        error = error.__cause__
    assert await ring.identify(secret)


async def test_old_secrets_work_until_their_time(store: Store, clock: Clock) -> None:
    """Also where they are remembered, and with an older one beside."""
    key, first = new_key(store)
    ring = ring_of(store, clock)
    second = store.transact(keys.rotate, key.id, now_us=NOW_US, overlap_us=10_000_000)
    third = store.transact(keys.rotate, key.id, now_us=NOW_US, overlap_us=5_000_000)
    for secret in (first, second, third):
        assert (await ring.identify(secret)).key_id == key.id
    assert store.read(keys.old_secrets_until, key.id, NOW_US) == [NOW_US + 10_000_000, NOW_US + 5_000_000]
    clock.pass_s(5)
    with pytest.raises(NotIdentified):
        await ring.identify(second)
    assert (await ring.identify(first)).key_id == (await ring.identify(third)).key_id == key.id
    clock.pass_s(5)
    with pytest.raises(NotIdentified):
        await ring.identify(first)
    assert (await ring.identify(third)).key_id == key.id


async def test_without_an_overlap_every_old_secret_stops(store: Store) -> None:
    key, first = new_key(store)
    second = store.transact(keys.rotate, key.id, now_us=NOW_US, overlap_us=10_000_000)
    third = store.transact(keys.rotate, key.id, now_us=NOW_US)
    ring = KeyRing(store, now_us=lambda: NOW_US)
    for secret in (first, second):
        with pytest.raises(NotIdentified):
            await ring.identify(secret)
    assert (await ring.identify(third)).key_id == key.id


def test_old_secrets_are_bounded_and_go_with_their_key(store: Store) -> None:
    key, secret = new_key(store)
    for _ in range(keys.OLD_SECRETS_MAX):
        store.transact(keys.rotate, key.id, now_us=NOW_US, overlap_us=1_000_000)
    with pytest.raises(BadRequest) as caught:
        store.transact(keys.rotate, key.id, now_us=NOW_US, overlap_us=1_000_000)
    assert caught.value.code == "too_many_secrets"
    store.transact(keys.rotate, key.id, now_us=NOW_US + 1_000_000, overlap_us=1_000_000)  # those are over
    assert secret not in everything_in(store)
    store.transact(keys.delete, key.id)
    assert "old_secrets" in tables.metadata.tables
    assert store.read(lambda conn: conn.execute(sa.select(tables.old_secrets)).all()) == []


@pytest.mark.parametrize("acl", ["api-key:model:*", "team-token:endpoint:", "team-token:endpoint:Everything", "x"])
def test_acls_of_management_keys_are_of_their_own_kind(sqlite_store: Store, acl: str) -> None:
    with pytest.raises(BadRequest) as caught:
        new_key(sqlite_store, management=True, acls=(acl,))
    assert caught.value.param == "acls"
    with pytest.raises(BadRequest):
        new_key(sqlite_store, acls=("team-token:endpoint:*",))
