"""`jubal credits`: what teams paid, have left and owe."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from jubal import config
from jubal.cli.common import (
    ConfigOption,
    JsonOption,
    TeamOption,
    open_store,
    operator,
    print_json,
    print_table,
    table,
    ticks_of,
    when,
)
from jubal.core.money import exact_usd

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from jubal.accounts.ledger import Transfer

UNKNOWN_TIER: Final = (
    "The configuration has no tier `{}`: requests of its teams are refused. "
    "Put it into [tiers], or use `jubal teams set-tier`."
)
HISTORY_MAX: Final = 1_000_000
"""They are all held in memory at once, so there is a bound."""
UsdOption: TypeAlias = Annotated[str, typer.Option("--usd", metavar="N", help="How many USD.")]
IdOption: TypeAlias = Annotated[
    str | None, typer.Option("--id", metavar="ID", help="A name for this payment: with the same one it is booked once.")
]
NoteOption: TypeAlias = Annotated[
    str | None, typer.Option("--note", metavar="TEXT", help="What for, as the history shows it.")
]

app = typer.Typer(no_args_is_help=True, help="Credit: what teams paid, have left and owe.")


@app.command("add")
def add(
    team: TeamOption,
    usd: UsdOption,
    note: NoteOption = None,
    id: IdOption = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """A team paid in advance."""
    from jubal.admin import credits

    def act(conn: Connection, team_id: str, ticks: int, now_us: int) -> Transfer:
        return credits.move(conn, operator(conn), "add", team_id, ticks, text=note, id=id, now_us=now_us)

    _move(config.load(config_file), team, usd, as_json, act)


@app.command("pay")
def pay(
    team: TeamOption,
    usd: UsdOption,
    note: NoteOption = None,
    id: IdOption = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """A team paid what it owed."""
    from jubal.admin import credits

    def act(conn: Connection, team_id: str, ticks: int, now_us: int) -> Transfer:
        return credits.move(conn, operator(conn), "pay", team_id, ticks, text=note, id=id, now_us=now_us)

    _move(config.load(config_file), team, usd, as_json, act)


@app.command("refund")
def refund(
    team: TeamOption,
    usd: UsdOption,
    note: NoteOption = None,
    id: IdOption = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """A team gets prepaid credit back."""
    from jubal.admin import credits

    def act(conn: Connection, team_id: str, ticks: int, now_us: int) -> Transfer:
        return credits.move(conn, operator(conn), "refund", team_id, ticks, text=note, id=id, now_us=now_us)

    _move(config.load(config_file), team, usd, as_json, act)


@app.command("limit")
def limit(
    team: TeamOption,
    usd: Annotated[
        str, typer.Argument(metavar="USD", help="What it may owe at most; `none` for as much as its tier allows.")
    ],
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Limit what a team may owe, below what its tier allows. In force everywhere within two seconds."""
    from jubal.admin import billing

    settings = config.load(config_file)
    ticks = None if usd == "none" else ticks_of(usd)

    def work(conn: Connection) -> dict[str, object]:
        from jubal.accounts import teams

        found = teams.by_name_or_id(conn, team)
        billing.limit_spending(conn, operator(conn), found.id, ticks, now_us=_now_us())
        return _standing(conn, team, settings)

    with open_store(settings) as store:
        done = store.transact(work)
    if as_json:
        print_json(done)
    else:
        print(
            f"{done['team']} may owe: {_amount(done['spending_limit_usd'])}. Available: {_amount(done['available_usd'])}."
        )


def _move(
    settings: config.Settings,
    team: str,
    usd: str,
    as_json: bool,
    act: Callable[[Connection, str, int, int], Transfer],
) -> None:
    """One transfer, and where the team stands after it."""
    ticks = ticks_of(usd)

    def work(conn: Connection) -> dict[str, object]:
        from jubal.accounts import teams

        made = act(conn, teams.by_name_or_id(conn, team).id, ticks, _now_us())
        return {"id": made.id, "kind": made.kind, "ticks": made.ticks, **_standing(conn, team, settings)}

    with open_store(settings) as store:
        done = store.transact(work)
    if as_json:
        print_json(done)
    else:
        print(f"{done['team']}: {done['kind']} of {exact_usd(ticks)} USD. Available: {_amount(done['available_usd'])}.")


