"""Every management act: who may do it, what it changes, and that it is written down."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jubal import admin as package
from jubal.accounts import audit, keys, prices, tables, team_limits, teams, usage
from jubal.accounts.acl import Acl
from jubal.accounts.prices import PriceTerms
from jubal.accounts.store import Store
from jubal.accounts.team_limits import Rates
from jubal.accounts.tiers import Tiers
from jubal.admin import actor, analytics, billing, credits, limits, log
from jubal.admin import keys as admin_keys
from jubal.admin import teams as admin_teams
from jubal.admin import usage as admin_usage
from jubal.admin.actor import Actor
from jubal.admin.billing import Books
from jubal.core.errors import BadRequest, JubalError, NotAllowed, NotFound
from tests.accounts.conftest import NOW_US, usage_row

TERMS = PriceTerms(input=3)
LATER_US = NOW_US + 1_000_000
BOOKS = Books(Tiers())


class World:
    """Two teams, a key and a management key in each."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.red = teams.create(conn, name="red", now_us=NOW_US).id
        self.blue = teams.create(conn, name="blue", now_us=NOW_US).id
        self.key = self.new_key(self.red)
        self.boss = self.new_key(self.red, management=True)
        self.other = self.new_key(self.blue)
        prices.put(conn, self.red, "m", TERMS, now_us=NOW_US)
        team_limits.put(conn, team_id=self.red, model="m", rates=Rates(rpm=5), now_us=NOW_US)
        usage.record(conn, [usage_row(1, team_id=self.red, key_id=self.key)])
        uncharged = usage_row(2, team_id=self.red, key_id=self.key)  # as a gateway of an older release leaves it
        conn.execute(tables.usage.insert().values(uncharged._asdict()))
        self.operator = actor.operator(conn, "me")
        self.manager = Actor("key", self.boss, "boss", self.red, Acl.parse_management(["team-token:endpoint:*"]))
        self.powerless = Actor("key", self.boss, "boss", self.red, Acl.parse_management([]))

    def new_key(self, team_id: str, *, management: bool = False) -> str:
        return keys.create(self.conn, team_id=team_id, name="k", management=management, now_us=NOW_US)[0].id


