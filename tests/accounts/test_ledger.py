"""The ledger: who pays first, months, replays, and what `reconcile` finds."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from jubal.accounts import credits, keys, ledger, tables, usage
from jubal.accounts.credits import Booking, Terms
from jubal.accounts.ledger import ACCOUNTS, Balance, Transfer, Used
from jubal.accounts.store import GroupCommit, Store
from jubal.accounts.usage import UsageRow
from jubal.core.errors import BadRequest
from jubal.records import deferred
from tests.accounts.conftest import NOW_US, usage_row

DAY_US = 86_400 * 1_000_000
MONTH = ledger.month_of(NOW_US)
NEXT_US = ledger.first_us(ledger.next_month(MONTH))


def row(request_id: object, ticks: int, created_us: int = NOW_US, **changes: object) -> UsageRow:
    return usage_row(request_id, cost_in_usd_ticks=ticks, created_us=created_us, **changes)


def balance(store: Store, team_id: str = "team") -> Balance:
    return store.read(ledger.read, team_id)


def pieces(store: Store) -> list[tuple[str, str, int]]:
    return [(one.id, one.debit, one.ticks) for one in store.read(ledger.history, "team") if one.kind == "usage"]


def grant(store: Store, ticks: int, now_us: int = NOW_US) -> None:
    store.transact(credits.standing, "team", now_us=now_us, monthly_grant=ticks)


def in_order(store: Store) -> None:
    assert store.read(credits.reconcile, NOW_US) == []


def test_what_expires_pays_first_then_what_is_paid_then_what_is_owed(store: Store) -> None:
    grant(store, 100)
    store.transact(credits.book, "add", team_id="team", ticks=50, now_us=NOW_US)
    store.transact(usage.record, [row("a", 70)])
    store.transact(usage.record, [row("b", 60), row("c", 30)])
    assert pieces(store) == [
        ("a", "grant", 70),
        ("b", "grant", 30),
        ("b/2", "prepaid", 30),
        ("c", "prepaid", 20),
        ("c/2", "receivable", 10),
    ]
    now = balance(store)
    assert (now.grant, now.prepaid, now.receivable, now.revenue, now.cash, now.promo) == (0, 0, -10, 160, -50, -100)
    assert (now.credit, now.spent) == (-10, 160)
    in_order(store)


def test_one_request_over_all_three(store: Store) -> None:
    grant(store, 5)
    store.transact(credits.book, "add", team_id="team", ticks=5, now_us=NOW_US)
    store.transact(usage.record, [row("a", 12)])
    assert pieces(store) == [("a", "grant", 5), ("a/2", "prepaid", 5), ("a/3", "receivable", 2)]
    in_order(store)


def test_teams_of_one_batch_pay_apart_and_free_requests_leave_no_transfer(store: Store) -> None:
    store.transact(usage.record, [row("a", 1), row("b", 2, team_id="other"), row("c", 0), row("d", 4)])
    assert (balance(store).receivable, balance(store, "other").receivable) == (-5, -2)
    assert [one.id for one in store.read(ledger.history, "team")] == ["a", "d"]
    in_order(store)


def test_a_batch_that_comes_again_is_charged_once(store: Store) -> None:
    batch = [row(n, 10 + n) for n in range(5)]
    store.transact(usage.record, batch[:3])
    store.transact(usage.record, batch)
    store.transact(usage.record, [replaced._replace(cost_in_usd_ticks=999) for replaced in batch])
    store.transact(usage.record, [row("x", 0)])
    store.transact(usage.record, [row("x", 7)])  # what is stored counts: it was free
    store.transact(usage.record, [row("y", 1), row("y", 1)])
    assert balance(store).revenue == sum(range(10, 15)) + 1
    in_order(store)


async def test_a_commit_whose_fate_is_unknown_is_charged_once(store: Store) -> None:
    """The connection breaks after the commit and before the answer: the batch goes again."""
    failures = [1]

    def write(conn: Connection, rows: list[UsageRow]) -> None:
        usage.record(conn, rows)
        if failures:
            failures.pop()
            conn.commit()
            raise sa.exc.OperationalError("", {}, Exception("gone"), connection_invalidated=True)

    group = GroupCommit(store, write)
    await group.commit(row("a", 10))
    await group.close()
    assert balance(store).revenue == 10
    in_order(store)


def test_a_transfer_is_posted_once_by_its_id(store: Store) -> None:
    paid = Transfer("order 17", "team", "cash", "prepaid", 5, "purchase", NOW_US, "card")
    assert store.transact(ledger.post, paid)
    assert not store.transact(ledger.post, paid._replace(ticks=6))
    assert store.read(ledger.history, "team") == [paid]
    assert balance(store).prepaid == 5


@pytest.mark.parametrize("ticks", [0, -1, ledger.TICKS_MAX + 1])
def test_an_amount_that_is_none(store: Store, ticks: int) -> None:
    with pytest.raises(BadRequest):
        store.transact(credits.book, "add", team_id="team", ticks=ticks, now_us=NOW_US)
    assert balance(store) == Balance("team")


def test_a_payment_that_comes_again_is_the_first_one(store: Store) -> None:
    first, _ = store.transact(credits.book, "add", team_id="team", ticks=5, now_us=NOW_US, note="card", id="order 17")
    again, _ = store.transact(credits.book, "add", team_id="team", ticks=5, now_us=NOW_US + 9, id="order 17")
    assert again == first
    assert balance(store).prepaid == 5


@pytest.mark.parametrize(("booking", "left"), [("add", (15, 0)), ("pay", (10, 5)), ("refund", (5, 0))])
def test_what_is_booked_with_an_id_is_booked_once(store: Store, booking: Booking, left: tuple[int, int]) -> None:
    store.transact(credits.book, "add", team_id="team", ticks=10, now_us=NOW_US)
    made = [
        store.transact(credits.book, booking, team_id="team", ticks=5, now_us=NOW_US + n, id="order 17")
        for n in range(3)
    ]
    assert [new for _, new in made] == [True, False, False]
    assert len({transfer for transfer, _ in made}) == 1
    assert (balance(store).prepaid, balance(store).receivable) == left
    in_order(store)


def test_a_refund_that_comes_again_is_told_though_nothing_is_left(store: Store) -> None:
    store.transact(credits.book, "add", team_id="team", ticks=5, now_us=NOW_US)
    for _ in range(2):
        store.transact(credits.book, "refund", team_id="team", ticks=5, now_us=NOW_US, id="back")
    assert balance(store).prepaid == 0
    with pytest.raises(BadRequest, match="another payment"):
        store.transact(credits.book, "add", team_id="team", ticks=5, now_us=NOW_US, id="back")


@pytest.mark.parametrize("changes", [{"team_id": "other"}, {"ticks": 6}])
def test_the_id_of_another_payment_is_refused_and_not_taken_for_done(store: Store, changes: dict[str, object]) -> None:
    """The answer said that the credit was added, and it was not."""
    payment: dict[str, object] = {"team_id": "team", "ticks": 5, "now_us": NOW_US, "id": "order 17"}
    store.transact(credits.book, "add", **payment)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="another payment"):
        store.transact(credits.book, "add", **payment | changes)  # type: ignore[arg-type]
    assert (balance(store).prepaid, balance(store, "other").prepaid) == (5, 0)


@pytest.mark.parametrize("id", ["", "x" * 101, f"grant:team:{ledger.next_month(MONTH)}", f"expiry:team:{MONTH}"])
def test_a_payment_takes_no_id_that_the_ledger_needs(store: Store, id: str) -> None:
    """A payment with the id of next month's grant kept that grant away."""
    grant(store, 7)
    with pytest.raises(BadRequest):
        store.transact(credits.book, "add", team_id="team", ticks=5, now_us=NOW_US, id=id)
    grant(store, 7, NEXT_US)
    assert balance(store).grant == 7
    in_order(store)


