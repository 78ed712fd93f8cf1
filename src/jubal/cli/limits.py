"""`jubal limits`: how much teams may ask for in a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from jubal import config
from jubal.cli.common import (
    CommandError,
    ConfigOption,
    JsonOption,
    TeamOption,
    counted,
    now_us,
    open_store,
    operator,
    print_json,
    print_table,
    public_name,
    table,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.keys import Key
    from jubal.accounts.team_limits import Rates, TeamLimits
    from jubal.accounts.teams import Team

KEYS_MAX = 100_000

ModelOption: TypeAlias = Annotated[
    str, typer.Option("--model", metavar="M", help="A model's public name; * for all models together.")
]

app = typer.Typer(no_args_is_help=True, help="Rate limits of teams. Those of keys are set by `jubal keys`.")


@app.command("set")
def set_(
    team: TeamOption,
    model: ModelOption = "*",
    rps: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Requests per second; 0: no limit.", show_default=False)
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Requests per minute; 0: no limit.", show_default=False)
    ] = None,
    tpm: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Tokens per minute; 0: no limit.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Give a team limits in place of its tier's, or of a model's. What is left out stays. In force within two seconds."""
    from jubal.accounts.team_limits import Rates

    if rps is rpm is tpm is None:
        raise CommandError("Which limit? Give --rps, --rpm or --tpm.")
    settings = config.load(config_file)
    name = public_name(settings, model)
    with open_store(settings) as store:
        kept = store.transact(_put, team, name, Rates(rps, rpm, tpm))
    if as_json:
        print_json({"model": name, **view(kept)})
    else:
        print(f"Set the limits of {team}{'' if name == '*' else f' on {name}'}.")


@app.command("clear")
def clear(
    team: TeamOption,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="Only those of this model; * for those of all.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Take back what a team was given: its tier's limits hold again, and those of the models."""
    settings = config.load(config_file)
    with open_store(settings) as store:
        count = store.transact(_clear, team, None if model is None else public_name(settings, model))
    if as_json:
        print_json({"cleared": count})
    else:
        print(f"Cleared {counted(count, 'limit')}.")


@app.command("show")
def show(team: TeamOption, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Show what limits a team's requests: the team's own, those on models, those of its keys."""
    settings = config.load(config_file)
    with open_store(settings) as store:
        found, own, keys = store.read(_of_team, team)
    rows = list(_rows(settings, found, own)) + [_of_key(key) for key in keys]
    if as_json:
        print_json(rows)
        return
    shown = [[str(row[column] if row[column] is not None else "") for column in COLUMNS] for row in rows]
    print_table(table(*COLUMNS, right=("rps", "rpm", "tpm")), shown)


COLUMNS = ("scope", "name", "from", "rps", "rpm", "tpm")


def view(rates: Rates) -> dict[str, int | None]:
    return {"rps": rates.rps, "rpm": rates.rpm, "tpm": rates.tpm}


def _rows(settings: config.Settings, team: Team, limits: TeamLimits | None) -> list[dict[str, object]]:
    """What holds for a team. A limit of null: there is none. own: what of it the team set itself, with a management key."""
    from jubal.accounts.scopes import Scopes
    from jubal.accounts.team_limits import ALL, NO_RATES, NOTHING_GIVEN, Rates
    from jubal.accounts.tiers import Tier, Tiers

    tiers = Tiers.configured(settings.tiers)
    models = {name: Rates(model.rps, model.rpm, model.tpm) for name, model in settings.models.items()}
    scopes = Scopes(tiers, {name: rates for name, rates in models.items() if rates != NO_RATES})
    limits = limits or NOTHING_GIVEN

    def row(scope: str, name: str, origin: str, model: str, given: Rates, rates: Rates) -> dict[str, object]:
        source = "team" if given != NO_RATES else origin
        own = limits.own.get(model)
        if own is not None:
            source += " and its own"
        return {"scope": scope, "name": name, "from": source, **view(rates), "own": None if own is None else view(own)}

    tier = tiers.get(team.tier) or Tier(team.tier)
    in_all = scopes.team_rates(tier, limits)
    rows = [row("team", team.name, f"tier {tier.name}", ALL, limits.all, in_all)]
    for name in sorted({*scopes.models, *limits.models, *limits.own} - {ALL}):
        given = limits.models.get(name, NO_RATES)
        rows.append(row("model", name, "configuration", name, given, scopes.model_rates(name, limits)))
    return rows


def _of_key(key: Key) -> dict[str, object]:
    return {"scope": "key", "name": key.name, "from": key.id, "rps": key.rps, "rpm": key.rpm, "tpm": key.tpm}


def _put(conn: Connection, name: str, model: str, rates: Rates) -> Rates:
    from jubal.accounts import teams
    from jubal.admin import limits

    team = teams.by_name_or_id(conn, name)
    return limits.put(conn, operator(conn), team.id, model, rates, now_us=now_us())


def _clear(conn: Connection, name: str, model: str | None) -> int:
    from jubal.accounts import teams
    from jubal.admin import limits

    team = teams.by_name_or_id(conn, name)
    return limits.clear(conn, operator(conn), team.id, model, now_us=now_us())


def _of_team(conn: Connection, name: str) -> tuple[Team, TeamLimits | None, list[Key]]:
    from jubal.accounts import keys, team_limits, teams

    team = teams.by_name_or_id(conn, name)
    found = [
        key for key in keys.listing(conn, team.id, limit=KEYS_MAX) if (key.rps, key.rpm, key.tpm) != (None, None, None)
    ]
    return team, team_limits.of_team(conn, team.id), found
