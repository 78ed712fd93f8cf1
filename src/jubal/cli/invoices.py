"""`jubal invoices`: what a team's month came to."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from jubal import config
from jubal.cli.common import (
    ConfigOption,
    JsonOption,
    TeamOption,
    open_store,
    print_json,
    print_table,
    table,
    write,
)
from jubal.core.money import exact_usd

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.invoices import Invoice

app = typer.Typer(no_args_is_help=True, help="Invoices: what a team's month came to, equal to the ledger.")


AMOUNTS: Final = ("requests", "total USD", "due USD", "not paid yet USD")


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    html = "html"


@app.command("list")
def list_(team: TeamOption, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """List the months in which anything moved."""

    def work(conn: Connection) -> list[Invoice]:
        from jubal.accounts import invoices, teams

        team_id = teams.by_name_or_id(conn, team).id
        return [invoices.build(conn, team_id, month) for month in invoices.months(conn, team_id)]

    from jubal.accounts.invoices import as_json as to_json

    with open_store(config.load(config_file)) as store:
        found = store.read(work)
    if as_json:
        print_json([{name: value for name, value in to_json(one).items() if name != "lines"} for one in found])
        return
    if not found:
        print("No invoices yet: nothing was used or paid.")
        return
    print_table(
        table("month", *AMOUNTS, right=AMOUNTS),
        [(one.name, f"{one.requests:,}", *map(exact_usd, (one.total, one.on_account, one.open))) for one in found],
    )


@app.command("show")
def show(
    team: TeamOption,
    month: Annotated[str, typer.Option("--month", metavar="YYYY-MM", help="A UTC month, such as 2026-11.")],
    format: Annotated[
        Format,
        typer.Option("--format", metavar="F", help="How to print it: table, json, csv or html.", show_choices=False),
    ] = Format.table,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Print a month's invoice."""
    from jubal.accounts import invoices

    def work(conn: Connection) -> Invoice:
        from jubal.accounts import teams

        return invoices.build(conn, teams.by_name_or_id(conn, team).id, invoices.parse_month(month))

    with open_store(config.load(config_file)) as store:
        found = store.read(work)
    match Format.json if as_json else format:
        case Format.json:
            print_json(invoices.as_json(found))
        case Format.csv:
            write(invoices.as_csv(found))
        case Format.html:
            write(invoices.as_html(found))
        case Format.table:
            print_table(
                table("model", "description", "quantity", "USD", right=("quantity", "USD")),
                [(line.model, line.what, f"{line.quantity:,}", exact_usd(line.ticks)) for line in found.lines],
            )
            print(
                f"\n{found.team}, {found.name}: {exact_usd(found.total)} USD, of which {exact_usd(found.on_account)} due"
            )