Call = Callable[[World, Actor], Any]
QUERY = analytics.Query(NOW_US, NOW_US + 1, analytics.zone_of("UTC"), "hour", (("usd", "sum"),))
ACTS: dict[str, tuple[Call, bool]] = {
    # what it does, and whether a management key may do it to its own team
    "keys.create": (lambda w, who: admin_keys.create(w.conn, who, team_id=w.red, name="n", now_us=LATER_US), True),
    "keys.update": (lambda w, who: admin_keys.update(w.conn, who, w.key, {"name": "m"}, now_us=LATER_US), True),
    "keys.disable": (lambda w, who: admin_keys.disable(w.conn, who, w.key, now_us=LATER_US), True),
    "keys.enable": (lambda w, who: admin_keys.enable(w.conn, who, w.key, now_us=LATER_US), True),
    "keys.block": (lambda w, who: admin_keys.block(w.conn, who, w.key, now_us=LATER_US), False),
    "keys.unblock": (lambda w, who: admin_keys.unblock(w.conn, who, w.key, now_us=LATER_US), False),
    "keys.rotate": (lambda w, who: admin_keys.rotate(w.conn, who, w.key, overlap_us=5, now_us=LATER_US), True),
    "keys.delete": (lambda w, who: admin_keys.delete(w.conn, who, w.key, now_us=LATER_US), True),
    "teams.create": (lambda w, who: admin_teams.create(w.conn, who, name="new", now_us=LATER_US), False),
    "teams.change": (lambda w, who: admin_teams.change(w.conn, who, w.red, blocked=True, now_us=LATER_US), False),
    "usage.recount": (lambda w, who: admin_usage.recount(w.conn, who, 0, 2**62, now_us=LATER_US), False),
    "billing.set_info": (lambda w, who: billing.set_info(w.conn, who, w.red, {"name": "x"}, now_us=LATER_US), True),
    "billing.limit_spending": (lambda w, who: billing.limit_spending(w.conn, who, w.red, 5, now_us=LATER_US), True),
    "credits.move": (lambda w, who: credits.move(w.conn, who, "add", w.red, 5, now_us=LATER_US), False),
    "credits.charge_missing": (lambda w, who: credits.charge_missing(w.conn, who, now_us=LATER_US), False),
    "credits.set_price": (lambda w, who: credits.set_price(w.conn, who, w.red, "*", TERMS, now_us=LATER_US), False),
    "limits.put": (lambda w, who: limits.put(w.conn, who, w.red, "m", Rates(rpm=9), now_us=LATER_US), False),
    "limits.clear": (lambda w, who: limits.clear(w.conn, who, w.red, "m", now_us=LATER_US), False),
    "limits.put_own": (lambda w, who: limits.put_own(w.conn, who, w.red, "m", Rates(rpm=2), now_us=LATER_US), True),
    "credits.remove_price": (lambda w, who: credits.remove_price(w.conn, who, w.red, "m", now_us=LATER_US), False),
}
LOGGED_AS = {
    "teams.change": "teams.block",
    "credits.move": "credits.add",
    "credits.set_price": "prices.set",
    "limits.put": "limits.set",
    "limits.put_own": "limits.set_own",
    "credits.remove_price": "prices.remove",
}
READS: dict[str, tuple[Call, bool]] = {
    "keys.listing": (lambda w, who: admin_keys.listing(w.conn, who, team_id=w.red), True),
    "keys.get": (lambda w, who: admin_keys.get(w.conn, who, w.key), True),
    "keys.is_propagated": (lambda w, who: admin_keys.is_propagated(w.conn, who, w.key, now_us=NOW_US), True),
    "teams.listing": (lambda w, who: admin_teams.listing(w.conn, who), True),
    "teams.get": (lambda w, who: admin_teams.get(w.conn, who, w.red), True),
    "limits.get": (lambda w, who: limits.get(w.conn, who, w.red), True),
    "limits.on_models": (lambda w, who: limits.on_models(w.conn, who, w.red), True),
    "usage.totals": (lambda w, who: admin_usage.totals(w.conn, who, ["key"], 0, 2**62, team_id=w.red), True),
    "usage.export": (lambda w, who: list(admin_usage.export(w.conn, who, 0, 2**62, team_id=w.red)), True),
    "analytics.analyze": (lambda w, who: analytics.analyze(w.conn, who, w.red, QUERY), True),
    "log.listing": (lambda w, who: log.listing(w.conn, who, team_id=w.red), True),
    "billing.preview": (lambda w, who: billing.preview(w.conn, who, BOOKS, w.red, now_us=NOW_US), True),
    "billing.invoices": (lambda w, who: billing.invoices(w.conn, who, BOOKS, w.red, now_us=NOW_US), True),
    "billing.limit": (lambda w, who: billing.limit(w.conn, who, BOOKS, w.red), True),
    "billing.prepaid": (lambda w, who: billing.prepaid(w.conn, who, BOOKS, w.red, now_us=NOW_US), True),
    "billing.payment_methods": (lambda w, who: billing.payment_methods(w.conn, who, w.red), True),
    "billing.info": (lambda w, who: billing.info(w.conn, who, w.red), True),
    "billing.no_payment": (lambda w, who: billing.no_payment(w.conn, who, "TopUpOrGetExistingPendingChange", w.red), True),
}  # fmt: skip
ELSEWHERE: dict[str, Call] = {
    "keys.create": lambda w, who: admin_keys.create(w.conn, who, team_id=w.blue, name="n", now_us=LATER_US),
    "keys.update": lambda w, who: admin_keys.update(w.conn, who, w.other, {"name": "m"}, now_us=LATER_US),
    "keys.rotate": lambda w, who: admin_keys.rotate(w.conn, who, w.other, now_us=LATER_US),
    "keys.disable": lambda w, who: admin_keys.disable(w.conn, who, w.other, now_us=LATER_US),
    "keys.enable": lambda w, who: admin_keys.enable(w.conn, who, w.other, now_us=LATER_US),
    "keys.delete": lambda w, who: admin_keys.delete(w.conn, who, w.other, now_us=LATER_US),
    "keys.delete own kind": lambda w, who: admin_keys.delete(w.conn, who, w.boss, now_us=LATER_US),
    "keys.get": lambda w, who: admin_keys.get(w.conn, who, w.other),
    "keys.is_propagated": lambda w, who: admin_keys.is_propagated(w.conn, who, w.other, now_us=NOW_US),
    "keys.listing": lambda w, who: admin_keys.listing(w.conn, who, team_id=w.blue),
    "teams.get": lambda w, who: admin_teams.get(w.conn, who, w.blue),
    "limits.get": lambda w, who: limits.get(w.conn, who, w.blue),
    "limits.on_models": lambda w, who: limits.on_models(w.conn, who, w.blue),
    "limits.put_own": lambda w, who: limits.put_own(w.conn, who, w.blue, "*", Rates(rpm=2), now_us=LATER_US),
    "usage.totals": lambda w, who: admin_usage.totals(w.conn, who, ["key"], 0, 2**62, team_id=w.blue),
    "usage.export": lambda w, who: list(admin_usage.export(w.conn, who, 0, 2**62, team_id=w.blue)),
    "analytics.analyze": lambda w, who: analytics.analyze(w.conn, who, w.blue, QUERY),
    "log.listing": lambda w, who: log.listing(w.conn, who, team_id=w.blue),
    "billing.set_info": lambda w, who: billing.set_info(w.conn, who, w.blue, {}, now_us=LATER_US),
    "billing.limit_spending": lambda w, who: billing.limit_spending(w.conn, who, w.blue, 5, now_us=LATER_US),
    "billing.info": lambda w, who: billing.info(w.conn, who, w.blue),
    "billing.prepaid": lambda w, who: billing.prepaid(w.conn, who, BOOKS, w.blue, now_us=NOW_US),
}


