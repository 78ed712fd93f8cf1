"""The same act by two gateways at once, on a real PostgreSQL: both are done, one after the other, and neither is lost or told of
a fault of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal.accounts import audit, keys, prices, team_limits, teams
from jubal.accounts.keys import OVERLAP_US_MAX
from jubal.accounts.prices import PriceTerms
from jubal.accounts.store import Store
from jubal.accounts.tables import old_secrets
from jubal.accounts.team_limits import ALL, Rates
from jubal.admin import actor, billing, credits, limits
from jubal.admin import keys as admin_keys
from jubal.admin.actor import Actor
from tests.accounts.conftest import NOW_US

Act = Callable[[Connection, Actor, int], Any]
"""Does it for the first (0) or the second (1) time."""
TIMEOUT_S = 60.0


def twice_at_once(store: Store, act: Act) -> None:
    """The second transaction begins while the first has done its work and has not committed, and goes on when it waits for it."""
    done, failed = threading.Event(), list[BaseException]()

    def first(conn: Connection) -> None:
        act(conn, actor.operator(conn), 0)
        done.set()
        until = time.monotonic() + TIMEOUT_S
        waits = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        while not conn.scalar(waits):
            assert time.monotonic() < until, "the second one waited for nothing"
            assert second.is_alive(), f"the second one did not wait: {failed}"
            time.sleep(0.01)

    def go_second() -> None:
        assert done.wait(TIMEOUT_S)
        try:
            store.transact(lambda conn: act(conn, actor.operator(conn), 1))
        except BaseException as error:
            failed.append(error)

    second = threading.Thread(target=go_second)
    second.start()
    try:
        store.transact(first)
    finally:
        done.set()
        second.join(TIMEOUT_S)
    assert not failed


@pytest.fixture
def team(postgres_store: Store) -> str:
    return postgres_store.read(teams.default).id


def befores(store: Store, action: str) -> list[Any]:
    """What the audit log says was there before each such act, the oldest first."""
    return [act.before for act in reversed(store.read(audit.listing, limit=100)) if act.action == action]


def test_first_billing_info(postgres_store: Store, team: str) -> None:
    def act(conn: Connection, who: Actor, n: int) -> None:
        billing.set_info(conn, who, team, {"name": str(n)}, now_us=NOW_US + n)

    twice_at_once(postgres_store, act)
    assert postgres_store.transact(lambda conn: billing.info(conn, actor.operator(conn), team)) == {"name": "1"}
    assert befores(postgres_store, "billing.set_info") == [None, {"name": "0"}]


def test_many_first_billing_infos(postgres_store: Store) -> None:
    """As they come: eight threads, none of which knows of the others."""
    made = [postgres_store.transact(teams.create, name=f"t{n}", now_us=NOW_US).id for n in range(3)]
    failed = list[BaseException]()
    for team_id in made:
        start = threading.Barrier(8)

        def write(n: int, team_id: str = team_id, start: threading.Barrier = start) -> None:
            start.wait(TIMEOUT_S)
            try:
                postgres_store.transact(
                    lambda conn: billing.set_info(conn, actor.operator(conn), team_id, {"name": str(n)}, now_us=NOW_US)
                )
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert not failed
    assert len(befores(postgres_store, "billing.set_info")) == 24


def test_first_limits_of_a_team(postgres_store: Store, team: str) -> None:
    def act(conn: Connection, who: Actor, n: int) -> None:
        limits.put(conn, who, team, ALL, Rates(tpm=5) if n else Rates(rpm=3), now_us=NOW_US + n)

    twice_at_once(postgres_store, act)
    found = postgres_store.read(team_limits.of_team, team)
    assert found is not None
    assert found.all == Rates(None, 3, 5), "neither takes away what the other gave"
    assert befores(postgres_store, "limits.set") == [None, {"rps": None, "rpm": 3, "tpm": None}]


def test_first_limits_of_a_team_by_both_sides(postgres_store: Store, team: str) -> None:
    def act(conn: Connection, who: Actor, n: int) -> None:
        if n:
            limits.put_own(conn, who, team, ALL, Rates(rpm=2), now_us=NOW_US)
        else:
            limits.put(conn, who, team, ALL, Rates(rpm=3), now_us=NOW_US)

    twice_at_once(postgres_store, act)
    found = postgres_store.read(team_limits.of_team, team)
    assert found is not None
    assert (found.all, dict(found.own)) == (Rates(rpm=3), {ALL: Rates(rpm=2)})


def test_first_price_of_a_team(postgres_store: Store, team: str) -> None:
    def act(conn: Connection, who: Actor, n: int) -> None:
        credits.set_price(conn, who, team, "grok-4", PriceTerms(input=n), now_us=NOW_US + n)

    twice_at_once(postgres_store, act)
    assert postgres_store.read(prices.listing, team) == [(team, "grok-4", PriceTerms(input=1))]


def test_rotations_of_one_key(postgres_store: Store, team: str) -> None:
    """Each secret that was given out works on for as long as was said."""
    key, _ = postgres_store.transact(keys.create, team_id=team, name="k", now_us=NOW_US)
    secrets: list[str] = []

    def act(conn: Connection, who: Actor, n: int) -> None:
        secrets.append(admin_keys.rotate(conn, who, key.id, overlap_us=OVERLAP_US_MAX - n, now_us=NOW_US)[1])

    twice_at_once(postgres_store, act)
    assert len(set(secrets)) == 2
    until = postgres_store.read(keys.old_secrets_until, key.id, NOW_US)
    assert until == [NOW_US + OVERLAP_US_MAX, NOW_US + OVERLAP_US_MAX - 1]
    kept = postgres_store.read(lambda conn: conn.scalars(sa.select(old_secrets.c.digest)).all())
    assert len(set(kept)) == 2
