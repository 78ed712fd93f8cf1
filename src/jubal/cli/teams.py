"""`jubal teams`: who pays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from jubal import config
from jubal.cli.common import ConfigOption, JsonOption, open_store, print_json, print_table, table, when

if TYPE_CHECKING:
    from jubal.accounts.teams import Team

app = typer.Typer(no_args_is_help=True, help="Teams: who pays. Every key belongs to one.")


@app.command("create")
def create(
    name: Annotated[str, typer.Option("--name", help="A name that no other team has.")],
    prepaid: Annotated[bool, typer.Option("--prepaid", help="Its credit must cover what it asks for.")] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Make a team."""
    from jubal.accounts import teams

    with open_store(config.load(config_file)) as store:
        team = store.transact(teams.create, name=name, prepaid=prepaid, now_us=time.time_ns() // 1000)
    if as_json:
        print_json(view(team))
    else:
        print(f"Made the team {team.name} ({team.id}).")


@app.command("list")
def list_(as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """List the teams, oldest first."""
    from jubal.accounts import teams

    with open_store(config.load(config_file)) as store:
        found = store.read(teams.listing)
    if as_json:
        print_json([view(team) for team in found])
        return
    print_table(
        table("name", "id", "tier", "prepaid", "state", "created"),
        [
            (
                team.name,
                team.id,
                team.tier,
                "yes" if team.prepaid else "no",
                "blocked" if team.blocked else "active",
                when(team.created_us),
            )
            for team in found
        ],
    )


def view(team: Team) -> dict[str, object]:
    """As JSON shows it. created: Unix seconds."""
    return {
        "id": team.id,
        "name": team.name,
        "prepaid": team.prepaid,
        "blocked": team.blocked,
        "tier": team.tier,
        "created": team.created_us // 1_000_000,
    }
