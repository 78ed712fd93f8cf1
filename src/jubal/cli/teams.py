"""`jubal teams`: who pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from jubal import config
from jubal.cli.common import (
    CommandError,
    ConfigOption,
    JsonOption,
    now_us,
    open_store,
    operator,
    print_json,
    print_table,
    printable,
    table,
    when,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.teams import Team

TierOption: TypeAlias = Annotated[
    str, typer.Option("--tier", metavar="TIER", help="public-beta, standard, enterprise, or one of [tiers].")
]
TeamArgument: TypeAlias = Annotated[str, typer.Argument(metavar="TEAM", help="Its name or id.")]

app = typer.Typer(no_args_is_help=True, help="Teams: who pays. Every key belongs to one.")


@app.command("create")
def create(
    name: Annotated[str, typer.Option("--name", metavar="N", help="A name that no other team has.")],
    prepaid: Annotated[bool, typer.Option("--prepaid", help="Its credit must cover what it asks for.")] = False,
    tier: TierOption = "standard",
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Make a team."""
    settings = config.load(config_file)
    check_tier(settings, tier)
    with open_store(settings) as store:
        team = store.transact(_create, name, prepaid, tier)
    if as_json:
        print_json(view(team))
    else:
        print(f"Made the team {team.name} ({team.id}).")


def _create(conn: Connection, name: str, prepaid: bool, tier: str) -> Team:
    from jubal.admin import teams

    return teams.create(conn, operator(conn), name=name, prepaid=prepaid, tier=tier, now_us=now_us())


@app.command("list")
def list_(as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """List the teams, oldest first."""
    with open_store(config.load(config_file)) as store:
        found = store.read(_listing)
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


@app.command("show")
def show(team: TeamArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Show one team."""
    from jubal.accounts import teams

    with open_store(config.load(config_file)) as store:
        _say(store.read(teams.by_name_or_id, team), as_json)


@app.command("set-tier")
def set_tier(
    team: TeamArgument,
    tier: Annotated[str, typer.Argument(metavar="TIER", help="public-beta, standard, enterprise, or one of [tiers].")],
    prepaid: Annotated[
        bool | None,
        typer.Option(
            "--prepaid/--postpaid", help="Whether its credit must cover what it asks for.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Put a team into a tier. In force everywhere within two seconds."""
    settings = config.load(config_file)
    check_tier(settings, tier)
    _change(settings, team, as_json, tier=tier, prepaid=prepaid)


@app.command("block")
def block(team: TeamArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Stop all keys of a team until it is unblocked."""
    _change(config.load(config_file), team, as_json, blocked=True)


@app.command("unblock")
def unblock(team: TeamArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Let the keys of a blocked team work again."""
    _change(config.load(config_file), team, as_json, blocked=False)


def _change(
    settings: config.Settings,
    name: str,
    as_json: bool,
    *,
    blocked: bool | None = None,
    prepaid: bool | None = None,
    tier: str | None = None,
) -> None:
    with open_store(settings) as store:
        _say(store.transact(_changed, name, blocked, prepaid, tier), as_json)


def _changed(conn: Connection, name: str, blocked: bool | None, prepaid: bool | None, tier: str | None) -> Team:
    from jubal.accounts import teams as known
    from jubal.admin import teams

    team_id = known.by_name_or_id(conn, name).id
    return teams.change(conn, operator(conn), team_id, blocked=blocked, prepaid=prepaid, tier=tier, now_us=now_us())


def _say(team: Team, as_json: bool) -> None:
    if as_json:
        print_json(view(team))
        return
    lines = {
        "id": team.id,
        "name": team.name,
        "prepaid": "yes" if team.prepaid else "no",
        "state": "blocked" if team.blocked else "active",
        "tier": team.tier,
        "created": when(team.created_us),
    }
    for name, value in lines.items():
        print(f"{name:8} {printable(value)}")


def check_tier(settings: config.Settings, name: str) -> None:
    """Raises `CommandError` for a tier that is not there: its teams could do nothing."""
    from jubal.accounts.tiers import Tiers

    names = Tiers.configured(settings.tiers).names
    if name not in names:
        raise CommandError(f"There is no tier `{name}`. Tiers: {', '.join(names)}.")


def _listing(conn: Connection) -> list[Team]:
    from jubal.admin import teams

    return teams.listing(conn, operator(conn))


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