def test_an_account_that_would_not_fit_into_the_stores_integers(store: Store) -> None:
    """SQLite went on in floating point, and PostgreSQL refused the statement."""
    store.transact(credits.book, "add", team_id="team", ticks=ledger.TICKS_MAX, now_us=NOW_US)
    with pytest.raises(BadRequest, match="at most"):
        store.transact(credits.book, "add", team_id="team", ticks=1, now_us=NOW_US)
    assert balance(store).prepaid == ledger.TICKS_MAX
    in_order(store)


def test_what_a_grant_that_expired_covered_is_not_refunded(store: Store) -> None:
    """5 granted last month and 10 prepaid; 8 are set aside. Only 2 can go back, as the grant is over."""
    grant(store, 5)
    grant(store, 0)
    store.transact(credits.book, "add", team_id="team", ticks=10, now_us=NOW_US)
    terms = {"fresh": True, "least": 8, "wanted": 8, "terms": Terms(), "now_us": NEXT_US - 1, "lease_us": 10 * DAY_US}
    store.transact(credits.take, reserve_id="one", team_id="team", gateway="g", **terms)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="Only"):
        store.transact(credits.book, "refund", team_id="team", ticks=3, now_us=NEXT_US)
    store.transact(credits.book, "refund", team_id="team", ticks=2, now_us=NEXT_US)
    assert (balance(store).prepaid, balance(store).grant) == (8, 0)