@app.command("show")
def show(team: TeamOption, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Show what a team has left and owes."""
    settings = config.load(config_file)
    with open_store(settings) as store:
        found = store.transact(_standing, team, settings)
    if as_json:
        print_json(found)
        return
    if not found["tier_known"]:
        print(f"jubal: {UNKNOWN_TIER.format(found['tier'])}", file=sys.stderr)
    print(
        f"team       {found['team']} ({found['team_id']}), tier {found['tier']}{', prepaid' if found['prepaid'] else ''}"
    )
    for name in ("available", "grant", "prepaid_credit", "owed", "spending_limit", "reserved", "spent_this_month"):
        value = found[f"{name}_usd"]
        print(f"{name.replace('_', ' '):17} {_amount(value)}")


def _amount(usd: object) -> str:
    return "no limit" if usd is None else f"{usd} USD"


def _standing(conn: Connection, name: str, settings: config.Settings) -> dict[str, object]:
    """As JSON shows it. available: what can still be used, None for no limit, 0 where
    the tier is not configured; spending_limit: what it may owe at most, by its tier and its
    own limit; reserved: the part that gateways have set aside."""
    from jubal.accounts import credits, teams
    from jubal.accounts.tiers import Tiers

    team = teams.by_name_or_id(conn, name)
    tier = Tiers.configured(settings.tiers).get(team.tier)
    terms = None if tier is None else tier.terms(team.prepaid, team.spending_limit_ticks)
    grant = None if tier is None else tier.monthly_credit or 0
    found = credits.standing(conn, team.id, now_us=_now_us(), monthly_grant=grant)
    balance = found.balance
    amounts = {
        "balance": balance.credit,
        "available": 0 if tier is None else None if terms is None else balance.credit + terms.cap - found.reserved,
        "grant": balance.grant,
        "prepaid_credit": balance.prepaid,
        "owed": -balance.receivable,
        "spending_limit": 0 if tier is None else None if terms is None else terms.cap,
        "reserved": found.reserved,
        "spent_this_month": balance.spent,
    }
    return {
        "team_id": team.id,
        "team": team.name,
        "tier": team.tier,
        "prepaid": team.prepaid,
        "tier_known": tier is not None,
        **{f"{name}_ticks": ticks for name, ticks in amounts.items()},
        **{f"{name}_usd": None if ticks is None else exact_usd(ticks) for name, ticks in amounts.items()},
    }


@app.command("history")
def history(
    team: TeamOption,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=HISTORY_MAX, help="The newest N transfers.")
    ] = 100,
    usage: Annotated[bool, typer.Option("--usage", help="Those of single requests too.")] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """List a team's transfers, newest last."""

    def rows(conn: Connection) -> list[Transfer]:
        from jubal.accounts import ledger, teams

        return ledger.history(conn, teams.by_name_or_id(conn, team).id, limit=limit, usage=usage)

    with open_store(config.load(config_file)) as store:
        found = store.read(rows)
    if as_json:
        print_json([{**one._asdict(), "usd": exact_usd(one.ticks)} for one in found])
        return
    if not found:
        print("No transfers yet." if usage else "No transfers yet; those of requests come with --usage.")
        return
    print_table(
        table("when", "kind", "from", "to", "USD", "note", "id", right=("USD",)),
        [
            (when(one.created_us), one.kind, one.debit, one.credit, exact_usd(one.ticks), one.note or "", one.id)
            for one in found
        ],
    )


@app.command("check")
def check(
    charge_missing: Annotated[
        bool,
        typer.Option(
            "--charge-missing", help="First charge requests that were not: those of an older release beside this one."
        ),
    ] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Compare ledger, balances, usage and reserves. Exit code 1 where they do not agree."""

    from jubal.accounts import credits
    from jubal.admin import credits as admin

    now_us = _now_us()
    with open_store(config.load(config_file)) as store:
        store.transact(credits.sweep, now_us)
        if charge_missing:
            while store.transact(lambda conn: admin.charge_missing(conn, operator(conn), now_us=now_us)):
                pass  # so many at a time that a running server needn't wait long
        found = store.read(credits.reconcile, now_us)  # it looks at everything: on SQLite nobody waits for that
    if as_json:
        print_json({"ok": not found, "mismatches": [asdict(one) for one in found]})
    elif not found:
        print("The books are in order.")
    else:
        for one in found:
            whose = f" (team {one.team_id})" if one.team_id else ""
            print(f"Not so: {one.what}{whose}: expected {one.expected}, found {one.found}.")
    if found:
        raise typer.Exit(1)


def _now_us() -> int:
    return time.time_ns() // 1000