def content(conn: Connection) -> dict[str, list[Any]]:
    """Every table but the audit log."""
    return {
        table.name: [tuple(row) for row in conn.execute(sa.select(table).order_by(*table.primary_key))]
        for table in tables.metadata.sorted_tables
        if table is not tables.audit
    }


class Undo(Exception):
    """Ends a transaction without a trace."""


def in_a_world(store: Store, act: Callable[[World], None]) -> None:
    def work(conn: Connection) -> None:
        act(World(conn))
        raise Undo

    with pytest.raises(Undo):
        store.transact(work)


def test_the_tables_above_are_all_there_is() -> None:
    """So that a new act can't be forgotten here, and with it its line in the audit log."""
    found = set()
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"jubal.admin.{module.name}")
        for name, value in vars(loaded).items():
            if not inspect.isfunction(value) or value.__module__ != loaded.__name__ or name.startswith("_"):
                continue
            if list(inspect.signature(value).parameters)[:2] == ["conn", "actor"]:
                found.add(f"{module.name}.{name}")
    assert found - {"actor.note"} == set(ACTS) | set(READS)
    assert "actor.note" in found


@pytest.mark.parametrize("name", ACTS)
def test_an_act_leaves_one_line_and_no_secret(store: Store, name: str) -> None:
    def check(world: World) -> None:
        before = content(world.conn)
        made = ACTS[name][0](world, world.operator)
        assert content(world.conn) != before or name in ("keys.enable", "keys.unblock", "usage.recount")
        (line,) = audit.listing(world.conn)
        assert line.action == LOGGED_AS.get(name, name)
        assert (line.actor_kind, line.actor_name, line.created_us) == ("operator", "me", LATER_US)
        if name in ("keys.create", "keys.rotate"):
            assert made[1] not in str(line)
        digests = world.conn.scalars(sa.select(tables.api_keys.c.digest))
        assert not any(digest in str(line) for digest in digests)

    in_a_world(store, check)