def test_the_store_itself_refuses_transfers_of_nothing(store: Store) -> None:
    def insert(conn: Connection, **changes: object) -> None:
        good = Transfer("x", "team", "cash", "prepaid", 1, "purchase", NOW_US)._asdict()
        conn.execute(tables.transfers.insert(), good | changes)

    for changes in ({"ticks": 0}, {"ticks": -5}, {"credit": "cash"}):
        with pytest.raises(Exception, match="refused a statement"):
            store.transact(insert, **changes)
    store.transact(insert)


# ------------------------------------------------------------------------------------------------------------- months


def test_a_grant_is_given_once_a_month_and_expires_at_its_end(store: Store) -> None:
    for _ in range(3):
        grant(store, 100)
    store.transact(usage.record, [row("a", 30)])
    assert balance(store).grant == 70
    grant(store, 100, NEXT_US - 1)
    assert balance(store).grant == 70
    for _ in range(3):
        grant(store, 100, NEXT_US)
    now = balance(store)
    assert (now.grant, now.promo, now.revenue, now.spent) == (100, -130, 30, 0)
    kinds = [(one.kind, one.ticks) for one in store.read(ledger.history, "team")]
    assert sorted(kinds) == [("expiry", 70), ("grant", 100), ("grant", 100), ("usage", 30)]
    in_order(store)


def test_a_batch_turns_the_month_too(store: Store) -> None:
    """Nobody asked for credit since: the first request of the month is paid by the month's own grant."""
    grant(store, 100)
    store.transact(usage.record, [row("a", 40), row("b", 20, NEXT_US + 5)])
    now = balance(store)
    assert (now.grant, now.month, now.spent) == (40, ledger.next_month(MONTH), 60)
    store.transact(usage.record, [row("late", 1, NEXT_US - 1)])
    assert (balance(store).grant, balance(store).month) == (39, now.month)
    in_order(store)


def test_a_team_that_left_its_tier_keeps_the_month_and_gets_no_more(store: Store) -> None:
    grant(store, 100)
    grant(store, 0)
    assert balance(store).grant == 100
    grant(store, 0, NEXT_US)
    assert balance(store).grant == 0
    in_order(store)


def test_prepaid_credit_does_not_expire(store: Store) -> None:
    store.transact(credits.book, "add", team_id="team", ticks=50, now_us=NOW_US)
    grant(store, 100, NEXT_US + 400 * DAY_US)
    assert balance(store).prepaid == 50


@pytest.mark.parametrize(("month", "after"), [(202611, 202612), (202612, 202701), (202609, 202610)])
def test_months(month: int, after: int) -> None:
    assert ledger.next_month(month) == after
    assert ledger.month_of(ledger.first_us(after)) == after
    assert ledger.month_of(ledger.first_us(after) - 1) == month


# -------------------------------------------------------------------------------------------------------- reconciling


def tamper(conn: Connection, statement: str) -> None:
    conn.exec_driver_sql(statement)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE balances SET prepaid_ticks = prepaid_ticks + 1", "sum to zero"),
        ("UPDATE balances SET prepaid_ticks = 9, receivable_ticks = receivable_ticks - 9 + prepaid_ticks", "of prepaid is"),
        ("DELETE FROM transfers WHERE id = 'a'", "every usage row"),
        ("UPDATE transfers SET ticks = ticks + 1 WHERE id = 'a'", "what was charged"),
        ("INSERT INTO transfers VALUES ('a again', 'team', 'receivable', 'revenue', 30, 'usage', 1700000000000000, NULL)", "what was charged"),
        ("UPDATE usage SET cost_in_usd_ticks = 31 WHERE request_id = 'a'", "what was charged"),
        ("INSERT INTO reserves VALUES ('r', 'team', 'g', 5, 1)", "stuck in a reserve"),
        ("INSERT INTO reserves VALUES ('r', 'team', 'g', -5, 1800000000000000)", "below zero"),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_found(store: Store, statement: str, what: str) -> None:
    store.transact(credits.book, "add", team_id="team", ticks=50, now_us=NOW_US)
    store.transact(usage.record, [row("a", 30), row("b", 7)])
    in_order(store)
    store.transact(tamper, statement)
    assert any(what in found.what for found in store.read(credits.reconcile, NOW_US))


