"""`jubal credits`, `jubal teams`, `jubal limits`: what is told of teams."""

from __future__ import annotations

from jubal.accounts import keys, teams, usage
from jubal.accounts.store import Store
from tests.accounts.conftest import NOW_US, usage_row
from tests.cli.conftest import Cli

MANY = 1_005


def test_credit_that_is_added_again_is_written_down_once(cli: Cli) -> None:
    add = ("credits", "add", "--team", "default", "--usd", "5", "--id", "order 1")
    assert cli.json(*add) == cli.json(*add)
    assert [act["action"] for act in cli.json("audit")] == ["credits.add"]


def test_what_is_booked_is_told_with_what_is_available(cli: Cli) -> None:
    cli("teams", "create", "--name", "early", "--prepaid")
    for team, available in (("default", "no limit"), ("early", "5.00 USD")):
        done = cli("credits", "add", "--team", team, "--usd", "5")
        assert done.stdout == f"{team}: purchase of 5.00 USD. Available: {available}.\n"
    back = ("credits", "refund", "--team", "early", "--usd", "2", "--id", "back 1")
    assert [cli(*back).stdout for _ in range(2)] == ["early: refund of 2.00 USD. Available: 3.00 USD.\n"] * 2


def test_charges_that_were_missing_are_written_down(cli: Cli) -> None:
    team = cli.json("teams", "show", "default")["id"]
    with Store.open(f"sqlite:///{cli.home}/jubal.db") as store:
        store.transact(usage.record, [usage_row("free", team_id=team, cost_in_usd_ticks=0)])
        store.transact(lambda conn: conn.exec_driver_sql("UPDATE usage SET cost_in_usd_ticks = 7"))
    assert cli("credits", "check").exit_code == 1
    for _ in range(2):
        assert cli("credits", "check", "--charge-missing").exit_code == 0
    assert [(act["action"], act["after"]) for act in cli.json("audit")] == [("credits.charge_missing", {"requests": 1})]
    assert cli.json("credits", "show", "--team", "default")["owed_ticks"] == 7


def test_a_team_whose_tier_is_gone_has_nothing_to_use(cli: Cli) -> None:
    """Its requests are refused; "no limit" would be the opposite."""
    config = cli.home.parent / "jubal.toml"
    config.write_text("[tiers.gold]\nrpm = 5\n")
    assert cli("teams", "create", "--name", "g", "--tier", "gold", JUBAL_CONFIG=str(config)).exit_code == 0
    cli("credits", "add", "--team", "g", "--usd", "5")
    there = cli("credits", "show", "--team", "g", JUBAL_CONFIG=str(config))
    assert ("no limit" in there.stdout, there.stderr) == (True, "")
    gone = cli("credits", "show", "--team", "g")
    assert "no limit" not in gone.stdout
    assert "`gold`" in gone.stderr
    found = cli.json("credits", "show", "--team", "g")
    assert (found["available_ticks"], found["prepaid_credit_usd"], found["tier_known"]) == (0, "5.00", False)


def test_lists_are_whole(cli: Cli) -> None:
    """More teams than the store's functions give unless told, and more keys."""
    team = cli.json("teams", "show", "default")["id"]
    with Store.open(f"sqlite:///{cli.home}/jubal.db") as store:

        def make(conn: object) -> None:
            for n in range(MANY):
                teams.create(conn, name=f"t{n}", now_us=NOW_US)  # type: ignore[arg-type]
                keys.create(conn, team_id=team, name=f"k{n}", rpm=5, now_us=NOW_US)  # type: ignore[arg-type]

        store.transact(make)
    assert len(cli.json("teams", "list")) == MANY + 1
    assert len([row for row in cli.json("limits", "show", "--team", "default") if row["scope"] == "key"]) == MANY


def test_the_audit_log_says_how_much(cli: Cli) -> None:
    cli("credits", "add", "--team", "default", "--usd", "5", "--note", "order 7")
    cli("prices", "set", "--team", "default", "--model", "grok-4", "--input", "1")
    shown = cli("audit").stdout
    assert "note: order 7, ticks: 50000000000" in shown
    assert "input: 10000" in shown


def test_invoices_tell_what_is_not_paid_yet(cli: Cli) -> None:
    team = cli.json("teams", "show", "default")["id"]
    with Store.open(f"sqlite:///{cli.home}/jubal.db") as store:
        store.transact(usage.record, [usage_row("a", team_id=team, cost_in_usd_ticks=70_000_000_000)])
    cli("credits", "pay", "--team", "default", "--usd", "3")
    [month] = [one for one in cli.json("invoices", "list", "--team", "default") if one["total_ticks"]]
    assert (month["due_usd"], month["open_usd"]) == ("7.00", "4.00")
    shown = next(
        line for line in cli("invoices", "list", "--team", "default").stdout.splitlines() if month["month"] in line
    )
    assert shown.split()[1:] == ["1", "7.00", "7.00", "4.00"]