@pytest.mark.parametrize("name", READS)
def test_what_only_reads_changes_nothing_and_leaves_no_line(sqlite_store: Store, name: str) -> None:
    def check(world: World) -> None:
        before = content(world.conn)
        READS[name][0](world, world.operator)
        assert content(world.conn) == before
        assert audit.listing(world.conn) == []

    in_a_world(sqlite_store, check)


@pytest.mark.parametrize("name", [*ACTS, *READS])
def test_who_may_do_it(sqlite_store: Store, name: str) -> None:
    do, for_managers = {**ACTS, **READS}[name]

    def check(world: World) -> None:
        if for_managers:
            do(world, world.manager)
        else:
            with pytest.raises(NotAllowed) as caught:
                do(world, world.manager)
            assert caught.value.code == "operator_only"
        lines = len(audit.listing(world.conn))
        with pytest.raises(NotAllowed):
            do(world, world.powerless)
        assert len(audit.listing(world.conn)) == lines, "what is refused is no act"

    in_a_world(sqlite_store, check)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_teams_things_are_out_of_reach(sqlite_store: Store, name: str) -> None:
    def check(world: World) -> None:
        before = content(world.conn)
        with pytest.raises(JubalError) as caught:
            ELSEWHERE[name](world, world.manager)
        assert isinstance(caught.value, NotAllowed | NotFound)
        assert caught.value.code in ("other_team", "key_not_found")
        assert content(world.conn) == before
        assert audit.listing(world.conn) == []

    in_a_world(sqlite_store, check)


def test_a_management_key_makes_none_of_its_kind(sqlite_store: Store) -> None:
    def check(world: World) -> None:
        with pytest.raises(NotAllowed, match="Only the operator"):
            admin_keys.create(world.conn, world.manager, team_id=world.red, name="n", management=True, now_us=NOW_US)

    in_a_world(sqlite_store, check)


@pytest.mark.parametrize("change", ["UPDATE audit SET action = 'x'", "DELETE FROM audit"])
def test_the_log_can_not_be_changed(store: Store, change: str) -> None:
    """Not even by a statement of ours."""
    store.transact(lambda conn: ACTS["keys.create"][0](World(conn), actor.operator(conn)))
    before = store.read(audit.listing)
    assert before
    with pytest.raises(JubalError):
        store.transact(lambda conn: conn.exec_driver_sql(change))
    assert store.read(audit.listing) == before


def test_an_act_that_fails_leaves_no_line(store: Store) -> None:
    def fail(conn: Connection) -> None:
        ACTS["keys.update"][0](World(conn), actor.operator(conn))
        raise BadRequest("no")

    with pytest.raises(BadRequest):
        store.transact(fail)
    assert store.read(audit.listing) == []


def test_a_secret_is_never_written_down(sqlite_store: Store) -> None:
    def write(conn: Connection) -> None:
        actor.note(conn, actor.operator(conn), "x", "key", "1", team_id=None, after={"secret": "s"}, now_us=1)

    with pytest.raises(AssertionError):
        sqlite_store.transact(write)


def test_the_log_in_pages(store: Store) -> None:
    def fill(conn: Connection) -> None:
        who = actor.operator(conn)
        for n in range(7):
            actor.note(conn, who, "x", "key", str(n), team_id=f"t{n % 2}", now_us=n // 2)

    store.transact(fill)
    seen: list[str] = []
    before = None
    while page := store.read(audit.listing, before=before, limit=2):
        seen += [act.id for act in page]
        before = page[-1].id
    whole = store.read(audit.listing)
    assert seen == [act.id for act in whole]
    assert [act.created_us for act in whole] == [3, 2, 2, 1, 1, 0, 0]
    assert len(store.read(audit.listing, team_id="t0", begin_us=1, end_us=3)) == 2
    with pytest.raises(BadRequest):
        store.read(audit.listing, before=whole[0].id, team_id="t1")