def test_usage_rows_may_be_deleted_when_they_are_old(store: Store) -> None:
    store.transact(usage.record, [row("old", 30, NOW_US - DAY_US), row("new", 7)])
    store.transact(tamper, "DELETE FROM usage WHERE request_id = 'old'")
    in_order(store)


# --------------------------------------------------------------------------------------------------------- properties

_numbers = itertools.count()
acts = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 1000), st.integers(0, 70)),
        st.tuples(st.just("use"), st.integers(0, 300), st.integers(0, 70)),
        st.tuples(st.just("again"), st.integers(1, 5), st.integers(0, 70)),
        st.tuples(st.just("grant"), st.integers(0, 500), st.integers(0, 70)),
        st.tuples(st.just("take"), st.integers(1, 400), st.integers(0, 70)),
        st.tuples(st.just("pay"), st.integers(1, 100), st.integers(0, 70)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=acts)
def test_whatever_happens_the_books_balance(sqlite_store: Store, acts: list[tuple[str, int, int]]) -> None:
    store, team = sqlite_store, f"team {next(_numbers)}"
    used: list[UsageRow] = []
    cost = 0
    for n, (what, ticks, day) in enumerate(sorted(acts, key=lambda act: act[2])):
        now = NOW_US + day * DAY_US
        if what == "add":
            store.transact(credits.book, "add", team_id=team, ticks=ticks, now_us=now)
        elif what == "pay":
            store.transact(credits.book, "pay", team_id=team, ticks=ticks, now_us=now)
        elif what == "grant":
            store.transact(credits.standing, team, now_us=now, monthly_grant=ticks)
        elif what == "take":
            before = store.transact(credits.standing, team, now_us=now)
            taken = store.transact(
                credits.take, reserve_id=f"{team} {n}", team_id=team, gateway="g", fresh=True, least=ticks, wanted=ticks,
                terms=Terms(before.balance.monthly_grant), now_us=now, lease_us=DAY_US,
            )  # fmt: skip
            after = store.transact(credits.standing, team, now_us=now)
            assert taken.ticks == 0 or ticks <= taken.ticks
            assert after.reserved <= max(after.balance.credit, before.reserved)
        elif what == "use":
            used.append(row(f"{team} {n}", ticks, now, team_id=team))
            cost += ticks
            store.transact(usage.record, used[-1:])
        elif used:
            store.transact(usage.record, used[-ticks:])
        found = store.read(ledger.read, team)
        assert sum(getattr(found, account) for account in ACCOUNTS) == 0
        assert min(found.grant, found.prepaid) >= 0
        assert found.revenue == cost
    assert [found for found in store.read(credits.reconcile, NOW_US) if found.team_id == team] == []


@given(st.integers(0, 1000), st.integers(0, 1000), st.lists(st.integers(1, 300), min_size=1, max_size=10))
def test_pieces_of_requests_add_up(grant_ticks: int, prepaid: int, costs: list[int]) -> None:
    left = {"grant": grant_ticks, "prepaid": prepaid}
    for n, ticks in enumerate(costs):
        made = ledger._pieces(Used(str(n), "team", ticks, NOW_US), left)
        assert sum(piece.ticks for piece in made) == ticks
        assert [piece.debit for piece in made] == sorted((piece.debit for piece in made), key=ledger.PAYS.index)
        assert len({piece.id for piece in made}) == len(made)
    spent = sum(costs)
    assert left["grant"] == max(0, grant_ticks - spent)
    assert left["prepaid"] == max(0, prepaid - max(0, spent - grant_ticks))


def test_a_history_without_requests(store: Store) -> None:
    store.transact(credits.book, "add", team_id="team", ticks=50, now_us=NOW_US, note="card")
    store.transact(usage.record, [row("a", 30)])
    assert [one.kind for one in store.read(ledger.history, "team", usage=False)] == ["purchase"]
    assert replace(balance(store)).prepaid == 20


def test_what_was_used_before_there_was_a_ledger_is_owed(url: str) -> None:
    """A store of the release before, with requests of two teams, and rows that such a release wrote meanwhile."""
    old = [row("a", 30), row("b", 0), row("c", 12, team_id="other"), row("d", 5)]
    with Store.open(url) as store:
        store.transact(usage.record, old)
        store.transact(migrate, "0002")
    with Store.open(url) as store:
        assert balance(store).receivable == -35
        assert balance(store, "other").revenue == 12
        in_order(store)
        store.transact(usage.record, [row("e", 7)])
        store.transact(tamper, "DELETE FROM transfers WHERE id = 'e'")
        store.transact(tamper, "UPDATE balances SET receivable_ticks = receivable_ticks + 7, revenue_ticks = revenue_ticks - 7 WHERE team_id = 'team'")  # fmt: skip
        assert [found.found for found in store.read(credits.reconcile, NOW_US)][-1] == 1
        assert store.transact(credits.charge_missing) == 1
        assert store.transact(credits.charge_missing) == 0
        in_order(store)


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004"])
def test_a_store_of_any_release_before_goes_on_with_its_data(url: str, revision: str) -> None:
    """Team, key, usage and a job that waits are written as that release had its tables; then this release opens it."""
    with Store.open(url) as store:
        store.transact(migrate, revision)
        store.transact(fill_old)
        if revision >= "0002":
            store.transact(defer_old)
    with Store.open(url) as store:
        [key] = store.read(keys.listing)
        assert (key.id, key.team_id) == ("key", "old")
        [used] = store.read(usage.listing)
        assert (used.request_id, used.cost_in_usd_ticks, used.tools) == ("was", 30, None)
        if revision < "0004":
            assert balance(store, "old").receivable == -30
        else:
            assert store.transact(credits.charge_missing) == 1
        store.transact(usage.record, [row("is", 5, team_id="old", key_id="key")])
        assert balance(store, "old").revenue == 35
        in_order(store)
        claim = {"jobs_max": 5, "lease": "l", "lease_us": 1, "now_us": NOW_US}
        jobs = store.transact(deferred.claim, dialects=["chat"], **claim)  # type: ignore[arg-type]
        assert [(job.request_id, job.dialect) for job in jobs] == ([("later", "chat")] if revision >= "0002" else [])


def fill_old(conn: Connection) -> None:
    """With the columns that every release has had."""
    conn.exec_driver_sql(
        "INSERT INTO teams (id, name, created_us, blocked, prepaid, tier) VALUES ('old', 'old', 1, false, false, 'standard')"
    )
    conn.exec_driver_sql(
        "INSERT INTO api_keys (id, team_id, name, digest, redacted, acls, management, disabled, blocked, user_id, created_us, modified_us, modified_by) "
        "VALUES ('key', 'old', 'k', 'd', 'xai-...', '[\"api-key:model:*\", \"api-key:endpoint:*\"]', false, false, false, 'me', 1, 1, 'me')"
    )
    conn.exec_driver_sql(
        "INSERT INTO usage (request_id, created_us, team_id, key_id, endpoint, model, engine, weights, status, stream, "
        "prompt_tokens, completion_tokens, reasoning_tokens, cost_in_usd_ticks, latency_us, estimated) "
        f"VALUES ('was', {NOW_US}, 'old', 'key', 'chat', 'grok-4', 'e', 'w', 'ok', false, 5, 5, 0, 30, 9, false)"
    )


def defer_old(conn: Connection) -> None:
    body = tables.deferred.c.body
    old = sa.table("deferred", *(sa.column(c.name, c.type) for c in tables.deferred.c if c.name != "dialect"))
    conn.execute(
        old.insert().values(
            request_id="later", team_id="old", key_id="key", body=sa.literal(b"{}", body.type), state="pending",
            created_us=NOW_US, expires_us=NOW_US + DAY_US, lease_until_us=0, attempts=0,
        )
    )  # fmt: skip


def migrate(conn: Connection, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": conn})
    config.set_main_option("script_location", str(Path(ledger.__file__).parent / "migrations"))
    command.downgrade(config, revision)


# ---------------------------------------------------------------------------------------------------------- beside writers


def test_when_retention_took_every_row_the_books_are_still_in_order(store: Store) -> None:
    """A team that was quiet for as long as rows are kept: there is no oldest row to compare from."""
    store.transact(usage.record, [row("old", 30, NOW_US - 2 * DAY_US), row("free", 0, NOW_US - 2 * DAY_US)])
    assert store.transact(usage.delete_before, NOW_US) == 2
    in_order(store)


def test_what_is_read_together_is_of_one_moment(store: Store) -> None:
    """Between two statements of `reconcile` a gateway charges a request; it must be seen by both or by none."""

    def look(conn: Connection) -> tuple[int, int]:
        before = ledger.sums(conn, "team", 0, 2**62)
        with ThreadPoolExecutor(1) as gateway:
            gateway.submit(store.transact, usage.record, [row("meanwhile", 7)]).result(30)
        after = ledger.sums(conn, "team", 0, 2**62)
        return sum(before.values()), sum(after.values())

    store.transact(usage.record, [row("first", 30)])
    assert store.read(look) == (30, 30)
    assert balance(store).revenue == 37
    in_order(store)
